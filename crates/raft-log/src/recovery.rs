//! Reading a log back: every checksum of what Raft may still ask for. What is damaged stops the node; what was never finished is dropped.
//!
//! A full segment whose entries are all purged is not read: its index says what is in it, and who wants a content checks it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{GroupState, decode_state};
use crate::error::OpenError;
use crate::filesystem::{File, FileSystem};
use crate::format::{
    BatchWriter, HeaderFault, Kind, Parsed, SEGMENT_HEADER_BYTES, SegmentHeader, batch_crc, has_batch_after,
    parse_batch, read_u32,
};
use crate::head_file::{self, Head};
use crate::index::{GroupIndex, Index, Place, Retained, Segment, Slot, Source};
use crate::limits::{FORMAT_VERSION, SEGMENT_BYTES_MIN};
use crate::log::{Options, Recovered};
use crate::payload::GroupId;
use crate::read_ahead::{Whole, each_segment};
use crate::segment_index::{Ending, MissingIndexes, Row, SegmentIndex};
use crate::segments::{Pool, find_files};
use crate::{segment_index, snapshot};

/// What a folder holds.
pub struct Recovery {
    pub index: Index,
    pub pool: Pool,
    /// The number of the next segment.
    pub next_number: u64,
    /// What the folder says of the log now.
    pub head: Head,
    pub found: Recovered,
}

pub fn recover(fs: &Arc<dyn FileSystem>, dir: &Path, options: &Options) -> Result<Recovery, OpenError> {
    let head = head_file::load(fs.as_ref(), dir)?;
    let mut mistrusted = BTreeSet::new();
    loop {
        match attempt(fs, dir, options, &mistrusted, head)? {
            Attempt::Succeeded(recovery) => return Ok(*recovery),
            Attempt::WrongIndexes(segments) => {
                tracing::warn!(dir = %dir.display(), ?segments, "indexes do not say what is in their segments: the segments are read");
                mistrusted.extend(segments);
            }
        }
    }
}

enum Attempt {
    Succeeded(Box<Recovery>),
    /// Perhaps, of these segments; nothing has been changed.
    WrongIndexes(Vec<u64>),
}

fn attempt(
    fs: &Arc<dyn FileSystem>,
    dir: &Path,
    options: &Options,
    mistrusted: &BTreeSet<u64>,
    head: Option<Head>,
) -> Result<Attempt, OpenError> {
    let segment_bytes = options.segment_bytes;
    let failed = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { action, path, source }
    };
    let found = find_files(fs.as_ref(), dir).map_err(failed("list", dir))?;
    let last_number = found.segments.last().map_or(0, |(number, _)| *number);
    // How far the last one was written and synced is only known from its batches.
    let index_of = |number: u64, file: &dyn File| {
        let is_trusted = number != last_number && !mistrusted.contains(&number);
        is_trusted.then(|| segment_index::load(fs.as_ref(), dir, number, file)).flatten()
    };
    let mut taken = TakenIn::default();
    each_segment(fs, &found.segments, &index_of, |whole| taken.take(whole, segment_bytes))?;
    let TakenIn { replay, segments, indexed, missing, tail, unwritten, mut read_bytes } = taken;
    for group in found.snapshots.into_iter().filter(|group| !replay.is_removed(*group)) {
        // A node that would serve without the group looks sound, and is one replica less.
        snapshot::load(fs.as_ref(), dir, group)?;
    }
    let (records, bytes) = (replay.records, segments.values().map(|segment| segment.end).sum());
    let mut index = Index::new(options.cache_bytes);
    index.segments = segments;
    let last_found = index.segments.last_key_value().map_or(0, |(number, _)| *number);
    head_file::check(head, dir, last_found)?;
    if let Err(error) = replay.finish(&mut index, dir) {
        // An index that is wrong can look like entries that are missing.
        let indexes = indexed.iter().map(|indexed| indexed.number).collect::<Vec<_>>();
        return if indexes.is_empty() { Err(error) } else { Ok(Attempt::WrongIndexes(indexes)) };
    }
    let checked = check_needed(fs, &index, indexed)?;
    if !checked.wrong.is_empty() {
        return Ok(Attempt::WrongIndexes(checked.wrong));
    }
    read_bytes += checked.read_bytes;
    let pool = Pool::new(Arc::clone(fs), dir.to_owned(), segment_bytes, found.spares)?;
    if let Some(tail) = tail {
        tail.secure().map_err(failed("write", &tail.path))?;
    }
    for (number, path, file) in unwritten {
        pool.retire(number, file, 1).map_err(failed("recycle", &path))?;
    }
    let stale = found.indexes.into_iter().filter(|number| !index.segments.contains_key(number));
    stale.for_each(|number| segment_index::remove(fs.as_ref(), dir, number));
    clean_up(fs.as_ref(), dir, &index, found.unfinished).map_err(failed("clean up", dir))?;
    // It names what is durable by now.
    let head =
        head_file::renew(fs.as_ref(), dir, head, last_found).map_err(failed("write the head of", dir))?;
    missing.save(fs.as_ref(), dir, options.disk_low_bytes);
    let found = Recovered { records, bytes, read_bytes };
    Ok(Attempt::Succeeded(Box::new(Recovery { index, pool, next_number: last_number + 1, head, found })))
}

/// What the segments of a folder hold.
#[derive(Default)]
struct TakenIn {
    replay: Replay,
    segments: BTreeMap<u64, Segment>,
    indexed: Vec<Indexed>,
    missing: MissingIndexes,
    /// The one that was written last, if it had to be read.
    tail: Option<Tail>,
    /// Those that were never begun.
    unwritten: Vec<(u64, PathBuf, Arc<dyn File>)>,
    read_bytes: u64,
}

impl TakenIn {
    /// Takes the next segment in, and gives the buffer back.
    fn take(&mut self, segment: Whole, segment_bytes: u64) -> Result<Vec<u8>, OpenError> {
        let Whole { number, path, file, bytes, index } = segment;
        self.read_bytes += bytes.len() as u64;
        if index.is_none() && !has_header(&bytes, number, &path)? {
            self.unwritten.push((number, path, file));
            return Ok(bytes);
        }
        // A segment is only begun when the one before it is sealed: none without a header can be before one with.
        if let Some((_, path, _)) = self.unwritten.first() {
            return Err(OpenError::Damaged { path: path.clone(), offset: 0 });
        }
        if let Some(Tail { path, batches, .. }) = self.tail.take()
            && !batches.is_sealed
        {
            return Err(OpenError::Damaged { path, offset: batches.end });
        }
        if let Some((index, end)) = index {
            self.replay.segment(&index, number, &path)?;
            self.segments.insert(number, Segment::new(file, end));
            self.indexed.push(Indexed { number, path, digest: index.digest() });
            return Ok(bytes);
        }
        let (index, batches) = list(&bytes, number, &path)?;
        self.replay.segment(&index, number, &path)?;
        if !index.is_too_large(segment_bytes) {
            self.missing.add(number, || index.encode(number, batches.ending(&bytes)));
        }
        self.segments.insert(number, Segment::new(Arc::clone(&file), batches.end));
        let last = bytes[batches.last_from() as usize..batches.end as usize].to_vec();
        self.tail = Some(Tail { number, path, file, last, batches });
        Ok(bytes)
    }
}

/// A segment that was taken in by its index.
struct Indexed {
    number: u64,
    path: PathBuf,
    digest: (u32, u32),
}

#[derive(Default)]
struct Checked {
    read_bytes: u64,
    /// Segments that are sound and not what their indexes say.
    wrong: Vec<u64>,
}

/// Reads the segments that hold what Raft may ask for, or the state of a group, although they have an index: what is damaged there
/// must not be found when it is needed.
fn check_needed(
    fs: &Arc<dyn FileSystem>,
    index: &Index,
    indexed: Vec<Indexed>,
) -> Result<Checked, OpenError> {
    let states = index.groups.values().filter_map(|group| group.state_segment).collect::<BTreeSet<_>>();
    let is_needed = |indexed: &Indexed| {
        let is_pinned = index.segments.get(&indexed.number).is_some_and(|segment| segment.pins > 0);
        is_pinned || states.contains(&indexed.number)
    };
    let needed = indexed.into_iter().filter(is_needed);
    let (paths, digests): (Vec<_>, BTreeMap<_, _>) =
        needed.map(|Indexed { number, path, digest }| ((number, path), (number, digest))).unzip();
    let mut checked = Checked::default();
    each_segment(fs, &paths, &|_, _| None, |Whole { number, path, bytes, .. }| {
        checked.read_bytes += bytes.len() as u64;
        let (found, batches) = list(&bytes, number, &path)?;
        let ends_there = index.segments.get(&number).is_some_and(|segment| segment.end == batches.end);
        if !batches.is_sealed || !ends_there {
            return Err(OpenError::Damaged { path, offset: batches.end });
        }
        if digests.get(&number) != Some(&found.digest()) {
            checked.wrong.push(number);
        }
        Ok(bytes)
    })?;
    Ok(checked)
}

/// Takes away what a crash left half done, and makes all changes of names durable that the last process may not have synced.
fn clean_up(fs: &dyn FileSystem, dir: &Path, index: &Index, unfinished: Vec<PathBuf>) -> io::Result<()> {
    for path in unfinished {
        fs.remove(&path)?;
    }
    for (id, _) in index.groups.iter().filter(|(_, group)| group.is_removed) {
        snapshot::remove(fs, dir, *id)?;
    }
    fs.sync_dir(dir)
}

/// Whether a segment was begun. If not, nothing in it was ever acknowledged.
fn has_header(bytes: &[u8], number: u64, path: &Path) -> Result<bool, OpenError> {
    let len = bytes.len() as u64;
    let header = bytes.first_chunk().map_or(Err(HeaderFault::Unwritten), SegmentHeader::decode);
    // The file had its full length, durably, before the segment was begun.
    let file_bytes = header.as_ref().map_or(SEGMENT_BYTES_MIN, |header| header.file_bytes);
    match header {
        Ok(_) | Err(HeaderFault::Unwritten) if len < file_bytes => {
            Err(OpenError::Damaged { path: path.to_owned(), offset: len })
        }
        Ok(header) if header.sequence == number => Ok(true),
        // The header reaches the disk with the first batch.
        Ok(_) | Err(HeaderFault::Unwritten) if has_batch_after(bytes, number, SEGMENT_HEADER_BYTES) => {
            Err(OpenError::Damaged { path: path.to_owned(), offset: 0 })
        }
        Ok(_) | Err(HeaderFault::Unwritten) => Ok(false),
        Err(HeaderFault::NewerVersion(found)) => {
            Err(OpenError::NewerVersion { path: path.to_owned(), found, known: FORMAT_VERSION })
        }
    }
}

/// Where the batches of a segment stand.
#[derive(Clone, Copy)]
struct Batches {
    last: u64,
    end: u64,
    is_sealed: bool,
}

impl Batches {
    /// Where what was written last begins: the header goes with the first batch.
    fn last_from(&self) -> u64 {
        if self.last == SEGMENT_HEADER_BYTES { 0 } else { self.last }
    }

    fn ending(&self, bytes: &[u8]) -> Ending {
        Ending {
            last_batch: self.last,
            last_batch_crc: batch_crc(&bytes[self.last as usize..]),
            end: self.end,
        }
    }
}

/// The segment that was written last.
struct Tail {
    number: u64,
    path: PathBuf,
    file: Arc<dyn File>,
    /// The last batch, with the segment's header if it is the first.
    last: Vec<u8>,
    batches: Batches,
}

impl Tail {
    /// Seals the segment, so that what stands behind its end is never looked at again, and writes its last batch once more: after a
    /// sync that failed, or that a kill cut off, a batch that can be read may be in the memory of the kernel alone, and count as
    /// clean there. The batches before it were synced before it was written.
    fn secure(&self) -> io::Result<()> {
        let mut bytes = self.last.clone();
        bytes.extend(BatchWriter::new().finish(self.number, self.batches.end));
        self.file.write_at(&bytes, self.batches.last_from())?;
        self.file.sync_data()
    }
}

#[derive(Default)]
struct Replay {
    groups: BTreeMap<GroupId, ReplayedGroup>,
    records: u64,
}

#[derive(Default)]
struct ReplayedGroup {
    generation: u32,
    state: GroupState,
    state_segment: Option<u64>,
    entries: BTreeMap<u64, (u64, Place)>,
    contents: BTreeMap<u64, Source>,
}

/// All records of the batches of a segment, checked.
fn list(bytes: &[u8], number: u64, path: &Path) -> Result<(SegmentIndex, Batches), OpenError> {
    let mut index = SegmentIndex::default();
    let (mut last, mut at) = (SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES);
    while let Parsed::Batch { records, end } = parse_batch(bytes, number, at) {
        if records.is_empty() {
            return Ok((index, Batches { last, end: at, is_sealed: true }));
        }
        // The payload of a record may be torn off while its header, in another sector, is there.
        if records.iter().any(|record| !record.is_sound) {
            break;
        }
        for record in &records {
            index.push(&Row::of(record, bytes));
        }
        (last, at) = (at, end);
    }
    if has_batch_after(bytes, number, at) {
        return Err(OpenError::Damaged { path: path.to_owned(), offset: at });
    }
    Ok((index, Batches { last, end: at, is_sealed: false }))
}

impl Replay {
    fn segment(&mut self, index: &SegmentIndex, number: u64, path: &Path) -> Result<(), OpenError> {
        index.rows().try_for_each(|row| self.record(&row, number, path))
    }

    fn record(&mut self, record: &Row<'_>, segment: u64, path: &Path) -> Result<(), OpenError> {
        self.records += 1;
        let place = Place { segment, offset: record.offset, len: record.payload_bytes };
        let group = self.groups.entry(record.group).or_default();
        if record.generation < group.generation {
            return Ok(());
        }
        if record.generation > group.generation {
            *group = ReplayedGroup { generation: record.generation, ..ReplayedGroup::default() };
        }
        match record.kind {
            Kind::Entry => group.entry(record.index, record.term, place),
            Kind::Contents => {
                let ranges = decode_ranges(record.head, record.payload_bytes).ok_or_else(|| {
                    OpenError::Unreadable {
                        path: path.to_owned(),
                        offset: record.offset.into(),
                        reason: "its table of ranges does not fit".to_owned(),
                    }
                })?;
                group.contents.insert(record.index, Source::Contents { place, ranges });
            }
            Kind::State => {
                let state = decode_state(Bytes::copy_from_slice(record.head)).map_err(|error| {
                    OpenError::Unreadable {
                        path: path.to_owned(),
                        offset: record.offset.into(),
                        reason: error.to_string(),
                    }
                })?;
                group.state(state, segment);
            }
        }
        Ok(())
    }

    fn is_removed(&self, id: GroupId) -> bool {
        self.groups.get(&id).is_some_and(|group| group.state.is_removed)
    }

    fn finish(self, index: &mut Index, dir: &Path) -> Result<(), OpenError> {
        for (id, replayed) in self.groups {
            let group = replayed.finish(id, &mut index.segments, dir)?;
            index.groups.insert(id, group);
        }
        Ok(())
    }
}

impl ReplayedGroup {
    fn entry(&mut self, index: u64, term: u64, place: Place) {
        // An entry replaces all that stood at and after its index.
        if self.entries.last_key_value().is_some_and(|(last, _)| *last >= index) {
            self.entries.split_off(&index);
        }
        self.entries.insert(index, (term, place));
    }

    fn state(&mut self, state: GroupState, segment: u64) {
        if state.is_removed {
            self.entries.clear();
            self.contents.clear();
        }
        self.entries.split_off(&state.next);
        self.state = state;
        self.state_segment = Some(segment);
    }

    fn finish(
        mut self,
        id: GroupId,
        segments: &mut BTreeMap<u64, Segment>,
        dir: &Path,
    ) -> Result<GroupIndex, OpenError> {
        let GroupState { is_removed, vote, mut committed, purged, .. } = self.state;
        // Raft begins at 0; some of openraft's own tests begin at 1.
        let begin = self.entries.first_key_value().map_or(0, |(index, _)| (*index).min(1));
        let first = purged.map_or(begin, |purged| purged.index + 1);
        let kept = self.entries.split_off(&first);
        let mut group = GroupIndex {
            generation: self.generation,
            is_removed,
            vote,
            purged,
            first,
            ..GroupIndex::default()
        };
        for (index, (term, place)) in kept {
            if index != group.next() {
                return Err(OpenError::Gap { dir: dir.to_owned(), group: id, index: group.next() });
            }
            group.slots.push_back(Slot { term, place, live_bytes: 0 });
            pin(segments, place);
        }
        // Every purged entry is kept until the state machine says what it refers to.
        for (index, (_, place)) in self.entries {
            retain(&mut group, segments, index, Source::Entry(place), place.len);
        }
        for (index, source) in self.contents {
            let Source::Contents { ranges, .. } = &source else { continue };
            let live_bytes = ranges.iter().map(|(_, len)| *len).sum();
            retain(&mut group, segments, index, source, live_bytes);
        }
        let is_held = |id: &openraft::LogId<_>| {
            Some(*id) == purged || group.slot(id.index).is_some_and(|slot| slot.term == id.leader_id.term)
        };
        if !committed.as_ref().is_some_and(is_held) {
            // What it names did not reach the disk: all that is known to be committed is what was purged.
            committed = purged;
        }
        group.committed = committed;
        group.state_segment = self.state_segment;
        Ok(group)
    }
}

fn pin(segments: &mut BTreeMap<u64, Segment>, place: Place) {
    if let Some(segment) = segments.get_mut(&place.segment) {
        segment.pins += 1;
    }
}

fn retain(
    group: &mut GroupIndex,
    segments: &mut BTreeMap<u64, Segment>,
    index: u64,
    source: Source,
    live_bytes: u32,
) {
    let mut count = |place: Place, change: i64| {
        if let Some(segment) = segments.get_mut(&place.segment) {
            segment.live_bytes = segment.live_bytes.saturating_add_signed(change);
        }
    };
    count(source.place(), i64::from(live_bytes));
    if let Some(old) = group.retained.insert(index, Retained { live_bytes, source }) {
        count(old.source.place(), -i64::from(old.live_bytes));
    }
}

/// The table that a contents record of so many bytes begins with: offset and length of each range; `None` when it does not fit.
pub fn decode_ranges(head: &[u8], payload_bytes: u32) -> Option<Box<[(u32, u32)]>> {
    let count = read_u32(head.get(..4)?, 0) as usize;
    let table = head.get(4..4 + count.checked_mul(8)?)?;
    let ranges = table.chunks_exact(8).map(|row| (read_u32(row, 0), read_u32(row, 4))).collect::<Box<[_]>>();
    let bytes = ranges.iter().map(|(_, len)| *len as usize).sum::<usize>();
    (4 + table.len() + bytes == payload_bytes as usize).then_some(ranges)
}
