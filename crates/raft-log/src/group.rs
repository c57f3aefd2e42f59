//! One group's part of the log, as openraft's storage traits want it.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};

use crate::cache::Key;
use crate::codec::{decode_entry_body, encode_entry_body};
use crate::format::{Kind, Record};
use crate::index::{NewEntry, Place};
use crate::limits::READ_BYTES_MAX;
use crate::log::{Shared, wait};
use crate::payload::{Entry, GroupId, LogId, LogTypes, Vote, log_id};
use crate::writer::{Note, Op, Queued};

/// The log of one Raft group within the node's. Cheap to clone: reader and writer see the same.
pub struct GroupLog<C> {
    shared: Arc<Shared>,
    id: GroupId,
    types: PhantomData<fn() -> C>,
}

impl<C> Clone for GroupLog<C> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), id: self.id, types: PhantomData }
    }
}

/// Where an entry is found.
enum Found {
    Cached(Bytes),
    At(Place),
}

impl<C: LogTypes> GroupLog<C> {
    pub(crate) fn new(shared: Arc<Shared>, id: GroupId) -> Self {
        shared.lock_index().group_in_use(id);
        Self { shared, id, types: PhantomData }
    }

    /// Entries of [start, end), of about `bytes_max` bytes and at least one.
    fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        // What is purged while it is read may be gone from where it was: look again.
        let mut tries_left = 3;
        loop {
            let found = self.find(start, end, bytes_max);
            let read = found.into_iter().map(|(log_id, found)| self.load(log_id, found)).collect();
            tries_left -= 1;
            if io::Result::is_ok(&read) || tries_left == 0 {
                return read;
            }
        }
    }

    fn find(&self, start: u64, end: u64, bytes_max: usize) -> Vec<(LogId, Found)> {
        let locked = self.shared.lock_index();
        let Some(group) = locked.groups.get(&self.id) else { return Vec::new() };
        let (mut found, mut bytes) = (Vec::new(), 0);
        for index in start.max(group.first)..end.min(group.next()) {
            let Some(slot) = group.slot(index) else { break };
            bytes += slot.place.len as usize;
            if !found.is_empty() && bytes > bytes_max {
                break;
            }
            let cached = locked.cache.get(Key::Entry(self.id, index));
            found.push((log_id(slot.term, index), cached.map_or(Found::At(slot.place), Found::Cached)));
        }
        found
    }

    fn load(&self, log_id: LogId, found: Found) -> io::Result<Entry> {
        let body = match found {
            Found::Cached(body) => body,
            Found::At(place) => self.shared.read_record(Kind::Entry, self.id, log_id.index, place)?,
        };
        decode_entry_body(log_id, body).map_err(io::Error::other)
    }

    fn refuse_when_failed(&self) -> io::Result<()> {
        self.shared.failure().map_or(Ok(()), |failure| Err(failure.into()))
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl<C: LogTypes> RaftLogReader<C> for GroupLog<C> {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES_MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.lock_index().group(self.id).vote)
    }
}

impl<C: LogTypes> RaftLogStorage<C> for GroupLog<C> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<C>> {
        let mut locked = self.shared.lock_index();
        let group = locked.group(self.id);
        Ok(LogState { last_purged_log_id: group.purged, last_log_id: group.last_log_id() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.refuse_when_failed()?;
        {
            let mut locked = self.shared.lock_index();
            locked.group_in_use(self.id).vote = Some(*vote);
            locked.dirty.insert(self.id);
        }
        Ok(wait(self.shared.submit(Vec::new(), Vec::new())).await?)
    }

    /// Written with the next batch: an older mark than the true one only means that more is applied again after a restart.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.refuse_when_failed()?;
        let mut locked = self.shared.lock_index();
        locked.group(self.id).committed = committed;
        locked.dirty.insert(self.id);
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.lock_index().group(self.id).committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        self.refuse_when_failed()?;
        let new = entries.into_iter().map(|entry| NewEntry {
            index: entry.log_id.index,
            term: entry.log_id.leader_id.term,
            body: encode_entry_body(&entry),
        });
        let new = new.collect::<Vec<_>>();
        let generation = {
            let mut locked = self.shared.lock_index();
            locked.append(self.id, &new);
            locked.group(self.id).generation
        };
        let group = self.id;
        let records = new.into_iter().map(|NewEntry { index, term, body }| Queued {
            record: Record { kind: Kind::Entry, group, generation, index, term, payload: body },
            note: Note::Entry,
        });
        let records = records.collect();
        let done =
            Box::new(move |outcome: Result<(), _>| callback.io_completed(outcome.map_err(io::Error::from)));
        self.shared.queue.push(Op { records, states: Vec::new(), done });
        Ok(())
    }

    /// Written with the next batch: until then a restart finds the entries again, as if Raft had not been told to drop them.
    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.refuse_when_failed()?;
        let from = last.map_or(0, |last| last.index + 1);
        self.shared.lock_index().truncate_from(self.id, from);
        Ok(())
    }

    /// Written with the next batch, and in any case before a segment is used again.
    async fn purge(&mut self, through: LogId) -> io::Result<()> {
        self.refuse_when_failed()?;
        self.shared.lock_index().purge(self.id, through);
        self.shared.housekeeper.wake();
        Ok(())
    }
}
