//! The types of Raft entries as the log knows them: opaque bytes, and where replicas live.

use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_std::LeaderId;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, RaftTypeConfig};

use crate::codec::{NORMAL, NORMAL_PREFIX_BYTES};

/// One Raft group. All groups of a node share its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// What an entry carries; opaque here. It keeps what stands before it in the body of the entry, so that the state machine, the log and
/// the network all share one buffer.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    body: Bytes,
}

impl Payload {
    /// What a buffer that is to become a payload begins with.
    pub const PREFIX: [u8; NORMAL_PREFIX_BYTES as usize] = [NORMAL];

    /// Takes over a buffer that begins with [`Payload::PREFIX`]; `None` when it does not.
    pub fn from_prefixed(body: Bytes) -> Option<Self> {
        body.starts_with(&Self::PREFIX).then_some(Self { body })
    }

    pub fn copy_of(bytes: &[u8]) -> Self {
        Self { body: [&Self::PREFIX, bytes].concat().into() }
    }

    /// What is carried, without what stands before it.
    pub fn bytes(&self) -> Bytes {
        self.body.slice(Self::PREFIX.len()..)
    }

    pub fn len_bytes(&self) -> usize {
        self.body.len() - Self::PREFIX.len()
    }

    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Payload({} bytes)", self.len_bytes())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// Where a replica lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaNode {
    pub node_id: u64,
    /// host:port of the node's peer listener when the replica was made.
    pub address: String,
}

impl fmt::Display for ReplicaNode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "node {} at {}", self.node_id, self.address)
    }
}

type Leader = LeaderId<u64, u64>;
/// Names the leader of an entry: its term.
pub type CommittedLeaderId = <Leader as RaftLeaderId>::Committed;
pub type LogId = openraft::LogId<CommittedLeaderId>;
pub type Vote = openraft::impls::Vote<Leader>;
pub type Body = EntryPayload<Payload, u64, ReplicaNode>;
pub type Entry = openraft::Entry<CommittedLeaderId, Body>;
pub type Membership = openraft::Membership<u64, ReplicaNode>;
pub type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, u64, ReplicaNode>;

/// The id of the entry at `index` that the leader of `term` made.
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

/// The Raft types that the log can store; what a state machine answers is left open.
pub trait LogTypes:
    RaftTypeConfig<
        D = Payload,
        NodeId = u64,
        Node = ReplicaNode,
        Term = u64,
        LeaderId = Leader,
        Vote = Vote,
        Payload = Body,
        Entry = Entry,
    >
{
}

impl<C> LogTypes for C where
    C: RaftTypeConfig<
            D = Payload,
            NodeId = u64,
            Node = ReplicaNode,
            Term = u64,
            LeaderId = Leader,
            Vote = Vote,
            Payload = Body,
            Entry = Entry,
        >
{
}
