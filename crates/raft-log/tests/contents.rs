//! Contents outlive their entries, whatever happens to the files, and take no more room than they must.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/gated.rs"]
mod gated;
mod support;
#[path = "support/unreadable.rs"]
mod unreadable;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::executor::block_on;
use gated::Gated;
use leasehold_raft_log::{GroupId, Log, LogError, Options, ReadError, SimulatedFileSystem, Survival, log_id};
use openraft::storage::RaftLogStorage as _;
use support::{append, entry, group, open, open_with, options, read_all, start_append};
use unreadable::Unreadable;

const GROUP: GroupId = GroupId(1);

type Live = Arc<Mutex<BTreeMap<(GroupId, u64), Vec<(u32, u32)>>>>;

fn live_of(log: &Log) -> Live {
    let live = Live::default();
    let source = Arc::clone(&live);
    log.set_live_ranges_source(Arc::new(move |group, index| {
        source.lock().unwrap().get(&(group, index)).cloned().unwrap_or_default()
    }));
    live
}

fn retain(log: &Log, live: &Live, id: GroupId, index: u64, ranges: &[(u32, u32)]) {
    live.lock().unwrap().insert((id, index), ranges.to_vec());
    log.retain(id, index, ranges.iter().map(|(_, len)| u64::from(*len)).sum());
}

fn payload(index: u64) -> Bytes {
    (0..400_u64).map(|at| (at * 5 + index * 11) as u8).collect()
}

/// Appends `count` entries to a group and purges them all.
fn pass(log: &Log, id: u32, count: u64) {
    let mut group = group(log, id);
    for _ in 0..count {
        let next = support::last_log_id(&mut group).map_or(0, |last| last.index + 1);
        append(&mut group, vec![entry(1, next, payload(next))]).unwrap();
        block_on(group.purge(log_id(1, next))).unwrap();
    }
}

fn eventually(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..4_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("never: {what}");
}

#[test]
fn contents_survive_purge_compaction_and_restart() {
    let fs = SimulatedFileSystem::new();
    let log = open(&fs).unwrap();
    let live = live_of(&log);
    let entries = (0..6).map(|index| entry(1, index, payload(index))).collect();
    append(&mut group(&log, 1), entries).unwrap();
    let kept = [(1, vec![(0, 10), (200, 30)]), (4, vec![(390, 10)])];
    for (index, ranges) in &kept {
        retain(&log, &live, GROUP, *index, ranges);
    }
    let check = |log: &Log| {
        for (index, ranges) in &kept {
            for (offset, len) in ranges {
                let found = log.read_content(GROUP, *index, *offset, *len).unwrap();
                assert_eq!(found, payload(*index).slice(*offset as usize..(*offset + *len) as usize));
            }
        }
    };
    check(&log);
    block_on(group(&log, 1).purge(log_id(1, 5))).unwrap();
    check(&log);
    for _ in 0..10 {
        pass(&log, 2, 30);
        check(&log);
    }
    eventually("moved", || log.stats().moved_bytes > 0);
    check(&log);
    assert!(matches!(log.read_content(GROUP, 4, 0, 5), Err(ReadError::Missing { .. })));
    drop(log);
    let log = open(&fs.after_power_loss(Survival::Nothing, 0)).unwrap();
    check(&log);
    log.restore_live(GROUP, &[(1, 40), (4, 10)]);
    check(&log);
    assert_eq!(read_all(&mut group(&log, 1)).unwrap(), []);
}

#[test]
fn one_old_content_pins_no_more_than_a_few_segments() {
    let log = open(&SimulatedFileSystem::new()).unwrap();
    let live = live_of(&log);
    append(&mut group(&log, 1), vec![entry(1, 0, payload(0))]).unwrap();
    retain(&log, &live, GROUP, 0, &[(7, 50)]);
    block_on(group(&log, 1).purge(log_id(1, 0))).unwrap();
    for _ in 0..40 {
        pass(&log, 2, 25);
        eventually("few segments", || log.stats().segments <= 5);
    }
    assert_eq!(log.read_content(GROUP, 0, 7, 50).unwrap(), payload(0).slice(7..57));
    live.lock().unwrap().clear();
    log.release(GROUP, 0, 50);
    pass(&log, 2, 25);
    eventually("nothing live", || log.stats().live_bytes == 0 && log.stats().segments <= 3);
}

/// A group whose state machine is not there, or a damaged content, must not keep every other segment from being emptied.
#[test]
fn contents_that_cannot_be_moved_hold_up_no_others() {
    let log = open(&SimulatedFileSystem::new()).unwrap();
    let live = live_of(&log);
    append(&mut group(&log, 1), vec![entry(1, 0, payload(0))]).unwrap();
    log.retain(GROUP, 0, 5);
    block_on(group(&log, 1).purge(log_id(1, 0))).unwrap();
    for index in 0..20 {
        append(&mut group(&log, 2), vec![entry(1, index, payload(index))]).unwrap();
        retain(&log, &live, GroupId(2), index, &[(0, 100)]);
        block_on(group(&log, 2).purge(log_id(1, index))).unwrap();
        pass(&log, 3, 10);
    }
    eventually("few segments", || {
        pass(&log, 3, 1);
        log.stats().segments <= 6
    });
    assert_eq!(log.read_content(GROUP, 0, 0, 5).unwrap(), payload(0).slice(..5));
    for index in 0..20 {
        assert_eq!(log.read_content(GroupId(2), index, 0, 100).unwrap(), payload(index).slice(..100));
    }
}

/// What is counted for one content must not be taken from another in the same segment.
#[test]
fn a_content_that_is_retained_again_takes_no_other_with_it() {
    let fs = SimulatedFileSystem::new();
    let log = open(&fs).unwrap();
    append(&mut group(&log, 1), (0..2).map(|index| entry(1, index, payload(index))).collect()).unwrap();
    log.restore_live(GROUP, &[(0, 10), (1, 100)]);
    block_on(group(&log, 1).purge(log_id(1, 1))).unwrap();
    log.retain(GROUP, 0, 300);
    log.release(GROUP, 0, 300);
    assert_eq!(log.stats().live_bytes, 100);
    pass(&log, 2, 40);
    assert_eq!(log.read_content(GROUP, 1, 0, 100).unwrap(), payload(1).slice(..100));
}

/// An entry that is still in the log and whose contents came with a snapshot as well is counted once.
#[test]
fn contents_that_came_with_a_snapshot_are_counted_once() {
    let log = open(&SimulatedFileSystem::new()).unwrap();
    append(&mut group(&log, 1), vec![entry(1, 0, payload(0))]).unwrap();
    block_on(log.put_contents(GROUP, vec![(0, vec![(0, payload(0).slice(..60))])])).unwrap();
    log.restore_live(GROUP, &[(0, 60)]);
    log.release(GROUP, 0, 60);
    block_on(group(&log, 1).purge(log_id(1, 0))).unwrap();
    assert_eq!(log.stats().live_bytes, 0);
}

/// A snapshot that is being received tells nothing of what the state machine refers to: it may never be installed.
#[test]
fn contents_of_a_snapshot_that_is_not_installed_take_nothing_from_what_is_counted() {
    for is_purged_first in [true, false] {
        let log = open(&SimulatedFileSystem::new()).unwrap();
        append(&mut group(&log, 1), vec![entry(1, 0, payload(0))]).unwrap();
        log.retain(GROUP, 0, 200);
        let purge = || block_on(group(&log, 1).purge(log_id(1, 0))).unwrap();
        if is_purged_first {
            purge();
        }
        block_on(log.put_contents(GROUP, vec![(0, vec![(0, payload(0).slice(..100))])])).unwrap();
        log.release(GROUP, 0, 100);
        if !is_purged_first {
            purge();
        }
        assert_eq!(log.read_content(GROUP, 0, 0, 100).unwrap(), payload(0).slice(..100));
        assert_eq!(log.stats().live_bytes, 100);
        log.release(GROUP, 0, 100);
        assert_eq!(log.stats().live_bytes, 0);
    }
}

/// A newer snapshot than the one that is installed may be coming in.
#[test]
fn contents_of_entries_behind_a_snapshot_outlive_its_installation() {
    let log = open(&SimulatedFileSystem::new()).unwrap();
    let came = [2, 5, 9].map(|index| (index, vec![(0, payload(index).slice(..60))]));
    block_on(log.put_contents(GROUP, came.to_vec())).unwrap();
    let is_missing = |index| matches!(log.read_content(GROUP, index, 0, 60), Err(ReadError::Missing { .. }));
    log.restore_live_through(GROUP, &[(2, 60)], 5);
    assert!(is_missing(5));
    for index in [2, 9] {
        assert_eq!(log.read_content(GROUP, index, 0, 60).unwrap(), payload(index).slice(..60));
    }
    assert_eq!(log.stats().live_bytes, 120);
    log.restore_live(GROUP, &[(2, 60)]);
    assert!(!is_missing(2) && is_missing(9));
    assert_eq!(log.stats().live_bytes, 60);
}

/// Of an entry that is still to be applied, applying it counts what did not come with the snapshot.
#[test]
fn contents_that_came_before_their_entry_was_applied_are_counted_once() {
    let log = open(&SimulatedFileSystem::new()).unwrap();
    append(&mut group(&log, 1), vec![entry(1, 0, payload(0))]).unwrap();
    block_on(log.put_contents(GROUP, vec![(0, vec![(0, payload(0).slice(..60))])])).unwrap();
    log.retain(GROUP, 0, 200);
    assert_eq!(log.stats().live_bytes, 200);
    log.release(GROUP, 0, 200);
    assert_eq!(log.stats().live_bytes, 0);
}

#[test]
fn a_part_is_referred_to_when_it_lies_in_one_range() {
    let log = open(&SimulatedFileSystem::new()).unwrap();
    assert!(!log.refers_to(GROUP, 0, 0, 1), "no state machine is there");
    let live = live_of(&log);
    retain(&log, &live, GROUP, 0, &[(0, 10), (200, 30)]);
    for (offset, len) in [(0, 10), (205, 25)] {
        assert!(log.refers_to(GROUP, 0, offset, len), "{len} bytes at {offset}");
    }
    for (offset, len) in [(0, 11), (10, 1), (205, 26)] {
        assert!(!log.refers_to(GROUP, 0, offset, len), "{len} bytes at {offset}");
    }
    assert!(!log.refers_to(GROUP, 1, 0, 10));
}

/// Whoever receives a snapshot may outlive the replica by a moment.
#[test]
fn contents_that_come_after_their_group_was_removed_are_refused() {
    let log = open(&SimulatedFileSystem::new()).unwrap();
    append(&mut group(&log, 1), vec![entry(1, 0, payload(0))]).unwrap();
    block_on(log.remove_group(GROUP)).unwrap();
    let late = block_on(log.put_contents(GROUP, vec![(0, vec![(0, payload(0))])]));
    assert!(matches!(late, Err(LogError::Removed { group: GROUP })));
    assert_eq!((log.groups(), log.stats().live_bytes), (Vec::new(), 0));
}

/// A segment that the disk does not give back stays, and keeps no other from being emptied.
#[test]
fn a_segment_that_cannot_be_read_holds_up_no_others() {
    let fs = Unreadable::default();
    let log = open(&fs).unwrap();
    let live = live_of(&log);
    append(&mut group(&log, 1), vec![entry(1, 0, payload(0))]).unwrap();
    fs.break_segment(Path::new("log/segment-0000000000000001"));
    retain(&log, &live, GROUP, 0, &[(0, 5)]);
    block_on(group(&log, 1).purge(log_id(1, 0))).unwrap();
    pass(&log, 3, 12);
    for index in 0..20 {
        append(&mut group(&log, 2), vec![entry(1, index, payload(index))]).unwrap();
        retain(&log, &live, GroupId(2), index, &[(0, 100)]);
        block_on(group(&log, 2).purge(log_id(1, index))).unwrap();
        pass(&log, 3, 10);
    }
    eventually("few segments", || {
        pass(&log, 3, 1);
        log.stats().segments <= 6
    });
    for index in 0..20 {
        assert_eq!(log.read_content(GroupId(2), index, 0, 100).unwrap(), payload(index).slice(..100));
    }
    eventually("a spare", || fs.fs.paths().iter().any(|path| path.to_str().unwrap().contains("spare-")));
}

#[test]
fn an_entry_that_is_purged_before_it_is_written_keeps_its_contents() {
    let fs = Gated::default();
    let log = open(&fs).unwrap();
    append(&mut group(&log, 1), vec![entry(1, 0, payload(0))]).unwrap();
    fs.syncs.shut();
    let answer =
        start_append(&mut group(&log, 1), vec![entry(1, 1, payload(1)), entry(1, 2, payload(2))]).unwrap();
    log.retain(GROUP, 1, 20);
    block_on(group(&log, 1).purge(log_id(1, 1))).unwrap();
    let right = payload(1).slice(5..15);
    assert_eq!(log.read_content(GROUP, 1, 5, 10).unwrap(), right);
    fs.syncs.open();
    block_on(answer).unwrap();
    assert_eq!((log.read_content(GROUP, 1, 5, 10).unwrap(), log.stats().live_bytes), (right.clone(), 20));
    drop(log);
    let log = open(&fs.fs.after_power_loss(Survival::Nothing, 0)).unwrap();
    assert_eq!(log.read_content(GROUP, 1, 5, 10).unwrap(), right);
    assert_eq!(read_all(&mut group(&log, 1)).unwrap().last(), Some(&entry(1, 2, payload(2))));
}

/// A snapshot may refer to the contents of entries that the other replicas have and this one is still writing.
#[test]
fn a_snapshot_is_not_saved_before_what_it_refers_to_is_written() {
    let fs = Gated::default();
    // The housekeeper shall not wait for the sync of a spare.
    let log = open_with(&fs, Options { spare_segments: 0, ..options() }).unwrap();
    append(&mut group(&log, 1), vec![entry(1, 0, payload(0))]).unwrap();
    fs.syncs.shut();
    let answer = start_append(&mut group(&log, 1), vec![entry(1, 1, payload(1))]).unwrap();
    let saving = std::thread::spawn({
        let log = log.clone();
        move || block_on(log.save_snapshot(GROUP, Bytes::new(), Bytes::from_static(b"refers to 1")))
    });
    std::thread::sleep(Duration::from_millis(50));
    let is_early = fs.fs.paths().iter().any(|path| path.to_str().unwrap().contains("snapshot"));
    fs.syncs.open();
    saving.join().unwrap().unwrap();
    assert!(!is_early);
    assert_eq!(log.load_snapshot(GROUP).unwrap().unwrap().bytes, "refers to 1");
    block_on(answer).unwrap();
}

/// What is cached until it is written must go when its group goes, or nothing is evicted any more.
#[test]
fn a_group_that_is_removed_before_it_is_written_leaves_no_memory_behind() {
    let fs = Gated::default();
    let log = open(&fs).unwrap();
    fs.syncs.shut();
    let answer = start_append(&mut group(&log, 1), vec![entry(1, 0, payload(0))]).unwrap();
    log.retain(GROUP, 0, 20);
    block_on(group(&log, 1).purge(log_id(1, 0))).unwrap();
    let removing = std::thread::spawn({
        let log = log.clone();
        move || block_on(log.remove_group(GROUP))
    });
    eventually("removed", || !log.groups().contains(&GROUP));
    fs.syncs.open();
    block_on(answer).unwrap();
    removing.join().unwrap().unwrap();
    for index in 0..20 {
        append(&mut group(&log, 2), vec![entry(1, index, payload(index))]).unwrap();
    }
    assert!(log.stats().cached_bytes <= options().cache_bytes as u64, "{:?}", log.stats());
}

#[test]
fn segments_that_are_used_again_show_nothing_of_what_was_in_them() {
    let fs = SimulatedFileSystem::new();
    for round in 0..12_u64 {
        let log = open(&fs).unwrap();
        log.restore_live(GROUP, &[]);
        pass(&log, 1, 23);
        let next = support::last_log_id(&mut group(&log, 1)).unwrap().index + 1;
        append(&mut group(&log, 1), vec![entry(1, next, payload(next))]).unwrap();
        drop(log);
        let log = open(&fs).unwrap();
        assert_eq!(read_all(&mut group(&log, 1)).unwrap(), [entry(1, next, payload(next))], "round {round}");
    }
    // The keeper of an open log takes away what is too much, in its own time.
    let log = open(&fs).unwrap();
    log.restore_live(GROUP, &[]);
    let end = Instant::now() + Duration::from_secs(30);
    while fs.paths().len() > 7 {
        assert!(Instant::now() < end, "{} files", fs.paths().len());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn appends_that_wait_for_the_disk_share_the_next_sync() {
    let fs = Gated::default();
    let log = open(&fs).unwrap();
    append(&mut group(&log, 1), vec![entry(1, 0, Bytes::new())]).unwrap();
    let before = log.stats().batches;
    fs.syncs.shut();
    let answers = (1..=50_u64).flat_map(|index| (1..=20).map(move |id| (id, index)));
    let answers = answers.filter(|(id, index)| *id != 1 || *index > 0).map(|(id, index)| {
        let index = if id == 1 { index } else { index - 1 };
        start_append(&mut group(&log, id), vec![entry(1, index, Bytes::from_static(b"x"))]).unwrap()
    });
    let answers = answers.collect::<Vec<_>>();
    fs.syncs.open();
    answers.into_iter().for_each(|answer| block_on(answer).unwrap());
    let batches = log.stats().batches - before;
    assert!(batches <= 3, "1000 appends took {batches} batches");
}

/// Within a file the system reads ahead by itself.
#[test]
fn the_next_segment_is_read_ahead_when_a_backlog_is_read_in_order() {
    let fs = SimulatedFileSystem::new();
    let log = open(&fs).unwrap();
    let entries = (0..60).map(|index| entry(1, index, vec![index as u8; 300])).collect::<Vec<_>>();
    for entries in entries.chunks(2) {
        append(&mut group(&log, 1), entries.to_vec()).unwrap();
    }
    drop(log);
    let log = open(&fs).unwrap();
    let read = |index| assert_eq!(log.read_content(GROUP, index, 0, 9).unwrap()[..], [index as u8; 9]);
    [10, 50, 11, 51].into_iter().for_each(read);
    assert!(fs.read_soon().is_empty(), "what is read here and there says nothing of what is next");
    (0..60).for_each(read);
    let segments = fs.paths().into_iter().filter(|path| path.to_str().unwrap().contains("segment-"));
    let segments = segments.collect::<Vec<_>>();
    assert!(segments.len() > 4);
    assert_eq!(fs.read_soon(), segments[1..]);
}
