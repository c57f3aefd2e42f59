//! Founding a cluster from a backup.
//!
//! ```text
//!   verify ─▶ found, with the catalogue ─▶ each partition to the node of its first replica ─▶ wait until all replicas have it
//! ```

use std::path::Path;
use std::time::Duration;

use futures::channel::mpsc;
use futures::{SinkExt, StreamExt, stream};
use leasehold_client::Client;
use leasehold_client::v1::restore_chunk::Target;
use leasehold_client::v1::{InitNode, InitRequest, NodeStatus, RestoreChunk, StatusResponse};
use tokio::time::{Instant, sleep};

use super::files::Reader;
use super::manifest::{Manifest, Part};
use super::{BackupError, client_of, verify};

/// How long the new cluster may stand still on its way.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Records that are read ahead.
const RECORDS_WAITING_MAX: usize = 2;

/// A cluster that has everything of a backup on all its nodes.
#[derive(Debug, Clone)]
pub struct Restored {
    pub cluster_id: String,
    pub manifest: Manifest,
}

/// Founds a cluster of empty nodes from a backup. `client` knows one of them, and `replication` is as of `init_cluster`.
///
/// # Errors
/// When the backup is damaged, or a node does not answer or belongs to a cluster: nothing is founded then. `Unfinished` when something
/// failed later.
pub async fn restore(
    client: &Client,
    folder: &Path,
    nodes: Vec<InitNode>,
    replication: u32,
) -> Result<Restored, BackupError> {
    let checked = {
        let folder = folder.to_owned();
        tokio::task::spawn_blocking(move || verify(&folder)).await
    };
    let manifest = match checked {
        Ok(manifest) => manifest?,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    let found = Target::Found(InitRequest { nodes, partitions: 0, replication });
    let Some(catalogue) = manifest.catalogue() else {
        return Err(BackupError::Incomplete { path: folder.to_owned() });
    };
    let cluster_id = send(client, folder, catalogue, found).await?;
    let unfinished = |error: BackupError| BackupError::Unfinished { detail: error.to_string() };
    fill(client, folder, &manifest).await.map_err(unfinished)?;
    Ok(Restored { cluster_id, manifest })
}

async fn fill(client: &Client, folder: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    let status = client.cluster_status().await?;
    for (number, part) in manifest.partitions() {
        let node = first_node(&status, number).ok_or_else(|| BackupError::Restless {
            detail: format!("partition {number} has no place in the new cluster"),
        })?;
        send(&client_of(client, node)?, folder, part, Target::Partition(number)).await?;
    }
    await_replicas(client, &status, manifest).await
}

fn first_node(status: &StatusResponse, number: u32) -> Option<&NodeStatus> {
    let partition = status.partitions.iter().find(|partition| partition.partition == number)?;
    let first = partition.replicas.first()?;
    status.nodes.iter().find(|node| node.id == *first)
}

/// Sends one file to a node.
async fn send(client: &Client, folder: &Path, part: &Part, target: Target) -> Result<String, BackupError> {
    let (records, sent) = mpsc::channel(RECORDS_WAITING_MAX);
    let reading = tokio::task::spawn_blocking({
        let (folder, part) = (folder.to_owned(), part.clone());
        move || read(&folder, &part, records)
    });
    let first = RestoreChunk { target: Some(target), ..RestoreChunk::default() };
    let answer = client.restore(stream::iter([first]).chain(sent)).await;
    match reading.await {
        // The node was told of a copy that ends too early; this is why.
        Ok(Err(error)) => Err(error),
        Ok(Ok(())) => Ok(answer?),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn read(folder: &Path, part: &Part, mut records: mpsc::Sender<RestoreChunk>) -> Result<(), BackupError> {
    let mut reader = Reader::open(folder, part)?;
    while let Some(record) = reader.next()? {
        let chunk = RestoreChunk { record: record.into(), ..RestoreChunk::default() };
        if futures::executor::block_on(records.send(chunk)).is_err() {
            // The call has ended, and says why.
            break;
        }
    }
    Ok(())
}

/// Waits until every node is ready and every replica has what the backup had, and an entry of its own leader after it: it is on the
/// disks of all then.
async fn await_replicas(
    client: &Client,
    status: &StatusResponse,
    manifest: &Manifest,
) -> Result<(), BackupError> {
    let nodes = status.nodes.iter().map(|node| Ok((node.id, client_of(client, node)?)));
    let nodes = nodes.collect::<Result<Vec<_>, BackupError>>()?;
    let (mut before, mut end) = (Vec::new(), Instant::now() + PATIENCE);
    loop {
        let mut behind = None;
        let mut now = Vec::new();
        for (id, client) in &nodes {
            let seen = client.cluster_status().await?;
            if !seen.ready {
                behind = Some(format!("node {} is not ready", seen.node));
            }
            for (number, part) in manifest.partitions() {
                let partition = seen.partitions.iter().find(|partition| partition.partition == number);
                let Some(partition) = partition.filter(|partition| partition.replicas.contains(id)) else {
                    continue;
                };
                now.push(partition.applied_index);
                if partition.applied_index <= part.log_index {
                    behind = Some(format!("node {} does not have partition {number} yet", seen.node));
                }
            }
        }
        let Some(detail) = behind else { return Ok(()) };
        if now != before {
            (before, end) = (now, Instant::now() + PATIENCE);
        }
        if Instant::now() > end {
            return Err(BackupError::Restless { detail });
        }
        sleep(LOOK_AGAIN).await;
    }
}
