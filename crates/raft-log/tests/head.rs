//! A log that has lost its last segments is no older log, and one that has lost everything is no new one.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt as _;
use futures::executor::block_on;
use leasehold_raft_log::{
    Driver, Fault, FileSystem as _, Log, OpenError, SimulatedFileSystem, Survival, Vote, log_id,
};
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use support::{DIR, entry, group, head_segment, open, options, read_all, start_append};

const HEAD: &str = "log/head";

fn open_driven(fs: &SimulatedFileSystem) -> (Log, Driver) {
    Log::open_driven(Arc::new(fs.clone()), Path::new(DIR), options()).unwrap()
}

/// Appends entries that fill a few segments.
fn fill(log: &Log, driver: &mut Driver, range: std::ops::Range<u64>) {
    for index in range {
        let answer = start_append(&mut group(log, 1), vec![entry(1, index, vec![index as u8; 900])]).unwrap();
        driver.write();
        block_on(answer).unwrap();
    }
}

fn segments(fs: &SimulatedFileSystem) -> Vec<PathBuf> {
    fs.paths().into_iter().filter(|path| path.to_str().unwrap().contains("segment-")).collect()
}

fn number(path: &Path) -> u64 {
    u64::from_str_radix(path.to_str().unwrap().strip_prefix("log/segment-").unwrap(), 16).unwrap()
}

/// A closed log of several segments, the last of which its head names.
fn written() -> SimulatedFileSystem {
    let fs = SimulatedFileSystem::new();
    let (log, mut driver) = open_driven(&fs);
    fill(&log, &mut driver, 0..20);
    driver.keep();
    assert_eq!(head_segment(&fs), number(segments(&fs).last().unwrap()));
    assert!(segments(&fs).len() > 3);
    drop((log, driver));
    fs.after_kill()
}

fn unique_id(fs: &SimulatedFileSystem) -> [u8; 16] {
    open(fs).unwrap().unique_id()
}

#[test]
fn a_log_without_its_last_segments_is_refused_and_left_alone() {
    let fs = written();
    let all = segments(&fs);
    for kept in 0..all.len() {
        let fs = fs.after_kill();
        all[kept..].iter().for_each(|path| fs.remove(path).unwrap());
        let before = fs.operations();
        let error = open(&fs).err().unwrap();
        let found = kept.checked_sub(1).map_or(0, |last| number(&all[last]));
        let known = number(all.last().unwrap());
        assert!(
            matches!(&error, OpenError::Shortened { found: f, known: k, .. } if (*f, *k) == (found, known)),
            "{error}"
        );
        let words = error.to_string();
        let advice = ["is damaged", "restore the disk", "remove-node", "empty its data folder", "add-node"];
        assert!(advice.iter().all(|advice| words.contains(advice)), "{words}");
        assert_eq!(fs.operations(), before, "it is left as it is");
    }
    assert_eq!(read_all(&mut group(&open(&fs).unwrap(), 1)).unwrap().len(), 20);
}

/// Nothing in it tells that it was ever begun.
#[test]
fn a_last_segment_that_reads_as_zeros_is_refused() {
    let fs = written();
    let last = segments(&fs).pop().unwrap();
    fs.corrupt(&last, 0, &vec![0; fs.read(&last).len()]);
    assert!(matches!(open(&fs).err(), Some(OpenError::Shortened { .. })));
}

#[test]
fn a_changed_byte_of_the_head_is_refused_and_so_is_a_cut() {
    let fs = written();
    let bytes = fs.read(Path::new(HEAD));
    for (at, byte) in bytes.iter().enumerate() {
        let changed = fs.after_kill();
        changed.corrupt(Path::new(HEAD), at as u64, &[byte ^ 0x04]);
        assert!(matches!(open(&changed).err(), Some(OpenError::Damaged { .. })), "byte {at}");
        changed.cut(Path::new(HEAD), at);
        assert!(matches!(open(&changed).err(), Some(OpenError::Damaged { .. })), "{at} bytes");
    }
}

#[test]
fn a_log_keeps_its_id_and_no_other_has_it() {
    let fs = SimulatedFileSystem::new();
    let id = unique_id(&fs);
    let lost_power = fs.after_power_loss(Survival::Nothing, 0);
    assert_eq!(unique_id(&lost_power), id);
    let (log, mut driver) = open_driven(&lost_power);
    fill(&log, &mut driver, 0..20);
    driver.keep();
    assert_eq!(log.unique_id(), id);
    assert_eq!(unique_id(&lost_power.after_power_loss(Survival::Nothing, 0)), id);
    assert_ne!(unique_id(&SimulatedFileSystem::new()), id);
}

/// As a program wrote it that knew no heads.
#[test]
fn a_log_without_a_head_gets_one_of_its_own() {
    let fs = written();
    let id = unique_id(&fs);
    fs.remove(Path::new(HEAD)).unwrap();
    let adopted = unique_id(&fs);
    assert_ne!(adopted, id);
    assert_eq!(head_segment(&fs), number(segments(&fs).last().unwrap()));
    assert_eq!(read_all(&mut group(&open(&fs).unwrap(), 1)).unwrap().len(), 20);
    assert_eq!(unique_id(&fs.after_power_loss(Survival::Nothing, 0)), adopted);
}

/// What was not begun may be gone: a head that lags, or was not written in time, refuses nothing.
#[test]
fn a_segment_that_was_not_begun_is_not_missed() {
    let fs = SimulatedFileSystem::new();
    let (log, mut driver) = open_driven(&fs);
    fill(&log, &mut driver, 0..3);
    driver.keep();
    let named = head_segment(&fs);
    // The next batch begins a segment, and power is lost on its way there or to the head.
    for lost_at in 1..14 {
        let fs = fs.after_kill();
        let (log, mut driver) = open_driven(&fs);
        fs.fail_at(fs.operations() + lost_at, Fault::PowerLoss);
        let answer = start_append(&mut group(&log, 1), vec![entry(1, 3, vec![3; 3_500])]).unwrap();
        driver.write();
        let is_written = block_on(answer).is_ok();
        driver.keep();
        for survival in Survival::ALL {
            let found = fs.after_power_loss(survival, lost_at);
            let entries = read_all(&mut group(&open(&found).unwrap(), 1)).unwrap().len();
            assert!(entries == 4 || (entries == 3 && !is_written), "{lost_at} {survival:?}: {entries}");
            assert!(head_segment(&found) >= named);
        }
    }
}

/// Segments that nothing needs go, the one that the head named when it was written among them.
#[test]
fn segments_that_go_are_not_missed() {
    let fs = SimulatedFileSystem::new();
    let (log, mut driver) = open_driven(&fs);
    let mut next = 0;
    for round in 1..=12 {
        fill(&log, &mut driver, next..next + 9);
        next += 9;
        block_on(group(&log, 1).purge(log_id(1, next - 1))).unwrap();
        let mut voted = Box::pin(async { group(&log, 1).save_vote(&Vote::new(round, 1)).await });
        assert!(voted.as_mut().now_or_never().is_none());
        driver.write();
        assert!(voted.as_mut().now_or_never().unwrap().is_ok());
        for _ in 0..4 {
            driver.keep();
            driver.write();
        }
        for survival in Survival::ALL {
            let log = open(&fs.after_power_loss(survival, round)).unwrap();
            assert_eq!(block_on(group(&log, 1).read_vote()).unwrap(), Some(Vote::new(round, 1)));
        }
    }
    let (left, last) = (segments(&fs).len() as u64, number(segments(&fs).last().unwrap()));
    assert!(left + 6 < last, "{left} segments are left, of {last}");
}
