//! The source's side of a transfer.
//!
//! ```text
//!   source partition                         target partition
//!   outbox [7, 9, 12]  -- Transfer 7, 9 -->  arrived[source] = 9
//!   outbox [12]        <-- TransferDone 9 --
//! ```
//!
//! A message is in the outbox until the target has it for certain. Each target has a list of its own, so one that cannot be
//! reached holds back nobody else. Numbers grow over the whole partition and never repeat, even when a queue is deleted and
//! made again, so the target's watermark cannot swallow a message.

use crate::effects::EventKind;
use crate::ids::QueueId;
use crate::lanes::Lane;
use crate::limits::TRANSFER_MAX;
use crate::message::{Aged, Message, slot_or_none};
use crate::notes::Notes;
use crate::partition::Partition;
use crate::reply::{Refusal, Reply};
use crate::settings::Kind;
use crate::shard::Shard;
use crate::store::Store;
use crate::view::OutboxReason;

impl Partition {
    /// O(items removed * log targets).
    pub(crate) fn transfer_done(
        &mut self,
        queue: QueueId,
        target: QueueId,
        through_number: u64,
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        let shard = self.shards.get_mut(&queue).ok_or(Refusal::UnknownQueue)?;
        let mut removed = 0;
        while removed < TRANSFER_MAX
            && let Some(slot) = shard.usage.outboxes.get(&target).and_then(|outbox| outbox.items.front())
            && let Some(number) = self.store.side(slot).map(|side| side.number)
            && number <= through_number
        {
            let sequence = self.store.messages[slot].sequence;
            notes.event(queue, sequence, || EventKind::Transferred { number, target });
            shard.usage.totals.transferred += 1;
            shard.remove(&mut self.store, slot, notes);
            removed += 1;
        }
        let remaining = shard.usage.outboxes.get(&target).map_or(0, |outbox| outbox.len);
        self.reindex(queue);
        Ok(Reply::OutboxReduced { removed, remaining })
    }

    /// Gives up on a target that exists no more: its messages are ready here again, receive counts and all, and are dead
    /// again when their next lease ends and the limit still stands. Nothing else takes a message out of an outbox, not even
    /// other settings, for it may be under way already. From the back, so that each finds its place in a FIFO group at once, past
    /// those only that a redrive had passed over. O(items * (log(targets + groups) + messages passed)).
    pub(crate) fn transfer_return(
        &mut self,
        queue: QueueId,
        target: QueueId,
        items_max: u32,
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        let shard = self.shards.get_mut(&queue).ok_or(Refusal::UnknownQueue)?;
        let mut removed = 0;
        while removed < items_max.min(TRANSFER_MAX)
            && let Some(slot) = shard.usage.outboxes.get(&target).and_then(|outbox| outbox.items.back())
        {
            return_one(shard, &mut self.store, slot, notes);
            removed += 1;
        }
        let remaining = shard.usage.outboxes.get(&target).map_or(0, |outbox| outbox.len);
        self.reindex(queue);
        Ok(Reply::OutboxReduced { removed, remaining })
    }
}

fn return_one(shard: &mut Shard, store: &mut Store, slot: u32, notes: &mut Notes) {
    let number = store.side(slot).map_or(0, |side| side.number);
    let sequence = store.messages[slot].sequence;
    if sequence < shard.purged_sequence {
        // Purged while it was dead, when it could not be dropped.
        notes.event(shard.queue, sequence, || EventKind::Dropped);
        shard.usage.totals.dropped += 1;
        return shard.remove(store, slot, notes);
    }
    notes.event(shard.queue, sequence, || EventKind::Returned { number });
    shard.leave_state(store, slot, notes);
    store.messages[slot].aged = Aged::Due;
    shard.age.push_back(&mut store.messages, slot);
    // It is not at its old place by age, so a time to live stands in for the retention.
    let retained_to_ms =
        store.sent_wall_ms(&store.messages[slot]).saturating_add(shard.settings.retention_ms);
    store.arm_expiry(slot, retained_to_ms);
    let was_redriven = store.side(slot).is_some_and(|side| side.reason == OutboxReason::Redrive);
    if was_redriven {
        count_kept(shard);
    }
    if was_redriven && shard.settings.kind == Kind::Standard {
        // Behind the others: at its old place the redrive would take it again and again, and others never.
        shard.leave_tenant(store, slot);
        return shard.enter_ready(store, slot, Lane::Fresh, notes);
    }
    if let Some(group) = slot_or_none(store.messages[slot].group) {
        let name = store.groups[group].name.clone();
        shard.join_group(store, slot, &name);
        shard.end_membership(store, group);
        if shard.settings.kind == Kind::Fifo {
            enter_order(store, slot);
        }
    }
    shard.enter_ready(store, slot, Lane::Returned, notes);
    shard.refresh_group_of(store, slot, notes);
}

/// Puts a message back at its place in its FIFO group, where sequences grow. O(messages before it).
fn enter_order(store: &mut Store, slot: u32) {
    let Message { sequence, group, .. } = store.messages[slot];
    let order = &mut store.groups[group].messages;
    let behind = order.iter(&store.messages).find(|other| store.messages[*other].sequence > sequence);
    match behind {
        Some(behind) => order.insert_before(&mut store.messages, slot, behind),
        None => order.push_back(&mut store.messages, slot),
    }
}

/// What comes back did not move after all. What an earlier redrive moved is not among those of this one.
fn count_kept(shard: &mut Shard) {
    if let Some(redrive) = &mut shard.usage.redrive {
        let progress = &mut redrive.progress;
        let counted = progress.moved.min(1);
        progress.moved -= counted;
        progress.kept += counted;
    }
}
