//! Tenants share a standard queue fairly.
//!
//! Source: I22 of docs/guarantees.md, with the errors that it states: a grant goes to a tenant with the fewest
//! leases; who has none waits for one grant of each other one without, and for as many messages without a group; backlogged
//! tenants whose messages take equally long are one delivery apart at most.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use std::collections::{BTreeMap, VecDeque};

use leasehold_partition::*;
use rig::{Check, Random, Rig, for_seeds};

const QUEUE: u64 = 1;

/// A standard queue, and who sent what.
struct Shop {
    rig: Rig,
    /// The tenant of each message; `None` for those without a group.
    tenants: BTreeMap<u64, Option<u8>>,
}

impl Shop {
    fn new() -> Self {
        let mut rig = Rig::new();
        rig.check = Check::Never;
        rig.configure(QUEUE, Settings::default());
        Self { rig, tenants: BTreeMap::new() }
    }

    fn send(&mut self, tenant: Option<u8>, count: usize) {
        let name = [tenant.unwrap_or(0)];
        let content = Content { group: tenant.map(|_| &name[..]), ..Content::of_body(b"work") };
        let messages = vec![NewMessage { content, ..NewMessage::default() }; count];
        let Reply::Sent { outcomes } = self.rig.apply(Command::Send { queue: QueueId(QUEUE), messages })
        else {
            panic!("a send is answered with its outcomes")
        };
        for outcome in outcomes {
            let SendOutcome::Sent { key } = outcome else { panic!("{outcome:?}") };
            self.tenants.insert(key.sequence, tenant);
        }
    }

    fn receive(&mut self, max: u32) -> Vec<(Option<u8>, Receipt)> {
        let deliveries = self.rig.receive(QUEUE, max, 1_000_000);
        deliveries.iter().map(|got| (self.tenants[&got.receipt.sequence], got.receipt)).collect()
    }

    fn ack(&mut self, receipts: impl IntoIterator<Item = Receipt>) {
        let receipts = receipts.into_iter().collect();
        self.rig.apply(Command::Ack { queue: QueueId(QUEUE), receipts });
    }

    fn release(&mut self, receipt: Receipt) {
        self.rig.apply(Command::Release { queue: QueueId(QUEUE), items: vec![(receipt, 0)] });
    }
}

/// What the test itself knows of one tenant.
#[derive(Clone, Copy, Default)]
struct Book {
    ready: u64,
    leased: u64,
    /// Grants it may still see before its own: set when it has something ready and no lease.
    patience: Option<u64>,
}

/// Sets the patience of those that have begun to wait without a lease, and ends that of the others.
fn watch(books: &mut BTreeMap<u8, Book>) {
    let idle = |book: &Book| book.ready > 0 && book.leased == 0;
    let waiting = books.values().filter(|book| idle(book)).count() as u64;
    for book in books.values_mut() {
        let others = waiting.saturating_sub(1);
        match book.patience {
            _ if !idle(book) => book.patience = None,
            None => book.patience = Some(2 * others + 1),
            Some(_) => {}
        }
    }
}

/// Whatever is sent, acknowledged and given back in whatever order: each grant goes to a tenant with the fewest leases, none
/// waits longer than it may, and nothing ready is held back.
#[test]
fn a_grant_goes_to_a_tenant_with_the_fewest_leases() {
    for_seeds("fairness", 40, |seed| {
        let (mut shop, mut random) = (Shop::new(), Random::new(seed));
        let mut books: BTreeMap<u8, Book> = (0..6).map(|tenant| (tenant, Book::default())).collect();
        let mut ungrouped = 0;
        let mut held: Vec<(Option<u8>, Receipt)> = Vec::new();
        for _ in 0..600 {
            match random.below(10) {
                0..3 => {
                    let tenant = [None, Some(0), Some(random.below(6) as u8)][random.below(3) as usize];
                    let count = if tenant == Some(0) { 20 } else { 1 + random.below(2) };
                    shop.send(tenant, count as usize);
                    match tenant {
                        Some(tenant) => books.get_mut(&tenant).unwrap().ready += count,
                        None => ungrouped += count,
                    }
                }
                3..7 => match shop.receive(1)[..] {
                    [] => assert!(ungrouped + books.values().map(|book| book.ready).sum::<u64>() == 0),
                    [(tenant, receipt)] => {
                        granted(&mut books, &mut ungrouped, tenant);
                        held.push((tenant, receipt));
                    }
                    _ => panic!("one was asked for"),
                },
                which if !held.is_empty() => {
                    let (tenant, receipt) = held.swap_remove(random.below(held.len() as u64) as usize);
                    let back = u64::from(which == 9);
                    if back == 1 {
                        shop.release(receipt)
                    } else {
                        shop.ack([receipt])
                    }
                    match tenant.and_then(|tenant| books.get_mut(&tenant)) {
                        Some(book) => (book.leased, book.ready) = (book.leased - 1, book.ready + back),
                        None => ungrouped += back,
                    }
                }
                _ => {}
            }
            watch(&mut books);
        }
        shop.rig.partition.check_invariants();
    });
}

/// Checks one grant against the books, and enters it.
fn granted(books: &mut BTreeMap<u8, Book>, ungrouped: &mut u64, tenant: Option<u8>) {
    let backlogged = books.values().filter(|book| book.ready > 0);
    let fewest = backlogged.map(|book| book.leased).chain((*ungrouped > 0).then_some(0)).min().unwrap();
    match tenant {
        None => *ungrouped -= 1,
        Some(tenant) => {
            let book = books.get_mut(&tenant).unwrap();
            assert_eq!(book.leased, fewest, "tenant {tenant} was not next");
            (book.ready, book.leased, book.patience) = (book.ready - 1, book.leased + 1, None);
        }
    }
    for (tenant, book) in books.iter_mut() {
        if let Some(patience) = &mut book.patience {
            assert!(*patience > 0, "tenant {tenant} waits for too many others");
            *patience -= 1;
        }
    }
}

/// k backlogged tenants whose messages take equally long: after any number of grants, in batches of any size, on any number
/// of consumers, two of them are one delivery apart at most.
#[test]
fn backlogged_tenants_get_equal_shares() {
    for_seeds("fairness", 40, |seed| {
        let (mut shop, mut random) = (Shop::new(), Random::new(seed));
        let tenants = 2 + random.below(9) as u8;
        (0..tenants).for_each(|tenant| shop.send(Some(tenant), 150 + random.below(500) as usize));
        let mut counts = vec![0u64; usize::from(tenants)];
        let mut held = VecDeque::new();
        while counts.iter().max() < Some(&140) {
            for (tenant, receipt) in shop.receive(1 + random.below(10) as u32) {
                counts[usize::from(tenant.unwrap())] += 1;
                held.push_back(receipt);
                let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
                assert!(most - least <= 1, "{counts:?}");
            }
            let done = random.below(held.len() as u64 + 1) as usize;
            shop.ack(held.drain(..done));
        }
        shop.rig.partition.check_invariants();
    });
}

/// However many messages a noisy tenant has waiting and in flight, a message of a quiet one, and one without a group, is
/// among the next grants.
#[test]
fn quiet_tenants_do_not_wait_behind_a_backlog() {
    let mut shop = Shop::new();
    (0..5).for_each(|_| shop.send(Some(0), 4_000));
    let mut held: Vec<Receipt> = shop.receive(500).into_iter().map(|(_, receipt)| receipt).collect();
    for quiet in 1..100 {
        shop.send(Some(quiet), 1);
        shop.send(None, 1);
        let next: Vec<_> = shop.receive(3);
        let tenants: Vec<_> = next.iter().map(|(tenant, _)| *tenant).collect();
        assert!(tenants[..2].contains(&Some(quiet)) && tenants[..2].contains(&None), "{tenants:?}");
        assert_eq!(tenants[2], Some(0), "who is noisy gets what is left");
        shop.ack(next.iter().map(|(_, receipt)| *receipt));
        shop.ack(held.pop());
    }
    // Even when the noisy one has no lease at that moment.
    shop.ack(held);
    (1..11).for_each(|quiet| shop.send(Some(quiet), 1));
    let first: Vec<_> = shop.receive(11).into_iter().map(|(tenant, _)| tenant).collect();
    (1..11).for_each(|quiet| assert!(first.contains(&Some(quiet)), "{first:?}"));
    shop.rig.partition.check_invariants();
}

/// Twelve consumers, three tenants whose messages take 1, 5 and 25 ms: each tenant gets a third of the consumers' time, less
/// one consumer, though their deliveries differ by much more.
#[test]
fn tenants_share_the_time_of_the_consumers() {
    const CONSUMERS: usize = 12;
    const TAKES_MS: [u64; 3] = [1, 5, 25];
    const RUN_MS: u64 = 2_000;
    let mut shop = Shop::new();
    for (tenant, takes_ms) in (0..).zip(TAKES_MS) {
        let wanted = (CONSUMERS as u64 * RUN_MS / takes_ms) as usize;
        (0..wanted.div_ceil(4_000)).for_each(|_| shop.send(Some(tenant), 4_000));
    }
    let mut held: Vec<(u8, Receipt, u64)> = Vec::new();
    let (mut consumer_ms, mut deliveries) = ([0; 3], [0; 3]);
    for now_ms in 0..RUN_MS {
        let (done, busy) = held.into_iter().partition(|(_, _, until_ms)| *until_ms <= now_ms);
        held = busy;
        let done: Vec<(u8, Receipt, u64)> = done;
        for (_, receipt, _) in &done {
            shop.ack([*receipt]);
        }
        while held.len() < CONSUMERS {
            let (tenant, receipt) = shop.receive(1)[0];
            let tenant = tenant.unwrap();
            deliveries[usize::from(tenant)] += 1;
            held.push((tenant, receipt, now_ms + TAKES_MS[usize::from(tenant)]));
        }
        held.iter().for_each(|(tenant, ..)| consumer_ms[usize::from(*tenant)] += 1);
        shop.rig.pass(1);
    }
    let least = RUN_MS * (CONSUMERS as u64 / 3 - 1);
    assert!(consumer_ms.iter().all(|ms| *ms >= least), "{consumer_ms:?} of {least}");
    assert!(deliveries[0] > 10 * deliveries[2], "{deliveries:?}");
}

/// A message that fails for ever takes turns with the others of its own tenant, and costs other tenants no more than any
/// other message would.
#[test]
fn a_message_that_comes_back_for_ever_starves_nobody() {
    let mut shop = Shop::new();
    shop.send(Some(0), 50);
    shop.send(Some(1), 50);
    let poison = shop.receive(1)[0].1;
    shop.release(poison);
    let mut acked = [0; 2];
    for _ in 0..120 {
        let (tenant, receipt) = shop.receive(1)[0];
        if receipt.sequence == poison.sequence {
            shop.release(receipt);
        } else {
            acked[usize::from(tenant.unwrap())] += 1;
            shop.ack([receipt]);
        }
    }
    assert_eq!(acked[1], 50, "the other tenant is done");
    assert!(acked[0] >= 30, "{acked:?}");
}
