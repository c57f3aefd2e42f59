//! Bytes from outside never panic, never allocate without bound, and have one form only.
//!
//! Source: `src/wire.rs`; I14 of docs/guarantees.md: damage is found, not executed.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use leasehold_partition::*;
use rig::{Random, for_seeds};

fn bytes(random: &mut Random, max: u64) -> Vec<u8> {
    (0..random.below(max + 1)).map(|_| random.next() as u8).collect()
}

fn receipt(random: &mut Random) -> Receipt {
    Receipt { slot: random.next() as u32, sequence: random.next(), grant: random.next() }
}

fn content<'a>(random: &mut Random, pool: &'a [u8]) -> Content<'a> {
    let origin = Origin { queue: QueueId(3), partition: 7, sequence: random.next(), receive_count: 2 };
    Content {
        group: random.one_in(2).then_some(&pool[..5]),
        dedup_id: random.one_in(2).then_some(&pool[3..9]),
        attributes: &pool[..random.below(8) as usize],
        body: &pool[..random.below(pool.len() as u64) as usize],
        origin: random.one_in(2).then_some(origin),
    }
}

fn message<'a>(random: &mut Random, pool: &'a [u8]) -> NewMessage<'a> {
    NewMessage {
        delay_ms: random.one_in(2).then(|| random.below(900_001) as u32),
        expiry_ms: random.one_in(2).then(|| random.below(100_000)),
        content: content(random, pool),
    }
}

fn settings(random: &mut Random) -> Settings {
    let dead = DeadLetter { queue: QueueId(random.next()), receives_max: 1 + random.below(1000) as u32 };
    Settings { dead_letter: random.one_in(2).then_some(dead), kind: Kind::Fifo, ..Settings::default() }
}

fn command<'a>(random: &mut Random, pool: &'a [u8]) -> Command<'a> {
    let (queue, target) = (QueueId(random.next()), QueueId(random.next()));
    let (number, small) = (random.next(), random.below(1000) as u32);
    match random.below(23) {
        0 => Command::Configure { queue, settings: settings(random), revision: number },
        1 => Command::Delete { queue, revision: number },
        2 => Command::Purge { queue },
        3 => {
            let count = random.below(4);
            Command::Send { queue, messages: (0..count).map(|_| message(random, pool)).collect() }
        }
        4 => {
            let numbers = 0..random.below(4);
            let messages = numbers.map(|number| TransferMessage { number, message: message(random, pool) });
            let messages = messages.collect();
            Command::Transfer { queue, source: Source { partition: small, queue: target }, messages }
        }
        5 => Command::Receive {
            queue,
            messages_max: small + 1,
            bytes_max: number,
            lease_ms: random.one_in(2).then_some(small),
            attempt: random.one_in(2).then_some(&pool[..9]),
            consumer: &pool[..random.below(20) as usize],
        },
        6 => Command::Ack { queue, receipts: (0..random.below(5)).map(|_| receipt(random)).collect() },
        7 => Command::Extend { queue, items: vec![(receipt(random), random.next() as u32)] },
        8 => Command::Release { queue, items: vec![(receipt(random), small)] },
        9 => Command::Mark,
        16 => {
            let why = &pool[..random.below(20) as usize];
            Command::Reject { queue, items: vec![(receipt(random), why)] }
        }
        10 => Command::Expire { leases_as_of_ms: number, items_max: small },
        11 => Command::TransferDone { queue, target, through_number: number },
        12 => Command::TransferReturn { queue, target, items_max: small },
        13 => Command::RedriveStart { queue, target: Some(target), rate_per_s: small, id: number },
        14 => Command::RedriveCancel { queue, id: number },
        15 => Command::RedriveStep { queue, items_max: small },
        17 => {
            let budget = RetryBudget { percent: 1 + small, floor_per_s: 1 + random.below(10_000) as u32 };
            Command::SetRetryBudget { queue, budget: random.one_in(2).then_some(budget), revision: number }
        }
        19 => {
            let isolation = if random.one_in(2) { Isolation::On } else { Isolation::Off };
            Command::SetIsolation { queue, isolation, revision: number }
        }
        21 => Command::Postpone {
            queue,
            items: (0..random.below(5)).map(|_| (receipt(random), small)).collect(),
        },
        20 => Command::Lost { queue, consumer: &pool[..random.below(20) as usize] },
        18 => Command::GiveBack { queue, receipts: (0..random.below(5)).map(|_| receipt(random)).collect() },
        _ => Command::SetVersion { version: small },
    }
}

fn request<'a>(random: &mut Random, pool: &'a [u8]) -> Request<'a> {
    let id = RequestId { session: random.next(), sequence: random.next(), completed_below: random.next() };
    Request { id: random.one_in(2).then_some(id), command: command(random, pool) }
}

#[test]
fn requests_come_back_as_they_went() {
    for_seeds("codec", 300, |seed| {
        let mut random = Random::new(seed);
        let pool: Vec<u8> = (0..64).map(|_| random.next() as u8).collect();
        for _ in 0..30 {
            let request = request(&mut random, &pool);
            let mut encoded = Vec::new();
            request.encode_into(&mut encoded);
            assert_eq!(Request::decode(&encoded), Ok(request.clone()));
            assert!(Command::decode(&encoded).is_ok());
            assert_eq!(Command::decode(&encoded), Ok(request.command));
            let cut = random.below(encoded.len() as u64) as usize;
            assert!(Request::decode(&encoded[..cut]).is_err(), "a cut request is refused");
            encoded.push(0);
            assert_eq!(Request::decode(&encoded), Err(DecodeError::Trailing));
        }
    });
}

/// What decodes has one form: encoding it again gives the same bytes, whatever was flipped before.
#[test]
fn damaged_requests_are_refused_or_canonical() {
    for_seeds("codec", 300, |seed| {
        let mut random = Random::new(seed);
        let pool: Vec<u8> = (0..64).map(|_| random.next() as u8).collect();
        for _ in 0..100 {
            let mut encoded = Vec::new();
            request(&mut random, &pool).encode_into(&mut encoded);
            for _ in 0..=random.below(3) {
                let at = random.below(encoded.len() as u64) as usize;
                encoded[at] = random.next() as u8;
            }
            if let Ok(decoded) = Request::decode(&encoded) {
                let mut again = Vec::new();
                decoded.encode_into(&mut again);
                assert_eq!(again, encoded);
            }
        }
    });
}

#[test]
fn random_bytes_never_panic() {
    for_seeds("codec", 300, |seed| {
        let mut random = Random::new(seed);
        for _ in 0..200 {
            let mut noise = bytes(&mut random, 120);
            _ = Request::decode(&noise);
            _ = Reply::decode(&noise);
            _ = Content::decode(&noise);
            _ = Partition::restore(&noise);
            if let [version, kind, ..] = &mut noise[..] {
                (*version, *kind) = (1, *kind % 18);
            }
            _ = Request::decode(&noise);
            _ = Reply::decode(&noise);
            let mut partition = Partition::new();
            let before = partition.state_hash();
            if partition.apply(1, &noise, History::Skip).is_err() {
                assert_eq!(partition.state_hash(), before, "an error changes nothing");
            }
        }
    });
}

/// A count of four billion items in a few bytes must not allocate for four billion items.
#[test]
fn claimed_counts_allocate_nothing() {
    let mut encoded = Vec::new();
    Command::Ack { queue: QueueId(1), receipts: Vec::new() }.encode_into(&mut encoded);
    let count_at = encoded.len() - 4;
    encoded[count_at..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Request::decode(&encoded), Err(DecodeError::Truncated));
}

#[test]
fn replies_come_back_as_they_went() {
    let receipt = Receipt { slot: 1, sequence: 2, grant: 3 };
    let content = ContentRef { log_index: 4, offset: 5, len: 6 };
    let delivery = Delivery {
        receipt,
        content,
        receive_count: 7,
        sent_wall_ms: 8,
        first_received_wall_ms: 9,
        deadline_log_ms: 10,
        lease_ms: 11,
    };
    let progress = RedriveProgress {
        id: 1,
        target: Some(QueueId(2)),
        rate_per_s: 3,
        state: RedriveState::Cancelled,
        moved: 4,
        kept: 5,
        total: 6,
    };
    let key = receipt.key();
    let refused = SendOutcome::Refused { reason: Refusal::StaleRevision { revision_min: 9 } };
    let replies = [
        Reply::Refused { reason: Refusal::QueueFull },
        Reply::Done,
        Reply::Sent {
            outcomes: vec![SendOutcome::Sent { key }, SendOutcome::Duplicate { sequence: 5 }, refused],
        },
        Reply::Transferred { through_number: 9, refused: Some(Refusal::QueueFull) },
        Reply::Received { deliveries: vec![delivery; 3] },
        Reply::OverLimit,
        Reply::Settled {
            outcomes: vec![Outcome::Done, Outcome::Gone, Outcome::Stale, Outcome::LeaseTooLong],
        },
        Reply::Expired { leases: 1, delays: 2, dropped: 3, forgotten: 4, more: true },
        Reply::OutboxReduced { removed: 1, remaining: 2 },
        Reply::RedriveStepped { moved: 1, progress },
    ];
    for reply in replies {
        let mut encoded = Vec::new();
        reply.encode_into(&mut encoded);
        assert_eq!(Reply::decode(&encoded), Ok(reply));
        (0..encoded.len()).for_each(|cut| assert!(Reply::decode(&encoded[..cut]).is_err()));
    }
}

/// Frames from other nodes lie in the entry exactly as a local command would.
#[test]
fn forwarded_requests_lie_in_the_batch_like_local_ones() {
    let pool = [7; 64];
    let mut random = Random::new(1);
    let (mut local, mut forwarded) = (BatchBuilder::new(1, 2), BatchBuilder::new(1, 2));
    for _ in 0..50 {
        let request = request(&mut random, &pool);
        let mut encoded = Vec::new();
        request.encode_into(&mut encoded);
        local.push_request(&request).unwrap();
        forwarded.push_encoded(&encoded).unwrap();
    }
    assert_eq!((local.len(), local.len_bytes()), (50, forwarded.len_bytes()));
    assert_eq!(local.finish(), forwarded.finish());
    let mut batch = BatchBuilder::new(1, 2);
    assert!(batch.push_encoded(b"nonsense").is_err());
    let settings = Settings { lease_ms: limits::LEASE_MS_MAX + 1, ..Settings::default() };
    let invalid = Command::Configure { queue: QueueId(1), settings, revision: 1 };
    assert_eq!(batch.push(&invalid), Err(DecodeError::OutOfRange("lease_ms")));
    assert!(batch.is_empty(), "what is refused leaves nothing behind");
}

/// A leader asks it of every command.
#[test]
fn who_configures_a_shard_is_told_by_the_tag() {
    let pool = [7; 64];
    let mut random = Random::new(2);
    let mut configuring = 0;
    for _ in 0..500 {
        let request = request(&mut random, &pool);
        let mut encoded = Vec::new();
        request.encode_into(&mut encoded);
        let is_so = matches!(
            request.command,
            Command::Configure { .. } | Command::SetRetryBudget { .. } | Command::SetIsolation { .. }
        );
        configuring += u32::from(is_so);
        assert_eq!(Command::decode_configuring(&encoded), is_so.then_some(request.command));
    }
    assert!(configuring > 10, "{configuring}");
    assert_eq!(Command::decode_configuring(b"nonsense"), None);
    assert_eq!(Command::decode_configuring(b""), None);
}

/// What comes while an entry waits to go would else be taken for older than it is, and its delay be cut short.
#[test]
fn an_entry_is_of_the_time_at_which_it_goes() {
    let (prefix, mark) = ([9; 3], Command::Mark);
    let mut waits = BatchBuilder::after(&prefix, 0, 0);
    waits.push(&mark).unwrap();
    waits.stamp(5_000, 1_700_000_000_000);
    let mut goes_at_once = BatchBuilder::after(&prefix, 5_000, 1_700_000_000_000);
    goes_at_once.push(&mark).unwrap();
    assert_eq!(waits.finish(), goes_at_once.finish());
}
