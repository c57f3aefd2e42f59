//! The seam between the log and the disk, narrow enough that a test can lose power at every point of it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Advice, FallocateFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::filesystem_direct::{self, CHUNK_BYTES};

/// An open file.
pub trait File: Send + Sync {
    /// Reads exactly `buffer.len()` bytes at `offset`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when everything written before is on stable storage.
    fn sync_data(&self) -> io::Result<()>;
    fn len_bytes(&self) -> io::Result<u64>;
    /// So many bytes from its beginning are likely to be read soon. Nobody waits for it, and nothing comes of it if it cannot be done.
    fn read_soon(&self, _len_bytes: u64) {}
}

/// What the log asks of a file system.
pub trait FileSystem: Send + Sync {
    /// Makes a folder and those it is in, durably; one that is there is fine.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Keeps other processes out of a folder until the guard is dropped; `WouldBlock` when one is in.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
    /// Creates an empty file, or empties the one that is there.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Creates a file of zeros, which are on stable storage when it returns; the name need not be.
    fn create_zeroed(&self, path: &Path, len_bytes: u64) -> io::Result<Arc<dyn File>> {
        zero_through_cache(self.create(path)?, len_bytes)
    }
    /// Creates a file that has its space and reads as zeros without being written: at once, but the first sync of each place of
    /// it changes metadata too. `None` where there is no such thing.
    fn create_allocated(&self, _path: &Path, _len_bytes: u64) -> io::Result<Option<Arc<dyn File>>> {
        Ok(None)
    }
    /// Creates a file of the parts one after the other, which are on stable storage when it returns; the name need not be.
    fn create_whole(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        write_through_cache(self.create(path)?.as_ref(), parts)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the creations, renames and removals in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// The files of a folder, in any order.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Bytes that can still be written.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// Whether a read may take time: not when everything is in memory.
    fn may_wait(&self) -> bool {
        true
    }
}

/// The file system of the machine. Each log has one of its own: a folder that it has synced is taken for the same one from then on.
#[derive(Debug, Default)]
pub struct RealFileSystem {
    /// The folders that were synced. They stay open: a process that may open no more files must not fail to sync a name.
    dirs: Mutex<BTreeMap<PathBuf, Arc<fs::File>>>,
}

impl RealFileSystem {
    fn opened(&self, dir: &Path) -> io::Result<Arc<fs::File>> {
        // It is changed in one step.
        let mut dirs = self.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = dirs.get(dir) {
            return Ok(Arc::clone(opened));
        }
        let opened = Arc::new(fs::File::open(dir)?);
        dirs.insert(dir.to_owned(), Arc::clone(&opened));
        Ok(opened)
    }
}

fn zero_through_cache(file: Arc<dyn File>, len_bytes: u64) -> io::Result<Arc<dyn File>> {
    let zeros = vec![0; CHUNK_BYTES.min(len_bytes as usize)];
    let mut at = 0;
    while at < len_bytes {
        let len = (len_bytes - at).min(zeros.len() as u64) as usize;
        file.write_at(&zeros[..len], at)?;
        at += len as u64;
    }
    file.sync_data()?;
    Ok(file)
}

fn write_through_cache(file: &dyn File, parts: &[&[u8]]) -> io::Result<()> {
    let mut at = 0;
    for part in parts {
        file.write_at(part, at)?;
        at += part.len() as u64;
    }
    file.sync_data().map_err(sync_failed)
}

/// A failed sync, whatever it is for: it must not look like a write that found no space, after which everything is as before.
pub fn sync_failed(error: io::Error) -> io::Error {
    io::Error::other(error)
}

impl File for fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        fs::File::sync_data(self)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_soon(&self, len_bytes: u64) {
        let _ = rustix::fs::fadvise(self, 0, NonZeroU64::new(len_bytes), Advice::WillNeed);
    }
}

impl FileSystem for RealFileSystem {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_dir(parent)?;
        }
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            // It is synced this once.
            Ok(()) | Err(_) => fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all(),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn create_zeroed(&self, path: &Path, len_bytes: u64) -> io::Result<Arc<dyn File>> {
        match filesystem_direct::zero(path, len_bytes) {
            Ok(()) => self.open(path),
            // Some file systems have no way past the cache, and some lengths none; whatever else it was comes again.
            Err(_) => zero_through_cache(self.create(path)?, len_bytes),
        }
    }

    fn create_allocated(&self, path: &Path, len_bytes: u64) -> io::Result<Option<Arc<dyn File>>> {
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
        match retry_on_intr(|| rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, len_bytes)) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Its length is what shows that it is whole, so it gets that last.
        file.set_len(len_bytes)?;
        file.sync_all()?;
        Ok(Some(Arc::new(file)))
    }

    fn create_whole(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        match filesystem_direct::write(path, parts) {
            Err(error) if filesystem_direct::is_not_possible(&error) => {
                write_through_cache(self.create(path)?.as_ref(), parts)
            }
            written => written,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.opened(dir)?.sync_all()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocated_file_has_its_length_and_its_space_and_reads_as_zeros() {
        use std::os::unix::fs::MetadataExt as _;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("allocated");
        fs::write(&path, [7; 9_000]).unwrap();
        // Where the test runs there may be no such thing.
        let Some(file) = RealFileSystem::default().create_allocated(&path, 1 << 20).unwrap() else { return };
        assert_eq!(file.len_bytes().unwrap(), 1 << 20);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 1 << 20);
        file.write_at(&[1], 4096).unwrap();
        let found = fs::read(&path).unwrap();
        assert!(found[4096] == 1 && found.iter().filter(|byte| **byte == 0).count() == (1 << 20) - 1);
    }

    /// The segment that the writer begins is durable although there are no descriptors left.
    #[test]
    fn a_folder_that_was_synced_is_not_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let (log, moved) = (dir.path().join("log"), dir.path().join("moved"));
        fs::create_dir(&log).unwrap();
        let machine = RealFileSystem::default();
        machine.sync_dir(&log).unwrap();
        // Who opens it by its name finds nothing.
        fs::rename(&log, &moved).unwrap();
        machine.sync_dir(&log).unwrap();
        assert!(RealFileSystem::default().sync_dir(&log).is_err());
        machine.sync_dir(&moved).unwrap();
    }

    #[test]
    fn a_sync_that_finds_no_space_does_not_look_like_a_write() {
        struct Late;

        impl File for Late {
            fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
                Ok(())
            }

            fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
                Ok(())
            }

            fn sync_data(&self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }

            fn len_bytes(&self) -> io::Result<u64> {
                Ok(0)
            }
        }

        let error = write_through_cache(&Late, &[b"part"]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Other);
        assert_eq!(error.to_string(), io::Error::from(io::ErrorKind::StorageFull).to_string());
    }

    #[test]
    fn a_file_of_zeros_has_its_length_also_where_none_goes_past_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("zeros");
        fs::write(&path, [7; 9_000]).unwrap();
        for len_bytes in [3 * 4096, 5_000, CHUNK_BYTES + 4096] {
            let file = RealFileSystem::default().create_zeroed(&path, len_bytes as u64).unwrap();
            file.write_at(&[1], 0).unwrap();
            let found = fs::read(&path).unwrap();
            assert_eq!(found.len(), len_bytes);
            assert!(found[0] == 1 && found[1..].iter().all(|byte| *byte == 0));
        }
    }
}
