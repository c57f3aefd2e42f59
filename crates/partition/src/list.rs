//! Doubly linked lists through slots of an arena. Every operation is O(1).
//!
//! A marker type names which links of a value a list uses, so that a value can be in several lists and never in a wrong one.

use std::marker::PhantomData;

use crate::arena::{Arena, NONE};
use crate::wire::{DecodeError, Reader, Wire, wire_struct};

/// The neighbours of a value in one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Links {
    pub next: u32,
    pub prev: u32,
}
wire_struct!(Links { next, prev });

impl Links {
    pub const OFF: Self = Self { next: NONE, prev: NONE };
}

/// A value with links of the kind `L`.
pub(crate) trait Linked<L> {
    fn links(&self) -> &Links;
    fn links_mut(&mut self) -> &mut Links;
}

macro_rules! linked {
    ($value:ty, $marker:ident, $field:ident) => {
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $marker;
        impl $crate::list::Linked<$marker> for $value {
            fn links(&self) -> &$crate::list::Links {
                &self.$field
            }
            fn links_mut(&mut self) -> &mut $crate::list::Links {
                &mut self.$field
            }
        }
    };
}
pub(crate) use linked;

#[derive(Debug)]
pub(crate) struct List<L> {
    head: u32,
    tail: u32,
    marker: PhantomData<L>,
}

impl<L> Default for List<L> {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, marker: PhantomData }
    }
}

impl<L> List<L> {
    pub fn is_empty(&self) -> bool {
        self.head == NONE
    }

    pub fn front(&self) -> Option<u32> {
        some(self.head)
    }

    pub fn back(&self) -> Option<u32> {
        some(self.tail)
    }

    pub fn push_back<T: Linked<L>>(&mut self, arena: &mut Arena<T>, slot: u32) {
        *arena[slot].links_mut() = Links { next: NONE, prev: self.tail };
        match some(self.tail) {
            Some(tail) => arena[tail].links_mut().next = slot,
            None => self.head = slot,
        }
        self.tail = slot;
    }

    /// Puts a value before one that is in this list.
    pub fn insert_before<T: Linked<L>>(&mut self, arena: &mut Arena<T>, slot: u32, next: u32) {
        let prev = std::mem::replace(&mut arena[next].links_mut().prev, slot);
        *arena[slot].links_mut() = Links { next, prev };
        match some(prev) {
            Some(prev) => arena[prev].links_mut().next = slot,
            None => self.head = slot,
        }
    }

    /// Takes out a value that is in this list.
    pub fn remove<T: Linked<L>>(&mut self, arena: &mut Arena<T>, slot: u32) {
        let Links { next, prev } = std::mem::replace(arena[slot].links_mut(), Links::OFF);
        match some(prev) {
            Some(prev) => arena[prev].links_mut().next = next,
            None => {
                assert_eq!(self.head, slot, "the value is in another list");
                self.head = next;
            }
        }
        match some(next) {
            Some(next) => arena[next].links_mut().prev = prev,
            None => {
                assert_eq!(self.tail, slot, "the value is in another list");
                self.tail = prev;
            }
        }
    }

    pub fn pop_front<T: Linked<L>>(&mut self, arena: &mut Arena<T>) -> Option<u32> {
        let slot = self.front()?;
        self.remove(arena, slot);
        Some(slot)
    }

    pub fn iter<'a, T: Linked<L>>(&self, arena: &'a Arena<T>) -> impl Iterator<Item = u32> + 'a
    where
        L: 'a,
    {
        walk::<L, T>(arena, self.front())
    }
}

/// The slots from `first` on to the end of whatever list it is in.
pub(crate) fn walk<'a, L: 'a, T: Linked<L>>(
    arena: &'a Arena<T>,
    first: Option<u32>,
) -> impl Iterator<Item = u32> + 'a {
    std::iter::successors(first, |slot| some(arena[*slot].links().next))
}

/// The slot that follows in whatever list `slot` is in.
pub(crate) fn next<L, T: Linked<L>>(arena: &Arena<T>, slot: u32) -> Option<u32> {
    some(arena[slot].links().next)
}

fn some(slot: u32) -> Option<u32> {
    (slot != NONE).then_some(slot)
}

impl<'a, L> Wire<'a> for List<L> {
    fn put(&self, out: &mut Vec<u8>) {
        self.head.put(out);
        self.tail.put(out);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let (head, tail) = Wire::take(reader)?;
        Ok(Self { head, tail, marker: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Item {
        links: Links,
    }
    linked!(Item, ItemLink, links);

    #[test]
    fn values_join_at_both_ends_and_leave_from_anywhere() {
        let mut arena = Arena::new();
        let mut list = List::<ItemLink>::default();
        let slots: Vec<u32> = (0..5).map(|_| arena.insert(Item { links: Links::OFF })).collect();
        slots[..3].iter().for_each(|slot| list.push_back(&mut arena, *slot));
        list.insert_before(&mut arena, slots[3], slots[0]);
        list.insert_before(&mut arena, slots[4], slots[3]);
        assert_eq!(list.iter(&arena).collect::<Vec<_>>(), [4, 3, 0, 1, 2]);
        list.remove(&mut arena, 0);
        list.remove(&mut arena, 2);
        assert_eq!(list.pop_front(&mut arena), Some(4));
        assert_eq!(list.iter(&arena).collect::<Vec<_>>(), [3, 1]);
        assert_eq!((list.front(), list.back()), (Some(3), Some(1)));
        list.insert_before(&mut arena, 0, 1);
        list.insert_before(&mut arena, 2, 3);
        assert_eq!(list.iter(&arena).collect::<Vec<_>>(), [2, 3, 0, 1]);
        list.remove(&mut arena, 0);
        assert_eq!((list.front(), list.back()), (Some(2), Some(1)));
    }
}
