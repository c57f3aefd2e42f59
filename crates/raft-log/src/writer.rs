//! The one thread that writes: it takes what has gathered, writes it as one batch, syncs once, and only then tells everybody.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;

use crate::codec::encode_state;
use crate::error::LogError;
use crate::filesystem::File;
use crate::format::{
    BATCH_HEADER_BYTES, BatchWriter, Kind, Record, SEGMENT_HEADER_BYTES, SegmentHeader, batch_crc,
};
use crate::index::{Place, Segment, Source};
use crate::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use crate::log::Shared;
use crate::payload::GroupId;
use crate::segment_index::{Ending, Row, SegmentIndex, head_bytes};

/// Of the cache of the machine.
const PAGE_BYTES: u64 = 4096;

type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// What shall be durable before `done` is called.
pub struct Op {
    pub records: Vec<Queued>,
    /// Groups whose state is written although it has not changed.
    pub states: Vec<GroupId>,
    pub done: Done,
}

/// A record, and what has to be noted when it is written.
pub struct Queued {
    pub record: Record,
    pub note: Note,
}

pub enum Note {
    Entry,
    Contents { ranges: Box<[(u32, u32)]>, moved_from: Option<Place> },
    State,
}

/// Operations on their way to the writer.
#[derive(Default)]
pub struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    ops: VecDeque<Op>,
    is_closed: bool,
}

impl Queue {
    /// Queues an operation; answers it at once when the log is closed.
    pub fn push(&self, op: Op) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_closed {
            drop(state);
            return (op.done)(Err(LogError::Closed));
        }
        state.ops.push_back(op);
        drop(state);
        self.changed.notify_one();
    }

    pub fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.changed.notify_one();
    }

    pub fn is_empty(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ops.is_empty()
    }

    /// Waits for operations and takes as many as one batch holds; `None` when the log was closed and all are done.
    fn take(&self) -> Option<Vec<Op>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |state: &mut QueueState| state.ops.is_empty() && !state.is_closed;
        let mut state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        Self::batch(&mut state)
    }

    fn batch(state: &mut QueueState) -> Option<Vec<Op>> {
        let (mut ops, mut records, mut bytes) = (Vec::new(), 0, 0);
        while let Some(op) = state.ops.front() {
            records += op.records.len();
            bytes += op.records.iter().map(|queued| queued.record.payload.len()).sum::<usize>();
            if !ops.is_empty() && (records > BATCH_RECORDS_MAX || bytes > BATCH_BYTES_MAX) {
                break;
            }
            ops.extend(state.ops.pop_front());
        }
        (!ops.is_empty()).then_some(ops)
    }
}

/// The segment that is being written.
struct Head {
    number: u64,
    file: Arc<dyn File>,
    ending: Ending,
    /// `None` when it would be too large.
    index: Option<SegmentIndex>,
}

pub struct Writer {
    shared: Arc<Shared>,
    head: Option<Head>,
    next_number: u64,
}

struct Written {
    kind: Kind,
    group: GroupId,
    generation: u32,
    index: u64,
    term: u64,
    place: Place,
    /// What the index of the segment has of the payload.
    head: Bytes,
    note: Note,
}

impl Writer {
    /// `next_number` is that of the segment that the first batch starts.
    pub fn new(shared: Arc<Shared>, next_number: u64) -> Self {
        Self { shared, head: None, next_number }
    }

    /// Works until the log is closed.
    pub fn run(mut self) {
        while let Some(ops) = self.shared.queue.take() {
            self.write_through(ops);
        }
        self.while_healthy(|writer| {
            writer.seal()?;
            writer.head.as_ref().map_or(Ok(()), |head| head.file.sync_data())
        });
    }

    /// Writes one batch of what waits, if anything does.
    #[cfg(any(test, feature = "testing"))]
    pub fn write_waiting(&mut self) {
        let ops = Queue::batch(&mut self.shared.queue.state.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(ops) = ops {
            self.write_through(ops);
        }
    }

    /// Makes operations durable as one batch, and tells everybody.
    fn write_through(&mut self, ops: Vec<Op>) {
        let mut dones = Vec::with_capacity(ops.len());
        let mut records = Vec::new();
        let mut states = Vec::new();
        for op in ops {
            records.extend(op.records);
            states.extend(op.states);
            dones.push(op.done);
        }
        let outcome = match self.shared.failure() {
            Some(failure) => Err(failure),
            None => self.commit(records, &states).map_err(|error| self.shared.fail(&error)),
        };
        for done in dones {
            done(outcome.clone());
        }
        if self.shared.queue.is_empty() {
            self.while_healthy(Self::seal);
        }
    }

    fn while_healthy(&self, work: impl FnOnce(&Self) -> io::Result<()>) {
        if self.shared.failure().is_none()
            && let Err(error) = work(self)
        {
            self.shared.fail(&error);
        }
    }

    /// Ends the head where it ends now; the next batch takes the place of the seal. That a batch is followed by anything shows that
    /// it had been synced: damage to it is not taken for a write that was cut off.
    fn seal(&self) -> io::Result<()> {
        let Some(head) = &self.head else { return Ok(()) };
        let end = head.ending.end;
        let bytes = BatchWriter::new().finish(head.number, end);
        put(head.file.as_ref(), bytes, end, self.shared.options.segment_bytes)
    }

    fn commit(&mut self, mut records: Vec<Queued>, states: &[GroupId]) -> io::Result<()> {
        records.extend(self.state_records(states));
        if records.is_empty() {
            return Ok(());
        }
        let payload_bytes = records.iter().map(|queued| queued.record.payload.len()).sum();
        let mut batch = BatchWriter::with_room(records.len(), payload_bytes);
        let mut written = Vec::with_capacity(records.len());
        for Queued { record, note } in records {
            let offset = batch.push(&record);
            let Record { kind, group, generation, index, term, payload } = record;
            let place = Place { segment: 0, offset: offset as u32, len: payload.len() as u32 };
            let head = payload.slice(..head_bytes(kind, &payload));
            written.push(Written { kind, group, generation, index, term, place, head, note });
        }
        let start = self.write(batch)?;
        self.note(written, start);
        Ok(())
    }

    fn state_records(&self, forced: &[GroupId]) -> Vec<Queued> {
        let mut index = self.shared.lock_index();
        let mut groups = std::mem::take(&mut index.dirty);
        groups.extend(forced);
        let record = |id: &GroupId| {
            let group = index.groups.get(id)?;
            let payload = encode_state(&group.state());
            let record = Record {
                kind: Kind::State,
                group: *id,
                generation: group.generation,
                index: 0,
                term: 0,
                payload,
            };
            Some(Queued { record, note: Note::State })
        };
        groups.iter().filter_map(record).collect()
    }

    /// Writes and syncs a batch; returns where it begins.
    fn write(&mut self, batch: BatchWriter) -> io::Result<(u64, u64)> {
        let segment_bytes = self.shared.options.segment_bytes;
        let room = segment_bytes - BATCH_HEADER_BYTES as u64;
        let fits = |head: &&mut Head| head.ending.end + batch.len_bytes() as u64 <= room;
        let stats = &self.shared.stats;
        let started = Instant::now();
        let (number, start, end) = match self.head.as_mut().filter(fits) {
            Some(head) => {
                let (start, len_bytes) = (head.ending.end, batch.len_bytes());
                let bytes = batch.finish(head.number, start);
                let end = start + len_bytes as u64;
                head.ending = Ending { last_batch: start, last_batch_crc: batch_crc(&bytes), end };
                put(head.file.as_ref(), bytes, start, segment_bytes)?;
                stats.wrote(len_bytes);
                (head.number, start, end)
            }
            None => {
                let (head, bytes) = self.rotate(batch)?;
                self.shared.stats.wrote(bytes);
                let placed = (head.number, SEGMENT_HEADER_BYTES, head.ending.end);
                self.head = Some(head);
                placed
            }
        };
        if let Some(head) = &self.head {
            head.file.sync_data()?;
        }
        self.shared.stats.synced(started.elapsed());
        if let Some(segment) = self.shared.lock_index().segments.get_mut(&number) {
            segment.end = end;
        }
        Ok((number, start))
    }

    /// Seals the segment that is full and begins the next one with this batch, which is not synced yet.
    fn rotate(&mut self, batch: BatchWriter) -> io::Result<(Head, usize)> {
        self.seal()?;
        if let Some(Head { number, file, ending, index }) = self.head.take() {
            file.sync_data()?;
            if let Some(index) = index {
                self.shared.housekeeper.index(number, index.encode(number, ending));
            }
        }
        let number = self.next_number;
        self.next_number += 1;
        let file = self.shared.pool.start_segment(number, Instant::now())?;
        let mut bytes = SegmentHeader { sequence: number, file_bytes: file.len_bytes()? }.encode().to_vec();
        let batch = batch.finish(number, SEGMENT_HEADER_BYTES);
        let last_batch_crc = batch_crc(&batch);
        bytes.extend(batch);
        // Known before its first batch is, so that nothing takes the segment before it for the last.
        let segment = Segment::new(Arc::clone(&file), SEGMENT_HEADER_BYTES);
        self.shared.lock_index().segments.insert(number, segment);
        let len_bytes = bytes.len();
        put(file.as_ref(), bytes, 0, self.shared.options.segment_bytes)?;
        self.shared.housekeeper.wake();
        let ending = Ending { last_batch: SEGMENT_HEADER_BYTES, last_batch_crc, end: len_bytes as u64 };
        Ok((Head { number, file, ending, index: Some(SegmentIndex::default()) }, len_bytes))
    }

    fn note(&mut self, written: Vec<Written>, (segment, start): (u64, u64)) {
        self.note_in_head(&written, start);
        let mut index = self.shared.lock_index();
        for Written { group, generation, index: at, term, place, note, .. } in written {
            let place = Place { segment, offset: place.offset + start as u32, len: place.len };
            match note {
                Note::Entry => index.entry_written(group, generation, at, term, place),
                Note::Contents { ranges, moved_from } => {
                    index.contents_written(
                        group,
                        generation,
                        at,
                        Source::Contents { place, ranges },
                        moved_from,
                    );
                }
                Note::State => index.group(group).state_segment = Some(segment),
            }
        }
        index.cache.evict();
    }

    fn note_in_head(&mut self, written: &[Written], start: u64) {
        let Some(rows) = self.head.as_mut().and_then(|head| head.index.as_mut()) else { return };
        for Written { kind, group, generation, index, term, place, head, .. } in written {
            rows.push(&Row {
                kind: *kind,
                group: *group,
                generation: *generation,
                index: *index,
                term: *term,
                offset: place.offset + start as u32,
                payload_bytes: place.len,
                head,
            });
        }
        if rows.is_too_large(self.shared.options.segment_bytes)
            && let Some(head) = &mut self.head
        {
            head.index = None;
        }
    }
}

/// Writes to where nothing is needed any more, with zeros to the end of the page: of a page that is written to its end nothing has
/// to be read before.
fn put(file: &dyn File, mut bytes: Vec<u8>, at: u64, segment_bytes: u64) -> io::Result<()> {
    let end = at + bytes.len() as u64;
    // A file of another length than it was made with would need its length synced too.
    let padded_end = end.next_multiple_of(PAGE_BYTES).min(segment_bytes).max(end);
    bytes.resize((padded_end - at) as usize, 0);
    file.write_at(&bytes, at)
}

/// Puts ranges of an entry's payload into the payload of one record.
pub fn encode_contents(ranges: &[(u32, Bytes)]) -> Bytes {
    let mut payload = Vec::with_capacity(4 + ranges.iter().map(|(_, bytes)| 8 + bytes.len()).sum::<usize>());
    payload.extend((ranges.len() as u32).to_le_bytes());
    for (offset, bytes) in ranges {
        payload.extend(offset.to_le_bytes());
        payload.extend((bytes.len() as u32).to_le_bytes());
    }
    for (_, bytes) in ranges {
        payload.extend_from_slice(bytes);
    }
    payload.into()
}
