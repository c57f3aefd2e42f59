//! What a message costs the state machine: sent, granted and acknowledged in entries of 250, by one thread, without a log.
//!
//! ```sh
//! cargo run --release -p leasehold-partition --example cycle_cost [MESSAGES]
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a program of its own, whose output is its result
#![allow(clippy::disallowed_types, clippy::disallowed_methods)] // the state machine reads no clock; this measures it

use std::time::Instant;

use leasehold_partition::*;

const QUEUE: QueueId = QueueId(1);
const BATCH: usize = 250;
const ROUNDS: u32 = 7;

struct Log {
    partition: Partition,
    index: u64,
}

impl Log {
    fn apply(&mut self, command: &Command<'_>) -> Reply {
        self.index += 1;
        let mut batch = BatchBuilder::new(self.index, self.index);
        batch.push(command).unwrap();
        let applied = self.partition.apply(self.index, &batch.finish(), History::Skip).unwrap();
        applied.replies.into_iter().next().unwrap()
    }

    fn cycle(&mut self) {
        let message = || NewMessage { content: Content::of_body(&[7; 128]), ..NewMessage::default() };
        self.apply(&Command::Send { queue: QUEUE, messages: (0..BATCH).map(|_| message()).collect() });
        let receive = Command::Receive {
            queue: QUEUE,
            messages_max: BATCH as u32,
            bytes_max: u64::MAX,
            lease_ms: None,
            attempt: None,
            consumer: b"bench",
        };
        let Reply::Received { deliveries } = self.apply(&receive) else { panic!("a receive is answered") };
        let receipts = deliveries.iter().map(|delivery| delivery.receipt).collect::<Vec<_>>();
        assert_eq!(receipts.len(), BATCH);
        self.apply(&Command::Ack { queue: QUEUE, receipts });
    }
}

fn main() {
    let messages = std::env::args().nth(1).map_or(500_000, |text| text.parse::<usize>().unwrap());
    let mut costs_ns = (0..ROUNDS)
        .map(|_| {
            let mut log = Log { partition: Partition::new(), index: 0 };
            log.apply(&Command::Configure { queue: QUEUE, settings: Settings::default(), revision: 1 });
            let start = Instant::now();
            (0..messages / BATCH).for_each(|_| log.cycle());
            start.elapsed().as_nanos() as usize / messages
        })
        .collect::<Vec<_>>();
    costs_ns.sort_unstable();
    println!(
        "{costs_ns:?} ns a message, sent, granted and acknowledged; the median is {}",
        costs_ns[costs_ns.len() / 2]
    );
}
