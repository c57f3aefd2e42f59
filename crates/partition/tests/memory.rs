//! What a partition weighs, in bytes that are allocated: a backlog of untouched messages, what is left of it afterwards, and a queue.
//!
//! Source: I19 of docs/guarantees.md, and decisions 022 and 027. Bytes are the same on every machine; the bounds leave a third to
//! backlogs, and a tenth to queues that nobody uses.
#![allow(clippy::print_stdout, reason = "what was measured is said with --nocapture")]
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod counting;

use counting::allocated;
use leasehold_partition::*;

struct Machine {
    partition: Partition,
    log_index: u64,
    before: isize,
}

impl Machine {
    fn new() -> Self {
        let before = allocated();
        Self { partition: Partition::new(), log_index: 0, before }
    }

    fn apply(&mut self, command: Command<'_>) -> Reply {
        self.log_index += 1;
        let mut batch = BatchBuilder::new(1_000 + self.log_index, 1_000_000 + self.log_index);
        batch.push(&command).unwrap();
        self.partition.apply(self.log_index, &batch.finish(), History::Skip).unwrap().replies.remove(0)
    }

    fn configure(&mut self, queue: u64) {
        let settings = Settings { in_flight_max: u32::MAX, ..Settings::default() };
        self.apply(Command::Configure { queue: QueueId(queue), settings, revision: queue });
    }

    fn send(&mut self, queue: u64, messages: usize) {
        let message = NewMessage { content: Content::of_body(b"body"), ..NewMessage::default() };
        self.apply(Command::Send { queue: QueueId(queue), messages: vec![message; messages] });
    }

    fn receive(&mut self, queue: u64) -> Vec<Delivery> {
        let receive = Command::Receive {
            queue: QueueId(queue),
            messages_max: 1000,
            bytes_max: u64::MAX,
            lease_ms: None,
            attempt: None,
            consumer: b"consumer",
        };
        let Reply::Received { deliveries } = self.apply(receive) else { panic!("no deliveries") };
        deliveries
    }

    fn weight(&self) -> usize {
        usize::try_from(allocated() - self.before).unwrap()
    }
}

const MESSAGES: usize = 60_000;

/// Sent in batches of this size, one message weighs so many bytes at most.
const BYTES_MAX: [(usize, usize); 4] = [(1, 280), (10, 80), (50, 34), (500, 22)];

#[test]
fn untouched_messages_weigh_a_few_bytes() {
    for (batch, bytes_max) in BYTES_MAX {
        let mut machine = Machine::new();
        machine.configure(1);
        (0..MESSAGES / batch).for_each(|_| machine.send(1, batch));
        let bytes = machine.weight() / MESSAGES;
        println!("{bytes} bytes a message in batches of {batch}");
        assert!(bytes <= bytes_max, "{bytes} bytes a message in batches of {batch}");
        machine.partition = Partition::restore(&machine.partition.snapshot()).unwrap();
        let restored = machine.weight() / MESSAGES;
        assert!(restored <= bytes_max, "{restored} bytes a message in batches of {batch}, after a restart");
    }
}

#[test]
fn what_was_drained_is_given_back() {
    let mut machine = Machine::new();
    machine.configure(1);
    (0..MESSAGES / 500).for_each(|_| machine.send(1, 500));
    let full = machine.weight();
    loop {
        let deliveries = machine.receive(1);
        if deliveries.is_empty() {
            break;
        }
        let receipts = deliveries.iter().map(|delivery| delivery.receipt).collect();
        machine.apply(Command::Ack { queue: QueueId(1), receipts });
        assert!(machine.weight() < full + 700_000, "a drain needs room for what is leased, and no more");
    }
    assert!(machine.weight() < 120_000, "{} bytes are left of {full}", machine.weight());
}

const QUEUES: u64 = 5_000;

/// So many bytes at most take a queue without messages, and one with a message that nobody has asked for.
const QUEUE_BYTES_MAX: usize = 275;
const SENT_TO_BYTES_MAX: usize = 500;

/// A queue that was received from has all that a queue can have.
const USED_BYTES_MAX: usize = 1_160;

impl Machine {
    fn weight_of_queue(&self) -> usize {
        self.weight() / QUEUES as usize
    }

    fn restart(&mut self) {
        let image = self.partition.snapshot();
        self.partition = Partition::new();
        self.partition = Partition::restore(&image).unwrap();
    }
}

#[test]
fn a_queue_that_was_only_sent_to_is_small() {
    let mut machine = Machine::new();
    (1..=QUEUES).for_each(|queue| machine.configure(queue));
    let empty = machine.weight_of_queue();
    (1..=QUEUES).for_each(|queue| machine.send(queue, 1));
    let sent_to = machine.weight_of_queue();
    println!("{empty} bytes a queue, {sent_to} with a message");
    assert!(empty <= QUEUE_BYTES_MAX, "{empty} bytes a queue");
    assert!(sent_to <= SENT_TO_BYTES_MAX, "{sent_to} bytes a queue with a message");
    machine.restart();
    let restored = machine.weight_of_queue();
    println!("{restored} bytes with a message, after a restart");
    assert!(restored <= SENT_TO_BYTES_MAX, "{restored} bytes a queue with a message, after a restart");
}

#[test]
fn a_queue_that_was_used_has_room_of_its_own() {
    let mut machine = Machine::new();
    for queue in 1..=QUEUES {
        machine.configure(queue);
        machine.send(queue, 1);
        machine.receive(queue);
    }
    let used = machine.weight_of_queue();
    println!("{used} bytes a queue with a lease");
    assert!((SENT_TO_BYTES_MAX..=USED_BYTES_MAX).contains(&used), "{used} bytes a queue with a lease");
    machine.restart();
    let restored = machine.weight_of_queue();
    assert!((SENT_TO_BYTES_MAX..=USED_BYTES_MAX).contains(&restored), "{restored} bytes after a restart");
}
