//! Deadlines in order, each with the list of side records that share it.
//!
//! Every operation is O(log distinct deadlines); nothing ever looks at the records that are not due.

use std::collections::BTreeMap;

use crate::arena::Arena;
use crate::list::{Linked, List};
use crate::wire::{DecodeError, Reader, Wire};

#[derive(Debug)]
pub(crate) struct Timers<L> {
    due: BTreeMap<u64, List<L>>,
}

impl<L> Default for Timers<L> {
    fn default() -> Self {
        Self { due: BTreeMap::new() }
    }
}

impl<L> Timers<L> {
    pub fn first_ms(&self) -> Option<u64> {
        self.due.keys().next().copied()
    }

    pub fn insert<T: Linked<L>>(&mut self, arena: &mut Arena<T>, deadline_ms: u64, slot: u32) {
        self.due.entry(deadline_ms).or_default().push_back(arena, slot);
    }

    pub fn remove<T: Linked<L>>(&mut self, arena: &mut Arena<T>, deadline_ms: u64, slot: u32) {
        let list = self.due.get_mut(&deadline_ms).expect("an armed timer has its deadline in the map");
        list.remove(arena, slot);
        if list.is_empty() {
            self.due.remove(&deadline_ms);
        }
    }

    /// The first record that is due, left where it is.
    pub fn first_due(&self, now_ms: u64) -> Option<u32> {
        let (deadline_ms, list) = self.due.first_key_value()?;
        if *deadline_ms <= now_ms { list.front() } else { None }
    }

    pub fn iter<'a, T: Linked<L>>(&'a self, arena: &'a Arena<T>) -> impl Iterator<Item = (u64, u32)> + 'a {
        self.due.iter().flat_map(|(at, list)| list.iter(arena).map(|slot| (*at, slot)))
    }
}

impl<'a, L> Wire<'a> for Timers<L> {
    fn put(&self, out: &mut Vec<u8>) {
        self.due.put(out);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self { due: Wire::take(reader)? })
    }
}
