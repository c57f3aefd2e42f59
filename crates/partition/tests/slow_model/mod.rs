//! The slow model: flat vectors, scanned for everything.

use std::collections::{BTreeMap, BTreeSet};

use leasehold_partition::*;

use crate::DEAD;

#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub sequence: u64,
    pub queue: u64,
    /// `NO_GROUP` on a standard queue for those without one.
    pub group: u8,
    pub state: State,
    /// 0 fresh, 1 returned, 2 among the suspects.
    pub lane: u8,
    /// When it entered its place: orders equal places.
    pub stamp: u64,
    pub deadline_ms: u64,
    pub receives: u32,
    /// Receives that do not count for the limit.
    pub excused: u32,
    /// With how many it may be together as a suspect; 0 when it is none.
    pub company: u64,
    /// The name of the consumer with its latest lease, when it matters.
    pub holder: Option<usize>,
    pub grant: u64,
    pub granted_ms: u64,
    pub sent_wall_ms: u64,
    pub expiry_wall_ms: u64,
    /// When it got its time to live: orders equal ends.
    pub expiry_stamp: u64,
    pub overdue: bool,
    pub purged: bool,
    pub number: u64,
    pub target: u64,
    pub origin: Option<u64>,
    pub len: u64,
}

pub const GROUPS: u8 = 4;
pub const NO_GROUP: u8 = GROUPS;
/// Names of consumers; which one receives follows from the lease it asks for.
pub const CONSUMERS: usize = 6;

/// Where a tenant of a standard queue stands, `NO_GROUP` for all messages without one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tenant {
    pub prefers_returned: bool,
    /// The leases under which it waits for its turn, and since when; only while it has something ready.
    pub turn: Option<(u64, u64)>,
}

pub const NEW_TENANT: Tenant = Tenant { prefers_returned: true, turn: None };

/// What a retry budget knows, counted the slow way.
#[derive(Clone, Debug, Default)]
pub struct Damped {
    pub budget: Option<RetryBudget>,
    /// Thousandths of a redelivery.
    pub tokens: u64,
    pub counted_ms: u64,
    /// The messages that are counted as failed since counts were halved.
    pub failed_now: BTreeSet<u64>,
    pub failed: u64,
    pub acked: u64,
    pub storm: bool,
    /// Whether there ever was a budget.
    pub knows_messages: bool,
}

impl Damped {
    /// Millisecond by millisecond.
    pub fn count_time(&mut self, now_ms: u64) {
        let floor = self.budget.map_or(0, |budget| u64::from(budget.floor_per_s));
        let saved = floor * 10 * 1_000;
        while self.counted_ms < now_ms && self.budget.is_some() {
            self.counted_ms += 1;
            if self.counted_ms.is_multiple_of(1_000) && self.tokens > saved {
                self.tokens -= (self.tokens - saved).div_ceil(8);
            }
            if self.tokens < saved {
                self.tokens = saved.min(self.tokens + floor);
            }
        }
        self.counted_ms = now_ms;
    }

    fn judge(&mut self) {
        if self.failed + self.acked >= 64 {
            (self.failed, self.acked) = (self.failed / 2, self.acked / 2);
            self.failed_now.clear();
        }
        let begins = !self.storm && self.failed >= 16 && self.failed >= self.acked;
        let is_over = self.storm && self.failed * 3 <= self.acked;
        if begins {
            self.tokens = self.tokens.min(1_000);
        }
        self.storm = (self.storm || begins) && !is_over;
    }

    pub fn forget(&mut self) {
        (self.failed, self.acked, self.storm) = (0, 0, false);
        self.failed_now.clear();
    }
}

/// The same lot as the partition draws: it is part of what replicas agree on.
fn lot(sequence: u64, receives: u32) -> u64 {
    let seed = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(receives);
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) % 5_000
}

#[derive(Clone, Debug)]
pub struct Queue {
    pub isolates: bool,
    /// With how many leases each consumer went that was not heard of since.
    pub gone: BTreeMap<usize, u64>,
    pub damped: Damped,
    pub settings: Settings,
    pub tenants: BTreeMap<u8, Tenant>,
    pub prefers_ungrouped: bool,
    pub turns: Vec<u8>,
    pub arrived: BTreeMap<u64, u64>,
    pub dedup: Vec<(u8, u64, u64)>,
}

#[derive(Default)]
pub struct Model {
    pub now_ms: u64,
    pub wall_ms: u64,
    pub stamp: u64,
    pub grant: u64,
    pub number: u64,
    pub last_sequence: u64,
    /// Who receives at this moment, where it is noted.
    pub holder: Option<usize>,
    pub redrive_left: u64,
    pub queues: BTreeMap<u64, Queue>,
    pub items: Vec<Item>,
}

impl Model {
    pub fn stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    pub fn configure(&mut self, queue: u64, settings: Settings) {
        let new = Queue {
            isolates: false,
            gone: BTreeMap::new(),
            damped: Damped { counted_ms: self.now_ms, ..Damped::default() },
            settings,
            tenants: BTreeMap::new(),
            prefers_ungrouped: false,
            turns: Vec::new(),
            arrived: BTreeMap::new(),
            dedup: Vec::new(),
        };
        self.queues.entry(queue).or_insert(new).settings = settings;
    }

    pub fn set_budget(&mut self, queue: u64, budget: Option<RetryBudget>) {
        let now_ms = self.now_ms;
        let damped = &mut self.queues.get_mut(&queue).unwrap().damped;
        damped.count_time(now_ms);
        if budget.is_none() || damped.budget.is_none() {
            damped.tokens = 0;
            damped.forget();
        }
        damped.budget = budget;
        damped.knows_messages |= budget.is_some();
    }

    /// What a queue's budget knows now, if it has one.
    pub fn damped(&mut self, queue: u64) -> Option<&mut Damped> {
        let now_ms = self.now_ms;
        let damped = &mut self.queues.get_mut(&queue).unwrap().damped;
        damped.count_time(now_ms);
        damped.budget.is_some().then_some(damped)
    }

    pub fn is_held(&self, queue: u64) -> u64 {
        self.items.iter().filter(|item| item.queue == queue && item.state == State::Held).count() as u64
    }

    /// A message that was granted before, or a budget that has nothing for it.
    pub fn come_back(&mut self, at: usize) {
        let Item { queue, sequence, receives, .. } = self.items[at];
        let held = self.is_held(queue);
        match self.damped(queue) {
            Some(damped) if damped.tokens / 1_000 <= held => {
                self.until(at, State::Held, lot(sequence, receives));
                self.items[at].lane = 1;
            }
            Some(damped) => {
                damped.tokens -= 1_000;
                self.ready(at, 1);
            }
            None => self.ready(at, 1),
        }
    }

    /// Lets go what is held and may be tried.
    pub fn let_go(&mut self, queue: u64) {
        let held = |item: &Item| item.queue == queue && item.state == State::Held;
        let now_ms = self.now_ms;
        loop {
            let all = (0..self.items.len()).filter(|at| held(&self.items[*at]));
            let Some(first) = all.min_by_key(|at| (self.items[*at].deadline_ms, self.items[*at].stamp))
            else {
                return;
            };
            let is_due = self.items[first].deadline_ms <= now_ms;
            if let Some(damped) = self.damped(queue) {
                if !is_due || damped.tokens < 1_000 {
                    return;
                }
                damped.tokens -= 1_000;
            }
            self.ready(first, 1);
            self.refresh_turns(queue);
        }
    }

    pub fn fifo(&self, queue: u64) -> bool {
        self.queues[&queue].settings.kind == Kind::Fifo
    }

    pub fn lost(&mut self, queue: u64, consumer: usize) {
        let of = |item: &&Item| item.queue == queue && item.holder == Some(consumer);
        let leases = self.items.iter().filter(of).filter(|item| item.state == State::Leased).count() as u64;
        let state = self.queues.get_mut(&queue).unwrap();
        if leases > 0 {
            state.gone.insert(consumer, leases);
        }
    }

    pub fn heard(&mut self, queue: u64, consumer: Option<usize>) {
        let state = self.queues.get_mut(&queue).unwrap();
        consumer.map(|consumer| state.gone.remove(&consumer));
    }

    pub fn on_trial(&self, queue: u64) -> u64 {
        let tried = |item: &&Item| item.queue == queue && item.state == State::Leased && item.company > 0;
        self.items.iter().filter(tried).count() as u64
    }

    /// The suspect that has waited longest, if one may be granted.
    pub fn suspect(&self, queue: u64) -> Option<usize> {
        if self.queues[&queue].isolates && self.on_trial(queue) > 0 {
            return None;
        }
        let waits = |item: &Item| item.queue == queue && item.state == State::Ready && item.lane == 2;
        let all = (0..self.items.len()).filter(|at| waits(&self.items[*at]));
        all.min_by_key(|at| self.items[*at].stamp)
    }

    /// The next suspects, as many as may be together.
    pub fn try_suspects(&mut self, queue: u64, max: u32, lease_ms: u64) -> Vec<(u64, u32, u64)> {
        let cap = u64::from(self.queues[&queue].settings.in_flight_max);
        let Some(first) = self.suspect(queue) else { return Vec::new() };
        let together = self.items[first].company;
        let (mut given, mut tried) = (Vec::new(), Vec::new());
        while let Some(at) = self.suspect(queue).filter(|at| self.items[*at].company == together)
            && (given.len() as u64) < together.min(u64::from(max))
            && self.leased(queue) < cap
        {
            given.push(self.give(at, lease_ms));
            tried.push(at);
            self.refresh_turns(queue);
        }
        let company = if self.queues[&queue].isolates { tried.len() as u64 } else { 0 };
        tried.into_iter().for_each(|at| self.items[at].company = company);
        given
    }

    /// A lease ended with its consumer.
    pub fn blame(&mut self, at: usize, with: u64) {
        let Item { queue, overdue, company, .. } = self.items[at];
        let company = if company == 0 { with } else { company };
        self.items[at].excused += u32::from(company > 1);
        let storm = self.queues[&queue].damped.storm;
        match self.limit_met(at).filter(|_| overdue || !storm) {
            Some(dead) => self.kill(at, dead),
            None if overdue => drop(self.items.remove(at)),
            None => {
                self.ready(at, 2);
                self.items[at].company = company.div_ceil(2);
            }
        }
        self.refresh_turns(queue);
    }

    /// A FIFO group's members in order.
    pub fn group(&self, queue: u64, group: u8) -> Vec<usize> {
        let of = |item: &Item| item.queue == queue && item.group == group && item.state != State::Dead;
        let mut found: Vec<usize> = (0..self.items.len()).filter(|at| of(&self.items[*at])).collect();
        found.sort_by_key(|at| self.items[*at].sequence);
        found
    }

    pub fn count(&self, queue: u64, group: u8, of: impl Fn(&Item) -> bool) -> u64 {
        let counted = |item: &&Item| item.queue == queue && item.group == group && !item.purged && of(item);
        self.items.iter().filter(counted).count() as u64
    }

    /// Brings the places of a standard queue's tenants up to date; one without any message, dead ones included, is forgotten.
    pub fn refresh_tenants(&mut self, queue: u64) {
        for group in 0..GROUPS {
            let stamp = self.stamp();
            let members = self.count(queue, group, |_| true);
            let ready = self.count(queue, group, |item| item.state == State::Ready && item.lane != 2);
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

    pub fn refresh_turns(&mut self, queue: u64) {
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

    pub fn ready(&mut self, at: usize, lane: u8) {
        let stamp = self.stamp();
        let item = &mut self.items[at];
        (item.state, item.lane, item.stamp) = (State::Ready, lane, stamp);
    }

    pub fn until(&mut self, at: usize, state: State, ms: u64) {
        let stamp = self.stamp();
        let deadline_ms = self.now_ms + ms;
        let item = &mut self.items[at];
        (item.state, item.deadline_ms, item.stamp) = (state, deadline_ms, stamp);
    }

    pub fn length(&self, queue: u64) -> u64 {
        self.items.iter().filter(|item| item.queue == queue && item.state != State::Dead).count() as u64
    }

    pub fn full(&self, queue: u64) -> bool {
        let max = self.queues[&queue].settings.length_max;
        max > 0 && self.length(queue) >= max
    }

    pub fn add(
        &mut self,
        queue: u64,
        group: u8,
        len: u64,
        sequence: u64,
        delay_ms: u64,
        expiry_ms: Option<u64>,
    ) {
        let expiry_wall_ms = expiry_ms.map_or(0, |ms| self.wall_ms + ms);
        self.last_sequence = sequence;
        self.stamp();
        self.items.push(Item {
            sequence,
            queue,
            group,
            state: State::Ready,
            lane: 0,
            stamp: 0,
            deadline_ms: 0,
            receives: 0,
            excused: 0,
            company: 0,
            holder: None,
            grant: 0,
            granted_ms: 0,
            sent_wall_ms: self.wall_ms,
            expiry_wall_ms,
            expiry_stamp: self.stamp,
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
    pub fn first_of(&self, queue: u64, group: u8, prefers_lane: u8) -> Option<usize> {
        let in_lane = |item: &Item| item.state == State::Ready && item.lane != 2;
        let ready = |item: &Item| (item.queue, item.group) == (queue, group) && in_lane(item);
        let all = (0..self.items.len()).filter(|at| ready(&self.items[*at]));
        all.min_by_key(|at| (self.items[*at].lane != prefers_lane, self.items[*at].stamp))
    }

    /// The tenant whose turn it is: the fewest leases, then the longest wait.
    pub fn tenant(&self, queue: u64) -> Option<(u64, u8)> {
        let tenants = self.queues[&queue].tenants.iter();
        let first = tenants.filter_map(|(group, tenant)| Some((tenant.turn?, *group))).min();
        first.map(|((leases, _), group)| (leases, group))
    }

    /// The message that the next grant of a standard queue takes.
    pub fn first(&mut self, queue: u64) -> Option<usize> {
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
    pub fn taken(&mut self, at: usize) {
        let Item { queue, group, lane, .. } = self.items[at];
        let state = self.queues.get_mut(&queue).unwrap();
        state.prefers_ungrouped = group != NO_GROUP;
        state.tenants.entry(group).or_insert(NEW_TENANT).prefers_returned = lane == 0;
        self.refresh_turns(queue);
    }

    pub fn leased(&self, queue: u64) -> u64 {
        self.items.iter().filter(|item| item.queue == queue && item.state == State::Leased).count() as u64
    }

    pub fn give(&mut self, at: usize, lease_ms: u64) -> (u64, u32, u64) {
        self.grant += 1;
        let (grant, now_ms) = (self.grant, self.now_ms);
        let item = &mut self.items[at];
        item.grant = grant;
        item.company = 0;
        item.granted_ms = now_ms;
        item.receives += 1;
        item.holder = self.holder;
        let (queue, is_first) = (item.queue, item.receives == 1);
        if let Some(damped) = self.damped(queue).filter(|damped| is_first && !damped.storm) {
            damped.tokens += u64::from(damped.budget.unwrap().percent) * 10;
        }
        self.until(at, State::Leased, lease_ms);
        let item = &self.items[at];
        (item.sequence, item.receives, item.deadline_ms)
    }

    /// `None` stands for `OverLimit`.
    pub fn receive(&mut self, queue: u64, max: u32, lease_ms: u64) -> Option<Vec<(u64, u32, u64)>> {
        let cap = u64::from(self.queues[&queue].settings.in_flight_max);
        let consumer = lease_ms as usize % CONSUMERS;
        self.heard(queue, Some(consumer));
        self.holder = self.queues[&queue].isolates.then_some(consumer);
        if !self.fifo(queue) && self.leased(queue) >= cap {
            return None;
        }
        let mut taken = self.try_suspects(queue, max, lease_ms);
        if !taken.is_empty() {
            return Some(taken);
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

    pub fn judge(&self, queue: u64, receipt: &Receipt) -> Result<usize, Outcome> {
        match self.items.iter().position(|item| item.sequence == receipt.sequence) {
            Some(at) if self.items[at].queue != queue => Err(Outcome::Invalid),
            Some(at) if self.items[at].state == State::Leased && self.items[at].grant == receipt.grant => {
                Ok(at)
            }
            Some(_) => Err(Outcome::Stale),
            None => Err(Outcome::Gone),
        }
    }

    pub fn kill(&mut self, at: usize, target: u64) {
        self.number += 1;
        let number = self.number;
        let item = &mut self.items[at];
        (item.state, item.number, item.target, item.overdue) = (State::Dead, number, target, false);
    }

    /// Where a message goes whose receive limit is met.
    pub fn limit_met(&self, at: usize) -> Option<u64> {
        let dead = self.queues[&self.items[at].queue].settings.dead_letter;
        let counted = self.items[at].receives - self.items[at].excused;
        dead.filter(|dead| counted >= dead.receives_max).map(|dead| dead.queue.0)
    }

    pub fn end_lease(&mut self, at: usize, delay_ms: u64) {
        let Item { queue, sequence, overdue, .. } = self.items[at];
        let mut storm = false;
        if let Some(damped) = self.damped(queue) {
            if damped.failed_now.insert(sequence) {
                damped.failed += 1;
                damped.judge();
            }
            storm = damped.storm;
        }
        self.items[at].company = 0;
        match self.limit_met(at).filter(|_| overdue || !storm) {
            Some(dead) => self.kill(at, dead),
            None if overdue => drop(self.items.remove(at)),
            None if delay_ms > 0 => {
                self.until(at, State::Delayed, delay_ms);
                self.items[at].lane = 1;
            }
            None => self.come_back(at),
        }
        self.refresh_turns(queue);
    }

    /// Nobody has worked on it.
    pub fn give_back(&mut self, at: usize) {
        let Item { queue, overdue, .. } = self.items[at];
        self.items[at].excused += 1;
        let storm = self.queues[&queue].damped.storm;
        match self.limit_met(at).filter(|_| overdue || !storm) {
            Some(dead) => self.kill(at, dead),
            None if overdue => drop(self.items.remove(at)),
            None => self.ready(at, if self.items[at].company > 0 { 2 } else { 1 }),
        }
        self.refresh_turns(queue);
    }

    /// Its consumer did not want it yet.
    pub fn postpone(&mut self, at: usize, delay_ms: u64) {
        let Item { queue, overdue, .. } = self.items[at];
        (self.items[at].excused, self.items[at].company) = (self.items[at].excused + 1, 0);
        let storm = self.queues[&queue].damped.storm;
        match self.limit_met(at).filter(|_| overdue || !storm) {
            Some(dead) => self.kill(at, dead),
            None if overdue => drop(self.items.remove(at)),
            None if delay_ms > 0 => {
                self.until(at, State::Delayed, delay_ms);
                self.items[at].lane = 3;
            }
            None => self.ready(at, 1),
        }
        self.refresh_turns(queue);
    }

    pub fn due(&self, state: State) -> Option<usize> {
        let due = |item: &Item| item.state == state && item.deadline_ms <= self.now_ms;
        let all = (0..self.items.len()).filter(|at| due(&self.items[*at]));
        all.min_by_key(|at| (self.items[*at].deadline_ms, self.items[*at].stamp))
    }

    pub fn expire(&mut self) {
        while let Some(at) = self.due(State::Leased) {
            let Item { queue, holder, .. } = self.items[at];
            let state = &self.queues[&queue];
            let gone = holder.filter(|_| state.isolates).and_then(|holder| state.gone.get(&holder).copied());
            match gone {
                Some(with) => self.blame(at, with),
                None => self.end_lease(at, 0),
            }
        }
        while let Some(at) = self.due(State::Delayed) {
            let (queue, lane) = (self.items[at].queue, self.items[at].lane);
            match lane {
                0 => self.ready(at, lane),
                3 => self.ready(at, 1),
                _ => self.come_back(at),
            }
            self.refresh_turns(queue);
        }
        let queues: Vec<u64> = self.queues.keys().copied().collect();
        queues.into_iter().for_each(|queue| self.let_go(queue));
        let mut over = Vec::new();
        for item in &mut self.items {
            let retention_ms = self.queues[&item.queue].settings.retention_ms;
            let ttl_over = item.expiry_wall_ms > 0 && item.expiry_wall_ms <= self.wall_ms;
            if item.state == State::Dead || !(ttl_over || item.sent_wall_ms + retention_ms <= self.wall_ms) {
                continue;
            }
            match item.state {
                State::Leased => item.overdue = true,
                _ if ttl_over => over.push(((0, item.expiry_wall_ms, item.expiry_stamp), item.sequence)),
                _ => over.push(((1, item.sent_wall_ms, item.queue), item.sequence)),
            }
        }
        over.sort();
        for (_, sequence) in over {
            let at = self.items.iter().position(|item| item.sequence == sequence).unwrap();
            let queue = self.items[at].queue;
            let knew_a_budget = self.queues[&queue].damped.knows_messages;
            match self.limit_met(at).filter(|_| knew_a_budget) {
                Some(dead) => self.kill(at, dead),
                None => drop(self.items.remove(at)),
            }
            self.refresh_turns(queue);
        }
    }

    pub fn duplicate(&self, queue: u64, id: Option<u8>) -> Option<u64> {
        let open = |known: &&(u8, u64, u64)| Some(known.0) == id && known.1 > self.now_ms;
        self.queues[&queue].dedup.iter().find(open).map(|(_, _, sequence)| *sequence)
    }

    pub fn remember(&mut self, queue: u64, id: Option<u8>, sequence: u64) {
        let queue = self.queues.get_mut(&queue).unwrap();
        queue.dedup.retain(|known| Some(known.0) != id);
        let until_ms = self.now_ms + queue.settings.dedup_window_ms;
        queue.dedup.extend(id.map(|id| (id, until_ms, sequence)));
    }

    pub fn settle(&mut self, queue: u64, receipt: &Receipt, which: u64, ms: u32) -> Outcome {
        let at = match self.judge(queue, receipt) {
            Ok(at) => at,
            Err(outcome) => return outcome,
        };
        if which != 6 {
            self.heard(queue, self.items[at].holder);
        }
        match which {
            0..3 => {
                let Item { sequence, receives, .. } = self.items.remove(at);
                if let Some(damped) = self.damped(queue) {
                    damped.tokens += if receives > 1 { 1_500 } else { 0 };
                    damped.failed -= u64::from(damped.failed_now.contains(&sequence));
                    damped.acked += 1;
                    damped.judge();
                }
                self.refresh_turns(queue);
            }
            6 => self.give_back(at),
            7 => self.postpone(at, u64::from(ms)),
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
    pub fn outbox(&self, queue: u64, target: u64, limit: usize) -> Vec<u64> {
        let waits = |item: &&Item| item.state == State::Dead && (item.queue, item.target) == (queue, target);
        let mut numbers: Vec<u64> = self.items.iter().filter(waits).map(|item| item.number).collect();
        numbers.sort();
        numbers.truncate(limit);
        numbers
    }

    pub fn arrive(
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

    pub fn redrive(&mut self, items_max: u32) -> u32 {
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

    pub fn give_up(&mut self, queue: u64, target: u64, items_max: usize) {
        for number in self.outbox(queue, target, usize::MAX).into_iter().rev().take(items_max) {
            let found = |item: &Item| item.state == State::Dead && item.number == number;
            let at = self.items.iter().position(found).unwrap();
            if self.items[at].purged {
                self.items.remove(at);
                continue;
            }
            let expiry_stamp = self.stamp();
            let retained_to_ms = self.items[at].sent_wall_ms + self.queues[&queue].settings.retention_ms;
            let item = &mut self.items[at];
            item.expiry_stamp = expiry_stamp;
            let ends = [item.expiry_wall_ms, retained_to_ms];
            item.expiry_wall_ms = ends.into_iter().filter(|end| *end > 0).min().unwrap();
            // What its outbox holds was redriven.
            if queue == DEAD {
                self.items[at].group = NO_GROUP;
                self.ready(at, 0);
            } else {
                self.ready(at, 1);
            }
            self.refresh_turns(queue);
        }
    }

    pub fn first_ms(&self, state: State) -> Option<u64> {
        self.items.iter().filter(|item| item.state == state).map(|item| item.deadline_ms).min()
    }

    pub fn next_sequence(&self) -> u64 {
        self.last_sequence + 1
    }

    pub fn counters(&self, queue: u64) -> Counters {
        let mut counters = Counters::default();
        for item in self.items.iter().filter(|item| item.queue == queue) {
            match item.state {
                State::Ready => counters.ready += 1,
                State::Leased => counters.leased += 1,
                State::Delayed | State::Held => counters.delayed += 1,
                State::Dead => counters.dead += 1,
            }
            match item.state {
                State::Dead => counters.dead_bytes += item.len,
                _ => counters.bytes += item.len,
            }
        }
        counters
    }

    pub fn has_ready(&self, queue: u64) -> bool {
        let cap = u64::from(self.queues[&queue].settings.in_flight_max);
        let something = if self.fifo(queue) {
            !self.queues[&queue].turns.is_empty()
        } else {
            let in_lane = |item: &&Item| item.queue == queue && item.state == State::Ready && item.lane != 2;
            self.items.iter().any(|item| in_lane(&item)) || self.suspect(queue).is_some()
        };
        something && self.leased(queue) < cap
    }
}
