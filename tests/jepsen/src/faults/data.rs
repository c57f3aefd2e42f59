//! Faults of what a node has: files that are damaged, and a disk, descriptors or memory that are used up.

use std::time::Duration;

use leasehold::backup;
use leasehold::processes::NodeProcess;
use leasehold_client::Client;
use leasehold_client::v1::{InitNode, Reason, StatusResponse};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::time::{Instant, sleep};

use leasehold_histories::random::Random;

use super::process::{assert_running, kill, restart};
use super::schedule::Planned;
use super::{Scene, corruption};
use crate::damage::damage;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// A file of a node is damaged while it is down: it refuses to start, or is not harmed, and is replaced.
    Corrupt,
    /// A file of a node is damaged while it runs and reads from it: it says so, serves nothing of it, and is replaced.
    CorruptRunning,
    /// A node has less room than it is told to keep free.
    DiskLow,
    /// A sound node is removed, emptied, and added again, under load.
    Replace,
    /// A node loses everything and starts with nothing, although the others count on it: it has no say until it is replaced.
    Wipe,
    /// The cluster is backed up while clients are still, all nodes are emptied, and another cluster of them begins with the backup.
    Restore,
    /// A node may open no more files and connections: it goes on, or ends by itself and is started again.
    Descriptors,
    /// A node gets no more memory than it has: it goes on, or ends by itself and is started again.
    Memory,
}

pub const LASTS_MS: [u64; 2] = [1_000, 5_000];

/// For one step of a replacement, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// The most that can be set.
const MORE_THAN_IS_FREE: &str = "limits.disk_low_bytes=1TiB";

pub fn failed(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub async fn begin(scene: &mut Scene<'_>, fault: Fault, planned: &Planned) -> Result<String, String> {
    let node = planned.node;
    let what = match fault {
        Fault::Corrupt => {
            kill(scene, node).await?;
            let data_dir = scene.processes.data_dir(node);
            let damaged = damage(&data_dir, &mut Random::new(planned.choice, 0)).map_err(failed)?;
            let answer = restart_damaged(scene, node).await.map_err(|error| format!("{damaged}: {error}"))?;
            format!("{damaged}: {answer}")
        }
        Fault::CorruptRunning => corruption::begin(scene, planned).await?,
        Fault::DiskLow => {
            kill(scene, node).await?;
            scene.processes.restart_with(node, &[MORE_THAN_IS_FREE]).await.map_err(failed)?;
            MORE_THAN_IS_FREE.to_owned()
        }
        Fault::Replace => {
            assert_running(scene, node)?;
            "to be removed, emptied and added".to_owned()
        }
        Fault::Wipe => {
            kill(scene, node).await?;
            empty(scene, node)?;
            restart(scene, node).await?;
            assert_outside(scene, node).await?;
            "emptied".to_owned()
        }
        Fault::Restore => return restore(scene).await,
        Fault::Descriptors => {
            assert_running(scene, node)?;
            let open = limit_to_what_is_used(scene, node, Resource::Nofile)?;
            format!("not more than {open} descriptors")
        }
        Fault::Memory => {
            assert_running(scene, node)?;
            let bytes = limit_to_what_is_used(scene, node, Resource::Data)?;
            format!("not more than {bytes} bytes of memory")
        }
    };
    Ok(format!("node {} for {:?}: {what}", node + 1, planned.lasts))
}

pub async fn end(scene: &mut Scene<'_>, fault: Fault, planned: &Planned) -> Result<(), String> {
    let is_running = scene.processes.is_running(planned.node).map_err(failed)?;
    match fault {
        Fault::Restore => Ok(()),
        // A node that started may have a damaged body that nobody has read yet: the next damage must not find the only copy of it.
        Fault::Corrupt | Fault::Replace => replace(scene, planned.node).await,
        Fault::CorruptRunning => corruption::end(scene, planned).await,
        // It may have ended by itself.
        Fault::Wipe => {
            assert_outside(scene, planned.node).await?;
            replace(scene, planned.node).await
        }
        Fault::Descriptors if is_running => {
            limit(scene, planned.node, Resource::Nofile, getrlimit(Resource::Nofile).current)
        }
        Fault::Memory if is_running => {
            limit(scene, planned.node, Resource::Data, getrlimit(Resource::Data).current)
        }
        Fault::Memory => {
            scene.out_of_memory += 1;
            restart(scene, planned.node).await
        }
        Fault::Descriptors => restart(scene, planned.node).await,
        Fault::DiskLow => {
            kill(scene, planned.node).await?;
            restart(scene, planned.node).await
        }
    }
}

/// A node gets no more of this than it has, and says how much that is. Of memory: a new allocation fails, and the process aborts.
fn limit_to_what_is_used(scene: &Scene<'_>, node: usize, resource: Resource) -> Result<u64, String> {
    let pid = scene.processes.pid(node).ok_or("the node does not run")?;
    let used = match resource {
        Resource::Data => data_bytes(pid)?,
        _ => std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(failed)?.count() as u64,
    };
    limit(scene, node, resource, Some(used))?;
    Ok(used)
}

/// What the limit of memory counts: what is private and can be written to.
fn data_bytes(pid: u32) -> Result<u64, String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(failed)?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmData:")?.trim().strip_suffix(" kB"));
    let kib = kib.and_then(|kib| kib.parse::<u64>().ok()).ok_or("the system does not say what is used")?;
    Ok(kib * 1024)
}

/// Sets how much of a resource a node may have; its most stays that of the harness.
fn limit(scene: &Scene<'_>, node: usize, resource: Resource, current: Option<u64>) -> Result<(), String> {
    let pid = scene.processes.pid(node).ok_or("the node does not run")?;
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("this is no process id")?;
    let limit = Rlimit { current, maximum: getrlimit(resource).maximum };
    prlimit(Some(pid), resource, limit).map(drop).map_err(failed)
}

/// Who has lost everything belongs to no cluster, whoever counts on it: it must not vote as if it had never voted.
async fn assert_outside(scene: &Scene<'_>, node: usize) -> Result<(), String> {
    let endpoint = scene.processes.endpoints().swap_remove(node);
    let client = Client::builder([endpoint]).call_timeout(CALL_TIMEOUT).build().map_err(failed)?;
    match client.cluster_status().await {
        Ok(status) if is_member(&status) => Err(format!("node {} came back empty, and takes part", node + 1)),
        Ok(_) => Ok(()),
        Err(error) if error.reason == Reason::NotInitialised => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Starts a node whose files are damaged, and says what it does: it has no other choice.
pub async fn restart_damaged(scene: &mut Scene<'_>, node: usize) -> Result<&'static str, String> {
    match restart(scene, node).await {
        Ok(()) => Ok("starts unharmed"),
        Err(error) if is_refusal(&error) => Ok("refuses to start"),
        Err(error) => Err(error),
    }
}

/// Whether a node said that its data is damaged and what to do, as docs/errors.md has it. A process tells nothing but its words.
pub fn is_refusal(error: &str) -> bool {
    error.contains("damaged") && error.to_lowercase().contains("restore the")
        || error.contains("lacks entry") && error.contains("restore the")
}

/// What docs/errors.md says to do with a damaged node: it is removed, its folder emptied, and it is added again. It may run.
pub async fn replace(scene: &mut Scene<'_>, node: usize) -> Result<(), String> {
    let name = scene.processes.nodes[node].name.clone();
    let client = client_of_others(scene, node)?;
    until(&format!("{name} is removed"), async || match client.remove_node(&name).await {
        Err(error) if error.reason != Reason::UnknownNode => Err(error.to_string()),
        _ => Ok(true),
    })
    .await?;
    let is_gone =
        |status: &StatusResponse| is_member(status) && status.nodes.iter().all(|node| node.name != name);
    await_status(&format!("{name} is gone"), &client, is_gone).await?;
    scene.processes.kill(node).await.map_err(failed)?;
    empty(scene, node)?;
    restart(scene, node).await?;
    let peer_address = scene.processes.nodes[node].peer_address.clone();
    until(&format!("{name} is added"), async || {
        let added = InitNode { name: name.clone(), peer_address: peer_address.clone() };
        let result = client.add_node(added).await;
        if let Err(error) = &result
            && error.reason == Reason::InvalidArgument
        {
            // An earlier call was lost half-way, before the node joined.
            let _ = client.remove_node(&name).await;
        }
        result.map(|_| true).map_err(failed)
    })
    .await?;
    let nodes = scene.processes.nodes.len();
    let is_whole = |status: &StatusResponse| {
        let is_settled = |partition: &leasehold_client::v1::PartitionStatus| {
            partition.settled && partition.replicas.len() == nodes
        };
        is_member(status) && status.nodes.len() == nodes && status.partitions.iter().all(is_settled)
    };
    await_status(&format!("{name} has its replicas"), &client, is_whole).await
}

/// Takes everything from a node that does not run.
fn empty(scene: &Scene<'_>, node: usize) -> Result<(), String> {
    std::fs::remove_dir_all(scene.processes.data_dir(node)).map_err(failed)?;
    scene.machines.map_or(Ok(()), |machines| machines.of(node).forget().map_err(failed))
}

/// From the backup to the end of the restore no client asks for anything, so nothing that was answered may be missing afterwards. A
/// call that ended without an answer may still be under way; what becomes of it is nobody's to say.
async fn restore(scene: &mut Scene<'_>) -> Result<String, String> {
    let _nobody_calls = scene.stage.calls.write().await;
    let dir = tempfile::tempdir().map_err(failed)?;
    let folder = dir.path().join("backup");
    let taken = backup::take(&scene.processes.client().map_err(failed)?, &folder).await.map_err(failed)?;
    let nodes = scene.processes.nodes.len();
    for node in 0..nodes {
        kill(scene, node).await?;
    }
    for node in 0..nodes {
        empty(scene, node)?;
        restart(scene, node).await?;
    }
    let member =
        |node: &NodeProcess| InitNode { name: node.name.clone(), peer_address: node.peer_address.clone() };
    let members = scene.processes.nodes.iter().map(member).collect();
    let client = scene.processes.client().map_err(failed)?;
    let restored = backup::restore(&client, &folder, members, nodes as u32).await.map_err(failed)?;
    let (messages, queues) = (taken.messages(), taken.queues);
    Ok(format!("{queues} queues and {messages} messages go on in cluster {}", restored.cluster_id))
}

/// A node that belongs to no cluster does not know one.
fn is_member(status: &StatusResponse) -> bool {
    !status.cluster_id.is_empty()
}

fn client_of_others(scene: &Scene<'_>, node: usize) -> Result<Client, String> {
    let mut endpoints = scene.processes.endpoints();
    endpoints.remove(node);
    Client::builder(endpoints).call_timeout(CALL_TIMEOUT).build().map_err(failed)
}

async fn await_status(
    what: &str,
    client: &Client,
    is_so: impl Fn(&StatusResponse) -> bool,
) -> Result<(), String> {
    until(what, async || client.cluster_status().await.map(|status| is_so(&status)).map_err(failed)).await
}

/// Asks again until it is so.
pub async fn until(what: &str, ask: impl AsyncFn() -> Result<bool, String>) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if answer == Ok(true) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("not within {PATIENCE:?}: {what}: {answer:?}"));
        }
        sleep(LOOK_AGAIN).await;
    }
}
