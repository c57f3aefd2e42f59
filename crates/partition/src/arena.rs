//! Slots in pages: what the intrusive lists link.
//!
//! ```text
//!   pages   [0: full] [1: room] [2: gone] [3: room]        a new value goes to the lowest page with room,
//!                      ^ next                               into its lowest free slot
//! ```
//!
//! A page without values is freed. Where a value goes depends only on which slots are taken, never on the order in which
//! others left, so a snapshot needs no list of free slots. Every operation is O(log pages).

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};

use crate::limits::PAGE_SLOTS;
use crate::wire::{DecodeError, Reader, Wire, put_len};

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;
const WORDS: usize = PAGE_SLOTS / 64;

#[derive(Debug)]
struct Page<T> {
    slots: Box<[Option<T>]>,
    taken: [u64; WORDS],
    used: usize,
}

impl<T> Page<T> {
    fn new() -> Self {
        Self { slots: std::iter::repeat_with(|| None).take(PAGE_SLOTS).collect(), taken: [0; WORDS], used: 0 }
    }

    fn lowest_free(&self) -> usize {
        let word = self.taken.iter().position(|word| *word != u64::MAX).expect("the page has room");
        word * 64 + self.taken[word].trailing_ones() as usize
    }
}

#[derive(Debug)]
pub(crate) struct Arena<T> {
    pages: Vec<Option<Page<T>>>,
    /// The pages below `pages.len()` that have a free slot, freed pages among them.
    roomy: BTreeSet<usize>,
    used: usize,
    /// A page that was freed last and is kept for the next one: where messages come and go at the edge of a page, it is not made
    /// anew each time. No part of the state.
    spare: Option<Page<T>>,
    /// Slots written since the start: a measure of work, no part of the state.
    steps: u64,
}

impl<T> Arena<T> {
    pub fn new() -> Self {
        Self { pages: Vec::new(), roomy: BTreeSet::new(), used: 0, spare: None, steps: 0 }
    }

    pub fn len(&self) -> usize {
        self.used
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    pub fn insert(&mut self, value: T) -> u32 {
        let page_index = self.roomy.first().copied().unwrap_or(self.pages.len());
        let free = match self.pages.get(page_index) {
            Some(Some(page)) => page.lowest_free(),
            _ => 0,
        };
        let slot = u32::try_from(page_index * PAGE_SLOTS + free).expect("an arena has fewer than 2^32 slots");
        assert!(slot != NONE, "the arena is full");
        self.place(slot, value);
        slot
    }

    /// Puts a value into a free slot.
    fn place(&mut self, slot: u32, value: T) {
        let (page_index, at) = split(slot);
        while self.pages.len() <= page_index {
            self.roomy.insert(self.pages.len());
            self.pages.push(None);
        }
        let spare = &mut self.spare;
        let page = self.pages[page_index].get_or_insert_with(|| spare.take().unwrap_or_else(Page::new));
        assert!(page.slots[at].is_none(), "slot {slot} is taken");
        page.slots[at] = Some(value);
        page.taken[at / 64] |= 1 << (at % 64);
        page.used += 1;
        if page.used == PAGE_SLOTS {
            self.roomy.remove(&page_index);
        }
        self.used += 1;
        self.steps += 1;
    }

    pub fn remove(&mut self, slot: u32) -> T {
        let (page_index, at) = split(slot);
        let page = self.pages[page_index].as_mut().expect("the page of a taken slot exists");
        let value = page.slots[at].take().expect("the slot is taken");
        page.taken[at / 64] &= !(1 << (at % 64));
        page.used -= 1;
        self.roomy.insert(page_index);
        if page.used == 0 {
            self.spare = self.pages[page_index].take();
            self.trim();
        }
        self.used -= 1;
        self.steps += 1;
        value
    }

    /// Drops trailing pages that are gone. Each was pushed once, so this is O(1) over time.
    fn trim(&mut self) {
        while let Some(None) = self.pages.last() {
            self.pages.pop();
            self.roomy.remove(&self.pages.len());
        }
    }

    pub fn get(&self, slot: u32) -> Option<&T> {
        let (page_index, at) = split(slot);
        self.pages.get(page_index)?.as_ref()?.slots[at].as_ref()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let slots = self.pages.iter().enumerate().filter_map(|(index, page)| Some((index, page.as_ref()?)));
        slots.flat_map(|(index, page)| {
            let numbered = page.slots.iter().enumerate();
            numbered.filter_map(move |(at, value)| Some(((index * PAGE_SLOTS + at) as u32, value.as_ref()?)))
        })
    }
}

fn split(slot: u32) -> (usize, usize) {
    (slot as usize / PAGE_SLOTS, slot as usize % PAGE_SLOTS)
}

impl<T> Index<u32> for Arena<T> {
    type Output = T;
    fn index(&self, slot: u32) -> &T {
        self.get(slot).expect("the slot is taken")
    }
}

impl<T> IndexMut<u32> for Arena<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        self.steps += 1;
        let (page_index, at) = split(slot);
        let page = self.pages[page_index].as_mut().expect("the page of a taken slot exists");
        page.slots[at].as_mut().expect("the slot is taken")
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
            let value = T::take(reader)?;
            if slot == NONE || arena.get(slot).is_some() {
                return Err(DecodeError::OutOfRange("slot"));
            }
            arena.place(slot, value);
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
    fn a_page_without_values_is_freed() {
        let mut arena = Arena::new();
        (0..3000u64).for_each(|value| _ = arena.insert(value));
        (1024..3000).for_each(|slot| _ = arena.remove(slot));
        assert_eq!(arena.pages.len(), 1);
        (0..1024).for_each(|slot| _ = arena.remove(slot));
        assert_eq!((arena.pages.len(), arena.roomy.len(), arena.len()), (0, 0, 0));
        assert_eq!(arena.insert(5), 0);
    }
}
