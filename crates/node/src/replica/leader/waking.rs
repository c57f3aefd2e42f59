//! Who waits for messages, and what is coming for them.
//!
//! A send that is not applied yet is as good as ready for those who wait: whatever order the entries are decided in is the order they are
//! applied in, so a grant in the same entry, or in one behind it, finds the messages. A receive that waits joins the entry of the
//! send; who only asks when there is something is told when the send is taken, and comes while it is on its way. What is counted here
//! is a forecast: the state machine decides, and a receive that finds nothing waits again.

use std::collections::BTreeMap;

use leasehold_partition::{Kind, QueueId, Reply, RequestId};
use tokio::time::Instant;

use super::{Leadership, Pending};
use crate::replica::failures::receive_refused;
use crate::replica::request::{Granted, Receive};

/// What an entry on its way brings to its queues: the messages that it sends, less those that its receives are likely to take.
#[derive(Default)]
pub(super) struct Coming(BTreeMap<QueueId, i64>);

impl Coming {
    fn add(&mut self, queue: QueueId, messages: i64) {
        *self.0.entry(queue).or_default() += messages;
    }

    fn to(&self, queue: QueueId) -> i64 {
        self.0.get(&queue).copied().unwrap_or_default()
    }
}

/// What a request is known by, whichever of its tries it is.
pub(super) fn name_of(id: RequestId) -> (u64, u64) {
    (id.session, id.sequence)
}

impl Leadership {
    pub(super) fn take_receive(&mut self, receive: Receive) {
        if receive.reply.is_closed() {
            return;
        }
        let queue = receive.queue;
        self.waiters.came(queue);
        // What a send of the same entry brings is theirs who wait already.
        let comes_after_others = receive.may_wait() && self.waiters.has_parked(queue);
        let finds_something = self.available(queue) > 0
            // Others may take it all, or leave something: who does not wait must not miss that.
            || (!receive.may_wait() && self.shared.machine.read().has_ready(queue));
        if (finds_something && !comes_after_others) || self.may_be_repeated(&receive) {
            self.add_receive(receive);
        } else if !receive.may_wait() && self.is_over_limit(queue) {
            // Who does not wait shall not take it for an empty queue.
            let _ = receive.reply.send(Err(receive_refused(&Reply::OverLimit)));
        } else {
            self.park(receive);
            if finds_something {
                // It may be enough for all of them, of whom some may have gone.
                self.to_wake.insert(queue);
            }
        }
    }

    /// Whether an earlier try may have leased something, which the state machine then knows: it gives the same again, although nothing
    /// is ready.
    fn may_be_repeated(&self, receive: &Receive) -> bool {
        let has_shard = || self.shared.machine.read().shard(receive.queue).is_some();
        receive.options.request.is_some_and(|id| self.is_known(id))
            || (receive.options.attempt.is_some() && has_shard())
    }

    /// Whether a standard queue has as many leases as it may have: a FIFO queue says nothing of it.
    fn is_over_limit(&self, queue: QueueId) -> bool {
        self.shared.machine.read().shard(queue).is_some_and(|shard| {
            let leases_max = u64::from(shard.settings.in_flight_max);
            shard.settings.kind == Kind::Standard && shard.counters.leased >= leases_max
        })
    }

    /// Lets a receive wait that found nothing, or ends it.
    pub(super) fn park(&mut self, receive: Receive) {
        if receive.may_wait() {
            self.waiters.park(receive);
        } else {
            let _ = receive.reply.send(Ok(Granted::default()));
        }
    }

    /// Messages that a receive is likely to find when it joins the open entry.
    fn available(&self, queue: QueueId) -> u64 {
        let state = self.shared.machine.read();
        let prospect = state.prospect(queue);
        // Entries that are applied are in the state already, although those who wait for them are not answered yet.
        let applied = state.applied_index().saturating_sub(self.completed_index) as usize;
        drop(state);
        let in_flight = self.in_flight.iter().skip(applied).map(|entry| entry.coming.to(queue));
        let coming = in_flight.sum::<i64>() + self.batch.as_ref().map_or(0, |batch| batch.coming.to(queue));
        let coming = if prospect.gives_at_once { coming } else { coming.min(0) };
        prospect.ready.saturating_add_signed(coming)
    }

    /// Notes that the open entry sends messages.
    pub(super) fn note_sent(&mut self, queue: QueueId, messages: usize) {
        if messages > 0 {
            self.open_batch().coming.add(queue, messages as i64);
            if self.waiters.has_any(queue) {
                self.to_wake.insert(queue);
            }
        }
    }

    /// Notes that a receive is part of the open entry.
    pub(super) fn note_asked(&mut self, receive: Receive) {
        let queue = receive.queue;
        let takes = self.available(queue).min(u64::from(receive.options.messages_max));
        self.named.extend(receive.options.request.map(name_of));
        let batch = self.open_batch();
        batch.coming.add(queue, -(takes as i64));
        batch.pending.push(Pending::Receive(Box::new(receive)));
    }

    /// Proposes grants for those who wait, as far as there is something to grant and the batch has room; the rest has its turn
    /// when an entry in flight is applied.
    pub(super) fn wake_waiters(&mut self) {
        while !self.batch_is_full()
            && let Some(queue) = self.to_wake.pop_first()
        {
            self.wake(queue);
        }
    }

    fn wake(&mut self, queue: QueueId) {
        if !self.waiters.has_any(queue) {
            return;
        }
        while self.available(queue) > 0
            && let Some(receive) = self.waiters.pop(queue)
        {
            self.add_receive(receive);
            if self.batch_is_full() {
                self.to_wake.insert(queue);
                return;
            }
        }
        self.waiters.tell(queue, self.available(queue), Instant::now());
    }
}
