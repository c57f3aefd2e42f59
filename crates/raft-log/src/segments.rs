//! The files of the log: names, spare files ready for use, and what is done with those that are no longer needed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::OpenError;
use crate::filesystem::{File, FileSystem};
use crate::payload::GroupId;
use crate::{head_file, segment_index, snapshot};

const SEGMENT_PREFIX: &str = "segment-";
const SPARE_PREFIX: &str = "spare-";

/// Segments that begin within this time of each other are many: to write each of them twice would take half of what the device
/// can do (docs/decisions/029).
const BUSY: Duration = Duration::from_secs(1);

/// A file of the full length.
struct Spare {
    path: PathBuf,
    file: Arc<dyn File>,
    is_written: bool,
}

/// How a file is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Make {
    /// Written through once: a sync of new data in it changes no metadata.
    Zeroed,
    /// Only given its space.
    Allocated,
}

/// When segments began.
#[derive(Default)]
struct Pace {
    last: Option<Instant>,
    /// Whether the one before the last began shortly before it.
    is_fast: bool,
}

impl Pace {
    fn started(&mut self, now: Instant) {
        self.is_fast = self.last.is_some_and(|last| now.saturating_duration_since(last) < BUSY);
        self.last = Some(now);
    }

    /// How files are to be made at this pace.
    fn make(&self, now: Instant) -> Make {
        let is_busy =
            self.is_fast && self.last.is_some_and(|last| now.saturating_duration_since(last) < BUSY);
        if is_busy { Make::Allocated } else { Make::Zeroed }
    }
}

/// Keeps the files of a folder.
pub struct Pool {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    segment_bytes: u64,
    spares: Mutex<Vec<Spare>>,
    pace: Mutex<Pace>,
    names: AtomicU64,
}

/// What stands in the folder of a log, sorted.
pub struct Found {
    pub segments: Vec<(u64, PathBuf)>,
    pub spares: Vec<PathBuf>,
    /// The segments that have an index, or had one.
    pub indexes: Vec<u64>,
    /// The groups that have a snapshot.
    pub snapshots: Vec<GroupId>,
    /// Snapshots, and a head, that were being written.
    pub unfinished: Vec<PathBuf>,
}

pub fn find_files(fs: &dyn FileSystem, dir: &Path) -> io::Result<Found> {
    let (mut segments, mut spares, mut indexes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut snapshots, mut unfinished) = (Vec::new(), Vec::new());
    for path in fs.list(dir)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(number) =
            name.strip_prefix(SEGMENT_PREFIX).and_then(|number| u64::from_str_radix(number, 16).ok())
        {
            segments.push((number, path));
        } else if name.starts_with(SPARE_PREFIX) {
            spares.push(path);
        } else if let Some(segment) = segment_index::segment_of(name) {
            indexes.push(segment);
        } else if snapshot::is_unfinished(name) || head_file::is_unfinished(name) {
            unfinished.push(path);
        } else if let Some(group) = snapshot::group_of(name) {
            snapshots.push(group);
        }
    }
    segments.sort();
    spares.sort();
    snapshots.sort();
    Ok(Found { segments, spares, indexes, snapshots, unfinished })
}

impl Pool {
    /// Takes over the spare files of the folder; those that were not finished are removed.
    pub fn new(
        fs: Arc<dyn FileSystem>,
        dir: PathBuf,
        segment_bytes: u64,
        found: Vec<PathBuf>,
    ) -> Result<Self, OpenError> {
        let mut spares = Vec::new();
        let mut names = 0;
        for path in found {
            let number = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_prefix(SPARE_PREFIX)?.parse::<u64>().ok());
            names = names.max(number.map_or(0, |number| number + 1));
            let failed = |action| {
                let path = path.clone();
                move |source| OpenError::Io { action, path, source }
            };
            let file = fs.open(&path).map_err(failed("open"))?;
            if file.len_bytes().map_err(failed("look at"))? == segment_bytes {
                // Perhaps only allocated: that is slower and not wrong.
                spares.push(Spare { path, file, is_written: true });
            } else {
                fs.remove(&path).map_err(failed("remove"))?;
            }
        }
        let (spares, pace, names) = (Mutex::new(spares), Mutex::default(), AtomicU64::new(names));
        Ok(Self { fs, dir, segment_bytes, spares, pace, names })
    }

    /// Puts a file in place as segment `number`, durably; makes one if none is spare.
    pub fn start_segment(&self, number: u64, now: Instant) -> io::Result<Arc<dyn File>> {
        self.pace().started(now);
        let spare = self.spares().pop();
        let spare = match spare {
            Some(spare) => spare,
            None => self.make(self.pace().make(now))?,
        };
        self.fs.rename(&spare.path, &self.segment_path(number))?;
        self.fs.sync_dir(&self.dir)?;
        Ok(spare.file)
    }

    /// Makes files until `count` are spare. While segments follow each other fast they are only allocated; when that is over,
    /// files that were not used are replaced by zeroed ones.
    pub fn fill(&self, count: usize, now: Instant) -> io::Result<()> {
        let make = self.pace().make(now);
        if make == Make::Zeroed {
            let unwritten = self.spares().extract_if(.., |spare| !spare.is_written).collect::<Vec<_>>();
            for spare in unwritten {
                self.fs.remove(&spare.path)?;
            }
        }
        while self.spares().len() < count {
            let spare = self.make(make)?;
            self.spares().push(spare);
        }
        Ok(())
    }

    /// Takes a segment that nothing needs out of the log. It becomes a spare, or goes away when `count` are there.
    pub fn retire(&self, number: u64, file: Arc<dyn File>, count: usize) -> io::Result<()> {
        segment_index::remove(self.fs.as_ref(), &self.dir, number);
        let path = self.segment_path(number);
        let is_full_length = file.len_bytes()? == self.segment_bytes;
        if !is_full_length || self.spares().len() >= count {
            self.fs.remove(&path)?;
            return self.fs.sync_dir(&self.dir);
        }
        let spare = self.spare_path();
        self.fs.rename(&path, &spare)?;
        let synced = self.fs.sync_dir(&self.dir);
        // It is no segment any more, and nobody else would find it. Who begins one with it syncs the folder first.
        self.spares().push(Spare { path: spare, file, is_written: true });
        synced
    }

    pub fn segment_path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{SEGMENT_PREFIX}{number:016x}"))
    }

    fn spare_path(&self) -> PathBuf {
        self.dir.join(format!("{SPARE_PREFIX}{:08}", self.names.fetch_add(1, Ordering::Relaxed)))
    }

    fn make(&self, how: Make) -> io::Result<Spare> {
        let path = self.spare_path();
        let made = self.create(&path, how);
        made.map(|(file, is_written)| Spare { path: path.clone(), file, is_written }).inspect_err(|_| {
            // What is there of it would take space that is missing. If it cannot be removed, the next start does it.
            let _ = self.fs.remove(&path);
        })
    }

    fn create(&self, path: &Path, how: Make) -> io::Result<(Arc<dyn File>, bool)> {
        if how == Make::Allocated
            && let Some(file) = self.fs.create_allocated(path, self.segment_bytes)?
        {
            return Ok((file, false));
        }
        Ok((self.fs.create_zeroed(path, self.segment_bytes)?, true))
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spares(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::RealFileSystem;
    use crate::filesystem_simulated::{Fault, SimulatedFileSystem};

    const SEGMENT_BYTES: u64 = 64 * 1024;

    /// Or its space would be taken until the next start.
    #[test]
    fn a_segment_whose_folder_cannot_be_synced_becomes_a_spare_all_the_same() {
        let fs = SimulatedFileSystem::new();
        let pool = Pool::new(Arc::new(fs.clone()), PathBuf::from("log"), SEGMENT_BYTES, Vec::new()).unwrap();
        let file = pool.start_segment(1, Instant::now()).unwrap();
        // The first operation is the rename.
        fs.fail_at(fs.operations() + 2, Fault::PowerLoss);
        assert!(pool.retire(1, file, 1).is_err());
        let spares = pool.spares().iter().map(|spare| spare.path.clone()).collect::<Vec<_>>();
        assert_eq!((spares.len(), spares), (1, fs.paths()));
    }

    #[test]
    fn spares_are_allocated_while_segments_follow_each_other_fast_and_zeroed_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let fs = Arc::new(RealFileSystem::default());
        let probe = fs.create_allocated(&dir.path().join("probe"), SEGMENT_BYTES).unwrap();
        let can_allocate = probe.is_some();
        let pool = Pool::new(fs, dir.path().to_owned(), SEGMENT_BYTES, Vec::new()).unwrap();
        let written = || pool.spares().iter().map(|spare| spare.is_written).collect::<Vec<_>>();
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);

        pool.fill(2, at(0)).unwrap();
        assert_eq!(written(), [true, true]);
        // One segment is no haste, nor are two that are far from each other.
        for (number, started_ms) in [(1, 100), (2, 1_200)] {
            pool.start_segment(number, at(started_ms)).unwrap();
            pool.fill(2, at(started_ms)).unwrap();
            assert_eq!(written(), [true, true]);
        }
        pool.start_segment(3, at(1_500)).unwrap();
        pool.fill(2, at(1_510)).unwrap();
        assert_eq!(written(), [true, !can_allocate]);
        // The third of these is made by who needs it.
        pool.start_segment(4, at(1_600)).unwrap();
        pool.start_segment(5, at(1_700)).unwrap();
        pool.start_segment(6, at(1_800)).unwrap();
        pool.fill(2, at(1_810)).unwrap();
        assert_eq!(written(), [!can_allocate, !can_allocate]);

        pool.fill(2, at(2_900)).unwrap();
        assert_eq!(written(), [true, true]);
        let found = find_files(&RealFileSystem::default(), dir.path()).unwrap();
        assert_eq!((found.segments.len(), found.spares.len()), (6, 2));
        for path in found.spares.iter().chain(found.segments.iter().map(|(_, path)| path)) {
            assert_eq!(std::fs::metadata(path).unwrap().len(), SEGMENT_BYTES, "{}", path.display());
        }
    }
}
