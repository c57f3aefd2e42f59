//! W3: messages are sent, received and acknowledged: as fast as the system goes, with a bound on what is in it, and at a fixed
//! rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{join_all, ready};
use tokio::sync::Semaphore;

use super::Plan;
use super::load::{RECEIVE_BATCH, RECEIVE_WAIT, RECEIVERS, receivers, senders};
use super::paced::{self, Paced, Work};
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

pub async fn run(system: &dyn System, plan: &Plan, log: &mut Log) -> Result<(), Failure> {
    // The least first: what a case leaves to do, files to clear or snapshots to write, is not the next one's.
    let paced =
        Paced { queue: "paced", rate_per_s: 10_000, bytes: 128, time: plan.time, work: Arc::new(NoWork) };
    log.record("W3 128 B at 10,000/s", paced::run(system, &paced).await?);
    for bytes in [128, 1024] {
        log.record(format!("W3 {bytes} B, saturated"), saturated(system, plan.time, bytes).await?);
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

/// Creates a queue, and deletes it when the time is over.
pub async fn saturated(system: &dyn System, time: Duration, bytes: usize) -> Result<Vec<Reading>, Failure> {
    let queue = format!("cycle-{bytes}");
    system.create_queue(Queue::wide(&queue)).await?;
    let senders = senders(system, &queue, SENDERS, Through::AnyNode).await?;
    let receivers = receivers(system, &queue, RECEIVERS, Through::AnyNode).await?;
    let epoch = Instant::now();
    let places = Semaphore::new(IN_SYSTEM_MAX);
    let shared = Arc::new(Shared { epoch, end: epoch + time, places, next: AtomicU64::new(0) });
    let window = Window::open(system.pids());
    let sending = senders.into_iter().map(|sender| tokio::spawn(send(sender, bytes, shared.clone())));
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
    system.delete_queue(&queue).await?;
    Ok(readings)
}

async fn send(sender: Arc<dyn Sender>, bytes: usize, shared: Arc<Shared>) -> Result<(), Failure> {
    while Instant::now() < shared.end {
        let Ok(places) = shared.places.acquire_many(SEND_BATCH as u32).await else { return Ok(()) };
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
