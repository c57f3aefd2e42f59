//! How long partitions are away when the process that leads them is killed.

use std::process::Command;
use std::time::{Duration, Instant};

use leasehold::processes::Processes;
use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, NewMessage, ReceiveOptions};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::footprint::{program, ready};

#[derive(Debug, Clone, clap::Args)]
pub struct Rounds {
    /// Kills, each on a fresh leader.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Stops the leader's process instead of killing it: its connections stay open and it falls silent.
    #[arg(long)]
    silent: bool,
}

const QUEUE: &str = "failover";
const RETRY_PAUSE: Duration = Duration::from_millis(2);
/// A node that came back leads what it is preferred for: that transfer must not fall into what is measured next.
pub const TRANSFER_PAUSE: Duration = Duration::from_secs(8);

/// Kills the leader of the only partition again and again.
pub async fn measure(rounds: &Rounds) -> Value {
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let program = program().unwrap_or_else(|error| panic!("{error}"));
    let started = Processes::start(&program, dir.path(), 1).await;
    let mut processes = started.unwrap_or_else(|error| panic!("{error}"));
    let client = processes.client().unwrap_or_else(|error| panic!("{error}"));
    let created = client.create_queue(QUEUE, QueueSettings::default(), 1).await;
    created.unwrap_or_else(|error| panic!("{error}"));
    let mut away = Vec::new();
    for _ in 0..rounds.rounds {
        let leader = leader(&processes).await;
        let others = processes.endpoints().into_iter().enumerate().filter(|(at, _)| *at != leader);
        let client =
            Client::connect(others.map(|(_, endpoint)| endpoint)).unwrap_or_else(|error| panic!("{error}"));
        // Connections are open before the clock runs.
        client.send(QUEUE, vec![NewMessage::new("before")]).await.unwrap_or_else(|error| panic!("{error}"));
        if rounds.silent {
            signal(&processes, leader, "STOP");
        } else {
            processes.kill(leader).await.unwrap_or_else(|error| panic!("{error}"));
        }
        away.push(until_served(&client).await);
        // A stopped process can be killed like any other.
        processes.kill(leader).await.unwrap_or_else(|error| panic!("{error}"));
        processes.restart(leader).await.unwrap_or_else(|error| panic!("{error}"));
        ready(&processes).await;
        sleep(TRANSFER_PAUSE).await;
    }
    away.sort_unstable();
    json!({
        "what": if rounds.silent { "failover of a silent leader" } else { "failover of a killed leader" }, "rounds": away.len(), "median_ms": ms(away[away.len() / 2]), "fastest_ms": ms(away[0]),
        "slowest_ms": ms(away[away.len() - 1]),
    })
}

/// Sends a signal to the process of a node.
fn signal(processes: &Processes, at: usize, signal: &str) {
    let pid = processes.pid(at).unwrap_or_else(|| panic!("the process of the leader is gone"));
    let sent = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "cannot send {signal} to {pid}");
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

async fn leader(processes: &Processes) -> usize {
    loop {
        let client = processes.client().unwrap_or_else(|error| panic!("{error}"));
        if let Ok(routes) = client.routes(QUEUE).await {
            let address = routes.shards.first().map(|shard| shard.leader_address.clone()).unwrap_or_default();
            if let Some(at) = processes.nodes.iter().position(|node| node.client_address == address) {
                return at;
            }
        }
        sleep(RETRY_PAUSE).await;
    }
}

async fn until_served(client: &Client) -> Duration {
    let since = Instant::now();
    while client.send(QUEUE, vec![NewMessage::new("after")]).await.is_err() {
        sleep(RETRY_PAUSE).await;
    }
    loop {
        let options = ReceiveOptions { messages_max: 1, ..ReceiveOptions::default() };
        if client.receive(QUEUE, options).await.is_ok_and(|messages| !messages.is_empty()) {
            return since.elapsed();
        }
        sleep(RETRY_PAUSE).await;
    }
}
