//! `leasehold dev`: a cluster in one process, for development.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leasehold_client::Client;
use leasehold_client::v1::InitNode;
use leasehold_node::Node;
use leasehold_node::config::Config;
use leasehold_node::telemetry::start_logging;
use serde_json::json;

use crate::output::{Failure, Output};
use crate::server::Stop;

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Folder for the data; without it, a temporary one that goes away at the end.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Partitions of a new cluster.
    #[arg(long, default_value_t = 8)]
    partitions: u32,
    /// Port of the first node for clients, the others follow; nodes use the hundred after that. 0 takes any, for new data only.
    #[arg(long, default_value_t = 7400)]
    port: u16,
}

/// Runs the cluster until a signal comes.
///
/// # Errors
/// When a node cannot start or stops by itself.
pub async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    if arguments.port == 0 && arguments.data.as_deref().is_some_and(Path::exists) {
        return Err(Failure::usage(
            "nodes with data find each other where they were: give the --port they had",
        ));
    }
    let temporary = tempfile::tempdir()?;
    let dir = arguments.data.as_deref().unwrap_or(temporary.path());
    let mut nodes = Vec::new();
    for number in 1..=arguments.nodes {
        let port = if arguments.port == 0 { 0 } else { arguments.port + number - 1 };
        let peer_port = if arguments.port == 0 { 0 } else { port + 100 };
        nodes.push((format!("n{number}"), start(dir, &format!("n{number}"), port, peer_port).await?));
    }
    let endpoints =
        nodes.iter().map(|(_, node)| format!("http://{}", node.client_address())).collect::<Vec<_>>();
    let client = Client::connect(endpoints.clone())?;
    if client.cluster_status().await?.cluster_id.is_empty() {
        let members = nodes.iter().map(|(name, node)| InitNode {
            name: name.clone(),
            peer_address: node.peer_address().to_string(),
        });
        client.init_cluster(members.collect(), arguments.partitions, 0).await?;
    }
    while !nodes.iter().all(|(_, node)| node.is_ready()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for ((name, _), endpoint) in nodes.iter().zip(&endpoints) {
        output.line(format!("{name} {endpoint}"), &json!({ "node": name, "endpoint": endpoint }));
    }
    output.line("ready", &json!({ "ready": true, "data": dir }));
    let any_failed = futures::future::select_all(nodes.iter().map(|(_, node)| Box::pin(node.failed())));
    tokio::select! {
        () = stop.asked() => {}
        (reason, _, _) = any_failed => return Err(Failure::new(reason)),
    }
    for (_, node) in nodes {
        node.shutdown().await;
    }
    Ok(())
}

async fn start(dir: &Path, name: &str, port: u16, peer_port: u16) -> Result<Node, Failure> {
    let settings = [
        ("name", name.to_owned()),
        ("data_dir", dir.join(name).display().to_string()),
        ("client_listen", format!("127.0.0.1:{port}")),
        ("peer_listen", format!("127.0.0.1:{peer_port}")),
        ("admin_listen", "127.0.0.1:0".to_owned()),
        ("logging.level", "warn".to_owned()),
    ];
    let settings = settings.map(|(key, value)| (key.to_owned(), value));
    let config = Config::load(None, std::iter::empty(), &settings)
        .map_err(|error| Failure::usage(error.to_string()))?;
    // The first node of the process starts it.
    let _ = start_logging(config.logging.format, &config.logging.level);
    Node::start(config).await.map_err(|error| Failure::new(format!("{name}: {error}")))
}
