//! A partition with a log beside it: what the tests of this directory drive.
#![allow(dead_code)] // each test file uses its part of this one

use leasehold_partition::*;

/// A partition, its log, and clocks that only tests move. Checks all invariants after every entry.
pub struct Rig {
    pub partition: Partition,
    pub log: Vec<(u64, Vec<u8>)>,
    pub log_index: u64,
    pub now_ms: u64,
    pub wall_ms: u64,
    pub check: Check,
    /// Content bytes alive by what the effects said.
    live_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Check {
    EveryEntry,
    Never,
}

impl Rig {
    pub fn new() -> Self {
        let partition = Partition::new();
        let check = Check::EveryEntry;
        let log = Vec::new();
        Self { partition, log, log_index: 0, now_ms: 1_000, wall_ms: 1_000_000, check, live_bytes: 0 }
    }

    /// Lets both clocks pass.
    pub fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.wall_ms += ms;
    }

    /// Applies one entry of many requests.
    pub fn apply_all(&mut self, requests: &[Request<'_>]) -> Applied {
        let mut batch = BatchBuilder::new(self.now_ms, self.wall_ms);
        requests.iter().for_each(|request| batch.push_request(request).unwrap());
        self.apply_payload(batch.finish())
    }

    pub fn apply_payload(&mut self, payload: Vec<u8>) -> Applied {
        self.log_index += 1;
        let before: Vec<QueueId> = self.ready_queues();
        let applied = self.partition.apply(self.log_index, &payload, History::All).unwrap();
        self.log.push((self.log_index, payload));
        if self.check == Check::EveryEntry {
            self.partition.check_invariants();
            self.check_effects(&before, &applied.effects);
        }
        applied
    }

    fn ready_queues(&self) -> Vec<QueueId> {
        self.partition.queues().filter(|queue| self.partition.has_ready(*queue)).collect()
    }

    /// Effects are hints that may get lost, but none is missing and none is wrong when they are made.
    fn check_effects(&mut self, before: &[QueueId], effects: &Effects) {
        for queue in self.ready_queues() {
            assert!(
                before.contains(&queue) || effects.ready.contains(&queue),
                "{queue:?} became ready unnoticed"
            );
        }
        assert!(effects.ready.iter().all(|queue| self.partition.has_ready(*queue)), "what is ready is ready");
        let freed: u64 = effects.freed.iter().map(|(_, bytes)| bytes).sum();
        self.live_bytes = self.live_bytes + effects.retained_bytes - freed;
        let live: u64 = self.partition.live_contents().map(|(_, bytes)| bytes).sum();
        assert_eq!(self.live_bytes, live, "retained less freed is what lives");
    }

    /// Applies one entry of one command.
    pub fn apply(&mut self, command: Command<'_>) -> Reply {
        self.apply_all(&[command.into()]).replies.remove(0)
    }

    pub fn apply_as(&mut self, id: RequestId, command: Command<'_>) -> Reply {
        self.apply_all(&[Request { id: Some(id), command }]).replies.remove(0)
    }

    pub fn configure(&mut self, queue: u64, settings: Settings) {
        let revision = self.partition.revision_min() + 1;
        let queue = QueueId(queue);
        assert_eq!(self.apply(Command::Configure { queue, settings, revision }), Reply::Done);
    }

    pub fn send(&mut self, queue: u64, bodies: &[&[u8]]) -> Vec<SendOutcome> {
        let contents = bodies.iter().map(|body| Content::of_body(body));
        let messages = contents.map(|content| NewMessage { content, ..Default::default() });
        let command = Command::Send { queue: QueueId(queue), messages: messages.collect() };
        match self.apply(command) {
            Reply::Sent { outcomes } => outcomes,
            other => panic!("{other:?}"),
        }
    }

    pub fn receive(&mut self, queue: u64, messages_max: u32, lease_ms: u32) -> Vec<Delivery> {
        match self.apply(receive(queue, messages_max, lease_ms)) {
            Reply::Received { deliveries } => deliveries,
            other => panic!("{other:?}"),
        }
    }

    pub fn expire(&mut self) -> Reply {
        let leases_as_of_ms = self.now_ms;
        self.apply(Command::Expire { leases_as_of_ms, items_max: limits::EXPIRE_MAX })
    }

    /// The content a delivery refers to, from the log.
    pub fn content(&self, content: ContentRef) -> Content<'_> {
        let (_, payload) = self.log.iter().find(|(index, _)| *index == content.log_index).unwrap();
        let range = content.offset as usize..(content.offset + content.len) as usize;
        Content::decode(&payload[range]).unwrap()
    }
}

/// More versions than a shard keeps apart.
pub const CONSUMERS: [&[u8]; 6] = [b"test", b"v1@a", b"v2@a", b"v3/b", b"v4/b", b"v5@c"];

pub fn receive(queue: u64, messages_max: u32, lease_ms: u32) -> Command<'static> {
    Command::Receive {
        queue: QueueId(queue),
        messages_max,
        bytes_max: u64::MAX,
        lease_ms: Some(lease_ms),
        attempt: None,
        consumer: CONSUMERS[lease_ms as usize % CONSUMERS.len()],
    }
}

/// A small seeded generator (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 33) % bound
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Runs a property for many seeds, and says how to run a failing one again. `SEED` picks one, `SEEDS` how many.
pub fn for_seeds(test: &str, seeds: u64, property: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let range = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(seeds),
    };
    for seed in range {
        if let Err(panic) = std::panic::catch_unwind(|| property(seed)) {
            eprintln!(
                "seed {seed} failed; again: SEED={seed} cargo test -p leasehold-partition --test {test}"
            );
            std::panic::resume_unwind(panic);
        }
    }
}
