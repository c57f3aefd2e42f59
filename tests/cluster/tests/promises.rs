//! Promises that only show when much is asked at once, or at the wrong moment.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream;
use leasehold_client::v1::messages_client::MessagesClient;
use leasehold_client::v1::{self, QueueSettings, ReceiveRequest, RequestId, SendRequest};
use leasehold_client::{Client, NewMessage, Outcome, QueueKind, Reason, ReceiveOptions};
use leasehold_cluster_tests::{Plan, TestCluster, change_leader, eventually, receive_some};
use tokio::time::{Instant, sleep};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const MIB: usize = 1024 * 1024;
/// Requests that have no id are lost with a leadership, as on a machine that stood still for a second: then all are asked again.
const ROUNDS_MAX: u32 = 5;
/// As long as a receive may wait.
const WAIT: Duration = Duration::from_secs(20);

fn fifo() -> QueueSettings {
    QueueSettings { kind: Some(QueueKind::Fifo as i32), ..QueueSettings::default() }
}

/// Receives and acknowledges so many messages; their bodies are numbers.
async fn take(client: &Client, queue: &str, count: usize) -> Vec<usize> {
    let options =
        ReceiveOptions { messages_max: 1_000, wait: Duration::from_secs(1), ..ReceiveOptions::default() };
    let mut taken = Vec::new();
    eventually("all messages are received", async || {
        let messages = client.receive(queue, options.clone()).await.unwrap();
        let receipts = messages.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
        if !receipts.is_empty() {
            assert!(client.ack(queue, &receipts).await.unwrap().iter().all(Result::is_ok));
        }
        taken.extend(
            messages
                .iter()
                .map(|message| std::str::from_utf8(&message.body).unwrap().parse::<usize>().unwrap()),
        );
        taken.len() >= count
    })
    .await;
    taken
}

/// Where the only shard of a queue is.
async fn partition_of(client: &Client, queue: &str) -> u32 {
    client.describe_queue(queue).await.unwrap().shards[0].partition
}

/// Sends each of these at once, and then the next; false when some were lost with a leadership.
async fn send_at_once(cluster: &TestCluster, node: &str, numbers: &[usize]) -> bool {
    let service = cluster.node(node).service();
    let requests = numbers.iter().map(|number| {
        let body = number.to_string().into_bytes().into();
        let message = v1::NewMessage { body, group: Some("g".to_owned()), ..v1::NewMessage::default() };
        SendRequest { queue: "orders".to_owned(), messages: vec![message], request: None }
    });
    let requests = requests.collect::<Vec<_>>();
    let sent = join_all(requests.iter().map(|request| service.send(request))).await;
    let failures = sent.into_iter().filter_map(Result::err).collect::<Vec<_>>();
    let is_lost = failures.iter().all(|failure| failure.reason == Reason::NoLeader);
    assert!(is_lost, "through {node}: {failures:?}");
    failures.is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_has_the_order_in_which_it_was_asked_for() {
    const MESSAGES: usize = 3_000;
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("orders", fifo(), 1).await.unwrap();
    for node in NODES {
        cluster.node(node).service().queue("orders").await.unwrap();
    }
    let in_order = (0..MESSAGES).collect::<Vec<_>>();
    // Many batches of one stream are under way.
    let producer = client.queue("orders").producer().batch(50, MIB).start();
    let messages = in_order.iter().map(|number| NewMessage::new(number.to_string()).group("g"));
    assert!(producer.send_all(messages).await.iter().all(Result::is_ok));
    assert_eq!(take(&client, "orders", MESSAGES).await, in_order);
    // And many requests at once, brought to the leader by every node.
    for node in NODES {
        let mut round = 1;
        while !send_at_once(&cluster, node, &in_order).await {
            assert!(round < ROUNDS_MAX, "through {node}: the leadership was lost in each round");
            round += 1;
            eventually("it is purged", async || client.purge_queue("orders").await.is_ok()).await;
        }
        assert_eq!(take(&client, "orders", MESSAGES).await, in_order, "through {node}");
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_no_longer_than_everybody_takes() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("films", QueueSettings::default(), 1).await.unwrap();
    for _ in 0..24 {
        client.send("films", vec![NewMessage::new(vec![b'x'; MIB])]).await.unwrap().remove(0).unwrap();
    }
    for node in NODES {
        let service = cluster.node(node).service();
        let request = ReceiveRequest {
            queue: "films".to_owned(),
            messages_max: 1_000,
            bytes_max: 1 << 40,
            ..ReceiveRequest::default()
        };
        let mut received = Vec::new();
        // Nothing comes from a node that was held up, or knows of no leader at this moment.
        eventually("something is received", async || {
            received = service.receive(&request).await.map(|answer| answer.deliveries).unwrap_or_default();
            !received.is_empty()
        })
        .await;
        assert!((1..=4).contains(&received.len()), "{} through {node}", received.len());
        let looked = cluster.client_at(node).peek("films", 1_000).await.unwrap();
        assert!((1..=4).contains(&looked.len()), "{} through {node}", looked.len());
    }
    cluster.end().await;
}

/// Longer than a node looks for a leader.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_waited_long_waits_on_when_the_leader_changes() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("rare", QueueSettings::default(), 1).await.unwrap();
    let is_sent = Arc::new(AtomicBool::new(false));
    let waiting = [1, 2, 3].map(|session| {
        let (service, is_sent) = (cluster.node(&format!("n{session}")).service(), Arc::clone(&is_sent));
        tokio::spawn(async move {
            let (end, mut sequence) = (Instant::now() + WAIT, 0);
            loop {
                sequence += 1;
                let request = ReceiveRequest {
                    queue: "rare".to_owned(),
                    messages_max: 1,
                    wait_ms: WAIT.as_millis() as u64,
                    request: Some(RequestId { session, sequence, completed_below: sequence }),
                    ..ReceiveRequest::default()
                };
                let received = service.receive(&request).await.unwrap().deliveries;
                // A node that was held up gives back what it has granted, and says at once that there is nothing.
                let is_given_back = is_sent.load(Ordering::Relaxed) && Instant::now() < end;
                if !received.is_empty() || !is_given_back {
                    return received.len();
                }
            }
        })
    });
    sleep(Duration::from_secs(6)).await;
    change_leader(&cluster.client_at("n1"), partition_of(&client, "rare").await).await;
    is_sent.store(true, Ordering::Relaxed);
    let messages = NODES.iter().map(|node| NewMessage::new(*node)).collect();
    assert!(client.send("rare", messages).await.unwrap().iter().all(Result::is_ok));
    for received in join_all(waiting).await {
        assert_eq!(received.unwrap(), 1);
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_that_finds_nothing_to_move_waits() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    for queue in ["dead", "orders"] {
        client.create_queue(queue, fifo(), 1).await.unwrap();
    }
    let messages = (0..2).map(|number| NewMessage::new(number.to_string()).group("g")).collect();
    assert!(client.send("dead", messages).await.unwrap().iter().all(Result::is_ok));
    let one = ReceiveOptions { messages_max: 1, ..ReceiveOptions::default() };
    let first = receive_some(&client, "dead", &one).await.remove(0);
    client.start_redrive("dead", Some("orders"), 0).await.unwrap();
    let partition = partition_of(&client, "dead").await;
    // At one node, since others may be behind it.
    let one_node = cluster.client_at("n1");
    let applied = async || {
        let partitions = one_node.cluster_status().await.unwrap().partitions;
        partitions.iter().find(|status| status.partition == partition).unwrap().applied_index
    };
    let before = applied().await;
    sleep(Duration::from_secs(2)).await;
    let entries = applied().await - before;
    assert!(entries < 100, "{entries} entries, although the group's first message is leased");
    // And it goes on when there is something.
    assert!(client.ack("dead", &[first.receipt]).await.unwrap()[0].is_ok());
    assert_eq!(take(&client, "orders", 1).await, [1]);
    cluster.end().await;
}

/// A consumer takes nothing from the network until it is full, and is gone: what waits on its node was seen by nobody.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_and_never_left_its_node_comes_back() {
    /// Together they are more than a connection takes on its way.
    const MESSAGES: usize = 40;
    /// Batches of one message that wait on the node: those that have a place, and the next.
    const WAITING: u64 = 17;
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("heavy", QueueSettings::default(), 1).await.unwrap();
    for _ in 0..MESSAGES {
        let heavy = NewMessage::new(vec![b'x'; MIB / 2]);
        assert!(client.send("heavy", vec![heavy]).await.unwrap()[0].is_ok());
    }
    let leased = async || client.describe_queue("heavy").await.unwrap().counters.unwrap().leased;
    let start = v1::PullStart {
        queue: "heavy".to_owned(),
        lease_ms: Some(3_600_000),
        consumer: "gone".to_owned(),
        batch_max: 1,
        credit: Some(v1::Credit { messages: MESSAGES as u64 }),
        local_shards_only: false,
    };
    let start = v1::PullRequest { kind: Some(v1::pull_request::Kind::Start(start)) };
    let endpoint = format!("http://{}", cluster.node("n1").client_address());
    // A process of its own would be one: what it holds open ends with it.
    let process = tokio::runtime::Runtime::new().unwrap();
    process.spawn(async move {
        let mut calls = MessagesClient::connect(endpoint).await.unwrap();
        let unread = calls.pull(stream::iter([start]).chain(stream::pending())).await.unwrap();
        std::future::pending::<()>().await;
        drop(unread);
    });
    let mut before = 0;
    eventually("the connection is full", async || {
        sleep(Duration::from_millis(500)).await;
        let last = std::mem::replace(&mut before, leased().await);
        before > WAITING && before == last
    })
    .await;
    assert!(before < MESSAGES as u64, "all of it was on its way");
    process.shutdown_background();
    eventually("what waited comes back", async || leased().await + WAITING <= before).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_that_still_runs_on_one_shard_is_the_only_one() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    for queue in ["dead", "orders"] {
        let settings = QueueSettings { lease_ms: Some(600_000), ..fifo() };
        client.create_queue(queue, settings, 3).await.unwrap();
    }
    let messages = (0..2).map(|number| NewMessage::new(number.to_string()).group("g")).collect();
    assert!(client.send("dead", messages).await.unwrap().iter().all(Result::is_ok));
    let one = ReceiveOptions { messages_max: 1, ..ReceiveOptions::default() };
    // The other has to wait for it, and the redrive for both.
    let first = receive_some(&client, "dead", &one).await.remove(0);
    client.start_redrive("dead", Some("orders"), 0).await.unwrap();
    let of_shards = async || {
        let shards = client.describe_queue("dead").await.unwrap().shards;
        shards.into_iter().map(|shard| shard.redrive.unwrap_or_default()).collect::<Vec<_>>()
    };
    eventually("it is over on all shards but one", async || {
        of_shards().await.iter().filter(|redrive| redrive.running).count() == 1
    })
    .await;
    let id = client.describe_queue("dead").await.unwrap().redrive.unwrap().id;
    let refused = client.start_redrive("dead", None, 0).await.unwrap_err();
    assert_eq!((refused.reason, refused.outcome), (Reason::RedriveRunning, Outcome::NotDone), "{refused}");
    assert!(of_shards().await.iter().all(|redrive| redrive.id == id), "the second has begun nowhere");
    // Who cancels by an id means no other.
    let service = cluster.node("n1").service();
    let refused = service.cancel_redrive("dead", Some(id ^ 1)).await.unwrap_err();
    assert_eq!(refused.reason, Reason::NoRedrive);
    assert!(client.ack("dead", &[first.receipt]).await.unwrap()[0].is_ok());
    assert_eq!(take(&client, "orders", 1).await, [1]);
    cluster.end().await;
}
