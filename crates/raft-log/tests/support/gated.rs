//! A file system in which the syncs of segments wait while a test says so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use leasehold_raft_log::{File, FileSystem, SimulatedFileSystem};

#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn shut(&self) {
        *self.0.0.lock().unwrap() = true;
    }

    pub fn open(&self) {
        *self.0.0.lock().unwrap() = false;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |is_shut| *is_shut).unwrap());
    }
}

#[derive(Clone, Default)]
pub struct Gated {
    pub fs: SimulatedFileSystem,
    pub syncs: Gate,
}

struct GatedFile {
    file: Arc<dyn File>,
    syncs: Gate,
}

impl Gated {
    fn wrap(&self, path: &Path, file: Arc<dyn File>) -> Arc<dyn File> {
        if ["snapshot", "head"].iter().any(|name| path.to_str().unwrap().contains(name)) {
            return file;
        }
        Arc::new(GatedFile { file, syncs: self.syncs.clone() })
    }
}

impl File for GatedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.syncs.pass();
        self.file.sync_data()
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.file.len_bytes()
    }
}

impl FileSystem for Gated {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.fs.create_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.fs.lock(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.fs.create(path).map(|file| self.wrap(path, file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.fs.open(path).map(|file| self.wrap(path, file))
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
