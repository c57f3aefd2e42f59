//! What the log says and does when the disk, the folder or another process is not as it should be.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::executor::block_on;
use leasehold_raft_log::{
    Fault, FileSystem as _, GroupId, Log, LogError, OpenError, Options, ReadError, RealFileSystem,
    SimulatedFileSystem, Survival, Vote, log_id,
};
use openraft::storage::RaftLogStorage as _;
use support::{DIR, append, entry, group, head_segment, open, options, read_all};

const GROUP: GroupId = GroupId(1);

fn entries(term: u64, range: std::ops::Range<u64>) -> Vec<leasehold_raft_log::Entry> {
    range.map(|index| entry(term, index, vec![index as u8; 100])).collect()
}

/// A log in which the next write or sync is that of the next batch.
fn open_without_spares(fs: &SimulatedFileSystem) -> Log {
    support::open_with(fs, Options { spare_segments: 0, ..options() }).unwrap()
}

/// Waits until the keeper has noted that the first segment was begun: a fault that comes then is the writer's.
fn wait_for_head(fs: &SimulatedFileSystem) {
    let end = Instant::now() + Duration::from_secs(30);
    while head_segment(fs) == 0 {
        assert!(Instant::now() < end, "the head names no segment");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_refuses_everything(log: &Log) {
    let mut group = group(log, 1);
    assert!(append(&mut group, entries(1, 9..10)).is_err());
    assert!(block_on(group.save_vote(&Vote::new(9, 1))).is_err());
    assert!(block_on(group.save_committed(Some(log_id(1, 1)))).is_err());
    assert!(block_on(group.truncate_after(Some(log_id(1, 1)))).is_err());
    assert!(block_on(group.purge(log_id(1, 1))).is_err());
    assert!(block_on(log.put_contents(GROUP, vec![(1, vec![(0, Bytes::from_static(b"x"))])])).is_err());
    assert!(block_on(log.save_snapshot(GROUP, Bytes::new(), Bytes::new())).is_err());
    assert!(block_on(log.remove_group(GROUP)).is_err());
}

#[test]
fn a_failed_sync_closes_the_log_for_good() {
    let fs = SimulatedFileSystem::new();
    let log = open_without_spares(&fs);
    let mut one = group(&log, 1);
    append(&mut one, entries(1, 0..3)).unwrap();
    wait_for_head(&fs);
    let failed = std::thread::spawn({
        let log = log.clone();
        move || block_on(log.failed())
    });
    fs.fail_at(0, Fault::SyncFails);
    let error = append(&mut one, entries(1, 3..6)).unwrap_err();
    assert_eq!(error.to_string(), "the log failed and is closed for good: the device does not answer");
    assert!(matches!(failed.join().unwrap(), LogError::Failed(_)));
    assert!(matches!(log.failure(), Some(LogError::Failed(_))));
    assert_refuses_everything(&log);
    assert!(block_on(log.failed()).to_string().contains("does not answer"));
    assert_eq!(read_all(&mut one).unwrap()[..3], entries(1, 0..3));
    drop((one, log));
    for found in [fs.after_kill(), fs.after_power_loss(Survival::Everything, 0)] {
        let log = open(&found).unwrap();
        let found = read_all(&mut group(&log, 1)).unwrap();
        assert!(found == entries(1, 0..3) || found == entries(1, 0..6), "{found:?}");
        assert_eq!(log.load_snapshot(GROUP).unwrap(), None);
    }
}

#[test]
fn a_full_disk_closes_the_log_and_loses_nothing_acknowledged() {
    let fs = SimulatedFileSystem::new();
    let log = open_without_spares(&fs);
    append(&mut group(&log, 1), entries(1, 0..3)).unwrap();
    wait_for_head(&fs);
    fs.fail_at(0, Fault::NoSpace);
    let error = append(&mut group(&log, 1), entries(1, 3..6)).unwrap_err();
    assert!(error.to_string().contains("no storage space"), "{error}");
    assert_refuses_everything(&log);
    drop(log);
    let log = open(&fs).unwrap();
    // The room may have ended within the zeros behind the batch.
    let found = read_all(&mut group(&log, 1)).unwrap();
    assert!(found == entries(1, 0..3) || found == entries(1, 0..6), "{found:?}");
    append(&mut group(&log, 1), entries(1, found.len() as u64..9)).unwrap();
}

fn save_snapshot(log: &Log, state: &'static [u8]) -> Result<(), LogError> {
    block_on(log.save_snapshot(GROUP, Bytes::from_static(b"meta"), Bytes::from_static(state)))
}

#[test]
fn a_snapshot_that_does_not_fit_leaves_the_one_before_it_and_the_log_open() {
    let fs = SimulatedFileSystem::new();
    // Nothing is written yet, so nothing but the snapshot meets the fault.
    let log = open_without_spares(&fs);
    save_snapshot(&log, b"first").unwrap();
    let before = fs.paths();
    fs.fail_at(0, Fault::NoSpace);
    let error = save_snapshot(&log, b"second").unwrap_err();
    assert!(matches!(error, LogError::NoRoom(_)), "{error}");
    assert!(fs.paths() == before && before.contains(&Path::new(DIR).join("snapshot-00000001")));
    assert_eq!(log.load_snapshot(GROUP).unwrap().unwrap().bytes, "first");
    assert!(log.failure().is_none());
    append(&mut group(&log, 1), entries(1, 0..3)).unwrap();
    save_snapshot(&log, b"third").unwrap();
    assert_eq!(log.load_snapshot(GROUP).unwrap().unwrap().bytes, "third");
}

#[test]
fn a_snapshot_whose_sync_fails_closes_the_log() {
    let fs = SimulatedFileSystem::new();
    let log = open_without_spares(&fs);
    save_snapshot(&log, b"first").unwrap();
    fs.fail_at(0, Fault::SyncFails);
    let error = save_snapshot(&log, b"second").unwrap_err();
    assert!(matches!(error, LogError::Failed(_)), "{error}");
    assert_refuses_everything(&log);
    assert_eq!(log.load_snapshot(GROUP).unwrap().unwrap().bytes, "first");
}

#[test]
fn a_snapshot_fits_where_the_next_segments_fit_beside_it() {
    let fs = SimulatedFileSystem::new();
    let log = open_without_spares(&fs);
    fs.set_free_bytes(2 * options().segment_bytes + 100);
    assert!(log.has_room_for_snapshot(100));
    assert!(!log.has_room_for_snapshot(101) && !log.has_room_for_snapshot(u64::MAX));
}

#[test]
fn a_file_that_does_not_fit_does_not_keep_the_space_it_got() {
    let fs = SimulatedFileSystem::new();
    let log = open(&fs).unwrap();
    fs.fail_at(0, Fault::NoSpace);
    assert!(append(&mut group(&log, 1), entries(1, 0..1)).is_err());
    assert_eq!(fs.paths(), [PathBuf::from("log/head")]);
}

#[test]
fn one_process_at_a_time_opens_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        Log::open(Arc::new(RealFileSystem::default()), &dir.path().join("a/b"), options()).map(|(log, _)| log)
    };
    let log = open().unwrap();
    append(&mut group(&log, 1), entries(1, 0..3)).unwrap();
    let error = open().err().unwrap();
    assert!(matches!(error, OpenError::Locked(_)));
    assert!(error.to_string().ends_with("is in use by another process: stop it, or choose another folder"));
    drop(log);
    assert_eq!(read_all(&mut group(&open().unwrap(), 1)).unwrap(), entries(1, 0..3));
}

#[test]
fn a_log_of_a_newer_version_is_refused_and_left_alone() {
    let fs = SimulatedFileSystem::new();
    let log = open(&fs).unwrap();
    append(&mut group(&log, 1), entries(1, 0..3)).unwrap();
    block_on(log.save_snapshot(GROUP, Bytes::from_static(b"meta"), Bytes::from_static(b"state"))).unwrap();
    drop(log);
    let path = Path::new(DIR).join("segment-0000000000000001");
    let mut header = fs.read(&path)[..60].to_vec();
    header[8] = 2;
    header.extend(crc32c::crc32c(&header).to_le_bytes());
    let newer = fs.after_kill();
    newer.corrupt(&path, 0, &header);
    drop(newer.create(&Path::new(DIR).join("spare-00000099")).unwrap());
    let before = newer.operations();
    let error = open(&newer).err().unwrap();
    assert!(matches!(error, OpenError::NewerVersion { found: 2, known: 1, .. }));
    let message = "log/segment-0000000000000001 was written by a newer version (format 2, this one knows 1)";
    assert_eq!(error.to_string(), format!("{message}: upgrade this node"));
    assert_eq!(newer.operations(), before, "it is left as it is");

    let path = Path::new(DIR).join("snapshot-00000001");
    let mut snapshot = fs.read(&path);
    let end = snapshot.len() - 4;
    snapshot[8] = 2;
    let crc = crc32c::crc32c(&snapshot[..end]).to_le_bytes();
    snapshot[end..].copy_from_slice(&crc);
    fs.corrupt(&path, 0, &snapshot);
    let before = fs.operations();
    let error = open(&fs).err().unwrap();
    assert!(
        matches!(error, OpenError::Snapshot(ReadError::NewerVersion { found: 2, known: 1, .. })),
        "{error}"
    );
    assert_eq!(fs.operations(), before, "it is left as it is");
}

#[test]
fn a_group_that_was_removed_and_made_again_is_there_after_a_restart() {
    let fs = SimulatedFileSystem::new();
    let log = open(&fs).unwrap();
    for id in [1, 2] {
        append(&mut group(&log, id), entries(1, 0..3)).unwrap();
        block_on(log.remove_group(GroupId(id))).unwrap();
    }
    append(&mut group(&log, 1), entries(2, 0..2)).unwrap();
    drop(group(&log, 2));
    block_on(log.save_snapshot(GroupId(2), Bytes::new(), Bytes::from_static(b"new"))).unwrap();
    let log = open(&fs.after_power_loss(Survival::Nothing, 0)).unwrap();
    assert_eq!(log.groups(), [GroupId(1), GroupId(2)]);
    assert_eq!(read_all(&mut group(&log, 1)).unwrap(), entries(2, 0..2));
    assert_eq!(log.load_snapshot(GroupId(2)).unwrap().unwrap().bytes, "new");
}
