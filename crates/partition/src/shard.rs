//! One queue's messages on this partition, and the moves between their states.
//!
//! ```text
//!                 +----------------------- delay ends ----------------------+
//!                 v                                                         |
//!   send ----> READY ---- grant ----> LEASED ---- release with delay ----> DELAYED <---- send with delay
//!                 ^                    |  |  |                                |
//!                 +-- release, expiry -+  |  +-- receive limit met, rejected --> DEAD --> transferred, gone
//!                 |                    |  +-- ack --> gone                    |
//!                 +--- budget --- HELD +<--- release, expiry, delay ends: the retry budget is used up
//! ```
//!
//! A standard shard keeps its ready messages in lanes: those without a group in `lanes`, those of a group in the group's own.
//! `tenants` says whose message is next.
//!
//! A FIFO shard keeps each group's messages in one list, whatever their state. A group is in `turns` while its first message
//! is ready and none of its messages is leased; so nothing of a group is deliverable while an earlier message is in flight.
//!
//! Every move is O(log n), where n counts deadlines or distinct counts of leases.

use std::sync::Arc;

use crate::arena::{Arena, NONE};
use crate::headroom::{Headroom, Measure};
use crate::ids::QueueId;
use crate::lanes::{Lane, Lanes};
use crate::list::List;
use crate::message::{Age, Aged, Group, Message, slot_or_none};
use crate::notes::Notes;
use crate::reply::RedriveState;
use crate::seldom::Seldom;
use crate::settings::{DeadLetter, Kind, Settings};
use crate::store::Store;
use crate::usage::Usage;
use crate::view::{Counters, OutboxReason, State, Totals};

#[derive(Debug)]
pub(crate) struct Shard {
    pub queue: QueueId,
    pub settings: Settings,
    pub revision: u64,
    /// Messages with an older sequence belong to a deleted shard of the same id.
    pub created_sequence: u64,
    /// Messages with an older sequence were purged, unless they were dead then.
    pub purged_sequence: u64,
    pub counters: Counters,
    /// `Totals::sent`; the others are in `usage`.
    pub sent: u64,
    /// The ready messages of a standard shard that have no group.
    pub lanes: Lanes,
    /// Messages by age, the oldest first: all but the overdue and the dead.
    pub age: List<Age>,
    /// The shard's place in `Partition::retention`.
    pub retention_due_ms: Option<u64>,
    pub usage: Seldom<Usage>,
}

const _: () = assert!(size_of::<Shard>() <= 216);

impl Shard {
    pub fn new(queue: QueueId, settings: Settings, revision: u64, next_sequence: u64) -> Self {
        Self {
            queue,
            settings,
            revision,
            created_sequence: next_sequence,
            purged_sequence: next_sequence,
            counters: Counters::default(),
            sent: 0,
            lanes: Lanes::default(),
            age: List::default(),
            retention_due_ms: None,
            usage: Seldom::untouched(),
        }
    }

    pub fn totals(&self) -> Totals {
        Totals { sent: self.sent, ..self.usage.totals }
    }

    /// Whether a receive now would deliver. O(1).
    pub fn has_ready(&self) -> bool {
        let something = match self.settings.kind {
            Kind::Standard => {
                !self.lanes.is_empty() || !self.usage.tenants.is_empty() || self.first_suspect().is_some()
            }
            Kind::Fifo => !self.usage.turns.is_empty(),
        };
        something && self.counters.leased < u64::from(self.settings.in_flight_max)
    }

    /// The headroom, made when there is none.
    pub fn headroom_of(&mut self, store: &Store) -> &mut Headroom {
        // Leases may have outlived the one before and name what was in it. A version gets its id with a grant.
        let ids_from = if self.counters.leased > 0 { store.next_grant } else { 1 };
        self.usage.headroom.get_or_insert_with(|| Box::new(Headroom::new(store.log_time_ms, ids_from)))
    }

    /// What is measured of the consumer with a message's latest lease.
    pub fn measure(&mut self, store: &Store, slot: u32) -> &mut Measure {
        let version = store.side(slot).map_or(0, |side| side.version);
        self.headroom_of(store).measure(version, store.log_time_ms)
    }

    /// Where a message goes whose receive limit is met.
    pub fn limit_met(&self, store: &Store, slot: u32) -> Option<DeadLetter> {
        let counted = store.side(slot).map_or(0, |side| side.receive_count - u32::from(side.excused));
        self.settings.dead_letter.filter(|dead| counted >= dead.receives_max)
    }

    pub fn redrive_is_running(&self) -> bool {
        self.usage.redrive.as_ref().is_some_and(|redrive| redrive.progress.state == RedriveState::Running)
    }

    /// Ready, leased, delayed and held messages.
    pub fn length(&self) -> u64 {
        self.counters.ready + self.counters.leased + self.counters.delayed
    }

    /// The lanes of a standard shard's tenant, or of the messages without one.
    fn lanes_of<'a>(&'a mut self, groups: &'a mut Arena<Group>, group: u32) -> &'a mut Lanes {
        match slot_or_none(group) {
            Some(group) => &mut groups[group].lanes,
            None => &mut self.lanes,
        }
    }

    /// Puts a message that is in no state's list into the ready state.
    pub fn enter_ready(&mut self, store: &mut Store, slot: u32, lane: Lane, notes: &mut Notes) {
        store.messages[slot].state = State::Ready;
        store.messages[slot].lane = lane;
        self.counters.ready += 1;
        if self.settings.kind == Kind::Standard {
            let group = store.messages[slot].group;
            self.lanes_of(&mut store.groups, group).push_back(&mut store.messages, slot);
            notes.ready.insert(self.queue);
        }
    }

    /// Notes that a message of a standard shard was granted: it is the turn of others.
    pub fn turn_taken(&mut self, store: &mut Store, slot: u32) {
        let Message { group, lane, .. } = store.messages[slot];
        if lane != Lane::Suspect {
            self.usage.tenants.granted(group);
            self.lanes_of(&mut store.groups, group).granted(lane);
        }
        if let Some(group) = slot_or_none(group) {
            self.usage.tenants.refresh(&mut store.groups, group);
        }
    }

    /// Puts a message that is in no state's list into the delayed state.
    pub fn enter_delayed(&mut self, store: &mut Store, slot: u32, lane: Lane, delay_ms: u32) {
        store.messages[slot].state = State::Delayed;
        store.messages[slot].lane = lane;
        self.counters.delayed += 1;
        let deadline_ms = store.log_time_ms.saturating_add(u64::from(delay_ms));
        let side = store.side_slot(slot);
        store.sides[side].deadline_ms = deadline_ms;
        store.delays.insert(&mut store.sides, deadline_ms, side);
    }

    /// Puts a message that is in no state's list into the leased state.
    pub fn enter_leased(&mut self, store: &mut Store, slot: u32, deadline_ms: u64) {
        store.messages[slot].state = State::Leased;
        self.counters.leased += 1;
        if let Some(group) = slot_or_none(store.messages[slot].group) {
            store.groups[group].leased += 1;
        }
        let side = store.side_slot(slot);
        store.sides[side].deadline_ms = deadline_ms;
        store.leases.insert(&mut store.sides, deadline_ms, side);
    }

    /// Moves a message that is in no state's list to the outbox. It leaves its group's order and its age list as well.
    pub fn enter_dead(&mut self, store: &mut Store, slot: u32, target: QueueId, reason: OutboxReason) -> u64 {
        self.leave_order(store, slot); // but it keeps its group: it may come back
        self.leave_age(store, slot);
        store.disarm_expiry(slot);
        let len = u64::from(store.messages[slot].len);
        store.messages[slot].state = State::Dead;
        self.counters.dead += 1;
        self.counters.bytes -= len;
        self.counters.dead_bytes += len;
        let number = store.next_number;
        store.next_number += 1;
        let side = store.side_mut(slot);
        (side.number, side.target, side.reason) = (number, target, reason);
        let outbox = self.usage.outboxes.entry(target).or_default();
        outbox.items.push_back(&mut store.messages, slot);
        outbox.len += 1;
        number
    }

    /// Takes a message out of the lists and timers of its state. The caller puts it into another state or frees it.
    pub fn leave_state(&mut self, store: &mut Store, slot: u32, notes: &mut Notes) {
        match store.messages[slot].state {
            State::Ready => {
                self.counters.ready -= 1;
                if store.messages[slot].lane == Lane::Suspect {
                    self.leave_suspects(store, slot);
                } else if self.settings.kind == Kind::Standard {
                    let group = store.messages[slot].group;
                    store.messages.cut(slot);
                    self.lanes_of(&mut store.groups, group).remove(&mut store.messages, slot);
                }
            }
            State::Leased => self.leave_leased(store, slot, notes),
            State::Delayed => {
                self.counters.delayed -= 1;
                let side = store.side_slot(slot);
                let deadline_ms = store.sides[side].deadline_ms;
                store.delays.remove(&mut store.sides, deadline_ms, side);
            }
            State::Dead => self.leave_outbox(store, slot),
            State::Held => self.leave_held(store, slot),
        }
    }

    fn leave_leased(&mut self, store: &mut Store, slot: u32, notes: &mut Notes) {
        self.counters.leased -= 1;
        if self.counters.leased + 1 == u64::from(self.settings.in_flight_max) {
            notes.ready.insert(self.queue); // the cap held others back
        }
        if let Some(group) = slot_or_none(store.messages[slot].group) {
            store.groups[group].leased -= 1;
        }
        let side = store.side_slot(slot);
        let deadline_ms = store.sides[side].deadline_ms;
        store.leases.remove(&mut store.sides, deadline_ms, side);
        if self.usage.suspects.is_some() {
            self.leave_holder(&store.sides[side], notes);
        }
    }

    fn leave_outbox(&mut self, store: &mut Store, slot: u32) {
        let len = u64::from(store.messages[slot].len);
        self.counters.dead -= 1;
        self.counters.dead_bytes -= len;
        self.counters.bytes += len;
        let side = store.side_mut(slot);
        side.number = 0;
        let target = side.target;
        let outbox = self.usage.outboxes.get_mut(&target).expect("a dead message's outbox exists");
        outbox.items.remove(&mut store.messages, slot);
        outbox.len -= 1;
        if outbox.len == 0 {
            self.usage.outboxes.remove(&target);
        }
    }

    fn leave_age(&mut self, store: &mut Store, slot: u32) {
        match std::mem::replace(&mut store.messages[slot].aged, Aged::Off) {
            Aged::Due => self.age.remove(&mut store.messages, slot),
            Aged::Overdue => self.usage.overdue.remove(&mut store.messages, slot),
            Aged::Off => {}
        }
    }

    /// Notes that a leased message's retention or time to live ended.
    pub fn mark_overdue(&mut self, store: &mut Store, slot: u32) {
        assert_eq!(store.messages[slot].state, State::Leased, "only a lease holds retention back");
        self.leave_age(store, slot);
        store.messages[slot].aged = Aged::Overdue;
        self.usage.overdue.push_back(&mut store.messages, slot);
    }

    /// Takes a message out of everything and frees it.
    pub fn remove(&mut self, store: &mut Store, slot: u32, notes: &mut Notes) {
        let group = store.messages[slot].group;
        let was_dead = store.messages[slot].state == State::Dead;
        self.leave_state(store, slot, notes);
        if !was_dead {
            self.leave_order(store, slot);
        }
        self.leave_age(store, slot);
        self.counters.bytes -= u64::from(store.messages[slot].len);
        store.free(slot, notes);
        if let Some(group) = slot_or_none(group) {
            if !was_dead {
                self.refresh_group(store, group, notes);
            }
            self.end_membership(store, group);
        }
    }

    /// Counts a member off its group, and frees the group with the last. The group of a dead message may be one that a
    /// purge took away, so nothing else of it is touched.
    pub fn end_membership(&mut self, store: &mut Store, group: u32) {
        store.groups[group].members -= 1;
        if store.groups[group].members == 0 {
            let name = store.groups.remove(group).name;
            if self.usage.groups.get(&name) == Some(&group) {
                self.usage.groups.remove(&name);
            }
        }
    }

    /// Makes a message a member of the group with this name.
    pub fn join_group(&mut self, store: &mut Store, slot: u32, name: &[u8]) {
        let group = match self.usage.groups.get(name) {
            Some(group) => *group,
            None => {
                let name: Arc<[u8]> = name.into();
                let group = store.groups.insert(Group::new(name.clone()));
                self.usage.groups.insert(name, group);
                group
            }
        };
        store.messages[slot].group = group;
        store.groups[group].members += 1;
    }

    /// Takes a message out of the order of its FIFO group.
    fn leave_order(&mut self, store: &mut Store, slot: u32) {
        if self.settings.kind == Kind::Fifo
            && let Some(group) = slot_or_none(store.messages[slot].group)
        {
            store.groups[group].messages.remove(&mut store.messages, slot);
        }
    }

    /// Makes a message of a standard shard that is in no state's list a tenant by itself.
    pub fn leave_tenant(&mut self, store: &mut Store, slot: u32) {
        if let Some(group) = slot_or_none(std::mem::replace(&mut store.messages[slot].group, NONE)) {
            self.usage.tenants.refresh(&mut store.groups, group);
            self.end_membership(store, group);
        }
    }

    /// Brings `turns` or `tenants` up to date after anything about a group's messages changed.
    pub fn refresh_group(&mut self, store: &mut Store, group: u32, notes: &mut Notes) {
        match self.settings.kind {
            Kind::Standard => self.usage.tenants.refresh(&mut store.groups, group),
            Kind::Fifo => self.refresh_turn(store, group, notes),
        }
    }

    fn refresh_turn(&mut self, store: &mut Store, group: u32, notes: &mut Notes) {
        let record = &store.groups[group];
        let first_is_ready =
            record.messages.front().is_some_and(|slot| store.messages[slot].state == State::Ready);
        let deliverable = record.leased == 0 && first_is_ready;
        let in_turn = record.in_turn;
        if deliverable && !in_turn {
            store.groups[group].in_turn = true;
            self.usage.turns.push_back(&mut store.groups, group);
        }
        if !deliverable && in_turn {
            store.groups[group].in_turn = false;
            self.usage.turns.remove(&mut store.groups, group);
        }
        if deliverable {
            notes.ready.insert(self.queue);
        }
    }

    /// `refresh_group` for the group of a message, if it has one.
    pub fn refresh_group_of(&mut self, store: &mut Store, slot: u32, notes: &mut Notes) {
        if let Some(group) = slot_or_none(store.messages[slot].group) {
            self.refresh_group(store, group, notes);
        }
    }
}
