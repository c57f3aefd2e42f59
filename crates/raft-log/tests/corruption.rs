//! Every byte of a log is changed, one at a time: the change is refused, or does not matter, or is noticed by who reads that content.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures::executor::block_on;
use leasehold_raft_log::{
    Entry, FileSystem as _, GroupId, Log, LogId, OpenError, Options, ReadError, SimulatedFileSystem,
    Survival, Vote, log_id,
};
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use support::{append, entry, group, open, open_with, options, read_all};

const GROUPS: [GroupId; 2] = [GroupId(1), GroupId(2)];
/// The entries whose first bytes stay live when they are purged.
const LIVE: [u64; 3] = [2, 7, 15];

#[derive(Debug, Clone, PartialEq)]
struct Seen {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
    /// `None` when it is damaged.
    contents: Vec<Option<Bytes>>,
}

impl Seen {
    /// Whether it is the same but for contents that are damaged.
    fn is_part_of(&self, right: &Self) -> bool {
        let contents = self.contents.iter().zip(&right.contents);
        let contents = contents.map(|(seen, right)| seen.as_ref().and(right.clone())).collect();
        *self == Self { contents, ..right.clone() }
    }
}

fn see(log: &Log) -> Vec<Seen> {
    let see = |id: GroupId| {
        let mut group: support::Group = log.group(id);
        let state = block_on(group.get_log_state()).unwrap();
        let content = |index: &u64| match log.read_content(id, *index, 0, 20) {
            Err(ReadError::Damaged { .. }) => None,
            content => Some(content.unwrap()),
        };
        Seen {
            vote: block_on(group.read_vote()).unwrap(),
            committed: block_on(group.read_committed()).unwrap(),
            purged: state.last_purged_log_id,
            entries: read_all(&mut group).unwrap(),
            contents: LIVE.iter().map(content).collect(),
        }
    };
    GROUPS.into_iter().map(see).collect()
}

fn payload(id: GroupId, index: u64) -> Bytes {
    (0..150).map(|at| (at * 3 + index * 7 + u64::from(id.0)) as u8).collect()
}

fn appended(id: GroupId, range: std::ops::Range<u64>) -> Vec<Entry> {
    range.map(|index| entry(1, index, payload(id, index))).collect()
}

/// Several segments of two groups, with purged entries that are live and moved ones, still open.
fn written(fs: &SimulatedFileSystem) -> Log {
    let log = open(fs).unwrap();
    log.set_live_ranges_source(Arc::new(
        |_, index| {
            if LIVE.contains(&index) { vec![(0, 20)] } else { Vec::new() }
        },
    ));
    for id in GROUPS {
        let mut group: support::Group = log.group(id);
        block_on(group.save_vote(&Vote::new(1, 2))).unwrap();
        for first in (0..30).step_by(5) {
            append(&mut group, appended(id, first..first + 5)).unwrap();
        }
        LIVE.iter().for_each(|index| log.retain(id, *index, 20));
        block_on(group.save_committed(Some(log_id(1, 22)))).unwrap();
        block_on(group.purge(log_id(1, 19))).unwrap();
    }
    for _ in 0..4 {
        for id in GROUPS {
            let mut group: support::Group = log.group(id);
            let next = support::last_log_id(&mut group).unwrap().index + 1;
            append(&mut group, appended(id, next..next + 2)).unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    log
}

fn files(fs: &SimulatedFileSystem, prefix: &str) -> Vec<PathBuf> {
    fs.paths().into_iter().filter(|path| path.to_str().unwrap().contains(prefix)).collect()
}

fn segments(fs: &SimulatedFileSystem) -> Vec<PathBuf> {
    files(fs, "segment-")
}

fn remove_indexes(fs: &SimulatedFileSystem) {
    files(fs, "index-").iter().for_each(|path| fs.remove(path).unwrap());
}

/// Flips bits of each byte of a file and hands what opening says, and the byte's offset, to `judge`.
fn flip_each(fs: &SimulatedFileSystem, path: &Path, judge: impl Fn(usize, Result<Log, OpenError>) + Sync) {
    let bytes = fs.read(path);
    let half = |odd: usize| {
        for at in (odd..bytes.len()).step_by(2) {
            let mask = [0x01, 0x80, 0xff, 0x10][at / 2 % 4];
            let changed = fs.after_kill();
            changed.corrupt(path, at as u64, &[bytes[at] ^ mask]);
            judge(at, open(&changed));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| half(0));
        scope.spawn(|| half(1));
    });
}

fn is_refusal(error: &OpenError) -> bool {
    matches!(
        error,
        OpenError::Damaged { .. }
            | OpenError::Shortened { .. }
            | OpenError::Unreadable { .. }
            | OpenError::Gap { .. }
    )
}

#[test]
fn a_changed_byte_of_a_closed_log_is_refused_or_does_not_matter() {
    let fs = SimulatedFileSystem::new();
    let log = written(&fs);
    let right = see(&log);
    assert!(log.stats().moved_bytes > 0 && log.stats().segments > 2, "{:?}", log.stats());
    drop(log);
    remove_indexes(&fs);
    let mut refused = 0;
    for path in segments(&fs) {
        let count = AtomicU32::new(0);
        flip_each(&fs, &path, |at, opened| match opened {
            Ok(log) => assert_eq!(see(&log), right, "{path:?} byte {at}"),
            Err(error) => {
                assert!(is_refusal(&error), "{path:?} byte {at}: {error}");
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        refused += count.into_inner();
    }
    assert!(refused > 6_000, "only {refused} changes were refused");
}

/// A segment with an index is not read by a start, unless Raft may ask for what is in it.
#[test]
fn a_changed_byte_of_a_segment_with_an_index_is_refused_or_noticed_by_who_reads_the_content() {
    let fs = SimulatedFileSystem::new();
    // Nobody says which ranges are live, so nothing is moved.
    let log = open(&fs).unwrap();
    for id in GROUPS {
        let mut group: support::Group = log.group(id);
        append(&mut group, appended(id, 0..20)).unwrap();
        LIVE.iter().for_each(|index| log.retain(id, *index, 20));
        block_on(group.save_committed(Some(log_id(1, 19)))).unwrap();
        block_on(group.purge(log_id(1, 19))).unwrap();
        append(&mut group, appended(id, 20..40)).unwrap();
    }
    let right = see(&log);
    drop(log);
    let (indexes, segments) = (files(&fs, "index-"), segments(&fs));
    assert!(indexes.len() + 1 == segments.len() && indexes.len() > 1, "{indexes:?} of {segments:?}");
    let (refused, noticed) = (AtomicU32::new(0), AtomicU32::new(0));
    for path in segments {
        flip_each(&fs, &path, |at, opened| match opened {
            Ok(log) => {
                let seen = see(&log);
                let is_right = seen.iter().zip(&right).all(|(seen, right)| seen.is_part_of(right));
                assert!(is_right, "{path:?} byte {at}: {seen:#?}");
                noticed.fetch_add(u32::from(seen != right), Ordering::Relaxed);
            }
            Err(error) => {
                assert!(is_refusal(&error), "{path:?} byte {at}: {error}");
                refused.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let (refused, noticed) = (refused.into_inner(), noticed.into_inner());
    assert!(refused > 2_000 && noticed > 100, "{refused} changes were refused, {noticed} noticed");
}

#[test]
fn an_index_that_is_changed_or_cut_or_missing_changes_nothing() {
    let fs = SimulatedFileSystem::new();
    let log = written(&fs);
    let right = see(&log);
    drop(log);
    for path in files(&fs, "index-") {
        flip_each(&fs, &path, |at, opened| assert_eq!(see(&opened.unwrap()), right, "{path:?} byte {at}"));
        for len in 0..fs.read(&path).len() {
            let cut = fs.after_kill();
            cut.cut(&path, len);
            assert_eq!(see(&open(&cut).unwrap()), right, "{path:?} {len}");
        }
    }
    let indexed = files(&fs, "index-");
    let stale = Path::new("log/index-00000000000000ff");
    remove_indexes(&fs);
    fs.create(stale).unwrap();
    assert_eq!(see(&open(&fs).unwrap()), right);
    // A start that had to read a segment writes its index.
    let written = files(&fs, "index-");
    assert!(indexed.iter().all(|path| written.contains(path)), "{indexed:?} and now {written:?}");
    assert!(!fs.paths().contains(&stale.to_owned()));
}

/// Full segments of one group, of which Raft may ask for everything.
fn pinned(fs: &SimulatedFileSystem, disk_low_bytes: u64) -> Log {
    let log = open_with(fs, Options { disk_low_bytes, ..options() }).unwrap();
    for first in (0..100).step_by(5) {
        append(&mut group(&log, 1), appended(GROUPS[0], first..first + 5)).unwrap();
    }
    log
}

fn with_right_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Of another segment, or with a row that is another: what is wrong in spite of a right checksum is found in the segment.
#[test]
fn an_index_that_says_something_else_changes_nothing() {
    let fs = SimulatedFileSystem::new();
    let log = pinned(&fs, 0);
    let entries = |log: &Log| read_all(&mut group(log, 1)).unwrap();
    let right = entries(&log);
    drop(log);
    let indexes = files(&fs, "index-");
    assert!(indexes.len() > 2, "{indexes:?}");
    let mut wrong = Vec::new();
    for path in &indexes {
        let own = fs.read(path);
        for other in indexes.iter().filter(|other| *other != path) {
            let mut bytes = fs.read(other);
            bytes[16..24].copy_from_slice(&own[16..24]);
            wrong.push((path, bytes));
        }
        // The index of the first row's entry, and the place of its payload.
        for at in [48 + 16, 48 + 32] {
            let mut bytes = own.clone();
            bytes[at] ^= 8;
            wrong.push((path, bytes));
        }
    }
    for (path, bytes) in wrong {
        let changed = fs.after_kill();
        changed.cut(path, 0);
        changed.open(path).unwrap().write_at(&with_right_crc(bytes), 0).unwrap();
        assert_eq!(entries(&open(&changed).unwrap()), right, "{path:?}");
        assert_eq!(changed.read(path), fs.read(path), "it is written again");
    }
}

#[test]
fn indexes_take_no_space_when_it_is_scarce() {
    let fs = SimulatedFileSystem::new();
    fs.set_free_bytes(10);
    drop(pinned(&fs, 11));
    assert!(files(&fs, "index-").is_empty());
    drop(open_with(&fs, Options { disk_low_bytes: 11, ..options() }).unwrap());
    assert!(files(&fs, "index-").is_empty());
    drop(open_with(&fs, Options { disk_low_bytes: 10, ..options() }).unwrap());
    assert!(!files(&fs, "index-").is_empty());
}

/// Also of the last segment, whose end is otherwise where nothing sound follows.
#[test]
fn a_segment_that_was_cut_is_refused() {
    let fs = SimulatedFileSystem::new();
    drop(written(&fs));
    for path in segments(&fs) {
        for len in 0..fs.read(&path).len() {
            let cut = fs.after_kill();
            cut.cut(&path, len);
            let error = open(&cut).err();
            assert!(matches!(&error, Some(OpenError::Damaged { .. })), "{path:?} {len}: {error:?}");
        }
    }
}

/// The last batch cannot be told from one that was torn, until something was written behind it: it is there whole, or not at all.
#[test]
fn a_changed_byte_of_a_log_that_lost_power_is_never_read() {
    let fs = SimulatedFileSystem::new();
    let log = written(&fs);
    let before = see(&log);
    append(&mut group(&log, 2), appended(GROUPS[1], 38..40)).unwrap();
    let right = see(&log);
    let fs = fs.after_power_loss(Survival::Nothing, 0);
    drop(log);
    let path = segments(&fs).pop().unwrap();
    flip_each(&fs, &path, |at, opened| match opened {
        Ok(log) => {
            let seen = see(&log);
            assert!(seen == right || seen == before, "byte {at}: {seen:#?}");
        }
        Err(error) => assert!(is_refusal(&error), "byte {at}: {error}"),
    });
}

#[test]
fn a_changed_byte_of_a_snapshot_is_refused() {
    let fs = SimulatedFileSystem::new();
    let log = open(&fs).unwrap();
    let state = Bytes::from(vec![3; 700]);
    block_on(log.save_snapshot(GROUPS[0], Bytes::from_static(b"meta"), state)).unwrap();
    let path = Path::new("log/snapshot-00000001");
    let bytes = fs.read(path);
    for (at, byte) in bytes.iter().enumerate() {
        fs.corrupt(path, at as u64, &[byte ^ 0x20]);
        let found = log.load_snapshot(GROUPS[0]);
        assert!(matches!(found, Err(ReadError::DamagedFile { .. })), "byte {at}");
        let error = open(&fs.after_kill()).err().unwrap();
        assert!(matches!(error, OpenError::Snapshot(ReadError::DamagedFile { .. })), "byte {at}: {error}");
        fs.corrupt(path, at as u64, &[*byte]);
    }
    assert_eq!(log.load_snapshot(GROUPS[0]).unwrap().unwrap().meta, "meta");
}

#[test]
fn a_changed_byte_under_an_open_log_is_noticed_by_who_reads_it() {
    let fs = SimulatedFileSystem::new();
    drop(written(&fs));
    let log = open(&fs).unwrap();
    let right = see(&log);
    for path in segments(&fs) {
        for (at, byte) in fs.read(&path).iter().enumerate().step_by(7) {
            fs.corrupt(&path, at as u64, &[byte ^ 0x04]);
            for (id, right) in GROUPS.into_iter().zip(&right) {
                let found = read_all(&mut log.group(id));
                assert!(found.is_err() || found.unwrap() == right.entries, "{path:?} byte {at}");
            }
            fs.corrupt(&path, at as u64, &[*byte]);
        }
    }
}
