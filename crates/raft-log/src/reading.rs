//! Contents that are read from the disk: by one reader at a time each, and the next segment ahead of them.
//!
//! Consumers that work through a backlog receive from the same entry, which has left the caches. One of them reads it, and the
//! others find it in the log's cache.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::index::Place;

#[derive(Default)]
pub struct Reading {
    /// By segment and offset.
    records: Mutex<BTreeSet<(u64, u32)>>,
    finished: Condvar,
    /// Which segment a content was last read from, and for which one the disk was last asked to go on to the next.
    last: AtomicU64,
    ahead_of: AtomicU64,
}

/// The turn to read one record. Others wait for its end.
pub struct Turn<'a> {
    reading: &'a Reading,
    record: (u64, u32),
}

impl Reading {
    /// The turn, or `None` when somebody else had it until now: then the record is likely to be in the cache.
    pub fn turn(&self, place: Place) -> Option<Turn<'_>> {
        let record = (place.segment, place.offset);
        let records = self.lock();
        if !records.contains(&record) {
            let mut records = records;
            records.insert(record);
            return Some(Turn { reading: self, record });
        }
        let is_read = |records: &mut BTreeSet<(u64, u32)>| records.contains(&record);
        drop(self.finished.wait_while(records, is_read).unwrap_or_else(PoisonError::into_inner));
        None
    }

    /// Whether the disk is to go on to the next segment: once, when contents of this one are read one after the other and half of it
    /// is behind. Who works through a backlog would wait at the beginning of each, since the system reads ahead within a file only.
    pub fn is_next_wanted(&self, place: Place, segment_bytes: u64) -> bool {
        let Place { segment, offset, .. } = place;
        self.last.swap(segment, Ordering::Relaxed) == segment
            && u64::from(offset) >= segment_bytes / 2
            && self.ahead_of.swap(segment, Ordering::Relaxed) != segment
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<(u64, u32)>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.reading.lock().remove(&self.record);
        self.reading.finished.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use super::*;

    fn place(segment: u64, offset: u32) -> Place {
        Place { segment, offset, len: 9 }
    }

    #[test]
    fn a_record_is_read_by_one_at_a_time_and_others_wait_for_it() {
        let (reading, reads) = (Reading::default(), AtomicU32::new(0));
        let first = reading.turn(place(1, 100)).unwrap();
        // What is elsewhere is nobody's business.
        assert!(reading.turn(place(1, 200)).is_some() && reading.turn(place(2, 100)).is_some());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // On a busy machine one may come when it is over.
                    drop(reading.turn(place(1, 100)));
                    assert_eq!(reads.load(Ordering::SeqCst), 1);
                });
            }
            std::thread::sleep(Duration::from_millis(20));
            reads.fetch_add(1, Ordering::SeqCst);
            drop(first);
        });
        assert!(reading.turn(place(1, 100)).is_some(), "it can be read again");
    }

    #[test]
    fn the_next_segment_is_wanted_once_and_when_half_of_one_was_read_in_order() {
        let reading = Reading::default();
        let wanted = |segment, offset| reading.is_next_wanted(place(segment, offset), 1_000);
        let answers =
            [(1, 100), (1, 400), (1, 500), (1, 600), (2, 900), (2, 950), (5, 900), (2, 999), (5, 999)];
        let answers = answers.map(|(segment, offset)| wanted(segment, offset));
        assert_eq!(answers, [false, false, true, false, false, true, false, false, false]);
    }
}
