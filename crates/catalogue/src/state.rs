//! What the catalogue knows. The records are their own encoding in snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use crate::records::Records;
use crate::requests::Requests;
use crate::settings::QueueSettings;
use crate::{NodeId, PartitionId, QueueId, ReplicaId};

/// The cluster as a whole.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Cluster {
    /// 16 random bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// 32 random bytes, from which receipts are sealed.
    #[prost(bytes = "vec", tag = "2")]
    pub secret: Vec<u8>,
    /// Replicas of each partition.
    #[prost(uint32, tag = "3")]
    pub replication: u32,
    /// The state machines' effective version.
    #[prost(uint32, tag = "4")]
    pub version: u32,
}

/// A process that holds replicas.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    /// host:port where other nodes reach it.
    #[prost(string, tag = "3")]
    pub peer_address: String,
    /// host:port where clients reach it.
    #[prost(string, tag = "4")]
    pub client_address: String,
    /// Its replica of the catalogue; every node has one.
    #[prost(uint64, tag = "5")]
    pub catalogue_replica: u64,
    /// It is to be removed once nothing is left on it.
    #[prost(bool, tag = "6")]
    pub is_leaving: bool,
    /// Its replica of the catalogue votes.
    #[prost(bool, tag = "7")]
    pub is_catalogue_voter: bool,
}

/// One replica of a partition.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Replica {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub node: u64,
}

impl Replica {
    pub fn replica_id(&self) -> ReplicaId {
        ReplicaId(self.id)
    }

    pub fn node_id(&self) -> NodeId {
        NodeId(self.node)
    }
}

/// One Raft group of queue shards.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Partition {
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// Where it shall be; the first is where it is best led.
    #[prost(message, repeated, tag = "2")]
    pub replicas: Vec<Replica>,
    /// Where it was, as long as the Raft group may still need them.
    #[prost(message, repeated, tag = "3")]
    pub previous: Vec<Replica>,
    /// The Raft group consists of exactly `replicas`.
    #[prost(bool, tag = "4")]
    pub is_settled: bool,
    /// It was settled once: its Raft group exists and must never be founded again.
    #[prost(bool, tag = "5")]
    pub is_founded: bool,
    /// Shards of queues on it.
    #[prost(uint64, tag = "6")]
    pub shards: u64,
    /// Its Raft group is founded by the state that comes from a backup, and must not be founded empty.
    #[prost(bool, tag = "7")]
    pub awaits_state: bool,
}

impl Partition {
    pub fn partition_id(&self) -> PartitionId {
        PartitionId(self.id)
    }

    /// The replica on a node, current or previous.
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        let all = self.replicas.iter().chain(&self.previous);
        all.into_iter().find(|replica| replica.node == node.0).map(Replica::replica_id)
    }
}

/// A queue, as its users made it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Queue {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, required, tag = "3")]
    pub settings: QueueSettings,
    /// Partitions that hold its shards, in the order in which message groups are dealt to them.
    #[prost(uint32, repeated, tag = "4")]
    pub shards: Vec<u32>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub tags: BTreeMap<String, String>,
    #[prost(uint64, tag = "6")]
    pub created_wall_ms: u64,
    #[prost(uint64, tag = "7")]
    pub modified_wall_ms: u64,
    /// Index of the catalogue's entry that changed it last.
    #[prost(uint64, tag = "8")]
    pub revision: u64,
    /// When a paced purge was last allowed.
    #[prost(uint64, tag = "9")]
    pub purged_wall_ms: u64,
}

impl Queue {
    pub fn queue_id(&self) -> QueueId {
        QueueId(self.id)
    }

    pub fn partitions(&self) -> impl ExactSizeIterator<Item = PartitionId> + '_ {
        self.shards.iter().map(|shard| PartitionId(*shard))
    }
}

/// The whole catalogue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalogue {
    pub(crate) cluster: Option<Cluster>,
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) partitions: BTreeMap<u32, Partition>,
    pub(crate) queues: Records,
    /// Names of queues by the dead-letter queue that they send to.
    pub(crate) dead_letter_sources: BTreeMap<u64, BTreeSet<String>>,
    /// When queues were deleted whose names shall rest for a while.
    pub(crate) deleted: BTreeMap<String, u64>,
    pub(crate) requests: Requests,
    pub(crate) next_node: u64,
    pub(crate) next_replica: u64,
    pub(crate) next_queue: u64,
    /// Index of the last entry that changed anything.
    pub(crate) revision: u64,
}

impl Catalogue {
    /// The catalogue of a cluster that has not been founded.
    pub fn new() -> Self {
        Self { next_node: 1, next_replica: 1, next_queue: 1, ..Self::default() }
    }

    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// In the order of their ids.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.values()
    }

    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id.0)
    }

    pub fn node_by_name(&self, name: &str) -> Option<&Node> {
        self.nodes.values().find(|node| node.name == name)
    }

    /// In the order of their ids.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = &Partition> {
        self.partitions.values()
    }

    pub fn partition(&self, id: PartitionId) -> Option<&Partition> {
        self.partitions.get(&id.0)
    }

    pub fn queue(&self, id: QueueId) -> Option<&Arc<Queue>> {
        self.queues.get(id.0)
    }

    pub fn queue_by_name(&self, name: &str) -> Option<&Arc<Queue>> {
        self.queues.named(name)
    }

    /// Queues whose names start with `prefix` and come after `after`, in the order of their names.
    pub fn queues_named<'a>(&'a self, prefix: &'a str, after: &str) -> impl Iterator<Item = &'a Queue> + 'a {
        let start = if after >= prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        self.queues.names_from(start).take_while(move |queue| queue.name.starts_with(prefix))
    }

    /// Names of the queues whose dead-letter queue this is, after `after`, in order.
    pub fn dead_letter_sources<'a>(&'a self, id: QueueId, after: &str) -> impl Iterator<Item = &'a str> {
        let after = (Bound::Excluded(after), Bound::Unbounded);
        let sources = self.dead_letter_sources.get(&id.0);
        sources.into_iter().flat_map(move |names| names.range::<str, _>(after)).map(String::as_str)
    }

    pub fn queues(&self) -> impl ExactSizeIterator<Item = &Queue> {
        self.queues.iter().map(Arc::as_ref)
    }

    /// Whether a queue ever had this id.
    pub fn has_given_out(&self, id: QueueId) -> bool {
        id.0 < self.next_queue
    }

    /// Index of the last entry that changed anything.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}
