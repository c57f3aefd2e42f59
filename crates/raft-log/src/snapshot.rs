//! Snapshots: one checksummed file a group, replaced as a whole.
//!
//! ```text
//! [magic 8 B][version u16, 2 B zero][meta bytes u32][state bytes u64] meta state [crc u32 of all before]
//! ```

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::ReadError;
use crate::filesystem::FileSystem;
use crate::format::{read_u32, read_u64};
use crate::limits::FORMAT_VERSION;
use crate::log::Log;
use crate::payload::GroupId;

const MAGIC: [u8; 8] = *b"LHLDSNP\n";
const HEADER_BYTES: usize = 24;

/// A snapshot as it was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedSnapshot {
    pub meta: Bytes,
    pub bytes: Bytes,
}

/// Why a snapshot was not saved.
#[derive(Debug)]
pub enum SaveError {
    /// It does not fit. Nothing of it is left.
    NoRoom(io::Error),
    /// What is on the disk is unknown.
    Failed(io::Error),
}

const PREFIX: &str = "snapshot-";
const UNFINISHED: &str = "tmp";

/// Segments that have to fit on the disk beside a new snapshot: entries come in while it is written.
const SEGMENTS_BESIDE: u64 = 2;

impl Log {
    /// Whether a snapshot of so many bytes fits on the disk.
    pub fn has_room_for_snapshot(&self, len_bytes: u64) -> bool {
        let shared = &self.shared;
        let beside_bytes = SEGMENTS_BESIDE.saturating_mul(shared.options.segment_bytes);
        // Where nobody can tell, writing it will.
        let free_bytes = shared.fs.free_bytes(&shared.dir).unwrap_or(u64::MAX);
        free_bytes >= len_bytes.saturating_add(beside_bytes)
    }
}

/// Whether a file of this name is a snapshot that has not become one.
pub fn is_unfinished(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(UNFINISHED)
}

/// The group that a file of this name is the snapshot of, if it is one.
pub fn group_of(name: &str) -> Option<GroupId> {
    name.strip_prefix(PREFIX)?.parse().ok().map(GroupId)
}

fn path_of(dir: &Path, group: GroupId) -> PathBuf {
    dir.join(format!("{PREFIX}{:08}", group.0))
}

/// Replaces the snapshot of a group; after a crash the old one or the new one is there, whole.
pub fn save(
    fs: &dyn FileSystem,
    dir: &Path,
    group: GroupId,
    meta: &[u8],
    state: &[u8],
) -> Result<(), SaveError> {
    let mut head = Vec::with_capacity(HEADER_BYTES + meta.len());
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    head.extend_from_slice(&[0; 2]);
    head.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    head.extend_from_slice(&(state.len() as u64).to_le_bytes());
    head.extend_from_slice(meta);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), state);
    let path = path_of(dir, group);
    let unfinished = path.with_extension(UNFINISHED);
    let written = fs.create_whole(&unfinished, &[&head, state, &crc.to_le_bytes()]);
    written.map_err(|error| give_up(fs, &unfinished, error))?;
    fs.rename(&unfinished, &path).and_then(|()| fs.sync_dir(dir)).map_err(SaveError::Failed)
}

/// What it means that a file could not be written. When it was space that ran out, the file is all that has changed.
fn give_up(fs: &dyn FileSystem, unfinished: &Path, error: io::Error) -> SaveError {
    if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return SaveError::Failed(error);
    }
    // What is there of it takes space that is missing. If it cannot be removed, the next one takes its place.
    let _ = fs.remove(unfinished);
    SaveError::NoRoom(error)
}

pub fn load(fs: &dyn FileSystem, dir: &Path, group: GroupId) -> Result<Option<SavedSnapshot>, ReadError> {
    let path = path_of(dir, group);
    let failed = |source| ReadError::Io { path: path.clone(), source };
    let file = match fs.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let len = file.len_bytes().map_err(failed)?;
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, 0).map_err(failed)?;
    let damaged = || ReadError::DamagedFile { path: path.clone() };
    parse(bytes.into(), &path)?.ok_or_else(damaged).map(Some)
}

/// Takes the snapshot of a group away.
pub fn remove(fs: &dyn FileSystem, dir: &Path, group: GroupId) -> io::Result<()> {
    match fs.remove(&path_of(dir, group)) {
        Ok(()) => fs.sync_dir(dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn parse(bytes: Bytes, path: &Path) -> Result<Option<SavedSnapshot>, ReadError> {
    if bytes.len() < HEADER_BYTES + 4 || bytes[..8] != MAGIC {
        return Ok(None);
    }
    let body_bytes = bytes.len() - 4;
    if read_u32(&bytes, body_bytes) != crc32c::crc32c(&bytes[..body_bytes]) {
        return Ok(None);
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version > FORMAT_VERSION {
        let path = path.to_owned();
        return Err(ReadError::NewerVersion { path, found: version, known: FORMAT_VERSION });
    }
    let meta_end = HEADER_BYTES + read_u32(&bytes, 12) as usize;
    let state_end = (meta_end as u64).checked_add(read_u64(&bytes, 16));
    if state_end != Some(body_bytes as u64) {
        return Ok(None);
    }
    Ok(Some(SavedSnapshot {
        meta: bytes.slice(HEADER_BYTES..meta_end),
        bytes: bytes.slice(meta_end..body_bytes),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with a right checksum that says these lengths.
    fn file(meta_bytes: u32, state_bytes: u64, rest: &[u8]) -> Bytes {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(meta_bytes.to_le_bytes());
        bytes.extend(state_bytes.to_le_bytes());
        bytes.extend(rest);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes.into()
    }

    #[test]
    fn lengths_that_do_not_fit_the_file_are_damage() {
        let parse = |bytes| parse(bytes, Path::new("snapshot")).unwrap();
        let whole = parse(file(1, 2, b"mst")).unwrap();
        assert_eq!((&whole.meta[..], &whole.bytes[..]), (&b"m"[..], &b"st"[..]));
        for (meta_bytes, state_bytes) in [(1, 1), (1, 3), (4, 0), (1, u64::MAX), (4, u64::MAX), (u32::MAX, 0)]
        {
            assert!(parse(file(meta_bytes, state_bytes, b"mst")).is_none(), "{meta_bytes} and {state_bytes}");
        }
    }
}
