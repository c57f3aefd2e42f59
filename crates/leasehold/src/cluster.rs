//! `leasehold cluster`: founding, status, members.

use std::time::Duration;

use leasehold_client::Client;
use leasehold_client::v1::{InitNode, StatusResponse};
use serde_json::json;

use crate::input::pair;
use crate::output::{Failure, Output};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Founds a cluster of empty nodes.
    Init {
        /// A node, as name=host:port of its peer listener; repeat it for each.
        #[arg(long = "node", value_parser = pair, required = true)]
        nodes: Vec<(String, String)>,
        #[arg(long, default_value_t = 16)]
        partitions: u32,
        /// Replicas of each partition: 1, 3 or 5. 0 takes 3, or 1 where there are fewer than three nodes.
        #[arg(long, default_value_t = 0)]
        replication: u32,
    },
    /// Shows nodes and partitions.
    Status,
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
        Command::Init { nodes, partitions, replication } => {
            let nodes = nodes.into_iter().map(init_node).collect();
            let id = client.init_cluster(nodes, partitions, replication).await?;
            output.line(format!("cluster {id} is founded"), &json!({ "cluster_id": id }));
            Ok(())
        }
        Command::Status => status(&client.cluster_status().await?, output),
        Command::AddNode { node } => {
            let id = client.add_node(init_node(node)).await?;
            output.line(format!("node {id} is in the cluster; replicas move to it"), &json!({ "id": id }));
            Ok(())
        }
        Command::RemoveNode { name, no_wait } => remove(client, &name, no_wait, output).await,
        Command::Transfer { partition, node } => {
            client.transfer_leader(partition, &node).await?;
            let text = format!("partition {partition} is handed to {node}");
            output.line(text, &json!({ "partition": partition, "node": node }));
            Ok(())
        }
    }
}

fn init_node((name, peer_address): (String, String)) -> InitNode {
    InitNode { name, peer_address }
}

async fn remove(client: &Client, name: &str, no_wait: bool, output: Output) -> Result<(), Failure> {
    client.remove_node(name).await?;
    loop {
        if no_wait {
            break;
        }
        let status = client.cluster_status().await?;
        let Some(node) = status.nodes.iter().find(|node| node.name == name) else { break };
        if !output.is_json() {
            eprintln!("{name} still has {} replicas", node.replicas);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let text = if no_wait { format!("{name} is leaving") } else { format!("{name} has left the cluster") };
    output.line(text, &json!({ "node": name, "gone": !no_wait }));
    Ok(())
}

fn status(status: &StatusResponse, output: Output) -> Result<(), Failure> {
    if output.is_json() {
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
        let object = json!({
            "cluster_id": status.cluster_id, "node": status.node, "ready": status.ready, "queues": status.queues,
            "nodes": nodes, "partitions": partitions,
        });
        output.line("", &object);
        return Ok(());
    }
    if status.cluster_id.is_empty() {
        println!("node {} belongs to no cluster", status.node);
        return Ok(());
    }
    println!(
        "cluster {}, asked at {}, {} queues, ready: {}",
        status.cluster_id, status.node, status.queues, status.ready
    );
    println!(
        "{:<12} {:<22} {:<22} {:>9} {:>8} {:>8}",
        "node", "clients", "peers", "reachable", "replicas", "leaders"
    );
    for node in &status.nodes {
        let reachable = if node.leaving {
            "leaving"
        } else if node.reachable {
            "yes"
        } else {
            "no"
        };
        println!(
            "{:<12} {:<22} {:<22} {:>9} {:>8} {:>8}",
            node.name, node.client_address, node.peer_address, reachable, node.replicas, node.leaders
        );
    }
    let name =
        |id: u64| status.nodes.iter().find(|node| node.id == id).map_or("-", |node| node.name.as_str());
    for partition in &status.partitions {
        let replicas = partition.replicas.iter().map(|id| name(*id)).collect::<Vec<_>>().join(" ");
        let moving = if partition.settled { "" } else { ", moving" };
        println!(
            "partition {:<4} led by {:<8} on {replicas}{moving}",
            partition.partition,
            name(partition.leader)
        );
    }
    Ok(())
}
