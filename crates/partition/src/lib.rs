//! The queue rules of one partition: a deterministic state machine.
//!
//! ```text
//!             entry (log index, payload)                     replies, one for each command
//!   Raft log ---------------------------->  apply(entry)  ----------------------------------> clients
//!                                              |    |
//!                                              |    +--> effects: hints for the leader
//!                                              v
//!                                            state  --> reads, next_deadline(), snapshot()
//! ```
//!
//! Nothing in here does IO, reads a clock, starts a thread or draws a random number, and no order depends on addresses or
//! hashing. Two partitions that applied the same entries are equal to the bit.
#![forbid(unsafe_code)]
#![deny(clippy::float_arithmetic)]

mod apply;
mod arena;
mod batch;
mod buckets;
mod command;
mod content;
mod damping;
mod effects;
mod entries;
mod garbage;
mod headroom;
mod histogram;
mod ids;
mod invariants;
mod lanes;
pub mod limits;
mod list;
mod message;
mod notes;
mod partition;
mod reads;
mod reply;
mod restoration;
mod runs;
mod seldom;
mod session;
mod settings;
mod shard;
mod shard_form;
mod snapshot;
mod store;
mod suspects;
mod tenants;
mod usage;
mod view;
mod window;
mod wire;

pub use batch::BatchBuilder;
pub use command::{Command, Request};
pub use content::{Content, NewMessage, TransferMessage};
pub use effects::{Applied, ApplyError, Effects, Event, EventKind, History};
pub use headroom::Measure;
pub use histogram::Histogram;
pub use ids::{ContentRef, MessageKey, Origin, QueueId, Receipt, RequestId, Source};
pub use partition::Partition;
pub use reply::{Delivery, Outcome, RedriveProgress, RedriveState, Refusal, Reply, SendOutcome};
pub use settings::{DeadLetter, Isolation, Kind, RetryBudget, Settings};
pub use snapshot::SnapshotError;
pub use view::{
    Counters, DampingView, Deadline, MessageView, Mood, OutboxItem, OutboxReason, Peek, Prospect, ShardView,
    State, SuspectsView, Totals,
};
pub use wire::DecodeError;
