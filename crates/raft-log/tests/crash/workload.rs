//! A random but repeatable use of a log by a few groups, which stops where the log fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::executor::block_on;
use leasehold_raft_log::{
    Entry, GroupId, Log, LogId, Membership, Payload, ReplicaNode, SimulatedFileSystem, Stats, Vote,
};
use openraft::EntryPayload;
use openraft::storage::RaftLogStorage as _;

use crate::expected::{Content, Expected, Live, Ranges, id};
use crate::support::{self, Answer, Group, Random};

const GROUPS: u64 = 3;

/// Groups and what they may hold after a crash.
pub struct Workload {
    log: Log,
    random: Random,
    pub live: Live,
    pub groups: BTreeMap<GroupId, Expected>,
    pending: Vec<(GroupId, Vec<LogId>, Answer)>,
}

/// What a log was used for, and what may be found afterwards.
#[derive(Default)]
pub struct Used {
    pub live: Live,
    pub groups: BTreeMap<GroupId, Expected>,
    pub stats: Stats,
}

/// Runs until the log fails or the steps are done.
pub fn run(fs: &SimulatedFileSystem, seed: u64, steps: u32) -> Used {
    let live = Live::default();
    let groups = (1..=GROUPS).map(|id| (GroupId(id as u32), Expected::default())).collect::<BTreeMap<_, _>>();
    let Ok(log) = support::open(fs) else { return Used { live, groups, ..Used::default() } };
    let source = Arc::clone(&live);
    log.set_live_ranges_source(Arc::new(move |group, index| {
        source.lock().unwrap().get(&(group, index)).cloned().unwrap_or_default()
    }));
    let mut workload = Workload { log, random: Random(seed), live, groups, pending: Vec::new() };
    for _ in 0..steps {
        if workload.step().is_err() {
            break;
        }
        workload.collect();
    }
    let Workload { log, live, mut groups, pending, .. } = workload;
    let stats = log.stats();
    drop(log);
    for (group, ids, answer) in pending {
        if block_on(answer).is_ok() {
            groups.entry(group).or_default().was_acknowledged(&ids);
        }
    }
    Used { live, groups, stats }
}

impl Workload {
    fn step(&mut self) -> io::Result<()> {
        let group = GroupId(1 + self.random.below(GROUPS) as u32);
        match self.random.below(100) {
            0..36 => self.append(group),
            36..42 => self.vote(group),
            42..49 => self.truncate_and_append(group),
            49..61 => self.apply(group),
            61..65 => self.commit(group),
            65..77 => self.release(group),
            77..91 => self.snapshot_and_purge(group),
            91..94 => self.install_snapshot(group),
            94..96 => self.remove(group),
            _ => {
                std::thread::sleep(Duration::from_millis(2));
                Ok(())
            }
        }
    }

    /// Takes the answers that have come.
    fn collect(&mut self) {
        let mut waiting = Vec::new();
        for (group, ids, mut answer) in std::mem::take(&mut self.pending) {
            match (&mut answer).now_or_never() {
                None => waiting.push((group, ids, answer)),
                Some(Ok(())) => self.expected(group).was_acknowledged(&ids),
                Some(Err(_)) => {}
            }
        }
        self.pending = waiting;
    }

    fn expected(&mut self, group: GroupId) -> &mut Expected {
        self.groups.entry(group).or_default()
    }

    fn handle(&self, group: GroupId) -> Group {
        self.log.group(group)
    }

    fn new_entry(&mut self, term: u64, index: u64) -> Entry {
        let payload = match self.random.below(10) {
            _ if index == 0 => EntryPayload::Membership(membership()),
            0 => EntryPayload::Blank,
            1 => EntryPayload::Normal(Payload::copy_of(&self.random.bytes(1_500))),
            2..5 => EntryPayload::Normal(Payload::copy_of(&self.random.bytes(400))),
            _ => {
                let len = self.random.below(80) as usize;
                EntryPayload::Normal(Payload::copy_of(&self.random.bytes(len)))
            }
        };
        Entry { log_id: id(term, index), payload }
    }

    fn append(&mut self, group: GroupId) -> io::Result<()> {
        let (term, next) = (self.expected(group).term, self.expected(group).next());
        let count = 1 + self.random.below(4);
        let entries = (next..next + count).map(|index| self.new_entry(term, index)).collect::<Vec<_>>();
        let ids = entries.iter().map(|entry| entry.log_id).collect::<Vec<_>>();
        let expected = self.expected(group);
        for entry in &entries {
            expected.submitted.insert(entry.log_id, entry.clone());
            expected.entries.insert(entry.log_id.index, entry.log_id);
        }
        let answer = support::start_append(&mut self.handle(group), entries)?;
        if self.random.percent(40) {
            self.pending.push((group, ids, answer));
            return Ok(());
        }
        block_on(answer)?;
        self.expected(group).was_acknowledged(&ids);
        Ok(())
    }

    fn vote(&mut self, group: GroupId) -> io::Result<()> {
        let replica = self.random.below(3);
        let expected = self.expected(group);
        expected.term += 1;
        let vote = Vote::new(expected.term, replica);
        expected.votes.push(vote);
        block_on(self.handle(group).save_vote(&vote))?;
        let expected = self.expected(group);
        expected.votes_acknowledged = expected.votes.len();
        Ok(())
    }

    fn truncate_and_append(&mut self, group: GroupId) -> io::Result<()> {
        let expected = self.expected(group);
        let first = expected.applied.max(expected.purged()).map_or(1, |applied| applied.index + 1);
        let next = expected.next();
        if first >= next {
            return Ok(());
        }
        let from = first + self.random.below(next - first);
        let expected = self.expected(group);
        let last = expected.entries.get(&(from - 1)).copied().or(expected.purged());
        expected.truncate(from);
        expected.term += 1;
        block_on(self.handle(group).truncate_after(last))?;
        if self.random.percent(80) { self.append(group) } else { Ok(()) }
    }

    /// The state machine takes entries in, some of which may not have been written yet.
    fn apply(&mut self, group: GroupId) -> io::Result<()> {
        let expected = self.expected(group);
        let from = expected.applied.map_or(0, |applied| applied.index + 1);
        let next = expected.next();
        if from >= next {
            return Ok(());
        }
        let through = from + self.random.below(next - from);
        for index in from..=through {
            let expected = self.expected(group);
            let Some(log_id) = expected.entries.get(&index).copied() else { continue };
            expected.applied = Some(log_id);
            let is_durable = expected.acknowledged.contains_key(&index);
            let EntryPayload::Normal(payload) = &expected.submitted[&log_id].payload else {
                continue;
            };
            let payload = payload.bytes();
            let ranges = self.some_ranges(payload.len() as u32);
            if !ranges.is_empty() {
                self.log.retain(group, index, bytes_of(&ranges));
                self.live.lock().unwrap().insert((group, index), ranges);
                self.expected(group).contents.insert(index, Content { payload, is_durable });
            }
        }
        Ok(())
    }

    fn some_ranges(&mut self, len: u32) -> Ranges {
        let part = len / 3;
        let thirds = [(0, part), (part, part), (2 * part, len - 2 * part)];
        thirds.into_iter().filter(|(_, len)| *len > 0 && self.random.percent(40)).collect()
    }

    fn commit(&mut self, group: GroupId) -> io::Result<()> {
        let expected = self.expected(group);
        let Some(applied) = expected.applied else { return Ok(()) };
        expected.committed.insert(applied);
        block_on(self.handle(group).save_committed(Some(applied)))
    }

    fn release(&mut self, group: GroupId) -> io::Result<()> {
        for _ in 0..4 {
            let indexes = self.expected(group).contents.keys().copied().collect::<Vec<_>>();
            if indexes.is_empty() {
                return Ok(());
            }
            let index = indexes[self.random.below(indexes.len() as u64) as usize];
            let mut live = self.live.lock().unwrap();
            let ranges = live.entry((group, index)).or_default();
            let (_, len) = ranges.remove(self.random.below(ranges.len() as u64) as usize);
            if ranges.is_empty() {
                live.remove(&(group, index));
                self.groups.entry(group).or_default().contents.remove(&index);
            }
            drop(live);
            self.log.release(group, index, u64::from(len));
        }
        Ok(())
    }

    fn snapshot_and_purge(&mut self, group: GroupId) -> io::Result<()> {
        let Some(through) = self.expected(group).applied else { return Ok(()) };
        self.save_snapshot(group, through)?;
        let kept = self.random.below(3);
        let expected = self.expected(group);
        let through = expected.entries.range(..=through.index.saturating_sub(kept)).next_back();
        let Some((_, through)) = through.filter(|_| kept == 0 || through.is_some()) else { return Ok(()) };
        let through = *through;
        expected.purge(through);
        block_on(self.handle(group).purge(through))
    }

    fn save_snapshot(&mut self, group: GroupId, through: LogId) -> io::Result<()> {
        let len = 16 + self.random.below(1_500) as usize;
        let state = self.random.bytes(len);
        self.expected(group).snapshots.push((through, state.clone()));
        block_on(self.log.save_snapshot(group, Bytes::from_static(b"meta"), state))
            .map_err(io::Error::from)?;
        self.expected(group).snapshot_was_acknowledged(through);
        Ok(())
    }

    /// As a replica does that is far behind: contents, then the state, then the log begins after it.
    fn install_snapshot(&mut self, group: GroupId) -> io::Result<()> {
        let (term, next) = (self.expected(group).term, self.expected(group).next());
        let through = id(term, next + 5);
        let mut contents = Vec::new();
        for index in [next + 1, next + 4] {
            let payload = self.random.bytes(300);
            contents.push((index, vec![(0, 100), (100, 100)], payload));
        }
        let bytes = |(index, ranges, payload): &(u64, Ranges, Bytes)| {
            let cut = |(offset, len): &(u32, u32)| {
                (*offset, payload.slice(*offset as usize..(*offset + *len) as usize))
            };
            (*index, ranges.iter().map(cut).collect())
        };
        // It may have been removed before.
        drop(self.handle(group));
        block_on(self.log.put_contents(group, contents.iter().map(bytes).collect()))?;
        self.save_snapshot(group, through)?;
        let expected = self.expected(group);
        expected.contents.clear();
        expected.applied = Some(through);
        expected.purge(through);
        let restored = contents.iter().map(|(index, ..)| (*index, 200)).collect::<Vec<_>>();
        let mut live = self.live.lock().unwrap();
        live.retain(|(id, _), _| *id != group);
        for (index, ranges, payload) in contents {
            live.insert((group, index), ranges);
            let content = Content { payload, is_durable: true };
            self.groups.entry(group).or_default().contents.insert(index, content);
        }
        drop(live);
        self.log.restore_live(group, &restored);
        block_on(self.handle(group).purge(through))
    }

    fn remove(&mut self, group: GroupId) -> io::Result<()> {
        self.expected(group).is_going = true;
        self.live.lock().unwrap().retain(|(id, _), _| *id != group);
        block_on(self.log.remove_group(group))?;
        self.groups.insert(group, Expected::default());
        self.pending.retain(|(id, ..)| *id != group);
        Ok(())
    }
}

fn bytes_of(ranges: &Ranges) -> u64 {
    ranges.iter().map(|(_, len)| u64::from(*len)).sum()
}

fn membership() -> Membership {
    let node = ReplicaNode { node_id: 1, address: "127.0.0.1:7".to_owned() };
    Membership::new(vec![BTreeSet::from([1])], BTreeMap::from([(1, node)])).unwrap()
}
