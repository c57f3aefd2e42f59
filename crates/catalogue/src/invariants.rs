//! What must hold after every command.

use std::collections::{BTreeMap, BTreeSet};

use crate::queues::DELETED_MAX;
use crate::requests::SESSIONS_MAX;
use crate::state::Catalogue;

impl Catalogue {
    /// # Errors
    /// Says which rule is broken, and by what.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.check_replicas()?;
        self.check_queues()?;
        if let Some(node) = self.nodes.values().find(|node| node.is_catalogue_voter && node.is_leaving) {
            return Err(format!("node {} is leaving and votes for the catalogue", node.name));
        }
        let voters = self.nodes.values().filter(|node| node.is_catalogue_voter).count();
        if self.cluster.is_some() && voters.is_multiple_of(2) {
            return Err(format!("{voters} nodes vote for the catalogue"));
        }
        Ok(())
    }

    fn check_replicas(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for node in self.nodes.values() {
            if node.id >= self.next_node || !seen.insert(node.catalogue_replica) {
                return Err(format!("node {} reuses an id", node.name));
            }
        }
        for partition in self.partitions.values() {
            let id = partition.id;
            let on = partition.replicas.iter().map(|replica| replica.node).collect::<BTreeSet<_>>();
            if on.len() != partition.replicas.len() || on.is_empty() {
                return Err(format!(
                    "partition {id} is on {} different nodes of {}",
                    on.len(),
                    partition.replicas.len()
                ));
            }
            let both = partition.replicas.iter().chain(&partition.previous);
            if both.clone().map(|replica| replica.node).collect::<BTreeSet<_>>().len() != both.clone().count()
            {
                return Err(format!("partition {id} has two replicas on one node"));
            }
            for replica in both {
                if replica.id >= self.next_replica || !seen.insert(replica.id) {
                    return Err(format!("partition {id} reuses replica {}", replica.id));
                }
                if !self.nodes.contains_key(&replica.node) {
                    return Err(format!(
                        "partition {id} is on node {}, which is not in the cluster",
                        replica.node
                    ));
                }
            }
            if let Some(left) = on.iter().find(|node| self.nodes.get(node).is_none_or(|node| node.is_leaving))
            {
                return Err(format!("partition {id} shall be on node {left}, which is leaving"));
            }
            if partition.is_settled && !partition.is_founded {
                return Err(format!("partition {id} is settled and was never founded"));
            }
            if partition.is_settled && !partition.previous.is_empty() {
                return Err(format!("partition {id} is settled and has previous replicas"));
            }
        }
        Ok(())
    }

    fn check_queues(&self) -> Result<(), String> {
        let mut shards_on: BTreeMap<u32, u64> = BTreeMap::new();
        let mut sources: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        for queue in self.queues.iter() {
            if queue.id >= self.next_queue {
                return Err(format!("queue {} has an id that was not given out", queue.name));
            }
            if queue.shards.iter().collect::<BTreeSet<_>>().len() != queue.shards.len()
                || queue.shards.is_empty()
            {
                return Err(format!("queue {} has shards on the same partition, or none", queue.name));
            }
            if queue.revision > self.revision
                || !queue.shards.iter().all(|id| self.partitions.contains_key(id))
            {
                return Err(format!("queue {} is ahead of the catalogue or has a shard nowhere", queue.name));
            }
            queue.shards.iter().for_each(|shard| *shards_on.entry(*shard).or_default() += 1);
            if let Some(dead_letter) = queue.settings.dead_letter {
                let Some(target) = self.queues.get(dead_letter.queue) else {
                    return Err(format!("the dead-letter queue of {} does not exist", queue.name));
                };
                if target.id == queue.id || target.settings.kind != queue.settings.kind {
                    return Err(format!("the dead-letter queue of {} does not suit it", queue.name));
                }
                sources.entry(dead_letter.queue).or_default().insert(queue.name.clone());
            }
        }
        if !self.queues.agree() || sources != self.dead_letter_sources {
            return Err("an index of the queues is wrong".to_owned());
        }
        if self.requests.len() > SESSIONS_MAX {
            return Err(format!("{} clients are remembered", self.requests.len()));
        }
        if self.deleted.len() > DELETED_MAX {
            return Err(format!("{} deleted queues are remembered", self.deleted.len()));
        }
        let counted = |id: &u32| shards_on.get(id).copied().unwrap_or(0);
        match self.partitions.values().find(|partition| partition.shards != counted(&partition.id)) {
            Some(partition) => Err(format!("partition {} miscounts its shards", partition.id)),
            None => Ok(()),
        }
    }
}
