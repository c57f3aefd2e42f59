//! What consumers do with their leases: acknowledge, extend, release, reject.
//!
//! A lease holds until the log says it ended: what commits before the expiry entry wins, even past the deadline.

use std::sync::Arc;

use crate::arena::NONE;
use crate::effects::EventKind;
use crate::ids::{QueueId, Receipt};
use crate::lanes::Lane;
use crate::limits::LEASE_MS_MAX;
use crate::message::{Aged, holds};
use crate::notes::Notes;
use crate::partition::{Partition, owns};
use crate::reply::{Outcome, Refusal, Reply};
use crate::shard::Shard;
use crate::store::Store;
use crate::view::{Mood, OutboxReason};

impl Partition {
    /// O(receipts * log deadlines).
    pub(crate) fn ack(
        &mut self,
        queue: QueueId,
        receipts: &[Receipt],
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        self.each(queue, receipts, |shard, store, receipt| {
            let outcome = settle(shard, store, receipt, |shard, store| ack_one(shard, store, receipt, notes));
            if is_late(shard, receipt, outcome) {
                measure_late(shard, store);
            }
            outcome
        })
    }

    /// O(items * log deadlines).
    pub(crate) fn extend(
        &mut self,
        queue: QueueId,
        items: &[(Receipt, u32)],
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        self.each(queue, items, |shard, store, (receipt, lease_ms)| {
            settle(shard, store, receipt, |shard, store| match lease_ms {
                0 => release_one(shard, store, receipt, 0, notes),
                _ => extend_one(shard, store, receipt, *lease_ms, notes),
            })
        })
    }

    /// O(items * log deadlines).
    pub(crate) fn release(
        &mut self,
        queue: QueueId,
        items: &[(Receipt, u32)],
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        self.each(queue, items, |shard, store, (receipt, delay_ms)| {
            settle(shard, store, receipt, |shard, store| release_one(shard, store, receipt, *delay_ms, notes))
        })
    }

    /// O(receipts * log deadlines).
    pub(crate) fn give_back(
        &mut self,
        queue: QueueId,
        receipts: &[Receipt],
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        self.each(queue, receipts, |shard, store, receipt| {
            judge(shard, store, receipt, |shard, store| spare_one(shard, store, receipt, None, notes))
        })
    }

    /// O(items * log deadlines).
    pub(crate) fn postpone(
        &mut self,
        queue: QueueId,
        items: &[(Receipt, u32)],
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        self.each(queue, items, |shard, store, (receipt, delay_ms)| {
            settle(shard, store, receipt, |shard, store| {
                spare_one(shard, store, receipt, Some(*delay_ms), notes)
            })
        })
    }

    /// O(items * log targets).
    pub(crate) fn reject(
        &mut self,
        queue: QueueId,
        items: &[(Receipt, &[u8])],
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        self.each(queue, items, |shard, store, (receipt, why)| {
            settle(shard, store, receipt, |shard, store| reject_one(shard, store, receipt, why, notes))
        })
    }

    /// Acts on each of several leases of a queue.
    fn each<T>(
        &mut self,
        queue: QueueId,
        items: &[T],
        mut act: impl FnMut(&mut Shard, &mut Store, &T) -> Outcome,
    ) -> Result<Reply, Refusal> {
        let shard = self.shards.get_mut(&queue).ok_or(Refusal::UnknownQueue)?;
        let outcomes = items.iter().map(|item| act(shard, &mut self.store, item)).collect();
        self.reindex(queue);
        Ok(Reply::Settled { outcomes })
    }
}

/// Acts on the lease a receipt proves, if it holds, for the consumer that has it: a sign of life.
fn settle(
    shard: &mut Shard,
    store: &mut Store,
    receipt: &Receipt,
    act: impl FnOnce(&mut Shard, &mut Store) -> Outcome,
) -> Outcome {
    judge(shard, store, receipt, |shard, store| {
        shard.note_life(store, receipt.slot);
        act(shard, store)
    })
}

/// Acts on the lease a receipt proves, if it holds.
fn judge(
    shard: &mut Shard,
    store: &mut Store,
    receipt: &Receipt,
    act: impl FnOnce(&mut Shard, &mut Store) -> Outcome,
) -> Outcome {
    let issued = (1..store.next_grant).contains(&receipt.grant)
        && (1..store.next_sequence).contains(&receipt.sequence);
    if !issued {
        return Outcome::Invalid;
    }
    // Who was never granted has no side record, and may be folded: no receipt is its.
    let found = store.messages.get(receipt.slot).copied();
    let found = found.filter(|message| message.side != NONE && message.sequence == receipt.sequence);
    let Some(message) = found else { return Outcome::Gone };
    if message.queue != shard.queue {
        return Outcome::Invalid;
    }
    if !owns(shard, &message) {
        return Outcome::Gone;
    }
    match store.side_of(&message) {
        Some(side) if holds(&message, side, receipt) => act(shard, store),
        _ => Outcome::Stale,
    }
}

fn ack_one(shard: &mut Shard, store: &mut Store, receipt: &Receipt, notes: &mut Notes) -> Outcome {
    notes.event(shard.queue, receipt.sequence, || EventKind::Acked { grant: receipt.grant });
    measure_ack(shard, store, receipt.slot);
    shard.note_success(store, receipt.slot);
    shard.usage.totals.acked += 1;
    shard.remove(store, receipt.slot, notes);
    Outcome::Done
}

fn measure_ack(shard: &mut Shard, store: &Store, slot: u32) {
    let side = store.side(slot).expect("a leased message has a side record");
    let held_ms = store.log_time_ms - side.granted_ms;
    let left_ms = side.deadline_ms.saturating_sub(store.log_time_ms);
    let measure = shard.measure(store, slot);
    measure.held.record(held_ms);
    if left_ms * 10 < u64::from(side.lease_ms) {
        measure.last_tenth = measure.last_tenth.saturating_add(1);
        shard.usage.totals.last_tenth += 1;
    }
}

/// Whether the lease of a receipt ended before its ack. When the message is gone, somebody else was quicker; or the same ack
/// came before, under no request id, which cannot be told apart. What was purged is late for no consumer.
fn is_late(shard: &Shard, receipt: &Receipt, outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Stale | Outcome::Gone) && receipt.sequence >= shard.purged_sequence
}

/// A late ack is the rest's: its lease is over, and with it what was known of the consumer.
fn measure_late(shard: &mut Shard, store: &Store) {
    let measure = shard.headroom_of(store).measure(0, store.log_time_ms);
    measure.late = measure.late.saturating_add(1);
    shard.usage.totals.late += 1;
}

fn extend_one(
    shard: &mut Shard,
    store: &mut Store,
    receipt: &Receipt,
    lease_ms: u32,
    notes: &mut Notes,
) -> Outcome {
    let deadline_ms = store.log_time_ms.saturating_add(u64::from(lease_ms));
    let side = store.messages[receipt.slot].side;
    if deadline_ms > store.sides[side].granted_ms.saturating_add(u64::from(LEASE_MS_MAX)) {
        return Outcome::LeaseTooLong;
    }
    store.move_lease(side, deadline_ms, lease_ms, true);
    shard.usage.totals.extended += 1;
    let measure = shard.measure(store, receipt.slot);
    measure.extended = measure.extended.saturating_add(1);
    let grant = receipt.grant;
    notes.event(shard.queue, receipt.sequence, || EventKind::Extended { grant, lease_ms });
    Outcome::Done
}

fn release_one(
    shard: &mut Shard,
    store: &mut Store,
    receipt: &Receipt,
    delay_ms: u32,
    notes: &mut Notes,
) -> Outcome {
    note_release(shard, receipt, delay_ms, notes);
    end_lease(shard, store, receipt.slot, End::Failed { delay_ms }, notes);
    Outcome::Done
}

/// Ends a lease with which nothing has failed: nobody has worked under it, or its consumer puts the message off for so long.
fn spare_one(
    shard: &mut Shard,
    store: &mut Store,
    receipt: &Receipt,
    put_off_ms: Option<u32>,
    notes: &mut Notes,
) -> Outcome {
    note_release(shard, receipt, put_off_ms.unwrap_or(0), notes);
    shard.usage.totals.given_back += 1;
    let end = put_off_ms.map_or(End::GivenBack, |delay_ms| End::Postponed { delay_ms });
    end_lease(shard, store, receipt.slot, end, notes);
    Outcome::Done
}

fn note_release(shard: &mut Shard, receipt: &Receipt, delay_ms: u32, notes: &mut Notes) {
    let grant = receipt.grant;
    notes.event(shard.queue, receipt.sequence, || EventKind::Released { grant, delay_ms });
    shard.usage.totals.released += 1;
}

fn reject_one(
    shard: &mut Shard,
    store: &mut Store,
    receipt: &Receipt,
    why: &[u8],
    notes: &mut Notes,
) -> Outcome {
    let Some(dead) = shard.settings.dead_letter else { return Outcome::NoDeadLetterQueue };
    let (grant, why) = (receipt.grant, Arc::<[u8]>::from(why));
    notes.event(shard.queue, receipt.sequence, || EventKind::Rejected { grant, why: why.clone() });
    shard.leave_state(store, receipt.slot, notes);
    shard.usage.totals.rejected += 1;
    die(shard, store, receipt.slot, dead.queue, OutboxReason::Rejected { why }, notes);
    shard.refresh_group_of(store, receipt.slot, notes);
    Outcome::Done
}

/// Puts a message that is in no state's list into the outbox of its dead-letter queue.
pub(crate) fn die(
    shard: &mut Shard,
    store: &mut Store,
    slot: u32,
    target: QueueId,
    reason: OutboxReason,
    notes: &mut Notes,
) {
    let sequence = store.messages[slot].sequence;
    let number = shard.enter_dead(store, slot, target, reason);
    shard.usage.totals.dead += 1;
    notes.outbox.insert(shard.queue);
    notes.event(shard.queue, sequence, || EventKind::Dead { number, target });
}

/// How a lease ends that ends without an acknowledgement.
#[derive(Clone, Copy)]
pub(crate) enum End {
    /// By itself, or its consumer gave up; the message may come back after so long.
    Failed { delay_ms: u32 },
    /// No consumer has worked on the message.
    GivenBack,
    /// Its consumer did not want it yet; it may come back after so long.
    Postponed { delay_ms: u32 },
    /// Its consumer is gone, and had so many leases when it went.
    Lost { with: u32 },
}

/// What becomes of a message whose lease ended without an acknowledgement: dead when its receive limit is met, except in a
/// storm; dropped when its retention ended meanwhile; else it comes back, after a delay perhaps. O(log deadlines).
pub(crate) fn end_lease(shard: &mut Shard, store: &mut Store, slot: u32, end: End, notes: &mut Notes) {
    let mood = match end {
        End::Failed { .. } => shard.note_failure(store, slot),
        End::GivenBack | End::Postponed { .. } | End::Lost { .. } => shard.mood(),
    };
    let company = shard.company_after(store, slot, end);
    if matches!(end, End::GivenBack | End::Postponed { .. }) {
        // The receive counts as one, and not for the limit: nothing has failed.
        let side = store.side_mut(slot);
        side.excused = side.excused.saturating_add(1);
    }
    let overdue = store.messages[slot].aged == Aged::Overdue;
    let limit = shard.limit_met(store, slot);
    let dead_letter = limit.filter(|_| mood == Mood::Calm || overdue);
    if dead_letter.is_none() && overdue {
        return drop_message(shard, store, slot, notes);
    }
    shard.leave_state(store, slot, notes);
    if shard.usage.suspects.is_some() {
        store.side_mut(slot).company = company;
    }
    if let Some(dead) = dead_letter {
        die(shard, store, slot, dead.queue, OutboxReason::Dead, notes);
    } else {
        if limit.is_some() {
            shard.usage.totals.spared += 1;
            notes.event(shard.queue, store.messages[slot].sequence, || EventKind::Spared);
        }
        match end {
            End::Lost { .. } => {
                let sequence = store.messages[slot].sequence;
                notes.event(shard.queue, sequence, || EventKind::Suspected { company });
                shard.enter_suspects(store, slot, notes);
            }
            End::GivenBack if company > 0 => shard.enter_suspects(store, slot, notes),
            End::GivenBack | End::Postponed { delay_ms: 0 } => {
                shard.enter_ready(store, slot, Lane::Returned, notes)
            }
            End::Postponed { delay_ms } => shard.enter_delayed(store, slot, Lane::PutOff, delay_ms),
            End::Failed { delay_ms: 0 } => shard.come_back(store, slot, notes),
            End::Failed { delay_ms } => shard.enter_delayed(store, slot, Lane::Returned, delay_ms),
        }
    }
    shard.refresh_group_of(store, slot, notes);
}

/// Removes a message whose time is over.
pub(crate) fn drop_message(shard: &mut Shard, store: &mut Store, slot: u32, notes: &mut Notes) {
    notes.event(shard.queue, store.messages[slot].sequence, || EventKind::Dropped);
    shard.usage.totals.dropped += 1;
    shard.remove(store, slot, notes);
}
