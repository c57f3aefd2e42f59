//! The retry budget of a queue, and its suspects, on three nodes.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use leasehold_client::v1::{Endings, QueueSettings, RetryBudget};
use leasehold_client::{
    CancellationToken, Client, Failure, Lease, Message, NewMessage, QueueKind, Reason, ReceiveOptions,
};
use leasehold_cluster_tests::{Plan, TestCluster, eventually, receive_some};

/// Failed messages that make a storm: those before them are dead at their first failure here.
const STORM_MESSAGES: usize = 16;
const MESSAGES: usize = 60;

fn up_to_100(wait: Duration) -> ReceiveOptions {
    let lease = Some(Duration::from_secs(600));
    ReceiveOptions { messages_max: 100, wait, lease, ..ReceiveOptions::default() }
}

async fn receive(client: &Client, wait: Duration) -> Vec<Message> {
    client.receive("work", up_to_100(wait)).await.unwrap()
}

/// Receives what is there, or will be soon.
async fn receive_what_is_there(client: &Client) -> Vec<Message> {
    receive_some(client, "work", &up_to_100(Duration::from_secs(10))).await
}

async fn budget(client: &Client) -> RetryBudget {
    client.describe_queue("work").await.unwrap().retry_budget.unwrap()
}

/// Every message fails at its first and last receive: after the first few, nobody is dead any more, what is new is delivered at
/// once, and when the failure is over all that waited comes back. A leader that is new knows what the old one knew.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_delays_redeliveries_and_kills_nobody() {
    let mut cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("dead", QueueSettings::default(), 1).await.unwrap();
    let settings = QueueSettings {
        dead_letter_queue: Some("dead".to_owned()),
        receives_max: Some(1),
        retry_percent: Some(20),
        retry_floor_per_s: Some(2),
        ..QueueSettings::default()
    };
    client.create_queue("work", settings, 1).await.unwrap();
    client.send("work", vec![NewMessage::new("x"); MESSAGES]).await.unwrap();
    let messages = receive_what_is_there(&client).await;
    assert_eq!(messages.len(), MESSAGES);
    let failed = messages.iter().map(|message| Lease::new(message.receipt.clone(), Duration::ZERO));
    for outcome in client.extend("work", &failed.collect::<Vec<_>>()).await.unwrap() {
        outcome.unwrap();
    }
    let described = client.describe_queue("work").await.unwrap();
    let storm = described.retry_budget.unwrap();
    assert!(storm.storm && storm.since_wall_ms > 0 && storm.held > 0, "{storm:?}");
    assert_eq!(storm.spared_total, (MESSAGES - STORM_MESSAGES + 1) as u64);
    assert_eq!(described.advice.iter().map(|advice| advice.code.as_str()).collect::<Vec<_>>(), ["storm"]);

    let leader = described.shards[0].leader.clone();
    cluster.stop(&leader).await;
    let survivor = ["n1", "n2", "n3"].into_iter().find(|name| *name != leader).unwrap();
    let client = cluster.client_at(survivor);
    eventually("another node leads and knows of the storm", async || {
        client.describe_queue("work").await.is_ok_and(|described| {
            described
                .retry_budget
                .is_some_and(|budget| budget.storm && budget.since_wall_ms == storm.since_wall_ms)
        })
    })
    .await;
    let (mut done, mut asked) = (0, 0);
    client.send("work", vec![NewMessage::new("new")]).await.unwrap();
    let mut saw_new = false;
    eventually("all that waited comes back", async || {
        let messages = receive(&client, Duration::from_secs(1)).await;
        asked += 1;
        // At once; a node that was held up gives back what it has granted, and that counts.
        saw_new |= messages.iter().any(|message| message.body == "new" && message.receive_count <= asked);
        let receipts = messages.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
        if !receipts.is_empty() {
            done += client.ack("work", &receipts).await.unwrap().iter().filter(|acked| acked.is_ok()).count();
        }
        done == MESSAGES - STORM_MESSAGES + 2
    })
    .await;
    assert!(saw_new);
    let after = budget(&client).await;
    assert!(!after.storm && after.held == 0, "{after:?}");
    cluster.end().await;
}

/// A budget can be given to a queue and taken from it, and is refused to FIFO queues.
#[tokio::test(flavor = "multi_thread")]
async fn a_budget_comes_and_goes_with_the_settings() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("work", QueueSettings::default(), 4).await.unwrap();
    assert_eq!(client.describe_queue("work").await.unwrap().retry_budget, None);
    let percent = |percent| QueueSettings { retry_percent: Some(percent), ..QueueSettings::default() };
    // A leader whose node has not heard of the change yet brings its shard up to date with the next command.
    eventually("all shards have a budget", async || {
        client.set_queue("work", percent(20)).await.unwrap();
        let shards = client.describe_queue("work").await.unwrap().shards;
        shards.iter().all(|shard| shard.retry_budget.is_some())
    })
    .await;
    let settings = client.describe_queue("work").await.unwrap().settings.unwrap();
    assert_eq!((settings.retry_percent, settings.retry_floor_per_s), (Some(20), Some(10)));
    eventually("no shard has one", async || {
        client.set_queue("work", percent(0)).await.unwrap();
        client.describe_queue("work").await.unwrap().retry_budget.is_none()
    })
    .await;
    let fifo = QueueSettings { kind: Some(QueueKind::Fifo as i32), ..percent(20) };
    let refused = client.create_queue("ordered", fifo, 1).await.unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidArgument);
    assert!(refused.to_string().contains("a FIFO queue has no retry budget"), "{refused}");
    cluster.end().await;
}

/// A consumer that receives five messages under a name, begins with one of them, and dies with its process.
async fn consumer_that_dies(client: Client) {
    let (told, begun) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(async move {
        let consumer = client.queue("work").consumer().concurrency(1).buffer(20).name("worker@1");
        let handler = move |_: leasehold_client::Job| {
            let told = told.clone();
            async move {
                let _ = told.send(());
                std::future::pending().await
            }
        };
        consumer.run(handler).await
    });
    tokio::task::spawn_blocking(move || {
        begun.recv_timeout(Duration::from_secs(60)).unwrap();
        runtime.shutdown_background();
    })
    .await
    .unwrap();
}

/// The messages that a consumer dies with are told apart from those that time out, and are tried in groups of half.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_consumer_that_died_are_tried_apart() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    let settings =
        QueueSettings { lease_ms: Some(5_000), isolate_suspects: Some(true), ..QueueSettings::default() };
    client.create_queue("work", settings, 1).await.unwrap();
    client.send("work", vec![NewMessage::new("x"); 5]).await.unwrap();
    // The shard must know that it isolates before a consumer is granted something.
    eventually("the shard is there", async || {
        client.describe_queue("work").await.unwrap().counters.unwrap().ready == 5
    })
    .await;
    consumer_that_dies(cluster.client_at("n2")).await;
    let endings = async || client.describe_queue("work").await.unwrap().endings.unwrap();
    eventually("all leases of the consumer have ended", async || endings().await.suspects == 5).await;
    let described = client.describe_queue("work").await.unwrap();
    let Endings { lost, timed_out, failed, .. } = described.endings.unwrap();
    assert_eq!((lost, timed_out, failed), (5, 0, 0));
    assert_eq!(described.advice.iter().map(|advice| advice.code.as_str()).collect::<Vec<_>>(), ["suspects"]);

    let first = receive_what_is_there(&client).await;
    assert_eq!(first.len(), 3, "half of five");
    assert!(receive(&client, Duration::ZERO).await.is_empty(), "one group at a time");
    let receipts = first.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
    client.ack("work", &receipts).await.unwrap();
    let second = receive_what_is_there(&client).await;
    assert_eq!(second.len(), 2);
    let receipts = second.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
    client.ack("work", &receipts).await.unwrap();
    let after = endings().await;
    assert_eq!((after.suspects, after.on_trial), (0, 0));
    cluster.end().await;
}

/// A consumer that stops gives back what waits in it: nothing has failed, and a budget has nothing to say to it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_consumer_gives_back_untouched_is_no_failure() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    let settings =
        QueueSettings { retry_percent: Some(1), retry_floor_per_s: Some(1), ..QueueSettings::default() };
    client.create_queue("work", settings, 1).await.unwrap();
    client.send("work", vec![NewMessage::new("x"); 5]).await.unwrap();
    let stop = CancellationToken::new();
    let consumer = client.queue("work").consumer().concurrency(1).buffer(20).stop_on(stop.clone());
    let stopped = stop.clone();
    let running = tokio::spawn(consumer.run(move |_| {
        let stopped = stopped.clone();
        async move {
            stopped.cancelled().await;
            Ok(())
        }
    }));
    eventually("all are with the consumer", async || {
        client.describe_queue("work").await.unwrap().counters.unwrap().leased == 5
    })
    .await;
    stop.cancel();
    running.await.unwrap().unwrap();
    let described = client.describe_queue("work").await.unwrap();
    let Endings { untouched, failed, timed_out, .. } = described.endings.unwrap();
    assert_eq!((failed, timed_out), (0, 0));
    // A node that was held up gives back what it has granted.
    assert!(untouched >= 4, "{untouched}");
    let budget = described.retry_budget.unwrap();
    assert_eq!((budget.held, budget.held_total, budget.failed, budget.acked), (0, 0, 0, 1));
    assert_eq!(receive_what_is_there(&client).await.len(), 4);
    cluster.end().await;
}

/// A message may have to wait for something, such as a quota: nothing has failed, and it is not nearer to its death.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_puts_off_is_no_failure_and_does_not_die_of_it() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    client.create_queue("dead", QueueSettings::default(), 1).await.unwrap();
    let settings = QueueSettings {
        dead_letter_queue: Some("dead".to_owned()),
        receives_max: Some(1),
        retry_percent: Some(1),
        retry_floor_per_s: Some(1),
        ..QueueSettings::default()
    };
    client.create_queue("work", settings, 1).await.unwrap();
    client.send("work", vec![NewMessage::new("x")]).await.unwrap();
    let once = receive_what_is_there(&client).await;
    let later = once.iter().map(|message| Lease::new(message.receipt.clone(), Duration::from_millis(50)));
    let later = later.collect::<Vec<_>>();
    client.postpone("work", &later).await.unwrap().into_iter().for_each(|postponed| postponed.unwrap());
    let stop = CancellationToken::new();
    let consumer = client.queue("work").consumer().stop_on(stop.clone());
    let counters = consumer.counters();
    let (tries, receives) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let told = Arc::clone(&receives);
    consumer
        .run(move |job| {
            let (stop, is_early) = (stop.clone(), tries.fetch_add(1, Ordering::Relaxed) < 3);
            told.store(job.receive_count, Ordering::Relaxed);
            async move {
                if is_early {
                    return Err(Failure::postpone(Duration::from_millis(50), "not yet"));
                }
                stop.cancel();
                Ok(())
            }
        })
        .await
        .unwrap();
    let counts = counters.now();
    assert_eq!((counts.acked, counts.postponed, counts.retried), (1, 3, 0));
    // A node that was held up gives back what it has granted.
    let receives = receives.load(Ordering::Relaxed);
    assert!(receives >= 5, "{receives}");
    let described = client.describe_queue("work").await.unwrap();
    let Endings { untouched, failed, timed_out, .. } = described.endings.unwrap();
    assert_eq!((failed, timed_out), (0, 0));
    assert!(untouched >= 4, "{untouched}");
    let budget = described.retry_budget.unwrap();
    assert_eq!((budget.failed, budget.held_total), (0, 0));
    assert_eq!(client.describe_queue("dead").await.unwrap().counters.unwrap().ready, 0);
    cluster.end().await;
}
