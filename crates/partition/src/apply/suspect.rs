//! What becomes of messages whose consumer died with them: see `suspects`.

use crate::ids::QueueId;
use crate::lanes::Lane;
use crate::message::Side;
use crate::notes::Notes;
use crate::partition::Partition;
use crate::reply::{Delivery, Refusal, Reply};
use crate::settings::{Isolation, Kind};
use crate::shard::Shard;
use crate::store::Store;
use crate::suspects::NOBODY;
use crate::view::State;

use super::settle::End;

impl Partition {
    /// O(log queues).
    pub(crate) fn set_isolation(
        &mut self,
        queue: QueueId,
        isolation: Isolation,
        revision: u64,
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        if revision < self.revision_min {
            return Err(Refusal::StaleRevision { revision_min: self.revision_min });
        }
        let shard = self.shards.get_mut(&queue).ok_or(Refusal::UnknownQueue)?;
        let isolation = if shard.settings.kind == Kind::Fifo { Isolation::Off } else { isolation };
        if isolation == Isolation::On || shard.usage.suspects.is_some() {
            shard.usage.suspects.get_or_insert_with(Box::default).isolation = isolation;
            notes.ready.insert(queue); // what was on trial holds nothing back any more
        }
        Ok(Reply::Done)
    }

    /// O(log consumers).
    pub(crate) fn lost(&mut self, queue: QueueId, consumer: &[u8]) -> Result<Reply, Refusal> {
        let shard = self.shards.get_mut(&queue).ok_or(Refusal::UnknownQueue)?;
        if let Some(suspects) = &mut shard.usage.suspects {
            suspects.gone(consumer);
        }
        Ok(Reply::Done)
    }
}

impl Shard {
    /// Notes that the consumer with a leased message was heard of.
    pub fn note_life(&mut self, store: &Store, slot: u32) {
        let Some(suspects) = &mut self.usage.suspects else { return };
        if let Some(side) = store.side(slot) {
            suspects.heard_of(side.holder);
        }
    }

    /// With how many leases the consumer of a leased message went, if it is gone.
    pub fn lost_with(&self, store: &Store, slot: u32) -> Option<u32> {
        self.usage.suspects.as_ref()?.gone_with(store.side(slot)?.holder)
    }

    /// Counts a lease on its consumer.
    pub fn note_holder(&mut self, holder: u32) {
        if let Some(suspects) = self.usage.suspects.as_mut().filter(|_| holder != NOBODY) {
            suspects.leased(holder);
        }
    }

    /// Counts a lease off its consumer, and a suspect off the trial.
    pub fn leave_holder(&mut self, side: &Side, notes: &mut Notes) {
        let Some(suspects) = &mut self.usage.suspects else { return };
        suspects.ended(side.holder);
        if side.company > 0 {
            suspects.on_trial -= 1;
            if suspects.on_trial == 0 {
                notes.ready.insert(self.queue);
            }
        }
    }

    /// With how many others a message may be leased at most after its lease has ended so; 0 clears it. One that died with its
    /// consumer has half the company that it had, and is excused unless it was alone.
    pub fn company_after(&self, store: &mut Store, slot: u32, end: End) -> u16 {
        if self.usage.suspects.is_none() {
            return 0;
        }
        let side = store.side_mut(slot);
        match end {
            End::Failed { .. } | End::Postponed { .. } => 0,
            End::GivenBack => side.company,
            End::Lost { with } => {
                let company = if side.company == 0 { with } else { u32::from(side.company) };
                side.excused = side.excused.saturating_add(u16::from(company > 1));
                u16::try_from(company.div_ceil(2)).unwrap_or(u16::MAX)
            }
        }
    }

    /// Puts a message that is in no state's list among the suspects.
    pub fn enter_suspects(&mut self, store: &mut Store, slot: u32, notes: &mut Notes) {
        store.messages[slot].state = State::Ready;
        store.messages[slot].lane = Lane::Suspect;
        self.counters.ready += 1;
        let suspects = self.usage.suspects.as_mut().expect("only a shard that isolates has suspects");
        suspects.waiting.push_back(&mut store.messages, slot);
        suspects.waiting_len += 1;
        notes.ready.insert(self.queue);
    }

    pub fn leave_suspects(&mut self, store: &mut Store, slot: u32) {
        let suspects = self.usage.suspects.as_mut().expect("only a shard that isolates has suspects");
        suspects.waiting.remove(&mut store.messages, slot);
        suspects.waiting_len -= 1;
    }

    /// Notes which suspects are leased together.
    pub fn begin_trial(&mut self, store: &mut Store, together: &[Delivery]) {
        let Some(suspects) =
            self.usage.suspects.as_mut().filter(|suspects| suspects.isolation == Isolation::On)
        else {
            return;
        };
        for delivery in together {
            let side = store.side_mut(delivery.receipt.slot);
            side.company = u16::try_from(together.len()).unwrap_or(u16::MAX);
            suspects.on_trial += 1;
        }
    }

    /// The suspect that the next trial begins with.
    pub fn first_suspect(&self) -> Option<u32> {
        self.usage.suspects.as_ref().filter(|suspects| suspects.has_ready())?.waiting.front()
    }
}
