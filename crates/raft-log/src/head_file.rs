//! Which log a folder holds, and how far that has come at least: segments that are gone leave no trace in those that are there.
//!
//! ```text
//! [magic 8 B][version u16, 6 B zero][unique id 16 B][segment u64][crc u32 of all before]
//! ```
//!
//! The keeper writes it after a segment was begun, so it may be late. Invariant: the segment that it names, or one of a higher number,
//! is in the folder with its header, durably. The last segment only stops being the last, and may go, when the next one has its first
//! batch synced (`compaction.rs`); an opening takes nothing away that was begun.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::Path;

use crate::error::OpenError;
use crate::filesystem::FileSystem;
use crate::format::{read_u32, read_u64};
use crate::limits::FORMAT_VERSION;

const MAGIC: [u8; 8] = *b"LHLDHED\n";
const NAME: &str = "head";
const UNFINISHED: &str = "head.tmp";
const BODY_BYTES: usize = 40;
const FILE_BYTES: usize = BODY_BYTES + 4;
/// Of any version.
const FILE_BYTES_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Drawn when the log was made: no other log has it.
    pub unique_id: [u8; 16],
    /// A segment that was begun, durably; 0 when none is known.
    pub segment: u64,
}

/// Whether a file of this name is a head that has not become one.
pub fn is_unfinished(name: &str) -> bool {
    name == UNFINISHED
}

/// What a folder says of its log. An empty folder says nothing, nor does one of a program that knew no heads.
///
/// # Errors
/// When the head cannot be read, is damaged, or a newer version wrote it.
pub fn load(fs: &dyn FileSystem, dir: &Path) -> Result<Option<Head>, OpenError> {
    let path = dir.join(NAME);
    let failed = |source| OpenError::Io { action: "read", path: path.clone(), source };
    let file = match fs.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let len_bytes = usize::try_from(file.len_bytes().map_err(failed)?).unwrap_or(usize::MAX);
    // One byte more than can be is as wrong as all of them.
    let mut bytes = vec![0; len_bytes.min(FILE_BYTES_MAX + 1)];
    file.read_at(&mut bytes, 0).map_err(failed)?;
    decode(&bytes, &path).map(Some)
}

/// Refuses a log that has come further than to the last segment that was found.
///
/// # Errors
/// When it has: what is gone may be votes and entries that others count on.
pub fn check(head: Option<Head>, dir: &Path, last_found: u64) -> Result<(), OpenError> {
    match head {
        Some(Head { segment, .. }) if last_found < segment => {
            Err(OpenError::Shortened { dir: dir.to_owned(), found: last_found, known: segment })
        }
        _ => Ok(()),
    }
}

/// The head of a folder whose segments are found and made durable: a new one if it has none.
///
/// # Errors
/// When a new one cannot be written. One that is there may be late.
pub fn renew(fs: &dyn FileSystem, dir: &Path, head: Option<Head>, last_found: u64) -> io::Result<Head> {
    if let Some(head) = head {
        return Ok(head.advance(fs, dir, last_found));
    }
    let head = Head { unique_id: draw_id(), segment: last_found };
    head.save(fs, dir)?;
    Ok(head)
}

impl Head {
    /// Names a later segment, and returns what the folder says then. What cannot be written is tried again with the next call: it is
    /// made from nothing each time, so a sync that failed says nothing of the next one.
    pub fn advance(self, fs: &dyn FileSystem, dir: &Path, segment: u64) -> Self {
        if segment <= self.segment {
            return self;
        }
        let later = Self { segment, ..self };
        match later.save(fs, dir) {
            Ok(()) => later,
            Err(error) => {
                let path = dir.join(NAME);
                tracing::warn!(path = %path.display(), segment, %error, "cannot note how far the log has come; it will be tried again");
                self
            }
        }
    }

    /// Replaces the head of a folder; after a crash the old one or the new one is there, whole.
    fn save(self, fs: &dyn FileSystem, dir: &Path) -> io::Result<()> {
        let unfinished = dir.join(UNFINISHED);
        let write = || {
            let file = fs.create(&unfinished)?;
            file.write_at(&self.encode(), 0)?;
            file.sync_data()?;
            fs.rename(&unfinished, &dir.join(NAME))
        };
        write().inspect_err(|_| {
            // If it cannot be removed, the next start does it.
            let _ = fs.remove(&unfinished);
        })?;
        fs.sync_dir(dir)
    }

    fn encode(self) -> [u8; FILE_BYTES] {
        let mut bytes = [0; FILE_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.unique_id);
        bytes[32..40].copy_from_slice(&self.segment.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..BODY_BYTES]);
        bytes[BODY_BYTES..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

fn decode(bytes: &[u8], path: &Path) -> Result<Head, OpenError> {
    let damaged = || OpenError::Damaged { path: path.to_owned(), offset: 0 };
    if bytes.len() < FILE_BYTES || bytes.len() > FILE_BYTES_MAX || bytes[..8] != MAGIC {
        return Err(damaged());
    }
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    if read_u32(crc, 0) != crc32c::crc32c(body) {
        return Err(damaged());
    }
    let version = u16::from_le_bytes([body[8], body[9]]);
    if version > FORMAT_VERSION {
        let path = path.to_owned();
        return Err(OpenError::NewerVersion { path, found: version, known: FORMAT_VERSION });
    }
    if body.len() != BODY_BYTES {
        return Err(damaged());
    }
    let mut unique_id = [0; 16];
    unique_id.copy_from_slice(&body[16..32]);
    Ok(Head { unique_id, segment: read_u64(body, 32) })
}

/// Each `RandomState` has keys from the system's randomness.
fn draw_id() -> [u8; 16] {
    let halves = [RandomState::new().hash_one(0), RandomState::new().hash_one(1)];
    let mut unique_id = [0; 16];
    for (place, half) in unique_id.chunks_exact_mut(8).zip(halves) {
        place.copy_from_slice(&half.to_le_bytes());
    }
    unique_id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem_simulated::{Fault, SimulatedFileSystem, Survival};

    const DIR: &str = "log";

    fn load(fs: &SimulatedFileSystem) -> Option<Head> {
        super::load(fs, Path::new(DIR)).unwrap()
    }

    #[test]
    fn a_head_is_read_back_as_written_and_every_change_of_it_is_noticed() {
        let path = Path::new("head");
        let head = Head { unique_id: draw_id(), segment: 77 };
        let whole = head.encode();
        assert_eq!(decode(&whole, path).unwrap(), head);
        for at in 0..whole.len() {
            let mut bytes = whole;
            bytes[at] ^= 0x20;
            assert!(matches!(decode(&bytes, path), Err(OpenError::Damaged { .. })), "byte {at}");
            assert!(matches!(decode(&whole[..at], path), Err(OpenError::Damaged { .. })), "{at} bytes");
        }
        assert!(matches!(decode(&[0; FILE_BYTES_MAX + 1], path), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn a_head_of_a_newer_version_is_told_from_a_damaged_one() {
        let mut bytes = Head { unique_id: [1; 16], segment: 2 }.encode()[..BODY_BYTES].to_vec();
        bytes[8] = 2;
        bytes.extend([0; 9]);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        let found = decode(&bytes, Path::new("head"));
        assert!(matches!(found, Err(OpenError::NewerVersion { found: 2, known: 1, .. })), "{found:?}");
    }

    #[test]
    fn no_two_logs_have_the_same_id() {
        let ids = (0..100).map(|_| draw_id()).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(ids.len(), 100);
    }

    #[test]
    fn the_old_head_or_the_new_one_is_there_wherever_power_is_lost() {
        let dir = Path::new(DIR);
        let fs = SimulatedFileSystem::new();
        let old = renew(&fs, dir, None, 1).unwrap();
        let operations = fs.operations();
        for point in 1.. {
            let fs = fs.after_kill();
            fs.fail_at(point, Fault::PowerLoss);
            let new = old.advance(&fs, dir, 2);
            for (survival, seed) in Survival::ALL.into_iter().flat_map(|all| [(all, 1), (all, 2)]) {
                let found = load(&fs.after_power_loss(survival, seed)).unwrap();
                assert_eq!(found.unique_id, old.unique_id, "{point} {survival:?}");
                assert!((new.segment..=2).contains(&found.segment), "{point} {survival:?}: {found:?}");
            }
            if new.segment == 2 {
                assert!(point > 3 && operations > 3, "{point}");
                break;
            }
        }
    }

    #[test]
    fn a_head_that_could_not_be_written_leaves_the_old_one_and_is_tried_again() {
        let dir = Path::new(DIR);
        for fault in [Fault::SyncFails, Fault::NoSpace] {
            let fs = SimulatedFileSystem::new();
            let old = renew(&fs, dir, None, 1).unwrap();
            fs.fail_at(0, fault);
            assert_eq!(old.advance(&fs, dir, 2), old);
            assert_eq!((load(&fs), fs.paths().len()), (Some(old), 1), "{fault:?}");
            let new = old.advance(&fs, dir, 3);
            assert_eq!((new.segment, load(&fs)), (3, Some(new)));
            assert_eq!(load(&fs.after_power_loss(Survival::Nothing, 0)), Some(new));
        }
    }
}
