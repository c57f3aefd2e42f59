//! Messages that kill their consumers, among many that do not: who is tried, who pays, and who goes on.
//!
//! Source: `src/suspects.rs`, decision 016. Simulated consumers that hold many messages and die with all of them.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use std::collections::BTreeMap;

use leasehold_partition::*;
use rig::{Check, Rig};

const QUEUE: QueueId = QueueId(1);
const DEAD: QueueId = QueueId(9);
const TICK_MS: u64 = 50;
const LEASE_MS: u32 = 1_000;
const RECEIVES_MAX: u32 = 3;
/// Messages that a consumer holds at a time.
const HELD_MAX: usize = 32;
const WORK_MS: u64 = 100;
const RESTART_MS: u64 = 1_000;

/// A consumer that works on one message after the other and holds many.
#[derive(Default)]
struct Consumer {
    held: Vec<(Receipt, u64)>,
    busy_until_ms: u64,
    dead_until_ms: u64,
    /// When it is noticed to be gone.
    noticed_ms: Option<u64>,
}

struct World {
    rig: Rig,
    consumers: Vec<Consumer>,
    killers: Vec<u64>,
    deaths: u64,
    acked: u64,
    /// When each message was sent, and the longest wait for a first delivery.
    sent_ms: BTreeMap<u64, u64>,
    first_wait_ms: u64,
}

impl World {
    fn new(isolation: Isolation, consumers: usize) -> Self {
        let mut rig = Rig::new();
        rig.check = Check::Never;
        let dead_letter = Some(DeadLetter { queue: DEAD, receives_max: RECEIVES_MAX });
        rig.configure(QUEUE.0, Settings { dead_letter, ..Settings::default() });
        rig.configure(DEAD.0, Settings::default());
        rig.apply(Command::SetIsolation { queue: QUEUE, isolation, revision: 100 });
        let consumers = std::iter::repeat_with(Consumer::default).take(consumers).collect();
        let (killers, sent_ms) = (Vec::new(), BTreeMap::new());
        Self { rig, consumers, killers, deaths: 0, acked: 0, sent_ms, first_wait_ms: 0 }
    }

    /// Sends messages of which every `killer_each`th kills.
    fn send(&mut self, messages: usize, killer_each: usize) {
        for number in 1..=messages {
            let [SendOutcome::Sent { key }] = self.rig.send(QUEUE.0, &[b"work" as &[u8]])[..] else {
                panic!()
            };
            self.sent_ms.insert(key.sequence, self.rig.now_ms);
            if number % killer_each == 0 {
                self.killers.push(key.sequence);
            }
        }
    }

    fn tick(&mut self) {
        self.rig.pass(TICK_MS);
        self.rig.expire();
        for which in 0..self.consumers.len() {
            let now_ms = self.rig.now_ms;
            let name = format!("worker@{which}");
            if self.consumers[which].noticed_ms.take_if(|noticed_ms| *noticed_ms <= now_ms).is_some() {
                self.rig.apply(Command::Lost { queue: QUEUE, consumer: name.as_bytes() });
            }
            if self.consumers[which].dead_until_ms <= now_ms {
                self.work(which);
                self.take(which, &name);
            }
        }
    }

    fn take(&mut self, which: usize, name: &str) {
        let now_ms = self.rig.now_ms;
        let consumer = &mut self.consumers[which];
        let room = HELD_MAX - consumer.held.len();
        if consumer.dead_until_ms > now_ms || room < HELD_MAX / 4 {
            return;
        }
        let command = Command::Receive {
            queue: QUEUE,
            messages_max: room as u32,
            bytes_max: u64::MAX,
            lease_ms: Some(LEASE_MS),
            attempt: None,
            consumer: name.as_bytes(),
        };
        let Reply::Received { deliveries } = self.rig.apply(command) else { panic!("a receive is answered") };
        for delivery in deliveries {
            let sequence = delivery.receipt.sequence;
            if delivery.receive_count == 1 {
                self.first_wait_ms = self.first_wait_ms.max(now_ms - self.sent_ms[&sequence]);
            }
            self.consumers[which].held.push((delivery.receipt, now_ms));
        }
    }

    /// Ends what was worked on, keeps the leases of what waits, and begins the next message.
    fn work(&mut self, which: usize) {
        let now_ms = self.rig.now_ms;
        let consumer = &mut self.consumers[which];
        if consumer.busy_until_ms > now_ms || consumer.held.is_empty() {
            return;
        }
        let (receipt, _) = consumer.held.remove(0);
        if self.killers.contains(&receipt.sequence) {
            let restart_ms = now_ms + RESTART_MS;
            *consumer = Consumer {
                dead_until_ms: restart_ms,
                noticed_ms: Some(now_ms + TICK_MS),
                ..Consumer::default()
            };
            self.deaths += 1;
            return;
        }
        consumer.busy_until_ms = now_ms + WORK_MS;
        let items = consumer.held.iter().map(|(receipt, _)| (*receipt, LEASE_MS)).collect();
        self.rig.apply(Command::Ack { queue: QUEUE, receipts: vec![receipt] });
        self.acked += 1;
        self.rig.apply(Command::Extend { queue: QUEUE, items });
    }

    /// Until nothing is left.
    fn run(&mut self) {
        for _ in 0..100_000 {
            self.tick();
            let counters = self.rig.partition.shard(QUEUE).unwrap().counters;
            if counters.ready + counters.leased + counters.delayed == 0 {
                return self.rig.partition.check_invariants();
            }
        }
        panic!("it does not end: {:?}", self.rig.partition.shard(QUEUE));
    }

    fn dead(&self) -> Vec<u64> {
        let items = self.rig.partition.outbox(QUEUE, DEAD, usize::MAX);
        items.iter().map(|item| item.key.sequence).collect()
    }
}

/// One killer among 200, at four consumers with 32 messages each: it alone is dead, after as many deaths as halving takes.
#[test]
fn the_one_that_kills_is_found_by_halving_and_pays_alone() {
    let mut world = World::new(Isolation::On, 4);
    world.send(200, 150);
    world.run();
    assert_eq!((world.dead(), world.acked), (world.killers.clone(), 199));
    let halvings = u64::from(HELD_MAX.ilog2());
    let deaths_max = halvings + u64::from(RECEIVES_MAX) + 1;
    assert!(world.deaths <= deaths_max, "{} deaths", world.deaths);
}

/// The same without isolation: neighbours are dead with it.
#[test]
fn without_isolation_neighbours_pay() {
    let mut world = World::new(Isolation::Off, 1);
    world.send(60, 20);
    world.run();
    let innocent = world.dead().into_iter().filter(|sequence| !world.killers.contains(sequence)).count();
    assert!(innocent > 0, "{} dead, {} killers", world.dead().len(), world.killers.len());
}

/// Three killers and a single consumer, which meets all of them.
#[test]
fn several_killers_are_found_by_one_consumer() {
    let mut world = World::new(Isolation::On, 1);
    world.send(60, 20);
    world.run();
    let mut dead = world.dead();
    dead.sort_unstable();
    assert_eq!((dead, world.acked), (world.killers.clone(), 57));
}

/// While suspects are tried, new messages are delivered as always, at the consumers that live.
#[test]
fn suspects_hold_up_nobody_else() {
    let mut world = World::new(Isolation::On, 4);
    world.send(64, 32);
    for _ in 0..100 {
        world.tick();
    }
    world.first_wait_ms = 0;
    for _ in 0..200 {
        world.send(1, usize::MAX);
        world.tick();
    }
    world.run();
    assert!(world.first_wait_ms <= 4 * TICK_MS, "{} ms", world.first_wait_ms);
    assert_eq!(world.dead().len(), 2);
}

/// A consumer whose connection broke goes on: its messages are no suspects, and what it lets time out counts as before.
#[test]
fn a_consumer_that_is_heard_again_was_not_gone() {
    let mut rig = Rig::new();
    rig.configure(QUEUE.0, Settings::default());
    rig.apply(Command::SetIsolation { queue: QUEUE, isolation: Isolation::On, revision: 100 });
    rig.send(QUEUE.0, &[b"a" as &[u8], b"b"]);
    let receive = |lease_ms| Command::Receive {
        queue: QUEUE,
        messages_max: 10,
        bytes_max: u64::MAX,
        lease_ms: Some(lease_ms),
        attempt: None,
        consumer: b"worker@1",
    };
    let Reply::Received { deliveries } = rig.apply(receive(100)) else { panic!() };
    assert_eq!(deliveries.len(), 2);
    rig.apply(Command::Lost { queue: QUEUE, consumer: b"worker@1" });
    rig.apply(receive(100));
    rig.pass(100);
    rig.expire();
    let shard = rig.partition.shard(QUEUE).unwrap();
    assert_eq!((shard.totals.expired, shard.totals.lost, shard.suspects.waiting), (2, 0, 0));
}
