//! Where everything lies: the entries of each group, the contents that outlive their entries, and what each segment still holds.
//!
//! A segment is needed while it is pinned (by entries that Raft has not purged) or holds live bytes (contents of purged entries).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::cache::{Cache, Key};
use crate::codec::GroupState;
use crate::error::LogError;
use crate::filesystem::File;
use crate::format::SEGMENT_HEADER_BYTES;
use crate::payload::{GroupId, LogId, Vote, log_id};

/// Where the payload of a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub segment: u64,
    pub offset: u32,
    pub len: u32,
}

/// The segment number of a record that the writer has not written yet.
pub const UNWRITTEN: u64 = u64::MAX;

impl Place {
    fn unwritten(len: u32) -> Self {
        Self { segment: UNWRITTEN, offset: 0, len }
    }

    pub fn is_written(self) -> bool {
        self.segment != UNWRITTEN
    }
}

/// An entry that Raft may still ask for.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    pub term: u64,
    pub place: Place,
    /// Bytes of its payload that the state machine refers to.
    pub live_bytes: u32,
}

/// Contents of an entry that Raft has purged, or that came with a snapshot.
#[derive(Debug, Clone)]
pub struct Retained {
    pub live_bytes: u32,
    pub source: Source,
}

#[derive(Debug, Clone)]
pub enum Source {
    /// The entry itself.
    Entry(Place),
    /// A record with some ranges of the payload, sorted by offset: offset and length of each.
    Contents { place: Place, ranges: Box<[(u32, u32)]> },
}

impl Source {
    pub fn place(&self) -> Place {
        match self {
            Self::Entry(place) | Self::Contents { place, .. } => *place,
        }
    }
}

/// One group's part of the log.
#[derive(Default)]
pub struct GroupIndex {
    pub generation: u32,
    pub is_removed: bool,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    /// Index of the first of `slots`.
    pub first: u64,
    pub slots: VecDeque<Slot>,
    pub retained: BTreeMap<u64, Retained>,
    /// The segment with the group's latest state.
    pub state_segment: Option<u64>,
}

impl GroupIndex {
    pub fn next(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    pub fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    pub fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    pub fn last_log_id(&self) -> Option<LogId> {
        self.slots.back().map(|slot| log_id(slot.term, self.next() - 1)).or(self.purged)
    }

    pub fn state(&self) -> GroupState {
        let next = self.last_log_id().map_or(0, |last| last.index + 1);
        let Self { is_removed, vote, committed, purged, .. } = *self;
        GroupState { is_removed, vote, committed, purged, next }
    }
}

/// One file of the log.
pub struct Segment {
    pub file: Arc<dyn File>,
    /// Where its batches end.
    pub end: u64,
    /// Entries in it that Raft may still ask for.
    pub pins: u64,
    /// Live bytes of purged entries and of contents records in it.
    pub live_bytes: u64,
}

impl Segment {
    pub fn new(file: Arc<dyn File>, end: u64) -> Self {
        Self { file, end, pins: 0, live_bytes: 0 }
    }
}

/// A new entry, as a group hands it over.
pub struct NewEntry {
    pub index: u64,
    pub term: u64,
    pub body: Bytes,
}

pub struct Index {
    pub groups: BTreeMap<GroupId, GroupIndex>,
    pub segments: BTreeMap<u64, Segment>,
    pub cache: Cache,
    /// Groups whose state must be written with the next batch.
    pub dirty: BTreeSet<GroupId>,
}

impl Index {
    pub fn new(cache_bytes: usize) -> Self {
        let cache = Cache::new(cache_bytes);
        Self { groups: BTreeMap::new(), segments: BTreeMap::new(), cache, dirty: BTreeSet::new() }
    }

    /// The group, made if it is new.
    pub fn group(&mut self, id: GroupId) -> &mut GroupIndex {
        self.groups.entry(id).or_default()
    }

    /// The group, which is on this node from now on if it was not.
    pub fn group_in_use(&mut self, id: GroupId) -> &mut GroupIndex {
        if std::mem::take(&mut self.group(id).is_removed) {
            self.dirty.insert(id);
        }
        self.group(id)
    }

    /// The generation of a group that is on this node.
    ///
    /// # Errors
    /// When it was removed: what outlives a replica must not bring its group back.
    pub fn generation_in_use(&mut self, id: GroupId) -> Result<u32, LogError> {
        let group = self.group(id);
        if group.is_removed { Err(LogError::Removed { group: id }) } else { Ok(group.generation) }
    }

    /// Takes entries in; those at and after the first of them are replaced. They can be read at once.
    pub fn append(&mut self, id: GroupId, entries: &[NewEntry]) {
        let Some(first) = entries.first() else { return };
        if first.index < self.group(id).next() {
            self.truncate_from(id, first.index);
        }
        let group = self.group_in_use(id);
        if group.slots.is_empty() {
            group.first = first.index;
        }
        assert_eq!(first.index, group.next(), "entries of a group follow each other");
        for entry in entries {
            let place = Place::unwritten(entry.body.len() as u32);
            group.slots.push_back(Slot { term: entry.term, place, live_bytes: 0 });
        }
        for entry in entries {
            self.cache.pin(Key::Entry(id, entry.index), entry.body.clone());
        }
        self.cache.evict();
    }

    /// Removes the entries at and after `from`.
    pub fn truncate_from(&mut self, id: GroupId, from: u64) {
        loop {
            let group = self.group(id);
            if group.slots.is_empty() || group.next() <= from {
                break;
            }
            let index = group.next() - 1;
            if let Some(slot) = group.slots.pop_back() {
                self.unpin_segment(slot.place);
            }
            self.cache.remove(Key::Entry(id, index));
        }
        self.dirty.insert(id);
    }

    /// Removes the entries through `through`; their live contents stay readable.
    pub fn purge(&mut self, id: GroupId, through: LogId) {
        loop {
            let group = self.group(id);
            if group.slots.is_empty() || group.first > through.index {
                break;
            }
            let index = group.first;
            group.first += 1;
            let Some(slot) = group.slots.pop_front() else { break };
            if slot.live_bytes > 0 && !group.retained.contains_key(&index) {
                let source = Source::Entry(slot.place);
                group.retained.insert(index, Retained { live_bytes: slot.live_bytes, source });
                self.change_live(slot.place, i64::from(slot.live_bytes));
                if !slot.place.is_written() {
                    continue;
                }
                self.move_cached(id, index, slot.place);
            }
            self.unpin_segment(slot.place);
            self.cache.remove(Key::Entry(id, index));
        }
        let group = self.group(id);
        if group.slots.is_empty() {
            group.first = group.first.max(through.index + 1);
        }
        group.purged = group.purged.max(Some(through));
        self.dirty.insert(id);
    }

    /// Notes that an entry was written. It may have been truncated or replaced since.
    pub fn entry_written(&mut self, id: GroupId, generation: u32, index: u64, term: u64, place: Place) {
        let group = self.group(id);
        if group.generation != generation {
            return;
        }
        if let Some(slot) = group.slot_mut(index) {
            if slot.term == term && !slot.place.is_written() {
                slot.place = place;
                if let Some(segment) = self.segments.get_mut(&place.segment) {
                    segment.pins += 1;
                }
                self.cache.unpin(Key::Entry(id, index));
            }
        } else if let Some(held) = group.retained.get_mut(&index)
            && matches!(held.source, Source::Entry(old) if !old.is_written())
        {
            // Purged before it was written: others had it on their disks, and its contents are wanted.
            held.source = Source::Entry(place);
            let live_bytes = i64::from(held.live_bytes);
            self.change_live(place, live_bytes);
            self.move_cached(id, index, place);
            self.cache.remove(Key::Entry(id, index));
        } else {
            self.cache.remove(Key::Entry(id, index));
        }
    }

    /// Notes that contents were written. `moved_from` is the record that they replace, if they were moved.
    pub fn contents_written(
        &mut self,
        id: GroupId,
        generation: u32,
        index: u64,
        new: Source,
        moved_from: Option<Place>,
    ) {
        let group = self.group(id);
        if group.generation != generation {
            return;
        }
        let Source::Contents { ranges, .. } = &new else { return };
        let place = new.place();
        let live_bytes = match (moved_from, group.retained.get(&index)) {
            // Settled or replaced while it was being moved.
            (Some(_), None) => return,
            (Some(from), Some(held)) if held.source.place() != from => return,
            // What comes with a snapshot may never be installed: what is counted stays as it is.
            (_, Some(held)) => held.live_bytes,
            (None, None) => match group.slot(index).map_or(0, |slot| slot.live_bytes) {
                0 => ranges.iter().map(|(_, len)| *len).sum(),
                counted => counted,
            },
        };
        if let Some(slot) = group.slot_mut(index) {
            slot.live_bytes = 0;
        }
        if let Some(old) = group.retained.insert(index, Retained { live_bytes, source: new }) {
            self.change_live(old.source.place(), -i64::from(old.live_bytes));
        }
        self.change_live(place, i64::from(live_bytes));
    }

    /// The state machine now refers to `bytes` of the entry's payload.
    pub fn retain(&mut self, id: GroupId, index: u64, bytes: u32) {
        let group = self.group(id);
        if let Some(held) = group.retained.get_mut(&index) {
            // It came with a snapshot or was moved, and is counted already.
            let added = bytes.saturating_sub(held.live_bytes);
            held.live_bytes += added;
            let place = held.source.place();
            self.change_live(place, i64::from(added));
        } else if let Some(slot) = group.slot_mut(index) {
            slot.live_bytes += bytes;
        }
    }

    /// The state machine no longer refers to `bytes` of the entry's payload.
    pub fn release(&mut self, id: GroupId, index: u64, bytes: u32) {
        let group = self.group(id);
        let Some(held) = group.retained.get_mut(&index) else {
            if let Some(slot) = group.slot_mut(index) {
                slot.live_bytes = slot.live_bytes.saturating_sub(bytes);
            }
            return;
        };
        let freed = held.live_bytes.min(bytes);
        held.live_bytes -= freed;
        let (place, is_over) = (held.source.place(), held.live_bytes == 0);
        if is_over {
            group.retained.remove(&index);
        }
        self.change_live(place, -i64::from(freed));
    }

    /// Makes of the entries through `through` exactly these contents live: entry and bytes, sorted by entry. What is after them stays
    /// as it is.
    pub fn restore_live(&mut self, id: GroupId, live: &[(u64, u64)], through: u64) {
        let bytes_of = |index: u64| {
            let found = live.binary_search_by_key(&index, |(index, _)| *index).ok()?;
            u32::try_from(live[found].1).ok()
        };
        let group = self.group(id);
        let mut changes = Vec::new();
        group.retained.retain(|index, held| {
            if *index > through {
                return true;
            }
            let bytes = bytes_of(*index).unwrap_or(0);
            changes.push((held.source.place(), i64::from(bytes) - i64::from(held.live_bytes)));
            held.live_bytes = bytes;
            bytes > 0
        });
        let slots = (group.first..).zip(&mut group.slots);
        for (index, slot) in slots.take_while(|(index, _)| *index <= through) {
            let is_held_apart = group.retained.contains_key(&index);
            slot.live_bytes = if is_held_apart { 0 } else { bytes_of(index).unwrap_or(0) };
        }
        for (place, change) in changes {
            self.change_live(place, change);
        }
    }

    /// Forgets everything of a group but that it is gone.
    pub fn remove_group(&mut self, id: GroupId) {
        self.truncate_from(id, 0);
        let group = self.group(id);
        let retained = std::mem::take(&mut group.retained);
        *group = GroupIndex {
            generation: group.generation + 1,
            is_removed: true,
            state_segment: group.state_segment,
            ..GroupIndex::default()
        };
        for (index, held) in retained {
            self.change_live(held.source.place(), -i64::from(held.live_bytes));
            // Purged, but not written yet: it is pinned.
            self.cache.remove(Key::Entry(id, index));
        }
        self.dirty.insert(id);
    }

    /// Segments that hold nothing that is needed, the one being written apart.
    pub fn idle_segments(&self) -> Vec<u64> {
        let last = self.segments.keys().next_back().copied();
        let idle = |(_, segment): &(&u64, &Segment)| segment.pins == 0 && segment.live_bytes == 0;
        self.segments
            .iter()
            .filter(idle)
            .map(|(number, _)| *number)
            .filter(|number| Some(*number) != last)
            .collect()
    }

    /// The highest number of a segment whose first batch is synced; one that was found without a whole batch does not count.
    pub fn last_begun(&self) -> Option<u64> {
        let is_begun = |(_, segment): &(&u64, &Segment)| segment.end > SEGMENT_HEADER_BYTES;
        self.segments.iter().rev().find(is_begun).map(|(number, _)| *number)
    }

    fn unpin_segment(&mut self, place: Place) {
        if place.is_written()
            && let Some(segment) = self.segments.get_mut(&place.segment)
        {
            segment.pins -= 1;
        }
    }

    fn change_live(&mut self, place: Place, change: i64) {
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.live_bytes = segment.live_bytes.saturating_add_signed(change);
        }
    }

    /// A purged entry stays cached under its place: its contents are about to be delivered.
    fn move_cached(&mut self, id: GroupId, index: u64, place: Place) {
        if let Some(bytes) = self.cache.get(Key::Entry(id, index)) {
            self.cache.keep(Key::Record(place.segment, place.offset), bytes);
        }
    }
}
