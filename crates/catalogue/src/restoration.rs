//! The catalogue of a new cluster that takes over the queues of another one, from a backup.
//!
//! What users made is taken over: queues under their ids, the partitions that hold their shards, the revisions under which those were
//! configured. What belonged to the old cluster is not: its id and secret, so no receipt of it is good here; nodes, replicas, placement.

use crate::command::Found;
use crate::reply::Reply;
use crate::state::{Catalogue, Cluster};

impl Catalogue {
    /// Founds a cluster that begins with these queues, and waits for the states of its partitions. It has as many partitions as
    /// there were, whatever `found` says.
    ///
    /// # Errors
    /// Says what is wrong with `found`, as the founding of an empty cluster does.
    pub fn found_again(self, found: Found) -> Result<Self, String> {
        let Some(Cluster { version, .. }) = self.cluster else {
            return Err("the catalogue is of a cluster that was never founded".to_owned());
        };
        let partitions = self.partitions.len() as u32;
        let mut founded = Self::new();
        if let Reply::Refused { detail, .. } = founded.found(Found { partitions, ..found }) {
            return Err(detail);
        }
        if let Some(cluster) = &mut founded.cluster {
            cluster.version = version;
        }
        for (id, partition) in &mut founded.partitions {
            partition.awaits_state = true;
            partition.shards = self.partitions.get(id).map_or(0, |old| old.shards);
        }
        Ok(Self {
            queues: self.queues,
            dead_letter_sources: self.dead_letter_sources,
            deleted: self.deleted,
            requests: self.requests,
            next_queue: self.next_queue,
            revision: self.revision,
            ..founded
        })
    }
}
