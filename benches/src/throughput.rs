//! Sending and full cycles, as fast as the machine goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, NewMessage, ReceiveOptions};
use leasehold_cluster_tests::{Authorised, Plan, TestCluster};
use serde_json::{Value, json};

use crate::usage::cpu_s;

/// What is asked of the cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct Load {
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Bytes of each body.
    #[arg(long, default_value_t = 128)]
    bytes: usize,
    /// Messages of one send.
    #[arg(long, default_value_t = 250)]
    batch: usize,
    /// Senders at the same time, and as many receivers.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Partitions that the queue spreads over.
    #[arg(long, default_value_t = 4)]
    shards: u32,
    /// With certificates on both sides of every connection.
    #[arg(long)]
    tls: bool,
}

const QUEUE: &str = "bench";

/// A cluster, and the files that its nodes read.
async fn cluster(load: &Load) -> (TestCluster, Option<Authorised>) {
    let authorised = load.tls.then(Authorised::default);
    let files = authorised.as_ref().map(Authorised::settings).unwrap_or_default();
    let history = ("history.mode".to_owned(), "unusual".to_owned());
    let settings = files.into_iter().chain([history]).collect();
    let tls = authorised.as_ref().map(|known| known.of(&known.clients));
    let cluster =
        TestCluster::start(Plan { partitions: load.shards, settings, tls, ..Plan::default() }).await;
    let created = cluster.client().create_queue(QUEUE, QueueSettings::default(), load.shards).await;
    created.unwrap_or_else(|error| panic!("{error}"));
    (cluster, authorised)
}

/// Sends until the time is over.
async fn sender(client: Client, load: Load, end: Instant, sent: Arc<AtomicU64>) {
    let body = vec![b'x'; load.bytes];
    while Instant::now() < end {
        let messages = (0..load.batch).map(|_| NewMessage::new(body.clone())).collect();
        let outcomes = client.send(QUEUE, messages).await.unwrap_or_else(|error| panic!("{error}"));
        sent.fetch_add(outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64, Ordering::Relaxed);
    }
}

/// Receives and acknowledges until the time is over.
async fn receiver(client: Client, load: Load, end: Instant, acked: Arc<AtomicU64>) {
    let wait = Duration::from_millis(500);
    while Instant::now() < end {
        let options = ReceiveOptions { messages_max: load.batch as u32, wait, ..ReceiveOptions::default() };
        let messages = client.receive(QUEUE, options).await.unwrap_or_else(|error| panic!("{error}"));
        let receipts = messages.into_iter().map(|message| message.receipt).collect::<Vec<_>>();
        if receipts.is_empty() {
            continue;
        }
        let outcomes = client.ack(QUEUE, &receipts).await.unwrap_or_else(|error| panic!("{error}"));
        acked.fetch_add(outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64, Ordering::Relaxed);
    }
}

/// Messages sent a second.
pub async fn send(load: &Load) -> Value {
    let (cluster, _authorised) = cluster(load).await;
    let sent = Arc::new(AtomicU64::new(0));
    let (started, cpu) = (Instant::now(), cpu_s(std::process::id()));
    let end = started + Duration::from_secs(load.seconds);
    let senders =
        (0..load.clients).map(|_| tokio::spawn(sender(cluster.client(), load.clone(), end, sent.clone())));
    join_all(senders).await;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_s(std::process::id()) - cpu);
    let sent = sent.load(Ordering::Relaxed);
    cluster.end().await;
    json!({
        "what": "send", "messages_per_s": (sent as f64 / seconds) as u64, "messages": sent,
        "cpu_us_per_message": cpu * 1e6 / sent as f64, "bytes": load.bytes, "batch": load.batch,
        "clients": load.clients, "shards": load.shards, "tls": load.tls, "seconds": seconds,
    })
}

/// Messages through their whole life a second.
pub async fn cycle(load: &Load) -> Value {
    let (cluster, _authorised) = cluster(load).await;
    let (sent, acked) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (started, cpu) = (Instant::now(), cpu_s(std::process::id()));
    let end = started + Duration::from_secs(load.seconds);
    let senders =
        (0..load.clients).map(|_| tokio::spawn(sender(cluster.client(), load.clone(), end, sent.clone())));
    let receivers =
        (0..load.clients).map(|_| tokio::spawn(receiver(cluster.client(), load.clone(), end, acked.clone())));
    join_all(senders.chain(receivers)).await;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_s(std::process::id()) - cpu);
    let (sent, acked) = (sent.load(Ordering::Relaxed), acked.load(Ordering::Relaxed));
    cluster.end().await;
    json!({
        "what": "cycle", "messages_per_s": (acked as f64 / seconds) as u64, "sent": sent, "acked": acked,
        "cpu_us_per_message": cpu * 1e6 / acked.max(1) as f64, "bytes": load.bytes, "batch": load.batch,
        "clients": load.clients, "shards": load.shards, "tls": load.tls, "seconds": seconds,
    })
}
