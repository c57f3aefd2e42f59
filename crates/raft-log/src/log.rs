//! The log as a node holds it: opening, contents of messages, snapshots, and what it tells of itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;

use crate::error::{LogError, OpenError, ReadError};
use crate::filesystem::FileSystem;
use crate::format::{Kind, RECORD_HEADER_BYTES, is_record_of};
use crate::group::GroupLog;
use crate::head_file::Head;
use crate::housekeeper::{self, Housekeeper, SnapshotChange};
use crate::index::{Index, Place};
use crate::limits::{READ_AHEAD_BYTES, SEGMENT_BYTES_MIN};
use crate::payload::{GroupId, LogTypes};
use crate::reading::Reading;
use crate::recovery::recover;
use crate::segments::Pool;
use crate::snapshot::{self, SavedSnapshot};
use crate::writer::{Op, Queue, Queued, Writer};

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// Length of a segment file.
    pub segment_bytes: u64,
    /// Memory for recent entries and contents.
    pub cache_bytes: usize,
    /// Files that are kept ready.
    pub spare_segments: usize,
    /// Segments that may be pinned by entries before [`Log::snapshot_wanted`] names groups.
    pub pinned_segments_max: usize,
    /// A segment whose live share falls below this many percent is emptied.
    pub live_percent_min: u8,
    /// Free bytes of the file system below which [`Log::disk_is_low`].
    pub disk_low_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            cache_bytes: 64 << 20,
            spare_segments: 2,
            pinned_segments_max: 4,
            live_percent_min: 50,
            disk_low_bytes: 1 << 30,
        }
    }
}

/// What opening a log found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    pub records: u64,
    /// Of all segments.
    pub bytes: u64,
    /// Of the files of those that had to be read.
    pub read_bytes: u64,
}

/// The log in numbers, since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub batches: u64,
    pub appended_bytes: u64,
    pub sync_us: u64,
    pub moved_bytes: u64,
    pub segments: u64,
    pub live_bytes: u64,
    pub cached_bytes: u64,
}

#[derive(Default)]
pub struct Counters {
    batches: AtomicU64,
    appended_bytes: AtomicU64,
    sync_us: AtomicU64,
    pub moved_bytes: AtomicU64,
}

impl Counters {
    pub fn wrote(&self, bytes: usize) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.appended_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn synced(&self, took: Duration) {
        self.sync_us.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }
}

/// The ranges that a state machine refers to, by group and entry.
pub type LiveRanges = dyn Fn(GroupId, u64) -> Vec<(u32, u32)> + Send + Sync;
/// The entries that a state machine refers to, with the live bytes of each, by group.
pub type LiveEntries = dyn Fn(GroupId) -> Vec<(u64, u64)> + Send + Sync;

/// What the threads of a log share.
pub struct Shared {
    pub fs: Arc<dyn FileSystem>,
    pub dir: PathBuf,
    pub options: Options,
    pub pool: Pool,
    pub queue: Queue,
    pub stats: Counters,
    pub housekeeper: Housekeeper,
    pub live_ranges: OnceLock<Arc<LiveRanges>>,
    pub live_entries: OnceLock<Arc<LiveEntries>>,
    pub is_disk_low: AtomicBool,
    pub reading: Reading,
    index: Mutex<Index>,
    failure: Mutex<Failure>,
    head: Mutex<Head>,
}

#[derive(Default)]
struct Failure {
    error: Option<LogError>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Shared {
    pub fn lock_index(&self) -> MutexGuard<'_, Index> {
        // The index is changed in steps that do not panic half-way; if one did, the log must not go on.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes in the folder which segment has been begun by now, if it does not say so yet.
    pub fn advance_head(&self) {
        let begun = self.lock_index().last_begun();
        if let (None, Some(begun)) = (self.failure(), begun) {
            let mut head = self.lock_head();
            *head = head.advance(self.fs.as_ref(), &self.dir, begun);
        }
    }

    fn lock_head(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn failure(&self) -> Option<LogError> {
        self.lock_failure().error.clone()
    }

    /// Closes the log for good and says so.
    pub fn fail(&self, error: &io::Error) -> LogError {
        let mut failure = self.lock_failure();
        let error = failure.error.get_or_insert_with(|| LogError::Failed(error.to_string())).clone();
        tracing::error!(dir = %self.dir.display(), %error, "the log is closed: nothing more is written");
        failure.waiting.clear();
        error
    }

    fn lock_failure(&self) -> MutexGuard<'_, Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes records and the states of groups, and waits for the disk.
    pub fn submit(
        &self,
        records: Vec<Queued>,
        states: Vec<GroupId>,
    ) -> oneshot::Receiver<Result<(), LogError>> {
        let (sender, receiver) = oneshot::channel();
        // Nobody may be waiting any more.
        let done = Box::new(move |outcome| drop(sender.send(outcome)));
        self.queue.push(Op { records, states, done });
        receiver
    }

    /// Lets the disk go on to the next segment, if who reads is likely to.
    pub fn read_ahead_of(&self, place: Place) {
        if !self.reading.is_next_wanted(place, self.options.segment_bytes) {
            return;
        }
        let next = {
            let index = self.lock_index();
            index.segments.range(place.segment + 1..).next().map(|(_, next)| Arc::clone(&next.file))
        };
        if let Some(file) = next {
            file.read_soon(READ_AHEAD_BYTES);
        }
    }

    /// The payload of a record, checked.
    pub fn read_record(
        &self,
        kind: Kind,
        group: GroupId,
        index: u64,
        place: Place,
    ) -> Result<Bytes, ReadError> {
        let file = self.lock_index().segments.get(&place.segment).map(|segment| Arc::clone(&segment.file));
        let missing = ReadError::Missing { group, index, offset: 0, end: u64::from(place.len) };
        let file = file.ok_or(missing)?;
        let mut record = vec![0; RECORD_HEADER_BYTES + place.len as usize];
        let offset = u64::from(place.offset) - RECORD_HEADER_BYTES as u64;
        let path = || self.pool.segment_path(place.segment);
        file.read_at(&mut record, offset).map_err(|source| ReadError::Io { path: path(), source })?;
        if !is_record_of(&record, kind, group, index) {
            return Err(ReadError::Damaged { path: path(), offset, group, index });
        }
        Ok(Bytes::from(record).slice(RECORD_HEADER_BYTES..))
    }
}

/// Ends the threads when the last handle goes away.
struct Threads {
    shared: Arc<Shared>,
    handles: Mutex<Vec<JoinHandle<()>>>,
    /// Keeps other processes out.
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
}

impl Threads {
    fn stop(&self) {
        self.shared.housekeeper.stop();
        self.shared.queue.close();
        let handles = std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        for handle in handles {
            if handle.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
        // Nothing of this log touches the folder any more.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A log that was recovered and is not at work yet.
struct Parts {
    shared: Arc<Shared>,
    writer: Writer,
    lock: Box<dyn Send + Sync>,
    recovered: Recovered,
}

impl Parts {
    fn open(fs: Arc<dyn FileSystem>, dir: &Path, options: Options) -> Result<Self, OpenError> {
        assert!(
            options.segment_bytes >= SEGMENT_BYTES_MIN,
            "a segment is at least {SEGMENT_BYTES_MIN} bytes"
        );
        let failed = |action, path: PathBuf| move |source| OpenError::Io { action, path, source };
        fs.create_dir(dir).map_err(failed("create", dir.to_owned()))?;
        let lock = fs.lock(&dir.join("lock")).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked(dir.to_owned()),
            _ => OpenError::Io { action: "lock", path: dir.to_owned(), source },
        })?;
        let recovery = recover(&fs, dir, &options)?;
        let recovered = recovery.found;
        let shared = Arc::new(Shared {
            fs,
            dir: dir.to_owned(),
            options,
            pool: recovery.pool,
            queue: Queue::default(),
            stats: Counters::default(),
            housekeeper: Housekeeper::default(),
            live_ranges: OnceLock::new(),
            live_entries: OnceLock::new(),
            is_disk_low: AtomicBool::new(false),
            reading: Reading::default(),
            index: Mutex::new(recovery.index),
            failure: Mutex::default(),
            head: Mutex::new(recovery.head),
        });
        let writer = Writer::new(Arc::clone(&shared), recovery.next_number);
        Ok(Self { shared, writer, lock, recovered })
    }
}

/// The write-ahead log of a node. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    pub(crate) shared: Arc<Shared>,
    threads: Arc<Threads>,
}

impl Log {
    /// Opens the log of a folder, or makes one.
    ///
    /// # Errors
    /// When another process has it open, a newer version wrote it, or what was durable is damaged or gone.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        options: Options,
    ) -> Result<(Self, Recovered), OpenError> {
        let failed =
            |path: PathBuf| move |source| OpenError::Io { action: "start a thread for", path, source };
        let Parts { shared, writer, lock, recovered } = Parts::open(fs, dir, options)?;
        let keeper = Arc::clone(&shared);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned());
            thread.spawn(work).map_err(failed(dir.to_owned()))
        };
        let handles = vec![
            spawn("log-writer", Box::new(move || writer.run()))?,
            spawn("log-keeper", Box::new(move || housekeeper::run(&keeper)))?,
        ];
        Ok((Self::with(shared, handles, lock), recovered))
    }

    /// Opens a log without threads: it is written when its driver is told to.
    ///
    /// # Errors
    /// As [`Log::open`].
    #[cfg(any(test, feature = "testing"))]
    pub fn open_driven(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        options: Options,
    ) -> Result<(Self, crate::driver::Driver), OpenError> {
        let Parts { shared, writer, lock, .. } = Parts::open(fs, dir, options)?;
        let driver = crate::driver::Driver::new(Arc::clone(&shared), writer);
        Ok((Self::with(shared, Vec::new(), lock), driver))
    }

    fn with(shared: Arc<Shared>, handles: Vec<JoinHandle<()>>, lock: Box<dyn Send + Sync>) -> Self {
        let threads = Threads {
            shared: Arc::clone(&shared),
            handles: Mutex::new(handles),
            lock: Mutex::new(Some(lock)),
        };
        Self { shared, threads: Arc::new(threads) }
    }

    /// What tells this log from every other one, drawn when it was made. It stays for as long as the folder does.
    pub fn unique_id(&self) -> [u8; 16] {
        self.shared.lock_head().unique_id
    }

    /// The groups that have something in the log, in the order of their ids.
    pub fn groups(&self) -> Vec<GroupId> {
        let index = self.shared.lock_index();
        index.groups.iter().filter(|(_, group)| !group.is_removed).map(|(id, _)| *id).collect()
    }

    /// The part of one group, as Raft uses it.
    pub fn group<C: LogTypes>(&self, id: GroupId) -> GroupLog<C> {
        GroupLog::new(Arc::clone(&self.shared), id)
    }

    /// Forgets all of a group, durably.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn remove_group(&self, id: GroupId) -> Result<(), LogError> {
        self.shared.failure().map_or(Ok(()), Err)?;
        self.shared.lock_index().remove_group(id);
        wait(self.shared.submit(Vec::new(), vec![id])).await?;
        wait(self.shared.housekeeper.change_snapshot(id, SnapshotChange::Remove)).await
    }

    /// Replaces the snapshot of a group, durably, after everything that was handed over before: it may refer to it.
    ///
    /// # Errors
    /// When it cannot be written: the old one is still there, and if the new one does not fit on the disk, the log goes on. Also when
    /// the group was removed.
    pub async fn save_snapshot(&self, group: GroupId, meta: Bytes, state: Bytes) -> Result<(), LogError> {
        let generation = self.shared.lock_index().generation_in_use(group)?;
        wait(self.shared.submit(Vec::new(), Vec::new())).await?;
        let save = SnapshotChange::Save { generation, meta, state };
        wait(self.shared.housekeeper.change_snapshot(group, save)).await
    }

    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn load_snapshot(&self, group: GroupId) -> Result<Option<SavedSnapshot>, ReadError> {
        snapshot::load(self.shared.fs.as_ref(), &self.shared.dir, group)
    }

    /// Groups whose entries keep the oldest segments from being used again: a snapshot of each lets Raft purge them. So many bytes
    /// of segments may be kept without, and [`Options::pinned_segments_max`] in any case.
    pub fn snapshot_wanted(&self, tolerated_bytes: u64) -> Vec<GroupId> {
        let options = &self.shared.options;
        let tolerated = usize::try_from(tolerated_bytes / options.segment_bytes).unwrap_or(usize::MAX);
        let tolerated = tolerated.max(options.pinned_segments_max);
        let index = self.shared.lock_index();
        let pinned = index.segments.iter().filter(|(_, segment)| segment.pins > 0).map(|(number, _)| *number);
        let pinned = pinned.collect::<Vec<_>>();
        let Some(last_beyond) = pinned.len().checked_sub(tolerated.saturating_add(1)) else {
            return Vec::new();
        };
        let limit = pinned[last_beyond];
        let pins_old = |group: &crate::index::GroupIndex| {
            group.slots.front().is_some_and(|slot| slot.place.segment <= limit)
        };
        index.groups.iter().filter(|(_, group)| pins_old(group)).map(|(id, _)| *id).collect()
    }

    pub fn stats(&self) -> Stats {
        let counters = &self.shared.stats;
        let index = self.shared.lock_index();
        Stats {
            batches: counters.batches.load(Ordering::Relaxed),
            appended_bytes: counters.appended_bytes.load(Ordering::Relaxed),
            sync_us: counters.sync_us.load(Ordering::Relaxed),
            moved_bytes: counters.moved_bytes.load(Ordering::Relaxed),
            segments: index.segments.len() as u64,
            live_bytes: index.segments.values().map(|segment| segment.live_bytes).sum(),
            cached_bytes: index.cache.len_bytes() as u64,
        }
    }

    /// Whether less than the configured space was free when it was last looked at, within the last second or so.
    pub fn disk_is_low(&self) -> bool {
        self.shared.is_disk_low.load(Ordering::Relaxed)
    }

    /// Whether a read that misses the cache may take time.
    pub fn reads_may_wait(&self) -> bool {
        self.shared.fs.may_wait()
    }

    /// Why the log takes nothing more, if it has failed.
    pub fn failure(&self) -> Option<LogError> {
        self.shared.failure()
    }

    /// Waits until the log fails.
    pub async fn failed(&self) -> LogError {
        loop {
            let waiting = {
                let mut failure = self.shared.lock_failure();
                if let Some(error) = &failure.error {
                    return error.clone();
                }
                let (sender, receiver) = oneshot::channel();
                failure.waiting.push(sender);
                receiver
            };
            // Either way the answer is in the failure.
            let _ = waiting.await;
        }
    }

    /// Writes what is queued and stops; later writes are refused.
    pub fn close(&self) {
        self.threads.stop();
    }
}

pub async fn wait(answer: oneshot::Receiver<Result<(), LogError>>) -> Result<(), LogError> {
    answer.await.unwrap_or(Err(LogError::Closed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem_simulated::SimulatedFileSystem;
    use crate::format::Record;
    use crate::index::NewEntry;
    use crate::writer::Note;

    const GROUP: GroupId = GroupId(1);

    fn append(log: &Log, index: u64, body: Bytes) {
        log.shared.lock_index().append(GROUP, &[NewEntry { index, term: 1, body: body.clone() }]);
        let record = Record { kind: Kind::Entry, group: GROUP, generation: 0, index, term: 1, payload: body };
        let answer = log.shared.submit(vec![Queued { record, note: Note::Entry }], Vec::new());
        futures::executor::block_on(wait(answer)).unwrap();
    }

    /// A segment may be used again while somebody reads it, and what stands there then is as sound as what stood there before.
    #[test]
    fn a_record_is_not_taken_for_another_that_stands_in_its_place() {
        let fs = Arc::new(SimulatedFileSystem::new());
        let options = Options { segment_bytes: SEGMENT_BYTES_MIN, ..Options::default() };
        let (log, _) = Log::open(fs, Path::new("log"), options).unwrap();
        append(&log, 0, Bytes::from_static(b"zero"));
        append(&log, 1, Bytes::from_static(b"one."));
        let place = |index| log.shared.lock_index().groups[&GROUP].slot(index).unwrap().place;
        let read = |kind, group, index, place| log.shared.read_record(kind, group, index, place);
        assert_eq!(read(Kind::Entry, GROUP, 1, place(1)).unwrap(), "one.");
        assert!(matches!(read(Kind::Entry, GROUP, 0, place(1)), Err(ReadError::Damaged { .. })));
        assert!(matches!(read(Kind::Contents, GROUP, 1, place(1)), Err(ReadError::Damaged { .. })));
        assert!(matches!(read(Kind::Entry, GroupId(2), 1, place(1)), Err(ReadError::Damaged { .. })));
    }
}
