//! Slots with values: what the intrusive lists link.
//!
//! ```text
//!   words    [ 64 slots: taken, bare ][ .. ]      a new value goes to the lowest free slot
//!   values   [4][4][ ][4] .. [4]                  four slots share an allocation, which exists while one of them has a value
//! ```
//!
//! A slot is free, or taken by a value, or taken and bare: its owner keeps what belongs to it elsewhere. Where a value goes
//! depends only on which slots are taken, never on the order in which others left, so a snapshot needs no list of free slots.
//! Every operation is O(log slots).

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};

use crate::limits::SPARE_BOXES_MAX;
use crate::wire::{DecodeError, Reader, Wire, put_len};

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;
/// Slots of a word.
pub(crate) const WORD: usize = 64;
/// Slots that share an allocation. Few, so that one value among bare slots costs little.
const BOX: usize = 4;

type Values<T> = Box<[Option<T>; BOX]>;

#[derive(Clone, Copy, Debug, Default)]
struct Word {
    taken: u64,
    /// The taken slots without a value.
    bare: u64,
}

impl Word {
    /// Which slots of a box have values.
    fn values_of_box(self, slot: u32) -> u64 {
        let first = slot as usize % WORD / BOX * BOX;
        (self.taken & !self.bare) >> first & ((1 << BOX) - 1)
    }
}

#[derive(Debug)]
pub(crate) struct Arena<T> {
    words: Vec<Word>,
    values: Vec<Option<Values<T>>>,
    /// The words that have a free slot.
    roomy: BTreeSet<usize>,
    used: usize,
    /// Allocations without values that are kept for the next ones. No part of the state.
    spares: Vec<Values<T>>,
    /// Slots written since the start: a measure of work, no part of the state.
    steps: u64,
}

impl<T> Arena<T> {
    pub fn new() -> Self {
        Self {
            words: Vec::new(),
            values: Vec::new(),
            roomy: BTreeSet::new(),
            used: 0,
            spares: Vec::new(),
            steps: 0,
        }
    }

    /// How many slots are taken.
    pub fn len(&self) -> usize {
        self.used
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    pub fn insert(&mut self, value: T) -> u32 {
        let word = self.roomy.first().copied().unwrap_or(self.words.len());
        let free = self.words.get(word).map_or(0, |word| word.taken.trailing_ones() as usize);
        let slot = u32::try_from(word * WORD + free).expect("an arena has fewer than 2^32 slots");
        assert!(slot != NONE, "the arena is full");
        self.place(slot, value);
        slot
    }

    /// Puts a value into a free slot.
    fn place(&mut self, slot: u32, value: T) {
        let (word, bit) = split(slot);
        while self.words.len() <= word {
            self.roomy.insert(self.words.len());
            self.words.push(Word::default());
            self.values.extend(std::iter::repeat_with(|| None).take(WORD / BOX));
        }
        let record = &mut self.words[word];
        assert!(record.taken & bit == 0, "slot {slot} is taken");
        record.taken |= bit;
        if record.taken == u64::MAX {
            self.roomy.remove(&word);
        }
        self.used += 1;
        self.put_value(slot, value);
    }

    fn put_value(&mut self, slot: u32, value: T) {
        let spares = &mut self.spares;
        let values = self.values[slot as usize / BOX]
            .get_or_insert_with(|| spares.pop().unwrap_or_else(|| Box::new([const { None }; BOX])));
        values[slot as usize % BOX] = Some(value);
        self.steps += 1;
    }

    pub fn remove(&mut self, slot: u32) -> T {
        let (word, bit) = split(slot);
        if self.words[word].taken == u64::MAX {
            self.roomy.insert(word);
        }
        self.words[word].taken &= !bit;
        self.used -= 1;
        let value = self.take_value(slot);
        if self.words[word].taken == 0 {
            self.trim();
        }
        value
    }

    /// Takes out a value whose word says already that it is gone.
    fn take_value(&mut self, slot: u32) -> T {
        let values = &mut self.values[slot as usize / BOX];
        let value = values.as_mut().and_then(|values| values[slot as usize % BOX].take());
        if self.words[split(slot).0].values_of_box(slot) == 0
            && let Some(spare) = values.take()
            && self.spares.len() < SPARE_BOXES_MAX
        {
            self.spares.push(spare);
        }
        self.steps += 1;
        value.expect("the slot has a value")
    }

    /// Drops the trailing words that have no taken slot. Each was pushed once, so this is O(1) over time, and so is what it gives
    /// back of the room.
    fn trim(&mut self) {
        while let Some(Word { taken: 0, .. }) = self.words.last() {
            self.words.pop();
            self.roomy.remove(&self.words.len());
        }
        self.values.truncate(self.words.len() * (WORD / BOX));
        if self.words.len() < self.words.capacity() / 4 {
            self.words.shrink_to(self.words.len() * 2);
            self.values.shrink_to(self.values.len() * 2);
        }
    }

    /// Takes the value out and leaves the slot taken.
    pub fn make_bare(&mut self, slot: u32) -> T {
        let (word, bit) = split(slot);
        self.words[word].bare |= bit;
        self.take_value(slot)
    }

    /// Gives a bare slot its value.
    pub fn fill(&mut self, slot: u32, value: T) {
        let (word, bit) = split(slot);
        assert!(self.words[word].bare & bit != 0, "slot {slot} is bare");
        self.words[word].bare &= !bit;
        self.put_value(slot, value);
    }

    /// Whether the slot is taken and has no value.
    pub fn is_bare(&self, slot: u32) -> bool {
        let (word, bit) = split(slot);
        self.words.get(word).is_some_and(|word| word.bare & bit != 0)
    }

    /// Whether any slot of the word of this one is bare.
    pub fn is_any_bare(&self, slot: u32) -> bool {
        self.words.get(split(slot).0).is_some_and(|word| word.bare != 0)
    }

    pub fn get(&self, slot: u32) -> Option<&T> {
        self.values.get(slot as usize / BOX)?.as_ref()?[slot as usize % BOX].as_ref()
    }

    /// The taken slots in order, with their values.
    pub fn slots(&self) -> impl Iterator<Item = (u32, Option<&T>)> {
        let numbered = self.words.iter().enumerate();
        let taken = numbered.flat_map(|(word, record)| {
            let mut left = record.taken;
            std::iter::from_fn(move || {
                let at = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some((word * WORD + at) as u32)
            })
        });
        taken.map(|slot| (slot, self.get(slot)))
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots().filter_map(|(slot, value)| Some((slot, value?)))
    }

    /// Puts a value that a snapshot has at a slot.
    pub fn put_read(&mut self, slot: u32, value: T) -> Result<(), DecodeError> {
        let (word, bit) = split(slot);
        if slot == NONE || self.words.get(word).is_some_and(|word| word.taken & bit != 0) {
            return Err(DecodeError::OutOfRange("slot"));
        }
        self.place(slot, value);
        Ok(())
    }

    /// How many bare slots are behind a taken one of their word. O(slots / 64).
    pub fn bare_behind_taken(&self) -> usize {
        let behind = |word: &Word| (word.bare & word.taken << 1).count_ones() as usize;
        self.words.iter().map(behind).sum()
    }
}

/// The word of a slot, and its bit there.
fn split(slot: u32) -> (usize, u64) {
    (slot as usize / WORD, 1 << (slot as usize % WORD))
}

impl<T> Index<u32> for Arena<T> {
    type Output = T;
    fn index(&self, slot: u32) -> &T {
        self.get(slot).expect("the slot has a value")
    }
}

impl<T> IndexMut<u32> for Arena<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        self.steps += 1;
        let values = self.values[slot as usize / BOX].as_mut();
        values.and_then(|values| values[slot as usize % BOX].as_mut()).expect("the slot has a value")
    }
}

impl<'a, T: Wire<'a>> Wire<'a> for Arena<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.used, out);
        for (slot, value) in self.iter() {
            slot.put(out);
            value.put(out);
        }
    }

    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let mut arena = Self::new();
        for _ in 0..u32::take(reader)? {
            let slot = u32::take(reader)?;
            arena.put_read(slot, T::take(reader)?)?;
        }
        Ok(arena)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_goes_to_the_lowest_free_slot_whatever_left_before() {
        let mut arena = Arena::new();
        let slots: Vec<u32> = (0..3000u64).map(|value| arena.insert(value)).collect();
        assert_eq!(slots, (0..3000).collect::<Vec<_>>());
        for slot in [2500, 7, 1500, 6] {
            arena.remove(slot);
        }
        assert_eq!([arena.insert(0), arena.insert(0), arena.insert(0)], [6, 7, 1500]);
        assert_eq!(arena.len(), 2999);
    }

    #[test]
    fn what_has_no_values_is_given_back() {
        let mut arena = Arena::new();
        (0..30_000u64).for_each(|value| _ = arena.insert(value));
        (1024..30_000).for_each(|slot| _ = arena.remove(slot));
        assert_eq!((arena.words.len(), arena.values.len()), (16, 256));
        assert!(arena.values.capacity() <= 1024 && arena.spares.len() == SPARE_BOXES_MAX);
        (0..1024).for_each(|slot| _ = arena.remove(slot));
        assert_eq!((arena.words.len(), arena.values.len(), arena.roomy.len(), arena.len()), (0, 0, 0, 0));
        assert_eq!(arena.insert(5), 0);
    }

    #[test]
    fn a_bare_slot_is_taken_and_has_no_value() {
        let mut arena = Arena::new();
        (0..100u64).for_each(|value| _ = arena.insert(value));
        assert_eq!(arena.make_bare(70), 70);
        assert!(arena.is_bare(70) && arena.is_any_bare(64) && !arena.is_any_bare(63));
        assert_eq!((arena.get(70), arena.len(), arena.iter().count()), (None, 100, 99));
        assert_eq!(arena.insert(0), 100);
        arena.fill(70, 7);
        assert_eq!((arena.remove(70), arena.insert(8), arena.is_any_bare(64)), (7, 70, false));
    }
}
