//! A copy of a partition that begins again in another cluster: what it keeps, what it leaves out, and which names it never gives out.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use leasehold_partition::limits::LIFE_GAP;
use leasehold_partition::*;
use rig::{Random, Rig, for_seeds};

/// Messages in every state, of every kind of queue, by chance.
fn fill(rig: &mut Rig, random: &mut Random) {
    let dead_letter = Some(DeadLetter { queue: QueueId(3), receives_max: 2 });
    rig.configure(1, Settings { dead_letter, ..Settings::default() });
    rig.configure(2, Settings { kind: Kind::Fifo, dead_letter, ..Settings::default() });
    rig.configure(4, Settings::default());
    rig.apply(Command::SetIsolation {
        queue: QueueId(1),
        isolation: Isolation::On,
        revision: rig.partition.revision_min() + 1,
    });
    for number in 0..60 {
        let (queue, name) = (1 + random.below(2), number.to_string());
        let group = [b"a" as &[u8], b"b", b"c"][random.below(3) as usize];
        let group = (queue == 2 || random.one_in(2)).then_some(group);
        let content = Content { group, dedup_id: Some(name.as_bytes()), ..Content::of_body(b"body") };
        let delay_ms = (queue == 1 && random.one_in(4)).then_some(500_000);
        let expiry_ms = random.one_in(5).then_some(3_000_000);
        let messages = vec![NewMessage { content, delay_ms, expiry_ms }];
        rig.apply(Command::Send { queue: QueueId(queue), messages });
        if random.one_in(3) {
            rig.receive(1 + random.below(2), 2, 1_000 + random.below(3) as u32);
        }
        if random.one_in(4) {
            rig.pass(random.below(1_500));
            rig.expire();
        }
    }
    // Runs of untouched messages, of which some will be missing in the middle.
    rig.configure(5, Settings::default());
    for _ in 0..8 {
        rig.send(5, &[b"run" as &[u8]; 9]);
    }
    rig.send(4, &[b"purged" as &[u8], b"too"]);
    rig.apply(Command::Purge { queue: QueueId(4) });
}

fn views(partition: &Partition) -> Vec<MessageView> {
    let all = (1..1_000).filter_map(|sequence| partition.find(sequence));
    all.collect()
}

#[test]
fn what_came_is_kept_and_what_did_not_come_is_gone_from_everything() {
    for_seeds("second_life", 40, |seed| {
        let mut random = Random::new(seed);
        let mut rig = Rig::new();
        fill(&mut rig, &mut random);
        let before = views(&rig.partition);
        let mut copy = Partition::restore(&rig.partition.snapshot()).unwrap();
        let salt = random.next();
        let came = |content: ContentRef| {
            (content.log_index ^ u64::from(content.offset) ^ salt).count_ones().is_multiple_of(2)
        };
        let gone = copy.begin_again(came);
        copy.check_invariants();
        let (kept, lost): (Vec<_>, Vec<_>) = before.into_iter().partition(|message| came(message.content));
        assert_eq!((views(&copy), gone), (kept, lost.len() as u64));
        assert_eq!(copy.message_count(), rig.partition.message_count() - gone);
        // It lives on: everything that is left can end.
        rig.partition = copy;
        rig.check = rig::Check::Never;
        rig.pass(600_000);
        rig.expire();
        rig.partition.check_invariants();
    });
}

/// A copy that goes on beside the first life.
fn second_life(first: &Rig) -> Rig {
    let mut copy = Partition::restore(&first.partition.snapshot()).unwrap();
    assert_eq!(copy.begin_again(|_| true), 0);
    let mut second = Rig::new();
    (second.log_index, second.now_ms, second.wall_ms) = (first.log_index, first.now_ms, first.wall_ms);
    second.check = rig::Check::Never;
    second.partition = copy;
    second
}

#[test]
fn names_of_the_first_life_are_never_given_out_again() {
    let mut rig = Rig::new();
    rig.configure(1, Settings::default());
    rig.send(1, &[b"a" as &[u8], b"b"]);
    let first = rig.receive(1, 1, 1_000)[0].receipt;
    let mut second = second_life(&rig);
    // The first life goes on, and does as much as it can.
    let [SendOutcome::Sent { key: old }] = rig.send(1, &[b"c" as &[u8]])[..] else { panic!("not sent") };
    let [SendOutcome::Sent { key: new }] = second.send(1, &[b"d" as &[u8]])[..] else { panic!("not sent") };
    assert!(new.sequence >= old.sequence + LIFE_GAP - 1, "{old:?} {new:?}");
    let old = rig.receive(1, 1, 1_000)[0].receipt;
    let new = second.receive(1, 1, 1_000)[0].receipt;
    assert_eq!(old.key(), new.key(), "the same message");
    assert!(new.grant >= old.grant + LIFE_GAP - 1, "{old:?} {new:?}");
    // The lease that was in force is in force, and ends.
    assert!(second.partition.holds_lease(&first));
    second.pass(1_000);
    second.expire();
    assert!(!second.partition.holds_lease(&first));
}

/// The number of the last dead letter of queue 1, after the lease of one more has ended.
fn next_dead(rig: &mut Rig) -> u64 {
    assert_eq!(rig.receive(1, 1, 1_000).len(), 1);
    rig.pass(1_000);
    rig.expire();
    rig.partition.outbox(QueueId(1), QueueId(3), 10).last().unwrap().number
}

#[test]
fn a_dead_letter_of_the_second_life_is_not_taken_for_one_of_the_first() {
    let mut rig = Rig::new();
    let dead_letter = Some(DeadLetter { queue: QueueId(3), receives_max: 1 });
    rig.configure(1, Settings { dead_letter, ..Settings::default() });
    rig.send(1, &[b"a" as &[u8], b"b", b"c"]);
    let kept = next_dead(&mut rig);
    let mut second = second_life(&rig);
    // The queue of dead letters has seen what the first life sent after the copy, and comes with the backup.
    let (seen, new) = (next_dead(&mut rig), next_dead(&mut second));
    let mut target = Rig::new();
    target.configure(3, Settings::default());
    for (number, arrived) in [(kept, 1), (seen, 2), (seen, 2), (new, 3)] {
        let source = Source { partition: 0, queue: QueueId(1) };
        let message = NewMessage { content: Content::of_body(b"dead"), ..NewMessage::default() };
        let messages = vec![TransferMessage { number, message }];
        target.apply(Command::Transfer { queue: QueueId(3), source, messages });
        assert_eq!(target.partition.shard(QueueId(3)).unwrap().counters.ready, arrived, "{number}");
    }
    assert!(new >= seen + LIFE_GAP - 1, "{seen} {new}");
}
