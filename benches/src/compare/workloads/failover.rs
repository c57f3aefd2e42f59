//! W4: the process that leads the queue is killed while 2,000 messages a second go through it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::Plan;
use super::arrivals::{Arrivals, Gap};
use super::load::{RECEIVE_BATCH, receivers, senders, warm};
use super::numbers::Numbers;
use super::pace::{Answer, Schedule, pace};
use crate::compare::metric::{Metric, Reading};
use crate::compare::results::Log;
use crate::compare::system::{Failure, Queue, Receiver, System, Through};

const RATE_PER_S: u64 = 2_000;
const BODY_BYTES: usize = 128;
const SENDERS: usize = 4;
const RECEIVERS: usize = 4;
/// What a killed node's answers took with them comes again after this.
const LEASE: Duration = Duration::from_secs(5);
const BEFORE: Duration = Duration::from_secs(2);
/// A first answer after the kill may have left before it: service is back when sends and receives went on for this long.
const STEADY: Duration = Duration::from_secs(2);
/// Longer than this without an answer is not steady.
const PAUSE_MAX: Duration = Duration::from_millis(250);
const AWAY_MAX: Duration = Duration::from_secs(40);
/// More than become due while the system is away: the next confirmation is not held up by what waits for one.
const OUTSTANDING_MAX: usize = 2 * RATE_PER_S as usize * AWAY_MAX.as_secs() as usize;
/// Long enough that a receiver does not spin, short beside the gaps of those that need it.
const RECEIVE_WAIT: Duration = Duration::from_millis(100);
const RETRY_PAUSE: Duration = Duration::from_millis(2);

/// What happened to messages so far.
struct Watch {
    /// With a confirmation.
    sent: Numbers,
    sends: Gap,
    arrivals: Arrivals,
}

type Shared = Arc<Mutex<Watch>>;

pub async fn run(system: &mut dyn System, plan: &Plan, log: &mut Log) -> Result<(), Failure> {
    for kill in 0..plan.kills {
        if kill > 0 {
            system.settle().await?;
        }
        let queue = format!("failover-{kill}");
        system.create_queue(Queue::narrow(&queue, LEASE)).await?;
        let leader = system.leader(&queue).await?;
        let readings = one_kill(system, &queue, leader).await;
        system.restart(leader).await?;
        log.record("W4 kill", readings?);
        system.delete_queue(&queue).await?;
    }
    Ok(())
}

async fn one_kill(system: &mut dyn System, queue: &str, leader: usize) -> Result<Vec<Reading>, Failure> {
    let senders = senders(system, queue, SENDERS, Through::AllBut(leader)).await?;
    let receivers = receivers(system, queue, RECEIVERS, Through::AllBut(leader)).await?;
    warm(&senders, &Bytes::from_static(b"warm")).await?;
    let epoch = Instant::now();
    let watch = Arc::new(Mutex::new(Watch {
        sent: Numbers::default(),
        sends: Gap::from(epoch),
        arrivals: Arrivals::new(epoch),
    }));
    let (stop_sending, stop_receiving) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let receiving = receivers
        .into_iter()
        .map(|receiver| tokio::spawn(receive(receiver, watch.clone(), stop_receiving.clone())))
        .collect::<Vec<_>>();
    let schedule =
        Schedule { epoch, rate_per_s: RATE_PER_S, bytes: BODY_BYTES, outstanding_max: OUTSTANDING_MAX };
    let take = {
        let watch = Arc::clone(&watch);
        move |answers| take(&watch, answers)
    };
    let sending = tokio::spawn(pace(schedule, senders, stop_sending.clone(), take));
    sleep(BEFORE).await;
    forget_gaps(&watch);
    system.kill(leader).await?;
    let is_back = served_again(&watch).await;
    let (send_gap, receive_gap) = {
        let watch = locked(&watch);
        (watch.sends.longest, watch.arrivals.gap.longest)
    };
    stop_sending.store(true, Ordering::Relaxed);
    sending.await??;
    until_all_came(&watch).await;
    end(receiving, &stop_receiving).await?;
    if !is_back {
        return Err(Failure::new(format!("it was not steady again {} s after the kill", AWAY_MAX.as_secs())));
    }
    let watch = locked(&watch);
    let ms = |gap: Duration| gap.as_secs_f64() * 1e3;
    Ok(vec![
        (Metric::SendGapMs, ms(send_gap)),
        (Metric::ReceiveGapMs, ms(receive_gap)),
        (Metric::Duplicates, watch.arrivals.duplicates as f64),
        (Metric::Lost, watch.arrivals.missing(&watch.sent).count() as f64),
    ])
}

fn locked(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those without an answer may have happened or not, and are neither lost nor invented.
fn take(watch: &Mutex<Watch>, answers: Vec<Answer>) {
    let mut watch = locked(watch);
    for (stamp, answer) in answers {
        if let Ok(confirmed) = answer {
            watch.sends.note(confirmed);
            watch.sent.insert(stamp.number);
        }
    }
}

/// Gaps are counted from the last answer before the kill.
fn forget_gaps(watch: &Mutex<Watch>) {
    let mut watch = locked(watch);
    watch.sends = Gap::from(watch.sends.last);
    watch.arrivals.gap = Gap::from(watch.arrivals.gap.last);
}

async fn served_again(watch: &Mutex<Watch>) -> bool {
    let killed = Instant::now();
    let mut steady_since = None;
    while killed.elapsed() < AWAY_MAX {
        sleep(Duration::from_millis(20)).await;
        let last = {
            let watch = locked(watch);
            watch.sends.last.min(watch.arrivals.gap.last)
        };
        if last.elapsed() > PAUSE_MAX {
            steady_since = None;
        } else if steady_since.get_or_insert_with(Instant::now).elapsed() > STEADY {
            return true;
        }
    }
    false
}

/// Waits for what was confirmed, longer than a lease after the last that came.
async fn until_all_came(watch: &Mutex<Watch>) {
    let began = Instant::now();
    loop {
        {
            let watch = locked(watch);
            let idle = watch.arrivals.gap.last.max(began).elapsed();
            if watch.arrivals.missing(&watch.sent).next().is_none() || idle > LEASE * 3 {
                return;
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn end(receiving: Vec<JoinHandle<()>>, stop: &AtomicBool) -> Result<(), Failure> {
    stop.store(true, Ordering::Relaxed);
    for task in join_all(receiving).await {
        task?;
    }
    Ok(())
}

async fn receive(mut receiver: Box<dyn Receiver>, watch: Shared, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let received = match receiver.receive(RECEIVE_BATCH, RECEIVE_WAIT).await {
            Ok(bodies) => {
                locked(&watch).arrivals.take(&bodies, Instant::now());
                receiver.ack().await.map(drop)
            }
            Err(failure) => Err(failure),
        };
        // Failures are what is measured here.
        if received.is_err() {
            sleep(RETRY_PAUSE).await;
        }
    }
}
