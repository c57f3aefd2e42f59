//! The log as a node holds it: opening, contents of messages, snapshots, and what it tells of itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;

use crate::cache::Key;
use crate::codec::NORMAL_PREFIX_BYTES;
use crate::error::{LogError, OpenError, ReadError};
use crate::filesystem::FileSystem;
use crate::format::{Kind, RECORD_HEADER_BYTES, Record, is_sound};
use crate::group::GroupLog;
use crate::housekeeper::{self, Housekeeper};
use crate::index::{Index, Place, Source};
use crate::limits::SEGMENT_BYTES_MIN;
use crate::payload::{GroupId, LogTypes};
use crate::recovery::recover;
use crate::segments::Pool;
use crate::snapshot::{self, SavedSnapshot};
use crate::writer::{Note, Op, Queue, Queued, Writer, encode_contents};

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
    pub bytes: u64,
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

type LiveRanges = dyn Fn(GroupId, u64) -> Vec<(u32, u32)> + Send + Sync;

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
    pub is_disk_low: AtomicBool,
    index: Mutex<Index>,
    failure: Mutex<Failure>,
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

    /// The payload of a record, checked.
    pub fn read_record(&self, group: GroupId, index: u64, place: Place) -> Result<Bytes, ReadError> {
        let file = self.lock_index().segments.get(&place.segment).map(|segment| Arc::clone(&segment.file));
        let missing = ReadError::Missing { group, index, offset: 0, end: u64::from(place.len) };
        let file = file.ok_or(missing)?;
        let mut record = vec![0; RECORD_HEADER_BYTES + place.len as usize];
        file.read_at(&mut record, u64::from(place.offset) - RECORD_HEADER_BYTES as u64)
            .map_err(|source| ReadError::Io { path: self.pool.segment_path(place.segment), source })?;
        if !is_sound(&record) {
            return Err(ReadError::Damaged { group, index });
        }
        Ok(Bytes::from(record).slice(RECORD_HEADER_BYTES..))
    }
}

/// Ends the threads when the last handle goes away.
struct Threads {
    shared: Arc<Shared>,
    handles: Mutex<Vec<JoinHandle<()>>>,
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
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The write-ahead log of a node. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    threads: Arc<Threads>,
    _lock: Arc<dyn Send + Sync>,
}

/// What stands where a content is looked for.
enum Found {
    Bytes(Bytes, u32),
    At(Place, u32),
}

impl Log {
    /// Opens the log of a folder, or makes one.
    ///
    /// # Errors
    /// When another process has it open, a newer version wrote it, or what was durable is damaged.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        options: Options,
    ) -> Result<(Self, Recovered), OpenError> {
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
        let recovery = recover(&fs, dir, options.segment_bytes, options.cache_bytes)?;
        let recovered = Recovered { records: recovery.records, bytes: recovery.bytes };
        let shared = Arc::new(Shared {
            fs,
            dir: dir.to_owned(),
            options,
            pool: recovery.pool,
            queue: Queue::default(),
            stats: Counters::default(),
            housekeeper: Housekeeper::default(),
            live_ranges: OnceLock::new(),
            is_disk_low: AtomicBool::new(false),
            index: Mutex::new(recovery.index),
            failure: Mutex::default(),
        });
        let writer = Writer::new(Arc::clone(&shared), recovery.next_number);
        let keeper = Arc::clone(&shared);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(work)
                .map_err(failed("start a thread for", dir.to_owned()))
        };
        let handles = vec![
            spawn("log-writer", Box::new(move || writer.run()))?,
            spawn("log-keeper", Box::new(move || housekeeper::run(&keeper)))?,
        ];
        let threads = Arc::new(Threads { shared: Arc::clone(&shared), handles: Mutex::new(handles) });
        Ok((Self { shared, threads, _lock: Arc::from(lock) }, recovered))
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
        self.shared.lock_index().remove_group(id);
        wait(self.shared.submit(Vec::new(), vec![id])).await?;
        snapshot::remove(self.shared.fs.as_ref(), &self.shared.dir, id)
            .map_err(|error| self.shared.fail(&error))
    }

    /// Part of an entry's payload.
    ///
    /// # Errors
    /// When it was released, or cannot be read.
    pub fn read_content(
        &self,
        group: GroupId,
        index: u64,
        offset: u32,
        len: u32,
    ) -> Result<Bytes, ReadError> {
        let missing = || ReadError::Missing { group, index, offset, end: u64::from(offset) + u64::from(len) };
        // A record that is moved or freed while it is read fails its checksum: look again.
        let mut tries_left = 3;
        loop {
            let (place, at) = match self.find_content(group, index, offset, len).ok_or_else(missing)? {
                Found::Bytes(record, at) => return slice(&record, at, len).ok_or_else(missing),
                Found::At(place, at) => (place, at),
            };
            tries_left -= 1;
            match self.shared.read_record(group, index, place) {
                Ok(record) => {
                    let mut locked = self.shared.lock_index();
                    locked.cache.keep(Key::Record(place.segment, place.offset), record.clone());
                    return slice(&record, at, len).ok_or_else(missing);
                }
                Err(error) if tries_left == 0 => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Part of an entry's payload, if no disk has to be read for it.
    pub fn try_read_cached(&self, group: GroupId, index: u64, offset: u32, len: u32) -> Option<Bytes> {
        match self.find_content(group, index, offset, len)? {
            Found::Bytes(record, at) => slice(&record, at, len),
            Found::At(..) => None,
        }
    }

    /// The record with a content, and where in the record's payload it begins.
    fn find_content(&self, id: GroupId, index: u64, offset: u32, len: u32) -> Option<Found> {
        let locked = self.shared.lock_index();
        let group = locked.groups.get(&id)?;
        let in_entry = offset.checked_add(NORMAL_PREFIX_BYTES)?;
        let (place, at) = match group.retained.get(&index).map(|held| &held.source) {
            Some(Source::Entry(place)) => (*place, in_entry),
            Some(Source::Contents { place, ranges }) => (*place, find_range(ranges, offset, len)?),
            None => (group.slot(index)?.place, in_entry),
        };
        let keys = [Key::Entry(id, index), Key::Record(place.segment, place.offset)];
        let is_entry = at == in_entry
            && !matches!(group.retained.get(&index), Some(held) if matches!(held.source, Source::Contents { .. }));
        let cached = if is_entry {
            keys.iter().find_map(|key| locked.cache.get(*key))
        } else {
            locked.cache.get(keys[1])
        };
        Some(cached.map_or(Found::At(place, at), |record| Found::Bytes(record, at)))
    }

    /// The state machine refers to `bytes` of the entry's payload from now on.
    pub fn retain(&self, group: GroupId, index: u64, bytes: u64) {
        self.shared.lock_index().retain(group, index, u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// The state machine no longer refers to `bytes` of the entry's payload.
    pub fn release(&self, group: GroupId, index: u64, bytes: u64) {
        self.shared.lock_index().release(group, index, u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Says what the state machine refers to after a restart or a snapshot: entries and bytes of each, sorted. All else is freed.
    pub fn restore_live(&self, group: GroupId, live: &[(u64, u64)]) {
        self.shared.lock_index().restore_live(group, live);
    }

    /// The ranges that a state machine refers to, by group and entry; compaction asks for them.
    pub fn set_live_ranges_source(&self, source: Arc<LiveRanges>) {
        // The first one stays: a node has one.
        let _ = self.shared.live_ranges.set(source);
    }

    /// All ranges of entries through `through` that the state machine refers to.
    pub fn live_contents(&self, group: GroupId, through: u64) -> Vec<(u64, Vec<(u32, u32)>)> {
        let indexes = {
            let locked = self.shared.lock_index();
            let Some(found) = locked.groups.get(&group) else { return Vec::new() };
            let retained = found.retained.range(..=through).map(|(index, _)| *index);
            let slots = (found.first..=through)
                .filter(|index| found.slot(*index).is_some_and(|slot| slot.live_bytes > 0));
            let mut indexes = retained.chain(slots).collect::<Vec<_>>();
            indexes.sort_unstable();
            indexes.dedup();
            indexes
        };
        let Some(ranges) = self.shared.live_ranges.get() else { return Vec::new() };
        indexes
            .into_iter()
            .map(|index| (index, ranges(group, index)))
            .filter(|(_, ranges)| !ranges.is_empty())
            .collect()
    }

    /// Stores contents that came with a snapshot, durably: by entry, ranges sorted by offset.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn put_contents(
        &self,
        group: GroupId,
        contents: Vec<(u64, Vec<(u32, Bytes)>)>,
    ) -> Result<(), LogError> {
        let generation = self.shared.lock_index().group_in_use(group).generation;
        let records = contents.into_iter().map(|(index, ranges)| {
            let table = ranges.iter().map(|(offset, bytes)| (*offset, bytes.len() as u32)).collect();
            let payload = encode_contents(&ranges);
            let record = Record { kind: Kind::Contents, group, generation, index, term: 0, payload };
            Queued { record, note: Note::Contents { ranges: table, moved_from: None } }
        });
        wait(self.shared.submit(records.collect(), Vec::new())).await
    }

    /// Replaces the snapshot of a group, durably, after everything that was handed over before: it may refer to it.
    ///
    /// # Errors
    /// When it cannot be written: the old one is still there.
    pub async fn save_snapshot(&self, group: GroupId, meta: Bytes, state: Bytes) -> Result<(), LogError> {
        self.shared.lock_index().group_in_use(group);
        wait(self.shared.submit(Vec::new(), Vec::new())).await?;
        let (sender, receiver) = oneshot::channel();
        self.shared.housekeeper.save(group, meta, state, sender);
        wait(receiver).await
    }

    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn load_snapshot(&self, group: GroupId) -> Result<Option<SavedSnapshot>, ReadError> {
        snapshot::load(self.shared.fs.as_ref(), &self.shared.dir, group)
    }

    /// Groups whose entries keep the oldest segments from being used again: a snapshot of each lets Raft purge them.
    pub fn snapshot_wanted(&self) -> Vec<GroupId> {
        let index = self.shared.lock_index();
        let pinned = index.segments.iter().filter(|(_, segment)| segment.pins > 0).map(|(number, _)| *number);
        let pinned = pinned.collect::<Vec<_>>();
        let Some(last_tolerated) = pinned.len().checked_sub(self.shared.options.pinned_segments_max + 1)
        else {
            return Vec::new();
        };
        let limit = pinned[last_tolerated];
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

/// Where a range begins in the payload of its contents record.
fn find_range(ranges: &[(u32, u32)], offset: u32, len: u32) -> Option<u32> {
    let mut at = 4 + 8 * ranges.len() as u32;
    for (start, range_len) in ranges {
        if offset >= *start && u64::from(offset) + u64::from(len) <= u64::from(*start) + u64::from(*range_len)
        {
            return Some(at + (offset - start));
        }
        at += range_len;
    }
    None
}

fn slice(record: &Bytes, at: u32, len: u32) -> Option<Bytes> {
    let end = (at as usize).checked_add(len as usize)?;
    (end <= record.len()).then(|| record.slice(at as usize..end))
}

pub async fn wait(answer: oneshot::Receiver<Result<(), LogError>>) -> Result<(), LogError> {
    answer.await.unwrap_or(Err(LogError::Closed))
}
