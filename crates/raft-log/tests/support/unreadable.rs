//! A file system in which one segment cannot be read from its beginning.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use leasehold_raft_log::{File, FileSystem, SimulatedFileSystem};

/// Bytes at the beginning of a segment that no other segment has.
const HEADER_BYTES: usize = 64;

/// What the segment that cannot be read begins with.
type Broken = Arc<Mutex<Option<Vec<u8>>>>;

#[derive(Clone, Default)]
pub struct Unreadable {
    pub fs: SimulatedFileSystem,
    broken: Broken,
}

struct UnreadableFile {
    file: Arc<dyn File>,
    broken: Broken,
}

impl Unreadable {
    pub fn break_segment(&self, path: &Path) {
        *self.broken.lock().unwrap() = Some(self.fs.read(path)[..HEADER_BYTES].to_vec());
    }

    fn wrap(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(UnreadableFile { file, broken: self.broken.clone() })
    }
}

impl File for UnreadableFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset)?;
        let broken = self.broken.lock().unwrap();
        match &*broken {
            Some(header) if offset == 0 && buffer.starts_with(header) => {
                Err(io::Error::other("the medium has a bad block"))
            }
            _ => Ok(()),
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.file.len_bytes()
    }
}

impl FileSystem for Unreadable {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.fs.create_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.fs.lock(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.fs.create(path).map(|file| self.wrap(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.fs.open(path).map(|file| self.wrap(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fs.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.fs.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.fs.sync_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.fs.list(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.fs.free_bytes(dir)
    }
}
