//! What the answers of a node say about its disk. A quorum counts on what is said, so it has to be true when the answer leaves.
//!
//! ```text
//!   Append, group 7, call 3  ──▶
//!                            ◀──  answer to call 3: matched up to 2-41     claim: the disk holds entry 2-41 of group 7
//! ```

use std::collections::BTreeMap;
use std::io;

use futures::FutureExt as _;
use leasehold_raft_log::{Log, decode_snapshot_meta};
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};

use super::codec::{append_answer_from, vote_answer_from};
use super::{GroupId, LogId, TypeConfig, Vote};
use crate::lane::{Frame, FrameKind};

/// What an answer says that its sender's disk holds, or has held and replaced by something newer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Claim {
    /// The leader's entries up to this one.
    Entries { group: u32, last: LogId },
    /// The vote that was granted.
    Vote { group: u32, vote: Vote },
}

/// What of a group is left after a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Held {
    last: Option<LogId>,
    vote: Option<Vote>,
}

impl Claim {
    /// # Errors
    /// When a log that was recovered does not hold what is claimed, in words.
    pub fn check(self, log: &Log) -> Result<(), String> {
        let held = held(log, self.group()).now_or_never();
        let held = held.unwrap_or_else(|| Err(io::Error::other("it has to be waited for")));
        let held = held.map_err(|error| format!("group {} cannot be read back: {error}", self.group()))?;
        let is_held = match self {
            // Raft's order: of a later term is what has replaced it.
            Self::Entries { last, .. } => held.last >= Some(last),
            Self::Vote { vote, .. } => held.vote >= Some(vote),
        };
        if is_held { Ok(()) } else { Err(self.denied(held)) }
    }

    fn group(self) -> u32 {
        match self {
            Self::Entries { group, .. } | Self::Vote { group, .. } => group,
        }
    }

    fn denied(self, held: Held) -> String {
        fn word<T: ToString>(found: Option<T>) -> String {
            found.map_or_else(|| "none".to_owned(), |found| found.to_string())
        }
        match self {
            Self::Entries { group, last } => {
                format!("group {group} answers for entry {last}, its disk's last one is {}", word(held.last))
            }
            Self::Vote { group, vote } => {
                format!("group {group} gives vote {vote}, its disk's vote is {}", word(held.vote))
            }
        }
    }
}

async fn held(log: &Log, group: u32) -> io::Result<Held> {
    let group = GroupId(group);
    let mut part = log.group::<TypeConfig>(group);
    let state = part.get_log_state().await?;
    let snapshot = log.load_snapshot(group).map_err(io::Error::other)?;
    let covered = snapshot.map(|snapshot| decode_snapshot_meta(&snapshot.meta)).transpose();
    let covered = covered.map_err(io::Error::other)?.and_then(|meta| meta.last_log_id);
    Ok(Held { last: state.last_log_id.max(covered), vote: part.read_vote().await? })
}

/// The calls of one lane whose answers claim something: an answer does not say by itself to what it is one.
#[derive(Debug, Default)]
pub struct Calls {
    open: BTreeMap<u64, (FrameKind, u32)>,
}

impl Calls {
    /// Hears a frame of who opened the lane.
    pub fn ask(&mut self, frame: &Frame) {
        // A pre-vote promises nothing.
        if let Some(kind @ (FrameKind::Append | FrameKind::Vote)) = frame.kind() {
            self.open.insert(frame.call, (kind, frame.group));
        }
    }

    /// What the answer in a frame claims. One that cannot be read claims nothing: who gets it refuses it.
    pub fn answer(&mut self, frame: &Frame) -> Option<Claim> {
        let (kind, group) = self.open.remove(&frame.call)?;
        if frame.kind() != Some(FrameKind::Answer) {
            return None;
        }
        let body = frame.body.clone();
        if kind == FrameKind::Append {
            let last = append_answer_from(body).ok()?.ok()??;
            return Some(Claim::Entries { group, last });
        }
        let answer = vote_answer_from(body).ok().filter(|answer| answer.vote_granted)?;
        Some(Claim::Vote { group, vote: answer.vote })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use leasehold_raft_log::{Driver, OpenError, Options, SimulatedFileSystem, Survival};
    use openraft::raft::{StreamAppendError, VoteResponse};
    use openraft::storage::IOFlushed;
    use openraft::{EntryPayload, SnapshotMeta};

    use super::*;
    use crate::raft::Entry;
    use crate::raft::codec::{append_answer, vote_answer};

    const GROUP: u32 = 7;

    fn log_id(term: u64, index: u64) -> LogId {
        leasehold_raft_log::log_id(term, index)
    }

    fn frame(call: u64, kind: FrameKind, group: u32) -> Frame {
        Frame { call, kind: kind as u8, group, ..Frame::default() }
    }

    /// What an answer to a call of a kind claims.
    fn claim(kind: FrameKind, body: bytes::Bytes) -> Option<Claim> {
        let mut calls = Calls::default();
        calls.ask(&frame(3, kind, GROUP));
        let answer = Frame { body, ..frame(3, FrameKind::Answer, 0) };
        assert_eq!(calls.answer(&frame(4, FrameKind::Answer, 0)), None);
        let claim = calls.answer(&answer);
        assert_eq!(calls.answer(&answer), None);
        claim
    }

    #[test]
    fn answers_to_appends_claim_entries() {
        let matched = append_answer(&Ok(Some(log_id(2, 41))));
        assert_eq!(
            claim(FrameKind::Append, matched),
            Some(Claim::Entries { group: GROUP, last: log_id(2, 41) })
        );
        for nothing in [Ok(None), Err(StreamAppendError::Conflict(log_id(2, 41)))] {
            assert_eq!(claim(FrameKind::Append, append_answer(&nothing)), None);
        }
    }

    #[test]
    fn a_granted_vote_is_claimed_and_a_word_before_it_is_not() {
        let vote = Vote::new(4, 1);
        let answer = |granted| vote_answer(&VoteResponse::new(vote, None, granted));
        assert_eq!(claim(FrameKind::Vote, answer(true)), Some(Claim::Vote { group: GROUP, vote }));
        assert_eq!(claim(FrameKind::Vote, answer(false)), None);
        assert_eq!(claim(FrameKind::PreVote, answer(true)), None);
    }

    #[test]
    fn a_failure_claims_nothing() {
        let mut calls = Calls::default();
        calls.ask(&frame(3, FrameKind::Append, GROUP));
        assert_eq!(calls.answer(&frame(3, FrameKind::Failure, 0)), None);
    }

    fn open(fs: &SimulatedFileSystem) -> Result<(Log, Driver), OpenError> {
        let options = Options { segment_bytes: 4 * 1024, ..Options::default() };
        Log::open_driven(Arc::new(fs.clone()), Path::new("log"), options)
    }

    /// What a claim comes to when the power goes now.
    fn check(claim: Claim, fs: &SimulatedFileSystem) -> Result<(), String> {
        let (left, _) = open(&fs.after_power_loss(Survival::Nothing, 0)).unwrap();
        claim.check(&left)
    }

    #[test]
    fn a_vote_is_a_lie_until_it_is_synced() {
        let fs = SimulatedFileSystem::new();
        let (log, mut driver) = open(&fs).unwrap();
        let (vote, other) = (Vote::new(4, 1), Vote::new(4, 2));
        let claim = |vote| Claim::Vote { group: GROUP, vote };
        let mut part = log.group::<TypeConfig>(GroupId(GROUP));
        let saving = part.save_vote(&vote);
        let mut saving = Box::pin(saving);
        assert!(saving.as_mut().now_or_never().is_none());
        assert!(check(claim(vote), &fs).is_err_and(|story| story.contains("vote is none")));
        driver.write();
        assert_eq!(check(claim(vote), &fs), Ok(()));
        assert_eq!(check(claim(Vote::new(3, 2)), &fs), Ok(()));
        for untrue in [claim(other), claim(Vote::new(5, 1)), Claim::Vote { group: 8, vote }] {
            assert!(check(untrue, &fs).is_err(), "{untrue:?}");
        }
    }

    #[test]
    fn entries_are_a_lie_until_they_are_synced() {
        let fs = SimulatedFileSystem::new();
        let (log, mut driver) = open(&fs).unwrap();
        let claim = |last| Claim::Entries { group: GROUP, last };
        let mut part = log.group::<TypeConfig>(GroupId(GROUP));
        let entry = |index| Entry { log_id: log_id(2, index), payload: EntryPayload::Blank };
        part.append([entry(0), entry(1)], IOFlushed::noop()).now_or_never().unwrap().unwrap();
        assert!(check(claim(log_id(2, 0)), &fs).is_err_and(|story| story.contains("last one is none")));
        driver.write();
        for held in [log_id(2, 0), log_id(2, 1), log_id(1, 5)] {
            assert_eq!(check(claim(held), &fs), Ok(()));
        }
        for untrue in [log_id(2, 2), log_id(3, 1)] {
            assert!(check(claim(untrue), &fs).is_err(), "{untrue}");
        }
    }

    #[test]
    fn a_snapshot_holds_the_entries_that_it_covers() {
        let fs = SimulatedFileSystem::new();
        let (log, mut driver) = open(&fs).unwrap();
        let meta = SnapshotMeta {
            last_log_id: Some(log_id(2, 41)),
            last_membership: crate::raft::StoredMembership::default(),
        };
        let meta = leasehold_raft_log::encode_snapshot_meta(&meta);
        let mut saving = Box::pin(log.save_snapshot(GroupId(GROUP), meta, bytes::Bytes::new()));
        assert!(saving.as_mut().now_or_never().is_none());
        driver.write();
        assert!(saving.as_mut().now_or_never().is_none());
        let claim = |index| Claim::Entries { group: GROUP, last: log_id(2, index) };
        assert!(check(claim(41), &fs).is_err());
        driver.keep();
        assert_eq!(check(claim(41), &fs), Ok(()));
        assert!(check(claim(42), &fs).is_err());
    }
}
