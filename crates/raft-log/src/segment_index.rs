//! The index of a segment that is full: what a start needs to know of its records, in a file beside it.
//!
//! ```text
//! file  [magic 8 B][version u16, 2 B zero][rows u32][segment u64][end u64][last batch u64][its crc u32, 4 B zero] rows [crc u32 of all before]
//! row   [kind u8, 3 B zero][group u32][generation u32][payload bytes u32][index u64][term u64][payload offset u32][head bytes u32] head
//! ```
//!
//! The head of a record is that part of its payload that a start has to understand. Invariant: an index may be lost. It is written
//! when its segment is sealed and synced, is not synced itself, and what it says can be read in the segment as well.

use std::io;
use std::path::{Path, PathBuf};

use crate::filesystem::{File, FileSystem};
use crate::format::{
    BATCH_HEADER_BYTES, BatchWriter, Kind, Placed, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader,
    is_batch, read_u32, read_u64,
};
use crate::limits::{FORMAT_VERSION, SEGMENT_INDEX_SHARE_MAX, START_INDEXES_BYTES_MAX};
use crate::payload::GroupId;

const MAGIC: [u8; 8] = *b"LHLDIDX\n";
const HEADER_BYTES: usize = 48;
const ROW_BYTES: usize = 40;
const PREFIX: &str = "index-";

/// The number of the segment that a file of this name is the index of, if it is one.
pub fn segment_of(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok()
}

fn path_of(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{segment:016x}"))
}

/// Where a full segment ends, and what it ends with: the segment of the same number in another log ends with something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    pub last_batch: u64,
    pub last_batch_crc: u32,
    pub end: u64,
}

/// A record, without what only its readers want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    pub kind: Kind,
    pub group: GroupId,
    pub generation: u32,
    pub index: u64,
    pub term: u64,
    /// Of the payload, in the segment.
    pub offset: u32,
    pub payload_bytes: u32,
    pub head: &'a [u8],
}

impl<'a> Row<'a> {
    /// Of a record of a segment whose bytes are all in `bytes`.
    pub fn of(record: &Placed, bytes: &'a [u8]) -> Self {
        let Placed { kind, group, generation, index, term, payload_bytes, offset, .. } = *record;
        let payload = &bytes[offset as usize..offset as usize + payload_bytes as usize];
        let head = &payload[..head_bytes(kind, payload)];
        Self { kind, group, generation, index, term, offset: offset as u32, payload_bytes, head }
    }

    /// Whether there is a place for such a record in a segment that ends there.
    fn fits(&self, end: u64) -> bool {
        let begin = SEGMENT_HEADER_BYTES + (BATCH_HEADER_BYTES + RECORD_HEADER_BYTES) as u64;
        u64::from(self.offset) >= begin
            && u64::from(self.offset) + u64::from(self.payload_bytes) <= end
            && self.head.len() as u64 <= u64::from(self.payload_bytes)
    }

    fn parse(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (fixed, rest) = bytes.split_at_checked(ROW_BYTES)?;
        let (head, rest) = rest.split_at_checked(read_u32(fixed, 36) as usize)?;
        let row = Self {
            kind: Kind::of(fixed[0])?,
            group: GroupId(read_u32(fixed, 4)),
            generation: read_u32(fixed, 8),
            payload_bytes: read_u32(fixed, 12),
            index: read_u64(fixed, 16),
            term: read_u64(fixed, 24),
            offset: read_u32(fixed, 32),
            head,
        };
        Some((row, rest))
    }
}

/// How much of a payload a start has to understand: nothing of an entry, a state, and the table of contents that were moved.
pub fn head_bytes(kind: Kind, payload: &[u8]) -> usize {
    match kind {
        Kind::Entry => 0,
        Kind::State => payload.len(),
        Kind::Contents => {
            let ranges = payload.get(..4).map_or(0, |count| read_u32(count, 0) as usize);
            payload.len().min(4 + 8 * ranges)
        }
    }
}

/// The rows of a segment, in the order of its records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentIndex {
    rows: Vec<u8>,
    count: u32,
}

impl SegmentIndex {
    pub fn push(&mut self, row: &Row<'_>) {
        let mut fixed = [0; ROW_BYTES];
        fixed[0] = row.kind as u8;
        fixed[4..8].copy_from_slice(&row.group.0.to_le_bytes());
        fixed[8..12].copy_from_slice(&row.generation.to_le_bytes());
        fixed[12..16].copy_from_slice(&row.payload_bytes.to_le_bytes());
        fixed[16..24].copy_from_slice(&row.index.to_le_bytes());
        fixed[24..32].copy_from_slice(&row.term.to_le_bytes());
        fixed[32..36].copy_from_slice(&row.offset.to_le_bytes());
        fixed[36..].copy_from_slice(&(row.head.len() as u32).to_le_bytes());
        self.rows.extend_from_slice(&fixed);
        self.rows.extend_from_slice(row.head);
        self.count += 1;
    }

    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        let mut rest = self.rows.as_slice();
        std::iter::from_fn(move || {
            let (row, behind) = Row::parse(rest)?;
            rest = behind;
            Some(row)
        })
    }

    /// Whether reading it would spare next to nothing: then the segment has none.
    pub fn is_too_large(&self, segment_bytes: u64) -> bool {
        self.rows.len() as u64 > segment_bytes / SEGMENT_INDEX_SHARE_MAX
    }

    /// The bytes of the file.
    pub fn encode(&self, segment: u64, ending: Ending) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.rows.len() + 4);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.count.to_le_bytes());
        bytes.extend_from_slice(&segment.to_le_bytes());
        bytes.extend_from_slice(&ending.end.to_le_bytes());
        bytes.extend_from_slice(&ending.last_batch.to_le_bytes());
        bytes.extend_from_slice(&ending.last_batch_crc.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.rows);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// `None` when the bytes are not the index of this segment, or of another version.
    fn decode(bytes: &[u8], segment: u64) -> Option<(Self, Ending)> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        let is_sound = u32::from_le_bytes(*crc) == crc32c::crc32c(body);
        let (header, rows) = body.split_at_checked(HEADER_BYTES).filter(|_| is_sound)?;
        let version = u16::from_le_bytes([header[8], header[9]]);
        if header[..8] != MAGIC || version != FORMAT_VERSION || read_u64(header, 16) != segment {
            return None;
        }
        let index = Self { rows: rows.to_vec(), count: read_u32(header, 12) };
        let ending = Ending {
            end: read_u64(header, 24),
            last_batch: read_u64(header, 32),
            last_batch_crc: read_u32(header, 40),
        };
        let (mut count, mut bytes) = (0, 0);
        for row in index.rows() {
            if !row.fits(ending.end) {
                return None;
            }
            (count, bytes) = (count + 1, bytes + ROW_BYTES + row.head.len());
        }
        (count == index.count && bytes == rows.len()).then_some((index, ending))
    }

    /// What two indexes with the same rows have in common, and no others.
    pub fn digest(&self) -> (u32, u32) {
        (self.count, crc32c::crc32c(&self.rows))
    }
}

/// Writes the index of a segment that is sealed and synced. A start can do without it: it takes no space when less than that is free,
/// and nothing fails with it.
pub fn save(fs: &dyn FileSystem, dir: &Path, disk_low_bytes: u64, segment: u64, bytes: &[u8]) {
    if !fs.free_bytes(dir).is_ok_and(|free| free >= disk_low_bytes) {
        return;
    }
    let path = path_of(dir, segment);
    if let Err(error) = fs.create(&path).and_then(|file| file.write_at(bytes, 0)) {
        tracing::warn!(path = %path.display(), %error, "a segment has no index: the next start reads all of it");
        // Half of one is not taken for one. If it cannot be removed, it is when its segment goes.
        let _ = fs.remove(&path);
    }
}

/// What the index of a segment says, and where the segment ends, if there is an index, and the segment has its header, its length, its
/// last batch and its seal.
pub fn load(fs: &dyn FileSystem, dir: &Path, segment: u64, file: &dyn File) -> Option<(SegmentIndex, u64)> {
    let len_bytes = file.len_bytes().ok()?;
    let bytes = read(fs, &path_of(dir, segment), len_bytes).ok().flatten()?;
    let (index, Ending { last_batch, last_batch_crc, end }) = SegmentIndex::decode(&bytes, segment)?;
    let mut header = [0; SEGMENT_HEADER_BYTES as usize];
    file.read_at(&mut header, 0).ok()?;
    let header = SegmentHeader::decode(&header).ok()?;
    let mut last = [0; BATCH_HEADER_BYTES];
    file.read_at(&mut last, last_batch).ok()?;
    let mut seal = [0; BATCH_HEADER_BYTES];
    file.read_at(&mut seal, end).ok()?;
    let is_whole = header.sequence == segment
        && len_bytes >= header.file_bytes
        && is_batch(&last, segment, last_batch, last_batch_crc)
        && seal[..] == BatchWriter::new().finish(segment, end);
    is_whole.then_some((index, end))
}

/// `None` when it is longer than the index of a segment of that length can be.
fn read(fs: &dyn FileSystem, path: &Path, segment_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let file = fs.open(path)?;
    let len_bytes = file.len_bytes()?;
    if len_bytes > segment_bytes / SEGMENT_INDEX_SHARE_MAX + (HEADER_BYTES + 4) as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(len_bytes).map_err(io::Error::other)?];
    file.read_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

/// Takes the index of a segment away, if it has one. One that stays is removed by the next start.
pub fn remove(fs: &dyn FileSystem, dir: &Path, segment: u64) {
    let _ = fs.remove(&path_of(dir, segment));
}

/// Indexes of segments that had to be read, to be written when all is done.
#[derive(Default)]
pub struct MissingIndexes {
    indexes: Vec<(u64, Vec<u8>)>,
    bytes: usize,
}

impl MissingIndexes {
    pub fn add(&mut self, segment: u64, encode: impl FnOnce() -> Vec<u8>) {
        if self.bytes < START_INDEXES_BYTES_MAX {
            let bytes = encode();
            self.bytes += bytes.len();
            self.indexes.push((segment, bytes));
        }
    }

    pub fn save(self, fs: &dyn FileSystem, dir: &Path, disk_low_bytes: u64) {
        for (segment, bytes) in self.indexes {
            save(fs, dir, disk_low_bytes, segment, &bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(index: u64, kind: Kind, head: &[u8]) -> Row<'_> {
        let (offset, payload_bytes) = (200 + index as u32 * 200, 150);
        Row { kind, group: GroupId(3), generation: 1, index, term: 4, offset, payload_bytes, head }
    }

    const ENDING: Ending = Ending { last_batch: 3_000, last_batch_crc: 77, end: 4_000 };

    fn index() -> SegmentIndex {
        let mut index = SegmentIndex::default();
        index.push(&row(7, Kind::Entry, b""));
        index.push(&row(0, Kind::State, b"state"));
        index.push(&row(8, Kind::Contents, &[1, 0, 0, 0, 5, 0, 0, 0, 9, 0, 0, 0]));
        index
    }

    #[test]
    fn an_index_is_read_back_as_written() {
        let (found, ending) = SegmentIndex::decode(&index().encode(5, ENDING), 5).unwrap();
        assert_eq!((&found, ending), (&index(), ENDING));
        let rows =
            found.rows().map(|row| (row.index, row.kind, row.offset, row.head.len())).collect::<Vec<_>>();
        assert_eq!(
            rows,
            [(7, Kind::Entry, 1_600, 0), (0, Kind::State, 200, 5), (8, Kind::Contents, 1_800, 12)]
        );
        assert!(SegmentIndex::decode(&index().encode(5, ENDING), 6).is_none());
    }

    #[test]
    fn a_changed_or_missing_byte_of_an_index_is_noticed() {
        let whole = index().encode(5, ENDING);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            assert!(SegmentIndex::decode(&bytes, 5).is_none(), "byte {at}");
            assert!(SegmentIndex::decode(&whole[..at], 5).is_none(), "{at} bytes");
        }
    }

    #[test]
    fn rows_that_do_not_fit_are_no_index() {
        let mut short = index();
        short.count += 1;
        assert!(SegmentIndex::decode(&short.encode(5, ENDING), 5).is_none());
        let mut long = index();
        long.rows.extend([0; ROW_BYTES]);
        assert!(SegmentIndex::decode(&long.encode(5, ENDING), 5).is_none());
        let before_any_record = Row { offset: 135, ..row(1, Kind::Entry, b"") };
        let behind_the_end = Row { payload_bytes: 3_700, ..row(1, Kind::Entry, b"") };
        let longer_than_all_of_it = Row { payload_bytes: 4, ..row(1, Kind::State, b"state") };
        for wrong in [before_any_record, behind_the_end, longer_than_all_of_it] {
            let mut index = index();
            index.push(&wrong);
            assert!(SegmentIndex::decode(&index.encode(5, ENDING), 5).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn a_head_is_what_a_start_has_to_understand() {
        assert_eq!(head_bytes(Kind::Entry, &[1; 99]), 0);
        assert_eq!(head_bytes(Kind::State, &[1; 99]), 99);
        assert_eq!(
            head_bytes(Kind::Contents, &[2, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 9, 9]),
            20
        );
        // A table that does not fit is refused by who reads it.
        assert_eq!(head_bytes(Kind::Contents, &[255; 9]), 9);
        assert_eq!(head_bytes(Kind::Contents, &[2]), 1);
    }
}
