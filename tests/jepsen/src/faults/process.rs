//! Faults of the nodes' processes, through signals, and of leadership.

use std::process::Command;
use std::sync::PoisonError;
use std::time::Duration;

use leasehold::processes::{Build, ProcessError, Processes};
use leasehold_client::Client;
use leasehold_client::v1::StatusResponse;
use tokio::time::sleep;

use super::Scene;
use super::data::until;
use super::schedule::Planned;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// SIGKILL, and a start from what the disk holds.
    Kill,
    /// SIGSTOP for a while: the process is silent, its connections stay open, and it wakes up with its old beliefs.
    Pause,
    /// SIGSTOP, and SIGKILL while it is stopped.
    PauseKill,
    /// SIGKILL of all nodes at once.
    KillAll,
    /// A leader hands over.
    Transfer,
    /// Each node in turn stops in good order and starts again, as an upgrade does it.
    RollingRestart,
    /// One more node becomes the later build, or, while the others are not, goes back to the earlier one.
    Upgrade,
    /// A node gets a fifth of the processor's time, in slices.
    Starve,
}

pub const LASTS_MS: [u64; 2] = [300, 3_300];
pub const CALM_MS: [u64; 2] = [500, 3_000];
/// What a cluster of the first build does.
const FIRST_VERSION: u32 = 1;
/// One upgrade in so many is taken back.
const GOES_BACK: u64 = 4;
const STARVE_STOPPED: Duration = Duration::from_millis(80);
const STARVE_RUNNING: Duration = Duration::from_millis(20);

fn failed(error: ProcessError) -> String {
    error.to_string()
}

pub async fn begin(scene: &mut Scene<'_>, fault: Fault, planned: &Planned) -> Result<String, String> {
    let nodes = scene.processes.nodes.len();
    match fault {
        Fault::Kill => kill(scene, planned.node).await?,
        Fault::Pause | Fault::PauseKill => pause(scene, planned.node)?,
        Fault::KillAll => {
            for node in 0..nodes {
                kill(scene, node).await?;
            }
        }
        Fault::Transfer => return transfer(scene, planned).await,
        Fault::RollingRestart => {
            for step in 0..nodes {
                let node = (planned.node + step) % nodes;
                assert_running(scene, node)?;
                scene.processes.stop_node(node).await.map_err(failed)?;
                restart(scene, node).await?;
            }
        }
        Fault::Upgrade => return upgrade(scene, planned).await,
        Fault::Starve => {
            assert_running(scene, planned.node)?;
            let pid = pid(scene.processes, planned.node)?;
            scene.repeat(planned, starve(pid));
        }
    }
    Ok(format!("node {} for {:?}", planned.node + 1, planned.lasts))
}

pub async fn end(scene: &mut Scene<'_>, fault: Fault, planned: &Planned) -> Result<(), String> {
    match fault {
        Fault::Kill => restart(scene, planned.node).await,
        Fault::Pause => signal(scene.processes, planned.node, "CONT"),
        Fault::PauseKill => {
            kill(scene, planned.node).await?;
            restart(scene, planned.node).await
        }
        Fault::KillAll => {
            for node in 0..scene.processes.nodes.len() {
                restart(scene, node).await?;
            }
            Ok(())
        }
        Fault::Transfer | Fault::RollingRestart | Fault::Upgrade => Ok(()),
        Fault::Starve => {
            scene.end_repeating(planned).await;
            signal(scene.processes, planned.node, "CONT")
        }
    }
}

async fn upgrade(scene: &mut Scene<'_>, planned: &Planned) -> Result<String, String> {
    let nodes = scene.processes.nodes.len();
    let is_later = |scene: &Scene<'_>, node: usize| scene.processes.nodes[node].build == scene.builds.later;
    let later = (0..nodes).filter(|node| is_later(scene, *node)).count();
    let turn = |at: usize| (planned.node + at) % nodes;
    // When it is the last, the cluster may have its new version a moment later.
    let goes_back = (1..nodes).contains(&later) && planned.choice.is_multiple_of(GOES_BACK);
    let Some(node) = (0..nodes).map(turn).find(|node| is_later(scene, *node) == goes_back) else {
        return Ok("all are upgraded".to_owned());
    };
    let build = match &scene.builds.earlier {
        Some(earlier) if goes_back => earlier.clone(),
        _ => scene.builds.later.clone(),
    };
    // In good order, or not.
    assert_running(scene, node)?;
    if planned.choice.is_multiple_of(2) {
        scene.processes.stop_node(node).await.map_err(failed)?;
    } else {
        scene.processes.kill(node).await.map_err(failed)?;
    }
    restart_as(scene, node, &build).await?;
    Ok(format!("node {} {}", node + 1, if goes_back { "goes back" } else { "is upgraded" }))
}

/// Upgrades who is left, and waits until the cluster does what the later build can. Returns its version then, if there is an upgrade.
///
/// # Errors
/// When a node does not come back, or the version stays what it was.
pub async fn finish_upgrade(scene: &mut Scene<'_>) -> Result<Option<u64>, String> {
    if scene.builds.earlier.is_none() {
        return Ok(None);
    }
    let later = scene.builds.later.clone();
    for node in 0..scene.processes.nodes.len() {
        if scene.processes.nodes[node].build != later {
            assert_running(scene, node)?;
            scene.processes.stop_node(node).await.map_err(failed)?;
            restart_as(scene, node, &later).await?;
        }
    }
    let client = scene.stage.client().map_err(|error| error.to_string())?;
    let version = async || {
        let status = client.cluster_status().await.map_err(|error| error.to_string())?;
        Ok::<_, String>(status.version)
    };
    until("the cluster has a later version", async || Ok(version().await? > FIRST_VERSION)).await?;
    Ok(Some(version().await?.into()))
}

async fn restart_as(scene: &mut Scene<'_>, node: usize, build: &Build) -> Result<(), String> {
    scene.processes.restart_as(node, build).await.map_err(failed)?;
    *scene.stage.endpoints.write().unwrap_or_else(PoisonError::into_inner) = scene.processes.endpoints();
    Ok(())
}

/// Starts a node again; clients learn where it is.
pub async fn restart(scene: &mut Scene<'_>, node: usize) -> Result<(), String> {
    scene.processes.restart(node).await.map_err(failed)?;
    *scene.stage.endpoints.write().unwrap_or_else(PoisonError::into_inner) = scene.processes.endpoints();
    Ok(())
}

/// Nobody but the harness ends a node, unless a fault in force says otherwise.
///
/// # Errors
/// When the node ended by itself.
pub fn assert_running(scene: &mut Scene<'_>, node: usize) -> Result<(), String> {
    if scene.processes.is_running(node).map_err(failed)? {
        return Ok(());
    }
    Err(format!("node {} ended by itself: see {}", node + 1, scene.processes.log_path(node).display()))
}

/// Kills a node that runs.
pub async fn kill(scene: &mut Scene<'_>, node: usize) -> Result<(), String> {
    assert_running(scene, node)?;
    scene.processes.kill(node).await.map_err(failed)
}

/// Stops a node that runs, until it is told to go on.
pub fn pause(scene: &mut Scene<'_>, node: usize) -> Result<(), String> {
    assert_running(scene, node)?;
    signal(scene.processes, node, "STOP")
}

/// Has the leader of a partition hand over to another node. Under another fault that may not be possible.
async fn transfer(scene: &Scene<'_>, planned: &Planned) -> Result<String, String> {
    let partition = scene.stage.partitions[planned.choice as usize % scene.stage.partitions.len()];
    let client = scene.stage.client().map_err(|error| error.to_string())?;
    let what = format!("partition {partition}");
    if scene.in_force == 0 {
        let asked = format!("{what} gets another leader");
        until(&asked, async || hand_over(&client, partition, planned.node).await).await?;
        return Ok(what);
    }
    match hand_over(&client, partition, planned.node).await {
        Ok(_) => Ok(what),
        Err(error) => Ok(format!("{what}, in vain under another fault: {error}")),
    }
}

async fn hand_over(client: &Client, partition: u32, choice: usize) -> Result<bool, String> {
    let status = client.cluster_status().await.map_err(|error| error.to_string())?;
    let target = follower(&status, partition, choice).ok_or("no leader is known")?;
    client.transfer_leader(partition, &target).await.map_err(|error| error.to_string())?;
    Ok(true)
}

/// One of the nodes that follow the leader of a partition; `None` while there is no leader.
fn follower(status: &StatusResponse, partition: u32, choice: usize) -> Option<String> {
    let of = status.partitions.iter().find(|of| of.partition == partition && of.leader != 0)?;
    let followers = of.replicas.iter().filter(|replica| **replica != of.leader).collect::<Vec<_>>();
    let chosen = **followers.get(choice % followers.len().max(1))?;
    status.nodes.iter().find(|node| node.id == chosen).map(|node| node.name.clone())
}

async fn starve(pid: u32) {
    for (wanted, pause) in [("STOP", STARVE_STOPPED), ("CONT", STARVE_RUNNING)].into_iter().cycle() {
        if send_signal(pid, wanted).is_err() {
            return;
        }
        sleep(pause).await;
    }
}

fn pid(processes: &Processes, node: usize) -> Result<u32, String> {
    processes.pid(node).ok_or_else(|| format!("node {} does not run", node + 1))
}

pub fn signal(processes: &Processes, node: usize, signal: &str) -> Result<(), String> {
    send_signal(pid(processes, node)?, signal)
}

fn send_signal(pid: u32, signal: &str) -> Result<(), String> {
    let sent = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status();
    match sent {
        Ok(status) if status.success() => Ok(()),
        _ => Err(format!("cannot send {signal} to {pid}")),
    }
}

#[cfg(test)]
mod tests {
    use leasehold_client::v1::{NodeStatus, PartitionStatus};

    use super::*;

    #[test]
    fn who_gets_the_leadership_does_not_have_it() {
        let node = |id: u64| NodeStatus { id, name: format!("n{id}"), ..NodeStatus::default() };
        let led_by = |leader: u64| StatusResponse {
            nodes: (1..=3).map(node).collect(),
            partitions: vec![PartitionStatus {
                partition: 7,
                leader,
                replicas: vec![1, 2, 3],
                ..PartitionStatus::default()
            }],
            ..StatusResponse::default()
        };
        for choice in 0..3 {
            assert!(follower(&led_by(2), 7, choice).is_some_and(|name| name != "n2"));
        }
        assert_eq!(follower(&led_by(0), 7, 0), None);
        assert_eq!(follower(&led_by(2), 8, 0), None);
    }
}
