//! One write-ahead log per node, shared by all its Raft groups, and at the same time the store of what their entries carry.
//!
//! ```text
//!   group 1 ─append─┐                                   ┌─▶ segment n (zeroed or allocated, recycled)
//!   group 2 ─vote───┼─▶ queue ─▶ writer: one write, one ┤
//!   group 9 ─append─┘            fdatasync, then all    └─▶ index in memory: where each entry lies
//!                                callbacks
//! ```
//!
//! Bytes in, bytes out: it knows nothing of queues. An entry is written once. When Raft has purged it, the ranges of it that the
//! state machine still refers to (message bodies) stay readable until they are released; a segment with little left in it gives
//! that little to the head of the log and is used again. FORMAT.md is the contract of the files.
#![deny(unsafe_code)]

mod cache;
mod codec;
mod compaction;
mod contents;
#[cfg(any(test, feature = "testing"))]
mod driver;
mod error;
mod filesystem;
mod filesystem_direct;
#[cfg(any(test, feature = "testing"))]
mod filesystem_simulated;
mod format;
mod group;
mod head_file;
mod housekeeper;
mod index;
mod limits;
mod log;
mod payload;
mod read_ahead;
mod reading;
mod recovery;
mod segment_index;
mod segments;
mod snapshot;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod writer;

pub use codec::{
    CodecError, decode_entry_body, decode_snapshot_meta, encode_entry_body, encode_snapshot_meta,
};
#[cfg(any(test, feature = "testing"))]
pub use driver::Driver;
pub use error::{LogError, OpenError, ReadError};
pub use filesystem::{File, FileSystem, RealFileSystem};
#[cfg(any(test, feature = "testing"))]
pub use filesystem_simulated::{Fault, SimulatedFileSystem, Survival};
pub use group::GroupLog;
pub use log::{Log, Options, Recovered, Stats};
pub use payload::{
    Body, CommittedLeaderId, Entry, GroupId, LogId, LogTypes, Membership, Payload, ReplicaNode, SnapshotMeta,
    Vote, log_id,
};
pub use snapshot::SavedSnapshot;
