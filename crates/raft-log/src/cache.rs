//! The bytes of recent records, so that replication, applying and early deliveries do not read the disk.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::payload::GroupId;

/// What is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// The body of an entry that has not been purged.
    Entry(GroupId, u64),
    /// The payload of a record at this place: segment and offset. Segment numbers are never used again.
    Record(u64, u32),
}

/// What a record takes beside its bytes: its places in the table and in the order, each with room to grow, and what the allocator
/// and the count of their users add to the bytes.
const OVERHEAD_BYTES: usize = 192;

struct Cached {
    bytes: Bytes,
    /// Which insertion it is: its place in the order counts only while they agree.
    insertion: u64,
    /// Not on the disk yet: it must stay.
    is_pinned: bool,
}

impl Cached {
    fn size_bytes(&self) -> usize {
        OVERHEAD_BYTES + self.bytes.len()
    }
}

/// First in, first out, bounded by what all of it takes; what is not on the disk yet stays whatever the bound.
pub struct Cache {
    bytes_max: usize,
    bytes: usize,
    insertions: u64,
    held: HashMap<Key, Cached>,
    order: VecDeque<(Key, u64)>,
}

impl Cache {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, insertions: 0, held: HashMap::new(), order: VecDeque::new() }
    }

    pub fn get(&self, key: Key) -> Option<Bytes> {
        self.held.get(&key).map(|cached| cached.bytes.clone())
    }

    /// Keeps an entry until [`Cache::unpin`], and afterwards while there is room.
    pub fn pin(&mut self, key: Key, bytes: Bytes) {
        self.insert(key, bytes, true);
    }

    pub fn keep(&mut self, key: Key, bytes: Bytes) {
        if OVERHEAD_BYTES + bytes.len() <= self.bytes_max {
            self.insert(key, bytes, false);
            self.evict();
        }
    }

    pub fn unpin(&mut self, key: Key) {
        if let Some(cached) = self.held.get_mut(&key) {
            cached.is_pinned = false;
        }
    }

    pub fn remove(&mut self, key: Key) {
        if let Some(cached) = self.held.remove(&key) {
            self.bytes -= cached.size_bytes();
        }
    }

    pub fn len_bytes(&self) -> usize {
        self.bytes
    }

    /// Drops the oldest until the bound holds.
    pub fn evict(&mut self) {
        while self.bytes > self.bytes_max {
            let Some((oldest, insertion)) = self.order.front().copied() else { return };
            match self.held.get(&oldest) {
                Some(cached) if cached.insertion == insertion => {
                    if cached.is_pinned {
                        break;
                    }
                    self.remove(oldest);
                }
                Some(_) | None => {}
            }
            self.order.pop_front();
        }
        // What was removed or replaced keeps a place in the order until it is at the front: bound these too.
        if self.order.len() > 2 * self.held.len() + 1_024 {
            let held = &self.held;
            self.order.retain(|(key, insertion)| {
                held.get(key).is_some_and(|cached| cached.insertion == *insertion)
            });
        }
    }

    fn insert(&mut self, key: Key, bytes: Bytes, is_pinned: bool) {
        self.remove(key);
        self.insertions += 1;
        let cached = Cached { bytes, insertion: self.insertions, is_pinned };
        self.bytes += cached.size_bytes();
        self.held.insert(key, cached);
        self.order.push_back((key, self.insertions));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u64) -> Key {
        Key::Entry(GroupId(1), index)
    }

    #[test]
    fn the_oldest_goes_first_and_pinned_ones_stay() {
        let mut cache = Cache::new(2 * OVERHEAD_BYTES + 100);
        cache.keep(key(1), Bytes::from(vec![0; 60]));
        cache.keep(key(2), Bytes::from(vec![0; 40]));
        cache.pin(key(3), Bytes::from(vec![0; 90]));
        cache.evict();
        assert!(cache.get(key(1)).is_none() && cache.get(key(2)).is_none() && cache.get(key(3)).is_some());
        cache.pin(key(4), Bytes::from(vec![0; 90]));
        cache.evict();
        assert_eq!((cache.len_bytes(), cache.get(key(3)).is_some()), (2 * OVERHEAD_BYTES + 180, true));
        cache.unpin(key(3));
        cache.evict();
        assert_eq!((cache.len_bytes(), cache.get(key(4)).is_some()), (OVERHEAD_BYTES + 90, true));
    }

    #[test]
    fn many_small_records_count_for_what_they_take() {
        let mut cache = Cache::new(100 * OVERHEAD_BYTES);
        (0..1_000).for_each(|index| cache.keep(key(index), Bytes::from_static(b"small")));
        let places = size_of::<(Key, Cached)>() + size_of::<(Key, u64)>();
        assert!(places <= OVERHEAD_BYTES && (90..100).contains(&cache.held.len()), "{}", cache.held.len());
    }

    #[test]
    fn the_order_does_not_grow_with_replaced_keys() {
        let mut cache = Cache::new(OVERHEAD_BYTES + 100);
        for _ in 0..100_000 {
            cache.keep(key(1), Bytes::from_static(b"same"));
        }
        assert!(cache.order.len() < 3_000);
        assert_eq!(cache.len_bytes(), OVERHEAD_BYTES + 4);
    }
}
