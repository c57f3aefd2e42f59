//! Contents: ranges of entries' payloads that the state machines refer to, which outlive the entries.

use std::sync::Arc;

use bytes::Bytes;

use crate::cache::Key;
use crate::codec::NORMAL_PREFIX_BYTES;
use crate::error::{LogError, ReadError};
use crate::format::{Kind, Record};
use crate::index::{Place, Source};
use crate::log::{LiveEntries, LiveRanges, Log, wait};
use crate::payload::GroupId;
use crate::writer::{Note, Queued, encode_contents};

/// What stands where a content is looked for.
enum Found {
    Bytes(Bytes, u32),
    At(Kind, Place, u32),
}

impl Log {
    /// Part of an entry's payload.
    ///
    /// # Errors
    /// When it was released, or cannot be read.
    pub fn read_content(
        &self,
        group: GroupId,
        index: u64,
        offset: u32,
        len: u32,
    ) -> Result<Bytes, ReadError> {
        let missing = || ReadError::Missing { group, index, offset, end: u64::from(offset) + u64::from(len) };
        // A record that is moved or freed while it is read is not found where it was: look again.
        let mut tries_left = 3;
        loop {
            let (kind, place, at) = match self.find_content(group, index, offset, len).ok_or_else(missing)? {
                Found::Bytes(record, at) => return slice(&record, at, len).ok_or_else(missing),
                Found::At(kind, place, at) => (kind, place, at),
            };
            // Who waited for another reader looks again; if that one failed, it reads by itself.
            let Some(_turn) = self.shared.reading.turn(place) else { continue };
            tries_left -= 1;
            match self.shared.read_record(kind, group, index, place) {
                Ok(record) => {
                    self.shared.read_ahead_of(place);
                    let mut locked = self.shared.lock_index();
                    locked.cache.keep(Key::Record(place.segment, place.offset), record.clone());
                    return slice(&record, at, len).ok_or_else(missing);
                }
                Err(error) if tries_left == 0 => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Part of an entry's payload, if no disk has to be read for it.
    pub fn try_read_cached(&self, group: GroupId, index: u64, offset: u32, len: u32) -> Option<Bytes> {
        match self.find_content(group, index, offset, len)? {
            Found::Bytes(record, at) => slice(&record, at, len),
            Found::At(..) => None,
        }
    }

    /// The record with a content, and where in the record's payload it begins.
    fn find_content(&self, id: GroupId, index: u64, offset: u32, len: u32) -> Option<Found> {
        let locked = self.shared.lock_index();
        let group = locked.groups.get(&id)?;
        let moved = match group.retained.get(&index).map(|held| &held.source) {
            Some(Source::Contents { place, ranges }) => {
                find_range(ranges, offset, len).map(|at| (Kind::Contents, *place, at))
            }
            Some(Source::Entry(place)) => {
                Some((Kind::Entry, *place, offset.checked_add(NORMAL_PREFIX_BYTES)?))
            }
            None => None,
        };
        let (kind, place, at) = match moved {
            Some(moved) => moved,
            None => (Kind::Entry, group.slot(index)?.place, offset.checked_add(NORMAL_PREFIX_BYTES)?),
        };
        let in_entry = (kind == Kind::Entry).then(|| locked.cache.get(Key::Entry(id, index))).flatten();
        let cached = in_entry.or_else(|| locked.cache.get(Key::Record(place.segment, place.offset)));
        Some(cached.map_or(Found::At(kind, place, at), |record| Found::Bytes(record, at)))
    }

    /// The state machine refers to `bytes` of the entry's payload from now on.
    pub fn retain(&self, group: GroupId, index: u64, bytes: u64) {
        self.shared.lock_index().retain(group, index, u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// The state machine no longer refers to `bytes` of the entry's payload.
    pub fn release(&self, group: GroupId, index: u64, bytes: u64) {
        self.shared.lock_index().release(group, index, u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Says what the state machine refers to, after a restart or when no snapshot is coming in: entries and bytes of each, sorted. All
    /// else is freed.
    pub fn restore_live(&self, group: GroupId, live: &[(u64, u64)]) {
        self.restore_live_through(group, live, u64::MAX);
    }

    /// The same after a snapshot that ends with entry `through`. What there is of later entries may have come with a newer snapshot,
    /// which is not installed yet, and stays.
    pub fn restore_live_through(&self, group: GroupId, live: &[(u64, u64)], through: u64) {
        self.shared.lock_index().restore_live(group, live, through);
    }

    /// The ranges that a state machine refers to, by group and entry; compaction asks for them.
    pub fn set_live_ranges_source(&self, source: Arc<LiveRanges>) {
        // The first one stays: a node has one.
        let _ = self.shared.live_ranges.set(source);
    }

    /// The entries that a state machine refers to, by group; who is sent its contents is sent those of all of them.
    pub fn set_live_entries_source(&self, source: Arc<LiveEntries>) {
        // As above.
        let _ = self.shared.live_entries.set(source);
    }

    /// Whether the state machine refers to this part of an entry's payload.
    pub fn refers_to(&self, group: GroupId, index: u64, offset: u32, len: u32) -> bool {
        let Some(ranges) = self.shared.live_ranges.get() else { return false };
        ranges(group, index).iter().any(|range| covers(*range, offset, len))
    }

    /// All ranges of entries through `through` that the state machine refers to, also those that are not here.
    pub fn live_contents(&self, group: GroupId, through: u64) -> Vec<(u64, Vec<(u32, u32)>)> {
        let (Some(entries), Some(ranges)) = (self.shared.live_entries.get(), self.shared.live_ranges.get())
        else {
            return Vec::new();
        };
        entries(group)
            .into_iter()
            .filter(|(index, _)| *index <= through)
            .map(|(index, _)| (index, ranges(group, index)))
            .filter(|(_, ranges)| !ranges.is_empty())
            .collect()
    }

    /// Stores contents that came with a snapshot, durably: by entry, ranges sorted by offset.
    ///
    /// # Errors
    /// When the log has failed, or the group was removed.
    pub async fn put_contents(
        &self,
        group: GroupId,
        contents: Vec<(u64, Vec<(u32, Bytes)>)>,
    ) -> Result<(), LogError> {
        let generation = self.shared.lock_index().generation_in_use(group)?;
        let records = contents.into_iter().map(|(index, ranges)| {
            let table = ranges.iter().map(|(offset, bytes)| (*offset, bytes.len() as u32)).collect();
            let payload = encode_contents(&ranges);
            let record = Record { kind: Kind::Contents, group, generation, index, term: 0, payload };
            Queued { record, note: Note::Contents { ranges: table, moved_from: None } }
        });
        wait(self.shared.submit(records.collect(), Vec::new())).await
    }
}

/// Where a range begins in the payload of its contents record.
fn find_range(ranges: &[(u32, u32)], offset: u32, len: u32) -> Option<u32> {
    let mut at = 4 + 8 * ranges.len() as u32;
    for (start, range_len) in ranges {
        if covers((*start, *range_len), offset, len) {
            return Some(at + (offset - start));
        }
        at += range_len;
    }
    None
}

/// Whether a range, an offset and a length, has all of these bytes.
fn covers((start, range_len): (u32, u32), offset: u32, len: u32) -> bool {
    offset >= start && u64::from(offset) + u64::from(len) <= u64::from(start) + u64::from(range_len)
}

fn slice(record: &Bytes, at: u32, len: u32) -> Option<Bytes> {
    let end = (at as usize).checked_add(len as usize)?;
    (end <= record.len()).then(|| record.slice(at as usize..end))
}
