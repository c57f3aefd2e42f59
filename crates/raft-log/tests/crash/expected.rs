//! What a group was told and what it was promised: the two bounds between which a recovered log must be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use leasehold_raft_log::{Entry, GroupId, LogId, Vote, log_id};

pub type Ranges = Vec<(u32, u32)>;
/// What the state machines refer to; compaction asks for it.
pub type Live = Arc<Mutex<BTreeMap<(GroupId, u64), Ranges>>>;

/// One content that the state machine refers to.
pub struct Content {
    /// The whole payload of its entry.
    pub payload: Bytes,
    /// Its entry was acknowledged, or a snapshot that refers to it was.
    pub is_durable: bool,
}

#[derive(Default)]
pub struct Expected {
    /// Every entry that was ever handed over.
    pub submitted: BTreeMap<LogId, Entry>,
    /// The log as Raft sees it.
    pub entries: BTreeMap<u64, LogId>,
    /// Acknowledged, and neither truncated nor purged since.
    pub acknowledged: BTreeMap<u64, LogId>,
    pub votes: Vec<Vote>,
    pub votes_acknowledged: usize,
    pub committed: BTreeSet<LogId>,
    pub purges: BTreeSet<LogId>,
    pub snapshots: Vec<(LogId, Bytes)>,
    pub snapshots_acknowledged: usize,
    pub contents: BTreeMap<u64, Content>,
    pub applied: Option<LogId>,
    pub term: u64,
    /// The group is being removed: it may be gone.
    pub is_going: bool,
}

impl Expected {
    pub fn next(&self) -> u64 {
        let last = self.entries.last_key_value().map(|(index, _)| *index);
        last.max(self.purged().map(|purged| purged.index)).map_or(0, |last| last + 1)
    }

    pub fn purged(&self) -> Option<LogId> {
        self.purges.last().copied()
    }

    pub fn truncate(&mut self, from: u64) {
        self.entries.split_off(&from);
        self.acknowledged.split_off(&from);
    }

    pub fn purge(&mut self, through: LogId) {
        self.entries = self.entries.split_off(&(through.index + 1));
        self.acknowledged = self.acknowledged.split_off(&(through.index + 1));
        self.purges.insert(through);
    }

    pub fn was_acknowledged(&mut self, ids: &[LogId]) {
        for id in ids {
            if self.entries.get(&id.index) == Some(id) {
                self.acknowledged.insert(id.index, *id);
            }
            let is_applied = self.applied.is_some_and(|applied| id.index <= applied.index);
            if let Some(content) = self.contents.get_mut(&id.index)
                && is_applied
            {
                content.is_durable = true;
            }
        }
    }

    /// The snapshot at `through` is durable: so is what it refers to.
    pub fn snapshot_was_acknowledged(&mut self, through: LogId) {
        self.snapshots_acknowledged = self.snapshots.len();
        for (_, content) in self.contents.range_mut(..=through.index) {
            content.is_durable = true;
        }
    }

    pub fn check_vote(&self, vote: Option<Vote>) {
        match vote {
            None => assert_eq!(self.votes_acknowledged, 0, "the vote is lost"),
            Some(vote) => {
                let at = self.votes.iter().position(|known| *known == vote);
                let at = at.unwrap_or_else(|| panic!("invented vote {vote}"));
                assert!(at + 1 >= self.votes_acknowledged, "vote {vote} is old");
            }
        }
    }

    pub fn check_snapshot(&self, snapshot: Option<&Bytes>) -> Option<LogId> {
        let Some(found) = snapshot else {
            assert_eq!(self.snapshots_acknowledged, 0, "the snapshot is lost");
            return None;
        };
        let at = self.snapshots.iter().position(|(_, known)| known == found).expect("an invented snapshot");
        assert!(at + 1 >= self.snapshots_acknowledged, "an old snapshot");
        Some(self.snapshots[at].0)
    }

    /// `snapshot` is what the recovered one covers.
    pub fn check_purged(&self, purged: Option<LogId>, snapshot: Option<LogId>) {
        let Some(purged) = purged else { return };
        assert!(self.purges.contains(&purged), "invented purge {purged}");
        assert!(Some(purged) <= snapshot, "purged {purged} but the snapshot covers {snapshot:?}");
    }

    pub fn check_entries(&self, found: &[Entry], purged: Option<LogId>) {
        let mut next = purged.map_or(0, |purged| purged.index + 1);
        let mut term = purged.map_or(0, |purged| purged.leader_id.term);
        for entry in found {
            let id = entry.log_id;
            assert_eq!(id.index, next, "a hole before {id}");
            assert!(id.leader_id.term >= term, "{id} comes after term {term}");
            assert_eq!(Some(entry), self.submitted.get(&id), "entry {id} is not what was written");
            (next, term) = (id.index + 1, id.leader_id.term);
        }
        let found = found.iter().map(|entry| entry.log_id).collect::<BTreeSet<_>>();
        for id in self.acknowledged.values() {
            assert!(found.contains(id), "acknowledged entry {id} is lost; purged through {purged:?}");
        }
    }

    pub fn check_committed(&self, committed: Option<LogId>, purged: Option<LogId>, last: Option<LogId>) {
        assert!(committed <= last, "committed {committed:?} after the last {last:?}");
        let Some(committed) = committed else { return };
        let is_known = self.committed.contains(&committed) || Some(committed) == purged;
        assert!(is_known, "invented commit {committed}");
    }
}

/// The id of an entry in this term, shorter to write.
pub fn id(term: u64, index: u64) -> LogId {
    log_id(term, index)
}
