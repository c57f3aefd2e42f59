//! Creating, changing, deleting and purging shards.
//!
//! The catalogue numbers its changes. A partition refuses what is older than the latest deletion or change it has seen of any
//! queue, so a node with an old catalogue cannot bring a deleted queue back.

use crate::effects::EventKind;
use crate::ids::QueueId;
use crate::notes::Notes;
use crate::partition::Partition;
use crate::reply::{Refusal, Reply};
use crate::settings::Settings;
use crate::shard::Shard;

impl Partition {
    /// O(log queues).
    pub(crate) fn configure(
        &mut self,
        queue: QueueId,
        settings: Settings,
        revision: u64,
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        if revision < self.revision_min {
            return Err(Refusal::StaleRevision { revision_min: self.revision_min });
        }
        if settings.dead_letter.is_some_and(|dead| dead.queue == queue) {
            return Err(Refusal::TargetIsSource);
        }
        let next_sequence = self.store.next_sequence;
        let shard = self
            .shards
            .entry(queue)
            .or_insert_with(|| Box::new(Shard::new(queue, settings, revision, next_sequence)));
        if shard.settings.kind != settings.kind {
            return Err(Refusal::KindIsFixed);
        }
        if shard.settings != settings {
            self.revision_min = revision;
        }
        shard.settings = settings;
        shard.revision = revision;
        notes.ready.insert(queue); // more leases may be allowed now
        self.reindex(queue);
        Ok(Reply::Done)
    }

    /// O(log queues), plus the sources the shard remembers; its messages are swept later. Deleting what is not there only
    /// raises the revision.
    pub(crate) fn delete(
        &mut self,
        queue: QueueId,
        revision: u64,
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        if revision < self.revision_min {
            return Err(Refusal::StaleRevision { revision_min: self.revision_min });
        }
        self.revision_min = revision;
        if let Some(shard) = self.shards.remove(&queue) {
            self.unindex(&shard);
            self.garbage.take_all(*shard);
            let sequence = self.store.next_sequence - 1;
            notes.event(queue, sequence, || EventKind::Deleted);
        }
        Ok(Reply::Done)
    }

    /// O(log queues); the messages are swept later.
    pub(crate) fn purge(&mut self, queue: QueueId, notes: &mut Notes) -> Result<Reply, Refusal> {
        let shard = self.shards.get_mut(&queue).ok_or(Refusal::UnknownQueue)?;
        shard.usage.totals.purged += shard.length();
        shard.purged_sequence = self.store.next_sequence;
        self.garbage.take_living(shard);
        self.reindex(queue);
        let sequence = self.store.next_sequence - 1;
        notes.event(queue, sequence, || EventKind::Purged);
        Ok(Reply::Done)
    }
}
