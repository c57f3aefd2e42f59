//! Snapshots that older versions wrote are read, and mean the same.
//!
//! `snapshots/version-N.bin` is what the code of that version wrote of the log below: it lies on disks of others, so it is
//! never written again.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use leasehold_partition::*;
use rig::{Check, Rig};

/// Of no version: that is what version 1 kept of a consumer.
fn receive(queue: u64, messages_max: u32, lease_ms: u32) -> Command<'static> {
    let (queue, lease_ms) = (QueueId(queue), Some(lease_ms));
    Command::Receive { queue, messages_max, bytes_max: u64::MAX, lease_ms, attempt: None, consumer: b"test" }
}

fn granted(reply: Reply) -> Vec<Delivery> {
    let Reply::Received { deliveries } = reply else { panic!("{reply:?}") };
    deliveries
}

/// A state with messages in every list that version 1 knew.
fn rig() -> Rig {
    let mut rig = Rig::new();
    let dead_letter = Some(DeadLetter { queue: QueueId(3), receives_max: 2 });
    rig.configure(1, Settings { dead_letter, ..Settings::default() });
    rig.configure(2, Settings { kind: Kind::Fifo, ..Settings::default() });
    rig.configure(3, Settings::default());
    rig.send(1, &[b"a" as &[u8], b"b", b"c", b"d", b"e", b"f"]);
    for group in [b"g1" as &[u8], b"g2", b"g1"] {
        let content = Content { group: Some(group), dedup_id: None, ..Content::of_body(b"fifo") };
        let messages = vec![NewMessage { content, ..NewMessage::default() }];
        rig.apply(Command::Send { queue: QueueId(2), messages });
    }
    let content = Content { dedup_id: Some(b"once"), ..Content::of_body(b"late") };
    let message = NewMessage { delay_ms: Some(5_000), expiry_ms: Some(70_000), content };
    rig.apply(Command::Send { queue: QueueId(1), messages: vec![message] });
    let first = granted(rig.apply(receive(1, 2, 1_000)));
    let items = first.iter().map(|delivery| (delivery.receipt, 0)).collect();
    rig.apply(Command::Release { queue: QueueId(1), items });
    rig.pass(700);
    let again = granted(rig.apply(receive(1, 3, 2_000)));
    let items = again[..1].iter().map(|delivery| (delivery.receipt, 0)).collect();
    rig.apply(Command::Release { queue: QueueId(1), items });
    rig.apply(receive(2, 1, 9_000));
    let request = RequestId { session: 5, sequence: 1, completed_below: 0 };
    rig.apply_all(&[Request { id: Some(request), command: receive(1, 1, 30_000) }]);
    rig
}

/// The same with what version 2 knew beside it: tenants, and measures by version of the consumers.
fn rig_of_version_2() -> Rig {
    let mut rig = rig();
    rig.configure(4, Settings::default());
    for group in [b"t1" as &[u8], b"t1", b"t2", b"t1"] {
        let content = Content { group: Some(group), ..Content::of_body(b"tenant") };
        let messages = vec![NewMessage { content, ..NewMessage::default() }];
        rig.apply(Command::Send { queue: QueueId(4), messages });
    }
    let receipts = [10_001, 10_002].map(|lease_ms| rig.receive(4, 1, lease_ms)[0].receipt);
    rig.pass(300);
    rig.apply(Command::Ack { queue: QueueId(4), receipts: receipts[..1].to_vec() });
    rig.apply(Command::Extend { queue: QueueId(4), items: vec![(receipts[1], 20_000)] });
    rig.receive(4, 1, 10_003);
    rig
}

#[test]
fn a_snapshot_of_version_2_is_what_a_replay_gives() {
    let copy = Partition::restore(include_bytes!("snapshots/version-2.bin")).unwrap();
    copy.check_invariants();
    let mut rig = rig_of_version_2();
    assert_eq!(copy.state_hash(), rig.partition.state_hash());
    rig.partition = copy;
    rig.pass(100_000);
    rig.expire();
    let measured = rig.partition.headroom(QueueId(4));
    let expired = measured.iter().map(|(version, measure)| (&version[..], measure.expired));
    assert_eq!(expired.collect::<Vec<_>>(), [(&b""[..], 1), (b"v5", 0), (b"v1", 1)]);
    assert_eq!(rig.receive(4, 10, 1_000).len(), 3);
}

#[test]
fn a_snapshot_of_version_1_is_what_a_replay_gives() {
    let copy = Partition::restore(include_bytes!("snapshots/version-1.bin")).unwrap();
    copy.check_invariants();
    let mut rig = rig();
    assert_eq!(copy.state_hash(), rig.partition.state_hash());
    rig.partition = copy;
    rig.pass(100_000);
    rig.expire();
    let dead = rig.partition.shard(QueueId(1)).unwrap().counters.dead;
    let living = rig.receive(1, 10, 1_000).len() as u64;
    assert_eq!((living, dead), (4, 2), "of seven one is past its time to live");
    assert_eq!(rig.receive(2, 10, 1_000).len(), 3);
}

/// Queues with stretches of messages to which nothing has happened, and with everything else between them.
fn rig_of_version_3() -> Rig {
    let mut rig = rig_of_version_2();
    rig.check = Check::Never;
    let [deep, purged, deleted] = [5, 6, 7];
    [deep, purged, deleted].iter().for_each(|queue| rig.configure(*queue, Settings::default()));
    let send = |queue, messages| Command::Send { queue: QueueId(queue), messages };
    let plain =
        |count| vec![NewMessage { content: Content::of_body(b"plain"), ..NewMessage::default() }; count];
    let mut mixed = plain(9);
    (mixed[2].delay_ms, mixed[5].expiry_ms, mixed[6].content.group) =
        (Some(50), Some(90_000), Some(b"t3" as &[u8]));
    for round in 0..30 {
        rig.pass(20);
        let sends = [
            send(deep, plain(7)),
            send(purged, plain(5)),
            send(deep, plain(1)),
            send(deep, mixed.clone()),
            send(deleted, plain(3)),
            send(deep, plain(round)),
        ];
        rig.apply_all(&sends.map(Request::from));
        let receipts: Vec<_> = rig.receive(deep, 9, 1_000).iter().map(|delivery| delivery.receipt).collect();
        rig.apply(Command::Ack { queue: QueueId(deep), receipts: receipts[..6].to_vec() });
        rig.apply(Command::Release { queue: QueueId(deep), items: vec![(receipts[7], 0)] });
        rig.receive(purged, 2, 1_000);
    }
    (0..5).for_each(|_| _ = rig.apply(send(purged, plain(100))));
    rig.apply(Command::Delete { queue: QueueId(deleted), revision: 1_000 });
    let start =
        Command::RedriveStart { queue: QueueId(deep), target: Some(QueueId(1)), rate_per_s: 0, id: 1 };
    rig.apply(start);
    rig.apply(Command::RedriveStep { queue: QueueId(deep), items_max: 10 });
    rig.apply(Command::Purge { queue: QueueId(purged) });
    rig.apply(send(purged, plain(40)));
    assert!(rig.partition.next_deadline().unwrap().garbage, "a purge is not swept yet");
    rig.partition.check_invariants();
    rig
}

/// A snapshot says nothing of how messages are kept: version 3 had a record for each.
#[test]
fn a_snapshot_of_version_3_is_what_a_replay_gives() {
    check_deep(include_bytes!("snapshots/version-3.bin"));
}

#[test]
fn a_snapshot_of_version_4_is_written_again_to_the_byte() {
    let bytes = include_bytes!("snapshots/version-4.bin");
    check_deep(bytes);
    assert!(rig_of_version_3().partition.snapshot() == bytes, "the state is another");
    assert!(Partition::restore(bytes).unwrap().snapshot() == bytes, "the copy is another");
}

#[test]
fn messages_that_wait_untouched_are_written_in_short() {
    let mut rig = Rig::new();
    rig.check = Check::Never;
    rig.configure(1, Settings::default());
    let mut len_bytes_of = |body: &[u8]| {
        let before = rig.partition.snapshot().len();
        for _ in 0..10 {
            let messages = vec![NewMessage { content: Content::of_body(body), ..NewMessage::default() }; 500];
            rig.apply(Command::Send { queue: QueueId(1), messages });
        }
        (rig.partition.snapshot().len() - before) / 5_000
    };
    assert_eq!((len_bytes_of(b"short"), len_bytes_of(&[7; 1024])), (3, 4));
    let copy = Partition::restore(&rig.partition.snapshot()).unwrap();
    copy.check_invariants();
    assert_eq!(copy.state_hash(), rig.partition.state_hash());
}

fn check_deep(bytes: &[u8]) {
    let mut rig = rig_of_version_3();
    let copy = Partition::restore(bytes).unwrap();
    copy.check_invariants();
    assert_eq!(copy.state_hash(), rig.partition.state_hash());
    rig.partition = copy;
    rig.pass(100_000);
    while let Reply::Expired { more: true, .. } = rig.expire() {}
    let ready = rig.partition.shard(QueueId(5)).unwrap().counters.ready;
    let mut received = 0;
    while let deliveries @ [_, ..] = &rig.receive(5, 100, 1_000)[..] {
        received += deliveries.len() as u64;
    }
    assert_eq!((received, rig.receive(6, 100, 1_000).len()), (ready, 40));
}
