//! Makes this node be what the catalogue says: starts and stops replicas, founds new groups, and, where it leads, changes members.
//!
//! Everything here is idempotent and repeated: after a crash at any point the next pass goes on from what it finds.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leasehold_catalogue::{ForgetNode, Kind, NodeId, Partition, PartitionId, Rebalance, SettlePartition};
use leasehold_raft_log::GroupId;
use tokio::time::timeout;

use crate::core::Core;
use crate::raft::{ReplicaNode, Role};
use crate::replica::{Replica, group_of};

/// How often a pass is made when nothing is known to have changed.
const INTERVAL: Duration = Duration::from_millis(500);
const FOUNDING_INTERVAL: Duration = Duration::from_millis(100);
/// How long a new replica is waited for before it is looked again what is wanted.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Passes are at least this far apart.
const PAUSE: Duration = Duration::from_millis(20);

/// Partitions whose members are being changed by a task of their own.
#[derive(Default)]
pub struct Moving(Mutex<HashSet<PartitionId>>);

impl Moving {
    pub fn start(&self, partition: PartitionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(partition)
    }

    pub fn end(&self, partition: PartitionId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&partition);
    }
}

/// Works until the node stops.
pub async fn run(core: Arc<Core>) {
    let mut changes = core.view.changes();
    let mut catalogue_role = core.catalogue.group.role();
    let mut followed = BTreeMap::new();
    loop {
        changes.mark_unchanged();
        let is_founding = pass(&core, &mut followed).await;
        tokio::time::sleep(PAUSE).await;
        let changed = async {
            tokio::select! {
                changed = changes.changed() => drop(changed),
                changed = catalogue_role.changed() => drop(changed),
            }
        };
        // The next pass is due either way.
        let _ = timeout(if is_founding { FOUNDING_INTERVAL } else { INTERVAL }, changed).await;
    }
}

/// Makes one pass; true while new partitions are being founded.
async fn pass(core: &Arc<Core>, followed: &mut BTreeMap<NodeId, String>) -> bool {
    let partitions = core.view.look(|catalogue| catalogue.partitions().cloned().collect::<Vec<_>>());
    follow_addresses(core, followed);
    for partition in &partitions {
        match core.router.replica(partition.partition_id()) {
            Some(replica) => retire_if_gone(core, partition, &replica).await,
            None => start_if_wanted(core, partition).await,
        }
        found_if_first(core, partition).await;
        change_members_if_leading(core, partition);
    }
    if core.catalogue.leads().is_some() {
        if let Err(error) = core.catalogue.follow_nodes().await {
            tracing::warn!(error, "the catalogue's members cannot be changed at this moment");
        }
        forget_empty_nodes(core).await;
        fill_short_partitions(core).await;
    }
    remove_left_over(core).await;
    partitions.iter().any(|partition| !partition.is_founded)
}

/// Links go where the catalogue says a node is now, when it says something new: a node that has moved tells the others itself,
/// before the catalogue can.
fn follow_addresses(core: &Core, followed: &mut BTreeMap<NodeId, String>) {
    let nodes = core.view.look(|catalogue| {
        catalogue.nodes().map(|node| (NodeId(node.id), node.peer_address.clone())).collect::<BTreeMap<_, _>>()
    });
    for (node, address) in &nodes {
        let is_new = match followed.get(node) {
            Some(before) => before != address,
            None => core.lanes.known(*node).is_none(),
        };
        if is_new && *node != core.view.here() {
            core.lanes.follow_address(*node, address);
        }
    }
    if !nodes.is_empty() {
        core.lanes.retain(|node| nodes.contains_key(&node));
    }
    *followed = nodes;
}

async fn start_if_wanted(core: &Arc<Core>, partition: &Partition) {
    let Some(replica) = partition.replica_on(core.view.here()) else { return };
    if let Err(error) = core.start_replica(partition.partition_id(), replica).await {
        tracing::error!(
            partition = partition.id,
            error,
            "a replica cannot be started; it will be tried again"
        );
    }
}

/// Ends a replica that has no place here any more, once the group can do without it.
async fn retire_if_gone(core: &Core, partition: &Partition, replica: &Arc<Replica>) {
    let wanted = partition.replica_on(core.view.here());
    if wanted.is_some_and(|wanted| wanted.0 == replica.group().replica()) {
        return;
    }
    let id = partition.partition_id();
    tracing::info!(partition = id.0, replica = replica.group().replica(), "the replica has moved away");
    core.router.remove_replica(id);
    replica.stop().await;
    remove_group(core, id).await;
}

async fn remove_group(core: &Core, id: PartitionId) {
    if let Err(error) = core.log.remove_group(group_of(id)).await {
        tracing::error!(partition = id.0, %error, "what the replica left cannot be removed");
    }
}

/// Removes what replicas left that moved away while the node was stopping: nothing else shows that they were here.
async fn remove_left_over(core: &Core) {
    let may_ask = core.is_announced() && core.catalogue.leader_node().is_some();
    if !may_ask || find_left_over(core).is_empty() {
        return;
    }
    // A copy of the catalogue that is behind does not show what was placed here last.
    let through = match core.catalogue.catch_up().await {
        Ok(through) => through,
        Err(failure) => return tracing::debug!(%failure, "what replicas left is looked at again"),
    };
    let is_shown = *core.view.applied().borrow() >= through;
    if !is_shown {
        return;
    }
    for id in find_left_over(core) {
        tracing::info!(partition = id.0, "what a replica left that has moved away is removed");
        remove_group(core, id).await;
    }
}

fn find_left_over(core: &Core) -> Vec<PartitionId> {
    let is_placed = |id| {
        core.view.look(|catalogue| {
            catalogue.partition(id).is_some_and(|partition| partition.replica_on(core.view.here()).is_some())
        })
    };
    left_over(core.log.groups(), |id| core.router.replica(id).is_some() || is_placed(id))
}

/// The partitions with a group in the log and no replica here. The catalogue's group is no partition's.
fn left_over(groups: Vec<GroupId>, has_replica: impl Fn(PartitionId) -> bool) -> Vec<PartitionId> {
    let partitions = groups.into_iter().filter_map(|group| group.0.checked_sub(1).map(PartitionId));
    partitions.filter(|id| !has_replica(*id)).collect()
}

/// A partition's group is founded once, by the node of its first replica: empty, or by the state that was brought there from a backup.
async fn found_if_first(core: &Core, partition: &Partition) {
    let is_first = partition.replicas.first().is_some_and(|first| first.node_id() == core.view.here());
    if partition.is_founded || !is_first {
        return;
    }
    let Some(replica) = core.router.replica(partition.partition_id()) else { return };
    if partition.awaits_state {
        if replica.group().members().nodes.is_empty() {
            return;
        }
    } else if let Err(error) = replica.group().initialise(core.first_members(partition)).await {
        tracing::warn!(
            partition = partition.id,
            error,
            "the group cannot be founded; it will be tried again"
        );
    }
    let is_led = !matches!(*replica.role().borrow(), Role::Follower { leader: None });
    if !is_led {
        // The other replicas may have started only after they were asked for their votes.
        replica.group().campaign().await;
    }
}

fn change_members_if_leading(core: &Arc<Core>, partition: &Partition) {
    let id = partition.partition_id();
    let Some(replica) = core.router.replica(id) else { return };
    let leads = replica.group().term_led().is_some();
    if !leads || partition.is_settled || !core.moving.start(id) {
        return;
    }
    let (core, partition) = (core.clone(), partition.clone());
    tokio::spawn(async move {
        if let Err(error) = change_members(&core, &partition, &replica).await {
            tracing::warn!(
                partition = id.0,
                error,
                "the partition's members cannot be changed at this moment"
            );
        }
        core.moving.end(id);
    });
}

async fn change_members(core: &Core, partition: &Partition, replica: &Replica) -> Result<(), String> {
    let group = replica.group();
    let members = group.members();
    for wanted in &partition.replicas {
        if !members.voters.contains(&wanted.id) {
            let node = core.replica_node(wanted.node_id());
            tracing::info!(partition = partition.id, replica = wanted.id, %node, "a new replica catches up");
            // Its node may go away, and the catalogue want another one then.
            let caught_up = timeout(LOOK_AGAIN, group.add_learner(wanted.id, node)).await;
            caught_up.map_err(|_| format!("replica {} has not caught up yet", wanted.id))??;
        }
    }
    let wanted = partition.replicas.iter().map(|replica| replica.id).collect::<BTreeSet<_>>();
    let voters = members.voters.iter().copied().collect::<BTreeSet<_>>();
    if voters != wanted || !members.is_settled() {
        let answers = |replica: &&leasehold_catalogue::Replica| {
            replica.node_id() == core.view.here() || core.lanes.is_reachable(replica.node_id())
        };
        if !is_majority(partition.replicas.iter().filter(answers).count(), wanted.len()) {
            tracing::debug!(partition = partition.id, "too few of those that shall vote answer");
            return Ok(());
        }
        group.set_voters(&wanted.iter().copied().collect::<Vec<_>>()).await?;
    }
    // Those that were to vote before the catalogue wanted others.
    for left_over in group.members().nodes.keys().filter(|replica| !wanted.contains(replica)) {
        group.remove_learner(*left_over).await?;
    }
    let settle = SettlePartition { partition: partition.id, replicas: wanted.into_iter().collect() };
    core.catalogue
        .propose(Kind::SettlePartition(settle))
        .await
        .map(drop)
        .map_err(|failure| failure.to_string())
}

/// Whether so many of `all` decide: a change that they do not decide could neither be ended nor taken back.
pub fn is_majority(count: usize, all: usize) -> bool {
    count * 2 > all
}

/// A leaving node is forgotten when nothing is on it and the catalogue does not need its vote.
async fn forget_empty_nodes(core: &Core) {
    let voters = core.catalogue.group.members().voters;
    let gone = core.view.look(|catalogue| {
        let holds = |id: u64| {
            let mut all = catalogue
                .partitions()
                .flat_map(|partition| partition.replicas.iter().chain(&partition.previous));
            all.any(|replica| replica.node == id)
        };
        let leaving =
            catalogue.nodes().filter(|node| node.is_leaving && !voters.contains(&node.catalogue_replica));
        leaving.filter(|node| !holds(node.id)).map(|node| node.id).collect::<Vec<_>>()
    });
    for id in gone {
        match core.catalogue.propose(Kind::ForgetNode(ForgetNode { id })).await {
            Ok(_) => tracing::info!(node = id, "the node has left the cluster"),
            Err(failure) => {
                tracing::warn!(node = id, %failure, "the node cannot be forgotten at this moment")
            }
        }
    }
}

/// Partitions that shrank for want of nodes, and were not settled when one was added, get what they lack. What is placed is not short
/// any more, so this happens once; and it waits for nodes that are away, or have not joined yet, since they might be chosen.
async fn fill_short_partitions(core: &Core) {
    let is_there = |node: NodeId| node == core.view.here() || core.lanes.is_reachable(node);
    let (short, nodes) = core.view.look(|catalogue| {
        let staying = catalogue.nodes().filter(|node| !node.is_leaving).map(|node| NodeId(node.id));
        (catalogue.partitions_short(), staying.collect::<Vec<_>>())
    });
    if short == 0 || !nodes.into_iter().all(is_there) {
        return;
    }
    // No more than these: to move others is asked for by whoever adds a node.
    let rebalance = Rebalance { moves_max: short as u32 };
    match core.catalogue.propose(Kind::Rebalance(rebalance)).await {
        Ok(_) => tracing::info!(partitions = short, "partitions get the replicas that they lack"),
        Err(failure) => tracing::warn!(%failure, "partitions lack replicas, and get none at this moment"),
    }
}

impl Core {
    /// Whom a partition's group is founded with.
    pub fn first_members(&self, partition: &Partition) -> BTreeMap<u64, ReplicaNode> {
        let member =
            |replica: &leasehold_catalogue::Replica| (replica.id, self.replica_node(replica.node_id()));
        partition.replicas.iter().map(member).collect()
    }

    /// Where a replica on a node is reached.
    pub fn replica_node(&self, node: NodeId) -> ReplicaNode {
        ReplicaNode { node_id: node.0, address: self.view.peer_address(node).unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue_link::CATALOGUE_GROUP;

    #[test]
    fn what_is_left_over_is_of_no_replica_and_not_the_catalogues() {
        let groups = || vec![CATALOGUE_GROUP, group_of(PartitionId(0)), group_of(PartitionId(3))];
        assert_eq!(left_over(groups(), |id| id == PartitionId(3)), [PartitionId(0)]);
        assert_eq!(left_over(groups(), |_| false), [PartitionId(0), PartitionId(3)]);
        assert!(left_over(groups(), |_| true).is_empty());
    }
}
