//! The bytes of a segment: a header, then batches. A batch is one group commit, and counts as a whole or not at all.
//!
//! ```text
//! segment  [header 64 B][batch][batch]...[whatever was there before]
//! batch    [magic u32 | crc u32 | body bytes u32 | records u32 | segment u64 | offset u64] records
//! record   [crc u32 | payload bytes u32 | kind u8, 3 B zero | group u32 | generation u32, 4 B zero | index u64 | term u64] payload, 0-7 B zero
//! ```
//!
//! A batch without records seals a segment: nothing follows it. Every segment but the last is sealed; the last one is while nothing
//! is being written.
//!
//! A record's crc covers the rest of its header and its payload; the batch's crc covers the rest of the batch header and the crcs of
//! its records, so every byte is summed once. The segment's number and the batch's own offset are in the batch: bytes that an earlier
//! use of the file left behind can never be taken for new ones. All numbers are little-endian.

use bytes::Bytes;

use crate::limits::{FORMAT_VERSION, RECORD_BYTES_MAX};
use crate::payload::GroupId;

pub const SEGMENT_HEADER_BYTES: u64 = 64;
pub const BATCH_HEADER_BYTES: usize = 32;
pub const RECORD_HEADER_BYTES: usize = 40;
/// A batch is padded to the end of its page.
const PADDING_BYTES_MAX: usize = 4096;

const SEGMENT_MAGIC: [u8; 8] = *b"LHLDSEG\n";
const BATCH_MAGIC: u32 = 0x4248_4c4c;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Raft entry: the payload is its body.
    Entry = 1,
    /// The small state of a group at this point of the log; replaces every earlier one.
    State = 2,
    /// Ranges of an entry's payload, moved here or received with a snapshot.
    Contents = 3,
}

impl Kind {
    pub fn of(byte: u8) -> Option<Self> {
        [Self::Entry, Self::State, Self::Contents].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A record as the writer gets it.
#[derive(Debug, Clone)]
pub struct Record {
    pub kind: Kind,
    pub group: GroupId,
    /// Grows when a group is removed, so that what the removed one left in the log is not taken for a new one's.
    pub generation: u32,
    pub index: u64,
    pub term: u64,
    pub payload: Bytes,
}

/// A record as it lies in a segment.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    pub kind: Kind,
    pub group: GroupId,
    pub generation: u32,
    pub index: u64,
    pub term: u64,
    /// Of the payload, in the segment.
    pub offset: u64,
    pub payload_bytes: u32,
    /// False when the payload does not match its checksum.
    pub is_sound: bool,
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub sequence: u64,
    /// Length of the file when the segment was begun; it is never shorter. 0 where that was not written down yet.
    pub file_bytes: u64,
}

/// Why a header is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderFault {
    /// Never written, or torn while it was.
    Unwritten,
    NewerVersion(u16),
}

impl SegmentHeader {
    pub fn encode(self) -> [u8; SEGMENT_HEADER_BYTES as usize] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.file_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES as usize]) -> Result<Self, HeaderFault> {
        if bytes[..8] != SEGMENT_MAGIC || read_u32(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
            return Err(HeaderFault::Unwritten);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version > FORMAT_VERSION {
            return Err(HeaderFault::NewerVersion(version));
        }
        Ok(Self { sequence: read_u64(bytes, 16), file_bytes: read_u64(bytes, 24) })
    }
}

/// Puts a batch together for a place in a segment.
pub struct BatchWriter {
    bytes: Vec<u8>,
    crcs: u32,
    records: u32,
}

impl BatchWriter {
    pub fn new() -> Self {
        Self::with_room(0, 0)
    }

    /// With room for so many records with so many bytes of payloads in all, and to pad what is written.
    pub fn with_room(records: usize, payload_bytes: usize) -> Self {
        let records_bytes = records * (RECORD_HEADER_BYTES + 8) + payload_bytes;
        let mut bytes = Vec::with_capacity(BATCH_HEADER_BYTES + records_bytes + PADDING_BYTES_MAX);
        bytes.resize(BATCH_HEADER_BYTES, 0);
        Self { bytes, crcs: 0, records: 0 }
    }

    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a record; returns the offset of its payload within the batch.
    pub fn push(&mut self, record: &Record) -> u64 {
        assert!(record.payload.len() <= RECORD_BYTES_MAX, "a record of {} bytes", record.payload.len());
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&(record.payload.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[record.kind as u8, 0, 0, 0]);
        self.bytes.extend_from_slice(&record.group.0.to_le_bytes());
        self.bytes.extend_from_slice(&record.generation.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&record.index.to_le_bytes());
        self.bytes.extend_from_slice(&record.term.to_le_bytes());
        let payload_at = self.bytes.len();
        self.bytes.extend_from_slice(&record.payload);
        let crc = crc32c::crc32c(&self.bytes[start + 4..]);
        self.bytes[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.crcs = crc32c::crc32c_append(self.crcs, &crc.to_le_bytes());
        self.records += 1;
        payload_at as u64
    }

    /// The bytes for this place.
    pub fn finish(mut self, segment: u64, offset: u64) -> Vec<u8> {
        let body_bytes = (self.bytes.len() - BATCH_HEADER_BYTES) as u32;
        self.bytes[..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
        self.bytes[8..12].copy_from_slice(&body_bytes.to_le_bytes());
        self.bytes[12..16].copy_from_slice(&self.records.to_le_bytes());
        self.bytes[16..24].copy_from_slice(&segment.to_le_bytes());
        self.bytes[24..32].copy_from_slice(&offset.to_le_bytes());
        let crc = crc32c::crc32c_append(self.crcs, &self.bytes[8..32]);
        self.bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        self.bytes
    }
}

/// What stands at a place of a segment.
pub enum Parsed {
    /// A batch, and where the next one begins. One without records seals the segment.
    Batch { records: Vec<Placed>, end: u64 },
    /// No batch that was completely written here.
    Nothing,
}

/// Reads the batch at `offset` of a segment whose bytes are all in `bytes`.
pub fn parse_batch(bytes: &[u8], segment: u64, offset: u64) -> Parsed {
    let Some(header) = batch_header(bytes, segment, offset) else { return Parsed::Nothing };
    let end = offset + BATCH_HEADER_BYTES as u64 + u64::from(header.body_bytes);
    let (mut at, mut crcs, mut records) = (offset as usize + BATCH_HEADER_BYTES, 0, Vec::new());
    while at < end as usize {
        let Some((placed, crc, next)) = parse_record(bytes, at, end as usize) else { return Parsed::Nothing };
        crcs = crc32c::crc32c_append(crcs, &crc.to_le_bytes());
        records.push(placed);
        at = next;
    }
    let covered = &bytes[offset as usize + 8..offset as usize + BATCH_HEADER_BYTES];
    let matches =
        records.len() == header.records as usize && crc32c::crc32c_append(crcs, covered) == header.crc;
    if matches { Parsed::Batch { records, end } } else { Parsed::Nothing }
}

/// Whether a complete batch of this segment stands anywhere at or after `offset`: then what is before it had been synced.
pub fn has_batch_after(bytes: &[u8], segment: u64, offset: u64) -> bool {
    let mut at = offset.next_multiple_of(8);
    while at + (BATCH_HEADER_BYTES as u64) <= bytes.len() as u64 {
        if batch_header(bytes, segment, at).is_some()
            && let Parsed::Batch { records, .. } = parse_batch(bytes, segment, at)
            && records.iter().all(|record| record.is_sound)
        {
            return true;
        }
        at += 8;
    }
    false
}

/// The checksum of a batch, which is all that tells it from another one of its length.
pub fn batch_crc(batch: &[u8]) -> u32 {
    read_u32(batch, 4)
}

/// Whether these are the first bytes of a batch of this place, with this checksum.
pub fn is_batch(header: &[u8; BATCH_HEADER_BYTES], segment: u64, offset: u64, crc: u32) -> bool {
    (read_u32(header, 0), batch_crc(header), read_u64(header, 16), read_u64(header, 24))
        == (BATCH_MAGIC, crc, segment, offset)
}

struct BatchHeader {
    crc: u32,
    body_bytes: u32,
    records: u32,
}

fn batch_header(bytes: &[u8], segment: u64, offset: u64) -> Option<BatchHeader> {
    let at = usize::try_from(offset).ok()?;
    let header = bytes.get(at..at.checked_add(BATCH_HEADER_BYTES)?)?;
    let is_ours = read_u32(header, 0) == BATCH_MAGIC
        && read_u64(header, 16) == segment
        && read_u64(header, 24) == offset;
    let found = BatchHeader {
        crc: batch_crc(header),
        body_bytes: read_u32(header, 8),
        records: read_u32(header, 12),
    };
    let fits = (found.body_bytes as usize) <= bytes.len() - at - BATCH_HEADER_BYTES;
    (is_ours && fits).then_some(found)
}

fn parse_record(bytes: &[u8], at: usize, end: usize) -> Option<(Placed, u32, usize)> {
    let header = bytes.get(at..at + RECORD_HEADER_BYTES).filter(|_| at + RECORD_HEADER_BYTES <= end)?;
    let payload_bytes = read_u32(header, 4);
    let payload_at = at + RECORD_HEADER_BYTES;
    let payload_end =
        payload_at.checked_add(payload_bytes as usize).filter(|payload_end| *payload_end <= end)?;
    let crc = read_u32(header, 0);
    let placed = Placed {
        kind: Kind::of(header[8])?,
        group: GroupId(read_u32(header, 12)),
        generation: read_u32(header, 16),
        index: read_u64(header, 24),
        term: read_u64(header, 32),
        offset: payload_at as u64,
        payload_bytes,
        is_sound: crc32c::crc32c(&bytes[at + 4..payload_end]) == crc,
    };
    Some((placed, crc, payload_end.next_multiple_of(8)))
}

/// Whether bytes that were read back are a whole record, and the one that was looked for: its segment may have been used again since.
pub fn is_record_of(bytes: &[u8], kind: Kind, group: GroupId, index: u64) -> bool {
    bytes.len() >= RECORD_HEADER_BYTES
        && crc32c::crc32c(&bytes[4..]) == read_u32(bytes, 0)
        && (bytes[8], read_u32(bytes, 12), read_u64(bytes, 24)) == (kind as u8, group.0, index)
}

pub fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

pub fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(group: u32, index: u64, payload: &'static [u8]) -> Record {
        let payload = Bytes::from_static(payload);
        Record { kind: Kind::Entry, group: GroupId(group), generation: 0, index, term: 3, payload }
    }

    fn segment_with(records: &[Record]) -> Vec<u8> {
        let mut batch = BatchWriter::new();
        for record in records {
            batch.push(record);
        }
        let mut bytes = SegmentHeader { sequence: 7, file_bytes: 0 }.encode().to_vec();
        bytes.extend(batch.finish(7, SEGMENT_HEADER_BYTES));
        bytes.resize(4096, 0);
        bytes
    }

    #[test]
    fn a_batch_is_read_back_as_written() {
        let bytes = segment_with(&[record(1, 10, b"ten"), record(2, 1, b""), record(1, 11, b"eleven..")]);
        let Parsed::Batch { records, end } = parse_batch(&bytes, 7, SEGMENT_HEADER_BYTES) else { panic!() };
        assert_eq!(
            records.iter().map(|r| (r.group.0, r.index)).collect::<Vec<_>>(),
            [(1, 10), (2, 1), (1, 11)]
        );
        assert!(records.iter().all(|record| record.is_sound));
        let at = records[2].offset as usize;
        assert_eq!(&bytes[at..at + 8], b"eleven..");
        assert!(matches!(parse_batch(&bytes, 7, end), Parsed::Nothing));
    }

    #[test]
    fn bytes_of_an_earlier_use_are_not_a_batch() {
        let bytes = segment_with(&[record(1, 10, b"ten")]);
        assert!(matches!(parse_batch(&bytes, 8, SEGMENT_HEADER_BYTES), Parsed::Nothing));
    }

    #[test]
    fn every_flipped_bit_of_a_batch_is_noticed() {
        let whole = segment_with(&[record(1, 10, b"0123456")]);
        let Parsed::Batch { end, .. } = parse_batch(&whole, 7, SEGMENT_HEADER_BYTES) else { panic!() };
        // The last byte is padding.
        for at in SEGMENT_HEADER_BYTES as usize..end as usize - 1 {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            match parse_batch(&bytes, 7, SEGMENT_HEADER_BYTES) {
                Parsed::Nothing => {}
                Parsed::Batch { records, .. } => assert!(!records[0].is_sound, "byte {at}"),
            }
        }
    }
}
