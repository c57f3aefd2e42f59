//! `leasehold dev`: a cluster in one process, for development.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;
use leasehold_client::Client;
use leasehold_client::v1::InitNode;
use leasehold_node::Node;
use leasehold_node::config::Config;
use leasehold_node::telemetry::start_logging;
use serde_json::json;

use crate::output::{Failure, Output};
use crate::server::{Stop, start_sqs};

/// Between the ports for clients and those for nodes.
const PEER_PORTS_AFTER: u16 = 100;

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
    /// Port of the first node for SQS clients, the others follow. 0 takes any.
    #[arg(long, default_value_t = 9324)]
    sqs_port: u16,
}

/// Runs the cluster until a signal comes.
///
/// # Errors
/// When a node cannot start or stops by itself.
pub async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    check(&arguments)?;
    let temporary = tempfile::tempdir()?;
    let dir = arguments.data.as_deref().unwrap_or(temporary.path());
    let (mut nodes, mut sqs) = (Vec::new(), Vec::new());
    for number in 1..=arguments.nodes {
        let (node, server) = start(dir, number, &arguments).await?;
        nodes.push(node);
        sqs.extend(server);
    }
    let ended = tokio::select! {
        ended = serve(&arguments, dir, &nodes, &sqs, output) => ended,
        () = stop.asked() => Ok(()),
    };
    let stopped = async {
        join_all(sqs.into_iter().map(leasehold_sqs::Server::shutdown)).await;
        join_all(nodes.into_iter().map(Node::shutdown)).await;
    };
    tokio::select! {
        _ = stopped => ended,
        () = stop.asked() => Err(Failure::new("stopped before everything was handed over")),
    }
}

/// Founds the cluster where there is none, says that it is ready, and waits until a node cannot go on.
async fn serve(
    arguments: &Arguments,
    dir: &Path,
    nodes: &[Node],
    sqs: &[leasehold_sqs::Server],
    output: Output,
) -> Result<(), Failure> {
    let any_failed = futures::future::select_all(nodes.iter().map(|node| Box::pin(node.failed())));
    let endpoints = nodes.iter().map(|node| format!("http://{}", node.client_address())).collect::<Vec<_>>();
    let ready = async {
        if !has_cluster(dir, arguments.nodes) {
            let members = (1..).zip(nodes).map(|(number, node)| InitNode {
                name: node_name(number),
                peer_address: node.peer_address().to_string(),
            });
            let client = Client::connect(endpoints.clone())?;
            client.init_cluster(members.collect(), arguments.partitions, 0).await?;
        }
        while !nodes.iter().all(Node::is_ready) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for ((number, endpoint), sqs) in (1..).zip(&endpoints).zip(sqs) {
            let (name, sqs) = (node_name(number), format!("http://{}", sqs.address()));
            let text = format!("{name} {endpoint}, for SQS clients {sqs}");
            output.line(text, &json!({ "node": name, "endpoint": endpoint, "sqs": sqs }))?;
        }
        output.line("SQS clients may give any credentials", &json!({ "sqs_credentials": "any" }))?;
        output.line("ready", &json!({ "ready": true, "data": dir }))?;
        std::future::pending().await
    };
    tokio::select! {
        ended = ready => ended,
        (reason, _, _) = any_failed => Err(Failure::new(reason)),
    }
}

/// Whether the arguments go together with what the folder holds.
fn check(arguments: &Arguments) -> Result<(), Failure> {
    let Some(dir) = &arguments.data else { return Ok(()) };
    if !has_cluster(dir, arguments.nodes) {
        return Ok(());
    }
    if arguments.port == 0 {
        return Err(Failure::usage(
            "nodes with data find each other where they were: give the --port they had",
        ));
    }
    // A cluster cannot be made larger or smaller by starting other nodes.
    let known = (1..=9).filter(|number| is_member(dir, *number)).count();
    if known != usize::from(arguments.nodes) || !is_member(dir, arguments.nodes) {
        let dir = dir.display();
        return Err(Failure::usage(format!("{dir} holds a cluster of {known} nodes: give --nodes {known}")));
    }
    Ok(())
}

/// Whether any of the nodes has a place in a cluster.
fn has_cluster(dir: &Path, nodes: u16) -> bool {
    (1..=nodes).any(|number| is_member(dir, number))
}

fn is_member(dir: &Path, number: u16) -> bool {
    dir.join(node_name(number)).join("identity").exists()
}

fn node_name(number: u16) -> String {
    format!("n{number}")
}

/// Of a node, for clients and for other nodes.
fn ports(first: u16, number: u16) -> Result<(u16, u16), Failure> {
    if first == 0 {
        return Ok((0, 0));
    }
    let client = first.checked_add(number - 1);
    let both = client.and_then(|client| Some((client, client.checked_add(PEER_PORTS_AFTER)?)));
    both.ok_or_else(|| Failure::usage(format!("there are not enough ports from {first} on")))
}

async fn start(
    dir: &Path,
    number: u16,
    arguments: &Arguments,
) -> Result<(Node, Option<leasehold_sqs::Server>), Failure> {
    let name = node_name(number);
    let (port, peer_port) = ports(arguments.port, number)?;
    let (sqs_port, _) = ports(arguments.sqs_port, number)?;
    let settings = [
        ("name", name.clone()),
        ("data_dir", dir.join(&name).display().to_string()),
        ("client_listen", format!("127.0.0.1:{port}")),
        ("peer_listen", format!("127.0.0.1:{peer_port}")),
        ("admin_listen", "127.0.0.1:0".to_owned()),
        ("sqs.listen", format!("127.0.0.1:{sqs_port}")),
        ("sqs.insecure", "true".to_owned()),
        ("logging.level", "warn".to_owned()),
    ];
    let settings = settings.map(|(key, value)| (key.to_owned(), value));
    let config = Config::load(None, std::iter::empty(), &settings)
        .map_err(|error| Failure::usage(error.to_string()))?;
    // The first node of the process starts it.
    let _ = start_logging(config.logging.format, &config.logging.level);
    let (sqs, connections_max) = (config.sqs.clone(), config.limits.connections_max as usize);
    let node = Node::start(config).await.map_err(|error| Failure::new(format!("{name}: {error}")))?;
    let sqs = start_sqs(sqs.as_ref(), connections_max, &node).await?;
    Ok((node, sqs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_one_another_and_end_at_the_last() {
        assert_eq!(ports(7400, 3).unwrap(), (7402, 7502));
        assert_eq!(ports(0, 3).unwrap(), (0, 0));
        assert!(ports(65_430, 9).is_err());
    }
}
