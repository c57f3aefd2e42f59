//! `leasehold cluster`: founding, status, members.

use std::path::PathBuf;
use std::time::Duration;

use leasehold::backup;
use leasehold::replicas::{Comparison, compare};
use leasehold_client::Client;
use leasehold_client::v1::{InitNode, NodeStatus, StatusResponse};
use serde_json::{Value, json};

use crate::backup_command::contents;
use crate::input::{duration, pair};
use crate::output::{Failure, Output};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Founds a cluster of empty nodes.
    Init {
        /// A node, as name=host:port of its peer listener; repeat it for each.
        #[arg(long = "node", value_parser = pair, required = true)]
        nodes: Vec<(String, String)>,
        #[arg(long, default_value_t = 16, conflicts_with = "restore")]
        partitions: u32,
        /// Replicas of each partition: 1, 3 or 5. 0 takes 3, or 1 where there are fewer than three nodes.
        #[arg(long, default_value_t = 0)]
        replication: u32,
        /// The folder of a backup whose queues and messages the cluster begins with. It gets as many partitions as the backup has.
        #[arg(long)]
        restore: Option<PathBuf>,
    },
    /// Shows nodes and partitions.
    Status,
    /// Compares the replicas of all nodes, and says where they differ (exit code 1) or could not be compared (3). Each partition
    /// stands still on a node while it is read; a busy one may not be comparable.
    Verify {
        /// How long to wait for busy partitions.
        #[arg(long, default_value = "10s", value_parser = duration)]
        patience: Duration,
    },
    /// Takes an empty node in, as name=host:port of its peer listener.
    AddNode {
        #[arg(value_parser = pair)]
        node: (String, String),
    },
    /// Moves everything off a node and forgets it.
    RemoveNode {
        name: String,
        /// Do not wait until it is gone.
        #[arg(long)]
        no_wait: bool,
    },
    /// Gives the leadership of a partition to a node.
    Transfer { partition: u32, node: String },
}

pub async fn run(command: Command, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        Command::Init { nodes, partitions, replication, restore } => {
            let nodes = nodes.into_iter().map(init_node).collect();
            if let Some(folder) = restore {
                let restored = backup::restore(client, &folder, nodes, replication).await?;
                let (id, manifest) = (restored.cluster_id, restored.manifest);
                let text = format!("cluster {id} is founded and has {}", contents(&manifest));
                return output.done(&text, &json!({ "cluster_id": id, "backup": manifest.to_json() }));
            }
            let id = client.init_cluster(nodes, partitions, replication).await?;
            output.done(&format!("cluster {id} is founded"), &json!({ "cluster_id": id }))
        }
        Command::Status => status(&client.cluster_status().await?, output),
        Command::Verify { patience } => verify(client, patience, output).await,
        Command::AddNode { node } => {
            let id = client.add_node(init_node(node)).await?;
            output.done(&format!("node {id} is in the cluster; replicas move to it"), &json!({ "id": id }))
        }
        Command::RemoveNode { name, no_wait } => remove(client, &name, no_wait, output).await,
        Command::Transfer { partition, node } => {
            client.transfer_leader(partition, &node).await?;
            let text = format!("partition {partition} is handed to {node}");
            output.done(&text, &json!({ "partition": partition, "node": node }))
        }
    }
}

fn init_node((name, peer_address): (String, String)) -> InitNode {
    InitNode { name, peer_address }
}

async fn remove(client: &Client, name: &str, no_wait: bool, output: Output) -> Result<(), Failure> {
    client.remove_node(name).await?;
    if no_wait {
        return output.done(&format!("{name} is leaving"), &json!({ "node": name, "gone": false }));
    }
    let bar = output.progress(None);
    loop {
        let status = client.cluster_status().await?;
        // A node that is in no cluster, such as the one that left, does not know who is.
        if !status.cluster_id.is_empty() {
            let Some(node) = status.nodes.iter().find(|node| node.name == name) else { break };
            bar.set_message(format!("{name} still has {} replicas", node.replicas));
        }
        bar.tick();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bar.finish_and_clear();
    output.done(&format!("{name} has left the cluster"), &json!({ "node": name, "gone": true }))
}

async fn verify(client: &Client, patience: Duration, output: Output) -> Result<(), Failure> {
    let nodes = client.cluster_status().await?.nodes;
    let of_node = |node: &NodeStatus| client.builder_for([node.client_address.clone()]).build();
    let nodes = nodes.iter().map(of_node).collect::<Result<Vec<_>, _>>()?;
    let found = compare(&nodes, patience).await?;
    let mut lines =
        vec![format!("{} nodes: {} parts are equal on all their nodes", nodes.len(), found.equal)];
    lines.extend(found.busy.iter().map(|part| format!("{part} is too busy to be compared")));
    lines.extend(found.diverged.iter().map(|part| format!("replicas differ: {part}")));
    let object = json!({ "equal": found.equal, "busy": found.busy, "diverged": found.diverged });
    output.line(lines.join("\n"), &object)?;
    verdict(&found)
}

/// What was not compared is not known to be equal.
fn verdict(found: &Comparison) -> Result<(), Failure> {
    if !found.diverged.is_empty() {
        return Err(Failure::new("replicas differ: stop the nodes, keep their data folders, and report it"));
    }
    if found.busy.is_empty() {
        return Ok(());
    }
    Err(Failure::unknown(format!(
        "{} of {} parts were too busy to be compared: verify again with a longer --patience, or with less traffic",
        found.busy.len(),
        found.busy.len() + found.equal,
    )))
}

fn status(status: &StatusResponse, output: Output) -> Result<(), Failure> {
    output.line(status_text(status), &status_json(status))
}

fn status_json(status: &StatusResponse) -> Value {
    let nodes = status.nodes.iter().map(|node| {
        json!({
            "id": node.id, "name": node.name, "peer_address": node.peer_address, "client_address": node.client_address,
            "reachable": node.reachable, "leaving": node.leaving, "replicas": node.replicas, "leaders": node.leaders,
        })
    });
    let partitions = status.partitions.iter().map(|partition| {
        json!({
            "partition": partition.partition, "leader": partition.leader, "term": partition.term,
            "applied_index": partition.applied_index, "replicas": partition.replicas, "settled": partition.settled,
        })
    });
    let (nodes, partitions) = (nodes.collect::<Vec<_>>(), partitions.collect::<Vec<_>>());
    json!({
        "cluster_id": status.cluster_id, "node": status.node, "ready": status.ready, "queues": status.queues,
        "version": status.version,
        "nodes": nodes, "partitions": partitions,
    })
}

fn status_text(status: &StatusResponse) -> String {
    if status.cluster_id.is_empty() {
        return format!("node {} belongs to no cluster", status.node);
    }
    let StatusResponse { cluster_id, node, queues, ready, version, .. } = status;
    let mut lines = vec![format!(
        "cluster {cluster_id} of version {version}, asked at {node}, {queues} queues, ready: {ready}"
    )];
    let row = |node: &str, clients: &str, peers: &str, reachable: &str, replicas: &str, leaders: &str| {
        format!("{node:<12} {clients:<22} {peers:<22} {reachable:>9} {replicas:>8} {leaders:>8}")
    };
    lines.push(row("node", "clients", "peers", "reachable", "replicas", "leaders"));
    for node in &status.nodes {
        let reachable = match (node.leaving, node.reachable) {
            (true, _) => "leaving",
            (false, true) => "yes",
            (false, false) => "no",
        };
        let (replicas, leaders) = (node.replicas.to_string(), node.leaders.to_string());
        lines.push(row(&node.name, &node.client_address, &node.peer_address, reachable, &replicas, &leaders));
    }
    let name =
        |id: u64| status.nodes.iter().find(|node| node.id == id).map_or("-", |node| node.name.as_str());
    for partition in &status.partitions {
        let replicas = partition.replicas.iter().map(|id| name(*id)).collect::<Vec<_>>().join(" ");
        let moving = if partition.settled { "" } else { ", moving" };
        let leader = name(partition.leader);
        lines.push(format!("partition {:<4} led by {leader:<8} on {replicas}{moving}", partition.partition));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_too_busy_to_be_compared_is_unknown() {
        let exit_code = |busy: &[&str], diverged: &[&str]| {
            let texts = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect();
            let found = Comparison { equal: 2, busy: texts(busy), diverged: texts(diverged) };
            verdict(&found).map_or_else(|failure| failure.exit_code(), |()| 0)
        };
        assert_eq!(exit_code(&[], &[]), 0);
        assert_eq!(exit_code(&["partition 1"], &[]), 3);
        assert_eq!(exit_code(&["partition 1"], &["partition 2 at index 7"]), 1);
    }
}
