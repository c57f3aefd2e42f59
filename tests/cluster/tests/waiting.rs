//! Receives that wait for something to come: what comes meanwhile is theirs, wherever it is sent and whoever leads.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::select_all;
use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, Lease, Message, NewMessage, QueueKind, ReceiveOptions};
use leasehold_cluster_tests::{Plan, TestCluster, change_leader, eventually, receive_some};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// As long as a receive may wait. None of these tests comes near it, unless something is not noticed.
const WAIT: Duration = Duration::from_secs(20);
/// Long enough, nearly always, for a receive to wait. When it is not, the test still holds.
const UNTIL_IT_WAITS: Duration = Duration::from_millis(100);
/// A node is quiet when it says the same so often, so far apart.
const QUIET_READINGS: u32 = 5;
const QUIET_PAUSE: Duration = Duration::from_millis(50);
/// While there are leases, the leader writes a mark of the time now and then: it may never be quiet.
const READINGS_MAX: u32 = 40;

fn waiting() -> ReceiveOptions {
    ReceiveOptions { messages_max: 10, wait: WAIT, ..ReceiveOptions::default() }
}

/// A receive in a task of its own.
struct Receiving {
    client: Client,
    queue: &'static str,
    options: ReceiveOptions,
    asked: Instant,
    task: JoinHandle<Vec<Message>>,
}

impl Receiving {
    fn start(client: &Client, queue: &'static str, options: ReceiveOptions) -> Self {
        let (asker, asked_for) = (client.clone(), options.clone());
        let task = tokio::spawn(async move { asker.receive(queue, asked_for).await.unwrap() });
        Self { client: client.clone(), queue, options, asked: Instant::now(), task }
    }

    /// Nothing is there for it yet.
    fn assert_waits(&self) {
        assert!(!self.task.is_finished(), "a receive from {} does not wait", self.queue);
    }

    /// What comes for it. A node that was held up for a second gives back what it has granted, and says at once that there is nothing:
    /// then it is asked again. Who has waited as long as it may has missed something.
    async fn came(self) -> Vec<Message> {
        let mut messages = self.task.await.unwrap();
        while messages.is_empty() && self.asked.elapsed() < WAIT {
            messages = self.client.receive(self.queue, self.options.clone()).await.unwrap();
        }
        messages
    }
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
                let receiving = Receiving::start(&client, queue, waiting());
                sleep(UNTIL_IT_WAITS).await;
                receiving.assert_waits();
                let body = format!("{round} from {sender} to {receiver}");
                send(&cluster.client_at(sender), queue, NewMessage::new(body.clone())).await;
                let messages = receiving.came().await;
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
        let receiving =
            (0..8).map(|_| Receiving::start(&client, "work", bounded.clone())).collect::<Vec<_>>();
        sleep(UNTIL_IT_WAITS).await;
        receiving.iter().for_each(Receiving::assert_waits);
        let messages = (0..8).map(|number| NewMessage::new(format!("message {number}"))).collect();
        assert!(client.send("work", messages).await.unwrap().iter().all(Result::is_ok));
        for receiving in receiving {
            let messages = receiving.came().await;
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
        let first = receive_some(&client, queue, &one).await;
        let receiving = Receiving::start(&client, queue, one.clone());
        sleep(UNTIL_IT_WAITS).await;
        receiving.assert_waits();
        ack(&client, queue, &first).await;
        let second = receiving.came().await;
        assert_ne!(second[0].id, first[0].id);
        if queue == "orders" {
            assert_eq!(second[0].body, "second");
        }
        let receiving = Receiving::start(&client, queue, one);
        sleep(UNTIL_IT_WAITS).await;
        receiving.assert_waits();
        let given_back = Lease::new(second[0].receipt.clone(), Duration::ZERO);
        assert!(client.release(queue, &[given_back]).await.unwrap()[0].is_ok());
        let next = receiving.came().await;
        assert_eq!(next.len(), 1);
        if queue == "orders" {
            assert_eq!(next[0].body, "second");
            assert!(next[0].receive_count > second[0].receive_count);
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
        let receiving = Receiving::start(&client, queue, waiting());
        sleep(UNTIL_IT_WAITS).await;
        for shard in client.describe_queue(queue).await.unwrap().shards {
            change_leader(&client, shard.partition).await;
        }
        receiving.assert_waits();
        // One of the shards gets it.
        send(&client, queue, NewMessage::new("late")).await;
        let messages = receiving.came().await;
        assert_eq!(messages[0].body, "late");
    }
    cluster.end().await;
}

/// What all partitions have done, at the node that has the most of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    /// Entries that are applied.
    entries: u64,
    /// The sum of their terms: a new leader writes entries of its own.
    terms: u64,
}

async fn written_now(nodes: &[Client]) -> Written {
    let mut of_partitions = BTreeMap::<u32, (u64, u64)>::new();
    for node in nodes {
        for partition in node.cluster_status().await.unwrap().partitions {
            let (entries, term) = of_partitions.entry(partition.partition).or_default();
            (*entries, *term) = ((*entries).max(partition.applied_index), (*term).max(partition.term));
        }
    }
    let (entries, terms): (Vec<_>, Vec<_>) = of_partitions.into_values().unzip();
    Written { entries: entries.into_iter().sum(), terms: terms.into_iter().sum() }
}

/// The same, when what a node says of itself has caught up with what it has done.
async fn written(cluster: &TestCluster) -> Written {
    let nodes = ["n1", "n2", "n3"].map(|node| cluster.client_at(node));
    let (mut last, mut equal) = (written_now(&nodes).await, 1);
    for _ in 0..READINGS_MAX {
        sleep(QUIET_PAUSE).await;
        let now = written_now(&nodes).await;
        equal = if now == last { equal + 1 } else { 1 };
        if equal == QUIET_READINGS {
            break;
        }
        last = now;
    }
    last
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
        eventually("it is purged", async || client.purge_queue(queue).await.is_ok()).await;
        eventually("no leader changes meanwhile", async || {
            let before = written(&cluster).await;
            for wait in [Duration::ZERO, Duration::from_millis(20)] {
                for _ in 0..5 {
                    let options = ReceiveOptions { wait, ..waiting() };
                    assert!(client.receive(queue, options).await.unwrap().is_empty());
                }
            }
            let after = written(&cluster).await;
            let is_undisturbed = after.terms == before.terms;
            assert!(!is_undisturbed || after == before, "{queue}: {before:?}, {after:?}");
            is_undisturbed
        })
        .await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grant_for_who_waits_joins_the_entry_of_the_send() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("work", QueueSettings::default(), 1).await.unwrap();
    send(&client, "work", NewMessage::new("first")).await;
    ack(&client, "work", &receive_some(&client, "work", &waiting()).await).await;
    eventually("a grant takes no entry of its own", async || {
        let before = written(&cluster).await.entries;
        let receiving = Receiving::start(&client, "work", waiting());
        sleep(UNTIL_IT_WAITS).await;
        send(&client, "work", NewMessage::new("one")).await;
        let messages = receiving.came().await;
        // Before the ack, there are leases, and the leader may write a mark of the time.
        let took = written(&cluster).await.entries - before;
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
    eventually("no leader changes meanwhile", async || {
        let receiving = (0..8).map(|_| Receiving::start(&client, "wide", waiting())).collect::<Vec<_>>();
        sleep(UNTIL_IT_WAITS).await;
        let before = written(&cluster).await;
        receiving.iter().for_each(Receiving::assert_waits);
        send(&client, "wide", NewMessage::new("one")).await;
        let coming = receiving.into_iter().map(|receiving| Box::pin(receiving.came()));
        let (messages, _, others) = select_all(coming).await;
        // The queue's first message at its shard brings the settings with it, in the same entry.
        let after = written(&cluster).await;
        let is_undisturbed = after.terms == before.terms;
        let entries = after.entries - before.entries;
        assert!(!is_undisturbed || entries < 8, "as if everybody had come for it: {entries} entries");
        ack(&client, "wide", &messages).await;
        for number in 0..7 {
            send(&client, "wide", NewMessage::new(format!("{number}"))).await;
        }
        for coming in others {
            let messages = coming.await;
            assert!(!messages.is_empty(), "every waiting receive finds something in the end");
            ack(&client, "wide", &messages).await;
            send(&client, "wide", NewMessage::new("more")).await;
        }
        eventually("it is purged", async || client.purge_queue("wide").await.is_ok()).await;
        is_undisturbed
    })
    .await;
    cluster.end().await;
}
