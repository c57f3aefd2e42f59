//! Full cycles at a fixed rate. Latency runs from when a message was due to when its receiver has dealt with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::arrivals::Arrivals;
use super::load::{RECEIVE_BATCH, RECEIVE_WAIT, RECEIVERS, receivers, senders, warm};
use super::numbers::Numbers;
use super::pace::{Answer, Schedule, pace};
use crate::compare::figures::figure;
use crate::compare::metric::{Metric, Reading};
use crate::compare::results::Log;
use crate::compare::system::{Doing, Failure, Queue, Receiver, System, Through};
use crate::compare::window::Window;

const SENDERS: usize = 4;
/// Messages without a confirmation; servers bound what they take in as well.
const OUTSTANDING_MAX: usize = 8 * 1024;
/// How long after the last send what is missing is waited for, and any client that does not end.
const PATIENCE: Duration = Duration::from_secs(10);
/// For [`Paced::behind_max`]: so much fits on disks and in memory.
pub const BEHIND_MAX: Duration = Duration::from_secs(10);
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// After what failed, so that a receiver does not spin.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// What is to be done.
#[derive(Clone)]
pub struct Paced {
    pub queue: &'static str,
    pub rate_per_s: u64,
    pub bytes: usize,
    pub time: Duration,
    /// A system that has so much time's messages still to do is ended: it does not catch up while more come.
    pub behind_max: Duration,
    pub work: Arc<dyn Work>,
}

/// What receivers do with what they receive, before they acknowledge it.
pub trait Work: Send + Sync {
    fn done<'a>(&'a self, bodies: &'a [Bytes]) -> Doing<'a, ()>;
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub readings: Vec<Reading>,
    pub lasted: Duration,
    /// It was ended before its time.
    pub fell_behind: bool,
    /// What went wrong beside what was measured.
    failures: Vec<Failure>,
}

impl Outcome {
    pub fn tell(self, case: &str, log: &mut Log) {
        log.record(case, self.readings);
        for failure in self.failures {
            log.fail(case, failure);
        }
    }
}

/// What is known of the messages so far.
struct Watch {
    /// With a confirmation.
    sent: Numbers,
    arrivals: Arrivals,
    failed: u64,
    last_failure: Option<Failure>,
}

impl Watch {
    fn fail(&mut self, messages: u64, failure: Failure) {
        self.failed += messages;
        self.last_failure = Some(failure);
    }
}

type Shared = Arc<Mutex<Watch>>;

/// Creates the queue, and deletes it when all is done.
pub async fn run(system: &dyn System, paced: &Paced) -> Result<Outcome, Failure> {
    system.create_queue(Queue::wide(paced.queue)).await?;
    let senders = senders(system, paced.queue, SENDERS, Through::AnyNode).await?;
    let receivers = receivers(system, paced.queue, RECEIVERS, Through::AnyNode).await?;
    warm(&senders, &Bytes::from_static(b"warm")).await?;
    let epoch = Instant::now();
    let watch = Arc::new(Mutex::new(Watch {
        sent: Numbers::default(),
        arrivals: Arrivals::new(epoch),
        failed: 0,
        last_failure: None,
    }));
    let (stop_sending, stop_receiving) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut receiving = JoinSet::new();
    for receiver in receivers {
        receiving.spawn(receive(receiver, paced.work.clone(), watch.clone(), stop_receiving.clone()));
    }
    let schedule = Schedule {
        epoch,
        rate_per_s: paced.rate_per_s,
        bytes: paced.bytes,
        outstanding_max: OUTSTANDING_MAX,
    };
    let window = Window::open(system.pids());
    let take = {
        let watch = Arc::clone(&watch);
        move |answers| take(&mut locked(&watch), answers)
    };
    let mut sending = JoinSet::new();
    sending.spawn(pace(schedule, senders, stop_sending.clone(), take));
    let fell_behind = fell_behind(&watch, &schedule, paced).await;
    stop_sending.store(true, Ordering::Relaxed);
    let (lasted, on_time) = (epoch.elapsed(), locked(&watch).arrivals.count());
    let mut readings = window.close(on_time);
    until_ended(&mut sending).await?;
    if !fell_behind {
        until_all_came(&watch).await;
    }
    stop_receiving.store(true, Ordering::Relaxed);
    until_ended(&mut receiving).await?;
    let undeleted = system.delete_queue(paced.queue).await.err();
    let due = schedule.due_after(lasted);
    let mut watch = locked(&watch);
    readings.push((Metric::OnTimePercent, on_time as f64 / due.max(1) as f64 * 100.0));
    count_missing(&mut watch, &schedule, due);
    readings.extend(watch.arrivals.latencies.readings());
    let behind = fell_behind.then(|| ended_early(lasted, due, on_time));
    let failures = behind.into_iter().chain(failed(&watch)).chain(undeleted).collect();
    Ok(Outcome { readings, lasted, fell_behind, failures })
}

fn locked(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A send that failed may have happened or not: if it did, the message comes.
fn take(watch: &mut Watch, answers: Vec<Answer>) {
    for (stamp, answer) in answers {
        match answer {
            Ok(_) => {
                watch.sent.insert(stamp.number);
            }
            Err(failure) => watch.fail(1, failure),
        }
    }
}

/// Waits until the time is over, or the system is too far behind.
async fn fell_behind(watch: &Mutex<Watch>, schedule: &Schedule, paced: &Paced) -> bool {
    let behind_max = schedule.due_after(paced.behind_max);
    loop {
        let elapsed = schedule.epoch.elapsed();
        let behind = schedule.due_after(elapsed).saturating_sub(locked(watch).arrivals.count());
        if elapsed >= paced.time || behind > behind_max {
            return behind > behind_max;
        }
        sleep(LOOK_PAUSE.min(paced.time - elapsed)).await;
    }
}

async fn until_all_came(watch: &Mutex<Watch>) {
    let given_up = Instant::now() + PATIENCE;
    let is_waiting = || {
        let watch = locked(watch);
        watch.arrivals.missing(&watch.sent).next().is_some()
    };
    while is_waiting() && Instant::now() < given_up {
        sleep(LOOK_PAUSE).await;
    }
}

/// Those that do not end by themselves are ended: a system that hangs is measured by what did not come.
async fn until_ended<E: Into<Failure> + 'static>(tasks: &mut JoinSet<Result<(), E>>) -> Result<(), Failure> {
    let all = async {
        while let Some(task) = tasks.join_next().await {
            task?.map_err(Into::<Failure>::into)?;
        }
        Ok::<_, Failure>(())
    };
    let ended = timeout(PATIENCE, all).await;
    tasks.abort_all();
    ended.unwrap_or(Ok(()))
}

/// What never came took at least until now.
fn count_missing(watch: &mut Watch, schedule: &Schedule, due: u64) {
    let now = Instant::now();
    let missing = watch.arrivals.missing_below(due).collect::<Vec<_>>();
    for number in missing {
        watch.arrivals.latencies.add(schedule.stamp(number).latency(schedule.epoch, now));
    }
}

fn ended_early(lasted: Duration, due: u64, on_time: u64) -> Failure {
    Failure::new(format!(
        "it fell behind and was ended after {} s, when {} messages were due and {} of them done",
        figure(lasted.as_secs_f64()),
        figure(due as f64),
        figure(on_time as f64)
    ))
}

fn failed(watch: &Watch) -> Option<Failure> {
    let last = watch.last_failure.as_ref()?;
    Some(Failure::new(format!(
        "{} sends, receives or acks failed, the last with: {last}",
        figure(watch.failed as f64)
    )))
}

/// Only what fails in this program ends it.
async fn receive(
    mut receiver: Box<dyn Receiver>,
    work: Arc<dyn Work>,
    watch: Shared,
    stop: Arc<AtomicBool>,
) -> Result<(), Failure> {
    while !stop.load(Ordering::Relaxed) {
        let acked = match receiver.receive(RECEIVE_BATCH, RECEIVE_WAIT).await {
            Ok(bodies) => {
                work.done(&bodies).await?;
                locked(&watch).arrivals.take(&bodies, Instant::now());
                receiver.ack().await.map(drop)
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = acked {
            locked(&watch).fail(1, failure);
            sleep(RETRY_PAUSE).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::ready;

    use super::*;
    use crate::compare::fake::{Fake, Receiving};
    use crate::compare::systems::Name;
    use crate::compare::workloads::Workload;

    const NEVER: Duration = Duration::from_secs(3_600);

    struct Nothing;

    impl Work for Nothing {
        fn done<'a>(&'a self, _: &'a [Bytes]) -> Doing<'a, ()> {
            ready(Ok(())).boxed()
        }
    }

    fn paced(time: Duration, behind_max: Duration) -> Paced {
        Paced { queue: "q", rate_per_s: 5_000, bytes: 32, time, behind_max, work: Arc::new(Nothing) }
    }

    async fn outcome(receiving: Receiving, paced: &Paced) -> Outcome {
        let dir = tempfile::tempdir().unwrap();
        run(&Fake::new(dir.path(), receiving), paced).await.unwrap()
    }

    fn reading(outcome: &Outcome, metric: Metric) -> f64 {
        outcome.readings.iter().find(|(known, _)| *known == metric).unwrap().1
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_comes_in_time_has_no_failure() {
        let asked = paced(Duration::from_millis(300), NEVER);
        let outcome = outcome(Receiving::Works, &asked).await;
        assert!(!outcome.fell_behind && outcome.lasted >= asked.time);
        assert_eq!(outcome.failures, []);
        let percent = reading(&outcome, Metric::OnTimePercent);
        assert!((0.0..=100.0).contains(&percent), "{percent}");
        assert!(reading(&outcome, Metric::P50Ms) > 0.0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_system_that_hangs_is_ended_early_and_what_did_not_come_counts() {
        let asked = paced(NEVER, Duration::from_millis(200));
        let outcome = outcome(Receiving::Hangs, &asked).await;
        assert!(outcome.fell_behind && outcome.lasted < asked.time);
        assert_eq!(reading(&outcome, Metric::OnTimePercent), 0.0);
        assert_eq!(reading(&outcome, Metric::MessagesPerS), 0.0);
        // The first message was due at the begin.
        assert!(reading(&outcome, Metric::P999Ms) >= 190.0, "{outcome:?}");
        let mut log = Log::new(Workload::W7, 0, Name::Nats);
        outcome.tell("case", &mut log);
        assert_eq!((log.records.len(), log.failures.len()), (1, 1));
        let reason = log.failures[0].reason.to_string();
        assert!(reason.starts_with("it fell behind and was ended after "), "{reason}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn requests_that_fail_are_told_and_end_nothing() {
        let outcome = outcome(Receiving::Stumbles, &paced(Duration::from_millis(300), NEVER)).await;
        assert!(!outcome.fell_behind);
        let told = outcome.failures.iter().map(Failure::to_string).collect::<Vec<_>>();
        assert!(told.len() == 1 && told[0].ends_with("the last with: it stumbled"), "{told:?}");
    }
}
