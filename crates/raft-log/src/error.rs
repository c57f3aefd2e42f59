//! What can go wrong, by who has to act.

use std::io;
use std::path::PathBuf;

use crate::payload::GroupId;

/// The log cannot take what it was given. After any such error but [`LogError::Removed`] and [`LogError::NoRoom`] nothing succeeds any
/// more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// A write or a sync failed: what is on the disk is unknown, so the log is closed for good. Restart the node after the disk
    /// has been looked at.
    #[error("the log failed and is closed for good: {0}")]
    Failed(String),
    #[error("the log is closed")]
    Closed,
    /// What was to be kept belongs to a group that is not on this node any more.
    #[error("group {} has been removed from this node", .group.0)]
    Removed { group: GroupId },
    /// Nothing of the snapshot is left, and the one before it is still there.
    #[error("a snapshot does not fit on the disk: {0}")]
    NoRoom(String),
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        io::Error::other(error)
    }
}

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{0} is in use by another process: stop it, or choose another folder")]
    Locked(PathBuf),
    #[error(
        "{path} was written by a newer version (format {found}, this one knows {known}): upgrade this node"
    )]
    NewerVersion { path: PathBuf, found: u16, known: u16 },
    /// Bytes that had been synced are not what was written. The node must not take part with what is left: replace its replicas.
    #[error(
        "{path} is damaged at byte {offset}: restore the disk, or wipe the folder and replace this node in the cluster"
    )]
    Damaged { path: PathBuf, offset: u64 },
    /// A snapshot cannot be used: as [`OpenError::Damaged`], unless a newer version wrote it.
    #[error(transparent)]
    Snapshot(#[from] ReadError),
    /// As [`OpenError::Damaged`], but the last segments are gone, with votes and entries that others count on.
    #[error(
        "{dir} is damaged: it ends with segment {found:016x}, and the log had come to segment {known:016x}: mount or restore the disk that has the rest, or remove the node from its cluster (`leasehold cluster remove-node`), empty its data folder and add it again (`cluster add-node`)"
    )]
    Shortened { dir: PathBuf, found: u64, known: u64 },
    /// As [`OpenError::Damaged`], but what is gone left no trace where it was.
    #[error("{dir} lacks entry {index} of group {}: restore the disk, or wipe the folder and replace this node in the cluster", .group.0)]
    Gap { dir: PathBuf, group: GroupId, index: u64 },
    #[error("{path} holds a record at byte {offset} that this version cannot read: {reason}")]
    Unreadable { path: PathBuf, offset: u64, reason: String },
}

/// Something cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("group {} has no content at index {index}, bytes {offset} to {end}", .group.0)]
    Missing { group: GroupId, index: u64, offset: u32, end: u64 },
    #[error(
        "{path} is damaged at byte {offset} (group {}, index {index}), its checksum does not match: restore the disk, or wipe the folder and replace this node in the cluster", .group.0
    )]
    Damaged { path: PathBuf, offset: u64, group: GroupId, index: u64 },
    #[error(
        "{path} is damaged, its checksum does not match: restore the disk, or wipe the folder and replace this node in the cluster"
    )]
    DamagedFile { path: PathBuf },
    #[error(
        "{path} was written by a newer version (format {found}, this one knows {known}): upgrade this node"
    )]
    NewerVersion { path: PathBuf, found: u16, known: u16 },
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        io::Error::other(error)
    }
}
