//! Which log entries hold contents that messages still refer to.
//!
//! Sequences and log indexes grow together, so the messages of one entry have consecutive sequences and an entry can be
//! found by either. Adding and removing a message is O(log entries).

use std::collections::BTreeMap;

use crate::arena::Arena;
use crate::list::List;
use crate::message::{Message, Sibling};
use crate::wire::wire_struct;

/// A log entry with live contents.
#[derive(Debug)]
pub(crate) struct Entry {
    pub log_index: u64,
    /// The wall time of the entry: when its messages were sent.
    pub wall_ms: u64,
    pub first_sequence: u64,
    pub live_bytes: u64,
    pub messages: List<Sibling>,
}
wire_struct!(Entry { log_index, wall_ms, first_sequence, live_bytes, messages });

#[derive(Debug)]
pub(crate) struct Entries {
    pub records: Arena<Entry>,
    by_index: BTreeMap<u64, u32>,
    by_sequence: BTreeMap<u64, u32>,
}
wire_struct!(Entries { records, by_index, by_sequence });

impl Entries {
    pub fn new() -> Self {
        Self { records: Arena::new(), by_index: BTreeMap::new(), by_sequence: BTreeMap::new() }
    }

    /// The record of the entry being applied, for a message about to get `sequence`.
    pub fn open(&mut self, log_index: u64, wall_ms: u64, sequence: u64) -> u32 {
        if let Some((_, entry)) = self.by_index.last_key_value().filter(|(newest, _)| **newest == log_index) {
            return *entry;
        }
        let messages = List::default();
        let record = Entry { log_index, wall_ms, first_sequence: sequence, live_bytes: 0, messages };
        let entry = self.records.insert(record);
        self.by_index.insert(log_index, entry);
        self.by_sequence.insert(sequence, entry);
        entry
    }

    pub fn attach(&mut self, messages: &mut Arena<Message>, slot: u32) {
        let record = &mut self.records[messages[slot].entry];
        record.live_bytes += u64::from(messages[slot].len);
        record.messages.push_back(messages, slot);
    }

    /// Takes a message off its entry, and the entry away with its last message. Returns the log index.
    pub fn detach(&mut self, messages: &mut Arena<Message>, slot: u32) -> u64 {
        let entry = messages[slot].entry;
        let record = &mut self.records[entry];
        record.live_bytes -= u64::from(messages[slot].len);
        record.messages.remove(messages, slot);
        let log_index = record.log_index;
        if record.messages.is_empty() {
            self.by_index.remove(&log_index);
            self.by_sequence.remove(&record.first_sequence);
            self.records.remove(entry);
        }
        log_index
    }

    pub fn of_index(&self, log_index: u64) -> Option<&Entry> {
        self.by_index.get(&log_index).map(|entry| &self.records[*entry])
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.by_index.values().map(|entry| &self.records[*entry])
    }

    /// The entries that can hold `sequence` or later ones, in order.
    pub fn starting_at(&self, sequence: u64) -> impl Iterator<Item = &Entry> {
        let first = self.by_sequence.range(..=sequence).next_back().map_or(sequence, |(first, _)| *first);
        self.by_sequence.range(first..).map(|(_, entry)| &self.records[*entry])
    }
}
