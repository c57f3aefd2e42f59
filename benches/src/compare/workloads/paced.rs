//! Full cycles at a fixed rate. Latency runs from when a message was due to when its receiver has dealt with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::{sleep, sleep_until};

use super::arrivals::Arrivals;
use super::load::{RECEIVE_BATCH, RECEIVE_WAIT, RECEIVERS, receivers, senders, warm};
use super::numbers::Numbers;
use super::pace::{Answer, Schedule, pace};
use crate::compare::metric::{Metric, Reading};
use crate::compare::system::{Doing, Failure, Queue, Receiver, System, Through};
use crate::compare::window::Window;

const SENDERS: usize = 4;
/// How long after the last send what is missing is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Clone)]
pub struct Paced {
    pub queue: &'static str,
    pub rate_per_s: u64,
    pub bytes: usize,
    pub time: Duration,
    pub work: Arc<dyn Work>,
}

/// What receivers do with what they receive, before they acknowledge it.
pub trait Work: Send + Sync {
    fn done<'a>(&'a self, bodies: &'a [Bytes]) -> Doing<'a, ()>;
}

/// What is known of the messages so far.
struct Watch {
    /// With a confirmation.
    sent: Numbers,
    failed: Option<Failure>,
    arrivals: Arrivals,
}

type Shared = Arc<Mutex<Watch>>;

/// Creates the queue, and deletes it when all is done.
pub async fn run(system: &dyn System, paced: &Paced) -> Result<Vec<Reading>, Failure> {
    system.create_queue(Queue::wide(paced.queue)).await?;
    let senders = senders(system, paced.queue, SENDERS, Through::AnyNode).await?;
    let receivers = receivers(system, paced.queue, RECEIVERS, Through::AnyNode).await?;
    warm(&senders, &Bytes::from_static(b"warm")).await?;
    let epoch = Instant::now();
    let watch = Watch { sent: Numbers::default(), failed: None, arrivals: Arrivals::new(epoch) };
    let watch = Arc::new(Mutex::new(watch));
    let (stop_sending, stop_receiving) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let receiving = receivers.into_iter().map(|receiver| {
        tokio::spawn(receive(receiver, paced.work.clone(), watch.clone(), stop_receiving.clone()))
    });
    let receiving = receiving.collect::<Vec<_>>();
    let window = Window::open(system.pids());
    let schedule = Schedule { epoch, rate_per_s: paced.rate_per_s, bytes: paced.bytes };
    let take = {
        let watch = Arc::clone(&watch);
        move |answers| take(&mut locked(&watch), answers)
    };
    let sending = tokio::spawn(pace(schedule, senders, stop_sending.clone(), take));
    sleep_until((epoch + paced.time).into()).await;
    stop_sending.store(true, Ordering::Relaxed);
    let on_time = locked(&watch).arrivals.count();
    let mut readings = window.close(on_time);
    sending.await??;
    until_all_came(&watch).await;
    stop_receiving.store(true, Ordering::Relaxed);
    for task in join_all(receiving).await {
        task??;
    }
    readings.extend(outcome(&mut locked(&watch), &schedule, on_time)?);
    system.delete_queue(paced.queue).await?;
    Ok(readings)
}

fn locked(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(watch: &mut Watch, answers: Vec<Answer>) {
    for (stamp, answer) in answers {
        match answer {
            Ok(_) => {
                watch.sent.insert(stamp.number);
            }
            Err(failure) => watch.failed = Some(failure),
        }
    }
}

async fn until_all_came(watch: &Mutex<Watch>) {
    let given_up = Instant::now() + PATIENCE;
    let is_waiting = || {
        let watch = locked(watch);
        watch.arrivals.count() < watch.sent.count()
    };
    while is_waiting() && Instant::now() < given_up {
        sleep(Duration::from_millis(10)).await;
    }
}

/// What never came took at least until now.
fn outcome(watch: &mut Watch, schedule: &Schedule, on_time: u64) -> Result<Vec<Reading>, Failure> {
    if let Some(failure) = watch.failed.take() {
        return Err(failure);
    }
    let now = Instant::now();
    let missing = watch.arrivals.missing(&watch.sent).collect::<Vec<_>>();
    for number in missing {
        watch.arrivals.latencies.add(schedule.stamp(number).latency(schedule.epoch, now));
    }
    let percent = on_time as f64 / watch.sent.count().max(1) as f64 * 100.0;
    let mut readings = vec![(Metric::OnTimePercent, percent)];
    readings.extend(watch.arrivals.latencies.readings());
    Ok(readings)
}

async fn receive(
    mut receiver: Box<dyn Receiver>,
    work: Arc<dyn Work>,
    watch: Shared,
    stop: Arc<AtomicBool>,
) -> Result<(), Failure> {
    while !stop.load(Ordering::Relaxed) {
        let bodies = receiver.receive(RECEIVE_BATCH, RECEIVE_WAIT).await?;
        work.done(&bodies).await?;
        locked(&watch).arrivals.take(&bodies, Instant::now());
        receiver.ack().await?;
    }
    Ok(())
}
