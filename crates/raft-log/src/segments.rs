//! The files of the log: names, spare files ready for use, and what is done with those that are no longer needed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::OpenError;
use crate::filesystem::{File, FileSystem};
use crate::payload::GroupId;
use crate::snapshot;

const SEGMENT_PREFIX: &str = "segment-";
const SPARE_PREFIX: &str = "spare-";

/// A file of the full length, written through once: a sync of new data in it changes no metadata.
pub struct Spare {
    pub path: PathBuf,
    pub file: Arc<dyn File>,
}

/// Keeps the files of a folder.
pub struct Pool {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    segment_bytes: u64,
    spares: Mutex<Vec<Spare>>,
    names: AtomicU64,
}

/// What stands in the folder of a log, sorted.
pub struct Found {
    pub segments: Vec<(u64, PathBuf)>,
    pub spares: Vec<PathBuf>,
    /// The groups that have a snapshot.
    pub snapshots: Vec<GroupId>,
    /// Snapshots that were being written.
    pub unfinished: Vec<PathBuf>,
}

pub fn find_files(fs: &dyn FileSystem, dir: &Path) -> io::Result<Found> {
    let (mut segments, mut spares) = (Vec::new(), Vec::new());
    let (mut snapshots, mut unfinished) = (Vec::new(), Vec::new());
    for path in fs.list(dir)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(number) =
            name.strip_prefix(SEGMENT_PREFIX).and_then(|number| u64::from_str_radix(number, 16).ok())
        {
            segments.push((number, path));
        } else if name.starts_with(SPARE_PREFIX) {
            spares.push(path);
        } else if snapshot::is_unfinished(name) {
            unfinished.push(path);
        } else if let Some(group) = snapshot::group_of(name) {
            snapshots.push(group);
        }
    }
    segments.sort();
    spares.sort();
    snapshots.sort();
    Ok(Found { segments, spares, snapshots, unfinished })
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
                spares.push(Spare { path, file });
            } else {
                fs.remove(&path).map_err(failed("remove"))?;
            }
        }
        Ok(Self { fs, dir, segment_bytes, spares: Mutex::new(spares), names: AtomicU64::new(names) })
    }

    /// Puts a file in place as segment `number`, durably; makes one if none is spare.
    pub fn start_segment(&self, number: u64) -> io::Result<Arc<dyn File>> {
        let spare = self.spares.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let spare = match spare {
            Some(spare) => spare,
            None => self.make()?,
        };
        self.fs.rename(&spare.path, &self.segment_path(number))?;
        self.fs.sync_dir(&self.dir)?;
        Ok(spare.file)
    }

    /// Makes files until `count` are spare.
    pub fn fill(&self, count: usize) -> io::Result<()> {
        while self.spares.lock().unwrap_or_else(PoisonError::into_inner).len() < count {
            let spare = self.make()?;
            self.spares.lock().unwrap_or_else(PoisonError::into_inner).push(spare);
        }
        Ok(())
    }

    /// Takes a segment that nothing needs out of the log. It becomes a spare, or goes away when `count` are there.
    pub fn retire(&self, number: u64, file: Arc<dyn File>, count: usize) -> io::Result<()> {
        let path = self.segment_path(number);
        let is_full_length = file.len_bytes()? == self.segment_bytes;
        if !is_full_length || self.spares.lock().unwrap_or_else(PoisonError::into_inner).len() >= count {
            self.fs.remove(&path)?;
            return self.fs.sync_dir(&self.dir);
        }
        let spare = self.spare_path();
        self.fs.rename(&path, &spare)?;
        self.fs.sync_dir(&self.dir)?;
        self.spares.lock().unwrap_or_else(PoisonError::into_inner).push(Spare { path: spare, file });
        Ok(())
    }

    pub fn segment_path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{SEGMENT_PREFIX}{number:016x}"))
    }

    fn spare_path(&self) -> PathBuf {
        self.dir.join(format!("{SPARE_PREFIX}{:08}", self.names.fetch_add(1, Ordering::Relaxed)))
    }

    fn make(&self) -> io::Result<Spare> {
        let path = self.spare_path();
        match self.fs.create_zeroed(&path, self.segment_bytes) {
            Ok(file) => Ok(Spare { path, file }),
            Err(error) => {
                // What is there of it would take space that is missing. If it cannot be removed, the next start does it.
                let _ = self.fs.remove(&path);
                Err(error)
            }
        }
    }
}
