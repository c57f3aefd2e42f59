//! Files that are damaged under a running node: others have what it cannot read, and it hands on none of it.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, NewMessage, ReceiveOptions};
use leasehold_cluster_tests::{Plan, TestCluster, eventually, term};

/// More than a segment.
const COUNT: u32 = 48;
const BODY_BYTES: u32 = 512 * 1024;
/// A machine that stands still for a second takes a leadership: then it is tried again.
const ROUNDS_MAX: u32 = 3;
/// Every body has one, and what was written before the first has none.
const DAMAGED_EVERY_BYTES: u64 = 200 * 1024;

/// Begins with its number.
fn body(number: u32) -> Vec<u8> {
    (0..BODY_BYTES / 4).flat_map(|at| (number + at).to_le_bytes()).collect()
}

async fn leads(client: &Client, name: &str) -> bool {
    let status = client.cluster_status().await.unwrap();
    let leader = status.nodes.iter().find(|node| node.id == status.partitions[0].leader);
    leader.is_some_and(|leader| leader.name == name)
}

async fn hand_to(client: &Client, name: &str) {
    eventually("the node leads", async || {
        let is_so = leads(client, name).await;
        if !is_so {
            // Nobody may lead at this moment.
            let _ = client.transfer_leader(0, name).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        is_so
    })
    .await;
}

/// A cluster that keeps next to nothing in memory, with one partition and the queue "q".
async fn cluster() -> TestCluster {
    let settings = vec![("limits.cache_bytes".to_owned(), "1MiB".to_owned())];
    let cluster = TestCluster::start(Plan { partitions: 1, settings, ..Plan::default() }).await;
    cluster.client().create_queue("q", QueueSettings::default(), 1).await.unwrap();
    cluster
}

/// The node to which leadership returns by itself.
async fn preferred(client: &Client) -> String {
    let status = client.cluster_status().await.unwrap();
    let first = status.partitions[0].replicas[0];
    status.nodes.into_iter().find(|node| node.id == first).unwrap().name
}

/// Sends everything, and waits until these nodes have it.
async fn fill(cluster: &TestCluster, names: &[&str]) {
    let client = cluster.client_at(names[0]);
    for number in 0..COUNT {
        client.send("q", vec![NewMessage::new(body(number))]).await.unwrap().pop().unwrap().unwrap();
    }
    eventually("nobody is behind", async || {
        let mut applied = BTreeSet::new();
        for name in names {
            applied
                .insert(cluster.client_at(name).cluster_status().await.unwrap().partitions[0].applied_index);
        }
        applied.len() == 1
    })
    .await;
}

/// Damages all that a node has in closed segments.
fn damage(cluster: &TestCluster, name: &str) {
    let files = fs::read_dir(cluster.dir_of(name).join("log")).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let is_segment = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("segment-");
    let mut segments = paths.filter(is_segment).collect::<Vec<_>>();
    segments.sort();
    segments.pop();
    assert!(!segments.is_empty());
    for path in segments {
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        for at in (DAMAGED_EVERY_BYTES..len).step_by(DAMAGED_EVERY_BYTES as usize) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        }
    }
}

/// Takes everything out of the queue; each body is as it was sent.
async fn assert_all_are_whole(client: &Client) {
    let mut seen = BTreeSet::new();
    eventually("everything is received", async || {
        let wait = Duration::from_millis(500);
        let options = ReceiveOptions { messages_max: 8, wait, ..ReceiveOptions::default() };
        let Ok(messages) = client.receive("q", options).await else { return false };
        for message in &messages {
            let number = u32::from_le_bytes(message.body[..4].try_into().unwrap());
            assert!(message.body[..] == body(number)[..], "the body of {number} is damaged");
            seen.insert(number);
        }
        let receipts = messages.into_iter().map(|message| message.receipt).collect::<Vec<_>>();
        if !receipts.is_empty() {
            assert!(client.ack("q", &receipts).await.unwrap().into_iter().all(|outcome| outcome.is_ok()));
        }
        seen.len() == COUNT as usize
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_a_leader_cannot_read_come_from_other_nodes() {
    let cluster = cluster().await;
    let leader = preferred(&cluster.client()).await;
    let client = cluster.client_at(&leader);
    let mut round = 1;
    loop {
        fill(&cluster, &["n1", "n2", "n3"]).await;
        hand_to(&client, &leader).await;
        let before = term(&client, 0).await;
        damage(&cluster, &leader);
        assert_all_are_whole(&client).await;
        if term(&client, 0).await == before {
            break;
        }
        assert!(round < ROUNDS_MAX, "the leadership was lost in each round");
        round += 1;
    }
    assert!(leads(&client, &leader).await);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_a_leader_cannot_read_are_sent_by_the_next_one() {
    let mut cluster = cluster().await;
    hand_to(&cluster.client_at("n1"), "n1").await;
    cluster.stop("n3").await;
    fill(&cluster, &["n1", "n2"]).await;
    damage(&cluster, "n1");
    cluster.restart("n3").await;
    hand_to(&cluster.client_at("n2"), "n3").await;
    cluster.stop("n1").await;
    // What it has came whole, or not at all.
    assert_all_are_whole(&cluster.client_at("n3")).await;
    cluster.end().await;
}
