//! Power is lost at every write, sync and change of a name of a workload, in every way that a disk can lose it; so is the process.
//!
//! A failure prints its case; `CRASH_SEED=.. CRASH_POINT=..` runs that workload and that point alone.
#![allow(clippy::unwrap_used, reason = "a test")]

mod expected;
#[path = "../support/mod.rs"]
mod support;
mod workload;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use expected::{Expected, Live};
use futures::executor::block_on;
use leasehold_raft_log::{Entry, Fault, GroupId, Log, LogId, SimulatedFileSystem, Survival, Vote};
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use workload::Used;

const STEPS: u32 = 150;
const WORKLOADS: u64 = 3;
const SURVIVAL_SEEDS: u64 = 2;

/// Starts that did not read every segment.
static SPARED: AtomicU64 = AtomicU64::new(0);

/// Says what was being tried when a test fails.
struct Case(String);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {}", self.0);
        }
    }
}

/// All that can be read of a group.
#[derive(Debug, PartialEq)]
struct Seen {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    entries: Vec<Entry>,
    snapshot: Option<Bytes>,
    contents: Vec<(u64, u32, Bytes)>,
}

type Groups = BTreeMap<GroupId, Expected>;

fn see(log: &Log, groups: &Groups, live: &Live) -> BTreeMap<GroupId, Seen> {
    groups.keys().map(|id| (*id, see_group(log, *id, live))).collect()
}

fn see_group(log: &Log, id: GroupId, live: &Live) -> Seen {
    let mut group: support::Group = log.group(id);
    let state = block_on(group.get_log_state()).unwrap();
    let mut contents = Vec::new();
    for ((_, index), ranges) in live.lock().unwrap().range((id, 0)..=(id, u64::MAX)) {
        for (offset, len) in ranges {
            contents.extend(
                log.read_content(id, *index, *offset, *len).ok().map(|bytes| (*index, *offset, bytes)),
            );
        }
    }
    Seen {
        vote: block_on(group.read_vote()).unwrap(),
        committed: block_on(group.read_committed()).unwrap(),
        purged: state.last_purged_log_id,
        last: state.last_log_id,
        entries: support::read_all(&mut group).unwrap(),
        snapshot: log.load_snapshot(id).unwrap().map(|snapshot| snapshot.bytes),
        contents,
    }
}

/// Whether nothing is left of a group.
fn is_gone(seen: &Seen) -> bool {
    seen.vote.is_none() && seen.last.is_none() && seen.entries.is_empty() && seen.snapshot.is_none()
}

fn check(log: &Log, groups: &Groups, live: &Live) {
    for (id, seen) in &see(log, groups, live) {
        let expected = &groups[id];
        if expected.is_going && is_gone(seen) {
            continue;
        }
        check_group(*id, expected, seen, live);
    }
}

fn check_group(id: GroupId, expected: &Expected, seen: &Seen, live: &Live) {
    expected.check_vote(seen.vote);
    let snapshot = expected.check_snapshot(seen.snapshot.as_ref());
    expected.check_purged(seen.purged, snapshot);
    expected.check_entries(&seen.entries, seen.purged);
    assert_eq!(seen.last, seen.entries.last().map(|entry| entry.log_id).or(seen.purged));
    expected.check_committed(seen.committed, seen.purged, seen.last);
    for ((_, index), ranges) in live.lock().unwrap().range((id, 0)..=(id, u64::MAX)) {
        let Some(content) = expected.contents.get(index) else { continue };
        for (offset, len) in ranges {
            let found = seen.contents.iter().find(|found| (found.0, found.1) == (*index, *offset));
            let right = content.payload.slice(*offset as usize..(*offset + *len) as usize);
            match found {
                Some((_, _, found)) => assert_eq!(found, &right, "content {id:?} {index} {offset} is wrong"),
                None => assert!(!content.is_durable, "content {id:?} {index} {offset} is lost"),
            }
        }
    }
}

fn restore_live(log: &Log, groups: &Groups, live: &Live) {
    let live = live.lock().unwrap();
    for id in groups.keys() {
        let sizes = live
            .range((*id, 0)..=(*id, u64::MAX))
            .map(|((_, index), ranges)| (*index, ranges.iter().map(|(_, len)| u64::from(*len)).sum()));
        log.restore_live(*id, &sizes.collect::<Vec<_>>());
    }
}

/// What is live of what was found: an entry that was executed before it was written comes again from the other replicas.
fn live_of(seen: &BTreeMap<GroupId, Seen>) -> Live {
    let live = Live::default();
    for (id, seen) in seen {
        for (index, offset, bytes) in &seen.contents {
            let mut live = live.lock().unwrap();
            live.entry((*id, *index)).or_default().push((*offset, bytes.len() as u32));
        }
    }
    live
}

/// Everything that must hold of a disk after a crash.
fn check_disk(fs: &SimulatedFileSystem, groups: &Groups, live: &Live) {
    let first = {
        let (log, found) =
            Log::open(Arc::new(fs.clone()), Path::new(support::DIR), support::options()).unwrap();
        if found.read_bytes < log.stats().segments * support::options().segment_bytes {
            SPARED.fetch_add(1, Ordering::Relaxed);
        }
        check(&log, groups, live);
        see(&log, groups, live)
    };
    let live = &live_of(&first);
    // With the indexes that the first start has written.
    let again = see(&support::open(&fs.after_kill()).unwrap(), groups, live);
    assert!(again == first, "opened again: {again:#?} not {first:#?}");
    let fs = fs.after_power_loss(Survival::Nothing, 0);
    let log = support::open(&fs).unwrap();
    for (id, seen) in see(&log, groups, live) {
        assert!(
            seen == first[&id],
            "{id:?} opened a second time, power having been lost: {seen:#?} not {:#?}",
            first[&id]
        );
    }
    restore_live(&log, groups, live);
    check(&log, groups, live);
    let mut added = BTreeMap::new();
    for id in groups.keys() {
        let mut group: support::Group = log.group(*id);
        let last = support::last_log_id(&mut group);
        let next = last.map_or(0, |last| last.index + 1);
        let entries =
            (next..next + 4).map(|index| support::entry(1_000, index, vec![7; 700])).collect::<Vec<_>>();
        support::append(&mut group, entries.clone()).unwrap();
        added.insert(*id, entries);
    }
    drop(log);
    let log = support::open(&fs.after_power_loss(Survival::Nothing, 0)).unwrap();
    for (id, mut seen) in see(&log, groups, live) {
        let new = seen.entries.split_off(seen.entries.len() - added[&id].len());
        assert_eq!(new, added[&id], "entries that were written after the crash");
        assert_eq!(seen.entries, first[&id].entries);
        assert!(seen.contents == first[&id].contents, "{id:?} has other contents");
        assert!(log.groups().contains(&id));
    }
}

/// One of the workloads runs where space can be had without writing it, as the log asks for when segments follow each other fast.
fn file_system(seed: u64) -> SimulatedFileSystem {
    if seed.is_multiple_of(2) { SimulatedFileSystem::new() } else { SimulatedFileSystem::allocating() }
}

fn crash_at(seed: u64, point: u64) -> bool {
    let mut case = Case(format!("CRASH_SEED={seed} CRASH_POINT={point}"));
    let fs = file_system(seed);
    fs.fail_at(point, Fault::PowerLoss);
    let Used { live, groups, .. } = workload::run(&fs, seed, STEPS);
    let name = case.0.clone();
    for survival in Survival::ALL {
        let seeds = if survival.is_random() { SURVIVAL_SEEDS } else { 1 };
        for survival_seed in 0..seeds {
            case.0 = format!("{name}, {survival:?} {survival_seed}");
            let survival_seed = survival_seed + SURVIVAL_SEEDS * point;
            check_disk(&fs.after_power_loss(survival, survival_seed), &groups, &live);
        }
    }
    case.0 = format!("{name}, killed");
    check_disk(&fs.after_kill(), &groups, &live);
    fs.operations() >= point
}

/// Runs a function for 1, 2, 3 and so on, on all processors, until it says that there is no such point.
fn for_each_point(run: impl Fn(u64) -> bool + Sync) -> u64 {
    if let Ok(point) = std::env::var("CRASH_POINT") {
        run(point.parse().unwrap());
        return u64::MAX;
    }
    let (next, end) = (AtomicU64::new(1), AtomicU64::new(u64::MAX));
    let work = || {
        loop {
            let point = next.fetch_add(1, Ordering::Relaxed);
            if point > end.load(Ordering::Relaxed) {
                break;
            }
            if !run(point) {
                end.fetch_min(point, Ordering::Relaxed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        let handles = (0..threads).map(|_| scope.spawn(work)).collect::<Vec<_>>();
        handles.into_iter().for_each(|handle| handle.join().unwrap());
    });
    end.into_inner()
}

fn seeds() -> Vec<u64> {
    match std::env::var("CRASH_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..WORKLOADS).collect(),
    }
}

#[test]
fn the_workloads_move_contents_and_use_segments_again() {
    let mut moved_bytes = 0;
    for seed in seeds() {
        let fs = file_system(seed);
        let Used { stats, .. } = workload::run(&fs, seed, STEPS);
        let number = |path: &PathBuf| {
            let name = path.to_str()?.strip_prefix("log/segment-")?;
            u64::from_str_radix(name, 16).ok()
        };
        let newest = fs.paths().iter().filter_map(number).max().unwrap();
        println!("workload {seed}: {} operations, newest {newest}, {stats:?}", fs.operations());
        assert!(newest > stats.segments + 3, "segment {newest}, {stats:?}");
        // So it is looked for after every crash.
        assert!((1..=newest).contains(&support::head_segment(&fs)), "segment {newest}");
        assert_eq!(fs.allocations() > 0, !seed.is_multiple_of(2), "workload {seed}");
        moved_bytes += stats.moved_bytes;
    }
    assert!(moved_bytes > 1_000, "{moved_bytes} bytes were moved");
}

#[test]
fn nothing_is_lost_or_invented_wherever_power_is_lost() {
    for seed in seeds() {
        let points = for_each_point(|point| crash_at(seed, point));
        println!("workload {seed}: {points} points");
        assert!(points > 150, "the workload does too little: {points} points");
    }
    let spared = SPARED.load(Ordering::Relaxed);
    println!("{spared} starts did not read every segment");
    assert!(spared > 0, "every segment is always read");
}

/// After a failed sync the kernel takes its pages for clean: what the next process reads may not be on the disk.
#[test]
fn nothing_is_lost_or_invented_whichever_sync_fails() {
    for seed in seeds() {
        for_each_point(|point| {
            let _case = Case(format!("CRASH_SEED={seed} CRASH_POINT={point}, a sync fails"));
            let fs = file_system(seed);
            fs.fail_at(point, Fault::SyncFails);
            let Used { live, groups, .. } = workload::run(&fs, seed, STEPS);
            check_disk(&fs.after_kill(), &groups, &live);
            check_disk(&fs.after_power_loss(Survival::Everything, point), &groups, &live);
            fs.has_failed()
        });
    }
}

#[test]
fn nothing_is_lost_or_invented_wherever_space_runs_out() {
    for seed in seeds() {
        for_each_point(|point| {
            let _case = Case(format!("CRASH_SEED={seed} CRASH_POINT={point}, no space"));
            let fs = file_system(seed);
            fs.fail_at(point, Fault::NoSpace);
            let Used { live, groups, .. } = workload::run(&fs, seed, STEPS);
            check_disk(&fs.after_kill(), &groups, &live);
            check_disk(&fs.after_power_loss(Survival::Nothing, point), &groups, &live);
            fs.has_failed()
        });
    }
}
