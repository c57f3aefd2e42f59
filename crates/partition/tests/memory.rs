//! What a partition weighs, in bytes that are allocated: a backlog of untouched messages, and what is left of it afterwards.
//!
//! Source: I19 of `RELIABILITY.md`, and decision 027. Bytes are the same on every machine; the bounds leave a third.
#![allow(clippy::print_stdout, reason = "what was measured is said with --nocapture")]
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use leasehold_partition::*;

thread_local! {
    static ALLOCATED: Cell<isize> = const { Cell::new(0) };
}

/// The allocator of the system, which counts for each thread what it holds.
struct Counting;

fn count(bytes: usize, sign: isize) {
    // A thread that ends frees what it had when its counter is gone; nobody asks for it then.
    let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + sign * bytes as isize));
}

// SAFETY: everything is handed to the allocator of the system as it came.
#[allow(unsafe_code, reason = "an allocator is unsafe by its trait")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Below zero where a thread has freed what another made.
fn allocated() -> isize {
    ALLOCATED.with(Cell::get)
}

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
        let receive = Command::Receive {
            queue: QueueId(1),
            messages_max: 1000,
            bytes_max: u64::MAX,
            lease_ms: None,
            attempt: None,
            consumer: b"consumer",
        };
        let Reply::Received { deliveries } = machine.apply(receive) else { panic!("no deliveries") };
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

/// Of a queue with one message, so many bytes at most.
const QUEUE_BYTES_MAX: usize = 900;

#[test]
fn a_queue_with_a_message_is_small() {
    let mut machine = Machine::new();
    (1..=QUEUES).for_each(|queue| machine.configure(queue));
    let empty = machine.weight() / QUEUES as usize;
    (1..=QUEUES).for_each(|queue| machine.send(queue, 1));
    let bytes = machine.weight() / QUEUES as usize;
    println!("{empty} bytes a queue, {bytes} with a message");
    assert!(bytes <= QUEUE_BYTES_MAX, "{bytes} bytes a queue with a message");
}
