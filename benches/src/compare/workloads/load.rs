//! Senders and receivers that go as fast as they can, each with its own connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{join_all, try_join_all};

use crate::compare::latency::Latencies;
use crate::compare::system::{Failure, Receiver, Sender, System, Through};

/// How long a receive waits for a first message.
pub const RECEIVE_WAIT: Duration = Duration::from_millis(200);
/// Connections that receive.
pub const RECEIVERS: usize = 8;
/// Messages of one receive and ack.
pub const RECEIVE_BATCH: usize = 256;

/// How messages without an answer are shared out: so many senders, each with a batch of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outstanding {
    pub senders: usize,
    pub batch: usize,
}

impl Outstanding {
    pub const ONE: Self = Self { senders: 1, batch: 1 };
    pub const SOME: Self = Self { senders: 4, batch: 16 };
    pub const MANY: Self = Self { senders: 8, batch: 512 };

    pub fn messages(self) -> usize {
        self.senders * self.batch
    }
}

/// What was confirmed, and how long after it was handed over.
#[derive(Debug, Default)]
pub struct Sent {
    pub messages: u64,
    pub latencies: Latencies,
}

pub async fn senders(
    system: &dyn System,
    queue: &str,
    count: usize,
    through: Through,
) -> Result<Vec<Arc<dyn Sender>>, Failure> {
    try_join_all((0..count).map(|_| system.sender(queue, through))).await
}

pub async fn receivers(
    system: &dyn System,
    queue: &str,
    count: usize,
    through: Through,
) -> Result<Vec<Box<dyn Receiver>>, Failure> {
    try_join_all((0..count).map(|_| system.receiver(queue, through))).await
}

/// When senders have sent enough.
#[derive(Debug, Clone, Copy)]
pub enum Enough {
    Time(Duration),
    /// Batches that were begun are finished.
    Messages(u64),
}

/// Sends from all senders: each hands over a batch when the one before is confirmed.
pub async fn flood(
    senders: &[Arc<dyn Sender>],
    batch: usize,
    body: &Bytes,
    enough: Enough,
) -> Result<Sent, Failure> {
    let (began, begun) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let tasks = senders.iter().map(|sender| {
        let (sender, body, begun) = (Arc::clone(sender), body.clone(), Arc::clone(&begun));
        let goes_on = move || match enough {
            Enough::Time(time) => began.elapsed() < time,
            Enough::Messages(messages) => begun.fetch_add(batch as u64, Ordering::Relaxed) < messages,
        };
        tokio::spawn(async move {
            let mut sent = Sent::default();
            while goes_on() {
                let began = Instant::now();
                for confirmed in sender.send(vec![body.clone(); batch]).await {
                    sent.latencies.add(confirmed?.saturating_duration_since(began));
                    sent.messages += 1;
                }
            }
            Ok::<_, Failure>(sent)
        })
    });
    let mut all = Sent::default();
    for task in join_all(tasks).await {
        let sent = task??;
        all.messages += sent.messages;
        all.latencies.merge(&sent.latencies);
    }
    Ok(all)
}

/// Receives and acknowledges for some time, or until nothing is left: how many were.
pub async fn drain(receivers: Vec<Box<dyn Receiver>>, time: Duration) -> Result<u64, Failure> {
    let end = Instant::now() + time;
    let tasks = receivers.into_iter().map(|mut receiver| {
        tokio::spawn(async move {
            let mut acked = 0;
            while Instant::now() < end && !receiver.receive(RECEIVE_BATCH, RECEIVE_WAIT).await?.is_empty() {
                acked += receiver.ack().await? as u64;
            }
            Ok::<_, Failure>(acked)
        })
    });
    let mut all = 0;
    for task in join_all(tasks).await {
        all += task??;
    }
    Ok(all)
}

/// A batch from each sender, so that connections and routes are there when the clock begins.
pub async fn warm(senders: &[Arc<dyn Sender>], body: &Bytes) -> Result<(), Failure> {
    for confirmed in join_all(senders.iter().map(|sender| sender.send(vec![body.clone()]))).await {
        confirmed.into_iter().collect::<Result<Vec<_>, _>>()?;
    }
    Ok(())
}
