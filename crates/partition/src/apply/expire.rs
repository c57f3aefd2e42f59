//! Everything that ends by itself, a bounded number of items at a time.
//!
//! The leader says up to when leases may end, because a consumer counts its lease from the answer and not from the entry.
//! All else follows the partition's own clocks. What ended first is ended first; nothing looks at what is not due.

use crate::effects::EventKind;
use crate::garbage;
use crate::lanes::Lane;
use crate::limits::EXPIRE_MAX;
use crate::notes::Notes;
use crate::partition::Partition;
use crate::reply::Reply;
use crate::view::{OutboxReason, State};

use super::settle::{End, die, drop_message, end_lease};

impl Partition {
    /// O(items * log(deadlines + queues)).
    pub(crate) fn expire(&mut self, leases_as_of_ms: u64, items_max: u32, notes: &mut Notes) -> Reply {
        let leases_to_ms = leases_as_of_ms.min(self.store.log_time_ms);
        let mut left = items_max.min(EXPIRE_MAX);
        let leases = repeat(&mut left, || self.expire_lease(leases_to_ms, notes));
        let mut delays = repeat(&mut left, || self.expire_delay(notes));
        delays += repeat(&mut left, || self.let_go(notes));
        let mut dropped = repeat(&mut left, || self.expire_message(notes));
        dropped += repeat(&mut left, || self.expire_retention(notes));
        let forgotten = repeat(&mut left, || self.forget_one());
        let swept = self.garbage.sweep(&mut self.store, left, notes);
        let more = self.more_is_due(leases_to_ms);
        Reply::Expired { leases, delays, dropped: dropped + swept, forgotten, more }
    }

    fn more_is_due(&self, leases_to_ms: u64) -> bool {
        let (now_ms, wall_ms) = (self.store.log_time_ms, self.store.wall_time_ms);
        let due = |first: Option<u64>, now: u64| first.is_some_and(|first| first <= now);
        due(self.store.leases.first_key(), leases_to_ms)
            || due(self.store.delays.first_key(), now_ms)
            || due(self.dampings.first().map(|(due_ms, _)| *due_ms), now_ms)
            || due(self.store.expiries.first_key(), wall_ms)
            || due(self.retention.first().map(|(due_ms, _)| *due_ms), wall_ms)
            || due(self.dedup.first_ms(), now_ms)
            || due(self.attempts.first_ms(), now_ms)
            || due(self.sessions.first_ms(), now_ms)
            || due(self.headrooms.first().map(|(due_ms, _)| *due_ms), now_ms)
            || !self.garbage.is_empty()
    }

    fn expire_lease(&mut self, leases_to_ms: u64, notes: &mut Notes) -> Option<()> {
        let side = self.store.leases.first_through(leases_to_ms)?;
        let slot = self.store.sides[side].message;
        if !self.alive(&self.store.messages[slot]) {
            garbage::disarm(&mut self.store, slot);
            return Some(());
        }
        let (queue, sequence) = (self.store.messages[slot].queue, self.store.messages[slot].sequence);
        let grant = self.store.sides[side].grant;
        notes.event(queue, sequence, || EventKind::Expired { grant });
        let shard = self.shards.get_mut(&queue).expect("an alive message has its shard");
        shard.usage.totals.expired += 1;
        let measure = shard.measure(&self.store, slot);
        measure.expired = measure.expired.saturating_add(1);
        let end = match shard.lost_with(&self.store, slot) {
            Some(with) => End::Lost { with },
            None => End::Failed { delay_ms: 0 },
        };
        shard.usage.totals.lost += u64::from(matches!(end, End::Lost { .. }));
        end_lease(shard, &mut self.store, slot, end, notes);
        self.reindex(queue);
        Some(())
    }

    fn expire_delay(&mut self, notes: &mut Notes) -> Option<()> {
        let side = self.store.delays.first_through(self.store.log_time_ms)?;
        let slot = self.store.sides[side].message;
        if !self.alive(&self.store.messages[slot]) {
            garbage::disarm(&mut self.store, slot);
            return Some(());
        }
        let (queue, lane) = (self.store.messages[slot].queue, self.store.messages[slot].lane);
        let shard = self.shards.get_mut(&queue).expect("an alive message has its shard");
        shard.leave_state(&mut self.store, slot, notes);
        match lane {
            Lane::Fresh => shard.enter_ready(&mut self.store, slot, lane, notes),
            Lane::PutOff => shard.enter_ready(&mut self.store, slot, Lane::Returned, notes),
            Lane::Returned | Lane::Suspect => shard.come_back(&mut self.store, slot, notes),
        }
        shard.refresh_group_of(&mut self.store, slot, notes);
        if shard.usage.damping.is_some() {
            self.reindex(queue);
        }
        Some(())
    }

    /// Ends one time to live.
    fn expire_message(&mut self, notes: &mut Notes) -> Option<()> {
        let side = self.store.expiries.first_through(self.store.wall_time_ms)?;
        let slot = self.store.sides[side].message;
        self.store.disarm_expiry(slot);
        if self.alive(&self.store.messages[slot]) {
            self.outlive(slot, notes);
        }
        Some(())
    }

    /// Ends the retention of one message.
    fn expire_retention(&mut self, notes: &mut Notes) -> Option<()> {
        let (due_ms, queue) = *self.retention.first()?;
        if due_ms > self.store.wall_time_ms {
            return None;
        }
        let shard = &self.shards[&queue];
        let slot = shard.age.front().expect("a shard in the retention index holds an aged message");
        self.outlive(slot, notes);
        Some(())
    }

    /// Drops a message whose time is over, or leaves it to the end of its lease. One that a storm has spared is dead now.
    fn outlive(&mut self, slot: u32, notes: &mut Notes) {
        let queue = self.store.messages[slot].queue;
        let shard = self.shards.get_mut(&queue).expect("an alive message has its shard");
        let limit = shard.limit_met(&self.store, slot).filter(|_| shard.usage.damping.is_some());
        match (self.store.messages[slot].state, limit) {
            (State::Leased, _) => shard.mark_overdue(&mut self.store, slot),
            (_, Some(dead)) => {
                shard.leave_state(&mut self.store, slot, notes);
                die(shard, &mut self.store, slot, dead.queue, OutboxReason::Dead, notes);
                shard.refresh_group_of(&mut self.store, slot, notes);
            }
            (_, None) => drop_message(shard, &mut self.store, slot, notes),
        }
        self.reindex(queue);
    }

    /// Forgets one deduplication id, attempt, session or headroom whose time is over.
    fn forget_one(&mut self) -> Option<()> {
        let now_ms = self.store.log_time_ms;
        let due = |first: Option<u64>| first.is_some_and(|first| first <= now_ms);
        if due(self.dedup.first_ms()) {
            self.dedup.forget_first();
        } else if due(self.attempts.first_ms()) {
            self.attempts.forget_first();
        } else if due(self.sessions.first_ms()) {
            self.sessions.forget_idlest();
        } else if let Some((due_ms, queue)) = self.headrooms.first().copied()
            && due_ms <= now_ms
        {
            self.shards.get_mut(&queue).expect("an indexed shard exists").usage.headroom = None;
            self.reindex(queue);
        } else {
            return None;
        }
        Some(())
    }
}

/// Repeats `step` while it does something and some of `left` remains. Returns how often it did.
fn repeat(left: &mut u32, mut step: impl FnMut() -> Option<()>) -> u32 {
    let mut done = 0;
    while *left > 0 && step().is_some() {
        *left -= 1;
        done += 1;
    }
    done
}
