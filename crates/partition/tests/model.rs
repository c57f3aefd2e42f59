//! Random logs against a slow model that has none of the partition's structures: flat vectors, scanned for everything.
//!
//! Sources: I4 (one lease), I7 (exact counts), I8 (dead letters), I9 (groups), I10 (deduplication), I11 (delays), I12 and
//! I13 (snapshot and tail equal a replay), I15 (retention), I16 (counters), I22 (tenants) of docs/guarantees.md.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;
mod slow_model;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use leasehold_partition::*;
use rig::{Random, Rig, for_seeds};
use slow_model::*;

/// What a message is like that is about to be sent.
struct Draft {
    body: Vec<u8>,
    group: Option<[u8; 1]>,
    dedup: Option<[u8; 1]>,
    delay_ms: Option<u32>,
    expiry_ms: Option<u64>,
}

impl Draft {
    fn message(&self) -> NewMessage<'_> {
        let (group, dedup_id) =
            (self.group.as_ref().map(|id| &id[..]), self.dedup.as_ref().map(|id| &id[..]));
        let content = Content { body: &self.body, group, dedup_id, ..Content::default() };
        NewMessage { delay_ms: self.delay_ms, expiry_ms: self.expiry_ms, content }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Likeness {
    /// Mostly without a group, a delay and a time to live.
    Plain,
    Any,
}

/// Drives the partition and the model with the same choices.
struct Twin {
    rig: Rig,
    model: Model,
    random: Random,
    receipts: Vec<(u64, Receipt)>,
    /// The queue that most steps are about, if one is.
    focus: Option<u64>,
}

const STANDARD: u64 = 1;
const FIFO: u64 = 2;
pub const DEAD: u64 = 3;
const DAMPED: u64 = 5;
const QUEUES: [u64; 5] = [STANDARD, FIFO, DEAD, 4, DAMPED];
const BUDGET: RetryBudget = RetryBudget { percent: 40, floor_per_s: 1 };

fn settings_of(queue: u64) -> Settings {
    let limit = |receives_max| Some(DeadLetter { queue: QueueId(DEAD), receives_max });
    let settings = Settings { retention_ms: 60_000, dedup_window_ms: 3_000, ..Settings::default() };
    match queue {
        STANDARD => Settings { dead_letter: limit(3), in_flight_max: 12, ..settings },
        FIFO => Settings { kind: Kind::Fifo, dead_letter: limit(2), in_flight_max: 9, ..settings },
        DEAD => Settings { length_max: 40, ..settings },
        DAMPED => Settings { dead_letter: limit(2), ..settings },
        _ => Settings { kind: Kind::Fifo, delay_ms: 300, length_max: 30, ..settings },
    }
}

impl Twin {
    fn new(seed: u64, focus: Option<u64>) -> Self {
        let (rig, model) = (Rig::new(), Model::default());
        let mut twin = Self { rig, model, random: Random::new(seed), receipts: Vec::new(), focus };
        (twin.model.now_ms, twin.model.wall_ms) = (twin.rig.now_ms, twin.rig.wall_ms);
        QUEUES.iter().for_each(|queue| twin.configure(*queue));
        twin
    }

    fn configure(&mut self, queue: u64) {
        self.rig.configure(queue, settings_of(queue));
        self.model.configure(queue, settings_of(queue));
        if queue == DAMPED {
            self.set_budget(Some(BUDGET));
            self.set_isolation(true);
        }
    }

    fn set_isolation(&mut self, isolates: bool) {
        let revision = self.rig.partition.revision_min() + 1;
        let isolation = if isolates { Isolation::On } else { Isolation::Off };
        let command = Command::SetIsolation { queue: QueueId(DAMPED), isolation, revision };
        assert_eq!(self.rig.apply(command), Reply::Done);
        self.model.queues.get_mut(&DAMPED).unwrap().isolates = isolates;
    }

    fn lose(&mut self) {
        let which = self.random.below(CONSUMERS as u64) as usize;
        let command = Command::Lost { queue: QueueId(DAMPED), consumer: rig::CONSUMERS[which] };
        assert_eq!(self.rig.apply(command), Reply::Done);
        self.model.lost(DAMPED, which);
    }

    fn set_budget(&mut self, budget: Option<RetryBudget>) {
        let revision = self.rig.partition.revision_min() + 1;
        let command = Command::SetRetryBudget { queue: QueueId(DAMPED), budget, revision };
        assert_eq!(self.rig.apply(command), Reply::Done);
        self.model.set_budget(DAMPED, budget);
    }

    fn queue(&mut self) -> u64 {
        let random = &mut self.random;
        match self.focus {
            Some(focus) if !random.one_in(5) => focus,
            _ => QUEUES[random.below(QUEUES.len() as u64) as usize],
        }
    }

    fn step(&mut self) {
        let ms = [0, 1, 40, 400, 4_000][self.random.below(5) as usize];
        self.rig.pass(ms);
        (self.model.now_ms, self.model.wall_ms) = (self.rig.now_ms, self.rig.wall_ms);
        match self.random.below(100) {
            0..30 => self.send(),
            30..55 => self.receive(),
            55..75 => self.settle(),
            75..79 => self.lose(),
            79..85 => self.expire(),
            85..92 => self.transfer(),
            92..94 => self.redrive(),
            94..95 => self.purge(),
            95..96 => self.delete(),
            96..97 => self.give_up(),
            97..98 => {
                let other = RetryBudget { percent: 1_000, floor_per_s: 9 };
                let budget = [None, Some(other), Some(BUDGET), Some(BUDGET)][self.random.below(4) as usize];
                self.set_budget(budget);
            }
            98..99 => {
                let isolates = !self.random.one_in(4);
                self.set_isolation(isolates);
            }
            _ => self.snapshot(),
        }
        self.compare();
    }

    fn draft(&mut self, queue: u64, likeness: Likeness) -> Draft {
        let fifo = self.model.fifo(queue);
        let random = &mut self.random;
        let body = vec![7; random.below(20) as usize];
        let (group, dedup) = (random.below(GROUPS.into()) as u8, random.below(12) as u8);
        let is_plain = likeness == Likeness::Plain && !random.one_in(8);
        Draft {
            body,
            group: (fifo || !is_plain && !random.one_in(3)).then_some([group]),
            dedup: random.one_in(3).then_some([dedup]),
            delay_ms: (!fifo && !is_plain && random.one_in(4)).then(|| 1 + random.below(2000) as u32),
            expiry_ms: (!is_plain && random.one_in(6)).then(|| 1 + random.below(5_000)),
        }
    }

    /// One message, or several that nothing tells apart but their bodies, as runs are made of.
    fn send(&mut self) {
        let queue = self.queue();
        let (count, likeness) = match self.random.one_in(3) {
            true => (1 + self.random.below(9), Likeness::Plain),
            false => (1, Likeness::Any),
        };
        let drafts: Vec<Draft> = (0..count).map(|_| self.draft(queue, likeness)).collect();
        let messages = drafts.iter().map(Draft::message).collect();
        let reply = self.rig.apply(Command::Send { queue: QueueId(queue), messages });
        let Reply::Sent { outcomes } = reply else { panic!("{reply:?}") };
        assert_eq!(outcomes.len(), drafts.len());
        for (draft, outcome) in drafts.iter().zip(outcomes) {
            self.expect_sent(queue, draft, outcome);
        }
    }

    fn expect_sent(&mut self, queue: u64, draft: &Draft, outcome: SendOutcome) {
        let id = draft.dedup.map(|[id]| id);
        let expected = self.model.duplicate(queue, id);
        let expected = expected.map(|sequence| SendOutcome::Duplicate { sequence });
        let full = self.model.full(queue);
        let expected = expected.or(full.then_some(SendOutcome::Refused { reason: Refusal::QueueFull }));
        if let Some(expected) = expected {
            assert_eq!(outcome, expected);
            return;
        }
        let SendOutcome::Sent { key } = outcome else { panic!("{outcome:?}") };
        let delay_ms = draft.delay_ms.unwrap_or(settings_of(queue).delay_ms);
        let group = draft.group.map_or(NO_GROUP, |[group]| group);
        let len = length(draft.message().content);
        self.model.add(queue, group, len, key.sequence, u64::from(delay_ms), draft.expiry_ms);
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
        let which = self.random.below(8);
        let rejected = receipts.iter().map(|receipt| (*receipt, b"no".as_slice())).collect();
        let command = match which {
            0..3 => Command::Ack { queue: id, receipts: receipts.clone() },
            3 => Command::Extend { queue: id, items },
            5 => Command::Reject { queue: id, items: rejected },
            6 => Command::GiveBack { queue: id, receipts: receipts.clone() },
            7 => Command::Postpone { queue: id, items },
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

    /// Behind an item come those that were behind it, and one that is gone is before all of them.
    fn go_on_in_outbox(&self, queue: QueueId, target: QueueId) {
        let partition = &self.rig.partition;
        let all = partition.outbox(queue, target, usize::MAX);
        let at = all.len() / 2;
        let OutboxItem { key, number, .. } = all[at];
        assert_eq!(partition.outbox_after(queue, target, Some((key, number)), usize::MAX), all[at + 1..]);
        assert_eq!(partition.outbox_after(queue, target, Some((key, number + 1_000_000)), usize::MAX), all);
        if let Some(group) = &all[at].group {
            assert_eq!(self.rig.content(all[at].content).group, Some(&group[..]));
        }
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
        self.go_on_in_outbox(queue, target);
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
        state.gone.clear();
        state.damped.forget();
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
            let suspects = shard.suspects;
            assert_eq!(u64::from(suspects.on_trial), self.model.on_trial(queue), "on trial in queue {queue}");
            let damping = shard.damping.map(|damping| {
                let numbers = (damping.failed.into(), damping.acked.into(), damping.mood == Mood::Storm);
                (numbers, damping.held, damping.budget)
            });
            let damped = &self.model.queues[&queue].damped;
            let expected = damped.knows_messages.then(|| {
                let numbers = (damped.failed, damped.acked, damped.storm);
                (numbers, self.model.is_held(queue), damped.budget)
            });
            assert_eq!(damping, expected, "the retry budget of queue {queue}");
        }
        let deadline = partition.next_deadline().unwrap_or_default();
        if !deadline.garbage {
            assert_eq!(deadline.lease_log_ms, self.model.first_ms(State::Leased));
            // When the budget lets go what is held is checked by letting it go.
            if self.model.is_held(DAMPED) == 0 {
                assert_eq!(deadline.delay_log_ms, self.model.first_ms(State::Delayed));
            }
            let live: u64 = partition.live_contents().map(|(_, bytes)| bytes).sum();
            assert_eq!(live, self.model.items.iter().map(|item| item.len).sum::<u64>());
        }
        let (first, last) = (self.model.items.iter().take(5), self.model.items.iter().rev().take(5));
        for item in first.chain(last) {
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
        let mut twin = Twin::new(seed, None);
        (0..500).for_each(|_| twin.step());
        twin.replay();
        twin.drain();
        twin.replay();
    });
}

/// Nearly everything happens to the queue with a retry budget that isolates suspects: storms come and go, consumers die.
#[test]
fn random_logs_of_a_queue_with_a_retry_budget_agree_with_the_model() {
    let [held, spared, lost] = [const { AtomicU64::new(0) }; 3];
    for_seeds("model", 30, |seed| {
        let mut twin = Twin::new(seed, Some(DAMPED));
        (0..600).for_each(|_| twin.step());
        let totals = twin.rig.partition.shard(QueueId(DAMPED)).unwrap().totals;
        held.fetch_add(totals.held, Ordering::Relaxed);
        spared.fetch_add(totals.spared, Ordering::Relaxed);
        lost.fetch_add(totals.lost, Ordering::Relaxed);
        twin.replay();
        twin.drain();
        twin.replay();
    });
    let counts = [held, spared, lost].map(AtomicU64::into_inner);
    assert!(counts.iter().all(|count| *count > 0), "held, spared and lost: {counts:?} is too few to tell");
}
