//! Faults of the nodes' processes, through signals, and of leadership.

use std::process::Command;
use std::sync::PoisonError;
use std::time::Duration;

use leasehold::processes::{ProcessError, Processes};
use tokio::time::sleep;

use super::Scene;
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
    /// A node gets a fifth of the processor's time, in slices.
    Starve,
}

pub const LASTS_MS: [u64; 2] = [300, 3_300];
pub const CALM_MS: [u64; 2] = [500, 3_000];
const STARVE_STOPPED: Duration = Duration::from_millis(80);
const STARVE_RUNNING: Duration = Duration::from_millis(20);

fn failed(error: ProcessError) -> String {
    error.to_string()
}

pub async fn begin(scene: &mut Scene<'_>, fault: Fault, planned: &Planned) -> Result<String, String> {
    let processes = &mut *scene.processes;
    match fault {
        Fault::Kill => processes.kill(planned.node).await.map_err(failed)?,
        Fault::Pause | Fault::PauseKill => signal(processes, planned.node, "STOP")?,
        Fault::KillAll => {
            for node in 0..processes.nodes.len() {
                processes.kill(node).await.map_err(failed)?;
            }
        }
        Fault::Transfer => transfer(scene, planned).await,
        Fault::RollingRestart => {
            for step in 0..processes.nodes.len() {
                let node = (planned.node + step) % scene.processes.nodes.len();
                scene.processes.stop_node(node).await.map_err(failed)?;
                restart(scene, node).await?;
            }
        }
        Fault::Starve => {
            let pid = pid(processes, planned.node)?;
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
            scene.processes.kill(planned.node).await.map_err(failed)?;
            restart(scene, planned.node).await
        }
        Fault::KillAll => {
            for node in 0..scene.processes.nodes.len() {
                restart(scene, node).await?;
            }
            Ok(())
        }
        Fault::Transfer | Fault::RollingRestart => Ok(()),
        Fault::Starve => {
            scene.end_repeating(planned).await;
            signal(scene.processes, planned.node, "CONT")
        }
    }
}

/// Starts a node again; clients learn where it is.
pub async fn restart(scene: &mut Scene<'_>, node: usize) -> Result<(), String> {
    scene.processes.restart(node).await.map_err(failed)?;
    *scene.stage.endpoints.write().unwrap_or_else(PoisonError::into_inner) = scene.processes.endpoints();
    Ok(())
}

async fn transfer(scene: &Scene<'_>, planned: &Planned) {
    let partition = scene.stage.partitions[planned.choice as usize % scene.stage.partitions.len()];
    if let Ok(client) = scene.stage.client() {
        // It may be the leader already, or away.
        let _ = client.transfer_leader(partition, &scene.processes.nodes[planned.node].name).await;
    }
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
