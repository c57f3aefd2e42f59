//! The messages of a partition: records, and runs of messages to which nothing has happened yet.
//!
//! ```text
//!   slots      4 ------> 5 ------> 6 ------> 7 ------> 8        sent together to one queue: neighbours in its lane, by age,
//!            record    folded    folded    folded    record     and in their entry
//!            first                                   last
//!                      { next slot, offset, length }
//! ```
//!
//! A backlog is mostly messages that were sent and not touched since. Those between the first and the last of a run are
//! folded: they keep their slot, and in place of a record the 12 bytes that do not follow from the message before them. A
//! run is only ever touched at its first message, whose successor gets a record before (`cut`); so the lists find a record
//! wherever they change something.
//!
//! Invariant: how messages are folded is no part of the state. A snapshot has a record for every message, and no reply depends on
//! what is folded.
//!
//! Every operation is O(1), but for looking at messages inside a run, which walks it.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use crate::arena::{Arena, NONE, WORD};
use crate::lanes::Lane;
use crate::list::{Linked, Links, List};
use crate::message::{Aged, Message, slot_or_none};
use crate::view::State;
use crate::wire::{DecodeError, Reader, Wire, put_len};

/// What does not follow from the message before it.
#[derive(Clone, Copy, Debug)]
struct Folded {
    /// The slot of the message behind it, in all lists.
    next: u32,
    offset: u32,
    len: u32,
}

impl Folded {
    const NOTHING: Self = Self { next: NONE, offset: 0, len: 0 };
}

/// The records, as an arena, with what is folded beside them.
#[derive(Debug)]
pub(crate) struct Messages {
    records: Arena<Message>,
    /// By the words of the arena: there while a slot of the word is bare.
    folded: Vec<Option<Box<[Folded; WORD]>>>,
}

impl Deref for Messages {
    type Target = Arena<Message>;
    fn deref(&self) -> &Arena<Message> {
        &self.records
    }
}

impl DerefMut for Messages {
    fn deref_mut(&mut self) -> &mut Arena<Message> {
        &mut self.records
    }
}

impl Messages {
    pub fn new() -> Self {
        Self { records: Arena::new(), folded: Vec::new() }
    }

    /// Folds a message if it is inside of a run: both its neighbours are the same in all lists and belong to it.
    pub fn fold(&mut self, slot: u32) {
        if self.records.get(slot).is_some_and(|message| self.is_inside_run(slot, message)) {
            let Message { age, offset, len, .. } = self.records.make_bare(slot);
            let folded = Folded { next: age.next, offset, len };
            let word = slot as usize / WORD;
            if self.folded.len() <= word {
                self.folded.resize_with(word + 1, || None);
            }
            let place = self.folded[word].get_or_insert_with(|| Box::new([Folded::NOTHING; WORD]));
            place[slot as usize % WORD] = folded;
        }
    }

    fn is_inside_run(&self, slot: u32, message: &Message) -> bool {
        let Links { next, prev } = message.age;
        if !(is_untouched(message) && is_linked_once(message) && prev < slot && slot < next) {
            return false;
        }
        let is_last = |last: &Message| {
            let is_behind = last.order.prev == slot && last.sibling.prev == slot;
            is_behind && is_untouched(last) && last.sequence == message.sequence + 1
        };
        let is_first = |first: &Message| {
            let is_before = first.order.next == slot && first.sibling.next == slot;
            is_before && first.sequence + 1 == message.sequence
        };
        self.records.get(next).is_some_and(is_last)
            && self.records.get(prev).map_or_else(|| self.records.is_bare(prev), is_first)
    }

    /// Gives the message behind this one its record: this one is about to change, or to leave its lists.
    pub fn cut(&mut self, slot: u32) {
        let next = self.records[slot].age.next;
        if next != NONE && self.records.is_bare(next) {
            let record = self.unfolded(slot, &self.records[slot], next);
            self.records.fill(next, record);
            if !self.records.is_any_bare(next) {
                self.folded[next as usize / WORD] = None;
            }
        }
    }

    /// Lets a change be made to messages anywhere in runs, as no other does: all have records meanwhile.
    pub fn unfold_all(&mut self) {
        // The slots of a run ascend: who is reached has its record.
        for slot in self.slots_taken() {
            self.cut(slot);
        }
    }

    pub fn fold_all(&mut self) {
        for slot in self.slots_taken() {
            self.fold(slot);
        }
    }

    fn slots_taken(&self) -> Vec<u32> {
        self.records.slots().map(|(slot, _)| slot).collect()
    }

    fn folded(&self, slot: u32) -> Folded {
        let word =
            self.folded[slot as usize / WORD].as_ref().expect("a word with bare slots has what is folded");
        word[slot as usize % WORD]
    }

    /// The folded message at `slot`, of which `first` is the one before.
    fn unfolded(&self, first_slot: u32, first: &Message, slot: u32) -> Message {
        let Folded { next, offset, len } = self.folded(slot);
        let links = Links { next, prev: first_slot };
        Message {
            sequence: first.sequence + 1,
            queue: first.queue,
            offset,
            len,
            entry: first.entry,
            order: links,
            age: links,
            sibling: links,
            group: NONE,
            side: NONE,
            state: State::Ready,
            aged: Aged::Due,
            lane: Lane::Fresh,
        }
    }

    /// The message at a slot, whether it has a record or is folded; of one that is folded, not which is before it.
    /// O(messages behind it in its run).
    pub fn at(&self, slot: u32) -> Option<Message> {
        if !self.records.is_bare(slot) {
            return self.records.get(slot).copied();
        }
        let (mut last, mut passed) = (slot, 0);
        while self.records.is_bare(last) {
            (last, passed) = (self.folded(last).next, passed + 1);
        }
        let last = &self.records[last];
        let before = Message { sequence: last.sequence - passed - 1, ..*last };
        Some(self.unfolded(NONE, &before, slot))
    }

    /// The message that follows in the list with the links `L`.
    pub fn following<L>(&self, slot: u32, message: &Message) -> Option<(u32, Message)>
    where
        Message: Linked<L>,
    {
        let next = slot_or_none(Linked::<L>::links(message).next)?;
        let record = self.records.get(next).copied();
        Some((next, record.unwrap_or_else(|| self.unfolded(slot, message, next))))
    }

    /// The messages from one on to the end of its list.
    pub fn walk<L>(&self, first: Option<(u32, Message)>) -> impl Iterator<Item = (u32, Message)>
    where
        Message: Linked<L>,
    {
        std::iter::successors(first, |(slot, message)| self.following::<L>(*slot, message))
    }

    /// The messages of a list.
    pub fn list<L>(&self, list: &List<L>) -> impl Iterator<Item = (u32, Message)>
    where
        Message: Linked<L>,
    {
        self.walk::<L>(list.front().map(|slot| (slot, self.records[slot])))
    }

    /// All messages, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Message)> {
        let mut before: Option<(u32, Message)> = None;
        // Folded messages whose slots are further on.
        let mut to_come = BTreeMap::new();
        self.records.slots().map(move |(slot, record)| {
            let message = match (record, &before) {
                (Some(record), _) => *record,
                (None, Some((before, message))) if message.age.next == slot && *before + 1 == slot => {
                    self.unfolded(*before, message, slot)
                }
                (None, _) => to_come.remove(&slot).expect("the slots of a run ascend"),
            };
            let next = message.age.next;
            if next != slot + 1 && self.records.is_bare(next) {
                to_come.insert(next, self.unfolded(slot, &message, next));
            }
            before = Some((slot, message));
            (slot, message)
        })
    }

    /// What is folded has a place, lies inside of a run, and is found from the run's first message.
    pub fn check_invariants(&self) {
        assert_eq!(self.iter().count(), self.records.len(), "every taken slot has its message");
        for (word, folded) in self.folded.iter().enumerate() {
            let has_bare = self.records.is_any_bare((word * WORD) as u32);
            assert_eq!(folded.is_some(), has_bare, "there is room for what is folded, and for nothing else");
        }
        for (_, message) in self.records.iter().filter(|(_, message)| is_untouched(message)) {
            let start = (State::Ready, Aged::Due, Lane::Fresh);
            assert_eq!(
                (message.state, message.aged, message.lane),
                start,
                "untouched ones are as they were sent"
            );
        }
        let bare = self.iter().filter(|(slot, _)| self.records.is_bare(*slot));
        for (slot, message) in bare {
            assert!(is_untouched(&message) && is_linked_once(&message), "who is folded is inside of a run");
            assert_eq!(self.at(slot).map(|found| found.sequence), Some(message.sequence), "and can be asked");
        }
    }
}

/// Whether nothing has happened to a message since it was sent, and it has nothing that folding would lose. Whatever happens
/// to a message without a group, but for its removal, gives it a side record.
fn is_untouched(message: &Message) -> bool {
    message.side == NONE && message.group == NONE
}

/// Whether a message has the same neighbours in all its lists.
fn is_linked_once(message: &Message) -> bool {
    message.order == message.age && message.sibling == message.age
}

impl<'a> Wire<'a> for Messages {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.records.len(), out);
        for (slot, message) in self.iter() {
            slot.put(out);
            message.put(out);
        }
    }

    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let mut messages = Self::new();
        for _ in 0..u32::take(reader)? {
            let slot = messages.records.take_one(reader)?;
            messages.fold(messages.records[slot].age.prev);
        }
        Ok(messages)
    }
}
