//! Faults of disks: power that is lost with what was not synced, and syncs and writes that are late or fail.

use leasehold::processes::ProcessError;

use leasehold_histories::random::Random;

use super::Scene;
use super::process::{kill, pause, restart, signal};
use super::schedule::Planned;
use crate::machine::Machines;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// A node loses power.
    PowerLoss,
    /// Two of three nodes lose power, one right after the other.
    PowerLossMajority,
    /// All nodes lose power, one right after the other.
    PowerLossAll,
    /// One node is stopped while the two others go on; of these one loses power and one is stopped; the first and the one that lost
    /// power go on as a majority; at last the third wakes up.
    PausePower,
    /// Every sync of a node takes 1 to 6 s longer.
    SyncStall,
    /// A sync of a node fails: its log is closed for good, and the node has to be started again.
    SyncError,
    /// A write of a node fails once: as after a sync that failed.
    WriteError,
    /// Up to eight reads of a node fail while it starts: it starts all the same, or refuses and has to be started again.
    ReadError,
    /// The disk of a node is full: it has to be started again when there is room.
    DiskFull,
}

pub const LASTS_MS: [u64; 2] = [1_000, 5_000];

fn failed(error: ProcessError) -> String {
    error.to_string()
}

pub async fn begin(scene: &mut Scene<'_>, fault: Fault, planned: &Planned) -> Result<String, String> {
    let machines = machines(scene)?;
    let control = &machines.of(planned.node).control;
    let mut what = format!("node {} for {:?}", planned.node + 1, planned.lasts);
    match fault {
        Fault::PowerLoss | Fault::PowerLossMajority | Fault::PowerLossAll => {
            for node in losing(fault, planned, scene.processes.nodes.len()) {
                what = format!("{what}; {}", lose_power(scene, node, planned).await?);
            }
        }
        Fault::PausePower => {
            pause(scene, planned.node)?;
            tokio::time::sleep(planned.lasts / 3).await;
            let [loser, holder] = others(planned.node);
            what = format!("{what}; {}", lose_power(scene, loser, planned).await?);
            pause(scene, holder)?;
            signal(scene.processes, planned.node, "CONT")?;
            restart(scene, loser).await?;
        }
        Fault::SyncStall => {
            let stall_ms = 1_000 + (planned.choice % 5_000) as u32;
            control.stall_syncs(stall_ms).map_err(|error| error.to_string())?;
            what = format!("{what}, {stall_ms} ms each");
        }
        Fault::WriteError => control.fail_writes(1).map_err(|error| error.to_string())?,
        Fault::ReadError => {
            kill(scene, planned.node).await?;
            let count = 1 + (planned.choice % 8) as u32;
            control.fail_reads(count).map_err(|error| error.to_string())?;
            let answer = match restart(scene, planned.node).await {
                Ok(()) => "starts",
                Err(error) if error.contains("os error 5") => "refuses to start",
                Err(error) => return Err(error),
            };
            what = format!("{what}: {count} errors: {answer}");
        }
        Fault::SyncError => control.fail_syncs(1).map_err(|error| error.to_string())?,
        Fault::DiskFull => control.fill_disk(true).map_err(|error| error.to_string())?,
    }
    Ok(what)
}

pub async fn end(scene: &mut Scene<'_>, fault: Fault, planned: &Planned) -> Result<(), String> {
    let machines = machines(scene)?;
    let control = &machines.of(planned.node).control;
    match fault {
        Fault::PowerLoss | Fault::PowerLossMajority | Fault::PowerLossAll => {
            for node in losing(fault, planned, scene.processes.nodes.len()) {
                restart(scene, node).await?;
            }
        }
        Fault::PausePower => {
            let [_, holder] = others(planned.node);
            signal(scene.processes, holder, "CONT")?;
        }
        Fault::SyncStall => control.stall_syncs(0).map_err(|error| error.to_string())?,
        Fault::ReadError => {
            control.fail_reads(0).map_err(|error| error.to_string())?;
            if !scene.processes.is_running(planned.node).map_err(|error| error.to_string())? {
                restart(scene, planned.node).await?;
            }
        }
        Fault::SyncError | Fault::WriteError | Fault::DiskFull => {
            control.fail_syncs(0).map_err(|error| error.to_string())?;
            control.fail_writes(0).map_err(|error| error.to_string())?;
            control.fill_disk(false).map_err(|error| error.to_string())?;
            // It has ended by itself, unless it had nothing to write.
            scene.processes.kill(planned.node).await.map_err(failed)?;
            restart(scene, planned.node).await?;
        }
    }
    Ok(())
}

fn machines<'a>(scene: &Scene<'a>) -> Result<&'a Machines, String> {
    scene.machines.ok_or_else(|| "there are no machines to disturb".to_owned())
}

/// The nodes that lose power.
fn losing(fault: Fault, planned: &Planned, nodes: usize) -> Vec<usize> {
    let count = match fault {
        Fault::PowerLossAll => nodes,
        Fault::PowerLossMajority => nodes / 2 + 1,
        _ => 1,
    };
    (0..count).map(|step| (planned.node + step) % nodes).collect()
}

fn others(node: usize) -> [usize; 2] {
    [(node + 1) % 3, (node + 2) % 3]
}

async fn lose_power(scene: &mut Scene<'_>, node: usize, planned: &Planned) -> Result<String, String> {
    kill(scene, node).await?;
    let loss = machines(scene)?.of(node).lose_power(&mut Random::new(planned.choice, node as u64))?;
    scene.lost.changes += loss.changes;
    scene.lost.names += loss.names;
    Ok(format!("node {} lost {} writes and {} names", node + 1, loss.changes, loss.names))
}
