//! Ids that are remembered for a while: deduplication ids and receive attempts.
//!
//! ```text
//!   entries   queue+id -> (until, number, value)          lookup
//!   order     (until, number) -> queue+id                 forgetting, the earliest first
//! ```
//!
//! Every operation is O(log ids remembered).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::{QueueId, Receipt};
use crate::limits::NAME_BYTES_MAX;
use crate::wire::{DecodeError, Reader, Wire, wire_struct};

/// What is remembered of an id.
pub(crate) trait Value {
    /// How many things it keeps.
    fn count(&self) -> usize;
}

#[derive(Debug)]
struct Remembered<V> {
    until_ms: u64,
    number: u64,
    value: V,
}

impl<'a, V: Wire<'a>> Wire<'a> for Remembered<V> {
    fn put(&self, out: &mut Vec<u8>) {
        self.until_ms.put(out);
        self.number.put(out);
        self.value.put(out);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self { until_ms: Wire::take(reader)?, number: Wire::take(reader)?, value: Wire::take(reader)? })
    }
}

#[derive(Debug)]
pub(crate) struct Window<V> {
    entries: BTreeMap<Arc<[u8]>, Remembered<V>>,
    order: BTreeMap<(u64, u64), Arc<[u8]>>,
    next_number: u64,
    /// What all values keep.
    values: usize,
}

impl<V: Value> Window<V> {
    pub fn new() -> Self {
        Self { entries: BTreeMap::new(), order: BTreeMap::new(), next_number: 0, values: 0 }
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// How many things the values keep. O(1).
    pub fn values(&self) -> usize {
        self.values
    }

    /// What is remembered of an id, if its window is open at `now_ms`.
    pub fn get(&self, queue: QueueId, id: &[u8], now_ms: u64) -> Option<&V> {
        let remembered = self.entries.get(Key::new(queue, id).bytes())?;
        (remembered.until_ms > now_ms).then_some(&remembered.value)
    }

    /// Remembers an id, in place of what was remembered of it.
    pub fn insert(&mut self, queue: QueueId, id: &[u8], until_ms: u64, value: V) {
        let key: Arc<[u8]> = Key::new(queue, id).bytes().into();
        let number = self.next_number;
        self.next_number += 1;
        self.values += value.count();
        let entry = Remembered { until_ms, number, value };
        if let Some(old) = self.entries.insert(key.clone(), entry) {
            self.order.remove(&(old.until_ms, old.number));
            self.values -= old.value.count();
        }
        self.order.insert((until_ms, number), key);
    }

    pub fn first_ms(&self) -> Option<u64> {
        self.order.keys().next().map(|(until_ms, _)| *until_ms)
    }

    /// Forgets the id whose window ends first.
    pub fn forget_first(&mut self) {
        let Some((_, key)) = self.order.pop_first() else { return };
        if let Some(entry) = self.entries.remove(&key) {
            self.values -= entry.value.count();
        }
    }

    pub fn check_invariants(&self) {
        assert_eq!(self.entries.len(), self.order.len(), "each remembered id is in the order once");
        assert_eq!(count(&self.entries), self.values, "what the values keep is counted");
        for (key, entry) in &self.entries {
            assert_eq!(self.order.get(&(entry.until_ms, entry.number)), Some(key), "the order knows the id");
        }
    }
}

fn count<V: Value>(entries: &BTreeMap<Arc<[u8]>, Remembered<V>>) -> usize {
    entries.values().map(|entry| entry.value.count()).sum()
}

impl<'a, V: Wire<'a> + Value> Wire<'a> for Window<V> {
    fn put(&self, out: &mut Vec<u8>) {
        self.entries.put(out);
        self.next_number.put(out);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let entries = BTreeMap::<Arc<[u8]>, Remembered<V>>::take(reader)?;
        let place =
            |(key, entry): (&Arc<[u8]>, &Remembered<V>)| ((entry.until_ms, entry.number), key.clone());
        let order = entries.iter().map(place).collect();
        let values = count(&entries);
        Ok(Self { entries, order, next_number: Wire::take(reader)?, values })
    }
}

/// The bytes `queue | id`, without an allocation for looking up.
struct Key {
    bytes: [u8; 8 + NAME_BYTES_MAX],
    len: usize,
}

impl Key {
    fn new(queue: QueueId, id: &[u8]) -> Self {
        let mut bytes = [0; 8 + NAME_BYTES_MAX];
        let len = 8 + id.len();
        bytes[..8].copy_from_slice(&queue.0.to_be_bytes());
        bytes[8..len].copy_from_slice(id);
        Self { bytes, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What a deduplication id stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub sequence: u64,
}
wire_struct!(Sent { sequence });

impl Value for Sent {
    fn count(&self) -> usize {
        1
    }
}

/// What an attempt was granted.
impl Value for Vec<Receipt> {
    fn count(&self) -> usize {
        self.len()
    }
}
