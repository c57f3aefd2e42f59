//! Receives that wait for something to come: what comes meanwhile is theirs, wherever it is sent and whoever leads.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::select_all;
use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, Lease, Message, NewMessage, QueueKind, ReceiveOptions};
use leasehold_cluster_tests::{Plan, TestCluster, eventually};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// As long as a receive may wait. None of these tests comes near it, unless something is not noticed.
const WAIT: Duration = Duration::from_secs(20);
/// Long enough, nearly always, for a receive to wait. When it is not, the test still holds.
const UNTIL_IT_WAITS: Duration = Duration::from_millis(100);

fn waiting() -> ReceiveOptions {
    ReceiveOptions { messages_max: 10, wait: WAIT, ..ReceiveOptions::default() }
}

fn start_receive(client: &Client, queue: &'static str, options: ReceiveOptions) -> JoinHandle<Vec<Message>> {
    let client = client.clone();
    tokio::spawn(async move { client.receive(queue, options).await.unwrap() })
}

async fn send(client: &Client, queue: &str, message: NewMessage) {
    client.send(queue, vec![message]).await.unwrap().pop().unwrap().unwrap();
}

async fn ack(client: &Client, queue: &str, messages: &[Message]) {
    let receipts = messages.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
    assert!(client.ack(queue, &receipts).await.unwrap().into_iter().all(|result| result.is_ok()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_meanwhile_is_received_at_every_node() {
    let cluster = TestCluster::start(Plan::default()).await;
    for (queue, shards) in [("narrow", 1), ("wide", 4)] {
        cluster.client().create_queue(queue, QueueSettings::default(), shards).await.unwrap();
        // Twice: at first, the partition does not know the queue yet.
        for round in 0..2 {
            for (receiver, sender) in [("n1", "n1"), ("n1", "n2"), ("n2", "n3"), ("n3", "n1")] {
                let client = cluster.client_at(receiver);
                let receiving = start_receive(&client, queue, waiting());
                sleep(UNTIL_IT_WAITS).await;
                let body = format!("{round} from {sender} to {receiver}");
                send(&cluster.client_at(sender), queue, NewMessage::new(body.clone())).await;
                let messages = receiving.await.unwrap();
                assert_eq!(
                    messages.iter().map(|message| &message.body[..]).collect::<Vec<_>>(),
                    [body.as_bytes()]
                );
                ack(&client, queue, &messages).await;
            }
        }
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_who_waits_gets_a_part_of_what_comes() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("work", QueueSettings::default(), 1).await.unwrap();
    for round in 0..2 {
        // The bodies allow one message a receive, although each asks for ten.
        let bounded = ReceiveOptions { bytes_max: 1, ..waiting() };
        let receiving = (0..8).map(|_| start_receive(&client, "work", bounded.clone())).collect::<Vec<_>>();
        sleep(UNTIL_IT_WAITS).await;
        let messages = (0..8).map(|number| NewMessage::new(format!("message {number}"))).collect();
        assert!(client.send("work", messages).await.unwrap().iter().all(Result::is_ok));
        for receiving in receiving {
            let messages = receiving.await.unwrap();
            assert_eq!(messages.len(), 1, "round {round}");
            ack(&client, "work", &messages).await;
        }
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_waits_for_room_in_flight_and_for_its_group() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    let settings = QueueSettings { in_flight_max: Some(1), ..QueueSettings::default() };
    client.create_queue("narrow", settings, 1).await.unwrap();
    let settings = QueueSettings { kind: Some(QueueKind::Fifo as i32), ..QueueSettings::default() };
    client.create_queue("orders", settings, 1).await.unwrap();
    for queue in ["narrow", "orders"] {
        let one = ReceiveOptions { messages_max: 1, ..waiting() };
        let message = |body: &'static str| {
            let message = NewMessage::new(body);
            if queue == "orders" { message.group("g") } else { message }
        };
        for body in ["first", "second", "third"] {
            send(&client, queue, message(body)).await;
        }
        let first = client.receive(queue, one.clone()).await.unwrap();
        let receiving = start_receive(&client, queue, one.clone());
        sleep(UNTIL_IT_WAITS).await;
        ack(&client, queue, &first).await;
        let second = receiving.await.unwrap();
        assert_eq!(second[0].body, "second");
        let receiving = start_receive(&client, queue, one);
        sleep(UNTIL_IT_WAITS).await;
        let given_back = Lease::new(second[0].receipt.clone(), Duration::ZERO);
        assert!(client.release(queue, &[given_back]).await.unwrap()[0].is_ok());
        let next = receiving.await.unwrap();
        assert_eq!(next.len(), 1);
        if queue == "orders" {
            assert_eq!((&next[0].body[..], next[0].receive_count), (&b"second"[..], 2));
        }
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_goes_on_waiting_when_leaders_change() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client_at("n1");
    for (queue, shards) in [("narrow", 1), ("wide", 3)] {
        client.create_queue(queue, QueueSettings::default(), shards).await.unwrap();
        let receiving = start_receive(&client, queue, waiting());
        sleep(UNTIL_IT_WAITS).await;
        let shards = client.describe_queue(queue).await.unwrap().shards;
        for shard in &shards {
            let to = if shard.leader == "n2" { "n3" } else { "n2" };
            client.transfer_leader(shard.partition, to).await.unwrap();
            eventually("the leader has changed", async || {
                let now = client.describe_queue(queue).await.unwrap().shards;
                now.iter().any(|now| now.partition == shard.partition && now.leader == to)
            })
            .await;
        }
        // One of the shards gets it.
        send(&client, queue, NewMessage::new("late")).await;
        let messages = receiving.await.unwrap();
        assert_eq!(messages[0].body, "late");
    }
    cluster.end().await;
}

/// How many entries all partitions have applied, at the node that has the most of each.
async fn entries_now(cluster: &TestCluster) -> u64 {
    let mut applied = BTreeMap::<u32, u64>::new();
    for node in ["n1", "n2", "n3"] {
        for partition in cluster.client_at(node).cluster_status().await.unwrap().partitions {
            let most = applied.entry(partition.partition).or_default();
            *most = (*most).max(partition.applied_index);
        }
    }
    applied.values().sum()
}

/// The same, when what a node says of itself has caught up with what it has done.
async fn entries(cluster: &TestCluster) -> u64 {
    let mut last = entries_now(cluster).await;
    loop {
        sleep(Duration::from_millis(20)).await;
        let now = entries_now(cluster).await;
        if now == last {
            return now;
        }
        last = now;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_of_nothing_writes_nothing() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    for (queue, shards) in [("narrow", 1), ("wide", 4)] {
        client.create_queue(queue, QueueSettings::default(), shards).await.unwrap();
        // Partitions that know the queue.
        let messages = (0..100).map(|number| NewMessage::new(format!("{number}"))).collect();
        assert!(client.send(queue, messages).await.unwrap().iter().all(Result::is_ok));
        client.purge_queue(queue).await.unwrap();
        let before = entries(&cluster).await;
        for wait in [Duration::ZERO, Duration::from_millis(20)] {
            for _ in 0..5 {
                let options = ReceiveOptions { wait, ..waiting() };
                assert!(client.receive(queue, options).await.unwrap().is_empty());
            }
        }
        assert_eq!(entries(&cluster).await, before, "{queue}");
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grant_for_who_waits_joins_the_entry_of_the_send() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("work", QueueSettings::default(), 1).await.unwrap();
    send(&client, "work", NewMessage::new("first")).await;
    ack(&client, "work", &client.receive("work", waiting()).await.unwrap()).await;
    eventually("a grant takes no entry of its own", async || {
        let before = entries(&cluster).await;
        let receiving = start_receive(&client, "work", waiting());
        sleep(UNTIL_IT_WAITS).await;
        send(&client, "work", NewMessage::new("one")).await;
        let messages = receiving.await.unwrap();
        // Before the ack, there are leases, and the leader may write a mark of the time.
        let took = entries(&cluster).await - before;
        ack(&client, "work", &messages).await;
        took == 1
    })
    .await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_does_not_wake_everybody() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("wide", QueueSettings::default(), 4).await.unwrap();
    let receiving = (0..8).map(|_| start_receive(&client, "wide", waiting())).collect::<Vec<_>>();
    sleep(UNTIL_IT_WAITS).await;
    let before = entries(&cluster).await;
    send(&client, "wide", NewMessage::new("one")).await;
    let (messages, _, others) = select_all(receiving).await;
    // The queue's first message at its shard brings the settings with it, in the same entry.
    assert!(entries(&cluster).await - before < 8, "as if everybody had come for it");
    ack(&client, "wide", &messages.unwrap()).await;
    for number in 0..7 {
        send(&client, "wide", NewMessage::new(format!("{number}"))).await;
    }
    for receiving in others {
        let messages = receiving.await.unwrap();
        assert!(!messages.is_empty(), "every waiting receive finds something in the end");
        ack(&client, "wide", &messages).await;
        send(&client, "wide", NewMessage::new("more")).await;
    }
    cluster.end().await;
}
