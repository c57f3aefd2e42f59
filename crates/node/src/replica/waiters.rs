//! Consumers that wait for something to become deliverable. They live in the leader's memory alone: a new leader knows none, and
//! the nodes that ask come again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use leasehold_partition::QueueId;
use tokio::time::Instant;

use super::request::{Granted, Receive, ReplySender};
use crate::failure::Failure;

/// Parked receives and readiness questions, by queue and in order of arrival.
#[derive(Default)]
pub struct Waiters {
    receives: BTreeMap<QueueId, VecDeque<Receive>>,
    ready: BTreeMap<QueueId, Vec<ReplySender<()>>>,
    /// When the waits end, with the queue to look at; entries of waiters that have gone are harmless.
    ends: BinaryHeap<Reverse<(Instant, QueueId)>>,
}

impl Waiters {
    pub fn park(&mut self, receive: Receive) {
        if let Some(end) = receive.wait_until {
            self.ends.push(Reverse((end, receive.queue)));
        }
        self.receives.entry(receive.queue).or_default().push_back(receive);
    }

    pub fn park_ready(&mut self, queue: QueueId, reply: ReplySender<()>) {
        let waiting = self.ready.entry(queue).or_default();
        waiting.retain(|reply| !reply.is_closed());
        waiting.push(reply);
    }

    /// The longest waiting receive whose consumer is still there.
    pub fn pop(&mut self, queue: QueueId) -> Option<Receive> {
        let waiting = self.receives.get_mut(&queue)?;
        let found = loop {
            let Some(receive) = waiting.pop_front() else { break None };
            if !receive.reply.is_closed() {
                break Some(receive);
            }
        };
        if waiting.is_empty() {
            self.receives.remove(&queue);
        }
        found
    }

    /// Answers everybody who asked when the queue is ready.
    pub fn tell_ready(&mut self, queue: QueueId) {
        for reply in self.ready.remove(&queue).unwrap_or_default() {
            let _ = reply.send(Ok(()));
        }
    }

    /// When the next wait ends.
    pub fn next_end(&self) -> Option<Instant> {
        self.ends.peek().map(|Reverse((end, _))| *end)
    }

    /// Answers the receives whose wait is over with nothing.
    pub fn end_waits(&mut self, now: Instant) {
        while let Some(Reverse((end, queue))) = self.ends.peek().copied() {
            if end > now {
                return;
            }
            self.ends.pop();
            let Some(waiting) = self.receives.get_mut(&queue) else { continue };
            let kept = std::mem::take(waiting).into_iter().filter_map(|receive| {
                let over = receive.wait_until.is_some_and(|end| end <= now);
                if over || receive.reply.is_closed() {
                    let _ = receive.reply.send(Ok(Granted::default()));
                    return None;
                }
                Some(receive)
            });
            *waiting = kept.collect();
            if waiting.is_empty() {
                self.receives.remove(&queue);
            }
        }
    }

    pub fn fail_all(&mut self, failure: &Failure) {
        for receive in std::mem::take(&mut self.receives).into_values().flatten() {
            let _ = receive.reply.send(Err(failure.clone()));
        }
        for reply in std::mem::take(&mut self.ready).into_values().flatten() {
            let _ = reply.send(Err(failure.clone()));
        }
        self.ends.clear();
    }
}
