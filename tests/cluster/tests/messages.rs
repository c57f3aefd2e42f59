//! The life of messages, through the client, on three nodes.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use leasehold_client::v1::{MessageState, QueueSettings};
use leasehold_client::{Client, Lease, Message, NewMessage, QueueKind, Reason, ReceiveOptions};
use leasehold_cluster_tests::{PATIENCE, Plan, TestCluster, eventually, receive_some};
use tokio::time::Instant;

/// How long a receive waits for what is there.
const SOON: Duration = Duration::from_secs(10);

async fn receive(client: &Client, queue: &str, messages_max: u32, wait: Duration) -> Vec<Message> {
    let options = ReceiveOptions { messages_max, wait, ..ReceiveOptions::default() };
    client.receive(queue, options).await.unwrap()
}

/// Receives until `count` messages are there.
async fn receive_all(client: &Client, queue: &str, count: usize) -> Vec<Message> {
    receive_counting(client, queue, count).await.0
}

/// The same, and in how many receives: a message is granted at most once in each. A node that was held up gives back what it has
/// granted, which counts.
async fn receive_counting(client: &Client, queue: &str, count: usize) -> (Vec<Message>, u32) {
    let (mut all, mut asked) = (Vec::new(), 0);
    eventually("all messages are received", async || {
        all.extend(receive(client, queue, 100, Duration::from_secs(1)).await);
        asked += 1;
        all.len() >= count
    })
    .await;
    assert_eq!(all.len(), count);
    (all, asked)
}

async fn ack(client: &Client, queue: &str, messages: &[Message]) {
    let receipts = messages.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
    for outcome in client.ack(queue, &receipts).await.unwrap() {
        outcome.unwrap();
    }
}

fn bodies(messages: &[Message]) -> Vec<String> {
    let mut bodies =
        messages.iter().map(|message| String::from_utf8(message.body.to_vec()).unwrap()).collect::<Vec<_>>();
    bodies.sort();
    bodies
}

async fn counters(client: &Client, queue: &str) -> (u64, u64, u64, u64) {
    let counters = client.describe_queue(queue).await.unwrap().counters.unwrap();
    (counters.ready, counters.leased, counters.delayed, counters.dead)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_sent_received_and_acknowledged() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    assert!(client.create_queue("work", QueueSettings::default(), 1).await.unwrap());
    assert!(!client.create_queue("work", QueueSettings::default(), 1).await.unwrap());
    let message = NewMessage::new("one").attribute("colour", "String", "red");
    let sent = client.send("work", vec![message, NewMessage::new("two")]).await.unwrap();
    assert!(sent.iter().all(Result::is_ok));
    let (messages, asked) = receive_counting(&client, "work", 2).await;
    assert_eq!(bodies(&messages), ["one", "two"]);
    let one = messages.iter().find(|message| message.body == "one").unwrap();
    assert_eq!(one.attribute("colour").unwrap(), "red");
    assert!((1..=asked).contains(&one.receive_count), "{} at receive {asked}", one.receive_count);
    assert_eq!(counters(&client, "work").await, (0, 2, 0, 0));
    ack(&client, "work", &messages).await;
    assert_eq!(counters(&client, "work").await, (0, 0, 0, 0));
    // To acknowledge again is told apart from having done it.
    let again = client.ack("work", &[messages[0].receipt.clone()]).await.unwrap().pop().unwrap();
    assert_eq!(again.unwrap_err().reason, Reason::MessageGone);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_serves_every_queue_and_a_spread_queue_loses_nothing() {
    let cluster = TestCluster::start(Plan::default()).await;
    cluster.client_at("n1").create_queue("wide", QueueSettings::default(), 4).await.unwrap();
    for (node, batch) in [("n1", 0..100), ("n2", 100..200), ("n3", 200..300)] {
        let messages = batch.map(|number: u32| NewMessage::new(format!("{number:03}"))).collect();
        let sent = cluster.client_at(node).send("wide", messages).await.unwrap();
        assert!(sent.into_iter().all(|outcome| outcome.is_ok()));
    }
    let client = cluster.client_at("n2");
    let messages = receive_all(&client, "wide", 300).await;
    assert_eq!(bodies(&messages), (0..300).map(|number| format!("{number:03}")).collect::<Vec<_>>());
    ack(&cluster.client_at("n3"), "wide", &messages).await;
    assert_eq!(counters(&client, "wide").await, (0, 0, 0, 0));
    cluster.end().await;
}

/// A queue over four partitions tells what all their leaders have measured, whoever is asked.
#[tokio::test(flavor = "multi_thread")]
async fn processing_times_are_known_of_all_shards_and_by_version() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client_at("n1");
    let settings = QueueSettings { lease_ms: Some(3_600_000), ..QueueSettings::default() };
    client.create_queue("timed", settings, 4).await.unwrap();
    for _ in 0..20 {
        let ten = vec![NewMessage::new("x"); 10];
        assert!(client.send("timed", ten).await.unwrap().iter().all(Result::is_ok));
    }
    let mut done = 0;
    eventually("all are processed", async || {
        let version = if done < 100 { "work-1@here" } else { "work-2@here" };
        let wait = Duration::from_secs(1);
        let options = ReceiveOptions {
            messages_max: 20,
            wait,
            consumer: version.to_owned(),
            ..ReceiveOptions::default()
        };
        let messages = client.receive("timed", options).await.unwrap();
        if let [first, ..] = &messages[..] {
            let longer = Lease::new(first.receipt.clone(), Duration::from_secs(3_600));
            client.extend("timed", &[longer]).await.unwrap()[0].as_ref().unwrap();
            ack(&client, "timed", &messages).await;
        }
        done += messages.len();
        done >= 200
    })
    .await;
    let described = cluster.client_at("n3").describe_queue("timed").await.unwrap();
    let all = described.headroom.unwrap();
    assert_eq!((all.acks, all.late, all.expired), (200, 0, 0));
    assert!(all.extended > 0 && all.p50_ms <= all.p99_ms && all.p99_ms <= all.p999_ms);
    assert_eq!(all.ratio_permille, 3_600_000_000 / all.p99_ms.max(1));
    let versions = described.versions.iter().map(|version| version.version.as_str()).collect::<Vec<_>>();
    assert_eq!(versions, ["work-1", "work-2"]);
    assert_eq!(described.versions.iter().map(|version| version.acks).sum::<u64>(), 200);
    let measuring = described.shards.iter().filter(|shard| !shard.headroom.is_empty()).count();
    assert!(measuring > 1, "the work was spread: {:?}", described.shards);
    assert_eq!(described.advice[0].code, "lower-lease", "an hour is long for {} ms", all.p999_ms);
    cluster.end().await;
}

/// Acks that come too late make the leases of a queue longer that asks for it, and of receives that name none.
#[tokio::test(flavor = "multi_thread")]
async fn leases_grow_when_acks_come_too_late() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    let settings = QueueSettings { adaptive_lease_ms_max: Some(3_600_000), ..QueueSettings::default() };
    client.create_queue("growing", settings, 1).await.unwrap();
    client.send("growing", vec![NewMessage::new("x"); 5]).await.unwrap();
    let lease_ms = async || client.describe_queue("growing").await.unwrap().headroom.unwrap().lease_ms;
    assert_eq!(lease_ms().await, 30_000);
    let lease = Some(Duration::from_millis(100));
    let options = ReceiveOptions { messages_max: 5, lease, wait: SOON, ..ReceiveOptions::default() };
    let slow = receive_some(&client, "growing", &options).await;
    assert_eq!(slow.len(), 5);
    eventually("the leases end", async || counters(&client, "growing").await == (5, 0, 0, 0)).await;
    let receipts = slow.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
    for late in client.ack("growing", &receipts).await.unwrap() {
        assert_eq!(late.unwrap_err().reason, Reason::ReceiptStale);
    }
    assert_eq!(lease_ms().await, 3_600_000);
    let in_ten_minutes = Instant::now() + Duration::from_secs(600);
    let unnamed = ReceiveOptions { messages_max: 1, wait: SOON, ..ReceiveOptions::default() };
    let grown = receive_some(&client, "growing", &unnamed).await;
    assert!(grown[0].lease_until > in_ten_minutes);
    let options = ReceiveOptions { lease: Some(Duration::from_secs(20)), ..unnamed };
    let named = receive_some(&client, "growing", &options).await;
    assert!(named[0].lease_until < in_ten_minutes, "who asks for a lease gets it");
    cluster.end().await;
}

/// One tenant's backlog does not stand before another's message.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_tenant_does_not_wait_behind_a_noisy_one() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("shared", QueueSettings::default(), 1).await.unwrap();
    let of = |tenant: &str, body: &str| NewMessage::new(body.to_owned()).group(tenant);
    client.send("shared", vec![of("noisy", "noise"); 1_000]).await.unwrap();
    let up_to = |messages_max| ReceiveOptions { messages_max, wait: SOON, ..ReceiveOptions::default() };
    let noise = receive_some(&client, "shared", &up_to(100)).await;
    assert_eq!(noise.len(), 100);
    client.send("shared", vec![of("quiet", "first"), of("quiet", "second")]).await.unwrap();
    assert_eq!(bodies(&receive_some(&client, "shared", &up_to(2)).await), ["first", "second"]);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_is_extended_and_is_given_back() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    let settings = QueueSettings { lease_ms: Some(10_000), ..QueueSettings::default() };
    client.create_queue("leases", settings, 1).await.unwrap();
    client.send("leases", vec![NewMessage::new("x")]).await.unwrap();
    let first = receive_all(&client, "leases", 1).await.pop().unwrap();
    // Nobody else gets it while the lease lasts; then somebody does, and the first receipt is stale.
    assert!(receive(&client, "leases", 1, Duration::ZERO).await.is_empty());
    let (second, asked) = receive_counting(&client, "leases", 1).await;
    let second = second.into_iter().next().unwrap();
    let granted = second.receive_count - first.receive_count;
    assert!((1..=asked).contains(&granted), "granted {granted} times, asked {asked} times");
    assert!(second.fencing_token > first.fencing_token);
    let stale = client.ack("leases", &[first.receipt]).await.unwrap().pop().unwrap();
    assert_eq!(stale.unwrap_err().reason, Reason::ReceiptStale);
    // Extended, it outlives its first end.
    let extended = client
        .extend("leases", &[Lease::new(second.receipt.clone(), Duration::from_secs(600))])
        .await
        .unwrap();
    assert!(extended[0].is_ok());
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(receive(&client, "leases", 1, Duration::ZERO).await.is_empty());
    let too_long = Lease::new(second.receipt.clone(), Duration::from_secs(12 * 3600 + 1));
    let refused = client.extend("leases", &[too_long]).await.unwrap().pop().unwrap();
    assert_eq!(refused.unwrap_err().reason, Reason::LeaseTooLong);
    // Given back, it is there at once.
    let released = client.release("leases", &[Lease::new(second.receipt, Duration::ZERO)]).await.unwrap();
    assert!(released[0].is_ok());
    let third = receive_all(&client, "leases", 1).await.pop().unwrap();
    ack(&client, "leases", &[third]).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_queue_keeps_the_order_of_each_group() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    let settings = QueueSettings { kind: Some(QueueKind::Fifo as i32), ..QueueSettings::default() };
    client.create_queue("orders", settings, 2).await.unwrap();
    let refused = client.send("orders", vec![NewMessage::new("no group")]).await.unwrap().pop().unwrap();
    assert_eq!(refused.unwrap_err().reason, Reason::GroupRequired);
    for number in 0..5 {
        for group in ["a", "b", "c"] {
            let message = NewMessage::new(number.to_string()).group(group);
            client.send("orders", vec![message]).await.unwrap().pop().unwrap().unwrap();
        }
    }
    let mut seen = std::collections::BTreeMap::<String, Vec<String>>::new();
    eventually("everything is received in order", async || {
        let batch = receive(&client, "orders", 2, Duration::from_millis(200)).await;
        for message in &batch {
            let body = String::from_utf8(message.body.to_vec()).unwrap();
            seen.entry(message.group.clone().unwrap()).or_default().push(body);
        }
        if !batch.is_empty() {
            ack(&client, "orders", &batch).await;
        }
        seen.values().map(Vec::len).sum::<usize>() == 15
    })
    .await;
    assert!(seen.values().all(|group| *group == ["0", "1", "2", "3", "4"]), "{seen:?}");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_received_too_often_goes_to_the_dead_letter_queue_and_back() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("dead", QueueSettings::default(), 2).await.unwrap();
    let settings = QueueSettings {
        dead_letter_queue: Some("dead".to_owned()),
        receives_max: Some(2),
        ..QueueSettings::default()
    };
    client.create_queue("work", settings, 2).await.unwrap();
    client
        .send("work", (0..10).map(|number| NewMessage::new(format!("bad-{number}"))).collect())
        .await
        .unwrap();
    for _ in 0..2 {
        let messages = receive_all(&client, "work", 10).await;
        let leases = messages
            .into_iter()
            .map(|message| Lease::new(message.receipt, Duration::ZERO))
            .collect::<Vec<_>>();
        assert!(client.release("work", &leases).await.unwrap().into_iter().all(|outcome| outcome.is_ok()));
    }
    eventually("all messages are in the dead-letter queue", async || {
        receive(&client, "work", 100, Duration::ZERO).await;
        counters(&client, "work").await == (0, 0, 0, 0) && counters(&client, "dead").await.0 == 10
    })
    .await;
    let dead = receive_all(&client, "dead", 10).await;
    assert_eq!(bodies(&dead), (0..10).map(|number| format!("bad-{number}")).collect::<Vec<_>>());
    let origin = dead[0].origin.clone().unwrap();
    assert_eq!(origin.queue, "work");
    // What a node gave back that was held up counts, although not for the limit.
    assert!(origin.receive_count >= 2, "{}", origin.receive_count);
    let leases =
        dead.into_iter().map(|message| Lease::new(message.receipt, Duration::ZERO)).collect::<Vec<_>>();
    client.release("dead", &leases).await.unwrap();
    client.start_redrive("dead", None, 0).await.unwrap();
    // A message leaves its queue when the other has it: for a moment it is counted in both.
    eventually("all messages are back", async || {
        counters(&client, "work").await.0 == 10 && counters(&client, "dead").await == (0, 0, 0, 0)
    })
    .await;
    let redrive = client.describe_queue("dead").await.unwrap().redrive.unwrap();
    assert_eq!((redrive.moved, redrive.running), (10, false));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delays_deduplication_peek_why_and_purge() {
    let cluster =
        TestCluster::start(Plan { settings: vec![("history.mode".into(), "all".into())], ..Plan::default() })
            .await;
    let client = cluster.client();
    client.create_queue("misc", QueueSettings::default(), 1).await.unwrap();
    let delayed = NewMessage::new("later").delay(Duration::from_secs(10));
    client.send("misc", vec![delayed]).await.unwrap().pop().unwrap().unwrap();
    assert_eq!(counters(&client, "misc").await, (0, 0, 1, 0));
    assert!(receive(&client, "misc", 1, Duration::ZERO).await.is_empty());
    let peeked = client.peek("misc", 10).await.unwrap().pop().unwrap();
    assert_eq!((&peeked.body[..], peeked.state()), (&b"later"[..], MessageState::Delayed));
    let later = receive_all(&client, "misc", 1).await;
    ack(&client, "misc", &later).await;
    let twice = || NewMessage::new("once").deduplication_id("id-1");
    let first = client.send("misc", vec![twice()]).await.unwrap().pop().unwrap().unwrap();
    let second = client.send("misc", vec![twice()]).await.unwrap().pop().unwrap().unwrap();
    assert!(!first.duplicate && second.duplicate && first.id == second.id);
    let once = receive_all(&client, "misc", 1).await;
    ack(&client, "misc", &once).await;
    eventually("the life of the message is told", async || {
        let life = client.why("misc", first.id).await.unwrap();
        let mut events = life.events.iter().map(|event| event.event.as_str()).collect::<Vec<_>>();
        if once[0].receive_count > 1 {
            // A node that was held up gave it back, and granted it again.
            events.retain(|event| *event != "released");
            events.dedup();
        }
        events == ["sent", "duplicate", "granted", "acked"] && life.state == "gone"
    })
    .await;
    client.send("misc", (0..50).map(|_| NewMessage::new("gone")).collect()).await.unwrap();
    client.purge_queue("misc").await.unwrap();
    assert_eq!(counters(&client, "misc").await, (0, 0, 0, 0));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_and_made_again_is_empty() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("again", QueueSettings::default(), 1).await.unwrap();
    client.send("again", vec![NewMessage::new("old")]).await.unwrap();
    let old = receive_all(&client, "again", 1).await.pop().unwrap();
    client.delete_queue("again").await.unwrap();
    let unknown = client.send("again", vec![NewMessage::new("x")]).await.unwrap_err();
    assert_eq!(unknown.reason, Reason::UnknownQueue);
    client.create_queue("again", QueueSettings::default(), 1).await.unwrap();
    assert_eq!(counters(&client, "again").await, (0, 0, 0, 0));
    let gone = client.ack("again", &[old.receipt]).await.unwrap().pop().unwrap();
    assert_eq!(gone.unwrap_err().reason, Reason::MessageGone);
    client.send("again", vec![NewMessage::new("new")]).await.unwrap();
    assert_eq!(bodies(&receive_all(&client, "again", 1).await), ["new"]);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_with_its_reason() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("q", QueueSettings::default(), 1).await.unwrap();
    let failed = |error: leasehold_client::Error| (error.reason, error.detail);
    assert_eq!(
        failed(client.receive("none", ReceiveOptions::default()).await.unwrap_err()).0,
        Reason::UnknownQueue
    );
    assert_eq!(
        failed(client.create_queue("a b", QueueSettings::default(), 1).await.unwrap_err()).0,
        Reason::InvalidArgument
    );
    let settings = QueueSettings { lease_ms: Some(1), ..QueueSettings::default() };
    assert_eq!(failed(client.create_queue("q", settings, 1).await.unwrap_err()).0, Reason::QueueExists);
    let settings = QueueSettings { lease_ms: Some(43_200_001), ..QueueSettings::default() };
    let (reason, detail) = failed(client.set_queue("q", settings).await.unwrap_err());
    assert!(reason == Reason::InvalidArgument && detail.contains("lease_ms"), "{detail}");
    let large = client
        .send("q", vec![NewMessage::new(vec![0; 1_048_577])])
        .await
        .unwrap()
        .pop()
        .unwrap()
        .unwrap_err();
    assert_eq!(large.reason, Reason::MessageTooLarge);
    let many = client.send("q", (0..1_001).map(|_| NewMessage::new("x")).collect()).await.unwrap_err();
    assert_eq!(many.reason, Reason::BatchTooLarge);
    let long =
        ReceiveOptions { lease: Some(Duration::from_secs(12 * 3600 + 1)), ..ReceiveOptions::default() };
    assert_eq!(failed(client.receive("q", long).await.unwrap_err()).0, Reason::LeaseTooLong);
    let forged = client.ack("q", &["not a receipt".into()]).await.unwrap().pop().unwrap().unwrap_err();
    assert_eq!(forged.reason, Reason::ReceiptForged);
    client.send("q", vec![NewMessage::new("x")]).await.unwrap();
    let message = receive_all(&client, "q", 1).await.pop().unwrap();
    let mut receipt = message.receipt.to_vec();
    receipt[6] ^= 1;
    let forged = client.ack("q", &[receipt.into()]).await.unwrap().pop().unwrap().unwrap_err();
    assert_eq!(forged.reason, Reason::ReceiptForged);
    client.create_queue("other", QueueSettings::default(), 1).await.unwrap();
    let elsewhere = client.ack("other", std::slice::from_ref(&message.receipt)).await.unwrap().pop().unwrap();
    let elsewhere = elsewhere.unwrap_err();
    assert_eq!(elsewhere.reason, Reason::ReceiptForged);
    assert!(elsewhere.detail.contains("queue q"), "{elsewhere}");
    ack(&client, "q", &[message]).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn producers_and_consumers_stream() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("stream", QueueSettings::default(), 4).await.unwrap();
    let producer = client.queue("stream").producer().start();
    let sent = producer.send_all((0..2_000).map(|number: u32| NewMessage::new(format!("{number:04}")))).await;
    assert!(sent.iter().all(Result::is_ok));
    producer.close().await;
    // A machine that stands still does not take a lease, and what was granted while a leader went comes again in time.
    let consumer = client.queue("stream").consumer().lease(PATIENCE / 3).keep_leases_for(Duration::ZERO);
    let mut consumer = consumer.concurrency(100).name("c1").start();
    let (mut seen, mut acks) = (Vec::new(), Vec::new());
    while seen.len() < 2_000 {
        let next = tokio::time::timeout(PATIENCE, consumer.next()).await;
        let delivery = next.expect("a delivery comes in time").unwrap().unwrap();
        seen.push(String::from_utf8(delivery.body.to_vec()).unwrap());
        acks.push(delivery.ack());
        if acks.len() == 50 {
            assert!(join_all(acks.drain(..)).await.iter().all(Result::is_ok));
        }
    }
    consumer.close().await;
    seen.sort();
    assert_eq!(seen, (0..2_000).map(|number| format!("{number:04}")).collect::<Vec<_>>());
    eventually("the queue is empty", async || counters(&client, "stream").await == (0, 0, 0, 0)).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_has_expired_is_dropped_although_nothing_else_happens() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("quiet", QueueSettings::default(), 1).await.unwrap();
    let message = NewMessage::new("too late").expiry(Duration::from_secs(1));
    client.send("quiet", vec![message]).await.unwrap().pop().unwrap().unwrap();
    eventually("it is dropped", async || counters(&client, "quiet").await == (0, 0, 0, 0)).await;
    cluster.end().await;
}
