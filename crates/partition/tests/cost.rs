//! The work of an operation does not depend on how much waits, is in flight, or exists.
//!
//! No scan over in-flight messages, ever; purge and deletion at constant cost. Work is
//! counted in slots written, which is the same on every machine.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use leasehold_partition::*;
use rig::{Check, Rig, receive};

/// Which groups the messages have.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Groups {
    None,
    One,
    /// One for each message.
    Each,
}

/// A queue with `messages` messages, half of them leased.
fn loaded(messages: u64, kind: Kind, groups: Groups) -> Rig {
    let mut rig = Rig::new();
    rig.check = Check::Never;
    rig.configure(1, Settings { kind, in_flight_max: u32::MAX, ..Settings::default() });
    for chunk in 0..messages.div_ceil(1000) {
        let numbers =
            (0..messages.min(1000)).map(|at| if groups == Groups::Each { chunk * 1000 + at } else { 0 });
        let names: Vec<_> = numbers.map(u64::to_le_bytes).collect();
        let group = |name| (groups != Groups::None).then_some(name);
        let contents =
            names.iter().map(|name| Content { group: group(&name[..]), ..Content::of_body(b"body") });
        let messages = contents.map(|content| NewMessage { content, ..NewMessage::default() }).collect();
        rig.apply(Command::Send { queue: QueueId(1), messages });
    }
    let mut leased = 0;
    while leased < messages / 2 {
        leased += rig.receive(1, 1000.min(messages as u32 / 2), 40_000_000).len() as u64;
    }
    rig
}

fn steps(rig: &mut Rig, command: Command<'_>) -> u64 {
    let before = rig.partition.steps();
    let reply = rig.apply(command);
    assert!(!matches!(reply, Reply::Refused { .. } | Reply::OverLimit), "{reply:?}");
    rig.partition.steps() - before
}

/// The steps of one of each operation, on a queue of that size.
fn costs(messages: u64, kind: Kind, groups: Groups) -> Vec<(&'static str, u64)> {
    let mut rig = loaded(messages, kind, groups);
    let queue = QueueId(1);
    let group = (groups != Groups::None).then_some(&b"one more"[..]);
    let content = Content { group, ..Content::of_body(b"body") };
    let message = NewMessage { content, ..NewMessage::default() };
    let send = steps(&mut rig, Command::Send { queue, messages: vec![message] });
    let grant = steps(&mut rig, receive(1, 1, 1));
    rig.pass(10);
    let expire = Command::Expire { leases_as_of_ms: rig.now_ms, items_max: 100 };
    let expire = steps(&mut rig, expire);
    let receipt = rig.receive(1, 1, 1000)[0].receipt;
    let extend = steps(&mut rig, Command::Extend { queue, items: vec![(receipt, 5_000)] });
    let release = steps(&mut rig, Command::Release { queue, items: vec![(receipt, 100)] });
    let receipt = rig.receive(1, 1, 1000)[0].receipt;
    let ack = steps(&mut rig, Command::Ack { queue, receipts: vec![receipt] });
    let nothing_due = Command::Expire { leases_as_of_ms: rig.now_ms, items_max: 100 };
    let idle = steps(&mut rig, nothing_due);
    vec![
        ("send", send),
        ("grant", grant),
        ("expire", expire),
        ("extend", extend),
        ("release", release),
        ("ack", ack),
        ("idle", idle),
    ]
}

#[test]
fn operations_cost_the_same_with_10_and_with_100_000_messages() {
    let queues = [
        (Kind::Standard, Groups::None),
        (Kind::Standard, Groups::One),
        (Kind::Standard, Groups::Each),
        (Kind::Fifo, Groups::Each),
    ];
    for (kind, groups) in queues {
        let (few, many) = (costs(10, kind, groups), costs(100_000, kind, groups));
        for ((name, few), (_, many)) in few.iter().zip(&many) {
            let of = format!("{kind:?} {groups:?} {name}");
            assert!(*many <= few + 8, "{of}: {few} steps with 10 messages, {many} with 100,000");
            assert!(*many <= 40, "{of}: {many} steps");
        }
    }
}

/// Who has no tenants pays nothing for them: these are the steps from before there were any, and one in a grant from a run,
/// whose next message gets its record.
#[test]
fn tenants_cost_a_queue_without_groups_nothing() {
    let before =
        [("send", 10), ("grant", 9), ("expire", 4), ("extend", 3), ("release", 5), ("ack", 12), ("idle", 0)];
    assert_eq!(costs(1_000, Kind::Standard, Groups::None), before);
}

/// A purge writes nothing at once, and what it left goes a bounded number at a time while the deadline says "now".
#[test]
fn purge_and_deletion_are_spread_over_later_commands() {
    let commands =
        [Command::Purge { queue: QueueId(1) }, Command::Delete { queue: QueueId(1), revision: 100 }];
    for (command, kind) in
        commands.into_iter().flat_map(|command| [(command.clone(), Kind::Fifo), (command, Kind::Standard)])
    {
        let mut rig = loaded(10_000, kind, Groups::Each);
        // The command itself sweeps once, like every command: 256 items of a bounded cost.
        assert!(steps(&mut rig, command) <= 256 * 20);
        assert!(!rig.partition.has_ready(QueueId(1)));
        let mut marks = 0;
        while rig.partition.next_deadline().is_some_and(|deadline| deadline.garbage) {
            assert!(steps(&mut rig, Command::Mark) <= 256 * 20);
            marks += 1;
        }
        assert!((39..=80).contains(&marks), "{marks} marks for 10,000 messages and as many groups");
        rig.partition.check_invariants();
        assert_eq!(rig.partition.live_contents().count(), 0, "nothing of it lives");
    }
}

/// An expiry entry ends no more than it is asked to, says so, and goes on where it stopped.
#[test]
fn expiry_is_bounded() {
    let mut rig = Rig::new();
    rig.configure(1, Settings::default());
    rig.send(1, &[b"x" as &[u8]; 25]);
    assert_eq!(rig.receive(1, 25, 10).len(), 25);
    rig.pass(10);
    for (leases, more) in [(10, true), (10, true), (5, false), (0, false)] {
        let expire = Command::Expire { leases_as_of_ms: rig.now_ms, items_max: 10 };
        let (delays, dropped, forgotten) = (0, 0, 0);
        assert_eq!(rig.apply(expire), Reply::Expired { leases, delays, dropped, forgotten, more });
    }
}
