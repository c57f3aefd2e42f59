//! Everything that must hold of a partition's state, recounted from scratch. Tests run it after every entry.

use std::collections::{BTreeMap, BTreeSet};

use crate::arena::NONE;
use crate::lanes::{Lane, Lanes};
use crate::message::{Aged, Message, slot_or_none};
use crate::partition::Partition;
use crate::settings::Kind;
use crate::shard::Shard;
use crate::view::{Counters, State};

impl Partition {
    /// Recounts everything. O(state).
    ///
    /// # Panics
    /// When something does not hold, saying what.
    pub fn check_invariants(&self) {
        self.store.messages.check_invariants();
        self.check_messages();
        self.check_timers();
        self.check_entries();
        self.check_groups();
        self.check_indexes();
        self.dedup.check_invariants();
        self.attempts.check_invariants();
        self.sessions.check_invariants();
        self.shards.iter().for_each(|(queue, shard)| {
            assert_eq!(*queue, shard.queue, "a shard is under its own id");
            self.check_shard(shard);
        });
    }

    /// Counters equal a recount (I16), and every message is either a shard's or garbage.
    fn check_messages(&self) {
        let mut counts: BTreeMap<_, Counters> = BTreeMap::new();
        let mut garbage = 0;
        for (slot, message) in self.store.messages.iter() {
            assert!(message.sequence < self.store.next_sequence, "sequences were given out");
            if let Some(side) = slot_or_none(message.side) {
                assert_eq!(self.store.sides[side].message, slot, "a side record knows its message");
                assert!(self.store.sides[side].grant < self.store.next_grant, "grants were given out");
            }
            if !self.alive(&message) {
                garbage += 1;
                continue;
            }
            count(counts.entry(message.queue).or_default(), message.state, u64::from(message.len));
        }
        assert_eq!(garbage, self.garbage.len(), "what no shard owns is garbage");
        for (queue, shard) in &self.shards {
            let counted = counts.remove(queue).unwrap_or_default();
            assert_eq!(shard.counters, counted, "counters of queue {}", queue.0);
        }
        let with_side = self.store.messages.iter().filter(|(_, message)| message.side != NONE).count();
        assert_eq!(with_side, self.store.sides.len(), "each side record has a message");
    }

    /// Every lease, delay and time to live is armed under its own deadline, once.
    fn check_timers(&self) {
        let store = &self.store;
        let mut armed = BTreeSet::new();
        for (timers, state) in [(&store.leases, State::Leased), (&store.delays, State::Delayed)] {
            for (deadline_ms, side) in timers.iter(&store.sides) {
                let record = &store.sides[side];
                assert_eq!(record.deadline_ms, deadline_ms, "a timer is under its deadline");
                assert_eq!(store.messages[record.message].state, state, "a timer fits its message's state");
                assert!(armed.insert(record.message), "a message has one timer");
            }
        }
        for (slot, message) in store.messages.iter() {
            let timed = matches!(message.state, State::Leased | State::Delayed);
            assert_eq!(timed, armed.contains(&slot), "leased and delayed messages have a timer");
        }
        let mut expiring = BTreeSet::new();
        for (expiry_wall_ms, side) in store.expiries.iter(&store.sides) {
            assert_eq!(store.sides[side].expiry_wall_ms, expiry_wall_ms, "a time to live is under its end");
            assert!(expiring.insert(side), "a message has one time to live");
        }
        for (side, record) in store.sides.iter() {
            assert_eq!(
                record.expiry_armed,
                expiring.contains(&side),
                "an armed time to live is in the timers"
            );
        }
    }

    fn check_entries(&self) {
        let store = &self.store;
        let mut found = 0;
        let mut last_index = 0;
        for entry in store.entries.iter() {
            assert!(
                entry.log_index > last_index && entry.log_index <= self.applied_index,
                "entries in order"
            );
            last_index = entry.log_index;
            let messages: Vec<Message> =
                store.messages.list(&entry.messages).map(|(_, message)| message).collect();
            assert!(!messages.is_empty(), "an entry without live contents is forgotten");
            let bytes: u64 = messages.iter().map(|message| u64::from(message.len)).sum();
            assert_eq!(bytes, entry.live_bytes, "live bytes of entry {}", entry.log_index);
            let ordered = messages.windows(2).all(|pair| {
                pair[0].sequence < pair[1].sequence && pair[0].offset + pair[0].len <= pair[1].offset
            });
            assert!(ordered, "contents of an entry are in order and apart");
            assert!(messages[0].sequence >= entry.first_sequence, "sequences follow entries");
            found += messages.len();
        }
        assert_eq!(found, store.messages.len(), "every message is in its entry");
    }

    fn check_groups(&self) {
        let mut members: BTreeMap<u32, u32> = BTreeMap::new();
        for (_, message) in self.store.messages.iter() {
            if let Some(group) = slot_or_none(message.group) {
                *members.entry(group).or_default() += 1;
            }
        }
        for (group, record) in self.store.groups.iter() {
            assert_eq!(members.remove(&group), Some(record.members), "members of a group");
        }
        assert!(members.is_empty(), "every group exists");
    }

    fn check_indexes(&self) {
        let retained = self.shards.values().filter_map(|shard| Some((shard.retention_due_ms?, shard.queue)));
        assert_eq!(self.retention, retained.collect(), "the retention index");
        let measured =
            self.shards.values().filter_map(|shard| Some((shard.usage.headroom_due_ms?, shard.queue)));
        assert_eq!(self.headrooms, measured.collect(), "the headroom index");
        let held = self.shards.values().filter_map(|shard| Some((shard.usage.damping_due_ms?, shard.queue)));
        assert_eq!(self.dampings, held.collect(), "the index of the held");
        let waiting = self.shards.values().filter(|shard| !shard.usage.outboxes.is_empty());
        assert_eq!(self.outboxes, waiting.map(|shard| shard.queue).collect(), "the outbox index");
        let running = self.shards.values().filter(|shard| shard.redrive_is_running());
        assert_eq!(self.redrives, running.map(|shard| shard.queue).collect(), "the redrive index");
    }

    fn check_shard(&self, shard: &Shard) {
        let messages = &self.store.messages;
        for (list, aged) in [(&shard.age, Aged::Due), (&shard.usage.overdue, Aged::Overdue)] {
            for (_, message) in messages.list(list) {
                assert!(message.queue == shard.queue && message.aged == aged, "age lists");
                assert!(aged == Aged::Due || message.state == State::Leased, "overdue ones are leased");
            }
        }
        let aged = messages.list(&shard.age).count() + messages.list(&shard.usage.overdue).count();
        assert_eq!(aged as u64, shard.length(), "every message that is not dead has its age");
        let first_ms = shard.age.front().map(|slot| self.store.sent_wall_ms(&messages[slot]));
        let due_ms = first_ms.map(|first_ms| first_ms + shard.settings.retention_ms);
        assert_eq!(shard.retention_due_ms, due_ms, "retention follows the oldest");
        self.check_outboxes(shard);
        let outdated_ms = shard.usage.headroom.as_ref().map(|headroom| headroom.outdated_ms());
        assert_eq!(shard.usage.headroom_due_ms, outdated_ms, "a headroom is forgotten in time");
        shard.usage.headroom.iter().for_each(|headroom| headroom.check_invariants());
        self.check_held(shard);
        match shard.settings.kind {
            Kind::Standard => {
                self.check_lanes(shard);
                self.check_tenants(shard);
            }
            Kind::Fifo => self.check_turns(shard),
        }
    }

    /// What is held is under its own time, and the shard is looked at when it lets the first go.
    fn check_held(&self, shard: &Shard) {
        let store = &self.store;
        let due_ms = shard.usage.damping.as_ref().and_then(|damping| damping.due_ms());
        assert_eq!(shard.usage.damping_due_ms, due_ms, "held messages are let go in time");
        let of_shard = |message: &Message| message.queue == shard.queue && self.alive(message);
        let all = store.messages.iter().map(|(_, message)| message).filter(of_shard);
        let held = all.filter(|message| message.state == State::Held).count() as u64;
        assert_eq!(held, shard.usage.damping.as_ref().map_or(0, |damping| damping.held_len), "the held");
        let Some(damping) = &shard.usage.damping else { return };
        damping.check_invariants();
        let listed = damping.held.iter(&store.sides).inspect(|(until_ms, side)| {
            let record = &store.sides[*side];
            assert_eq!(record.deadline_ms, *until_ms, "a held message is under its time");
            assert_eq!(store.messages[record.message].state, State::Held, "who is listed is held");
        });
        assert_eq!(listed.count() as u64, held, "every held message is listed");
    }

    fn check_outboxes(&self, shard: &Shard) {
        let mut dead = 0;
        for (target, outbox) in &shard.usage.outboxes {
            let slots: Vec<u32> = outbox.items.iter(&self.store.messages).collect();
            assert!(!slots.is_empty() && slots.len() as u64 == outbox.len, "an outbox counts its items");
            let numbers: Vec<u64> =
                slots.iter().filter_map(|slot| Some(self.store.side(*slot)?.number)).collect();
            assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "outbox numbers grow");
            for slot in &slots {
                let message = &self.store.messages[*slot];
                assert!(
                    message.state == State::Dead && message.aged == Aged::Off,
                    "the outbox holds the dead"
                );
                assert_eq!(self.store.side(*slot).map(|side| side.target), Some(*target), "one target each");
            }
            dead += outbox.len;
        }
        assert_eq!(dead, shard.counters.dead, "the dead are in the outboxes");
    }

    fn check_lanes(&self, shard: &Shard) {
        let mut ready = self.check_lane(&shard.lanes, NONE);
        for group in shard.usage.groups.values() {
            ready += self.check_lane(&self.store.groups[*group].lanes, *group);
        }
        ready += self.check_suspects(shard);
        assert_eq!(ready, shard.counters.ready, "the ready are in the lanes, or among the suspects");
    }

    /// Leases are counted on their consumers, and suspects are where they belong. Returns how many are ready.
    fn check_suspects(&self, shard: &Shard) -> u64 {
        let store = &self.store;
        let own =
            store.messages.iter().filter(|(_, message)| message.queue == shard.queue && self.alive(message));
        let own: Vec<_> = own.filter_map(|(_, message)| Some((message, store.side_of(&message)?))).collect();
        let on_trial =
            own.iter().filter(|(message, side)| message.state == State::Leased && side.company > 0);
        let Some(suspects) = &shard.usage.suspects else {
            assert_eq!(on_trial.count(), 0, "who isolates nobody tries nobody");
            return 0;
        };
        suspects.check_invariants();
        assert_eq!(on_trial.count() as u32, suspects.on_trial, "suspects that are leased");
        let mut leases = suspects.leases();
        let leased = own.iter().filter(|(message, _)| message.state == State::Leased);
        for (_, side) in leased {
            if let Some(count) = leases.get_mut(&side.holder) {
                *count -= 1;
            }
        }
        assert!(leases.values().all(|count| *count == 0), "each lease is counted on its consumer");
        let waiting = suspects.waiting.iter(&store.messages).inspect(|slot| {
            let message = &store.messages[*slot];
            assert!(message.state == State::Ready && message.lane == Lane::Suspect, "a suspect waits");
        });
        assert_eq!(waiting.count() as u64, suspects.waiting_len, "suspects that wait");
        suspects.waiting_len
    }

    fn check_lane(&self, lanes: &Lanes, group: u32) -> u64 {
        let messages = &self.store.messages;
        let mut ready = 0;
        for (lane, message) in lanes.iter(messages) {
            assert!(message.state == State::Ready && message.lane == lane, "a lane");
            assert_eq!(message.group, group, "the lanes are those of the group");
            ready += 1;
        }
        ready
    }

    /// A tenant has a turn if and only if it has something ready, under the leases it holds.
    fn check_tenants(&self, shard: &Shard) {
        let store = &self.store;
        let mut leased: BTreeMap<u32, u32> = BTreeMap::new();
        let own = |message: &Message| message.queue == shard.queue && self.alive(message);
        for message in store.messages.iter().map(|(_, message)| message).filter(own) {
            if message.state == State::Leased {
                *leased.entry(message.group).or_default() += 1;
            }
        }
        let turns: BTreeMap<u32, u64> =
            shard.usage.tenants.iter(&store.groups).map(|(rank, group)| (group, rank)).collect();
        for (name, group) in &shard.usage.groups {
            let record = &store.groups[*group];
            assert_eq!(record.name, *name, "a group is under its own name");
            assert!(record.messages.is_empty(), "a standard queue keeps no order");
            assert_eq!(record.leased, leased.get(group).copied().unwrap_or(0), "leases of a tenant");
            let ready = !record.lanes.is_empty();
            assert_eq!(ready, record.in_turn, "a tenant knows of its turn");
            let rank = ready.then_some(u64::from(record.leased));
            assert_eq!(turns.get(group).copied(), rank, "a tenant with something ready has a turn");
            assert_eq!(u64::from(record.rank), rank.unwrap_or(0), "a tenant knows its rank");
        }
        assert!(turns.keys().all(|group| store.groups[*group].in_turn), "who has a turn is a tenant");
    }

    /// A group is deliverable if and only if its first message is ready and none is leased (I9).
    fn check_turns(&self, shard: &Shard) {
        let store = &self.store;
        let turns: BTreeSet<u32> = shard.usage.turns.iter(&store.groups).collect();
        let mut listed = 0;
        for (name, group) in &shard.usage.groups {
            let record = &store.groups[*group];
            assert_eq!(record.name, *name, "a group is under its own name");
            let messages: Vec<&Message> =
                record.messages.iter(&store.messages).map(|slot| &store.messages[slot]).collect();
            let ordered = messages.windows(2).all(|pair| pair[0].sequence < pair[1].sequence);
            assert!(ordered, "sequences of a group grow");
            let states: Vec<State> = messages.iter().map(|message| message.state).collect();
            let leased = states.iter().filter(|state| **state == State::Leased).count();
            assert_eq!(leased as u32, record.leased, "leased messages of a group");
            let deliverable = leased == 0 && states.first() == Some(&State::Ready);
            assert_eq!(deliverable, turns.contains(group), "deliverable groups have a turn");
            assert_eq!(deliverable, record.in_turn, "a group knows of its turn");
            listed += states.len() as u64;
        }
        assert_eq!(listed, shard.length(), "every message that is not dead is in its group");
    }
}

fn count(counters: &mut Counters, state: State, len: u64) {
    match state {
        State::Ready => counters.ready += 1,
        State::Leased => counters.leased += 1,
        State::Delayed | State::Held => counters.delayed += 1,
        State::Dead => counters.dead += 1,
    }
    match state {
        State::Dead => counters.dead_bytes += len,
        _ => counters.bytes += len,
    }
}
