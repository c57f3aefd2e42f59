//! Executing commands: the cluster, its nodes and its partitions. Queues are in [`crate::queues`].

use std::collections::BTreeSet;

use prost::Message as _;

use crate::command::{
    AddNode, AddPartitions, Command, DecodeError, ForgetNode, Found, Founder, Kind, PlacePartition,
    RemoveNode, SettlePartition, UpdateNode,
};
use crate::replicas::nodes_of;
use crate::reply::{Refusal, Reply};
use crate::state::{Catalogue, Cluster, Node};

pub const PARTITIONS_MAX: usize = 1_024;
/// Replicas of the catalogue that vote; the others follow.
const CATALOGUE_VOTERS_MAX: usize = 5;
pub const NAME_BYTES_MAX: usize = 80;
const ADDRESS_BYTES_MAX: usize = 255;
/// The highest id that founders may bring; those above are left to be given out.
const FOUNDER_ID_MAX: u64 = u64::MAX / 2;
const CLUSTER_ID_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;

impl Catalogue {
    /// Executes a command; `log_index` is the index of its entry.
    ///
    /// # Errors
    /// When the bytes are not a command that this version knows: nothing has changed.
    pub fn apply(&mut self, log_index: u64, command: &[u8]) -> Result<Reply, DecodeError> {
        let Command { kind, request } = Command::decode(command)?;
        let kind = kind.ok_or(DecodeError::Unknown)?;
        let is_founding = matches!(kind, Kind::Found(_));
        if is_founding != self.cluster.is_none() {
            return Ok(if is_founding {
                Reply::refused(Refusal::AlreadyFounded, "the cluster was founded before")
            } else {
                Reply::refused(
                    Refusal::NotFounded,
                    "the cluster has not been founded: run `leasehold cluster init`",
                )
            });
        }
        if request.is_some_and(|request| !self.requests.admit(log_index, &request)) {
            return Ok(Reply::refused(Refusal::RequestOver, "the client has given this request up"));
        }
        let reply = self.execute(log_index, kind);
        if !matches!(reply, Reply::Refused { .. }) {
            self.revision = log_index;
        }
        Ok(reply)
    }

    fn execute(&mut self, log_index: u64, kind: Kind) -> Reply {
        match kind {
            Kind::Found(found) => self.found(found),
            Kind::AddNode(add) => self.add_node(add),
            Kind::UpdateNode(update) => self.update_node(update),
            Kind::RemoveNode(remove) => self.remove_node(&remove),
            Kind::ForgetNode(forget) => self.forget_node(&forget),
            Kind::PlacePartition(place) => self.place_partition(&place),
            Kind::Rebalance(rebalance) => self.rebalance(rebalance.moves_max),
            Kind::SettlePartition(settle) => self.settle_partition(&settle),
            Kind::AddPartitions(add) => self.add_partitions(&add),
            Kind::CreateQueue(create) => self.create_queue(log_index, create),
            Kind::SetQueue(set) => self.set_queue(log_index, set),
            Kind::TagQueue(tag) => self.tag_queue(log_index, tag),
            Kind::DeleteQueue(delete) => self.delete_queue(delete),
            Kind::PacePurge(pace) => self.pace_purge(&pace),
            Kind::SetVersion(set) => {
                if let Some(cluster) = &mut self.cluster {
                    cluster.version = cluster.version.max(set.version);
                }
                Reply::Done
            }
        }
    }

    pub(crate) fn found(&mut self, found: Found) -> Reply {
        let invalid = |detail: String| Reply::refused(Refusal::InvalidArgument, detail);
        if ![1, 3, 5].contains(&found.replication) {
            return invalid(format!("replication is {}: it can be 1, 3 or 5", found.replication));
        }
        if found.partitions == 0 || found.partitions as usize > PARTITIONS_MAX {
            return invalid(format!("partitions is {}: it can be 1 to {PARTITIONS_MAX}", found.partitions));
        }
        if found.founders.is_empty() || (found.founders.len() as u32) < found.replication {
            let nodes = found.founders.len();
            return invalid(format!("{} replicas need as many nodes: there are {nodes}", found.replication));
        }
        if let Some(detail) = founders_fault(&found.founders).or_else(|| secrets_fault(&found)) {
            return invalid(detail);
        }
        for founder in found.founders {
            self.next_node = self.next_node.max(founder.node + 1);
            self.next_replica = self.next_replica.max(founder.catalogue_replica + 1);
            let Founder { node, name, peer_address, client_address, catalogue_replica } = founder;
            let node =
                Node { id: node, name, peer_address, client_address, catalogue_replica, ..Node::default() };
            self.nodes.insert(node.id, node);
        }
        self.cluster = Some(Cluster {
            id: found.cluster_id,
            secret: found.secret,
            replication: found.replication,
            version: found.version.max(1),
        });
        self.choose_catalogue_voters();
        self.grow(found.partitions as usize);
        Reply::Done
    }

    fn add_node(&mut self, add: AddNode) -> Reply {
        if let Some(node) = self.node_by_name(&add.name) {
            if node.peer_address == add.peer_address && !node.is_leaving {
                return Reply::Node { id: node.id, catalogue_replica: node.catalogue_replica };
            }
            let detail = format!("a node named {} is in the cluster, at {}", node.name, node.peer_address);
            return Reply::refused(Refusal::NodeExists, detail);
        }
        if let Some(detail) =
            name_fault("a node's name", &add.name).or_else(|| address_fault(&add.peer_address))
        {
            return Reply::refused(Refusal::InvalidArgument, detail);
        }
        let (id, catalogue_replica) = (self.next_node, self.take_replica_id());
        self.next_node += 1;
        let AddNode { name, peer_address, client_address } = add;
        self.nodes.insert(
            id,
            Node { id, name, peer_address, client_address, catalogue_replica, ..Node::default() },
        );
        self.choose_catalogue_voters();
        Reply::Node { id, catalogue_replica }
    }

    fn update_node(&mut self, update: UpdateNode) -> Reply {
        let Some(node) = self.nodes.get_mut(&update.id) else { return unknown_node(update.id) };
        if let Some(detail) =
            address_fault(&update.peer_address).or_else(|| address_fault(&update.client_address))
        {
            return Reply::refused(Refusal::InvalidArgument, detail);
        }
        node.peer_address = update.peer_address;
        node.client_address = update.client_address;
        Reply::Done
    }

    fn remove_node(&mut self, remove: &RemoveNode) -> Reply {
        let Some(node) = self.node_by_name(&remove.name) else {
            return Reply::refused(Refusal::UnknownNode, format!("no node is named {}", remove.name));
        };
        let id = node.id;
        if self.active_nodes().iter().all(|active| *active == id) {
            let detail = format!("{} is the last node: nothing could take its place", remove.name);
            return Reply::refused(Refusal::LastNode, detail);
        }
        let is_starting =
            |partition: &&crate::Partition| !partition.is_founded && nodes_of(partition).contains(&id);
        if let Some(partition) = self.partitions.values().find(is_starting) {
            // Its first members must not change while they found the group, or it could be founded twice.
            let detail =
                format!("partition {} on {} is still starting: try again later", partition.id, remove.name);
            return Reply::refused(Refusal::NotSettled, detail);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.is_leaving = true;
        }
        self.choose_catalogue_voters();
        let affected = self.partitions.values().filter(|partition| nodes_of(partition).contains(&id));
        let affected = affected.map(|partition| partition.id).collect::<Vec<_>>();
        self.place_anew(affected);
        Reply::Done
    }

    fn forget_node(&mut self, forget: &ForgetNode) -> Reply {
        let Some(node) = self.nodes.get(&forget.id) else { return Reply::Done };
        if !node.is_leaving || self.holds_replicas(forget.id) {
            let detail = format!(
                "node {} is still in use: remove it first, and wait until nothing is on it",
                node.name
            );
            return Reply::refused(Refusal::NodeInUse, detail);
        }
        self.nodes.remove(&forget.id);
        Reply::Done
    }

    /// Whether a partition is or was on the node.
    pub(crate) fn holds_replicas(&self, node: u64) -> bool {
        self.partitions.values().any(|partition| {
            partition.replicas.iter().chain(&partition.previous).any(|replica| replica.node == node)
        })
    }

    fn place_partition(&mut self, place: &PlacePartition) -> Reply {
        let Some(partition) = self.partitions.get(&place.partition) else {
            return unknown_partition(place.partition);
        };
        if !partition.is_settled {
            return Reply::refused(
                Refusal::NotSettled,
                format!("partition {} is being moved: try again later", place.partition),
            );
        }
        let distinct = place.nodes.iter().collect::<BTreeSet<_>>();
        if distinct.len() != place.nodes.len() || !matches!(place.nodes.len(), 1 | 3 | 5) {
            return Reply::refused(Refusal::InvalidArgument, "a partition is on 1, 3 or 5 different nodes");
        }
        if let Some(node) =
            place.nodes.iter().find(|node| self.nodes.get(node).is_none_or(|node| node.is_leaving))
        {
            return unknown_node(*node);
        }
        self.set_replicas(place.partition, &place.nodes);
        Reply::Done
    }

    fn settle_partition(&mut self, settle: &SettlePartition) -> Reply {
        let Some(partition) = self.partitions.get_mut(&settle.partition) else {
            return unknown_partition(settle.partition);
        };
        let wanted = partition.replicas.iter().map(|replica| replica.id).collect::<BTreeSet<_>>();
        if settle.replicas.iter().copied().collect::<BTreeSet<_>>() != wanted {
            return Reply::refused(Refusal::NotSettled, "the partition has been placed elsewhere since");
        }
        partition.previous.clear();
        partition.is_settled = true;
        partition.is_founded = true;
        partition.awaits_state = false;
        Reply::Done
    }

    fn add_partitions(&mut self, add: &AddPartitions) -> Reply {
        let count = self.partitions.len() + add.count as usize;
        if add.count == 0 || count > PARTITIONS_MAX {
            let detail =
                format!("{} partitions more would be {count}: there can be 1 to {PARTITIONS_MAX}", add.count);
            return Reply::refused(Refusal::InvalidArgument, detail);
        }
        self.grow(count);
        Reply::Done
    }

    pub(crate) fn take_replica_id(&mut self) -> u64 {
        self.next_replica += 1;
        self.next_replica - 1
    }

    pub(crate) fn active_nodes(&self) -> Vec<u64> {
        self.nodes.values().filter(|node| !node.is_leaving).map(|node| node.id).collect()
    }

    /// The oldest nodes vote, an odd number of them.
    fn choose_catalogue_voters(&mut self) {
        let active = self.active_nodes();
        let odd = active.len() - usize::from(active.len().is_multiple_of(2) && active.len() > 1);
        let voters = active.iter().take(odd.min(CATALOGUE_VOTERS_MAX)).copied().collect::<BTreeSet<_>>();
        for node in self.nodes.values_mut() {
            node.is_catalogue_voter = voters.contains(&node.id);
        }
    }
}

fn unknown_node(id: u64) -> Reply {
    Reply::refused(Refusal::UnknownNode, format!("no node {id} is in the cluster, or it is leaving"))
}

fn unknown_partition(id: u32) -> Reply {
    Reply::refused(Refusal::UnknownPartition, format!("there is no partition {id}"))
}

fn founders_fault(founders: &[Founder]) -> Option<String> {
    let count_of = |values: BTreeSet<String>| values.len();
    let names = count_of(founders.iter().map(|founder| founder.name.clone()).collect());
    let addresses = count_of(founders.iter().map(|founder| founder.peer_address.clone()).collect());
    if names != founders.len() || addresses != founders.len() {
        return Some("two nodes have the same name or the same address".to_owned());
    }
    let ids = founders.iter().map(|founder| founder.node).collect::<BTreeSet<_>>();
    let replicas = founders.iter().map(|founder| founder.catalogue_replica).collect::<BTreeSet<_>>();
    if ids.len() != founders.len() || replicas.len() != founders.len() {
        return Some("two nodes have the same id or the same replica of the catalogue".to_owned());
    }
    if let Some(id) = ids.iter().chain(&replicas).find(|id| !(1..=FOUNDER_ID_MAX).contains(*id)) {
        return Some(format!("the id {id} of a node or replica: it can be 1 to {FOUNDER_ID_MAX}"));
    }
    founders.iter().find_map(|founder| {
        name_fault("a node's name", &founder.name).or_else(|| address_fault(&founder.peer_address))
    })
}

fn secrets_fault(found: &Found) -> Option<String> {
    let lengths = [
        ("cluster_id", found.cluster_id.len(), CLUSTER_ID_BYTES),
        ("secret", found.secret.len(), SECRET_BYTES),
    ];
    let (name, len, wanted) = lengths.into_iter().find(|(_, len, wanted)| len != wanted)?;
    Some(format!("{name} has {len} bytes: it must have {wanted}"))
}

fn address_fault(address: &str) -> Option<String> {
    let fits = !address.is_empty() && address.len() <= ADDRESS_BYTES_MAX && address.contains(':');
    (!fits).then(|| format!("{address:?} is no address: give host:port"))
}

/// What is wrong with a name, if anything.
pub fn name_fault(what: &str, name: &str) -> Option<String> {
    let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Some(format!("{what} has 1 to {NAME_BYTES_MAX} characters: {name:?} has {}", name.len()));
    }
    let wrong = name.chars().find(|character| !allowed(*character))?;
    Some(format!("{what} consists of letters, digits, '-', '_' and '.': {name:?} has {wrong:?}"))
}
