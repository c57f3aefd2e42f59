//! Requests of SQS clients: signed, over connections that stay open, against three nodes as processes.

mod connection;
mod signer;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use leasehold::processes::Processes;
use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, NewMessage};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::footprint::{pids, program};
use crate::usage::cpu_s;
use connection::Connection;
use signer::{KEY, SECRET};

/// What is asked of the cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct Requests {
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Bytes of each body.
    #[arg(long, default_value_t = 128)]
    bytes: usize,
    /// Messages of one request: 1, or up to 10 in a batch.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=10))]
    batch: u8,
    /// Connections, evenly over the nodes; each has one request under way.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Queues that the connections use, one each in turn.
    #[arg(long, default_value_t = 4)]
    used: usize,
    /// Partitions that the queues are spread over, one each; each partition makes entries of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    partitions: u32,
    /// Queues that are there in all.
    #[arg(long, default_value_t = 4)]
    queues: usize,
    /// Messages that wait in each used queue before it begins.
    #[arg(long, default_value_t = 0)]
    backlog: usize,
    /// A setting of the nodes, as `limits.worker_threads=1`.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
}

/// Requests that were answered, and messages that were deleted.
#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    deleted: AtomicU64,
}

const SIDE_BY_SIDE: usize = 64;
const FILL_BATCH: usize = 500;

/// Requests and messages a second, and the processor time of each request.
pub async fn measure(requests: &Requests) -> Value {
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let keys = format!("sqs.access_keys={KEY}:{SECRET}");
    let mut settings = vec!["sqs.listen=127.0.0.1:0", keys.as_str()];
    settings.extend(requests.set.iter().map(String::as_str));
    let program = program().unwrap_or_else(|error| panic!("{error}"));
    let processes = Processes::start_with(&program, dir.path(), requests.partitions, &settings).await;
    let processes = processes.unwrap_or_else(|error| panic!("{error}"));
    crate::footprint::ready(&processes).await;
    prepare(&processes.client().unwrap_or_else(|error| panic!("{error}")), requests).await;
    let counts = Arc::new(Counts::default());
    let spent = || pids(&processes).into_iter().map(cpu_s).sum::<f64>();
    let (nodes_cpu, own_cpu, started) = (spent(), cpu_s(std::process::id()), Instant::now());
    let end = started + Duration::from_secs(requests.seconds);
    let workers = (0..requests.connections).map(|at| {
        let address = processes.nodes[at % processes.nodes.len()].sqs_address.clone().unwrap_or_default();
        tokio::spawn(work(address, at, requests.clone(), end, counts.clone()))
    });
    for worker in join_all(workers).await {
        worker.unwrap_or_else(|error| panic!("{error}"));
    }
    let seconds = started.elapsed().as_secs_f64();
    let (nodes_cpu, own_cpu) = (spent() - nodes_cpu, cpu_s(std::process::id()) - own_cpu);
    let answered = counts.requests.load(Ordering::Relaxed);
    let deleted = counts.deleted.load(Ordering::Relaxed);
    processes.stop_all().await.unwrap_or_else(|error| panic!("{error}"));
    json!({
        "what": "sqs", "requests_per_s": (answered as f64 / seconds) as u64,
        "messages_through_per_s": (deleted as f64 / seconds) as u64,
        "nodes_cpu_us_per_request": nodes_cpu * 1e6 / answered as f64,
        "clients_cpu_us_per_request": own_cpu * 1e6 / answered as f64,
        "batch": requests.batch, "bytes": requests.bytes, "connections": requests.connections,
        "partitions": requests.partitions,
        "queues": requests.queues, "used": requests.used, "backlog": requests.backlog, "seconds": seconds,
        "set": requests.set,
    })
}

fn queue_name(at: usize) -> String {
    format!("bench-{at}")
}

/// Makes the queues, and fills those that are used.
async fn prepare(client: &Client, requests: &Requests) {
    let all = futures::stream::iter(0..requests.queues.max(requests.used));
    all.for_each_concurrent(SIDE_BY_SIDE, |at| async move {
        let created = client.create_queue(&queue_name(at), QueueSettings::default(), 1).await;
        created.unwrap_or_else(|error| panic!("{error}"));
    })
    .await;
    let batches = requests.backlog.div_ceil(FILL_BATCH);
    let fills = (0..requests.used).flat_map(|at| (0..batches).map(move |_| at));
    let body = vec![b'x'; requests.bytes];
    futures::stream::iter(fills)
        .for_each_concurrent(SIDE_BY_SIDE / 4, |at| {
            let messages = (0..FILL_BATCH).map(|_| NewMessage::new(body.clone())).collect();
            async move {
                client.send(&queue_name(at), messages).await.unwrap_or_else(|error| panic!("{error}"));
            }
        })
        .await;
}

/// What is read of an answer to a receive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Received<'a> {
    #[serde(default, borrow)]
    messages: Vec<Leased<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Leased<'a> {
    receipt_handle: &'a str,
}

/// What is read of an answer to a send or a delete.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Done {
    #[serde(default)]
    failed: Vec<Value>,
}

/// Sends, receives and deletes on one connection until the time is over.
async fn work(address: String, at: usize, requests: Requests, end: Instant, counts: Arc<Counts>) {
    let url = format!("http://{address}/000000000000/{}", queue_name(at % requests.used));
    let mut connection = Connection::open(&address).await;
    let batch = usize::from(requests.batch);
    let (send, sent) = send(&url, batch, &"x".repeat(requests.bytes));
    let receive = json!({ "QueueUrl": url, "MaxNumberOfMessages": batch }).to_string();
    while Instant::now() < end {
        let done: Done = connection.ask(send, sent.as_bytes()).await;
        assert!(done.failed.is_empty(), "{:?}", done.failed);
        let received: Received<'_> = connection.ask("ReceiveMessage", receive.as_bytes()).await;
        counts.requests.fetch_add(2, Ordering::Relaxed);
        let messages = received.messages;
        if messages.is_empty() {
            continue;
        }
        let deleted = messages.len() as u64;
        let (delete, body) = delete(&url, batch, &messages);
        let done: Done = connection.ask(delete, body.as_bytes()).await;
        assert!(done.failed.is_empty(), "{:?}", done.failed);
        counts.requests.fetch_add(1, Ordering::Relaxed);
        counts.deleted.fetch_add(deleted, Ordering::Relaxed);
    }
}

/// Operation and body.
fn send(url: &str, batch: usize, body: &str) -> (&'static str, String) {
    if batch == 1 {
        return ("SendMessage", json!({ "QueueUrl": url, "MessageBody": body }).to_string());
    }
    let entries = (0..batch).map(|id| json!({ "Id": id.to_string(), "MessageBody": body }));
    let entries = entries.collect::<Vec<_>>();
    ("SendMessageBatch", json!({ "QueueUrl": url, "Entries": entries }).to_string())
}

/// Operation and body. Neither URLs nor handles have characters that JSON escapes.
fn delete(url: &str, batch: usize, messages: &[Leased<'_>]) -> (&'static str, String) {
    if let ([message], 1) = (messages, batch) {
        let body = format!(r#"{{"QueueUrl":"{url}","ReceiptHandle":"{}"}}"#, message.receipt_handle);
        return ("DeleteMessage", body);
    }
    let mut body = format!(r#"{{"QueueUrl":"{url}","Entries":["#);
    for (id, message) in messages.iter().enumerate() {
        let comma = if id == 0 { "" } else { "," };
        let _ = write!(body, r#"{comma}{{"Id":"{id}","ReceiptHandle":"{}"}}"#, message.receipt_handle);
    }
    body.push_str("]}");
    ("DeleteMessageBatch", body)
}
