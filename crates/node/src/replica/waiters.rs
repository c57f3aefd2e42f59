//! Consumers that wait for something to become deliverable. They live in the leader's memory alone: a new leader knows none, and
//! the nodes that ask come again.
//!
//! Who asks when a queue is ready is told as if the messages were meant for it: as many are told as there are messages for. If they do
//! not come, because they found something elsewhere, others are told a moment later.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use leasehold_partition::QueueId;
use tokio::time::Instant;

use super::request::{Granted, Receive, ReplySender};
use crate::failure::Failure;
use crate::limits::TOLD_PATIENCE_MS;
use crate::sweep::Sweep;

const TOLD_PATIENCE: Duration = Duration::from_millis(TOLD_PATIENCE_MS);

/// Parked receives and readiness questions, by queue and in order of arrival.
#[derive(Default)]
pub struct Waiters {
    receives: BTreeMap<QueueId, VecDeque<Receive>>,
    asking: BTreeMap<QueueId, AllAsking>,
    told: BTreeMap<QueueId, VecDeque<Told>>,
    /// When the waits end, with the queue to look at; entries of waiters that have gone are harmless.
    ends: BinaryHeap<Reverse<(Instant, QueueId)>>,
    /// When it is to be looked whether those who were told have come, once a queue.
    looks: BTreeSet<(Instant, QueueId)>,
    looked_at: BTreeSet<QueueId>,
}

/// Those who ask when a queue is ready, some of whom may have gone.
#[derive(Default)]
struct AllAsking {
    waiting: VecDeque<Asking>,
    sweep: Sweep,
}

/// Who asks when a queue is ready.
struct Asking {
    messages_max: u32,
    reply: ReplySender<()>,
}

/// Somebody was told of so many messages and has not come for them yet.
struct Told {
    until: Instant,
    messages: u64,
}

impl Waiters {
    pub fn park(&mut self, mut receive: Receive) {
        if let Some(end) = receive.wait_until
            && !receive.is_listed
        {
            self.ends.push(Reverse((end, receive.queue)));
            receive.is_listed = true;
        }
        self.receives.entry(receive.queue).or_default().push_back(receive);
    }

    pub fn ask(&mut self, queue: QueueId, messages_max: u32, reply: ReplySender<()>) {
        let AllAsking { waiting, sweep } = self.asking.entry(queue).or_default();
        if sweep.is_due(waiting.len()) {
            waiting.retain(|asking| !asking.reply.is_closed());
            sweep.left(waiting.len());
        }
        waiting.push_back(Asking { messages_max, reply });
    }

    /// Whether anybody waits for something in the queue.
    pub fn has_any(&self, queue: QueueId) -> bool {
        self.receives.contains_key(&queue) || self.asking.contains_key(&queue)
    }

    /// Whether a receive waits for something in the queue. Its consumer may have gone.
    pub fn has_parked(&self, queue: QueueId) -> bool {
        self.receives.contains_key(&queue)
    }

    /// The longest waiting receive whose consumer is still there.
    pub fn pop(&mut self, queue: QueueId) -> Option<Receive> {
        let waiting = self.receives.get_mut(&queue)?;
        let found = pop_open(waiting, |receive| receive.reply.is_closed());
        if waiting.is_empty() {
            self.receives.remove(&queue);
        }
        found
    }

    /// Tells as many of those who ask as `ready` messages are for, beside those who were told and have not come yet.
    pub fn tell(&mut self, queue: QueueId, ready: u64, now: Instant) {
        let told = self.told.entry(queue).or_default();
        told.retain(|told| told.until > now);
        let mut left = ready.saturating_sub(told.iter().map(|told| told.messages).sum());
        while left > 0
            && let Some(asking) = pop_asking(&mut self.asking, queue)
        {
            if asking.reply.send(Ok(())).is_ok() {
                let messages = u64::from(asking.messages_max).min(left);
                told.push_back(Told { until: now + TOLD_PATIENCE, messages });
                left -= messages;
            }
        }
        match told.front() {
            None => drop(self.told.remove(&queue)),
            Some(first) if self.asking.contains_key(&queue) && self.looked_at.insert(queue) => {
                self.looks.insert((first.until, queue));
            }
            Some(_) => {}
        }
    }

    /// A receive has come: it is one of those who were told.
    pub fn came(&mut self, queue: QueueId) {
        if let Some(told) = self.told.get_mut(&queue) {
            told.pop_front();
            if told.is_empty() {
                self.told.remove(&queue);
            }
        }
    }

    /// When something is to be done next.
    pub fn next_due(&self) -> Option<Instant> {
        let end = self.ends.peek().map(|Reverse((end, _))| *end);
        let look = self.looks.first().map(|(look, _)| *look);
        end.into_iter().chain(look).min()
    }

    /// The queues of which those who were told may not have come.
    pub fn due_looks(&mut self, now: Instant) -> Vec<QueueId> {
        let mut due = Vec::new();
        while let Some((_, queue)) = self.looks.first().copied().filter(|(look, _)| *look <= now) {
            self.looks.pop_first();
            self.looked_at.remove(&queue);
            due.push(queue);
        }
        due
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
        let waiting = std::mem::take(self);
        for receive in waiting.receives.into_values().flatten() {
            let _ = receive.reply.send(Err(failure.clone()));
        }
        for asking in waiting.asking.into_values().flat_map(|asking| asking.waiting) {
            let _ = asking.reply.send(Err(failure.clone()));
        }
    }
}

fn pop_asking(asking: &mut BTreeMap<QueueId, AllAsking>, queue: QueueId) -> Option<Asking> {
    let waiting = &mut asking.get_mut(&queue)?.waiting;
    let found = pop_open(waiting, |asking| asking.reply.is_closed());
    if waiting.is_empty() {
        asking.remove(&queue);
    }
    found
}

/// The first that is still there.
fn pop_open<T>(waiting: &mut VecDeque<T>, is_closed: impl Fn(&T) -> bool) -> Option<T> {
    loop {
        match waiting.pop_front() {
            Some(first) if is_closed(&first) => {}
            found => return found,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const QUEUE: QueueId = QueueId(7);

    fn asks(waiters: &mut Waiters, count: usize) -> Vec<oneshot::Receiver<Result<(), Failure>>> {
        let ask = |_| {
            let (reply, told) = oneshot::channel();
            waiters.ask(QUEUE, 10, reply);
            told
        };
        (0..count).map(ask).collect()
    }

    fn told(asking: &mut [oneshot::Receiver<Result<(), Failure>>]) -> usize {
        asking.iter_mut().map(|told| usize::from(matches!(told.try_recv(), Ok(Ok(()))))).sum()
    }

    #[test]
    fn as_many_are_told_as_there_are_messages_for() {
        let (mut waiters, now) = (Waiters::default(), Instant::now());
        let mut asking = asks(&mut waiters, 5);
        waiters.tell(QUEUE, 11, now);
        assert_eq!(told(&mut asking), 2);
        waiters.tell(QUEUE, 11, now);
        assert_eq!(told(&mut asking), 0, "they are on their way");
        waiters.came(QUEUE);
        waiters.tell(QUEUE, 11, now);
        assert_eq!(told(&mut asking), 1, "one has come, and there is as much again");
    }

    #[test]
    fn others_are_told_when_nobody_comes() {
        let (mut waiters, now) = (Waiters::default(), Instant::now());
        let mut asking = asks(&mut waiters, 2);
        waiters.tell(QUEUE, 1, now);
        assert_eq!(told(&mut asking), 1);
        assert_eq!(waiters.next_due(), Some(now + TOLD_PATIENCE));
        assert!(waiters.due_looks(now).is_empty());
        let later = now + TOLD_PATIENCE;
        assert_eq!(waiters.due_looks(later), [QUEUE]);
        waiters.tell(QUEUE, 1, later);
        assert_eq!(told(&mut asking), 1);
        assert_eq!(waiters.next_due(), None, "nobody is left to be told");
    }

    #[test]
    fn who_has_gone_is_not_counted_as_told() {
        let (mut waiters, now) = (Waiters::default(), Instant::now());
        let mut asking = asks(&mut waiters, 3);
        drop(asking.remove(0));
        waiters.tell(QUEUE, 1, now);
        assert_eq!(told(&mut asking), 1);
    }
}
