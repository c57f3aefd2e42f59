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
//! Invariant: how messages are folded is no part of the state. Whether a snapshot writes a message in short follows from the message and the
//! one in the slot before it, not from what is folded, and no reply depends on it either.
//!
//! Every operation is O(1), but for looking at messages inside a run, which walks it.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use crate::arena::{Arena, NONE, WORD};
use crate::lanes::Lane;
use crate::list::{Linked, Links, List};
use crate::message::{Aged, Message, slot_or_none};
use crate::view::State;
use crate::wire::{DecodeError, Reader, Wire, put_len, put_varint, take_varint};

/// How a snapshot writes a message: with its slot and its record.
const RECORD: u8 = 0;
/// Or in short, behind the message in the slot before: how far behind that one's content its own begins, and its length.
const FOLLOWER: u8 = 1;
/// The first version of snapshots that writes messages in short.
const FOLLOWERS_SINCE: u8 = 4;

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
            is_behind && is_untouched(last) && last.sequence.checked_sub(1) == Some(message.sequence)
        };
        let is_first = |first: &Message| {
            let is_before = first.order.next == slot && first.sibling.next == slot;
            is_before && message.sequence.checked_sub(1) == Some(first.sequence)
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
        successor(first_slot, first, self.folded(slot))
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

    /// How many messages a snapshot writes in short, and seldom more: those that are folded behind their neighbour. O(slots / 64).
    pub fn followers_about(&self) -> usize {
        self.records.bare_behind_taken()
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

/// The message behind another in a run.
fn successor(before_slot: u32, before: &Message, folded: Folded) -> Message {
    let Folded { next, offset, len } = folded;
    let links = Links { next, prev: before_slot };
    Message {
        sequence: before.sequence + 1,
        queue: before.queue,
        offset,
        len,
        entry: before.entry,
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

/// How far behind the content of `before` a message's own begins, when it follows that one in its slot and in everything else.
fn gap_of_follower((before_slot, before): &(u32, Message), slot: u32, message: &Message) -> Option<u32> {
    let folded = Folded { next: slot.checked_add(1)?, offset: message.offset, len: message.len };
    let follows = *before_slot + 1 == slot
        && before.sequence.checked_add(1) == Some(message.sequence)
        && successor(*before_slot, before, folded) == *message;
    let end = before.offset.checked_add(before.len).filter(|_| follows)?;
    message.offset.checked_sub(end)
}

/// Reads a message that was written in short.
fn take_follower(
    reader: &mut Reader<'_>,
    before: Option<&(u32, Message)>,
) -> Result<(u32, Message), DecodeError> {
    let (gap, len) = (take_varint(reader)?, take_varint(reader)?);
    let follower = before.and_then(|(before_slot, before)| {
        let slot = before_slot.checked_add(1)?;
        let offset = before.offset.checked_add(before.len)?.checked_add(gap)?;
        before.sequence.checked_add(1)?;
        let folded = Folded { next: slot.checked_add(1)?, offset, len };
        Some((slot, successor(*before_slot, before, folded)))
    });
    follower.ok_or(DecodeError::OutOfRange("message"))
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
        let mut before = None;
        for (slot, message) in self.iter() {
            match before.as_ref().and_then(|before| gap_of_follower(before, slot, &message)) {
                Some(gap) => {
                    out.push(FOLLOWER);
                    put_varint(gap, out);
                    put_varint(message.len, out);
                }
                None => {
                    out.push(RECORD);
                    slot.put(out);
                    message.put(out);
                }
            }
            before = Some((slot, message));
        }
    }

    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let mut messages = Self::new();
        let has_followers = reader.snapshot_version >= FOLLOWERS_SINCE;
        let mut before: Option<(u32, Message)> = None;
        for _ in 0..u32::take(reader)? {
            let kind = if has_followers { u8::take(reader)? } else { RECORD };
            let (slot, message) = match kind {
                RECORD => (u32::take(reader)?, Message::take(reader)?),
                FOLLOWER => take_follower(reader, before.as_ref())?,
                kind => return Err(DecodeError::UnknownKind("message", kind)),
            };
            if let Some(before) = &before {
                let is_too_long =
                    has_followers && kind == RECORD && gap_of_follower(before, slot, &message).is_some();
                if is_too_long || slot <= before.0 {
                    return Err(DecodeError::OutOfRange("slot"));
                }
            }
            messages.records.put_read(slot, message)?;
            messages.fold(message.age.prev);
            before = Some((slot, message));
        }
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of one entry and queue, one behind the other, at these slots.
    fn run(slots: &[u32]) -> Vec<(u32, Message)> {
        let at = |at: usize| slots.get(at).copied().unwrap_or(NONE);
        let zeros = Message::take(&mut Reader::new(&[0; 64])).unwrap();
        let message = |nth: usize| {
            let folded = Folded { next: at(nth + 1), offset: 20 + 300 * nth as u32, len: 200 };
            let before = Message { sequence: nth as u64 + 6, ..zeros };
            successor(nth.checked_sub(1).map_or(NONE, at), &before, folded)
        };
        (0..slots.len()).map(|nth| (at(nth), message(nth))).collect()
    }

    fn record((slot, message): &(u32, Message)) -> Vec<u8> {
        let mut bytes = vec![RECORD];
        slot.put(&mut bytes);
        message.put(&mut bytes);
        bytes
    }

    fn image(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_len(messages.len(), &mut bytes);
        messages.iter().for_each(|message| bytes.extend(message));
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Messages, DecodeError> {
        Messages::take(&mut Reader::new(bytes))
    }

    /// The gap between their contents is 100, and each has 200 bytes, which takes two.
    const SHORT: [u8; 4] = [FOLLOWER, 100, 0xc8, 1];

    #[test]
    fn messages_between_the_first_and_the_last_of_neighbours_are_written_in_short() {
        let messages = run(&[4, 5, 6, 7]);
        let short = image(&[record(&messages[0]), SHORT.to_vec(), SHORT.to_vec(), record(&messages[3])]);
        let taken = read(&short).unwrap();
        taken.check_invariants();
        assert_eq!(taken.iter().collect::<Vec<_>>(), messages);
        let mut again = Vec::new();
        taken.put(&mut again);
        assert_eq!(again, short);
    }

    #[test]
    fn messages_whose_slots_are_no_neighbours_are_written_as_records() {
        let messages = run(&[4, 6, 7, 9]);
        let records = image(&messages.iter().map(record).collect::<Vec<_>>());
        let taken = read(&records).unwrap();
        assert_eq!((taken.records.bare_behind_taken(), taken.iter().collect::<Vec<_>>()), (1, messages));
        let mut again = Vec::new();
        taken.put(&mut again);
        assert_eq!(again, records);
    }

    #[test]
    fn every_other_form_is_refused() {
        let messages = run(&[4, 5, 6, 7]);
        let [first, second, third, last] = [0, 1, 2, 3].map(|at| record(&messages[at]));
        let short = SHORT.to_vec();
        let refused = [
            ("a record where a short one is due", vec![first.clone(), second, short.clone(), last.clone()]),
            ("the same behind a short one", vec![first.clone(), short.clone(), third, last.clone()]),
            ("a short one behind nothing", vec![short.clone(), last.clone()]),
            ("slots that do not ascend", vec![last.clone(), first.clone()]),
            ("one slot twice", vec![first.clone(), first.clone()]),
            (
                "a number that is longer than it must be",
                vec![first.clone(), vec![FOLLOWER, 0xe4, 0, 0xc8, 1]],
            ),
            ("a number that is too large", vec![first.clone(), vec![FOLLOWER, 0xff, 0xff, 0xff, 0xff, 0x1f]]),
            (
                "an offset that is too large",
                vec![first.clone(), vec![FOLLOWER, 0xff, 0xff, 0xff, 0xff, 0xf, 0]],
            ),
            ("another kind", vec![first, vec![2]]),
        ];
        for (why, messages) in refused {
            assert!(read(&image(&messages)).is_err(), "{why}");
        }
    }
}
