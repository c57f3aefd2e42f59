//! The limits of the log, in one place.

/// Version of the files. A log of a newer version is refused.
pub const FORMAT_VERSION: u16 = 1;

/// Records that one group commit takes at most.
pub const BATCH_RECORDS_MAX: usize = 4_096;
/// Bytes after which a group commit is closed; a single record may be larger.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The largest payload of one record.
pub const RECORD_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of entries that one replication read returns, unless the first entry alone is larger.
pub const READ_BYTES_MAX: usize = 1024 * 1024;
/// The smallest segment that makes sense.
pub const SEGMENT_BYTES_MIN: u64 = 4 * 1024;
/// A segment has an index if that is at most this part of a segment.
pub const SEGMENT_INDEX_SHARE_MAX: u64 = 4;
/// Indexes that a start writes at most, of segments that have none: the rest get theirs in later starts.
pub const START_INDEXES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Of the next segment, while contents of a backlog are read one after the other.
pub const READ_AHEAD_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes of contents that one compaction step moves.
pub const MOVE_BYTES_MAX: usize = 4 * 1024 * 1024;

const _: () = assert!(READ_BYTES_MAX < BATCH_BYTES_MAX);
const _: () = assert!(MOVE_BYTES_MAX <= BATCH_BYTES_MAX);
