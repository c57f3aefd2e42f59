//! Our own bytes for what Raft stores and sends: entries, votes, memberships. openraft promises no layout of its own.
//!
//! ```text
//! entry body   [kind u8: 0 blank, 1 normal, 2 membership] payload, or membership
//! membership   [configs u32] ([voters u32] [replica u64]*)*  [nodes u32] ([replica u64] [node u64] [bytes u32] address)*
//! snapshot     [version u8] [log id?] [membership's log id?] membership
//! state        [version u8] [flags u8: 1 removed] [vote?] [committed log id?] [purged log id?] [next u64]
//! x?           [present u8] x;   log id [term u64] [index u64];   vote [term u64] [replica u64] [committed u8]
//! ```

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::{EntryPayload, StoredMembership};

use crate::payload::{Entry, LogId, Membership, Payload, ReplicaNode, SnapshotMeta, Vote, log_id};

/// Length of what stands before the payload in the body of a normal entry.
pub const NORMAL_PREFIX_BYTES: u32 = 1;

const BLANK: u8 = 0;
/// What stands before a payload.
pub const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;
const VERSION: u8 = 1;
const REMOVED: u8 = 1;

/// Bytes that this version cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("the bytes end too early")]
    Short,
    #[error("{what} {found} is unknown to this version")]
    Unknown { what: &'static str, found: u8 },
    #[error("the membership contradicts itself")]
    Membership,
    #[error("an address is not UTF-8")]
    Address,
}

/// The body of an entry: everything but its id. That of a normal one is shared, not copied.
pub fn encode_entry_body(entry: &Entry) -> Bytes {
    match &entry.payload {
        EntryPayload::Blank => Bytes::from_static(&[BLANK]),
        EntryPayload::Normal(payload) => payload.body().clone(),
        EntryPayload::Membership(membership) => {
            let mut bytes = BytesMut::new();
            bytes.put_u8(MEMBERSHIP);
            put_membership(&mut bytes, membership);
            bytes.freeze()
        }
    }
}

/// The entry whose body this is; a normal payload shares the bytes.
///
/// # Errors
/// When the bytes are malformed or of a newer version.
pub fn decode_entry_body(log_id: LogId, mut body: Bytes) -> Result<Entry, CodecError> {
    if let Some(payload) = Payload::from_prefixed(body.clone()) {
        return Ok(Entry { log_id, payload: EntryPayload::Normal(payload) });
    }
    let payload = match take_u8(&mut body)? {
        BLANK => EntryPayload::Blank,
        MEMBERSHIP => EntryPayload::Membership(take_membership(&mut body)?),
        found => return Err(CodecError::Unknown { what: "entry kind", found }),
    };
    Ok(Entry { log_id, payload })
}

pub fn encode_snapshot_meta(meta: &SnapshotMeta) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(VERSION);
    put_log_id(&mut bytes, meta.last_log_id.as_ref());
    put_log_id(&mut bytes, meta.last_membership.log_id().as_ref());
    put_membership(&mut bytes, meta.last_membership.membership());
    bytes.freeze()
}

/// # Errors
/// When the bytes are malformed or of a newer version.
pub fn decode_snapshot_meta(bytes: &[u8]) -> Result<SnapshotMeta, CodecError> {
    let mut bytes = Bytes::copy_from_slice(bytes);
    expect_version(&mut bytes)?;
    let last_log_id = take_log_id(&mut bytes)?;
    let membership_id = take_log_id(&mut bytes)?;
    let last_membership = StoredMembership::new(membership_id, take_membership(&mut bytes)?);
    Ok(SnapshotMeta { last_log_id, last_membership })
}

/// The small state of a group that is as durable as its entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupState {
    /// The group is no longer on this node.
    pub is_removed: bool,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    /// Index after the last entry; entries from it on in the log were truncated.
    pub next: u64,
}

pub fn encode_state(state: &GroupState) -> Bytes {
    let mut bytes = BytesMut::with_capacity(96);
    bytes.put_u8(VERSION);
    bytes.put_u8(if state.is_removed { REMOVED } else { 0 });
    match &state.vote {
        None => bytes.put_u8(0),
        Some(vote) => {
            bytes.put_u8(1);
            bytes.put_u64_le(vote.leader_id.term);
            bytes.put_u64_le(vote.leader_id.voted_for);
            bytes.put_u8(u8::from(vote.committed));
        }
    }
    put_log_id(&mut bytes, state.committed.as_ref());
    put_log_id(&mut bytes, state.purged.as_ref());
    bytes.put_u64_le(state.next);
    bytes.freeze()
}

pub fn decode_state(mut bytes: Bytes) -> Result<GroupState, CodecError> {
    expect_version(&mut bytes)?;
    let flags = take_u8(&mut bytes)?;
    let vote = if take_u8(&mut bytes)? == 0 {
        None
    } else {
        let (term, replica) = (take_u64(&mut bytes)?, take_u64(&mut bytes)?);
        let made = if take_u8(&mut bytes)? == 1 { Vote::new_committed } else { Vote::new };
        Some(made(term, replica))
    };
    let committed = take_log_id(&mut bytes)?;
    let purged = take_log_id(&mut bytes)?;
    Ok(GroupState { is_removed: flags & REMOVED != 0, vote, committed, purged, next: take_u64(&mut bytes)? })
}

fn expect_version(bytes: &mut Bytes) -> Result<(), CodecError> {
    match take_u8(bytes)? {
        VERSION => Ok(()),
        found => Err(CodecError::Unknown { what: "version", found }),
    }
}

fn put_log_id(bytes: &mut BytesMut, log_id: Option<&LogId>) {
    match log_id {
        None => bytes.put_u8(0),
        Some(log_id) => {
            bytes.put_u8(1);
            bytes.put_u64_le(log_id.leader_id.term);
            bytes.put_u64_le(log_id.index);
        }
    }
}

fn take_log_id(bytes: &mut Bytes) -> Result<Option<LogId>, CodecError> {
    match take_u8(bytes)? {
        0 => Ok(None),
        _ => Ok(Some(log_id(take_u64(bytes)?, take_u64(bytes)?))),
    }
}

fn put_membership(bytes: &mut BytesMut, membership: &Membership) {
    let configs = membership.get_joint_config();
    bytes.put_u32_le(configs.len() as u32);
    for voters in configs {
        bytes.put_u32_le(voters.len() as u32);
        voters.iter().for_each(|replica| bytes.put_u64_le(*replica));
    }
    bytes.put_u32_le(membership.nodes().count() as u32);
    for (replica, node) in membership.nodes() {
        bytes.put_u64_le(*replica);
        bytes.put_u64_le(node.node_id);
        bytes.put_u32_le(node.address.len() as u32);
        bytes.extend_from_slice(node.address.as_bytes());
    }
}

fn take_membership(bytes: &mut Bytes) -> Result<Membership, CodecError> {
    let mut configs = Vec::new();
    for _ in 0..take_u32(bytes)? {
        let voters = (0..take_u32(bytes)?).map(|_| take_u64(bytes)).collect::<Result<BTreeSet<_>, _>>()?;
        configs.push(voters);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..take_u32(bytes)? {
        let (replica, node_id, len) = (take_u64(bytes)?, take_u64(bytes)?, take_u32(bytes)? as usize);
        if bytes.len() < len {
            return Err(CodecError::Short);
        }
        let address = String::from_utf8(bytes.split_to(len).to_vec()).map_err(|_| CodecError::Address)?;
        nodes.insert(replica, ReplicaNode { node_id, address });
    }
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| CodecError::Membership)
}

fn take_u8(bytes: &mut Bytes) -> Result<u8, CodecError> {
    bytes.try_get_u8().map_err(|_| CodecError::Short)
}

fn take_u32(bytes: &mut Bytes) -> Result<u32, CodecError> {
    bytes.try_get_u32_le().map_err(|_| CodecError::Short)
}

fn take_u64(bytes: &mut Bytes) -> Result<u64, CodecError> {
    bytes.try_get_u64_le().map_err(|_| CodecError::Short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let node = |id: u64| ReplicaNode { node_id: id, address: format!("127.0.0.1:{id}") };
        let nodes = BTreeMap::from([(1, node(1)), (2, node(2)), (7, node(3))]);
        Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 7])], nodes).unwrap()
    }

    #[test]
    fn entries_are_read_back_as_written() {
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(Payload::copy_of(b"payload")),
            EntryPayload::Membership(membership()),
        ];
        for payload in payloads {
            let entry = Entry { log_id: log_id(4, 9), payload };
            assert_eq!(decode_entry_body(entry.log_id, encode_entry_body(&entry)).unwrap(), entry);
        }
    }

    #[test]
    fn what_is_cut_off_is_refused_at_every_length() {
        let meta = SnapshotMeta {
            last_log_id: Some(log_id(3, 8)),
            last_membership: StoredMembership::new(Some(log_id(1, 2)), membership()),
        };
        let bytes = encode_snapshot_meta(&meta);
        assert_eq!(decode_snapshot_meta(&bytes).unwrap(), meta);
        for len in 0..bytes.len() {
            assert_eq!(decode_snapshot_meta(&bytes[..len]), Err(CodecError::Short));
        }
    }

    #[test]
    fn states_are_read_back_as_written() {
        let full = GroupState {
            is_removed: true,
            vote: Some(Vote::new_committed(5, 2)),
            committed: Some(log_id(5, 100)),
            purged: Some(log_id(4, 80)),
            next: 121,
        };
        for state in [GroupState::default(), full] {
            assert_eq!(decode_state(encode_state(&state)).unwrap(), state);
        }
    }
}
