//! Ready messages in two lists: those that were never granted, and those that came back.
//!
//! Grants take from both in turn: a message that came back does not wait behind the whole backlog, and one that comes back for
//! ever cannot starve it. Every operation is O(1).

use crate::arena::Arena;
use crate::list::List;
use crate::message::{Message, Order};
use crate::runs::Messages;
use crate::wire::{wire_enum, wire_struct};

/// Which list holds a message, when it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Never granted.
    Fresh,
    /// Granted before.
    Returned,
    /// In no lane: among the suspects of its shard.
    Suspect,
    /// In no lane yet: its delay has to pass, and it comes back without having failed.
    PutOff,
}
wire_enum!(Lane { 0 => Fresh {}, 1 => Returned {}, 2 => Suspect {}, 3 => PutOff {} });

#[derive(Debug)]
pub(crate) struct Lanes {
    fresh: List<Order>,
    returned: List<Order>,
    /// Which lane the next grant prefers.
    turn_of: Lane,
}
wire_struct!(Lanes { fresh, returned, turn_of });

impl Default for Lanes {
    fn default() -> Self {
        Self { fresh: List::default(), returned: List::default(), turn_of: Lane::Returned }
    }
}

impl Lanes {
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.returned.is_empty()
    }

    /// Puts a message at the end of the lane it names.
    pub fn push_back(&mut self, messages: &mut Arena<Message>, slot: u32) {
        self.list_of(messages[slot].lane).push_back(messages, slot);
    }

    /// Takes out a message that is in here.
    pub fn remove(&mut self, messages: &mut Arena<Message>, slot: u32) {
        self.list_of(messages[slot].lane).remove(messages, slot);
    }

    fn list_of(&mut self, lane: Lane) -> &mut List<Order> {
        match lane {
            Lane::Fresh => &mut self.fresh,
            Lane::Returned => &mut self.returned,
            Lane::Suspect | Lane::PutOff => unreachable!("suspects are in no lane, nor is what is not ready"),
        }
    }

    /// The message whose turn it is.
    pub fn first(&self) -> Option<u32> {
        match self.turn_of {
            Lane::Fresh => self.fresh.front().or(self.returned.front()),
            Lane::Returned | Lane::Suspect | Lane::PutOff => self.first_returned(),
        }
    }

    /// The first of those that came back, or else of the others.
    pub fn first_returned(&self) -> Option<u32> {
        self.returned.front().or(self.fresh.front())
    }

    /// Notes that a message of this lane was granted: it is the other's turn.
    pub fn granted(&mut self, lane: Lane) {
        self.turn_of = match lane {
            Lane::Fresh => Lane::Returned,
            Lane::Returned => Lane::Fresh,
            Lane::Suspect | Lane::PutOff => self.turn_of,
        };
    }

    pub fn iter(&self, messages: &Messages) -> impl Iterator<Item = (Lane, Message)> {
        let fresh = messages.list(&self.fresh).map(|(_, message)| (Lane::Fresh, message));
        fresh.chain(messages.list(&self.returned).map(|(_, message)| (Lane::Returned, message)))
    }
}
