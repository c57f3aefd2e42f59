//! Consumers against real nodes: leases of those who wait and die, rejected messages, message groups.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use leasehold_client::v1::QueueSettings;
use leasehold_client::{
    CancellationToken, Client, Failure, NewMessage, QueueKind, Reason, ReceiveOptions, Rejection, RetryPolicy,
};
use leasehold_cluster_tests::{PATIENCE, Plan, TestCluster, eventually, receive_some};
use tokio::runtime::{Builder, Runtime};

const QUEUE_LEASE: Duration = Duration::from_secs(600);

async fn send(client: &Client, queue: &str, bodies: &[&str]) {
    let messages = bodies.iter().map(|body| NewMessage::new((*body).to_owned())).collect();
    let sent = client.send(queue, messages).await.unwrap();
    assert!(sent.iter().all(Result::is_ok));
}

async fn leased(client: &Client, queue: &str) -> u64 {
    client.describe_queue(queue).await.unwrap().counters.unwrap().leased
}

/// A consumer that works on one message, has others waiting, and dies with its process.
async fn consumer_that_dies(endpoints: Client, queue: &'static str) {
    let (told, begun) = std::sync::mpsc::channel();
    let runtime: Runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(async move {
        let consumer = endpoints.queue(queue).consumer().concurrency(1).buffer(20);
        let handler = move |job: leasehold_client::Job| {
            let told = told.clone();
            async move {
                // Its processing lease is there.
                while job.deadline().saturating_duration_since(tokio::time::Instant::now()) < QUEUE_LEASE / 2
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let _ = told.send(());
                std::future::pending().await
            }
        };
        consumer.run(handler).await
    });
    tokio::task::spawn_blocking(move || {
        begun.recv_timeout(PATIENCE).unwrap();
        runtime.shutdown_background();
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_at_a_consumer_that_dies_comes_back_within_seconds() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    let lease_ms = u64::try_from(QUEUE_LEASE.as_millis()).unwrap();
    let settings = QueueSettings { lease_ms: Some(lease_ms), ..QueueSettings::default() };
    client.create_queue("q", settings, 1).await.unwrap();
    send(&client, "q", &["a", "b", "c", "d", "e"]).await;
    consumer_that_dies(cluster.client(), "q").await;
    assert!(leased(&client, "q").await >= 1);
    let mut other = client.queue("q").consumer().start();
    for _ in 0..4 {
        let delivery = tokio::time::timeout(PATIENCE, other.next()).await.unwrap().unwrap().unwrap();
        delivery.ack().await.unwrap();
    }
    // The one that was being handled keeps the lease of the queue.
    assert_eq!(leased(&client, "q").await, 1);
    other.close().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_message_is_in_the_dead_letter_queue_with_its_reason_and_can_come_back() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("dead", QueueSettings::default(), 1).await.unwrap();
    let settings = QueueSettings {
        dead_letter_queue: Some("dead".into()),
        receives_max: Some(100),
        ..QueueSettings::default()
    };
    client.create_queue("q", settings, 1).await.unwrap();
    let message = NewMessage::new("bad").attribute("colour", "String", "red");
    client.send("q", vec![message]).await.unwrap();
    let stop = CancellationToken::new();
    let consumer = client.queue("q").consumer().stop_on(stop.clone());
    let counters = consumer.counters();
    let receives = Arc::new(AtomicU32::new(0));
    let told = Arc::clone(&receives);
    let running = tokio::spawn(consumer.run(move |job| {
        told.store(job.receive_count, Ordering::Relaxed);
        async { Err(Failure::reject("it makes no sense")) }
    }));
    let mut dead = client.queue("dead").consumer().start();
    let delivery = tokio::time::timeout(PATIENCE, dead.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(delivery.body, "bad");
    assert_eq!(delivery.attribute("leasehold-rejected").unwrap(), "it makes no sense");
    assert_eq!(delivery.attribute("colour").unwrap(), "red");
    assert_eq!(delivery.origin.as_ref().unwrap().queue, "q");
    assert_eq!(delivery.origin.as_ref().unwrap().receive_count, receives.load(Ordering::Relaxed));
    let why = client.why("q", delivery.origin.as_ref().unwrap().id.unwrap()).await.unwrap();
    let rejected = why.events.iter().find(|event| event.event == "rejected");
    assert!(rejected.is_none_or(|event| event.detail == "it makes no sense"));
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(counters.now().rejected, 1);
    delivery.release(Duration::ZERO).await.unwrap();
    dead.close().await;
    // Its own stream may have had it again; a redrive takes what is ready.
    eventually("it is ready", async || {
        let counters = client.describe_queue("dead").await.unwrap().counters.unwrap();
        (counters.ready, counters.leased) == (1, 0)
    })
    .await;
    client.start_redrive("dead", None, 0).await.unwrap();
    let options =
        ReceiveOptions { messages_max: 1, wait: Duration::from_secs(20), ..ReceiveOptions::default() };
    let mut back = Vec::new();
    eventually("it is back", async || {
        back = client.receive("q", options.clone()).await.unwrap();
        !back.is_empty()
    })
    .await;
    assert_eq!(back[0].body, "bad");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_dead_letter_queue_a_rejection_is_refused_and_the_lease_stays() {
    let cluster = TestCluster::start(Plan { nodes: 1, ..Plan::default() }).await;
    let client = cluster.client();
    client.create_queue("q", QueueSettings::default(), 1).await.unwrap();
    send(&client, "q", &["a"]).await;
    let options =
        ReceiveOptions { messages_max: 1, wait: Duration::from_secs(20), ..ReceiveOptions::default() };
    let message = receive_some(&client, "q", &options).await.pop().unwrap();
    let rejection = Rejection::new(message.receipt.clone(), "no");
    let refused = client.reject("q", &[rejection]).await.unwrap().pop().unwrap().unwrap_err();
    assert_eq!(refused.reason, Reason::NoDeadLetterQueue);
    let too_long = Rejection::new(message.receipt.clone(), "x".repeat(1_025));
    let refused = client.reject("q", &[too_long]).await.unwrap().pop().unwrap().unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidArgument);
    assert_eq!(leased(&client, "q").await, 1);
    client.ack("q", &[message.receipt]).await.unwrap().pop().unwrap().unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_ends_when_its_queue_is_deleted() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("q", QueueSettings::default(), 2).await.unwrap();
    let mut deliveries = client.queue("q").consumer().start();
    send(&client, "q", &["a"]).await;
    deliveries.next().await.unwrap().unwrap().ack().await.unwrap();
    client.delete_queue("q").await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, deliveries.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(ended.reason, Reason::UnknownQueue);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_handled_in_order_over_failures() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    let settings = QueueSettings { kind: Some(QueueKind::Fifo.into()), ..QueueSettings::default() };
    client.create_queue("q", settings, 2).await.unwrap();
    let message = |number: u32| NewMessage::new(format!("{number:03}")).group(format!("g{}", number % 5));
    let sent = client.send("q", (0..200).map(message).collect()).await.unwrap();
    assert!(sent.iter().all(Result::is_ok));
    let done = Arc::new(Mutex::new(Vec::new()));
    let (notes, stop) = (Arc::clone(&done), CancellationToken::new());
    let retry = RetryPolicy::new(Duration::from_millis(50), Duration::from_millis(50));
    // A machine that stands still does not take a lease, and what was granted while a leader went comes again in time.
    let consumer = client.queue("q").consumer().lease(PATIENCE / 3).keep_leases_for(Duration::ZERO);
    let consumer = consumer.concurrency(4).buffer(60).retry(retry).stop_on(stop.clone());
    let running = tokio::spawn(consumer.run(move |job| {
        let notes = Arc::clone(&notes);
        async move {
            let number: u32 = std::str::from_utf8(&job.body)?.parse()?;
            // Each seventh message fails at first.
            if number.is_multiple_of(7) && job.receive_count == 1 {
                return Err(Failure::retry("at first"));
            }
            notes.lock().unwrap().push((number, job.group.clone()));
            Ok(())
        }
    }));
    eventually("all are done", async || done.lock().unwrap().len() >= 200).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    let done = std::mem::take(&mut *done.lock().unwrap());
    for group in 0..5 {
        let name = Some(format!("g{group}"));
        let of_group =
            done.iter().filter(|(_, of)| *of == name).map(|(number, _)| *number).collect::<Vec<_>>();
        assert!(of_group.is_sorted() && of_group.len() == 40, "{of_group:?}");
    }
    cluster.end().await;
}
