//! Random logs against a slow model that has none of the partition's structures: flat vectors, scanned for everything.
//!
//! Sources: I4 (one lease), I7 (exact counts), I8 (dead letters), I9 (groups), I10 (deduplication), I11 (delays), I12 and
//! I13 (snapshot and tail equal a replay), I15 (retention), I16 (counters), I22 (tenants) of `RELIABILITY.md`.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use std::collections::BTreeMap;

use leasehold_partition::*;
use rig::{Random, Rig, for_seeds};

#[derive(Clone, Debug, PartialEq)]
struct Item {
    sequence: u64,
    /// Its place in its group.
    order: i64,
    queue: u64,
    /// `NO_GROUP` on a standard queue for those without one.
    group: u8,
    state: State,
    /// 0 fresh, 1 returned.
    lane: u8,
    /// When it entered its place: orders equal places.
    stamp: u64,
    deadline_ms: u64,
    receives: u32,
    grant: u64,
    granted_ms: u64,
    sent_wall_ms: u64,
    expiry_wall_ms: u64,
    overdue: bool,
    purged: bool,
    number: u64,
    target: u64,
    origin: Option<u64>,
    len: u64,
}

const GROUPS: u8 = 4;
const NO_GROUP: u8 = GROUPS;

/// Where a tenant of a standard queue stands, `NO_GROUP` for all messages without one.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tenant {
    prefers_returned: bool,
    /// The leases under which it waits for its turn, and since when; only while it has something ready.
    turn: Option<(u64, u64)>,
}

const NEW_TENANT: Tenant = Tenant { prefers_returned: true, turn: None };

#[derive(Clone, Debug)]
struct Queue {
    settings: Settings,
    tenants: BTreeMap<u8, Tenant>,
    prefers_ungrouped: bool,
    turns: Vec<u8>,
    arrived: BTreeMap<u64, u64>,
    dedup: Vec<(u8, u64, u64)>,
}

#[derive(Default)]
struct Model {
    now_ms: u64,
    wall_ms: u64,
    stamp: u64,
    grant: u64,
    number: u64,
    /// Falls: the place of what came back from an outbox, before all of its group.
    front: i64,
    last_sequence: u64,
    redrive_left: u64,
    queues: BTreeMap<u64, Queue>,
    items: Vec<Item>,
}

impl Model {
    fn stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    fn configure(&mut self, queue: u64, settings: Settings) {
        let new = Queue {
            settings,
            tenants: BTreeMap::new(),
            prefers_ungrouped: false,
            turns: Vec::new(),
            arrived: BTreeMap::new(),
            dedup: Vec::new(),
        };
        self.queues.entry(queue).or_insert(new).settings = settings;
    }

    fn fifo(&self, queue: u64) -> bool {
        self.queues[&queue].settings.kind == Kind::Fifo
    }

    /// A FIFO group's members in order.
    fn group(&self, queue: u64, group: u8) -> Vec<usize> {
        let of = |item: &Item| item.queue == queue && item.group == group && item.state != State::Dead;
        let mut found: Vec<usize> = (0..self.items.len()).filter(|at| of(&self.items[*at])).collect();
        found.sort_by_key(|at| self.items[*at].order);
        found
    }

    fn count(&self, queue: u64, group: u8, of: impl Fn(&Item) -> bool) -> u64 {
        let counted = |item: &&Item| item.queue == queue && item.group == group && !item.purged && of(item);
        self.items.iter().filter(counted).count() as u64
    }

    /// Brings the places of a standard queue's tenants up to date; one without any message, dead ones included, is forgotten.
    fn refresh_tenants(&mut self, queue: u64) {
        for group in 0..GROUPS {
            let stamp = self.stamp();
            let members = self.count(queue, group, |_| true);
            let ready = self.count(queue, group, |item| item.state == State::Ready);
            let leases = self.count(queue, group, |item| item.state == State::Leased);
            let tenants = &mut self.queues.get_mut(&queue).unwrap().tenants;
            let tenant = tenants.entry(group).or_insert(NEW_TENANT);
            if !tenant.turn.is_some_and(|(rank, _)| ready > 0 && rank == leases) {
                tenant.turn = (ready > 0).then_some((leases, stamp));
            }
            if members == 0 {
                tenants.remove(&group);
            }
        }
    }

    fn refresh_turns(&mut self, queue: u64) {
        if !self.fifo(queue) {
            return self.refresh_tenants(queue);
        }
        for group in 0..GROUPS {
            let members = self.group(queue, group);
            let leased = members.iter().any(|at| self.items[*at].state == State::Leased);
            let first = members.first().is_some_and(|at| self.items[*at].state == State::Ready);
            let turns = &mut self.queues.get_mut(&queue).unwrap().turns;
            match (!leased && first, turns.contains(&group)) {
                (true, false) => turns.push(group),
                (false, true) => turns.retain(|other| *other != group),
                _ => {}
            }
        }
    }

    fn ready(&mut self, at: usize, lane: u8) {
        let stamp = self.stamp();
        let item = &mut self.items[at];
        (item.state, item.lane, item.stamp) = (State::Ready, lane, stamp);
    }

    fn until(&mut self, at: usize, state: State, ms: u64) {
        let stamp = self.stamp();
        let deadline_ms = self.now_ms + ms;
        let item = &mut self.items[at];
        (item.state, item.deadline_ms, item.stamp) = (state, deadline_ms, stamp);
    }

    fn length(&self, queue: u64) -> u64 {
        self.items.iter().filter(|item| item.queue == queue && item.state != State::Dead).count() as u64
    }

    fn full(&self, queue: u64) -> bool {
        let max = self.queues[&queue].settings.length_max;
        max > 0 && self.length(queue) >= max
    }

    fn add(&mut self, queue: u64, group: u8, len: u64, sequence: u64, delay_ms: u64, expiry_ms: Option<u64>) {
        let expiry_wall_ms = expiry_ms.map_or(0, |ms| self.wall_ms + ms);
        self.last_sequence = sequence;
        self.items.push(Item {
            sequence,
            order: sequence as i64,
            queue,
            group,
            state: State::Ready,
            lane: 0,
            stamp: 0,
            deadline_ms: 0,
            receives: 0,
            grant: 0,
            granted_ms: 0,
            sent_wall_ms: self.wall_ms,
            expiry_wall_ms,
            overdue: false,
            purged: false,
            number: 0,
            target: 0,
            origin: None,
            len,
        });
        let at = self.items.len() - 1;
        match delay_ms {
            0 => self.ready(at, 0),
            _ => self.until(at, State::Delayed, delay_ms),
        }
        self.refresh_turns(queue);
    }

    /// The first ready message of a standard queue's tenant, by the lane that is preferred.
    fn first_of(&self, queue: u64, group: u8, prefers_lane: u8) -> Option<usize> {
        let ready = |item: &Item| (item.queue, item.group) == (queue, group) && item.state == State::Ready;
        let all = (0..self.items.len()).filter(|at| ready(&self.items[*at]));
        all.min_by_key(|at| (self.items[*at].lane != prefers_lane, self.items[*at].stamp))
    }

    /// The tenant whose turn it is: the fewest leases, then the longest wait.
    fn tenant(&self, queue: u64) -> Option<(u64, u8)> {
        let tenants = self.queues[&queue].tenants.iter();
        let first = tenants.filter_map(|(group, tenant)| Some((tenant.turn?, *group))).min();
        first.map(|((leases, _), group)| (leases, group))
    }

    /// The message that the next grant of a standard queue takes.
    fn first(&mut self, queue: u64) -> Option<usize> {
        let has_ungrouped = self.first_of(queue, NO_GROUP, 0).is_some();
        let state = &self.queues[&queue];
        let group = match self.tenant(queue) {
            Some((leases, _)) if has_ungrouped && (leases > 0 || state.prefers_ungrouped) => NO_GROUP,
            tenant => tenant.map_or(NO_GROUP, |(_, group)| group),
        };
        let prefers_lane = u8::from(state.tenants.get(&group).is_none_or(|tenant| tenant.prefers_returned));
        self.first_of(queue, group, prefers_lane)
    }

    /// Notes whose turn it is after a grant of a standard queue.
    fn taken(&mut self, at: usize) {
        let Item { queue, group, lane, .. } = self.items[at];
        let state = self.queues.get_mut(&queue).unwrap();
        state.prefers_ungrouped = group != NO_GROUP;
        state.tenants.entry(group).or_insert(NEW_TENANT).prefers_returned = lane == 0;
        self.refresh_turns(queue);
    }

    fn leased(&self, queue: u64) -> u64 {
        self.items.iter().filter(|item| item.queue == queue && item.state == State::Leased).count() as u64
    }

    fn give(&mut self, at: usize, lease_ms: u64) -> (u64, u32, u64) {
        self.grant += 1;
        let (grant, now_ms) = (self.grant, self.now_ms);
        let item = &mut self.items[at];
        item.grant = grant;
        item.granted_ms = now_ms;
        item.receives += 1;
        self.until(at, State::Leased, lease_ms);
        let item = &self.items[at];
        (item.sequence, item.receives, item.deadline_ms)
    }

    /// `None` stands for `OverLimit`.
    fn receive(&mut self, queue: u64, max: u32, lease_ms: u64) -> Option<Vec<(u64, u32, u64)>> {
        let cap = u64::from(self.queues[&queue].settings.in_flight_max);
        let mut taken = Vec::new();
        if !self.fifo(queue) && self.leased(queue) >= cap {
            return None;
        }
        while (taken.len() as u32) < max && self.leased(queue) < cap {
            if self.fifo(queue) {
                let Some(group) = self.queues[&queue].turns.first().copied() else { break };
                for at in self.group(queue, group) {
                    let room = (taken.len() as u32) < max && self.leased(queue) < cap;
                    if !room || self.items[at].state != State::Ready {
                        break;
                    }
                    taken.push(self.give(at, lease_ms));
                }
                self.refresh_turns(queue);
            } else {
                let Some(at) = self.first(queue) else { break };
                taken.push(self.give(at, lease_ms));
                self.taken(at);
            }
        }
        Some(taken)
    }

    fn judge(&self, queue: u64, receipt: &Receipt) -> Result<usize, Outcome> {
        match self.items.iter().position(|item| item.sequence == receipt.sequence) {
            Some(at) if self.items[at].queue != queue => Err(Outcome::Invalid),
            Some(at) if self.items[at].state == State::Leased && self.items[at].grant == receipt.grant => {
                Ok(at)
            }
            Some(_) => Err(Outcome::Stale),
            None => Err(Outcome::Gone),
        }
    }

    fn kill(&mut self, at: usize, target: u64) {
        self.number += 1;
        let number = self.number;
        let item = &mut self.items[at];
        (item.state, item.number, item.target, item.overdue) = (State::Dead, number, target, false);
    }

    fn end_lease(&mut self, at: usize, delay_ms: u64) {
        let queue = self.items[at].queue;
        let dead = self.queues[&queue].settings.dead_letter;
        match dead.filter(|dead| self.items[at].receives >= dead.receives_max) {
            Some(dead) => self.kill(at, dead.queue.0),
            None if self.items[at].overdue => {
                self.items.remove(at);
            }
            None if delay_ms > 0 => {
                self.until(at, State::Delayed, delay_ms);
                self.items[at].lane = 1;
            }
            None => self.ready(at, 1),
        }
        self.refresh_turns(queue);
    }

    fn due(&self, state: State) -> Option<usize> {
        let due = |item: &Item| item.state == state && item.deadline_ms <= self.now_ms;
        let all = (0..self.items.len()).filter(|at| due(&self.items[*at]));
        all.min_by_key(|at| (self.items[*at].deadline_ms, self.items[*at].stamp))
    }

    fn expire(&mut self) {
        while let Some(at) = self.due(State::Leased) {
            self.end_lease(at, 0);
        }
        while let Some(at) = self.due(State::Delayed) {
            let (queue, lane) = (self.items[at].queue, self.items[at].lane);
            self.ready(at, lane);
            self.refresh_turns(queue);
        }
        let mut over = Vec::new();
        for item in &mut self.items {
            let retention_ms = self.queues[&item.queue].settings.retention_ms;
            let ttl_over = item.expiry_wall_ms > 0 && item.expiry_wall_ms <= self.wall_ms;
            if item.state == State::Dead || !(ttl_over || item.sent_wall_ms + retention_ms <= self.wall_ms) {
                continue;
            }
            match item.state {
                State::Leased => item.overdue = true,
                _ if ttl_over => over.push(((0, item.expiry_wall_ms, 0), item.sequence)),
                _ => over.push(((1, item.sent_wall_ms, item.queue), item.sequence)),
            }
        }
        over.sort();
        for (_, sequence) in over {
            let at = self.items.iter().position(|item| item.sequence == sequence).unwrap();
            let queue = self.items.remove(at).queue;
            self.refresh_turns(queue);
        }
    }

    fn duplicate(&self, queue: u64, id: Option<u8>) -> Option<u64> {
        let open = |known: &&(u8, u64, u64)| Some(known.0) == id && known.1 > self.now_ms;
        self.queues[&queue].dedup.iter().find(open).map(|(_, _, sequence)| *sequence)
    }

    fn remember(&mut self, queue: u64, id: Option<u8>, sequence: u64) {
        let queue = self.queues.get_mut(&queue).unwrap();
        queue.dedup.retain(|known| Some(known.0) != id);
        let until_ms = self.now_ms + queue.settings.dedup_window_ms;
        queue.dedup.extend(id.map(|id| (id, until_ms, sequence)));
    }

    fn settle(&mut self, queue: u64, receipt: &Receipt, which: u64, ms: u32) -> Outcome {
        let at = match self.judge(queue, receipt) {
            Ok(at) => at,
            Err(outcome) => return outcome,
        };
        match which {
            0..3 => {
                self.items.remove(at);
                self.refresh_turns(queue);
            }
            3 if ms > 0 => self.until(at, State::Leased, u64::from(ms)),
            5 => match self.queues[&queue].settings.dead_letter {
                Some(dead) => {
                    self.kill(at, dead.queue.0);
                    self.refresh_turns(queue);
                }
                None => return Outcome::NoDeadLetterQueue,
            },
            _ => self.end_lease(at, u64::from(ms)),
        }
        Outcome::Done
    }

    /// The numbers that wait for a target.
    fn outbox(&self, queue: u64, target: u64, limit: usize) -> Vec<u64> {
        let waits = |item: &&Item| item.state == State::Dead && (item.queue, item.target) == (queue, target);
        let mut numbers: Vec<u64> = self.items.iter().filter(waits).map(|item| item.number).collect();
        numbers.sort();
        numbers.truncate(limit);
        numbers
    }

    fn arrive(
        &mut self,
        from: u64,
        to: u64,
        numbers: &[u64],
        group: u8,
        len: u64,
        sequence: u64,
    ) -> (u64, Option<Refusal>) {
        let mut through = self.queues[&to].arrived.get(&from).copied().unwrap_or(0);
        let mut refused = None;
        let new: Vec<u64> = numbers.iter().copied().filter(|number| *number > through).collect();
        for (number, sequence) in new.into_iter().zip(sequence..) {
            if self.full(to) {
                refused = Some(Refusal::QueueFull);
                break;
            }
            self.add(to, group, len, sequence, 0, None);
            self.items.last_mut().unwrap().origin = Some(from);
            through = number;
        }
        self.queues.get_mut(&to).unwrap().arrived.insert(from, through);
        (through, refused)
    }

    fn redrive(&mut self, items_max: u32) -> u32 {
        let mut moved = 0;
        for _ in 0..items_max {
            let group = self.tenant(DEAD).map_or(NO_GROUP, |(_, group)| group);
            let Some(at) = self.first_of(DEAD, group, 1) else { break };
            if self.redrive_left == 0 {
                break;
            }
            self.redrive_left -= 1;
            match self.items[at].origin {
                Some(origin) if origin != DEAD => {
                    self.kill(at, origin);
                    moved += 1;
                }
                _ => {
                    self.items[at].group = NO_GROUP;
                    self.ready(at, 0);
                }
            }
            self.refresh_turns(DEAD);
        }
        moved
    }

    fn give_up(&mut self, queue: u64, target: u64, items_max: usize) {
        for number in self.outbox(queue, target, usize::MAX).into_iter().rev().take(items_max) {
            let found = |item: &Item| item.state == State::Dead && item.number == number;
            let at = self.items.iter().position(found).unwrap();
            if self.items[at].purged {
                self.items.remove(at);
                continue;
            }
            self.front -= 1;
            let retained_to_ms = self.items[at].sent_wall_ms + self.queues[&queue].settings.retention_ms;
            let item = &mut self.items[at];
            item.order = self.front;
            let ends = [item.expiry_wall_ms, retained_to_ms];
            item.expiry_wall_ms = ends.into_iter().filter(|end| *end > 0).min().unwrap();
            self.ready(at, 1);
            self.refresh_turns(queue);
        }
    }

    fn first_ms(&self, state: State) -> Option<u64> {
        self.items.iter().filter(|item| item.state == state).map(|item| item.deadline_ms).min()
    }

    fn next_sequence(&self) -> u64 {
        self.last_sequence + 1
    }

    fn counters(&self, queue: u64) -> Counters {
        let mut counters = Counters::default();
        for item in self.items.iter().filter(|item| item.queue == queue) {
            match item.state {
                State::Ready => counters.ready += 1,
                State::Leased => counters.leased += 1,
                State::Delayed => counters.delayed += 1,
                State::Dead => counters.dead += 1,
            }
            match item.state {
                State::Dead => counters.dead_bytes += item.len,
                _ => counters.bytes += item.len,
            }
        }
        counters
    }

    fn has_ready(&self, queue: u64) -> bool {
        let cap = u64::from(self.queues[&queue].settings.in_flight_max);
        let something = if self.fifo(queue) {
            !self.queues[&queue].turns.is_empty()
        } else {
            self.counters(queue).ready > 0
        };
        something && self.leased(queue) < cap
    }
}

/// Drives the partition and the model with the same choices.
struct Twin {
    rig: Rig,
    model: Model,
    random: Random,
    receipts: Vec<(u64, Receipt)>,
}

const STANDARD: u64 = 1;
const FIFO: u64 = 2;
const DEAD: u64 = 3;
const QUEUES: [u64; 4] = [STANDARD, FIFO, DEAD, 4];

fn settings_of(queue: u64) -> Settings {
    let limit = |receives_max| Some(DeadLetter { queue: QueueId(DEAD), receives_max });
    let settings = Settings { retention_ms: 60_000, dedup_window_ms: 3_000, ..Settings::default() };
    match queue {
        STANDARD => Settings { dead_letter: limit(3), in_flight_max: 12, ..settings },
        FIFO => Settings { kind: Kind::Fifo, dead_letter: limit(2), in_flight_max: 9, ..settings },
        DEAD => Settings { length_max: 40, ..settings },
        _ => Settings { kind: Kind::Fifo, delay_ms: 300, length_max: 30, ..settings },
    }
}

impl Twin {
    fn new(seed: u64) -> Self {
        let (rig, model) = (Rig::new(), Model::default());
        let mut twin = Self { rig, model, random: Random::new(seed), receipts: Vec::new() };
        QUEUES.iter().for_each(|queue| twin.configure(*queue));
        twin
    }

    fn configure(&mut self, queue: u64) {
        self.rig.configure(queue, settings_of(queue));
        self.model.configure(queue, settings_of(queue));
    }

    fn queue(&mut self) -> u64 {
        QUEUES[self.random.below(4) as usize]
    }

    fn step(&mut self) {
        let ms = [0, 1, 40, 400, 4_000][self.random.below(5) as usize];
        self.rig.pass(ms);
        (self.model.now_ms, self.model.wall_ms) = (self.rig.now_ms, self.rig.wall_ms);
        match self.random.below(100) {
            0..30 => self.send(),
            30..55 => self.receive(),
            55..75 => self.settle(),
            75..85 => self.expire(),
            85..92 => self.transfer(),
            92..94 => self.redrive(),
            94..95 => self.purge(),
            95..96 => self.delete(),
            96..97 => self.give_up(),
            _ => self.snapshot(),
        }
        self.compare();
    }

    fn send(&mut self) {
        let queue = self.queue();
        let random = &mut self.random;
        let body = vec![7; random.below(20) as usize];
        let (group, dedup) = ([random.below(GROUPS.into()) as u8], [random.below(12) as u8]);
        let id = random.one_in(3).then_some(dedup[0]);
        let fifo = self.model.fifo(queue);
        let delay_ms = (!fifo && random.one_in(4)).then(|| 1 + random.below(2000) as u32);
        let expiry_ms = random.one_in(6).then(|| 1 + random.below(5_000));
        let dedup_id = id.map(|_| &dedup[..]);
        let has_group = fifo || !random.one_in(3);
        let content =
            Content { body: &body, group: has_group.then_some(&group[..]), dedup_id, ..Content::default() };
        let message = NewMessage { delay_ms, expiry_ms, content };
        let reply = self.rig.apply(Command::Send { queue: QueueId(queue), messages: vec![message] });
        let Reply::Sent { outcomes } = reply else { panic!("{reply:?}") };
        let expected = self.model.duplicate(queue, id);
        let expected = expected.map(|sequence| SendOutcome::Duplicate { sequence });
        let full = self.model.full(queue);
        let expected = expected.or(full.then_some(SendOutcome::Refused { reason: Refusal::QueueFull }));
        if let Some(expected) = expected {
            assert_eq!(outcomes, [expected]);
            return;
        }
        let [SendOutcome::Sent { key }] = outcomes[..] else { panic!("{outcomes:?}") };
        let delay_ms = delay_ms.unwrap_or(settings_of(queue).delay_ms);
        let group = if has_group { group[0] } else { NO_GROUP };
        let len = length(content);
        self.model.add(queue, group, len, key.sequence, u64::from(delay_ms), expiry_ms);
        self.model.remember(queue, id, key.sequence);
    }

    fn receive(&mut self) {
        let queue = self.queue();
        let max = 1 + self.random.below(5) as u32;
        let lease_ms = self.random.below(1500) as u32;
        let expected = self.model.receive(queue, max, u64::from(lease_ms));
        match self.rig.apply(rig::receive(queue, max, lease_ms)) {
            Reply::OverLimit => assert_eq!(expected, None),
            Reply::Received { deliveries } => {
                let parts = |got: &Delivery| (got.receipt.sequence, got.receive_count, got.deadline_log_ms);
                assert_eq!(Some(deliveries.iter().map(parts).collect()), expected, "queue {queue}");
                self.receipts.extend(deliveries.iter().map(|got| (queue, got.receipt)));
            }
            other => panic!("{other:?}"),
        }
        let old = self.receipts.len().saturating_sub(30);
        self.receipts.drain(..old);
    }

    fn settle(&mut self) {
        if self.receipts.is_empty() {
            return;
        }
        let at = self.random.below(self.receipts.len() as u64) as usize;
        let (queue, first) = self.receipts[at];
        let more = self.receipts.iter().filter(|(other, _)| *other == queue).map(|(_, receipt)| *receipt);
        let receipts: Vec<Receipt> = [first].into_iter().chain(more.take(2)).collect();
        let ms = self.random.below(1500) as u32;
        let items = receipts.iter().map(|receipt| (*receipt, ms)).collect();
        let id = QueueId(queue);
        let which = self.random.below(6);
        let rejected = receipts.iter().map(|receipt| (*receipt, b"no".as_slice())).collect();
        let command = match which {
            0..3 => Command::Ack { queue: id, receipts: receipts.clone() },
            3 => Command::Extend { queue: id, items },
            5 => Command::Reject { queue: id, items: rejected },
            _ => Command::Release { queue: id, items },
        };
        let expected = receipts.iter().map(|receipt| self.model.settle(queue, receipt, which, ms));
        let expected = expected.collect();
        assert_eq!(self.rig.apply(command), Reply::Settled { outcomes: expected });
    }

    fn expire(&mut self) {
        self.model.expire();
        let reply = self.rig.expire();
        assert!(matches!(reply, Reply::Expired { more: false, .. }), "{reply:?}");
    }

    /// Carries the first items of an outbox over; sometimes the confirmation is lost and all comes again.
    fn transfer(&mut self) {
        let Some(queue) = self.rig.partition.outbox_queues().next() else { return };
        let (target, waiting) = self.rig.partition.outbox_targets(queue)[0];
        let limit = 1 + self.random.below(3) as usize;
        let items = self.rig.partition.outbox(queue, target, limit);
        assert_eq!(
            items.iter().map(|item| item.number).collect::<Vec<_>>(),
            self.model.outbox(queue.0, target.0, limit)
        );
        assert_eq!(waiting, self.model.outbox(queue.0, target.0, usize::MAX).len() as u64);
        let group = [self.random.below(GROUPS.into()) as u8];
        let content = |item: &OutboxItem| Content {
            body: b"copy",
            group: Some(&group[..]),
            origin: Some(Origin {
                queue,
                partition: 9,
                sequence: item.key.sequence,
                receive_count: item.receive_count,
            }),
            ..Content::default()
        };
        let message = |item: &OutboxItem| NewMessage { content: content(item), ..NewMessage::default() };
        let messages =
            items.iter().map(|item| TransferMessage { number: item.number, message: message(item) });
        let messages: Vec<_> = messages.collect();
        let source = Source { partition: 9, queue };
        let len = length(messages[0].message.content);
        let first_sequence = self.model.next_sequence();
        let numbers: Vec<u64> = messages.iter().map(|item| item.number).collect();
        let reply = self.rig.apply(Command::Transfer { queue: target, source, messages });
        let (through_number, refused) =
            self.model.arrive(queue.0, target.0, &numbers, group[0], len, first_sequence);
        assert_eq!(reply, Reply::Transferred { through_number, refused });
        if !self.random.one_in(3) {
            self.rig.apply(Command::TransferDone { queue, target, through_number });
            self.model.items.retain(|item| {
                !(item.state == State::Dead
                    && (item.queue, item.target) == (queue.0, target.0)
                    && item.number <= through_number)
            });
            self.model.refresh_turns(queue.0);
        }
    }

    fn redrive(&mut self) {
        let queue = QueueId(DEAD);
        let id = self.random.next();
        let started = self.rig.apply(Command::RedriveStart { queue, target: None, rate_per_s: 0, id });
        if started == Reply::Done {
            self.model.redrive_left = self.model.counters(DEAD).ready;
        } else {
            assert_eq!(started, Reply::Refused { reason: Refusal::RedriveRunning });
        }
        let items_max = 1 + self.random.below(8) as u32;
        let reply = self.rig.apply(Command::RedriveStep { queue, items_max });
        let Reply::RedriveStepped { moved, progress } = reply else { panic!("{reply:?}") };
        assert_eq!(moved, self.model.redrive(items_max));
        let over = self.model.redrive_left == 0 || self.model.counters(DEAD).ready == 0;
        assert_eq!(progress.state == RedriveState::Complete, over);
    }

    fn purge(&mut self) {
        let queue = self.queue();
        assert_eq!(self.rig.apply(Command::Purge { queue: QueueId(queue) }), Reply::Done);
        self.model.items.retain(|item| item.queue != queue || item.state == State::Dead);
        let dead = self.model.items.iter_mut().filter(|item| item.queue == queue);
        dead.for_each(|item| item.purged = true);
        let state = self.model.queues.get_mut(&queue).unwrap();
        (state.tenants, state.prefers_ungrouped) = (BTreeMap::new(), false);
        self.model.refresh_turns(queue);
    }

    fn delete(&mut self) {
        let queue = self.queue();
        let revision = self.rig.partition.revision_min() + 1;
        assert_eq!(self.rig.apply(Command::Delete { queue: QueueId(queue), revision }), Reply::Done);
        self.model.items.retain(|item| item.queue != queue);
        self.model.queues.remove(&queue);
        self.configure(queue);
    }

    fn give_up(&mut self) {
        let Some(queue) = self.rig.partition.outbox_queues().next() else { return };
        let (target, _) = self.rig.partition.outbox_targets(queue)[0];
        let items_max = 1 + self.random.below(3) as u32;
        self.rig.apply(Command::TransferReturn { queue, target, items_max });
        self.model.give_up(queue.0, target.0, items_max as usize);
    }

    /// Goes on with the copy that a snapshot makes.
    fn snapshot(&mut self) {
        let snapshot = self.rig.partition.snapshot();
        let copy = Partition::restore(&snapshot).unwrap();
        assert_eq!(copy.state_hash(), self.rig.partition.state_hash());
        copy.check_invariants();
        self.rig.partition = copy;
    }

    fn compare(&self) {
        let partition = &self.rig.partition;
        for queue in QUEUES {
            let shard = partition.shard(QueueId(queue)).unwrap();
            assert_eq!(shard.counters, self.model.counters(queue), "counters of queue {queue}");
            assert_eq!(partition.has_ready(QueueId(queue)), self.model.has_ready(queue), "queue {queue}");
        }
        let deadline = partition.next_deadline().unwrap_or_default();
        if !deadline.garbage {
            assert_eq!(deadline.lease_log_ms, self.model.first_ms(State::Leased));
            assert_eq!(deadline.delay_log_ms, self.model.first_ms(State::Delayed));
            let live: u64 = partition.live_contents().map(|(_, bytes)| bytes).sum();
            assert_eq!(live, self.model.items.iter().map(|item| item.len).sum::<u64>());
        }
        for item in self.model.items.iter().take(5) {
            let found = partition.find(item.sequence).unwrap();
            assert_eq!((found.state, found.receive_count), (item.state, item.receives));
        }
    }

    /// Another replica, that applies the same log from the start, is equal to the bit (I12, I13).
    fn replay(&self) {
        let mut replica = Partition::new();
        for (log_index, payload) in &self.rig.log {
            replica.apply(*log_index, payload, History::Skip).unwrap();
        }
        assert_eq!(replica.state_hash(), self.rig.partition.state_hash());
    }

    /// Everything that was not dropped can be drained in the end: nothing is stuck (I18).
    fn drain(&mut self) {
        for _ in 0..400 {
            self.rig.pass(2_000);
            (self.model.now_ms, self.model.wall_ms) = (self.rig.now_ms, self.rig.wall_ms);
            self.expire();
            self.transfer();
            for queue in QUEUES {
                let deliveries = self.rig.receive(queue, 9, 1_000);
                let receipts = deliveries.iter().map(|delivery| delivery.receipt).collect();
                self.model.receive(queue, 9, 1_000);
                self.rig.apply(Command::Ack { queue: QueueId(queue), receipts });
                for delivery in deliveries {
                    assert_eq!(self.model.settle(queue, &delivery.receipt, 0, 0), Outcome::Done);
                }
            }
            self.compare();
            if self.model.items.is_empty() {
                return;
            }
        }
        panic!("not drained: {:?}", self.model.items);
    }
}

fn length(content: Content<'_>) -> u64 {
    let mut encoded = Vec::new();
    content.encode_into(&mut encoded);
    encoded.len() as u64
}

#[test]
fn random_logs_agree_with_the_model() {
    for_seeds("model", 60, |seed| {
        let mut twin = Twin::new(seed);
        (0..500).for_each(|_| twin.step());
        twin.replay();
        twin.drain();
        twin.replay();
    });
}
