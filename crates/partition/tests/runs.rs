//! Messages to which nothing has happened are folded into runs, and nobody can tell: cut at every place, by everything that
//! can happen to the first of a run, they give what single messages give.
//!
//! Source: decision 027. The twin of a run is the same messages each in an entry of its own, where nothing is folded.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use leasehold_partition::*;
use rig::{Random, Rig, for_seeds};

const QUEUE: u64 = 1;
const OTHER: u64 = 2;
const RUN: u64 = 9;

/// What happens to a queue, in words that do not depend on how messages are kept.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Receive(u32),
    AckFirst,
    Release,
    Retention,
    Redrive(u32),
    Purge,
    Delete,
    SendMore,
    Snapshot,
}

/// The partition, and the receipts of what is leased.
struct Half {
    rig: Rig,
    leased: Vec<Receipt>,
}

impl Half {
    /// A queue with a run of messages, sent by `sends` entries.
    fn new(sends: u64) -> Self {
        let mut half = Self { rig: Rig::new(), leased: Vec::new() };
        for queue in [QUEUE, OTHER] {
            half.rig.configure(queue, Settings { retention_ms: 60_000, ..Settings::default() });
        }
        half.send(sends, RUN);
        half
    }

    fn send(&mut self, entries: u64, messages: u64) {
        let body = b"a body" as &[u8];
        (0..entries).for_each(|_| _ = self.rig.send(QUEUE, &vec![body; (messages / entries) as usize]));
    }

    /// Lets something happen; what can be seen of it.
    fn happen(&mut self, happening: Happening, entries: u64) -> String {
        let queue = QueueId(QUEUE);
        let seen = match happening {
            Happening::Receive(count) => {
                let deliveries = self.rig.receive(QUEUE, count, 5_000);
                self.leased.extend(deliveries.iter().map(|delivery| delivery.receipt));
                let seen =
                    deliveries.iter().map(|got| (got.receipt.sequence, got.receipt.grant, got.content.len));
                format!("{:?}", seen.collect::<Vec<_>>())
            }
            Happening::AckFirst if self.leased.is_empty() => String::new(),
            Happening::AckFirst => {
                let receipts = vec![self.leased.remove(0)];
                format!("{:?}", self.rig.apply(Command::Ack { queue, receipts }))
            }
            Happening::Release => {
                let items = self.leased.drain(..).map(|receipt| (receipt, 0)).collect();
                format!("{:?}", self.rig.apply(Command::Release { queue, items }))
            }
            Happening::Retention => {
                self.rig.pass(61_000);
                let expire = Command::Expire { leases_as_of_ms: self.rig.now_ms, items_max: 3 };
                format!("{:?}", self.rig.apply(expire))
            }
            Happening::Redrive(items_max) => {
                let (target, id) = (Some(QueueId(OTHER)), self.rig.log_index);
                self.rig.apply(Command::RedriveStart { queue, target, rate_per_s: 0, id: 1 });
                let stepped = self.rig.apply(Command::RedriveStep { queue, items_max });
                assert!(id < self.rig.log_index);
                format!("{stepped:?}")
            }
            Happening::Purge => format!("{:?}", self.rig.apply(Command::Purge { queue })),
            Happening::Delete => {
                let revision = self.rig.partition.revision_min() + 1;
                let deleted = self.rig.apply(Command::Delete { queue, revision });
                self.rig.configure(QUEUE, Settings { retention_ms: 60_000, ..Settings::default() });
                format!("{deleted:?}")
            }
            Happening::SendMore => {
                self.send(entries, RUN);
                String::new()
            }
            Happening::Snapshot => {
                let bytes = self.rig.partition.snapshot();
                self.rig.partition = Partition::restore(&bytes).unwrap();
                assert!(self.rig.partition.snapshot() == bytes, "a copy is the same to the byte");
                self.rig.partition.check_invariants();
                String::new()
            }
        };
        format!("{seen} {}", self.seen())
    }

    /// Everything that can be read of the queue, but for places in the log and slots.
    fn seen(&self) -> String {
        let partition = &self.rig.partition;
        let shard = partition.shard(QueueId(QUEUE)).map(|shard| (shard.counters, shard.totals));
        let view = |view: MessageView| {
            (view.key.sequence, view.queue, view.state, view.receive_count, view.content.len)
        };
        let peeked = |after| {
            let page = partition.peek(QueueId(QUEUE), after, 4);
            (page.messages.into_iter().map(view).collect::<Vec<_>>(), page.next_after_sequence)
        };
        let found: Vec<_> =
            (0..40).map(|sequence| (partition.find(sequence).map(view), peeked(sequence))).collect();
        let outbox = partition.outbox(QueueId(QUEUE), QueueId(OTHER), 40);
        let outbox: Vec<_> = outbox.iter().map(|item| (item.number, item.key.sequence)).collect();
        let live: u64 = partition.live_contents().map(|(_, bytes)| bytes).sum();
        let ranges = partition.live_contents().flat_map(|(index, _)| partition.live_ranges(index));
        assert_eq!(ranges.map(|(_, len)| u64::from(len)).sum::<u64>(), live, "ranges are what lives");
        format!("{shard:?} {found:?} {outbox:?} {live}")
    }
}

/// The same happenings to a run and to single messages.
fn agree(happenings: &[Happening]) {
    let (mut run, mut single) = (Half::new(1), Half::new(RUN));
    for (at, happening) in happenings.iter().enumerate() {
        let (seen, expected) = (run.happen(*happening, 1), single.happen(*happening, RUN));
        assert_eq!(seen, expected, "at {at} of {happenings:?}");
    }
}

#[test]
fn a_run_is_cut_at_every_place_by_everything() {
    let all = [
        Happening::Receive(1),
        Happening::Receive(4),
        Happening::Receive(20),
        Happening::AckFirst,
        Happening::Release,
        Happening::Retention,
        Happening::Redrive(1),
        Happening::Redrive(5),
        Happening::Purge,
        Happening::Delete,
        Happening::SendMore,
        Happening::Snapshot,
    ];
    for cut in 0..=RUN as u32 {
        for (first, second) in all.iter().flat_map(|first| all.map(|second| (*first, second))) {
            agree(&[Happening::Receive(cut.max(1)), first, second, Happening::Receive(2)]);
        }
    }
}

#[test]
fn random_happenings_cannot_tell_runs_from_single_messages() {
    for_seeds("runs", 40, |seed| {
        let mut random = Random::new(seed);
        let happenings: Vec<_> = (0..40)
            .map(|_| match random.below(20) {
                0..6 => Happening::Receive(1 + random.below(6) as u32),
                6..10 => Happening::AckFirst,
                10..12 => Happening::Release,
                12 => Happening::Retention,
                13 => Happening::Redrive(1 + random.below(4) as u32),
                14 => Happening::Purge,
                15 => Happening::Delete,
                16..19 => Happening::SendMore,
                _ => Happening::Snapshot,
            })
            .collect();
        agree(&happenings);
    });
}

/// A receipt that was never given out says the same of a folded message as of one with a record.
#[test]
fn a_receipt_of_a_message_that_was_never_granted_is_of_none() {
    let mut rig = Rig::new();
    rig.configure(QUEUE, Settings::default());
    rig.configure(OTHER, Settings::default());
    let sent = rig.send(QUEUE, &[b"x" as &[u8]; RUN as usize]);
    let grant = rig.receive(QUEUE, 1, 1_000)[0].receipt.grant;
    for outcome in &sent[1..] {
        let SendOutcome::Sent { key } = outcome else { panic!("{outcome:?}") };
        let receipt = Receipt { slot: key.slot, sequence: key.sequence, grant };
        let older = Receipt { sequence: key.sequence - 1, ..receipt };
        let mut ack = |queue, receipt| match rig.apply(Command::Ack { queue, receipts: vec![receipt] }) {
            Reply::Settled { outcomes } => outcomes[0],
            other => panic!("{other:?}"),
        };
        assert_eq!(ack(QueueId(QUEUE), receipt), Outcome::Gone);
        assert_eq!(ack(QueueId(OTHER), receipt), Outcome::Gone);
        assert_eq!(ack(QueueId(QUEUE), older), Outcome::Gone);
    }
    rig.apply(Command::Purge { queue: QueueId(QUEUE) });
    assert_eq!(rig.receive(QUEUE, 10, 1_000).len(), 0);
}
