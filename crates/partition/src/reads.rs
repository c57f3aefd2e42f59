//! Reading a partition. Every read is bounded by what it returns, or by a limit named beside it.

use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use crate::headroom::Measure;
use crate::ids::{MessageKey, QueueId, Receipt, RequestId};
use crate::limits::{PEEK_SCAN_MAX, WINDOW_SLACK_MS};
use crate::list;
use crate::message::{Age, Aged, Message, Order, holds, slot_or_none};
use crate::partition::Partition;
use crate::settings::Kind;
use crate::view::{Deadline, MessageView, OutboxItem, Peek, Prospect, ShardView, State};

impl Partition {
    pub fn log_time_ms(&self) -> u64 {
        self.store.log_time_ms
    }

    pub fn wall_time_ms(&self) -> u64 {
        self.store.wall_time_ms
    }

    /// The index of the last entry applied, 0 before the first.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// The effective machine version.
    pub fn machine_version(&self) -> u32 {
        self.machine_version
    }

    /// Catalogue revisions below this are refused.
    pub fn revision_min(&self) -> u64 {
        self.revision_min
    }

    /// Slots written since this value was made: a measure of work that does not depend on the machine. No part of the state.
    pub fn steps(&self) -> u64 {
        let store = &self.store;
        let entries = store.entries.records.steps();
        store.messages.steps() + store.sides.steps() + store.groups.steps() + entries
    }

    pub fn shard(&self, queue: QueueId) -> Option<ShardView> {
        let shard = self.shards.get(&queue)?;
        Some(ShardView {
            settings: shard.settings,
            revision: shard.revision,
            counters: shard.counters,
            totals: shard.totals(),
            oldest_sent_wall_ms: shard
                .age
                .front()
                .map(|slot| self.store.sent_wall_ms(&self.store.messages[slot])),
            redrive: shard.usage.redrive.as_ref().map(|redrive| redrive.progress),
            damping: shard.usage.damping.as_ref().map(|damping| damping.view(self.store.log_time_ms)),
            suspects: shard.usage.suspects.as_ref().map(|suspects| suspects.view()).unwrap_or_default(),
        })
    }

    /// What was measured of a queue's consumers lately, by version; the first may be the rest, whose version is empty.
    /// O(buckets in use).
    pub fn headroom(&self, queue: QueueId) -> Vec<(Arc<[u8]>, Measure)> {
        let headroom = self.shards.get(&queue).and_then(|shard| shard.usage.headroom.as_ref());
        headroom.map_or_else(Vec::new, |headroom| headroom.view(self.store.log_time_ms))
    }

    /// Whether a receive now would deliver. O(log queues).
    pub fn has_ready(&self, queue: QueueId) -> bool {
        self.shards.get(&queue).is_some_and(|shard| shard.has_ready())
    }

    /// What a receive may find in a queue. O(log queues).
    pub fn prospect(&self, queue: QueueId) -> Prospect {
        let Some(shard) = self.shards.get(&queue) else { return Prospect::default() };
        let has_room = shard.counters.leased < u64::from(shard.settings.in_flight_max);
        let is_immediate = shard.settings.kind == Kind::Standard && shard.settings.delay_ms == 0;
        Prospect {
            ready: if shard.has_ready() { shard.counters.ready } else { 0 },
            gives_at_once: is_immediate && has_room,
        }
    }

    /// Whether a request is answered as it was before, or refused because it is too old to know. O(log sessions + log replies).
    pub fn remembers(&self, id: RequestId) -> bool {
        self.sessions.remembers(id)
    }

    /// Whether a receipt is that of a lease that was neither settled nor ended, nor given to somebody else.
    pub fn holds_lease(&self, receipt: &Receipt) -> bool {
        self.lease_end_ms(receipt).is_some()
    }

    /// When the lease of a receipt ends, in log time, if it holds.
    pub fn lease_end_ms(&self, receipt: &Receipt) -> Option<u64> {
        let message = self.store.messages.get(receipt.slot)?;
        let side = self.store.side(receipt.slot)?;
        holds(message, side, receipt).then_some(side.deadline_ms)
    }

    /// The last grant that was given out, 0 before the first.
    pub fn last_grant(&self) -> u64 {
        self.store.next_grant - 1
    }

    /// What is due next; `None` when nothing is outstanding at all. O(1).
    pub fn next_deadline(&self) -> Option<Deadline> {
        let store = &self.store;
        let headroom_ms = self.headrooms.first().map(|(due_ms, _)| *due_ms);
        let windows =
            [self.dedup.first_ms(), self.attempts.first_ms(), self.sessions.first_ms(), headroom_ms];
        let window = windows.into_iter().flatten().min();
        let held_ms = self.dampings.first().map(|(due_ms, _)| *due_ms);
        let retention = self.retention.first().map(|(due_ms, _)| *due_ms);
        let deadline = Deadline {
            garbage: !self.garbage.is_empty(),
            lease_log_ms: store.leases.first_key(),
            delay_log_ms: [store.delays.first_key(), held_ms].into_iter().flatten().min(),
            window_log_ms: window.map(|until_ms| until_ms.saturating_add(WINDOW_SLACK_MS)),
            wall_ms: [retention, store.expiries.first_key()].into_iter().flatten().min(),
        };
        (deadline != Deadline::default()).then_some(deadline)
    }

    /// The queues after one, in order.
    pub fn queues_after(&self, queue: QueueId) -> impl Iterator<Item = QueueId> + '_ {
        self.shards.range((Excluded(queue), Unbounded)).map(|(queue, _)| *queue)
    }

    /// The queues, in order.
    pub fn queues(&self) -> impl Iterator<Item = QueueId> + '_ {
        self.shards.keys().copied()
    }

    /// Queues with a non-empty outbox, in order.
    pub fn outbox_queues(&self) -> impl Iterator<Item = QueueId> + '_ {
        self.outboxes.iter().copied()
    }

    /// Queues with a running redrive, in order.
    pub fn redrive_queues(&self) -> impl Iterator<Item = QueueId> + '_ {
        self.redrives.iter().copied()
    }

    /// The targets of a queue's outbox, with the items waiting for each.
    pub fn outbox_targets(&self, queue: QueueId) -> Vec<(QueueId, u64)> {
        let outboxes = self.shards.get(&queue).into_iter().flat_map(|shard| &shard.usage.outboxes);
        outboxes.map(|(target, outbox)| (*target, outbox.len)).collect()
    }

    /// The first items for one target, by number: what goes to one shard of it is transferred in this order, one transfer at a time.
    pub fn outbox(&self, queue: QueueId, target: QueueId, limit: usize) -> Vec<OutboxItem> {
        self.outbox_after(queue, target, None, limit)
    }

    /// The same, behind an item that was read before, by its key and number; from the first when that one is gone. O(items).
    pub fn outbox_after(
        &self,
        queue: QueueId,
        target: QueueId,
        after: Option<(MessageKey, u64)>,
        limit: usize,
    ) -> Vec<OutboxItem> {
        let Some(outbox) = self.shards.get(&queue).and_then(|shard| shard.usage.outboxes.get(&target)) else {
            return Vec::new();
        };
        let messages = &self.store.messages;
        let first = match after.filter(|(key, number)| self.is_in_outbox(queue, target, *key, *number)) {
            Some((key, _)) => list::next::<Order, Message>(messages, key.slot),
            None => outbox.items.front(),
        };
        let slots = list::walk::<Order, Message>(messages, first).take(limit);
        slots.filter_map(|slot| self.outbox_item(slot)).collect()
    }

    fn is_in_outbox(&self, queue: QueueId, target: QueueId, key: MessageKey, number: u64) -> bool {
        let is_this = |message: &&Message| {
            let is_dead = message.queue == queue && message.state == State::Dead;
            message.sequence == key.sequence && is_dead && self.alive(message)
        };
        let message = self.store.messages.get(key.slot).filter(is_this);
        let side = message.and_then(|message| self.store.side_of(message));
        side.is_some_and(|side| side.number == number && side.target == target)
    }

    fn outbox_item(&self, slot: u32) -> Option<OutboxItem> {
        let message = &self.store.messages[slot];
        let side = self.store.side(slot)?;
        let group = slot_or_none(message.group).map(|group| self.store.groups[group].name.clone());
        Some(OutboxItem {
            number: side.number,
            target: side.target,
            reason: side.reason.clone(),
            key: message.key(slot),
            content: self.store.content(message),
            receive_count: side.receive_count,
            sent_wall_ms: self.store.sent_wall_ms(message),
            origin: side.origin,
            group: group.filter(|name| !name.is_empty()),
        })
    }

    /// Log indexes that hold live contents, with the live bytes of each, in order.
    pub fn live_contents(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.store.entries.iter().map(|entry| (entry.log_index, entry.live_bytes))
    }

    /// The live contents of one entry as (offset, length), by offset. O(messages of the entry).
    pub fn live_ranges(&self, log_index: u64) -> Vec<(u32, u32)> {
        let Some(entry) = self.store.entries.of_index(log_index) else { return Vec::new() };
        let messages = self.store.messages.list(&entry.messages);
        messages.map(|(_, message)| (message.offset, message.len)).collect()
    }

    /// Whether a message ever had this sequence.
    pub fn has_given_out(&self, sequence: u64) -> bool {
        sequence < self.store.next_sequence
    }

    /// A message by its sequence. O(log entries + messages of its entry).
    pub fn find(&self, sequence: u64) -> Option<MessageView> {
        self.message_of(sequence).map(|(slot, message)| self.message_view(slot, &message))
    }

    fn message_of(&self, sequence: u64) -> Option<(u32, Message)> {
        let entry = self.store.entries.starting_at(sequence).next()?;
        let mut messages = self.store.messages.list(&entry.messages);
        let found = messages.find(|(_, message)| message.sequence == sequence)?;
        self.alive(&found.1).then_some(found)
    }

    /// Messages of a queue that are ready, leased or delayed, by age, from after `after_sequence` on; 0 starts at the oldest.
    /// A page may be empty and still have a next one: it looks at `PEEK_SCAN_MAX` messages at most.
    pub fn peek(&self, queue: QueueId, after_sequence: u64, limit: usize) -> Peek {
        let Some(shard) = self.shards.get(&queue) else { return Peek::default() };
        let first = match after_sequence {
            0 => shard.age.front().map(|slot| (slot, self.store.messages[slot])),
            _ => match self.following(queue, after_sequence) {
                Ok(first) => first,
                Err(scanned_to) => {
                    return Peek { messages: Vec::new(), next_after_sequence: Some(scanned_to) };
                }
            },
        };
        let mut by_age = self.store.messages.walk::<Age>(first);
        let limit = limit.min(PEEK_SCAN_MAX);
        let page = by_age.by_ref().take(limit).map(|(slot, message)| self.message_view(slot, &message));
        let messages: Vec<_> = page.collect();
        let last = messages.last().map(|message| message.key.sequence);
        let next_after_sequence = by_age.next().and(last.or(Some(after_sequence)));
        Peek { messages, next_after_sequence }
    }

    /// The message to go on with after a sequence, or how far the search came.
    fn following(&self, queue: QueueId, after_sequence: u64) -> Result<Option<(u32, Message)>, u64> {
        let messages = &self.store.messages;
        let here = |(_, message): &(u32, Message)| {
            message.queue == queue && message.aged == Aged::Due && self.alive(message)
        };
        if let Some((slot, message)) = self.message_of(after_sequence).filter(here) {
            return Ok(messages.following::<Age>(slot, &message));
        }
        let mut scanned_to = after_sequence;
        let entries = self.store.entries.starting_at(after_sequence);
        let later = entries.flat_map(|entry| messages.list(&entry.messages));
        let later = later.filter(|(_, message)| message.sequence > after_sequence);
        for (scanned, message) in later.enumerate() {
            if here(&message) {
                return Ok(Some(message));
            }
            if scanned == PEEK_SCAN_MAX {
                return Err(scanned_to);
            }
            scanned_to = message.1.sequence;
        }
        Ok(None)
    }

    fn message_view(&self, slot: u32, message: &Message) -> MessageView {
        let side = self.store.side_of(message);
        let timed = side.filter(|_| matches!(message.state, State::Leased | State::Delayed | State::Held));
        MessageView {
            key: message.key(slot),
            queue: message.queue,
            content: self.store.content(message),
            state: message.state,
            sent_wall_ms: self.store.sent_wall_ms(message),
            receive_count: side.map_or(0, |side| side.receive_count),
            first_received_wall_ms: side.map(|side| side.first_received_wall_ms).filter(|at| *at > 0),
            deadline_log_ms: timed.map(|side| side.deadline_ms),
            grant: side.map_or(0, |side| side.grant),
            origin: side.and_then(|side| side.origin),
        }
    }
}
