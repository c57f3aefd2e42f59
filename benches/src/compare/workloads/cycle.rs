//! W3: messages are sent, received and acknowledged: as fast as the system goes, with a bound on what is in it, and at a fixed
//! rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{join_all, ready, try_join_all};
use tokio::sync::Semaphore;

use super::Plan;
use super::load::{RECEIVE_BATCH, RECEIVE_WAIT, RECEIVERS};
use super::paced::{self, BEHIND_MAX, Paced, Work};
use crate::compare::bodies::{Stamp, stamped};
use crate::compare::latency::Latencies;
use crate::compare::metric::Reading;
use crate::compare::results::Log;
use crate::compare::system::{Doing, Failure, Queue, Receiver, Sender, System, Through};
use crate::compare::window::Window;

const SENDERS: usize = 8;
const SEND_BATCH: usize = 256;
/// Messages that are sent and not yet acknowledged: a sender waits beyond it, so that as many are sent as received.
const IN_SYSTEM_MAX: usize = 16 * 1024;

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Saturated {
    /// That share the load evenly.
    pub queues: usize,
    pub bytes: usize,
    pub time: Duration,
}

pub async fn run(system: &dyn System, plan: &Plan, log: &mut Log) -> Result<(), Failure> {
    // The least first: what a case leaves to do, files to clear or snapshots to write, is not the next one's.
    let paced = Paced {
        queue: "paced",
        rate_per_s: 10_000,
        bytes: 128,
        time: plan.time,
        behind_max: BEHIND_MAX,
        work: Arc::new(NoWork),
    };
    let outcome = paced::run(system, &paced).await?;
    outcome.tell("W3 128 B at 10,000/s", log);
    for bytes in [128, 1024] {
        let readings = saturated(system, &Saturated { queues: 1, bytes, time: plan.time }).await?;
        log.record(format!("W3 {bytes} B, saturated"), readings);
    }
    Ok(())
}

struct NoWork;

impl Work for NoWork {
    fn done<'a>(&'a self, _: &'a [Bytes]) -> Doing<'a, ()> {
        ready(Ok(())).boxed()
    }
}

/// What senders and receivers share.
struct Shared {
    epoch: Instant,
    end: Instant,
    /// Places for messages in the system.
    places: Semaphore,
    next: AtomicU64,
}

/// Creates queues, and deletes them when the time is over.
pub async fn saturated(system: &dyn System, asked: &Saturated) -> Result<Vec<Reading>, Failure> {
    let queues = (0..asked.queues).map(|at| format!("cycle-{}-{at}", asked.bytes)).collect::<Vec<_>>();
    // One by one: many replicated streams at once time out on a busy machine.
    for queue in &queues {
        system.create_queue(Queue::wide(queue)).await?;
    }
    let senders = shared_senders(system, &queues).await?;
    let receivers = shared_receivers(system, &queues).await?;
    let epoch = Instant::now();
    let places = Semaphore::new(IN_SYSTEM_MAX);
    let shared = Arc::new(Shared { epoch, end: epoch + asked.time, places, next: AtomicU64::new(0) });
    let window = Window::open(system.pids());
    let sending = senders.into_iter().map(|senders| tokio::spawn(send(senders, asked.bytes, shared.clone())));
    let receiving = receivers.into_iter().map(|receiver| tokio::spawn(receive(receiver, shared.clone())));
    let (sending, receiving) = (sending.collect::<Vec<_>>(), receiving.collect::<Vec<_>>());
    let received = join_all(receiving).await;
    // Senders that wait for a place end here, also when receivers failed.
    shared.places.close();
    let (mut acked, mut latencies) = (0, Latencies::default());
    for task in received {
        let (count, of_one) = task??;
        acked += count;
        latencies.merge(&of_one);
    }
    let mut readings = window.close(acked);
    readings.extend(latencies.readings());
    for task in join_all(sending).await {
        task??;
    }
    for queue in &queues {
        system.delete_queue(queue).await?;
    }
    Ok(readings)
}

/// For each sender its connections: as many to each queue, and at least one.
async fn shared_senders(
    system: &dyn System,
    queues: &[String],
) -> Result<Vec<Vec<Arc<dyn Sender>>>, Failure> {
    let connections = queues.iter().cycle().take(SENDERS.max(queues.len()));
    let connected = try_join_all(connections.map(|queue| system.sender(queue, Through::AnyNode))).await?;
    let mut senders = vec![Vec::new(); SENDERS];
    for (at, connection) in connected.into_iter().enumerate() {
        senders[at % SENDERS].push(connection);
    }
    Ok(senders)
}

/// As many to each queue, and at least one.
async fn shared_receivers(system: &dyn System, queues: &[String]) -> Result<Vec<Box<dyn Receiver>>, Failure> {
    let connections = queues.iter().cycle().take(RECEIVERS.max(queues.len()));
    try_join_all(connections.map(|queue| system.receiver(queue, Through::AnyNode))).await
}

/// Through its connections in turn.
async fn send(senders: Vec<Arc<dyn Sender>>, bytes: usize, shared: Arc<Shared>) -> Result<(), Failure> {
    for sender in senders.iter().cycle() {
        if Instant::now() >= shared.end {
            break;
        }
        let Ok(places) = shared.places.acquire_many(SEND_BATCH as u32).await else { break };
        places.forget();
        let first = shared.next.fetch_add(SEND_BATCH as u64, Ordering::Relaxed);
        let due = shared.epoch.elapsed();
        let bodies = stamped((0..SEND_BATCH).map(|at| Stamp { number: first + at as u64, due }), bytes);
        sender.send(bodies).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    }
    Ok(())
}

async fn receive(mut receiver: Box<dyn Receiver>, shared: Arc<Shared>) -> Result<(u64, Latencies), Failure> {
    let (mut acked, mut latencies) = (0, Latencies::default());
    while Instant::now() < shared.end {
        let bodies = receiver.receive(RECEIVE_BATCH, RECEIVE_WAIT).await?;
        let now = Instant::now();
        for stamp in bodies.iter().filter_map(|body| Stamp::of(body)) {
            latencies.add(stamp.latency(shared.epoch, now));
        }
        let done = receiver.ack().await?;
        acked += done as u64;
        shared.places.add_permits(done);
    }
    Ok((acked, latencies))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::fake::{Fake, Receiving};

    #[tokio::test(flavor = "multi_thread")]
    async fn queues_share_connections() {
        for (queues, senders_each, receivers_each) in [(1, 8, 8), (4, 2, 2), (16, 1, 1), (64, 1, 1)] {
            let dir = tempfile::tempdir().unwrap();
            let system = Fake::new(dir.path(), Receiving::Works);
            let asked = Saturated { queues, bytes: 32, time: Duration::from_millis(50) };
            saturated(&system, &asked).await.unwrap();
            let used = system.used();
            assert_eq!(used.len(), queues);
            for (queue, used) in used {
                assert_eq!((used.senders, used.receivers), (senders_each, receivers_each), "{queue}");
            }
        }
    }

    #[tokio::test]
    async fn a_sender_takes_its_queues_in_turn() {
        let (dir, queues) = (tempfile::tempdir().unwrap(), ["a", "b", "c"].map(str::to_owned));
        let system = Fake::new(dir.path(), Receiving::Works);
        for queue in &queues {
            system.create_queue(Queue::wide(queue)).await.unwrap();
        }
        let connections = queues.iter().map(|queue| system.sender(queue, Through::AnyNode));
        let senders = try_join_all(connections).await.unwrap();
        let epoch = Instant::now();
        let shared = Arc::new(Shared {
            epoch,
            end: epoch + Duration::from_secs(3_600),
            places: Semaphore::new(6 * SEND_BATCH),
            next: AtomicU64::new(0),
        });
        let sending = tokio::spawn(send(senders, 32, Arc::clone(&shared)));
        while shared.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        shared.places.close();
        sending.await.unwrap().unwrap();
        let sent = system.used().into_iter().map(|(_, used)| used.sent).collect::<Vec<_>>();
        assert_eq!(sent, [2 * SEND_BATCH; 3]);
    }
}
