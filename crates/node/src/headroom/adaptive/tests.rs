//! The control loop against the real state machine, in simulated hours: consumers that are slow, die, or change their pace.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use leasehold_partition::{
    BatchBuilder, Command, Content, Delivery, History, NewMessage, Partition, QueueId, Receipt, Reply,
    Settings,
};

use super::*;

const QUEUE: QueueId = QueueId(1);
const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const CONSUMERS: usize = 8;

/// A small seeded generator (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// How consumers work at a time of the simulation: how long a message takes, or `None` when it kills its consumer.
type Work = fn(now_ms: u64, random: &mut Random) -> Option<u64>;

#[derive(Clone, Copy, PartialEq)]
enum Leases {
    Fixed,
    Adaptive,
}

/// What one hour saw.
#[derive(Clone, Debug, Default)]
struct Hour {
    acked: u64,
    /// Messages that were done twice because their lease ended while a living consumer worked on them.
    repeated: u64,
    longest_lease_ms: u64,
    last_lease_ms: u64,
}

struct World {
    partition: Partition,
    log_index: u64,
    now_ms: u64,
    random: Random,
    /// When which receipt is acknowledged; the busy consumers.
    working: BinaryHeap<Reverse<(u64, Receipt)>>,
    /// When the consumers that died are back.
    dead: BinaryHeap<Reverse<u64>>,
    hours: Vec<Hour>,
}

impl World {
    fn apply(&mut self, command: &Command<'_>) -> Reply {
        self.log_index += 1;
        let mut batch = BatchBuilder::new(self.now_ms, self.now_ms + 1);
        batch.push(command).unwrap();
        let applied = self.partition.apply(self.log_index, &batch.finish(), History::Skip).unwrap();
        applied.replies.into_iter().next().unwrap()
    }

    fn hour(&mut self) -> &mut Hour {
        let hour = (self.now_ms / HOUR_MS) as usize;
        self.hours.resize(self.hours.len().max(hour + 1), Hour::default());
        &mut self.hours[hour]
    }

    fn lease_ms(&self, floor_ms: u64, ceiling_ms: u64) -> u64 {
        let mut measured = Measure::default();
        self.partition.headroom(QUEUE).iter().for_each(|(_, measure)| measured.add(measure));
        lease_ms(floor_ms, ceiling_ms, &measured)
    }

    fn receive(&mut self, lease_ms: u64) -> Option<Delivery> {
        let command = Command::Receive {
            queue: QUEUE,
            messages_max: 1,
            bytes_max: u64::MAX,
            lease_ms: Some(lease_ms as u32),
            attempt: None,
            consumer: b"simulated",
        };
        let Reply::Received { deliveries } = self.apply(&command) else { panic!("a receive is answered") };
        let hour = self.hour();
        hour.longest_lease_ms = hour.longest_lease_ms.max(lease_ms);
        hour.last_lease_ms = lease_ms;
        deliveries.first().copied()
    }

    fn acknowledge(&mut self, receipt: Receipt) {
        let reply = self.apply(&Command::Ack { queue: QUEUE, receipts: vec![receipt] });
        let Reply::Settled { outcomes } = reply else { panic!("an ack is answered") };
        let is_done = outcomes[0] == leasehold_partition::Outcome::Done;
        let hour = self.hour();
        hour.acked += u64::from(is_done);
        hour.repeated += u64::from(!is_done);
    }
}

/// Eight consumers, one message each, as many messages as they can take, for some hours.
fn simulate(leases: Leases, floor_ms: u64, ceiling_ms: u64, hours: u64, work: Work) -> Vec<Hour> {
    let mut world = World {
        partition: Partition::new(),
        log_index: 0,
        now_ms: 0,
        random: Random(42),
        working: BinaryHeap::new(),
        dead: BinaryHeap::new(),
        hours: Vec::new(),
    };
    world.apply(&Command::Configure { queue: QUEUE, settings: Settings::default(), revision: 1 });
    while world.now_ms < hours * HOUR_MS {
        world.now_ms += SECOND_MS;
        let leases_as_of_ms = world.now_ms;
        world.apply(&Command::Expire { leases_as_of_ms, items_max: 1_000 });
        while let Some(Reverse((_, receipt))) = world.working.pop_if_due(world.now_ms) {
            world.acknowledge(receipt);
        }
        while world.dead.peek().is_some_and(|Reverse(back_ms)| *back_ms <= world.now_ms) {
            world.dead.pop();
        }
        let messages = vec![NewMessage { content: Content::of_body(b"work"), ..NewMessage::default() }];
        world.apply(&Command::Send { queue: QUEUE, messages });
        while world.working.len() + world.dead.len() < CONSUMERS {
            let lease_ms = match leases {
                Leases::Fixed => floor_ms,
                Leases::Adaptive => world.lease_ms(floor_ms, ceiling_ms),
            };
            let Some(delivery) = world.receive(lease_ms) else { break };
            match work(world.now_ms, &mut world.random) {
                Some(takes_ms) => world.working.push(Reverse((world.now_ms + takes_ms, delivery.receipt))),
                None => world.dead.push(Reverse(world.now_ms + MINUTE_MS)),
            }
        }
    }
    world.hours
}

trait PopIfDue {
    fn pop_if_due(&mut self, now_ms: u64) -> Option<Reverse<(u64, Receipt)>>;
}

impl PopIfDue for BinaryHeap<Reverse<(u64, Receipt)>> {
    fn pop_if_due(&mut self, now_ms: u64) -> Option<Reverse<(u64, Receipt)>> {
        self.peek().filter(|Reverse((due_ms, _))| *due_ms <= now_ms)?;
        self.pop()
    }
}

#[test]
fn work_that_fits_its_lease_changes_nothing() {
    let hours = simulate(Leases::Adaptive, 30_000, 600_000, 3, |_, random| Some(500 + random.below(1_000)));
    for hour in &hours[..3] {
        assert_eq!((hour.longest_lease_ms, hour.repeated), (30_000, 0), "{hours:?}");
    }
}

/// The lease is a third of the work: with fixed leases nearly everything is done twice and more; adaptive ones find what the
/// work takes once it fits.
#[test]
fn a_lease_that_is_too_short_grows_to_the_work() {
    const WORK: Work = |_, random| Some(5_000 + random.below(4_000));
    let fixed = simulate(Leases::Fixed, 2_000, 600_000, 1, WORK);
    assert!(fixed[0].repeated > 1_000, "{fixed:?}");
    let hours = simulate(Leases::Adaptive, 2_000, 600_000, 4, WORK);
    assert!(hours[0].repeated < 20 && hours[0].longest_lease_ms == 600_000, "the ceiling for now: {hours:?}");
    for hour in &hours[1..4] {
        assert_eq!(hour.repeated, 0, "{hours:?}");
    }
    assert!((24_000..=32_000).contains(&hours[3].last_lease_ms), "three times the work: {hours:?}");
}

/// One message in fifty takes a hundred times as long as the others.
#[test]
fn work_of_two_kinds_gets_the_lease_of_the_slow_kind() {
    const WORK: Work = |_, random| Some(if random.below(50) == 0 { 60_000 } else { 600 });
    let fixed = simulate(Leases::Fixed, 5_000, 600_000, 4, WORK);
    assert!(fixed[3].repeated > 30, "{fixed:?}");
    let hours = simulate(Leases::Adaptive, 5_000, 600_000, 4, WORK);
    assert_eq!((hours[1].repeated, hours[2].repeated, hours[3].repeated), (0, 0, 0), "{hours:?}");
    assert!((180_000..=210_000).contains(&hours[3].last_lease_ms), "{hours:?}");
}

/// One message in twenty kills its consumer: its message comes back as soon as before.
#[test]
fn consumers_that_die_lengthen_no_lease() {
    let work: Work = |_, random| (random.below(20) > 0).then(|| 500 + random.below(1_000));
    let hours = simulate(Leases::Adaptive, 20_000, 600_000, 4, work);
    assert!(hours.iter().take(4).all(|hour| hour.longest_lease_ms == 20_000), "{hours:?}");
}

/// A slow hour lengthens the leases, and they are as before two hours later.
#[test]
fn a_slow_hour_passes() {
    const WORK: Work = |now_ms, random| {
        Some(if now_ms / HOUR_MS == 1 { 15_000 + random.below(5_000) } else { 1_000 + random.below(500) })
    };
    let hours = simulate(Leases::Adaptive, 10_000, 120_000, 6, WORK);
    assert_eq!((hours[0].longest_lease_ms, hours[0].repeated), (10_000, 0), "{hours:?}");
    assert!(hours[1].repeated < 40, "{hours:?}");
    assert_eq!((hours[2].repeated, hours[3].repeated, hours[5].repeated), (0, 0, 0), "{hours:?}");
    assert!(hours.iter().all(|hour| hour.longest_lease_ms <= 120_000), "{hours:?}");
    assert_eq!(hours[5].longest_lease_ms, 10_000, "{hours:?}");
}

#[test]
fn the_ceiling_is_kept_and_the_floor_too() {
    let of = |times: &[(u64, u32)], late| {
        let mut measured = Measure { late, ..Measure::default() };
        times.iter().for_each(|(ms, count)| measured.held.record_many(*ms, *count));
        measured
    };
    let cases = [
        (of(&[], 0), 30_000),
        (of(&[(20_000, 99)], 0), 30_000),
        (of(&[(20_000, 100)], 0), 61_437),
        (of(&[(200_000, 100)], 0), 100_000),
        (of(&[(10, 10_000)], 4), 30_000),
        (of(&[(10, 10_000)], 5), 30_000),
        (of(&[(10, 4_000)], 5), 100_000),
        (of(&[], 5), 100_000),
    ];
    for (measured, expected) in cases {
        assert_eq!(lease_ms(30_000, 100_000, &measured), expected, "{measured:?}");
    }
    assert_eq!(lease_ms(30_000, 0, &of(&[], 5)), 30_000, "a ceiling below the lease is none");
}
