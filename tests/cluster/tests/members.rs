//! Nodes that stop, come back, join and leave while a queue is in use.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::time::Duration;

use bytes::Bytes;
use leasehold_client::v1::messages_client::MessagesClient;
use leasehold_client::v1::queues_client::QueuesClient;
use leasehold_client::v1::{QueueSettings, SendRequest, SetQueueRequest, StatusResponse};
use leasehold_client::{Client, NewMessage, Outcome, Reason, ReceiveOptions};
use leasehold_cluster_tests::{Plan, TestCluster, eventually, receive_some};

async fn send(client: &Client, queue: &str, from: u32, count: u32) {
    for start in (from..from + count).step_by(100) {
        let end = (start + 100).min(from + count);
        let messages = (start..end).map(|number| NewMessage::new(format!("{number:05}"))).collect();
        for outcome in client.send(queue, messages).await.unwrap() {
            outcome.unwrap();
        }
    }
}

/// Takes everything out of the queue; the bodies, sorted.
async fn drain(client: &Client, queue: &str, count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    eventually("the queue is drained", async || {
        let wait = Duration::from_millis(500);
        let options = ReceiveOptions { messages_max: 200, wait, ..ReceiveOptions::default() };
        let messages = client.receive(queue, options).await.unwrap();
        let receipts = messages.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
        if !receipts.is_empty() {
            assert!(client.ack(queue, &receipts).await.unwrap().into_iter().all(|outcome| outcome.is_ok()));
        }
        bodies.extend(messages.into_iter().map(|message| String::from_utf8(message.body.to_vec()).unwrap()));
        bodies.len() >= count
    })
    .await;
    bodies.sort();
    bodies
}

fn expected(count: u32) -> Vec<String> {
    (0..count).map(|number| format!("{number:05}")).collect()
}

async fn status(client: &Client) -> StatusResponse {
    client.cluster_status().await.unwrap()
}

/// Has a node lead partition 0. When it is too busy to take over in time, another one does, and it is asked again.
async fn hand_to(client: &Client, name: &str) {
    eventually("the node leads", async || {
        let status = status(client).await;
        let leader = status.nodes.iter().find(|node| node.id == status.partitions[0].leader);
        if leader.is_some_and(|leader| leader.name == name) {
            return true;
        }
        // Nobody may lead at this moment.
        let _ = client.transfer_leader(0, name).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        false
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_restart_of_all_nodes() {
    let mut cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("kept", QueueSettings::default(), 4).await.unwrap();
    send(&client, "kept", 0, 1_000).await;
    for name in ["n1", "n2", "n3"] {
        cluster.stop(name).await;
    }
    for name in ["n1", "n2", "n3"] {
        cluster.restart(name).await;
    }
    cluster.wait_until_ready().await;
    let client = cluster.client();
    assert_eq!(drain(&client, "kept", 1_000).await, expected(1_000));
    cluster.end().await;
}

/// What is decided by no command, such as that somebody else leads, is nothing to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn queues_are_listed_at_once_after_a_change_of_leaders() {
    let mut cluster = TestCluster::start(Plan::default()).await;
    cluster.client().create_queue("listed", QueueSettings::default(), 1).await.unwrap();
    // Whoever led the catalogue, it has changed after two of these.
    for name in ["n1", "n2", "n3"] {
        cluster.stop(name).await;
        cluster.restart(name).await;
        cluster.wait_until_ready().await;
    }
    let began = tokio::time::Instant::now();
    for name in ["n1", "n2", "n3"] {
        for _ in 0..4 {
            let listed = cluster.client_at(name).list_queues("", 0, "").await.unwrap();
            assert_eq!(listed.queues, ["listed"]);
        }
    }
    // Twelve calls take some milliseconds; a node that waits for what does not come gives up after 5 s.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_hands_over_and_its_leases_last() {
    let mut cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    let settings = QueueSettings { lease_ms: Some(4_000), ..QueueSettings::default() };
    client.create_queue("held", settings, 1).await.unwrap();
    send(&client, "held", 0, 1).await;
    let options =
        ReceiveOptions { messages_max: 1, wait: Duration::from_secs(10), ..ReceiveOptions::default() };
    let held = receive_some(&client, "held", &options).await.pop().unwrap();
    let leader = client.describe_queue("held").await.unwrap().shards[0].leader.clone();
    cluster.stop(&leader).await;
    let client = cluster.client();
    let mut asked = 0_u32;
    let next = loop {
        asked += 1;
        if let Some(next) = client.receive("held", options.clone()).await.unwrap().pop() {
            break next;
        }
    };
    let slack = Duration::from_millis(250);
    assert!(tokio::time::Instant::now() + slack >= held.lease_until, "the lease was shortened");
    assert_eq!(next.id, held.id);
    // A node that was held up gives back what it has granted, and that counts.
    let granted = next.receive_count - held.receive_count;
    assert!((1..=asked).contains(&granted), "granted {granted} times, asked {asked} times");
    assert!(next.fencing_token > held.fencing_token);
    cluster.restart(&leader).await;
    cluster.wait_until_ready().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_takes_its_share_and_another_leaves() {
    let mut cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("moved", QueueSettings::default(), 4).await.unwrap();
    send(&client, "moved", 0, 2_000).await;
    cluster.add_process("n4").await;
    client.add_node(cluster.init_node("n4")).await.unwrap();
    eventually("the new node has its share", async || {
        let status = status(&client).await;
        let has_share = status.nodes.iter().any(|node| node.name == "n4" && node.replicas == 3);
        has_share && status.partitions.iter().all(|partition| partition.settled)
    })
    .await;
    client.remove_node("n1").await.unwrap();
    eventually("the old node has left", async || {
        status(&cluster.client_at("n4")).await.nodes.iter().all(|node| node.name != "n1")
    })
    .await;
    cluster.stop("n1").await;
    let client = cluster.client();
    assert_eq!(drain(&client, "moved", 2_000).await, expected(2_000));
    cluster.end().await;
}

/// What docs/errors.md says to do with a damaged node, for one after the other: also when the catalogue's leader loses its vote.
#[tokio::test(flavor = "multi_thread")]
async fn each_of_three_nodes_is_replaced_by_an_empty_one() {
    let mut cluster = TestCluster::start(Plan::default()).await;
    cluster.client().create_queue("kept", QueueSettings::default(), 4).await.unwrap();
    send(&cluster.client(), "kept", 0, 500).await;
    // A node that stops hands over to the first of the others: now n2 leads the catalogue, and loses its vote when n3 leaves.
    for name in ["n3", "n1"] {
        cluster.stop(name).await;
        cluster.restart(name).await;
        cluster.wait_until_ready().await;
    }
    for name in ["n3", "n1", "n2"] {
        cluster.stop(name).await;
        let client = cluster.client();
        client.remove_node(name).await.unwrap();
        eventually("the stopped node has left", async || {
            let nodes = client.cluster_status().await.map(|status| status.nodes);
            nodes.is_ok_and(|nodes| nodes.iter().all(|node| node.name != name))
        })
        .await;
        std::fs::remove_dir_all(cluster.dir_of(name)).unwrap();
        cluster.restart(name).await;
        client.add_node(cluster.init_node(name)).await.unwrap();
        eventually("the empty node has its share", async || {
            let status = status(&client).await;
            status.partitions.iter().all(|partition| partition.settled && partition.replicas.len() == 3)
        })
        .await;
        cluster.wait_until_ready().await;
    }
    assert_eq!(drain(&cluster.client(), "kept", 500).await, expected(500));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_outside_a_cluster_says_what_to_do_and_none_joins_two() {
    let mut cluster = TestCluster::empty(Vec::new());
    cluster.add_process("alone").await;
    let client = cluster.client_at("alone");
    let error = client.create_queue("q", QueueSettings::default(), 1).await.unwrap_err();
    assert_eq!(error.reason, Reason::NotInitialised);
    assert!(error.detail.contains("cluster init"), "{}", error.detail);
    let wrong = vec![leasehold_client::v1::InitNode { name: "other".into(), ..cluster.init_node("alone") }];
    let error = client.init_cluster(wrong, 2, 1).await.unwrap_err();
    assert!(error.reason == Reason::InvalidArgument && error.detail.contains("other"), "{}", error.detail);
    client.init_cluster(vec![cluster.init_node("alone")], 2, 1).await.unwrap();
    cluster.wait_until_ready().await;
    let error = client.init_cluster(vec![cluster.init_node("alone")], 2, 1).await.unwrap_err();
    assert_eq!(error.reason, Reason::AlreadyInitialised);
    client.create_queue("q", QueueSettings::default(), 1).await.unwrap();
    send(&client, "q", 0, 10).await;
    assert_eq!(drain(&client, "q", 10).await, expected(10));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_transferred_on_request() {
    let cluster = TestCluster::start(Plan { partitions: 1, ..Plan::default() }).await;
    let client = cluster.client();
    client.create_queue("q", QueueSettings::default(), 1).await.unwrap();
    let before = status(&client).await;
    let target = before.nodes.iter().find(|node| node.id != before.partitions[0].leader).unwrap();
    hand_to(&client, &target.name).await;
    send(&client, "q", 0, 10).await;
    let unknown = client.transfer_leader(7, &target.name).await.unwrap_err();
    assert_eq!(unknown.reason, Reason::UnknownPartition);
    assert_eq!(client.transfer_leader(0, "nobody").await.unwrap_err().reason, Reason::UnknownNode);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_elsewhere_takes_part_again() {
    let mut cluster = TestCluster::start(Plan::default()).await;
    cluster.client().create_queue("q", QueueSettings::default(), 4).await.unwrap();
    for name in ["n1", "n2", "n3"] {
        cluster.stop(name).await;
        send(&cluster.client(), "q", 0, 10).await;
        cluster.restart_elsewhere(name).await;
        cluster.wait_until_ready().await;
        assert_eq!(drain(&cluster.client_at(name), "q", 10).await, expected(10));
    }
    cluster.end().await;
}

/// Bodies that fill the log, each with a number that can be checked.
fn large(number: u32) -> Vec<u8> {
    let mut body = vec![number as u8; 100_000];
    body[..4].copy_from_slice(&number.to_le_bytes());
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_missed_more_than_the_log_holds_catches_up_by_a_snapshot() {
    const COUNT: u32 = 900;
    let mut cluster = TestCluster::start(Plan { partitions: 1, ..Plan::default() }).await;
    let client = cluster.client();
    client.create_queue("large", QueueSettings::default(), 1).await.unwrap();
    cluster.stop("n3").await;
    for number in 0..COUNT {
        client.send("large", vec![NewMessage::new(large(number))]).await.unwrap().pop().unwrap().unwrap();
    }
    let snapshot =
        |cluster: &TestCluster, name: &str| cluster.dir_of(name).join("log").join("snapshot-00000001");
    eventually("the nodes have taken a snapshot", async || {
        snapshot(&cluster, "n1").exists() && snapshot(&cluster, "n2").exists()
    })
    .await;
    assert!(!snapshot(&cluster, "n3").exists());
    cluster.restart("n3").await;
    cluster.wait_until_ready().await;
    eventually("the node that was away has the snapshot", async || snapshot(&cluster, "n3").exists()).await;
    // It must serve what it never saw in its own log.
    let client = cluster.client();
    hand_to(&client, "n3").await;
    cluster.stop("n1").await;
    let client = cluster.client();
    let mut seen = std::collections::BTreeSet::new();
    eventually("all bodies are whole", async || {
        let wait = Duration::from_millis(500);
        let options = ReceiveOptions { messages_max: 30, wait, ..ReceiveOptions::default() };
        let messages = client.receive("large", options).await.unwrap();
        for message in &messages {
            let number = u32::from_le_bytes(message.body[..4].try_into().unwrap());
            assert!(message.body[..] == large(number)[..], "the body of {number} is damaged");
            seen.insert(number);
        }
        let receipts = messages.into_iter().map(|message| message.receipt).collect::<Vec<_>>();
        if !receipts.is_empty() {
            assert!(client.ack("large", &receipts).await.unwrap().into_iter().all(|outcome| outcome.is_ok()));
        }
        seen.len() == COUNT as usize
    })
    .await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_disk_sends_are_refused_and_acks_work() {
    let mut cluster = TestCluster::start(Plan { nodes: 1, partitions: 1, ..Plan::default() }).await;
    cluster.client().create_queue("q", QueueSettings::default(), 1).await.unwrap();
    send(&cluster.client(), "q", 0, 10).await;
    cluster.stop("n1").await;
    cluster.set("limits.disk_low_bytes", "1TiB");
    cluster.restart("n1").await;
    cluster.wait_until_ready().await;
    let endpoints = [leasehold_cluster_tests::endpoint(cluster.node("n1").client_address())];
    let client = Client::builder(endpoints).call_timeout(Duration::from_secs(1)).build().unwrap();
    eventually("sends are refused", async || {
        client
            .send("q", vec![NewMessage::new("more")])
            .await
            .is_err_and(|error| error.reason == Reason::DiskLow)
    })
    .await;
    // The first sends, before the disk was looked at, may have gone through.
    assert!(drain(&client, "q", 10).await.len() >= 10);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_does_not_grow_although_some_partitions_rest() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    for queue in ["resting-1", "resting-2", "resting-3", "busy"] {
        client.create_queue(queue, QueueSettings::default(), 1).await.unwrap();
    }
    for queue in ["resting-1", "resting-2", "resting-3"] {
        send(&client, queue, 0, 1).await;
    }
    for _ in 0..60 {
        let messages = (0..40).map(|_| NewMessage::new(vec![b'x'; 100_000])).collect();
        assert!(client.send("busy", messages).await.unwrap().into_iter().all(|outcome| outcome.is_ok()));
        drain(&client, "busy", 40).await;
    }
    // 240 MB went through logs of 16 MiB segments: most of them are in use again, or will be in a moment.
    let segments = |name: &str| {
        let files = std::fs::read_dir(cluster.dir_of(name).join("log")).unwrap();
        files
            .filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().starts_with("segment-"))
            .count()
    };
    eventually("old segments are used again", async || {
        send(&client, "busy", 0, 1).await;
        ["n1", "n2", "n3"].iter().all(|name| segments(name) <= 6)
    })
    .await;
    for queue in ["resting-1", "resting-2", "resting-3"] {
        assert_eq!(drain(&client, queue, 1).await, expected(1));
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_with_more_than_it_has_room_for_refuses_the_rest() {
    const ROUNDS_MAX: usize = 50;
    const SENDS: usize = 100;
    let (cluster, client, leader) = led_by_preferred().await;
    let endpoint = leasehold_cluster_tests::endpoint(cluster.node(&leader).client_address());
    let channel = tonic::transport::Endpoint::from_shared(endpoint).unwrap().connect().await.unwrap();
    // Past the client, which would try again until there is room.
    let send = |number: usize| {
        let mut calls = MessagesClient::new(channel.clone());
        let messages =
            vec![leasehold_client::v1::NewMessage { body: large_body(number), ..Default::default() }];
        let request = SendRequest { queue: "q".to_owned(), messages, request: None };
        tokio::spawn(async move { calls.send(request).await.map_err(leasehold_client::Error::from) })
    };
    let (mut refused, mut done, mut open) = (0, 0_u64, 0_u64);
    for _ in 0..ROUNDS_MAX {
        for answer in (0..SENDS).map(send).collect::<Vec<_>>() {
            match answer.await.unwrap() {
                Ok(_) => done += 1,
                // On a busy machine the leadership may be lost, and what is under way with it.
                Err(error) if error.reason == Reason::NoLeader => open += 1,
                Err(error) => {
                    assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::Busy), "{error}");
                    assert!(error.retry_after.is_some(), "{error}");
                    refused += 1;
                }
            }
        }
        if refused > 0 {
            break;
        }
    }
    assert!(refused > 0 && done > 0, "{refused} refused, {done} done, {open} open");
    let ready = client.describe_queue("q").await.unwrap().counters.unwrap().ready;
    assert!((done..=done + open).contains(&ready), "{ready} are there, {done} done, {open} open");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_quorum_refuses_what_it_cannot_do() {
    const MESSAGES: usize = 60;
    let (mut cluster, client, leader) = led_by_preferred().await;
    let others = ["n1", "n2", "n3"].into_iter().filter(|name| *name != leader).collect::<Vec<_>>();
    for name in &others {
        cluster.stop(name).await;
    }
    let endpoint = leasehold_cluster_tests::endpoint(cluster.node(&leader).client_address());
    let hasty = Client::builder([endpoint]).call_timeout(Duration::from_secs(3)).build().unwrap();
    let sends = (0..MESSAGES).map(|number| {
        let hasty = hasty.clone();
        tokio::spawn(async move { hasty.send("q", vec![NewMessage::new(large_body(number))]).await })
    });
    let (mut refused, mut may_be_there) = (0, 0);
    for send in sends.collect::<Vec<_>>() {
        match send.await.unwrap() {
            Err(error) if error.outcome == Outcome::NotDone => {
                // Those that came before the node knew that it is cut off may have filled its room.
                assert!(matches!(error.reason, Reason::NoLeader | Reason::Busy), "{error}");
                refused += 1;
            }
            Err(error) => {
                assert_eq!(error.outcome, Outcome::Unknown, "{error}");
                may_be_there += 1;
            }
            Ok(outcomes) => panic!("sent without a quorum: {outcomes:?}"),
        }
    }
    assert_eq!(refused + may_be_there, MESSAGES);
    for name in &others {
        cluster.restart(name).await;
    }
    cluster.wait_until_ready().await;
    // There is room again, and what was refused is not there.
    send(&client, "q", 0, 1).await;
    let count = client.describe_queue("q").await.unwrap().counters.unwrap().ready;
    assert!(count as usize <= may_be_there + 1, "{count} are there, {may_be_there} may be");
    cluster.end().await;
}

/// The catalogue has made the change, and the leader of the queue's only shard, which is to follow it, is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_queue_that_did_not_reach_its_shards_is_unknown() {
    let mut cluster = TestCluster::empty(Vec::new());
    let names = ["n1", "n2", "n3"];
    for name in names {
        cluster.add_process(name).await;
    }
    let nodes = names.map(|name| cluster.init_node(name)).to_vec();
    cluster.client().init_cluster(nodes, 3, 1).await.unwrap();
    cluster.wait_until_ready().await;
    let client = cluster.client();
    client.create_queue("q", QueueSettings::default(), 1).await.unwrap();
    let shard = client.routes("q").await.unwrap().shards[0].partition;
    let status = status(&client).await;
    let holder = status.partitions.iter().find(|partition| partition.partition == shard).unwrap().leader;
    let holder = status.nodes.iter().find(|node| node.id == holder).unwrap().name.clone();
    let other = names.into_iter().find(|name| *name != holder).unwrap();
    cluster.stop(&holder).await;
    // Past the client, which would ask again.
    let endpoint = leasehold_cluster_tests::endpoint(cluster.node(other).client_address());
    let mut calls = QueuesClient::connect(endpoint).await.unwrap();
    let settings = Some(QueueSettings { lease_ms: Some(1_234), ..QueueSettings::default() });
    let change = SetQueueRequest { queue: "q".to_owned(), settings, request: None };
    let error = leasehold_client::Error::from(calls.set_queue(change).await.unwrap_err());
    assert_eq!((error.outcome, error.reason), (Outcome::Unknown, Reason::NoLeader), "{error}");
    cluster.restart(&holder).await;
    cluster.wait_until_ready().await;
    let settings = cluster.client().describe_queue("q").await.unwrap().settings.unwrap();
    assert_eq!(settings.lease_ms, Some(1_234));
    cluster.end().await;
}

/// A cluster with one partition, the queue "q" and as little room for what waits as there can be; a client of the node that leads,
/// and its name. The catalogue prefers it, so leadership does not go elsewhere by itself.
async fn led_by_preferred() -> (TestCluster, Client, String) {
    let settings = vec![("limits.pending_bytes_max".to_owned(), "16MiB".to_owned())];
    let cluster = TestCluster::start(Plan { partitions: 1, settings, ..Plan::default() }).await;
    let of_all = cluster.client();
    of_all.create_queue("q", QueueSettings::default(), 1).await.unwrap();
    let status = status(&of_all).await;
    let first = status.partitions[0].replicas[0];
    let leader = status.nodes.into_iter().find(|node| node.id == first).unwrap().name;
    hand_to(&of_all, &leader).await;
    let client = cluster.client_at(&leader);
    (cluster, client, leader)
}

/// 1 MB.
fn large_body(number: usize) -> Bytes {
    format!("{number:05}").repeat(200_000).into()
}
