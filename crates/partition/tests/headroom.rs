//! What is measured is what a recount of everything that happened gives, and it stays small.
//!
//! Source: `src/headroom.rs`; the bound of a quantile's error is tested beside the histogram.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use std::collections::BTreeMap;

use leasehold_partition::limits::HEADROOM_WINDOW_MS;
use leasehold_partition::*;
use rig::{Check, Random, Rig, for_seeds};

const QUEUE: QueueId = QueueId(1);
const CONSUMERS: [&[u8]; 5] = [b"plain", b"v1@a", b"v1@b", b"v2/a", b"v3@a"];

/// What the test remembers of a lease.
#[derive(Clone, Copy)]
struct Lease {
    receipt: Receipt,
    version: &'static str,
    granted_ms: u64,
    until_ms: u64,
    lease_ms: u64,
}

#[derive(Clone, Copy)]
enum What {
    Ack { held_ms: u64, in_last_tenth: bool },
    Late,
    Extended,
    Expired,
}

#[derive(Default)]
struct Book {
    held: Vec<Lease>,
    ended: Vec<Lease>,
    /// When, of which version, what.
    happened: Vec<(u64, &'static str, What)>,
}

impl Book {
    fn expected(&self, now_ms: u64) -> BTreeMap<&'static str, Measure> {
        let window = |ms: u64| ms / HEADROOM_WINDOW_MS;
        let mut measures: BTreeMap<&str, Measure> = BTreeMap::new();
        for (at_ms, version, what) in &self.happened {
            if window(*at_ms) + 1 < window(now_ms) {
                continue;
            }
            let measure = measures.entry(version).or_default();
            match what {
                What::Ack { held_ms, in_last_tenth } => {
                    measure.held.record(*held_ms);
                    measure.last_tenth += u32::from(*in_last_tenth);
                }
                What::Late => measure.late += 1,
                What::Extended => measure.extended += 1,
                What::Expired => measure.expired += 1,
            }
        }
        measures
    }
}

fn receive(rig: &mut Rig, book: &mut Book, random: &mut Random) {
    let which = random.below(CONSUMERS.len() as u64) as usize;
    let lease_ms = 1 + random.below(2_000_000);
    let command = Command::Receive {
        queue: QUEUE,
        messages_max: 1 + random.below(3) as u32,
        bytes_max: u64::MAX,
        lease_ms: Some(lease_ms as u32),
        attempt: None,
        consumer: CONSUMERS[which],
    };
    let Reply::Received { deliveries } = rig.apply(command) else { panic!("a receive is answered") };
    let (version, granted_ms) = (["", "v1", "v1", "v2", "v3"][which], rig.now_ms);
    book.held.extend(deliveries.iter().map(|delivery| Lease {
        receipt: delivery.receipt,
        version,
        granted_ms,
        until_ms: granted_ms + lease_ms,
        lease_ms,
    }));
}

fn ack(rig: &mut Rig, book: &mut Book, at: usize) {
    let lease = book.held.swap_remove(at);
    let reply = rig.apply(Command::Ack { queue: QUEUE, receipts: vec![lease.receipt] });
    assert_eq!(reply, Reply::Settled { outcomes: vec![Outcome::Done] });
    let left_ms = lease.until_ms.saturating_sub(rig.now_ms);
    let in_last_tenth = left_ms * 10 < lease.lease_ms;
    let held_ms = rig.now_ms - lease.granted_ms;
    book.happened.push((rig.now_ms, lease.version, What::Ack { held_ms, in_last_tenth }));
}

fn extend(rig: &mut Rig, book: &mut Book, at: usize, lease_ms: u64) {
    let lease = &mut book.held[at];
    (lease.until_ms, lease.lease_ms) = (rig.now_ms + lease_ms, lease_ms);
    rig.apply(Command::Extend { queue: QUEUE, items: vec![(lease.receipt, lease_ms as u32)] });
    book.happened.push((rig.now_ms, lease.version, What::Extended));
}

fn expire(rig: &mut Rig, book: &mut Book) {
    rig.expire();
    let (over, held) =
        std::mem::take(&mut book.held).into_iter().partition(|lease| lease.until_ms <= rig.now_ms);
    book.held = held;
    let over: Vec<Lease> = over;
    book.happened.extend(over.iter().map(|lease| (rig.now_ms, lease.version, What::Expired)));
    book.ended.extend(over);
}

/// Late acks: of messages that are with nobody, with another consumer, or done by one.
fn ack_late(rig: &mut Rig, book: &mut Book) {
    let lease = book.ended.pop();
    let receipts = lease.iter().map(|lease| lease.receipt).collect();
    let reply = rig.apply(Command::Ack { queue: QUEUE, receipts });
    let Reply::Settled { outcomes } = reply else { panic!("an ack is answered") };
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Stale | Outcome::Gone)), "{outcomes:?}");
    book.happened.extend(outcomes.iter().map(|_| (rig.now_ms, "", What::Late)));
}

#[test]
fn what_is_measured_is_what_happened() {
    for_seeds("headroom", 30, |seed| {
        let (mut rig, mut book, mut random) = (Rig::new(), Book::default(), Random::new(seed));
        rig.configure(QUEUE.0, Settings::default());
        for _ in 0..400 {
            rig.pass([0, 7, 900, 50_000, limits::STAMP_STEP_MS_MAX][random.below(5) as usize]);
            let at = random.below(book.held.len().max(1) as u64) as usize;
            match random.below(10) {
                0..2 => _ = rig.send(QUEUE.0, &[b"work" as &[u8]; 3]),
                2..5 => receive(&mut rig, &mut book, &mut random),
                5..7 if at < book.held.len() => ack(&mut rig, &mut book, at),
                7 if at < book.held.len() => extend(&mut rig, &mut book, at, 1 + random.below(1_000_000)),
                8 => expire(&mut rig, &mut book),
                9 => ack_late(&mut rig, &mut book),
                _ => _ = rig.apply(Command::Mark),
            }
            let measured = rig.partition.headroom(QUEUE);
            let measured: BTreeMap<_, _> = measured
                .iter()
                .map(|(version, measure)| (std::str::from_utf8(version).unwrap(), measure.clone()))
                .collect();
            assert_eq!(measured, book.expected(rig.now_ms));
        }
    });
}

/// A lease is of 12 h at most, and what was measured is forgotten after two or three.
#[test]
fn a_lease_that_outlives_its_version_counts_for_no_other() {
    let mut rig = Rig::new();
    rig.configure(QUEUE.0, Settings::default());
    rig.send(QUEUE.0, &[b"a" as &[u8], b"b"]);
    let receive = |rig: &mut Rig, consumer: &'static [u8]| {
        let command = Command::Receive {
            queue: QUEUE,
            messages_max: 1,
            bytes_max: u64::MAX,
            lease_ms: Some(limits::LEASE_MS_MAX),
            attempt: None,
            consumer,
        };
        let Reply::Received { deliveries } = rig.apply(command) else { panic!("a receive is answered") };
        deliveries[0].receipt
    };
    let old = receive(&mut rig, b"v1@a");
    while rig.now_ms < 3 * HEADROOM_WINDOW_MS {
        rig.pass(limits::STAMP_STEP_MS_MAX);
        rig.expire();
    }
    receive(&mut rig, b"v2@a");
    let reply = rig.apply(Command::Ack { queue: QUEUE, receipts: vec![old] });
    assert_eq!(reply, Reply::Settled { outcomes: vec![Outcome::Done] });
    let measured = rig.partition.headroom(QUEUE);
    let acks: Vec<_> =
        measured.iter().map(|(version, measure)| (&version[..], measure.held.total())).collect();
    assert_eq!(acks, [(&b""[..], 1)], "of no version that is known");
}

/// A queue that has measured two versions, from a millisecond to a minute, and is idle now.
#[test]
fn a_measured_queue_is_small_and_is_forgotten() {
    let mut rig = Rig::new();
    rig.check = Check::Never;
    rig.configure(QUEUE.0, Settings::default());
    let before = rig.partition.snapshot().len();
    for takes_ms in (0..16).map(|power| 1 << power) {
        rig.send(QUEUE.0, &[b"a" as &[u8], b"b"]);
        let receipts = [1_201, 1_202].map(|lease_ms| rig.receive(QUEUE.0, 1, lease_ms)[0].receipt).to_vec();
        rig.pass(takes_ms);
        rig.apply(Command::Ack { queue: QUEUE, receipts });
    }
    assert_eq!(rig.partition.headroom(QUEUE).len(), 2, "two versions");
    let bytes = rig.partition.snapshot().len() - before;
    assert!(bytes < 2048, "{bytes} bytes");
    while rig.partition.next_deadline().is_some() {
        assert!(rig.now_ms < 4 * HEADROOM_WINDOW_MS, "it is forgotten");
        rig.pass(limits::STAMP_STEP_MS_MAX);
        rig.expire();
    }
    assert_eq!(rig.partition.snapshot().len(), before, "nothing is left of it");
}
