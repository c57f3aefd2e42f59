//! Moving the replicas of partitions between nodes: new partitions, nodes that leave, and evenness.
//!
//! The ring and the load are built once for each command, however many partitions it places.

use crate::placement::{Load, Ring};
use crate::reply::Reply;
use crate::state::{Catalogue, Partition, Replica};

/// One replica to be moved.
struct Move {
    partition: u32,
    from: u64,
    to: u64,
}

impl Catalogue {
    /// First fills partitions that shrank for want of nodes, then moves from full nodes to empty ones.
    pub(crate) fn rebalance(&mut self, moves_max: u32) -> Reply {
        let moves_max = moves_max as usize;
        let short = self.short_partitions().take(moves_max).collect::<Vec<_>>();
        let moves_left = moves_max - short.len();
        self.place_anew(short);
        let active = self.active_nodes();
        let mut load = self.load();
        for _ in 0..moves_left {
            let Some(next) = self.next_move(&active, &load) else { break };
            let Some(partition) = self.partitions.get(&next.partition) else { break };
            let old = nodes_of(partition);
            let new = old.iter().map(|node| if *node == next.from { next.to } else { *node });
            let new = new.collect::<Vec<_>>();
            load.remove(&old);
            load.add(&new);
            self.set_replicas(next.partition, &new);
        }
        self.spread_leads();
        Reply::Done
    }

    /// How many settled partitions have fewer replicas than there is room for: [`crate::Rebalance`] gives them what they lack.
    pub fn partitions_short(&self) -> usize {
        self.short_partitions().count()
    }

    /// Settled partitions that have fewer replicas than there is room for.
    fn short_partitions(&self) -> impl Iterator<Item = u32> {
        let replication = self.cluster.as_ref().map_or(0, |cluster| cluster.replication as usize);
        let count = replication.min(self.active_nodes().len());
        let short = move |partition: &&Partition| partition.is_settled && partition.replicas.len() < count;
        self.partitions.values().filter(short).map(|partition| partition.id)
    }

    /// From the fullest node to the emptiest, or the next such pair if nothing there may be moved now.
    fn next_move(&self, active: &[u64], load: &Load) -> Option<Move> {
        let mut by_load = active.to_vec();
        by_load.sort_by_key(|node| load.replicas_on(*node));
        for from in by_load.iter().rev() {
            for to in &by_load {
                if load.replicas_on(*from) <= load.replicas_on(*to) + 1 {
                    break;
                }
                let movable = |partition: &&Partition| {
                    let is_on = |node| partition.replicas.iter().any(|replica| replica.node == node);
                    partition.is_settled && is_on(*from) && !is_on(*to)
                };
                if let Some(partition) = self.partitions.values().find(movable) {
                    return Some(Move { partition: partition.id, from: *from, to: *to });
                }
            }
        }
        None
    }

    /// Changes who shall lead, where one node shall lead more than its share; moves nothing.
    fn spread_leads(&mut self) {
        let active = self.active_nodes();
        let mut load = self.load();
        for partition in self.partitions.values_mut() {
            let replicas = &mut partition.replicas;
            let leads_on = |at: usize| load.leads_on(replicas[at].node);
            let candidates = (0..replicas.len()).filter(|at| active.contains(&replicas[*at].node));
            let Some(best) = candidates.min_by_key(|at| leads_on(*at)) else { continue };
            if leads_on(best) + 1 < leads_on(0) {
                load.move_lead(replicas[0].node, replicas[best].node);
                replicas.swap(0, best);
            }
        }
    }

    /// Adds partitions until there are `count`.
    pub(crate) fn grow(&mut self, count: usize) {
        let replication = self.cluster.as_ref().map_or(0, |cluster| cluster.replication as usize);
        let active = self.active_nodes();
        let ring = Ring::new(active.iter().copied());
        let mut load = self.load();
        for id in self.partitions.len() as u32..count as u32 {
            self.partitions.insert(id, Partition { id, ..Partition::default() });
            let mean_ceil = (self.partitions.len() * replication).div_ceil(active.len().max(1));
            let nodes = ring.choose(id, replication, &[], &load, mean_ceil);
            load.add(&nodes);
            self.set_replicas(id, &nodes);
        }
    }

    /// Places partitions on active nodes; replicas on such nodes stay where they are.
    pub(crate) fn place_anew(&mut self, partitions: Vec<u32>) {
        let replication = self.cluster.as_ref().map_or(0, |cluster| cluster.replication as usize);
        let active = self.active_nodes();
        let mean_ceil = (self.partitions.len() * replication).div_ceil(active.len().max(1));
        let ring = Ring::new(active);
        let mut load = self.load();
        for id in partitions {
            let Some(partition) = self.partitions.get(&id) else { continue };
            let old = nodes_of(partition);
            load.remove(&old);
            let nodes = ring.choose(id, replication, &old, &load, mean_ceil);
            load.add(&nodes);
            self.set_replicas(id, &nodes);
        }
    }

    /// Makes these nodes, in this order, the partition's. A node that stays keeps its replica, and so does one that gets the
    /// partition back before it was gone: a second replica of one group on a node would have no place there.
    pub(crate) fn set_replicas(&mut self, id: u32, nodes: &[u64]) {
        let Some(partition) = self.partitions.get(&id) else { return };
        let known = partition.replicas.iter().chain(&partition.previous).copied().collect::<Vec<_>>();
        let mut replicas = Vec::with_capacity(nodes.len());
        for node in nodes {
            let kept = known.iter().find(|replica| replica.node == *node).copied();
            replicas.push(kept.unwrap_or_else(|| Replica { id: self.take_replica_id(), node: *node }));
        }
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        let old = &partition.replicas;
        let is_same = old.len() == replicas.len() && old.iter().all(|replica| replicas.contains(replica));
        if !is_same {
            partition.previous = known.into_iter().filter(|replica| !replicas.contains(replica)).collect();
            partition.is_settled = false;
        }
        partition.replicas = replicas;
    }

    fn load(&self) -> Load {
        let mut load = Load::default();
        self.partitions.values().for_each(|partition| load.add(&nodes_of(partition)));
        load
    }
}

pub fn nodes_of(partition: &Partition) -> Vec<u64> {
    partition.replicas.iter().map(|replica| replica.node).collect()
}
