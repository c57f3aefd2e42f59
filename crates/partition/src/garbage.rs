//! What a purge or a deletion leaves behind.
//!
//! ```text
//!   shard  [ age | overdue | (outboxes) | groups ]
//!      \__ spliced off whole, O(1) __/
//!                    v
//!   garbage  [ remains ][ remains ] --> every later command frees a few
//! ```
//!
//! A purged message is gone at once for everybody who asks (`Partition::alive`); only its memory and its timers linger.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::ids::QueueId;
use crate::lanes::Lanes;
use crate::list::List;
use crate::message::{Age, slot_or_none};
use crate::notes::Notes;
use crate::shard::Shard;
use crate::store::Store;
use crate::tenants::Tenants;
use crate::usage::{Outbox, Usage};
use crate::view::State;
use crate::wire::wire_struct;

#[derive(Debug)]
struct Remains {
    age: List<Age>,
    overdue: List<Age>,
    outboxes: BTreeMap<QueueId, Outbox>,
    groups: BTreeMap<Arc<[u8]>, u32>,
    /// Messages in the lists above.
    len: u64,
}
wire_struct!(Remains { age, overdue, outboxes, groups, len });

#[derive(Debug, Default)]
pub(crate) struct Garbage {
    remains: VecDeque<Remains>,
}
wire_struct!(Garbage { remains });

impl Garbage {
    pub fn is_empty(&self) -> bool {
        self.remains.is_empty()
    }

    /// Messages that wait to be freed.
    pub fn len(&self) -> u64 {
        self.remains.iter().map(|remains| remains.len).sum()
    }

    /// Takes over what a purge drops: everything but the dead. O(1).
    pub fn take_living(&mut self, shard: &mut Shard) {
        let len = shard.length();
        let usage = &mut *shard.usage;
        let remains = Remains {
            age: std::mem::take(&mut shard.age),
            overdue: std::mem::take(&mut usage.overdue),
            outboxes: BTreeMap::new(),
            groups: std::mem::take(&mut usage.groups),
            len,
        };
        shard.lanes = Lanes::default();
        usage.turns = List::default();
        usage.tenants = Tenants::default();
        if let Some(damping) = &mut usage.damping {
            damping.forget();
        }
        if let Some(suspects) = &mut usage.suspects {
            suspects.forget();
        }
        let counters = &mut shard.counters;
        (counters.ready, counters.leased, counters.delayed, counters.bytes) = (0, 0, 0, 0);
        self.keep(remains);
    }

    /// Takes over a whole shard. O(1).
    pub fn take_all(&mut self, shard: Shard) {
        let len = shard.length() + shard.counters.dead;
        let Usage { overdue, outboxes, groups, .. } = shard.usage.into_inner();
        let remains = Remains { age: shard.age, overdue, outboxes, groups, len };
        self.keep(remains);
    }

    fn keep(&mut self, remains: Remains) {
        if remains.len > 0 || !remains.groups.is_empty() {
            self.remains.push_back(remains);
        }
    }

    /// Frees up to `items_max` messages and group names. Returns how many.
    pub fn sweep(&mut self, store: &mut Store, items_max: u32, notes: &mut Notes) -> u32 {
        let mut swept = 0;
        while swept < items_max
            && let Some(remains) = self.remains.front_mut()
        {
            if let Some(slot) = remains.pop(store) {
                remains.len -= 1;
                free(store, slot, notes);
            } else if remains.groups.pop_first().is_none() {
                assert_eq!(remains.len, 0, "what was spliced off has been freed");
                self.remains.pop_front();
                continue;
            }
            swept += 1;
        }
        swept
    }
}

impl Remains {
    fn pop(&mut self, store: &mut Store) -> Option<u32> {
        let messages = &mut store.messages;
        if let Some(slot) = self.age.front() {
            messages.cut(slot);
            return self.age.pop_front(messages);
        }
        if let Some(slot) = self.overdue.pop_front(messages) {
            return Some(slot);
        }
        let mut outbox = self.outboxes.first_entry()?;
        let slot = outbox.get_mut().items.pop_front(messages);
        if outbox.get().items.is_empty() {
            outbox.remove();
        }
        slot
    }
}

/// Frees one message of a shard that is no more: its shard's lists are gone, its timers and its group are not.
fn free(store: &mut Store, slot: u32, notes: &mut Notes) {
    disarm(store, slot);
    if let Some(group) = slot_or_none(store.messages[slot].group) {
        store.groups[group].members -= 1;
        if store.groups[group].members == 0 {
            store.groups.remove(group);
        }
    }
    store.free(slot, notes);
}

/// Takes a message of a shard that is no more off the lease and delay timers.
pub(crate) fn disarm(store: &mut Store, slot: u32) {
    let timers = match store.messages[slot].state {
        State::Leased => &mut store.leases,
        State::Delayed => &mut store.delays,
        State::Ready | State::Dead | State::Held => return,
    };
    let side = store.messages[slot].side;
    let deadline_ms = store.sides[side].deadline_ms;
    timers.remove(&mut store.sides, deadline_ms, side);
    store.messages[slot].state = State::Ready;
}
