//! Keys in order, each with the list of what shares it: deadlines with their side records, counts of leases with their tenants.
//!
//! Every operation is O(log distinct keys); nothing ever looks at what is not first.

use std::collections::BTreeMap;

use crate::arena::Arena;
use crate::list::{Linked, List};
use crate::wire::{DecodeError, Reader, Wire};

#[derive(Debug)]
pub(crate) struct Buckets<L> {
    lists: BTreeMap<u64, List<L>>,
}

impl<L> Default for Buckets<L> {
    fn default() -> Self {
        Self { lists: BTreeMap::new() }
    }
}

impl<L> Buckets<L> {
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    pub fn first_key(&self) -> Option<u64> {
        self.lists.keys().next().copied()
    }

    /// The first record with the lowest key, left where it is.
    pub fn first(&self) -> Option<(u64, u32)> {
        let (key, list) = self.lists.first_key_value()?;
        Some((*key, list.front()?))
    }

    /// The first record, if its key is `max` at most.
    pub fn first_through(&self, max: u64) -> Option<u32> {
        self.first().filter(|(key, _)| *key <= max).map(|(_, slot)| slot)
    }

    pub fn insert<T: Linked<L>>(&mut self, arena: &mut Arena<T>, key: u64, slot: u32) {
        self.lists.entry(key).or_default().push_back(arena, slot);
    }

    pub fn remove<T: Linked<L>>(&mut self, arena: &mut Arena<T>, key: u64, slot: u32) {
        let list = self.lists.get_mut(&key).expect("a record has its key in the map");
        list.remove(arena, slot);
        if list.is_empty() {
            self.lists.remove(&key);
        }
    }

    pub fn iter<'a, T: Linked<L>>(&'a self, arena: &'a Arena<T>) -> impl Iterator<Item = (u64, u32)> + 'a {
        self.lists.iter().flat_map(|(key, list)| list.iter(arena).map(|slot| (*key, slot)))
    }
}

impl<'a, L> Wire<'a> for Buckets<L> {
    fn put(&self, out: &mut Vec<u8>) {
        self.lists.put(out);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self { lists: Wire::take(reader)? })
    }
}
