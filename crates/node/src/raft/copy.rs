//! A copy of a group's state that leaves the cluster, and a group of another cluster that begins with one.
//!
//! ```text
//!   leader ─▶ head, state, live contents, end ─▶ a backup ─▶ the same ─▶ first replica of a new group ─snapshot─▶ the others
//! ```
//!
//! It is a snapshot on its way to another replica, without what belongs to the group it comes from: no term, no members. The entries
//! after it do not follow, so contents that were settled while the copy was made are missing for good; who begins with it is told
//! which came.

use std::collections::BTreeMap;
use std::pin::pin;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use leasehold_proto::peer::{SnapshotChunk, SnapshotHead};
use leasehold_raft_log::{Log, decode_snapshot_meta, encode_snapshot_meta, log_id};
use tokio::sync::mpsc;
use tonic::Status;

use super::group::Group;
use super::snapshot::{BrokenOff, Incoming, check_room, send_parts};
use super::{GroupId, Image, Membership, ReplicaNode, SnapshotMeta, StoredMembership, Vote};

/// The term before the first election of a group that begins with a state.
const TERM_BEFORE: u64 = 1;
/// Nobody's Raft id: replicas are counted from 1.
const NOBODY: u64 = 0;

/// A state as it is at the end of an entry.
#[derive(Clone)]
pub struct Copied {
    pub log_index: u64,
    pub state: Bytes,
}

/// Sends a copy without its last chunk: the caller sends that when it is sure of the copy. False when nobody takes it any more.
///
/// # Errors
/// When a content is not here or cannot be read; says which file is damaged.
pub async fn send_copy(
    log: &Log,
    group: GroupId,
    copied: &Copied,
    chunks: &mpsc::Sender<SnapshotChunk>,
) -> Result<bool, String> {
    let meta =
        SnapshotMeta { last_log_id: Some(log_id(TERM_BEFORE, copied.log_index)), ..SnapshotMeta::default() };
    let head = SnapshotHead {
        group: group.0,
        meta: encode_snapshot_meta(&meta),
        state_bytes: copied.state.len() as u64,
        state_crc32c: crc32c::crc32c(&copied.state),
        ..SnapshotHead::default()
    };
    match send_parts(log, group, copied.log_index, head, &copied.state, chunks).await {
        Ok(()) => Ok(true),
        Err(BrokenOff::Closed) => Ok(false),
        Err(BrokenOff::Unread(error)) => Err(error.to_string()),
    }
}

/// Which contents came with a copy, as sorted (entry, offset, length).
pub struct Came(Vec<(u64, u32, u32)>);

impl Came {
    pub fn has(&self, log_index: u64, offset: u32, len: u32) -> bool {
        self.0.binary_search(&(log_index, offset, len)).is_ok()
    }
}

/// Takes a copy of `group` in: contents go to the log as they come.
///
/// # Errors
/// When the copy breaks off, is damaged, is of another group, or does not fit on the disk.
pub async fn receive_copy(
    log: &Log,
    group: GroupId,
    chunks: impl Stream<Item = Result<SnapshotChunk, Status>>,
) -> Result<(Copied, Came), Status> {
    let mut chunks = pin!(chunks);
    let first = chunks.next().await.ok_or_else(|| Status::invalid_argument("an empty copy"))??;
    let head = first.head.ok_or_else(|| Status::invalid_argument("a copy without its head"))?;
    if head.group != group.0 {
        let detail = format!("the copy is of group {}, and not of group {}", head.group, group.0);
        return Err(Status::invalid_argument(detail));
    }
    let meta =
        decode_snapshot_meta(&head.meta).map_err(|error| Status::invalid_argument(error.to_string()))?;
    check_room(log, head.state_bytes)?;
    let log_index = meta.last_log_id.map_or(0, |id| id.index);
    let mut came = Vec::new();
    let mut incoming = Incoming::new(head.state_bytes, head.state_crc32c);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        for contents in &chunk.contents {
            let ranges = contents.ranges.iter().map(|range| (range.offset, range.bytes.len() as u32));
            came.extend(ranges.map(|(offset, len)| (contents.log_index, offset, len)));
        }
        incoming.take(log, group, chunk).await?;
    }
    came.sort_unstable();
    Ok((Copied { log_index, state: incoming.finish()? }, Came(came)))
}

impl Group {
    /// Founds the group with a state instead of empty, once, as if a leader of an earlier term had sent it: nobody, who is no member.
    /// The other members get it from this one.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn begin_with(
        &self,
        copied: Copied,
        members: BTreeMap<u64, ReplicaNode>,
    ) -> Result<(), String> {
        let last = log_id(TERM_BEFORE, copied.log_index);
        let voters = members.keys().copied().collect();
        let membership = Membership::new(vec![voters], members).map_err(|error| error.to_string())?;
        let meta = SnapshotMeta {
            last_log_id: Some(last),
            last_membership: StoredMembership::new(Some(last), membership),
        };
        let vote = Vote::new_committed(TERM_BEFORE, NOBODY);
        self.install_snapshot(vote, meta, Image(copied.state)).await.map(drop)
    }
}
