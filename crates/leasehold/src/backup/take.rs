//! Taking a backup of a running cluster.
//!
//! ```text
//!   hold on every node (again and again) ─▶ each partition from its leader ─▶ the catalogue ─▶ all held still? ─▶ manifest
//! ```
//!
//! The catalogue comes last: it has every queue that a partition knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use leasehold_client::v1::{BackupRequest, CopyHead, LedPartition, StatusResponse};
use leasehold_client::{Client, Error, Reason};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::files::Writer;
use super::manifest::{Manifest, Part};
use super::{BackupError, client_of};

/// Times that it is begun when leaders change.
const TRIES_MAX: usize = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// A hold is asked for so many times while it lasts.
const HOLDS_PER_TERM: u32 = 6;
const CATALOGUE_FILE: &str = "catalogue";

/// Takes a backup into a folder that is empty or not there.
///
/// # Errors
/// When the folder is in use, the cluster cannot be reached or is not calm for long enough, or the disk is full. What is in the folder
/// then is no backup.
pub async fn take(client: &Client, folder: &Path) -> Result<Manifest, BackupError> {
    let failed = |action| move |error| BackupError::Io { action, path: folder.to_owned(), error };
    std::fs::create_dir_all(folder).map_err(failed("create"))?;
    if std::fs::read_dir(folder).map_err(failed("read"))?.next().is_some() {
        return Err(BackupError::NotEmpty { path: folder.to_owned() });
    }
    // Whether there is a cluster at all is known at once.
    client.cluster_status().await?;
    for _ in 1..TRIES_MAX {
        match take_once(client, folder).await {
            Err(BackupError::Client(error)) if may_pass(&error) => {}
            Err(BackupError::Restless { .. }) => {}
            taken => return taken,
        }
        sleep(PAUSE).await;
    }
    take_once(client, folder).await
}

/// Whether a leader has changed or is about to: its node was lost in the middle of it, or stops.
fn may_pass(error: &Error) -> bool {
    matches!(
        error.reason,
        Reason::NoLeader | Reason::Changed | Reason::Stopping | Reason::TimedOut | Reason::None
    )
}

/// A partition, and who leads it.
struct Led {
    client: Client,
    led: LedPartition,
    hold: u64,
}

async fn take_once(client: &Client, folder: &Path) -> Result<Manifest, BackupError> {
    let status = client.cluster_status().await?;
    let mut leaders = BTreeMap::new();
    let mut holding = JoinSet::new();
    for node in reachable(client, &status)? {
        let held = node.hold_transfers().await?;
        let pause = Duration::from_millis(held.lasts_ms) / HOLDS_PER_TERM;
        for led in held.partitions {
            leaders.insert(led.partition, Led { client: node.clone(), led, hold: held.hold });
        }
        holding.spawn(hold_on(node, pause));
    }
    let mut parts = Vec::with_capacity(status.partitions.len() + 1);
    for number in (0..).take(status.partitions.len()) {
        let led = leaders.get(&number).ok_or_else(|| BackupError::Restless {
            detail: format!("partition {number} has no leader that can be reached"),
        })?;
        let request = BackupRequest { partition: Some(led.led), hold: led.hold };
        let file = format!("partition-{number:05}");
        parts.push(copy(&led.client, request, folder, file, Some(number)).await?.0);
    }
    let (catalogue, head) =
        copy(client, BackupRequest::default(), folder, CATALOGUE_FILE.to_owned(), None).await?;
    if head.partitions as usize != parts.len() {
        let detail = format!("it has {} partitions now, and had {}", head.partitions, parts.len());
        return Err(BackupError::Restless { detail });
    }
    parts.push(catalogue);
    check_calm(client, &leaders).await?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let manifest = Manifest {
        cluster_id: status.cluster_id,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        taken_wall_ms: since.as_millis() as u64,
        queues: head.queues,
        parts,
    };
    manifest.store(folder)?;
    Ok(manifest)
}

/// One client for each node that can be reached.
fn reachable(client: &Client, status: &StatusResponse) -> Result<Vec<Client>, Error> {
    status.nodes.iter().filter(|node| node.reachable).map(|node| client_of(client, node)).collect()
}

/// Whether all partitions are led in the terms and under the holds in which they were copied, as far as any node knows now. One that was
/// away when the backup began may have led meanwhile, and moved a message into a copy that has it already.
async fn check_calm(client: &Client, leaders: &BTreeMap<u32, Led>) -> Result<(), BackupError> {
    let restless = |partition: u32| {
        let detail = format!("partition {partition} is led anew, or messages may have moved meanwhile");
        BackupError::Restless { detail }
    };
    let mut calm = BTreeSet::new();
    for node in reachable(client, &client.cluster_status().await?)? {
        let held = node.hold_transfers().await?;
        for led in held.partitions {
            let is_as_begun = |began: &Led| began.led == led && began.hold == held.hold;
            if !leaders.get(&led.partition).is_some_and(is_as_begun) {
                return Err(restless(led.partition));
            }
            calm.insert(led.partition);
        }
    }
    match leaders.keys().find(|partition| !calm.contains(*partition)) {
        Some(partition) => Err(restless(*partition)),
        None => Ok(()),
    }
}

/// Keeps a hold in force for as long as this runs. A node that does not answer ends its part of the backup by itself.
async fn hold_on(node: Client, pause: Duration) {
    loop {
        sleep(pause).await;
        let _ = node.hold_transfers().await;
    }
}

async fn copy(
    client: &Client,
    request: BackupRequest,
    folder: &Path,
    file: String,
    partition: Option<u32>,
) -> Result<(Part, CopyHead), BackupError> {
    let mut chunks = client.copy(request).await?;
    let mut writer = Writer::create(folder, &file)?;
    let mut head = CopyHead::default();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        match chunk.head {
            Some(first) => head = first,
            None => writer.append(&chunk.record)?,
        }
    }
    let (bytes, crc32c) = writer.finish()?;
    let CopyHead { log_index, log_time_ms, messages, .. } = head;
    Ok((Part { file, partition, log_index, log_time_ms, messages, bytes, crc32c }, head))
}
