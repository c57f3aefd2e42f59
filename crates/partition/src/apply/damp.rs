//! Messages that come back: ready at once while the retry budget allows, else held until it does.

use crate::damping::Damping;
use crate::effects::EventKind;
use crate::ids::QueueId;
use crate::lanes::Lane;
use crate::notes::Notes;
use crate::partition::Partition;
use crate::reply::{Refusal, Reply};
use crate::settings::{Kind, RetryBudget};
use crate::shard::Shard;
use crate::store::Store;
use crate::view::{Mood, State};

impl Partition {
    /// O(log queues); what is held is let go later when the budget is taken away.
    pub(crate) fn set_retry_budget(
        &mut self,
        queue: QueueId,
        budget: Option<RetryBudget>,
        revision: u64,
    ) -> Result<Reply, Refusal> {
        if revision < self.revision_min {
            return Err(Refusal::StaleRevision { revision_min: self.revision_min });
        }
        let shard = self.shards.get_mut(&queue).ok_or(Refusal::UnknownQueue)?;
        let budget = budget.filter(|_| shard.settings.kind == Kind::Standard);
        let now_ms = self.store.log_time_ms;
        if budget.is_some() || shard.usage.damping.is_some() {
            let damping = shard.usage.damping.get_or_insert_with(|| Box::new(Damping::new(now_ms)));
            damping.set_budget(budget, now_ms);
        }
        self.reindex(queue);
        Ok(Reply::Done)
    }

    /// Lets one held message go, if one is due.
    pub(crate) fn let_go(&mut self, notes: &mut Notes) -> Option<()> {
        let now_ms = self.store.log_time_ms;
        let (due_ms, queue) = *self.dampings.first()?;
        if due_ms > now_ms {
            return None;
        }
        let shard = self.shards.get_mut(&queue).expect("an indexed shard exists");
        let side = shard.usage.damping.as_mut().and_then(|damping| damping.let_go(now_ms));
        if let Some(side) = side {
            let slot = self.store.sides[side].message;
            shard.leave_state(&mut self.store, slot, notes);
            shard.enter_ready(&mut self.store, slot, Lane::Returned, notes);
            shard.refresh_group_of(&mut self.store, slot, notes);
        }
        self.reindex(queue);
        side.map(drop)
    }
}

impl Shard {
    /// Puts a message that was granted before, and is in no state's list, into the ready state, or holds it.
    pub fn come_back(&mut self, store: &mut Store, slot: u32, notes: &mut Notes) {
        match self.usage.damping.as_mut().is_none_or(|damping| damping.may_pass(store.log_time_ms)) {
            true => self.enter_ready(store, slot, Lane::Returned, notes),
            false => self.enter_held(store, slot, notes),
        }
    }

    fn enter_held(&mut self, store: &mut Store, slot: u32, notes: &mut Notes) {
        let sequence = store.messages[slot].sequence;
        store.messages[slot].state = State::Held;
        store.messages[slot].lane = Lane::Returned;
        self.counters.delayed += 1;
        self.usage.totals.held += 1;
        let now_ms = store.log_time_ms;
        let side = store.side_slot(slot);
        let until_ms = Damping::held_until_ms(sequence, store.sides[side].receive_count, now_ms);
        store.sides[side].deadline_ms = until_ms;
        let damping = self.usage.damping.as_mut().expect("only a budget holds messages back");
        damping.held.insert(&mut store.sides, until_ms, side);
        damping.held_len += 1;
        notes.event(self.queue, sequence, || EventKind::Held);
    }

    pub fn leave_held(&mut self, store: &mut Store, slot: u32) {
        self.counters.delayed -= 1;
        let side = store.side_slot(slot);
        let until_ms = store.sides[side].deadline_ms;
        let damping = self.usage.damping.as_mut().expect("a held message has what holds it");
        damping.held.remove(&mut store.sides, until_ms, side);
        damping.held_len -= 1;
    }

    /// Calm where nothing is judged.
    pub fn mood(&self) -> Mood {
        self.usage.damping.as_ref().map_or(Mood::Calm, |damping| damping.mood())
    }

    /// Notes that a lease ended without an ack.
    pub fn note_failure(&mut self, store: &mut Store, slot: u32) -> Mood {
        let Some(damping) = &mut self.usage.damping else { return Mood::Calm };
        let (now_ms, wall_ms) = (store.log_time_ms, store.wall_time_ms);
        damping.failed(&mut store.side_mut(slot).failed_in, now_ms, wall_ms)
    }

    /// Notes an ack of a leased message.
    pub fn note_success(&mut self, store: &Store, slot: u32) {
        let Some(damping) = &mut self.usage.damping else { return };
        if let Some(side) = store.side(slot) {
            damping.acked(side.receive_count, side.failed_in, store.log_time_ms, store.wall_time_ms);
        }
    }
}
