//! One absurd stamp can neither freeze nor race a partition, and wall time never falls.
//!
//! Source: I5 of docs/guarantees.md: clocks that jump, strobe and freeze.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use leasehold_partition::*;
use rig::{Check, Random, Rig, for_seeds};

fn mark(partition: &mut Partition, index: u64, log_time_ms: u64, wall_time_ms: u64) -> (u64, u64) {
    let mut batch = BatchBuilder::new(log_time_ms, wall_time_ms);
    batch.push(&Command::Mark).unwrap();
    partition.apply(index, &batch.finish(), History::Skip).unwrap();
    (partition.log_time_ms(), partition.wall_time_ms())
}

#[test]
fn a_stamp_moves_log_time_by_one_step_at_most() {
    let mut partition = Partition::new();
    assert_eq!(mark(&mut partition, 1, 1_000, 5_000), (1_000, 5_000));
    assert_eq!(mark(&mut partition, 2, u64::MAX, 5_000), (601_000, 5_000));
    assert_eq!(mark(&mut partition, 3, 601_000, 5_000), (601_000, 5_000));
    assert_eq!(mark(&mut partition, 4, 601_001, 5_000), (601_001, 5_000));
}

#[test]
#[should_panic(expected = "log time fell")]
fn a_stamp_that_falls_is_a_bug() {
    let mut partition = Partition::new();
    mark(&mut partition, 1, 1_000, 0);
    mark(&mut partition, 2, 999, 0);
}

#[test]
fn wall_time_holds_still_when_the_clock_jumps_back() {
    let mut partition = Partition::new();
    mark(&mut partition, 1, 1_000, 9_000_000);
    assert_eq!(mark(&mut partition, 2, 2_000, 1).1, 9_000_000);
    assert_eq!(mark(&mut partition, 3, 3_000, 9_000_500).1, 9_000_500);
}

/// An absurd wall time costs an hour at most, and nothing when no log time passes; a true gap of three days is caught up
/// within minutes of log time.
#[test]
fn wall_time_catches_up_at_a_bounded_rate() {
    let mut partition = Partition::new();
    mark(&mut partition, 1, 1_000, 9_000_000);
    assert_eq!(mark(&mut partition, 2, 1_000, u64::MAX).1, 9_000_000);
    assert_eq!(mark(&mut partition, 3, 1_001, u64::MAX).1, 9_001_000);
    assert_eq!(mark(&mut partition, 4, u64::MAX, u64::MAX).1, 9_001_000 + limits::WALL_STEP_MS_MAX);
    let (mut index, mut log_time_ms, behind) = (4, partition.log_time_ms(), 3 * 24 * 60 * 60 * 1000);
    let (log_start_ms, target) = (log_time_ms, partition.wall_time_ms() + behind);
    while partition.wall_time_ms() < target {
        index += 1;
        log_time_ms += 1_000;
        mark(&mut partition, index, log_time_ms, target);
    }
    assert!(log_time_ms - log_start_ms < 5 * 60 * 1000, "caught up after {} ms", log_time_ms - log_start_ms);
}

/// A message that ends a quiet week lives as long as any other, although wall time takes minutes to catch up.
#[test]
fn what_is_sent_after_a_quiet_time_is_not_old_by_it() {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    let mut rig = Rig::new();
    rig.configure(1, Settings { retention_ms: 4 * DAY_MS, ..Settings::default() });
    rig.send(1, &[b"before"]);
    rig.now_ms += limits::STAMP_STEP_MS_MAX;
    rig.wall_ms += 7 * DAY_MS;
    let (after, mortal) = (Content::of_body(b"after"), Content::of_body(b"mortal"));
    let messages = vec![
        NewMessage { content: after, ..NewMessage::default() },
        NewMessage { content: mortal, expiry_ms: Some(DAY_MS), ..NewMessage::default() },
    ];
    rig.apply(Command::Send { queue: QueueId(1), messages });
    let sent_wall_ms = rig.wall_ms;
    let catch_up = |rig: &mut Rig| {
        while rig.partition.wall_time_ms() < rig.wall_ms {
            rig.pass(1_000);
            rig.expire();
        }
    };
    catch_up(&mut rig);
    let received = rig.receive(1, 10, 0);
    assert_eq!(received.len(), 2);
    for delivery in received {
        assert_eq!(delivery.sent_wall_ms, sent_wall_ms);
        assert!(delivery.first_received_wall_ms >= sent_wall_ms);
    }
    rig.expire();
    rig.wall_ms = sent_wall_ms + DAY_MS;
    catch_up(&mut rig);
    assert_eq!(rig.receive(1, 10, 0).len(), 1);
    rig.expire();
    rig.wall_ms = sent_wall_ms + 4 * DAY_MS;
    catch_up(&mut rig);
    assert_eq!(rig.receive(1, 10, 0).len(), 0);
}

/// What is received before wall time has caught up was not received before it was sent.
#[test]
fn nothing_is_received_before_it_is_sent() {
    let mut rig = Rig::new();
    rig.configure(1, Settings::default());
    rig.pass(1_000);
    rig.wall_ms += limits::RETENTION_MS_MAX;
    rig.send(1, &[b"x"]);
    let delivery = rig.receive(1, 1, 1_000).remove(0);
    assert_eq!((delivery.sent_wall_ms, delivery.first_received_wall_ms), (rig.wall_ms, rig.wall_ms));
}

/// The first wall time is believed, but for one that could never be caught up with.
#[test]
fn the_first_wall_time_is_bounded() {
    assert_eq!(mark(&mut Partition::new(), 1, 0, u64::MAX).1, limits::WALL_MS_MAX);
}

/// Whatever the wall clocks do, no lease ends before its time, and every lease ends.
#[test]
fn leases_ignore_the_wall_clock() {
    for_seeds("clocks", 50, |seed| {
        let mut random = Random::new(seed);
        let mut rig = Rig::new();
        rig.configure(1, Settings::default());
        rig.send(1, &[b"x"]);
        let lease_ms = 1 + random.below(10_000);
        let until_ms = rig.receive(1, 1, lease_ms as u32)[0].deadline_log_ms;
        assert_eq!(until_ms, rig.now_ms + lease_ms);
        loop {
            rig.now_ms += random.below(3_000);
            rig.wall_ms = random.below(1 << 41);
            rig.expire();
            assert_eq!(rig.partition.has_ready(QueueId(1)), rig.now_ms >= until_ms);
            if rig.now_ms >= until_ms {
                break;
            }
        }
    });
}

/// Entries must come in order; gaps are membership changes and the like.
#[test]
fn indexes_may_have_gaps() {
    let mut partition = Partition::new();
    mark(&mut partition, 3, 0, 0);
    mark(&mut partition, 9, 0, 0);
    assert_eq!(partition.applied_index(), 9);
    let mut rig = Rig::new();
    rig.check = Check::Never;
    rig.configure(1, Settings::default());
    assert_eq!(rig.partition.applied_index(), 1);
}
