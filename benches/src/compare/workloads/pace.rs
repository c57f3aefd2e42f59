//! An open loop: messages are sent when they are due, however the system is doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use crate::compare::bodies::{Stamp, stamped};
use crate::compare::system::{Failure, Sender};

/// Messages that became due together go in one batch.
const TICK: Duration = Duration::from_millis(1);
/// What became due while this program was held up goes in several.
const BATCH_MAX: u64 = 500;

/// A message and what became of its send.
pub type Answer = (Stamp, Result<Instant, Failure>);

#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub epoch: Instant,
    pub rate_per_s: u64,
    pub bytes: usize,
    /// Messages that wait for an answer: what is due beyond them is sent when there is a place, and is late.
    pub outstanding_max: usize,
}

impl Schedule {
    pub fn stamp(&self, number: u64) -> Stamp {
        Stamp { number, due: Duration::from_micros(number * 1_000_000 / self.rate_per_s) }
    }

    /// How many messages are due after some time.
    pub fn due_after(&self, elapsed: Duration) -> u64 {
        (elapsed.as_micros() * u128::from(self.rate_per_s) / 1_000_000) as u64
    }
}

/// Sends until it is told to stop, and returns when each send has its answer, which went to `on_answers` before.
pub async fn pace(
    schedule: Schedule,
    senders: Vec<Arc<dyn Sender>>,
    stop: Arc<AtomicBool>,
    on_answers: impl Fn(Vec<Answer>) + Clone + Send + 'static,
) -> Result<(), JoinError> {
    assert!(schedule.outstanding_max >= BATCH_MAX as usize, "a whole batch has a place");
    let places = Arc::new(Semaphore::new(schedule.outstanding_max));
    let (mut next, mut under_way) = (0, JoinSet::new());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turns = senders.iter().cycle();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let due = schedule.due_after(schedule.epoch.elapsed());
        while next < due
            && let Some(held) = take_places(&places, (due - next).min(BATCH_MAX))
            && let Some(sender) = turns.next()
        {
            let end = next + held.num_permits() as u64;
            let stamps = (next..end).map(|number| schedule.stamp(number)).collect::<Vec<_>>();
            let sent = send(Arc::clone(sender), schedule.bytes, stamps, on_answers.clone());
            under_way.spawn(async move {
                sent.await;
                drop(held);
            });
            next = end;
        }
        while under_way.try_join_next().transpose()?.is_some() {}
    }
    while under_way.join_next().await.transpose()?.is_some() {}
    Ok(())
}

/// All that are asked for or none: who is late sends whole batches, and not as many small ones as places come back.
fn take_places(places: &Arc<Semaphore>, asked: u64) -> Option<OwnedSemaphorePermit> {
    Arc::clone(places).try_acquire_many_owned(asked as u32).ok()
}

async fn send(sender: Arc<dyn Sender>, bytes: usize, stamps: Vec<Stamp>, on_answers: impl Fn(Vec<Answer>)) {
    let answers = sender.send(stamped(stamps.iter().copied(), bytes)).await;
    on_answers(stamps.into_iter().zip(answers).collect());
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::FutureExt;
    use futures::future::BoxFuture;
    use tokio::sync::watch;

    use super::*;

    #[test]
    fn messages_are_due_at_the_rate() {
        let epoch = Instant::now();
        let schedule = Schedule { epoch, rate_per_s: 2_000, bytes: 16, outstanding_max: 1 };
        assert_eq!(schedule.due_after(Duration::from_millis(1)), 2);
        assert_eq!(schedule.due_after(Duration::from_micros(499)), 0);
        assert_eq!(schedule.due_after(Duration::from_secs(3_600)), 7_200_000);
        assert_eq!(schedule.stamp(3), Stamp { number: 3, due: Duration::from_micros(1_500) });
    }

    /// Answers nothing before it may.
    struct Slow {
        held: AtomicUsize,
        may_answer: watch::Receiver<bool>,
    }

    impl Sender for Slow {
        fn send(&self, bodies: Vec<bytes::Bytes>) -> BoxFuture<'_, Vec<Result<Instant, Failure>>> {
            async move {
                self.held.fetch_add(bodies.len(), Ordering::Relaxed);
                let mut may_answer = self.may_answer.clone();
                assert!(may_answer.wait_for(|may| *may).await.is_ok());
                bodies.iter().map(|_| Ok(Instant::now())).collect()
            }
            .boxed()
        }
    }

    const OUTSTANDING_MAX: usize = 700;

    #[tokio::test]
    async fn what_waits_for_an_answer_is_bounded_and_nothing_is_left_out() {
        let (allow, may_answer) = watch::channel(false);
        let sender = Arc::new(Slow { held: AtomicUsize::new(0), may_answer });
        let schedule = Schedule {
            epoch: Instant::now(),
            rate_per_s: 1_000_000,
            bytes: 16,
            outstanding_max: OUTSTANDING_MAX,
        };
        let (stop, answered) =
            (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::Mutex::new(Vec::new())));
        let numbers = Arc::clone(&answered);
        let take = move |answers: Vec<Answer>| {
            numbers.lock().unwrap().extend(answers.into_iter().map(|(stamp, _)| stamp.number));
        };
        let senders = vec![Arc::clone(&sender) as Arc<dyn Sender>];
        let pacing = tokio::spawn(pace(schedule, senders, Arc::clone(&stop), take));
        tokio::time::sleep(TICK * 50).await;
        assert!(sender.held.load(Ordering::Relaxed) <= OUTSTANDING_MAX);
        allow.send(true).unwrap();
        while sender.held.load(Ordering::Relaxed) < 5_000 {
            tokio::time::sleep(TICK).await;
        }
        stop.store(true, Ordering::Relaxed);
        pacing.await.unwrap().unwrap();
        let mut numbers = answered.lock().unwrap().clone();
        numbers.sort_unstable();
        assert!(numbers.len() >= 5_000 && numbers.iter().copied().eq(0..numbers.len() as u64));
    }
}
