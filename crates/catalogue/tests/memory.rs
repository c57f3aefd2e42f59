//! What a queue weighs in the catalogue, in bytes that are allocated. Every node has all of it.
//!
//! Source: the target of 2 KiB for a queue and node in decision 022. Bytes are the same on every machine; the bounds leave a tenth.
#![allow(clippy::print_stdout, reason = "what was measured is said with --nocapture")]
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

#[path = "../../partition/tests/counting/mod.rs"]
mod counting;

use std::sync::Arc;

use counting::allocated;
use leasehold_catalogue::{Catalogue, Command, CreateQueue, Found, Founder, Kind, QueueId};

const QUEUES: u64 = 5_000;
const QUEUE_BYTES_MAX: isize = 440;

fn founded() -> Catalogue {
    let founder = |node: u64| Founder {
        node,
        name: format!("n{node}"),
        peer_address: format!("n{node}:7400"),
        client_address: format!("n{node}:7401"),
        catalogue_replica: node,
    };
    let founders = (1..=3).map(founder).collect();
    let found = Found {
        cluster_id: vec![1; 16],
        secret: vec![2; 32],
        replication: 3,
        partitions: 16,
        founders,
        version: 1,
    };
    let mut catalogue = Catalogue::new();
    catalogue.apply(1, &Command::bytes_for(None, Kind::Found(found))).unwrap();
    catalogue
}

#[test]
fn a_queue_is_recorded_once() {
    let mut catalogue = founded();
    let before = allocated();
    for number in 1..=QUEUES {
        let create = CreateQueue { name: format!("queue-{number}"), ..CreateQueue::default() };
        catalogue.apply(1 + number, &Command::bytes_for(None, Kind::CreateQueue(create))).unwrap();
    }
    let bytes = (allocated() - before) / QUEUES as isize;
    println!("{bytes} bytes a queue");
    assert!(bytes <= QUEUE_BYTES_MAX, "{bytes} bytes a queue");
    let by_name = catalogue.queue_by_name("queue-7").unwrap();
    assert!(Arc::ptr_eq(by_name, catalogue.queue(QueueId(by_name.id)).unwrap()));
    let image = catalogue.snapshot();
    drop(catalogue);
    let before = allocated();
    let restored = Catalogue::restore(&image).unwrap();
    let bytes = (allocated() - before) / QUEUES as isize;
    println!("{bytes} bytes a queue after a restart");
    assert!(restored.queues().len() == QUEUES as usize && bytes <= QUEUE_BYTES_MAX, "{bytes} bytes a queue");
}

#[test]
fn who_looks_a_queue_up_shares_its_record() {
    let mut catalogue = founded();
    let create = CreateQueue { name: "shared".to_owned(), ..CreateQueue::default() };
    catalogue.apply(2, &Command::bytes_for(None, Kind::CreateQueue(create))).unwrap();
    let before = allocated();
    let copies: [_; 100] = std::array::from_fn(|_| catalogue.queue_by_name("shared").cloned());
    assert_eq!((allocated(), copies.iter().flatten().count()), (before, 100));
}
