//! The state machine of a partition, fed with entries as the log would feed it.

use leasehold_partition::{
    BatchBuilder, Command, Content, Delivery, History, Kind, NewMessage, Partition, QueueId, Reply, Settings,
};

use crate::BATCH;

const QUEUE: QueueId = QueueId(1);
const BODY: [u8; 128] = [7; 128];
const GROUPS: u32 = 50;
const LEASE_MS: u64 = 30_000;

/// What the messages of a cycle are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Plain,
    Tenants,
    Fifo,
    Deduplication,
}

struct Rig {
    partition: Partition,
    index: u64,
    now_ms: u64,
    sent: u32,
    shape: Shape,
}

impl Rig {
    fn new(shape: Shape) -> Self {
        let mut rig = Self { partition: Partition::new(), index: 0, now_ms: 1_000, sent: 0, shape };
        let kind = if shape == Shape::Fifo { Kind::Fifo } else { Kind::Standard };
        let settings = Settings { kind, lease_ms: LEASE_MS as u32, ..Settings::default() };
        rig.apply(&Command::Configure { queue: QUEUE, settings, revision: 1 });
        rig
    }

    fn apply(&mut self, command: &Command<'_>) -> Reply {
        let mut batch = BatchBuilder::new(self.now_ms, 1_000_000 + self.now_ms);
        batch.push(command).expect("a command fits into an empty batch");
        self.index += 1;
        let mut applied = self
            .partition
            .apply(self.index, &batch.finish(), History::Skip)
            .expect("an entry that was just built");
        applied.replies.pop().expect("a reply for the command")
    }

    fn send(&mut self) {
        let first = self.sent;
        self.sent += BATCH;
        let ids = (first..first + BATCH).map(u32::to_le_bytes).collect::<Vec<_>>();
        let groups = (0..BATCH).map(|at| (at % GROUPS).to_le_bytes()).collect::<Vec<_>>();
        let messages = ids.iter().zip(&groups).map(|(id, group)| {
            let has_group = matches!(self.shape, Shape::Tenants | Shape::Fifo);
            let content = Content {
                group: has_group.then_some(&group[..]),
                dedup_id: (self.shape == Shape::Deduplication).then_some(&id[..]),
                ..Content::of_body(&BODY)
            };
            NewMessage { content, ..NewMessage::default() }
        });
        let sent = self.apply(&Command::Send { queue: QUEUE, messages: messages.collect() });
        assert!(matches!(sent, Reply::Sent { .. }), "{sent:?}");
    }

    fn receive(&mut self) -> Vec<Delivery> {
        let received = self.apply(&Command::Receive {
            queue: QUEUE,
            messages_max: BATCH,
            bytes_max: u64::MAX,
            lease_ms: None,
            attempt: None,
            consumer: b"consumer",
        });
        let Reply::Received { deliveries } = received else { panic!("{received:?}") };
        assert_eq!(deliveries.len(), BATCH as usize);
        deliveries
    }

    fn ack(&mut self, deliveries: &[Delivery]) {
        let receipts = deliveries.iter().map(|delivery| delivery.receipt).collect();
        self.apply(&Command::Ack { queue: QUEUE, receipts });
    }
}

/// Send, receive, ack.
pub fn cycle(rounds: u32, shape: Shape) {
    let mut rig = Rig::new(shape);
    for _ in 0..rounds {
        rig.send();
        rig.now_ms += 3;
        let deliveries = rig.receive();
        rig.now_ms += 20;
        rig.ack(&deliveries);
    }
}

/// Send, receive, wait for the end of the leases, receive again, ack.
pub fn redelivery(rounds: u32) {
    let mut rig = Rig::new(Shape::Plain);
    for _ in 0..rounds {
        rig.send();
        rig.receive();
        rig.now_ms += LEASE_MS + 1;
        rig.apply(&Command::Expire { leases_as_of_ms: rig.now_ms, items_max: BATCH });
        let deliveries = rig.receive();
        rig.ack(&deliveries);
    }
}

/// A backlog as bytes, and back.
pub fn snapshot(rounds: u32) {
    let mut rig = Rig::new(Shape::Plain);
    for _ in 0..rounds {
        rig.send();
    }
    let restored = Partition::restore(&rig.partition.snapshot()).expect("a snapshot that was just taken");
    assert_eq!(restored.next_deadline(), rig.partition.next_deadline());
}
