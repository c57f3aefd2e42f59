//! `leasehold server`: one node, until it is told to stop.

use std::path::PathBuf;

use leasehold_node::Node;
use leasehold_node::config::{Config, Sqs, process_environment};
use leasehold_node::telemetry::start_logging;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::input::pair;
use crate::on_runtime;
use crate::output::{Failure, Output, say};

#[derive(clap::Args)]
pub struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, env = "LEASEHOLD_CONFIG")]
    config: Option<PathBuf>,
    /// A setting over the file and the environment, as key=value.
    #[arg(long = "set", value_parser = pair)]
    settings: Vec<(String, String)>,
}

/// Serves until a signal comes or the node cannot go on.
///
/// # Errors
/// When it cannot start, or had to stop by itself.
pub fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let loaded = Config::load(arguments.config.as_deref(), process_environment(), &arguments.settings);
    let config = loaded.map_err(|error| Failure::usage(error.to_string()))?;
    on_runtime(config.limits.worker_threads as usize, serve(config, output))
}

async fn serve(config: Config, output: Output) -> Result<(), Failure> {
    start_logging(config.logging.format, &config.logging.level)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let name = config.name.clone();
    let (sqs, connections_max) = (config.sqs.clone(), config.limits.connections_max as usize);
    let mut stop = Stop::new()?;
    let node = Node::start(config).await.map_err(|error| Failure::new(error.to_string()))?;
    let sqs = start_sqs(sqs.as_ref(), connections_max, &node).await?;
    let (client, peer) = (node.client_address(), node.peer_address());
    let admin = node.admin_address().map(|address| address.to_string());
    let sqs_address = sqs.as_ref().map(|sqs| sqs.address().to_string());
    let for_sqs =
        sqs_address.as_ref().map(|address| format!(", SQS clients on {address}")).unwrap_or_default();
    output.line(
        format!("ready: node {name} serves clients on {client} and nodes on {peer}{for_sqs}"),
        &json!({ "node": name, "client": client.to_string(), "peer": peer.to_string(), "admin": admin, "sqs": sqs_address }),
    )?;
    tokio::select! {
        () = stop.asked() => {}
        reason = node.failed() => return Err(Failure::new(format!("node {name} cannot go on: {reason}"))),
    }
    say(format_args!("node {name} hands over and stops; a second signal stops it at once"));
    let stopped = async {
        if let Some(sqs) = sqs {
            sqs.shutdown().await;
        }
        node.shutdown().await;
    };
    tokio::select! {
        () = stopped => Ok(()),
        () = stop.asked() => Err(Failure::new("stopped before everything was handed over")),
    }
}

/// Serves SQS clients from a node, where its configuration says so.
pub async fn start_sqs(
    config: Option<&Sqs>,
    connections_max: usize,
    node: &Node,
) -> Result<Option<leasehold_sqs::Server>, Failure> {
    let Some(config) = config else { return Ok(None) };
    let started = leasehold_sqs::Server::start(config, connections_max, node.tls(), node.service()).await;
    started.map(Some).map_err(|error| Failure::new(error.to_string()))
}

/// The signals that end a process in good order.
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    pub fn new() -> Result<Self, Failure> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
