//! What a cluster costs: processor time at rest, memory of queues and of a backlog, and the time of a restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use leasehold::processes::{ProcessError, Processes};
use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, NewMessage};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::usage::{cpu_s, resident_mib};

#[derive(Debug, Clone, clap::Args)]
pub struct Idle {
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    #[arg(long, default_value_t = 16)]
    partitions: u32,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Queues {
    #[arg(long, default_value_t = 10_000)]
    queues: usize,
    /// Messages left in each queue, so that every one has a shard.
    #[arg(long, default_value_t = 1)]
    messages: usize,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Backlog {
    #[arg(long, default_value_t = 2_000_000)]
    messages: usize,
    #[arg(long, default_value_t = 1_024)]
    bytes: usize,
}

const SEND_BATCH: usize = 500;
const SIDE_BY_SIDE: usize = 16;

/// The `leasehold` program that was built with this one.
///
/// # Errors
/// When it is not there.
pub fn program() -> Result<PathBuf, ProcessError> {
    let program = std::env::current_exe()?.with_file_name("leasehold");
    if program.exists() {
        return Ok(program);
    }
    let what = "is missing: run `cargo build --release -p leasehold` first";
    Err(ProcessError(format!("{} {what}", program.display())))
}

/// Waits until every partition is led and settled.
pub async fn ready(processes: &Processes) {
    let client = processes.client().unwrap_or_else(|error| panic!("{error}"));
    loop {
        let status = client.cluster_status().await;
        if status.is_ok_and(|status| status.ready && status.nodes.iter().all(|node| node.reachable)) {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn start(partitions: u32) -> (TempDir, Processes) {
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let program = program().unwrap_or_else(|error| panic!("{error}"));
    let started = Processes::start(&program, dir.path(), partitions).await;
    (dir, started.unwrap_or_else(|error| panic!("{error}")))
}

pub fn pids(processes: &Processes) -> Vec<u32> {
    (0..processes.nodes.len()).filter_map(|at| processes.pid(at)).collect()
}

fn resident(processes: &Processes) -> Vec<f64> {
    pids(processes).into_iter().map(resident_mib).collect()
}

/// Processor time of three nodes that do nothing, as a share of one core.
pub async fn idle(idle: &Idle) -> Value {
    let (_dir, processes) = start(idle.partitions).await;
    sleep(Duration::from_secs(10)).await;
    let spent = || pids(&processes).into_iter().map(cpu_s).sum::<f64>();
    let (before, started) = (spent(), Instant::now());
    sleep(Duration::from_secs(idle.seconds)).await;
    let percent = (spent() - before) / started.elapsed().as_secs_f64() * 100.0;
    json!({
        "what": "idle", "percent_of_a_core": percent, "partitions": idle.partitions, "seconds": idle.seconds,
        "resident_mib": resident(&processes),
    })
}

/// Memory that queues take on each node.
pub async fn queues(queues: &Queues) -> Value {
    let (_dir, processes) = start(16).await;
    let client = processes.client().unwrap_or_else(|error| panic!("{error}"));
    let (before, started) = (resident(&processes), Instant::now());
    let all = futures::stream::iter(0..queues.queues).for_each_concurrent(SIDE_BY_SIDE * 4, |number| {
        let client = client.clone();
        async move {
            let name = format!("queue-{number}");
            let created = client.create_queue(&name, QueueSettings::default(), 1).await;
            created.unwrap_or_else(|error| panic!("{error}"));
            if queues.messages > 0 {
                let messages = (0..queues.messages).map(|_| NewMessage::new("x")).collect();
                client.send(&name, messages).await.unwrap_or_else(|error| panic!("{error}"));
            }
        }
    });
    all.await;
    let seconds = started.elapsed().as_secs_f64();
    sleep(Duration::from_secs(2)).await;
    json!({
        "what": "queues", "queues": queues.queues, "messages_each": queues.messages, "seconds": seconds,
        "resident_mib_before": before, "resident_mib_after": resident(&processes),
    })
}

async fn fill(client: Client, messages: usize, bytes: usize) {
    let body = Arc::new(vec![b'x'; bytes]);
    let batches = messages.div_ceil(SEND_BATCH);
    let all = futures::stream::iter(0..batches).for_each_concurrent(SIDE_BY_SIDE, |_| {
        let (client, body) = (client.clone(), body.clone());
        async move {
            let batch = (0..SEND_BATCH).map(|_| NewMessage::new(body.to_vec())).collect();
            client.send("backlog", batch).await.unwrap_or_else(|error| panic!("{error}"));
        }
    });
    all.await;
}

/// Memory that a backlog takes on each node, and how long a node takes to come back with it.
pub async fn backlog(backlog: &Backlog) -> Value {
    let (_dir, mut processes) = start(4).await;
    let client = processes.client().unwrap_or_else(|error| panic!("{error}"));
    client
        .create_queue("backlog", QueueSettings::default(), 4)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let (before, started) = (resident(&processes), Instant::now());
    fill(client, backlog.messages, backlog.bytes).await;
    let filled_s = started.elapsed().as_secs_f64();
    sleep(Duration::from_secs(5)).await;
    let after = resident(&processes);
    processes.kill(0).await.unwrap_or_else(|error| panic!("{error}"));
    let restarted = Instant::now();
    processes.restart(0).await.unwrap_or_else(|error| panic!("{error}"));
    let serves_s = restarted.elapsed().as_secs_f64();
    ready_at(&processes.nodes[0].client_address).await;
    json!({
        "what": "backlog", "messages": backlog.messages, "bytes": backlog.bytes, "filled_s": filled_s,
        "resident_mib_before": before, "resident_mib_after": after, "restart_serves_s": serves_s,
        "restart_ready_s": restarted.elapsed().as_secs_f64(),
    })
}

async fn ready_at(client_address: &str) {
    let client =
        Client::connect([format!("http://{client_address}")]).unwrap_or_else(|error| panic!("{error}"));
    while !client.cluster_status().await.is_ok_and(|status| status.ready) {
        sleep(Duration::from_millis(20)).await;
    }
}
