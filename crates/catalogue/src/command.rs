//! What can be asked of the catalogue.

use std::collections::BTreeMap;

use prost::Message as _;

use crate::settings::QueueChange;

/// Bytes that are no command of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("not a catalogue command: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("a catalogue command of a newer version: upgrade this node")]
    Unknown,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Command {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15")]
    pub kind: Option<Kind>,
    /// Whose request it is, where that matters.
    #[prost(message, optional, tag = "16")]
    pub request: Option<RequestName>,
}

/// The name of a client's request.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct RequestName {
    /// Chosen at random by the client.
    #[prost(fixed64, tag = "1")]
    pub session: u64,
    /// Grows with each request of the session.
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    /// Every request of the session below this one is over for the client.
    #[prost(uint64, tag = "3")]
    pub completed_below: u64,
}

impl Command {
    /// The bytes that [`crate::Catalogue::apply`] takes.
    pub fn bytes(kind: Kind) -> Vec<u8> {
        Self::bytes_for(None, kind)
    }

    /// The same, under the name of a client's request.
    pub fn bytes_for(request: Option<RequestName>, kind: Kind) -> Vec<u8> {
        Self { kind: Some(kind), request }.encode_to_vec()
    }
}

/// The kinds of commands.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    #[prost(message, tag = "1")]
    Found(Found),
    #[prost(message, tag = "2")]
    AddNode(AddNode),
    #[prost(message, tag = "3")]
    UpdateNode(UpdateNode),
    #[prost(message, tag = "4")]
    RemoveNode(RemoveNode),
    #[prost(message, tag = "5")]
    ForgetNode(ForgetNode),
    #[prost(message, tag = "6")]
    PlacePartition(PlacePartition),
    #[prost(message, tag = "7")]
    Rebalance(Rebalance),
    #[prost(message, tag = "8")]
    SettlePartition(SettlePartition),
    #[prost(message, tag = "9")]
    AddPartitions(AddPartitions),
    #[prost(message, tag = "10")]
    CreateQueue(CreateQueue),
    #[prost(message, tag = "11")]
    SetQueue(SetQueue),
    #[prost(message, tag = "12")]
    TagQueue(TagQueue),
    #[prost(message, tag = "13")]
    DeleteQueue(DeleteQueue),
    #[prost(message, tag = "14")]
    SetVersion(SetVersion),
    #[prost(message, tag = "15")]
    PacePurge(PacePurge),
}

/// A node that is there when the cluster is founded.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Founder {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub peer_address: String,
    #[prost(string, tag = "4")]
    pub client_address: String,
    #[prost(uint64, tag = "5")]
    pub catalogue_replica: u64,
}

/// Makes the cluster.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Found {
    #[prost(bytes = "vec", tag = "1")]
    pub cluster_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub secret: Vec<u8>,
    /// 1, 3 or 5.
    #[prost(uint32, tag = "3")]
    pub replication: u32,
    /// 1 to 1,024.
    #[prost(uint32, tag = "4")]
    pub partitions: u32,
    #[prost(message, repeated, tag = "5")]
    pub founders: Vec<Founder>,
    /// The version that all founders know; 0 is 1.
    #[prost(uint32, tag = "6")]
    pub version: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AddNode {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub peer_address: String,
    #[prost(string, tag = "3")]
    pub client_address: String,
}

/// A node that came back under another address.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateNode {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub peer_address: String,
    #[prost(string, tag = "3")]
    pub client_address: String,
}

/// Places everything that is on the node elsewhere.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveNode {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// Ends a removal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForgetNode {
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

/// Places a partition by hand, on these nodes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlacePartition {
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    #[prost(uint64, repeated, tag = "2")]
    pub nodes: Vec<u64>,
}

/// Moves replicas from full nodes to empty ones.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rebalance {
    #[prost(uint32, tag = "1")]
    pub moves_max: u32,
}

/// The leader of a partition says that its Raft group consists of exactly these replicas.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SettlePartition {
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    #[prost(uint64, repeated, tag = "2")]
    pub replicas: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AddPartitions {
    #[prost(uint32, tag = "1")]
    pub count: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateQueue {
    #[prost(string, tag = "1")]
    pub name: String,
    /// What is absent takes its default.
    #[prost(message, required, tag = "2")]
    pub settings: QueueChange,
    /// 0 means 1.
    #[prost(uint32, tag = "3")]
    pub shards: u32,
    #[prost(btree_map = "string, string", tag = "4")]
    pub tags: BTreeMap<String, String>,
    #[prost(uint64, tag = "5")]
    pub wall_ms: u64,
    /// Refused when a queue of this name was deleted, and remembered, less than so long ago; 0 asks nothing.
    #[prost(uint64, tag = "6")]
    pub pause_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SetQueue {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, required, tag = "2")]
    pub change: QueueChange,
    #[prost(uint64, tag = "3")]
    pub wall_ms: u64,
    /// Refused when the queue's revision is another one; 0 takes any.
    #[prost(uint64, tag = "4")]
    pub if_revision: u64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub tags: BTreeMap<String, String>,
    #[prost(string, repeated, tag = "6")]
    pub tags_removed: Vec<String>,
}

/// Changes tags alone. Logs have it; what is proposed is [`SetQueue`], which changes settings and tags in one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TagQueue {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub set: BTreeMap<String, String>,
    #[prost(string, repeated, tag = "3")]
    pub remove: Vec<String>,
    #[prost(uint64, tag = "4")]
    pub wall_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteQueue {
    #[prost(string, tag = "1")]
    pub name: String,
    /// When it is deleted, for creations that ask how long ago that was; 0 remembers nothing.
    #[prost(uint64, tag = "2")]
    pub remember_wall_ms: u64,
}

/// Asks for a purge that keeps a pause after the one before. The purge itself is the partitions'.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PacePurge {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub wall_ms: u64,
    #[prost(uint64, tag = "3")]
    pub pause_ms: u64,
}

/// Raises the effective version, once every node supports it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetVersion {
    #[prost(uint32, tag = "1")]
    pub version: u32,
}
