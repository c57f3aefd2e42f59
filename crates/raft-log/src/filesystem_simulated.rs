//! A file system in memory that tells what was synced from what was not, and loses power where a test says so.
//!
//! ```text
//! write_at ──▶ cache of the file ─sync_data─▶ disk         power loss: of what is only in the cache, a seed decides
//! rename   ──▶ names             ─sync_dir──▶ disk         kill:       the cache survives, and is as unsynced as before
//! ```
//!
//! Every operation that changes something has a number, counted from one. A write at which power is lost may reach the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::filesystem::{File, FileSystem};

/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// What goes wrong at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This operation and all after it fail.
    PowerLoss,
    /// The first sync of a file from here on fails. The kernel takes its pages for clean: no later sync writes them.
    SyncFails,
    /// The first write from here on finds half of the space that it needs.
    NoSpace,
}

/// What of the unsynced changes reaches the disk when power is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    Nothing,
    Everything,
    /// Some sectors of each write.
    TornWrites,
    /// Some writes, whole, whatever their order was.
    SomeWrites,
    /// All writes, but only some of the creations, renames and removals.
    SomeNames,
    /// Some sectors of each write and some of the changes of names.
    Anything,
}

impl Survival {
    pub const ALL: [Self; 6] = [
        Self::Nothing,
        Self::Everything,
        Self::TornWrites,
        Self::SomeWrites,
        Self::SomeNames,
        Self::Anything,
    ];

    /// Whether a seed makes a difference.
    pub fn is_random(self) -> bool {
        !matches!(self, Self::Nothing | Self::Everything)
    }
}

/// A file system that forgets. Clones are the same one.
#[derive(Clone, Default)]
pub struct SimulatedFileSystem {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Clone, Default)]
struct Disk {
    files: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    unsynced_names: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    operations: u64,
    fault: Option<(u64, Fault)>,
    is_off: bool,
    can_allocate: bool,
    allocations: u64,
    free_bytes: Option<u64>,
    /// Files that were likely to be read soon.
    read_soon: Vec<usize>,
}

#[derive(Clone, Default)]
struct Content {
    cached: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Write>,
}

#[derive(Clone)]
struct Write {
    offset: u64,
    bytes: Vec<u8>,
}

#[derive(Clone)]
enum NameChange {
    /// The file is known by this name and by no other.
    Is(usize, PathBuf),
    Gone(PathBuf),
}

impl SimulatedFileSystem {
    pub fn new() -> Self {
        Self::default()
    }

    /// One that can give a file its space without writing it. Whether the log asks for that depends on the real time: what it does
    /// is not the same for the same seed any more.
    pub fn allocating() -> Self {
        let fs = Self::default();
        fs.lock().can_allocate = true;
        fs
    }

    /// Files that were given their space without being written.
    pub fn allocations(&self) -> u64 {
        self.lock().allocations
    }

    /// What it says that can still be written.
    pub fn set_free_bytes(&self, bytes: u64) {
        self.lock().free_bytes = Some(bytes);
    }

    /// The files that were said to be read soon, in that order.
    pub fn read_soon(&self) -> Vec<PathBuf> {
        let disk = self.lock();
        let path_of =
            |file: &usize| disk.names.iter().find(|(_, named)| *named == file).map(|(path, _)| path.clone());
        disk.read_soon.iter().filter_map(path_of).collect()
    }

    /// Operations so far that change something.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Lets something go wrong at, or for some faults at the first fitting operation from, this one.
    pub fn fail_at(&self, operation: u64, fault: Fault) {
        self.lock().fault = Some((operation, fault));
    }

    /// Whether the fault has come.
    pub fn has_failed(&self) -> bool {
        let disk = self.lock();
        disk.is_off || disk.fault.is_none()
    }

    /// The disk as it is found when power is back. This one stays as it is.
    pub fn after_power_loss(&self, survival: Survival, seed: u64) -> Self {
        let mut disk = self.lock().clone();
        let mut random = Random(seed);
        for file in &mut disk.files {
            for write in std::mem::take(&mut file.unsynced) {
                write.survive(survival, &mut random, &mut file.durable);
            }
            file.cached = file.durable.clone();
        }
        for change in std::mem::take(&mut disk.unsynced_names) {
            let is_kept = match survival {
                Survival::Nothing => false,
                Survival::Everything | Survival::TornWrites | Survival::SomeWrites => true,
                Survival::SomeNames | Survival::Anything => random.coin(),
            };
            if is_kept {
                change.apply(&mut disk.durable_names);
            }
        }
        disk.names = disk.durable_names.clone();
        disk.restarted()
    }

    /// The disk as the next process finds it when only the process died: nothing is lost, and nothing is synced that was not.
    pub fn after_kill(&self) -> Self {
        self.lock().clone().restarted()
    }

    /// The files of the file system.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    /// What a file holds; nothing when it is not there.
    pub fn read(&self, path: &Path) -> Vec<u8> {
        let disk = self.lock();
        disk.names.get(path).map(|file| disk.files[*file].cached.clone()).unwrap_or_default()
    }

    /// Changes what a file holds, on the disk too, behind the back of who has it open.
    pub fn corrupt(&self, path: &Path, offset: u64, bytes: &[u8]) {
        let mut disk = self.lock();
        if let Some(file) = disk.names.get(path).copied() {
            put(&mut disk.files[file].cached, offset, bytes);
            put(&mut disk.files[file].durable, offset, bytes);
        }
    }

    /// Ends a file early, behind the back of who has it open.
    pub fn cut(&self, path: &Path, len: usize) {
        let mut disk = self.lock();
        if let Some(file) = disk.names.get(path).copied() {
            disk.files[file].cached.truncate(len);
            disk.files[file].durable.truncate(len);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write {
    fn survive(self, survival: Survival, random: &mut Random, durable: &mut Vec<u8>) {
        match survival {
            Survival::Nothing => {}
            Survival::Everything | Survival::SomeNames => put(durable, self.offset, &self.bytes),
            Survival::SomeWrites => {
                if random.coin() {
                    put(durable, self.offset, &self.bytes);
                }
            }
            Survival::TornWrites | Survival::Anything => {
                let end = self.offset + self.bytes.len() as u64;
                let mut at = self.offset;
                while at < end {
                    let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
                    if random.coin() {
                        let from = (at - self.offset) as usize;
                        put(durable, at, &self.bytes[from..(next - self.offset) as usize]);
                    }
                    at = next;
                }
            }
        }
    }
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Is(file, path) => {
                names.retain(|_, named| *named != file);
                names.insert(path, file);
            }
            Self::Gone(path) => drop(names.remove(&path)),
        }
    }
}

impl Disk {
    fn restarted(mut self) -> SimulatedFileSystem {
        self.locks.clear();
        self.fault = None;
        self.operations = 0;
        self.is_off = false;
        SimulatedFileSystem { disk: Arc::new(Mutex::new(self)) }
    }

    /// Counts an operation; what it returns is to be returned after the operation has been done.
    fn begin(&mut self) -> io::Result<()> {
        if self.is_off {
            return Err(power_is_lost());
        }
        self.operations += 1;
        if matches!(self.fault, Some((at, Fault::PowerLoss)) if self.operations >= at) {
            self.is_off = true;
        }
        Ok(())
    }

    fn end(&self) -> io::Result<()> {
        if self.is_off { Err(power_is_lost()) } else { Ok(()) }
    }

    fn meets(&mut self, fault: Fault) -> bool {
        let is_met = matches!(self.fault, Some((at, found)) if found == fault && self.operations >= at);
        if is_met {
            self.fault = None;
        }
        is_met
    }

    fn change_name(&mut self, change: NameChange) {
        change.clone().apply(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn power_is_lost() -> io::Error {
    io::Error::other("power is lost")
}

fn put(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + bytes.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(bytes);
}

struct OpenFile {
    disk: Arc<Mutex<Disk>>,
    file: usize,
}

impl OpenFile {
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl File for OpenFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let disk = self.lock();
        let cached = &disk.files[self.file].cached;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let read = cached.get(start..start + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(read);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.lock();
        disk.begin()?;
        let is_full = disk.meets(Fault::NoSpace);
        let bytes = if is_full { &bytes[..bytes.len() / 2] } else { bytes };
        let content = &mut disk.files[self.file];
        put(&mut content.cached, offset, bytes);
        content.unsynced.push(Write { offset, bytes: bytes.to_vec() });
        if is_full { Err(io::ErrorKind::StorageFull.into()) } else { disk.end() }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.lock();
        disk.begin()?;
        disk.end()?;
        let is_failing = disk.meets(Fault::SyncFails);
        let content = &mut disk.files[self.file];
        let unsynced = std::mem::take(&mut content.unsynced);
        if is_failing {
            return Err(io::Error::other("the device does not answer"));
        }
        for Write { offset, bytes } in unsynced {
            put(&mut content.durable, offset, &bytes);
        }
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.lock().files[self.file].cached.len() as u64)
    }

    fn read_soon(&self, _: u64) {
        self.lock().read_soon.push(self.file);
    }
}

struct Guard {
    disk: Arc<Mutex<Disk>>,
    path: PathBuf,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).locks.remove(&self.path);
    }
}

impl FileSystem for SimulatedFileSystem {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        if !self.lock().locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Guard { disk: Arc::clone(&self.disk), path: path.to_owned() }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.lock();
        disk.begin()?;
        let file = disk.files.len();
        disk.files.push(Content::default());
        disk.change_name(NameChange::Is(file, path.to_owned()));
        disk.end()?;
        Ok(Arc::new(OpenFile { disk: Arc::clone(&self.disk), file }))
    }

    fn create_allocated(&self, path: &Path, len_bytes: u64) -> io::Result<Option<Arc<dyn File>>> {
        if !self.lock().can_allocate {
            return Ok(None);
        }
        let file = self.create(path)?;
        // A loss of power before the sync leaves it empty.
        let mut disk = self.lock();
        disk.begin()?;
        disk.end()?;
        if disk.meets(Fault::NoSpace) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if disk.meets(Fault::SyncFails) {
            return Err(io::Error::other("the device does not answer"));
        }
        let found = disk.find(path)?;
        let zeros = vec![0; usize::try_from(len_bytes).map_err(io::Error::other)?];
        disk.files[found].cached.clone_from(&zeros);
        disk.files[found].durable = zeros;
        disk.allocations += 1;
        Ok(Some(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = self.lock().find(path)?;
        Ok(Arc::new(OpenFile { disk: Arc::clone(&self.disk), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        disk.begin()?;
        let file = disk.find(from)?;
        disk.change_name(NameChange::Is(file, to.to_owned()));
        disk.end()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        disk.find(path)?;
        disk.begin()?;
        disk.change_name(NameChange::Gone(path.to_owned()));
        disk.end()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        disk.begin()?;
        disk.end()?;
        let is_inside = |change: &NameChange| match change {
            NameChange::Is(_, path) | NameChange::Gone(path) => path.parent() == Some(dir),
        };
        let changes = std::mem::take(&mut disk.unsynced_names);
        let (synced, unsynced): (Vec<_>, Vec<_>) = changes.into_iter().partition(is_inside);
        synced.into_iter().for_each(|change| change.apply(&mut disk.durable_names));
        disk.unsynced_names = unsynced;
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.lock().names.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.lock().free_bytes.unwrap_or(u64::MAX))
    }

    fn may_wait(&self) -> bool {
        false
    }
}

/// Splitmix64: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn coin(&mut self) -> bool {
        self.next() >> 63 == 1
    }
}

#[cfg(test)]
mod tests;
