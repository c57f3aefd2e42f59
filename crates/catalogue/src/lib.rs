//! The catalogue of a cluster: its nodes, its partitions, its queues, and what is placed where.
//!
//! ```text
//!   command bytes ─▶ Catalogue::apply ─▶ Reply
//!                        │
//!                        ├─ nodes       who is in the cluster, under which address
//!                        ├─ partitions  which replicas on which nodes
//!                        └─ queues      settings, and the partitions of their shards
//! ```
//!
//! A deterministic state machine: no IO, no clock, no randomness. Every node holds a copy and answers look-ups from it. Placement is
//! computed once, when a command is applied, and recorded; a change of the hash ring moves nothing by itself.
#![deny(unsafe_code)]

mod apply;
mod command;
mod invariants;
mod placement;
mod queues;
mod records;
mod replicas;
mod reply;
mod requests;
mod restoration;
mod settings;
mod snapshot;
mod state;

use std::fmt;

pub use command::{
    AddNode, AddPartitions, Command, CreateQueue, DecodeError, DeleteQueue, ForgetNode, Found, Founder, Kind,
    PacePurge, PlacePartition, Rebalance, RemoveNode, RequestName, SetQueue, SetVersion, SettlePartition,
    TagQueue, UpdateNode,
};
pub use placement::shard_of_group;
pub use reply::{Refusal, Reply};
pub use settings::{DeadLetter, QueueChange, QueueKind, QueueSettings, RedriveAllow, RedriveRule};
pub use snapshot::RestoreError;
pub use state::{Catalogue, Cluster, Node, Partition, Queue, Replica};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($number:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}

id!(
    /// A node of the cluster; never used again.
    NodeId(u64)
);
id!(
    /// A partition, counted from 0.
    PartitionId(u32)
);
id!(
    /// A replica's id in its Raft group; never used again, so a replica that lost its disk cannot vote under its old name.
    ReplicaId(u64)
);
id!(
    /// A queue; never used again, so a queue that is made again under an old name starts empty.
    QueueId(u64)
);
