//! The one place that knows openraft: an upgrade touches this module and the log's storage traits.
//!
//! ```text
//!   replica, catalogue ──▶ Group (propose, lead, members) ──▶ openraft ──▶ raft-log
//!                                                             │   ▲
//!                                          network (to peers) ▼   │ serve (from peers)
//!                                                            lanes
//! ```

mod arrivals;
#[cfg(feature = "simulation")]
mod claims;
mod codec;
mod copy;
mod election;
mod group;
mod machine;
mod network;
mod serve;
mod snapshot;

use std::fmt;

use leasehold_catalogue as catalogue;
use leasehold_partition as partition;
pub use leasehold_raft_log::{GroupId, Membership, Payload, ReplicaNode};

#[cfg(feature = "simulation")]
pub use claims::{Calls, Claim};
pub use copy::{Copied, receive_copy, send_copy};
pub use group::{Group, GroupOptions, Members, Proposal, ProposeError, Role};
pub use machine::{Image, Machine, MachineError, Replacement};
pub use network::Network;
pub use serve::{GroupDirectory, Pipelines, serve_call};
pub use snapshot::receive_snapshot;

openraft::declare_raft_types!(
    /// The types that all groups of a node share.
    pub TypeConfig:
        D = Payload,
        R = Applied,
        NodeId = u64,
        Node = ReplicaNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

/// What applying one entry gave: to the leader's proposer it carries the replies, elsewhere it is dropped.
pub enum Applied {
    /// A blank or a membership entry.
    Nothing,
    Partition(Box<partition::Applied>),
    Catalogue(Box<catalogue::Reply>),
}

impl fmt::Debug for Applied {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Partition(_) => "Partition",
            Self::Catalogue(_) => "Catalogue",
        })
    }
}
