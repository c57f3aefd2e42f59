//! What is remembered of clients is bounded, and what is forgotten is never executed again while its session lives.
//!
//! Source: I19 and I20 of docs/guarantees.md.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use leasehold_partition::*;
use rig::{Random, Rig, for_seeds};

fn id(session: u64, sequence: u64, completed_below: u64) -> RequestId {
    RequestId { session, sequence, completed_below }
}

fn send(body: &[u8]) -> Command<'_> {
    let message = NewMessage { content: Content::of_body(body), ..NewMessage::default() };
    Command::Send { queue: QueueId(1), messages: vec![message] }
}

#[test]
fn a_session_keeps_its_latest_replies() {
    let mut rig = Rig::new();
    rig.configure(1, Settings::default());
    let max = limits::SESSION_REPLIES_MAX as u64;
    for sequence in 0..=max {
        rig.apply_as(id(1, sequence, 0), send(b"x"));
    }
    let forgotten = Reply::Refused { reason: Refusal::RequestForgotten };
    assert_eq!(rig.apply_as(id(1, 0, 0), send(b"x")), forgotten);
    assert!(matches!(rig.apply_as(id(1, 1, 0), send(b"x")), Reply::Sent { .. }));
    assert_eq!(rig.partition.shard(QueueId(1)).unwrap().counters.ready, max + 1);
}

#[test]
fn the_idlest_session_makes_room() {
    let mut rig = Rig::new();
    rig.check = rig::Check::Never;
    rig.configure(1, Settings::default());
    for session in 0..limits::SESSIONS_MAX as u64 {
        rig.pass(1);
        rig.apply_as(id(session, 1, 0), Command::Mark);
    }
    rig.apply_as(id(0, 1, 0), Command::Mark); // busy again
    rig.apply_as(id(u64::MAX, 1, 0), Command::Mark); // session 1 is the idlest
    rig.partition.check_invariants();
    assert_eq!(rig.apply_as(id(0, 1, 0), send(b"x")), Reply::Done, "remembered");
    assert!(matches!(rig.apply_as(id(1, 1, 0), send(b"x")), Reply::Sent { .. }), "forgotten");
}

/// Attempts are bounded by what they were granted as well, whoever holds it now.
#[test]
fn the_oldest_attempt_makes_room() {
    let mut rig = Rig::new();
    rig.check = rig::Check::Never;
    rig.configure(1, Settings::default());
    rig.configure(2, Settings::default());
    rig.send(1, &[b"held"]);
    rig.send(2, &vec![b"x" as &[u8]; limits::RECEIVE_MESSAGES_MAX as usize]);
    let first = attempt(&mut rig, 1, b"first").remove(0).receipt;
    let rounds = limits::ATTEMPT_RECEIPTS_MAX / limits::RECEIVE_MESSAGES_MAX as usize;
    for round in 1..=rounds {
        let deliveries = attempt(&mut rig, 2, &round.to_le_bytes());
        let receipts = deliveries.iter().map(|delivery| delivery.receipt).collect();
        rig.apply(Command::GiveBack { queue: QueueId(2), receipts });
        rig.log.clear();
        if round + 1 == rounds {
            assert_eq!(attempt(&mut rig, 1, b"first")[0].receipt, first, "remembered");
        }
    }
    assert_eq!(attempt(&mut rig, 1, b"first"), Vec::new(), "forgotten");
    rig.partition.check_invariants();
}

fn attempt(rig: &mut Rig, queue: u64, attempt: &[u8]) -> Vec<Delivery> {
    let command = Command::Receive {
        queue: QueueId(queue),
        messages_max: limits::RECEIVE_MESSAGES_MAX,
        bytes_max: u64::MAX,
        lease_ms: None,
        attempt: Some(attempt),
        consumer: b"worker",
    };
    match rig.apply(command) {
        Reply::Received { deliveries } => deliveries,
        other => panic!("{other:?}"),
    }
}

/// Any mixture of new and repeated requests: a repeated one has its first reply, and leaves the counters alone. A receive that
/// got nothing is not done yet, and the next request of its name is a new one.
#[test]
fn repeated_requests_change_nothing() {
    for_seeds("sessions", 40, |seed| {
        let mut random = Random::new(seed);
        let mut rig = Rig::new();
        rig.configure(1, Settings { in_flight_max: 5, ..Settings::default() });
        let mut replies: Vec<Vec<Reply>> = vec![Vec::new(); 3];
        let mut receipts = Vec::new();
        for _ in 0..300 {
            let session = random.below(3);
            let known = &mut replies[session as usize];
            let repeat = known.len() as u64 > 3 && random.one_in(2);
            let sequence = match repeat {
                true => known.len() as u64 - 1 - random.below(3),
                false => known.len() as u64,
            };
            let completed_below = sequence.saturating_sub(random.below(4) + 3);
            let command = match random.below(3) {
                0 => send(b"x"),
                1 => rig::receive(1, 2, 500),
                _ => Command::Ack { queue: QueueId(1), receipts: receipts.split_off(receipts.len() / 2) },
            };
            rig.pass(random.below(100));
            let before = rig.partition.shard(QueueId(1));
            let reply = rig.apply_as(id(session, sequence, completed_below), command);
            match known.get_mut(sequence as usize) {
                Some(first) if got_nothing(first) => *first = reply.clone(),
                Some(first) => {
                    assert_eq!(reply, *first);
                    assert_eq!(rig.partition.shard(QueueId(1)), before);
                }
                None => known.push(reply.clone()),
            }
            if let Reply::Received { deliveries } = reply {
                receipts.extend(deliveries.iter().map(|delivery| delivery.receipt));
            }
            if random.one_in(10) {
                rig.expire();
                rig.partition = Partition::restore(&rig.partition.snapshot()).unwrap();
            }
        }
    });
}

fn got_nothing(reply: &Reply) -> bool {
    *reply == Reply::OverLimit || *reply == (Reply::Received { deliveries: Vec::new() })
}
