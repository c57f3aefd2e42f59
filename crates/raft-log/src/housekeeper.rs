//! The thread for everything that must not hold up a batch: snapshots, indexes, spare files, how far the log has come, and emptying old
//! segments.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::channel::oneshot;
use futures::executor::block_on;

use crate::compaction::{self, Stuck};
use crate::error::LogError;
use crate::log::Shared;
use crate::payload::GroupId;
use crate::snapshot::SaveError;
use crate::{segment_index, snapshot};

/// How often it looks around when nobody wakes it.
const INTERVAL: Duration = Duration::from_secs(1);

/// What it has been asked for.
#[derive(Default)]
pub struct Housekeeper {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    asked: Asked,
    is_woken: bool,
    is_stopped: bool,
}

/// What is to be written.
#[derive(Default)]
pub struct Asked {
    /// In the order in which they were asked for.
    snapshots: Vec<AskedChange>,
    /// Of full segments, by their numbers.
    indexes: Vec<(u64, Vec<u8>)>,
}

impl Asked {
    fn is_empty(&self) -> bool {
        self.snapshots.is_empty() && self.indexes.is_empty()
    }
}

struct AskedChange {
    group: GroupId,
    change: SnapshotChange,
    done: oneshot::Sender<Result<(), LogError>>,
}

/// What shall become of a group's snapshot.
pub enum SnapshotChange {
    /// It is replaced, unless the group was removed since it had this generation.
    Save {
        generation: u32,
        meta: Bytes,
        state: Bytes,
    },
    Remove,
}

impl Housekeeper {
    pub fn wake(&self) {
        self.lock().is_woken = true;
        self.changed.notify_one();
    }

    pub fn stop(&self) {
        self.lock().is_stopped = true;
        self.changed.notify_one();
    }

    /// Asks for a change of a group's snapshot. Changes are made one after the other.
    pub fn change_snapshot(
        &self,
        group: GroupId,
        change: SnapshotChange,
    ) -> oneshot::Receiver<Result<(), LogError>> {
        let (done, outcome) = oneshot::channel();
        let mut locked = self.lock();
        if locked.is_stopped {
            // Nobody may be waiting any more.
            let _ = done.send(Err(LogError::Closed));
            return outcome;
        }
        locked.asked.snapshots.push(AskedChange { group, change, done });
        drop(locked);
        self.changed.notify_one();
        outcome
    }

    /// The index of a segment that is full and synced.
    pub fn index(&self, segment: u64, bytes: Vec<u8>) {
        self.lock().asked.indexes.push((segment, bytes));
        self.changed.notify_one();
    }

    /// Waits for work; `None` when it was stopped.
    fn next(&self) -> Option<Asked> {
        let idle = |state: &mut State| state.asked.is_empty() && !state.is_woken && !state.is_stopped;
        let waited = self.changed.wait_timeout_while(self.lock(), INTERVAL, idle);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        Self::take(state)
    }

    /// What it has been asked for so far.
    #[cfg(any(test, feature = "testing"))]
    pub fn asked(&self) -> Option<Asked> {
        Self::take(self.lock())
    }

    fn take(mut state: MutexGuard<'_, State>) -> Option<Asked> {
        state.is_woken = false;
        let asked = std::mem::take(&mut state.asked);
        (!state.is_stopped || !asked.is_empty()).then_some(asked)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn run(shared: &Shared) {
    let mut stuck = Stuck::default();
    while let Some(asked) = shared.housekeeper.next() {
        block_on(pass(shared, asked, &mut stuck));
    }
}

/// Saves and tidies up. It waits for nobody but the writer.
pub async fn pass(shared: &Shared, asked: Asked, stuck: &mut Stuck) {
    shared.advance_head();
    for AskedChange { group, change, done } in asked.snapshots {
        // Nobody may be waiting any more.
        let _ = done.send(change_snapshot(shared, group, &change));
    }
    save_indexes(shared, &asked.indexes);
    if let Err(error) = tidy(shared, stuck).await {
        tracing::warn!(dir = %shared.dir.display(), %error, "cannot tidy the log up; it will be tried again");
    }
}

fn change_snapshot(shared: &Shared, group: GroupId, change: &SnapshotChange) -> Result<(), LogError> {
    shared.failure().map_or(Ok(()), Err)?;
    let (fs, dir) = (shared.fs.as_ref(), shared.dir.as_path());
    // A failed sync leaves the state of the disk unknown: the log ends as it would for its own.
    match change {
        SnapshotChange::Save { generation, meta, state } => {
            // A group that is removed from here on has its removal behind this save.
            if shared.lock_index().generation_in_use(group)? != *generation {
                return Err(LogError::Removed { group });
            }
            snapshot::save(fs, dir, group, meta, state).map_err(|error| match error {
                SaveError::NoRoom(error) => LogError::NoRoom(error.to_string()),
                SaveError::Failed(error) => shared.fail(&error),
            })
        }
        SnapshotChange::Remove => snapshot::remove(fs, dir, group).map_err(|error| shared.fail(&error)),
    }
}

fn save_indexes(shared: &Shared, indexes: &[(u64, Vec<u8>)]) {
    if shared.failure().is_some() {
        return;
    }
    let (fs, disk_low_bytes) = (shared.fs.as_ref(), shared.options.disk_low_bytes);
    for (segment, bytes) in indexes {
        // It may have been full and of no use to anybody within one pass.
        if shared.lock_index().segments.contains_key(segment) {
            segment_index::save(fs, &shared.dir, disk_low_bytes, *segment, bytes);
        }
    }
}

async fn tidy(shared: &Shared, stuck: &mut Stuck) -> io::Result<()> {
    if shared.failure().is_some() {
        return Ok(());
    }
    let is_low = shared.fs.free_bytes(&shared.dir)? < shared.options.disk_low_bytes;
    if is_low != shared.is_disk_low.swap(is_low, Ordering::Relaxed) {
        tracing::warn!(dir = %shared.dir.display(), is_low, "free space crossed the low-water mark");
    }
    let compacted = compact(shared, stuck).await;
    if is_low || shared.failure().is_some() {
        return compacted;
    }
    // The writer needs the next file, whatever could not be moved.
    let filled = shared.pool.fill(shared.options.spare_segments, Instant::now());
    compacted.and(filled)
}

async fn compact(shared: &Shared, stuck: &mut Stuck) -> io::Result<()> {
    compaction::free_idle(shared).await?;
    if compaction::empty_sparse(shared, stuck).await? > 0 {
        compaction::free_idle(shared).await?;
    }
    Ok(())
}
