//! The retry budget as a control loop, against consumers that fail, hang, are slow, or meet a bad message.
//!
//! Source: `src/damping.rs`, decision 016. Each scenario runs with a budget and without one, in simulated time.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use leasehold_partition::limits::STORM_MESSAGES_MIN;
use leasehold_partition::*;
use rig::{Check, Random, Rig};

const QUEUE: u64 = 1;
const DEAD: u64 = 9;
const TICK_MS: u64 = 50;
const SECOND_MS: u64 = 1_000;
const LEASE_MS: u64 = 2_000;
const RECEIVES_MAX: u32 = 3;
const FLOOR_PER_S: u32 = 5;
const BUDGET: RetryBudget = RetryBudget { percent: 20, floor_per_s: FLOOR_PER_S };
const CONSUMERS: usize = 100;
/// Messages that may be dead before a storm is known for one, with handlers that fail within an instant.
const DEAD_BEFORE_MAX: u64 = STORM_MESSAGES_MIN as u64;

/// What a handler makes of a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Ack,
    /// Gives it back at once.
    Fail,
    /// Dies with it: its lease ends by itself.
    Die,
}

struct Now<'a> {
    ms: u64,
    sequence: u64,
    /// Messages at handlers, this one included.
    at_work: u64,
    random: &'a mut Random,
}

impl Now<'_> {
    fn second(&self) -> u64 {
        self.ms / SECOND_MS
    }
}

/// How long the handler works, and the end of it.
type Handler = fn(Now<'_>) -> (u64, Verdict);

/// What one second saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Second {
    first_deliveries: u64,
    redeliveries: u64,
    acked: u64,
    dead: u64,
    /// Messages that were not done at its end.
    left: u64,
    held: u64,
    is_storm: bool,
    /// The longest that a message waited for its first delivery.
    first_wait_ms: u64,
}

struct World {
    rig: Rig,
    random: Random,
    /// The busy consumers, by when they are done.
    working: BinaryHeap<Reverse<(u64, Receipt, Verdict)>>,
    sent_ms: BTreeMap<u64, u64>,
    start_ms: u64,
    seconds: Vec<Second>,
}

impl World {
    fn new(budget: Option<RetryBudget>) -> Self {
        let mut rig = Rig::new();
        rig.check = Check::Never;
        let dead_letter = Some(DeadLetter { queue: QueueId(DEAD), receives_max: RECEIVES_MAX });
        rig.configure(QUEUE, Settings { dead_letter, lease_ms: LEASE_MS as u32, ..Settings::default() });
        rig.configure(DEAD, Settings::default());
        rig.apply(Command::SetRetryBudget { queue: QueueId(QUEUE), budget, revision: 100 });
        let start_ms = rig.now_ms;
        let (working, sent_ms) = (BinaryHeap::new(), BTreeMap::new());
        Self { rig, random: Random::new(42), working, sent_ms, start_ms, seconds: Vec::new() }
    }

    fn second(&mut self) -> &mut Second {
        let at = ((self.rig.now_ms - self.start_ms) / SECOND_MS) as usize;
        self.seconds.resize(self.seconds.len().max(at + 1), Second::default());
        &mut self.seconds[at]
    }

    fn tick(&mut self, sends: u64, handler: Handler) {
        self.rig.pass(TICK_MS);
        self.rig.expire();
        self.finish();
        for _ in 0..sends {
            let [SendOutcome::Sent { key }] = self.rig.send(QUEUE, &[b"work" as &[u8]])[..] else { panic!() };
            self.sent_ms.insert(key.sequence, self.rig.now_ms);
        }
        self.start(handler);
        self.look();
    }

    fn finish(&mut self) {
        while let Some(Reverse((due_ms, receipt, verdict))) = self.working.peek().copied()
            && due_ms <= self.rig.now_ms
        {
            self.working.pop();
            let queue = QueueId(QUEUE);
            let reply = match verdict {
                Verdict::Ack => self.rig.apply(Command::Ack { queue, receipts: vec![receipt] }),
                Verdict::Fail => self.rig.apply(Command::Release { queue, items: vec![(receipt, 0)] }),
                Verdict::Die => continue,
            };
            let Reply::Settled { outcomes } = reply else { panic!("{reply:?}") };
            self.second().acked += u64::from(verdict == Verdict::Ack && outcomes[0] == Outcome::Done);
        }
    }

    fn start(&mut self, handler: Handler) {
        let free = CONSUMERS - self.working.len();
        if free == 0 {
            return;
        }
        let now_ms = self.rig.now_ms;
        for delivery in self.rig.receive(QUEUE, free as u32, LEASE_MS as u32) {
            let sequence = delivery.receipt.sequence;
            let wait_ms = now_ms - self.sent_ms[&sequence];
            let second = self.second();
            if delivery.receive_count == 1 {
                second.first_deliveries += 1;
                second.first_wait_ms = second.first_wait_ms.max(wait_ms);
            } else {
                second.redeliveries += 1;
            }
            let (ms, at_work) = (now_ms - self.start_ms, self.working.len() as u64 + 1);
            let (takes_ms, verdict) = handler(Now { ms, sequence, at_work, random: &mut self.random });
            self.working.push(Reverse((now_ms + takes_ms, delivery.receipt, verdict)));
        }
    }

    fn look(&mut self) {
        let shard = self.rig.partition.shard(QueueId(QUEUE)).unwrap();
        let dead_before: u64 = self.seconds.iter().map(|second| second.dead).sum();
        let damping = shard.damping.filter(|damping| damping.budget.is_some());
        let second = self.second();
        second.dead += shard.totals.dead - dead_before;
        second.left = shard.counters.ready + shard.counters.leased + shard.counters.delayed;
        second.held = damping.map_or(0, |damping| damping.held);
        second.is_storm = damping.is_some_and(|damping| damping.mood == Mood::Storm);
    }
}

/// Sends `per_tick` messages a tick for `send_s` seconds, and goes on until `end_s`.
fn run(
    budget: Option<RetryBudget>,
    per_tick: u64,
    send_s: u64,
    end_s: u64,
    handler: Handler,
) -> (World, Vec<Second>) {
    let mut world = World::new(budget);
    for tick in 0..end_s * SECOND_MS / TICK_MS {
        let sends = if tick * TICK_MS < send_s * SECOND_MS { per_tick } else { 0 };
        world.tick(sends, handler);
    }
    world.rig.partition.check_invariants();
    let seconds = world.seconds.clone();
    (world, seconds)
}

fn sum(seconds: &[Second], of: impl Fn(&Second) -> u64) -> u64 {
    seconds.iter().map(of).sum()
}

/// How often the mood changed.
fn changes(seconds: &[Second]) -> usize {
    seconds.windows(2).filter(|pair| pair[0].is_storm != pair[1].is_storm).count()
}

/// Nobody waited for a first delivery longer than it takes to ask, while consumers were free.
fn assert_first_deliveries_are_at_once(seconds: &[Second]) {
    for (at, second) in seconds.iter().enumerate() {
        assert!(second.first_wait_ms <= TICK_MS, "second {at}: {second:?}");
    }
}

/// Nothing works: without a budget every message fails three times and is dead; with one the redeliveries shrink to the floor
/// and nearly all messages wait.
#[test]
fn a_handler_that_always_fails_flushes_nothing() {
    const HANDLER: Handler = |_| (100, Verdict::Fail);
    let (_, bare) = run(None, 4, 60, 60, HANDLER);
    assert!(sum(&bare, |second| second.dead) > 4_500 && sum(&bare, |second| second.redeliveries) > 9_000);
    let (world, seconds) = run(Some(BUDGET), 4, 60, 60, HANDLER);
    assert_eq!(sum(&seconds, |second| second.first_deliveries), 4_800);
    assert_first_deliveries_are_at_once(&seconds);
    assert!(sum(&seconds, |second| second.dead) <= DEAD_BEFORE_MAX, "{seconds:?}");
    for (at, second) in seconds.iter().enumerate().skip(3) {
        assert!(second.redeliveries <= u64::from(FLOOR_PER_S) + 1, "second {at}: {second:?}");
        assert!(second.is_storm, "second {at}: {second:?}");
    }
    let totals = world.rig.partition.shard(QueueId(QUEUE)).unwrap().totals;
    assert!(totals.held > 4_000, "{totals:?}");
}

/// Everything fails for a minute. After it, what waited is done within seconds, hardly any of it is dead, and the storm comes
/// and goes once.
#[test]
fn a_minute_of_failure_is_made_up_within_seconds() {
    const HANDLER: Handler = |now| match now.second() {
        20..80 => (100, Verdict::Fail),
        _ => (100, Verdict::Ack),
    };
    let (_, bare) = run(None, 4, 120, 130, HANDLER);
    assert!(
        sum(&bare, |second| second.dead) > 4_500,
        "without a budget the minute is in the dead-letter queue"
    );
    let (_, seconds) = run(Some(BUDGET), 4, 120, 130, HANDLER);
    assert_first_deliveries_are_at_once(&seconds);
    let dead = sum(&seconds, |second| second.dead);
    assert!(dead <= DEAD_BEFORE_MAX, "{seconds:?}");
    assert!(seconds[79].held > 4_500, "{:?}", seconds[79]);
    let over = seconds.iter().skip(80).position(|second| second.held == 0).unwrap();
    assert!(over <= 12, "{over} s after the failure: {:?}", &seconds[78..100]);
    assert_eq!(changes(&seconds), 2, "{seconds:?}");
    assert_eq!(sum(&seconds, |second| second.acked), 9_600 - dead);
}

/// The same without anything new coming in: the floor finds out that the failure is over.
#[test]
fn what_waits_comes_back_without_new_messages_too() {
    const HANDLER: Handler = |now| if now.second() < 40 { (100, Verdict::Fail) } else { (100, Verdict::Ack) };
    let (_, seconds) = run(Some(BUDGET), 4, 5, 60, HANDLER);
    assert!(seconds[39].left > 350, "{:?}", seconds[39]);
    let over = seconds.iter().skip(40).position(|second| second.left == 0).unwrap();
    assert!(over <= 12, "{over} s after the failure: {:?}", &seconds[38..]);
    assert_eq!(changes(&seconds), 1, "it begins within the first second: {seconds:?}");
}

/// One message in a stream of good ones fails at once, for ever: it dies of its receive count as it would without a budget, and
/// nobody else notices.
#[test]
fn one_poison_message_is_no_storm() {
    const HANDLER: Handler = |now| if now.sequence == 100 { (0, Verdict::Fail) } else { (100, Verdict::Ack) };
    let (world, seconds) = run(Some(BUDGET), 4, 30, 32, HANDLER);
    assert_first_deliveries_are_at_once(&seconds);
    assert_eq!(changes(&seconds), 0, "{seconds:?}");
    assert_eq!((sum(&seconds, |second| second.dead), sum(&seconds, |second| second.redeliveries)), (1, 2));
    assert_eq!(sum(&seconds, |second| second.acked), 2_399);
    assert_eq!(world.rig.partition.shard(QueueId(QUEUE)).unwrap().totals.held, 0);
}

/// A poison message that is never dead, because its queue has no such limit, in a queue without other traffic.
#[test]
fn one_poison_message_alone_for_ever_is_no_storm() {
    let mut rig = Rig::new();
    rig.configure(QUEUE, Settings::default());
    rig.apply(Command::SetRetryBudget { queue: QueueId(QUEUE), budget: Some(BUDGET), revision: 100 });
    rig.send(QUEUE, &[b"poison" as &[u8]]);
    for _ in 0..2_000 {
        rig.pass(TICK_MS);
        rig.expire();
        let items = rig.receive(QUEUE, 1, 1_000).iter().map(|delivery| (delivery.receipt, 0)).collect();
        rig.apply(Command::Release { queue: QueueId(QUEUE), items });
    }
    let damping = rig.partition.shard(QueueId(QUEUE)).unwrap().damping.unwrap();
    assert_eq!((damping.mood, damping.failed), (Mood::Calm, 1));
    assert!(damping.repeated > 100, "it is seen to come again and again: {damping:?}");
}

/// One message in a hundred is bad, for ever: they are dead one after the other, and it is no storm.
#[test]
fn a_few_bad_messages_die_as_without_a_budget() {
    const HANDLER: Handler =
        |now| (100, if now.sequence.is_multiple_of(100) { Verdict::Fail } else { Verdict::Ack });
    let (_, seconds) = run(Some(BUDGET), 4, 60, 90, HANDLER);
    assert_eq!(changes(&seconds), 0, "{seconds:?}");
    assert_eq!((sum(&seconds, |second| second.dead), seconds[89].left), (48, 0));
}

/// What the handler calls has room for 200 at a time, and for half a minute for 4: whoever comes beyond it hangs longer than the
/// lease. The budget keeps redeliveries from adding to it, and when there is room again all is made up.
#[test]
fn a_slow_dependency_is_not_beaten_while_it_is_down() {
    const HANDLER: Handler = |now| {
        let room = if (20..50).contains(&now.second()) { 4 } else { 200 };
        match now.at_work > room {
            true => (LEASE_MS + 500, Verdict::Ack),
            false => (100 + now.random.below(50), Verdict::Ack),
        }
    };
    let (_, bare) = run(None, 4, 90, 120, HANDLER);
    let (_, seconds) = run(Some(BUDGET), 4, 90, 120, HANDLER);
    let slow = |seconds: &[Second]| sum(&seconds[20..50], |second| second.redeliveries);
    assert!(slow(&seconds) * 2 < slow(&bare), "{} redeliveries, {} without", slow(&seconds), slow(&bare));
    let dead = |seconds: &[Second]| sum(seconds, |second| second.dead);
    assert!(dead(&seconds) * 10 <= dead(&bare), "{} dead, {} without", dead(&seconds), dead(&bare));
    let over = seconds.iter().skip(50).position(|second| second.held == 0 && !second.is_storm).unwrap();
    assert!(over <= 20, "{over} s after: {:?}", &seconds[50..]);
    assert!(changes(&seconds) <= 4, "{seconds:?}");
    assert_eq!(seconds[119].left, 0);
}

/// Consumers die with all they were given within a second: it costs a few seconds at most.
#[test]
fn consumers_that_die_together_cost_seconds() {
    const HANDLER: Handler = |now| match now.second() {
        20 => (3 * SECOND_MS, Verdict::Die),
        _ => (100, Verdict::Ack),
    };
    let (_, seconds) = run(Some(BUDGET), 4, 60, 70, HANDLER);
    assert_eq!((sum(&seconds, |second| second.dead), seconds[69].left), (0, 0));
    let over = seconds.iter().skip(23).position(|second| second.held == 0 && !second.is_storm).unwrap();
    assert!(over <= 10, "{over} s after their leases ended: {:?}", &seconds[18..40]);
    assert!(changes(&seconds) <= 2, "{seconds:?}");
}

/// Handlers that fail and succeed in turn, ten seconds each: the mood follows them and does not run ahead of them.
#[test]
fn a_failure_that_comes_and_goes_does_not_swing_the_mood_by_itself() {
    const HANDLER: Handler =
        |now| (100, if now.second() / 10 % 2 == 1 { Verdict::Fail } else { Verdict::Ack });
    let (_, seconds) = run(Some(BUDGET), 4, 100, 130, HANDLER);
    assert_first_deliveries_are_at_once(&seconds);
    assert!(changes(&seconds) <= 13, "{} changes: {seconds:?}", changes(&seconds));
    assert!(sum(&seconds, |second| second.dead) <= 5 * DEAD_BEFORE_MAX, "{seconds:?}");
}

/// Two of five fail at every try, by lot: no storm, all are done in the end, and the budget opens because most retries succeed.
#[test]
fn failures_by_lot_are_retried_as_they_come() {
    const HANDLER: Handler = |now| (100, if now.random.below(5) < 2 { Verdict::Fail } else { Verdict::Ack });
    let (_, bare) = run(None, 4, 60, 75, HANDLER);
    let (_, seconds) = run(Some(BUDGET), 4, 60, 75, HANDLER);
    assert_first_deliveries_are_at_once(&seconds);
    assert_eq!(seconds[74].left, 0);
    let (dead, without) = (sum(&seconds, |second| second.dead), sum(&bare, |second| second.dead));
    assert!(dead <= without + without / 5, "{dead} dead, {without} without");
}

/// A message that a storm has spared is in the dead-letter queue when its time is over, not nowhere.
#[test]
fn a_spared_message_whose_time_is_over_is_dead_and_not_dropped() {
    let mut rig = Rig::new();
    let dead_letter = Some(DeadLetter { queue: QueueId(DEAD), receives_max: 1 });
    rig.configure(QUEUE, Settings { dead_letter, retention_ms: 60_000, ..Settings::default() });
    rig.apply(Command::SetRetryBudget { queue: QueueId(QUEUE), budget: Some(BUDGET), revision: 100 });
    rig.send(QUEUE, &[b"bad" as &[u8]; 40]);
    let items = rig.receive(QUEUE, 40, 1_000).iter().map(|delivery| (delivery.receipt, 0)).collect();
    rig.apply(Command::Release { queue: QueueId(QUEUE), items });
    let shard = rig.partition.shard(QueueId(QUEUE)).unwrap();
    let before = u64::from(STORM_MESSAGES_MIN) - 1;
    assert_eq!((shard.totals.dead, shard.totals.spared), (before, 40 - before));
    rig.pass(60_000);
    rig.expire();
    let shard = rig.partition.shard(QueueId(QUEUE)).unwrap();
    assert_eq!((shard.totals.dead, shard.totals.dropped, shard.counters.delayed), (40, 0, 0));
}

/// A budget that is taken away lets go what it held.
#[test]
fn without_its_budget_nothing_is_held() {
    let mut rig = Rig::new();
    rig.configure(QUEUE, Settings::default());
    rig.apply(Command::SetRetryBudget { queue: QueueId(QUEUE), budget: Some(BUDGET), revision: 100 });
    rig.send(QUEUE, &[b"work" as &[u8]; 100]);
    let deliveries = rig.receive(QUEUE, 100, 1_000);
    let items = deliveries.iter().map(|delivery| (delivery.receipt, 0)).collect();
    rig.apply(Command::Release { queue: QueueId(QUEUE), items });
    let held = rig.partition.shard(QueueId(QUEUE)).unwrap().damping.unwrap().held;
    assert!(held > 50, "{held} held");
    assert_eq!(rig.receive(QUEUE, 100, 10_000).len() as u64, 100 - held);
    rig.apply(Command::SetRetryBudget { queue: QueueId(QUEUE), budget: None, revision: 101 });
    rig.expire();
    assert_eq!(rig.receive(QUEUE, 100, 1_000).len() as u64, held);
}
