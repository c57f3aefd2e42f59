//! What is done to the nodes. The schedule depends on the seed alone.

use std::process::Command;
use std::sync::PoisonError;
use std::time::Duration;

use leasehold::processes::Processes;
use tokio::time::sleep;

use crate::history::Op;
use crate::random::Random;
use crate::workers::Stage;

/// A kind of fault.
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
}

/// One fault of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub fault: Fault,
    pub node: usize,
    pub lasts: Duration,
    /// Calm afterwards.
    pub pause: Duration,
}

/// The faults of a run, in order.
pub fn schedule(faults: &[Fault], seed: u64, nodes: usize, time_limit: Duration) -> Vec<Planned> {
    let mut random = Random::new(seed, u64::MAX);
    let (mut planned, mut total) = (Vec::new(), Duration::ZERO);
    while total < time_limit && !faults.is_empty() {
        let next = Planned {
            fault: faults[random.below(faults.len() as u64) as usize],
            node: random.below(nodes as u64) as usize,
            lasts: Duration::from_millis(300 + random.below(3_000)),
            pause: Duration::from_millis(500 + random.below(2_500)),
        };
        total += next.lasts + next.pause;
        planned.push(next);
    }
    planned
}

/// Carries a schedule out; afterwards every node runs.
///
/// # Errors
/// When a process cannot be started again: the node refuses its own data.
pub async fn inject(stage: &Stage, processes: &mut Processes, schedule: &[Planned]) -> Result<(), String> {
    for planned in schedule {
        let what = format!("{:?} of node {} for {:?}", planned.fault, planned.node + 1, planned.lasts);
        stage.recorder.add(Op::Fault { at_us: stage.recorder.now_us(), what });
        apply(stage, processes, planned).await?;
        let endpoints = processes.endpoints();
        *stage.endpoints.write().unwrap_or_else(PoisonError::into_inner) = endpoints;
        sleep(planned.pause).await;
    }
    Ok(())
}

async fn apply(stage: &Stage, processes: &mut Processes, planned: &Planned) -> Result<(), String> {
    let failed = |error: leasehold::processes::ProcessError| error.to_string();
    match planned.fault {
        Fault::Kill => {
            processes.kill(planned.node).await.map_err(failed)?;
            sleep(planned.lasts).await;
            processes.restart(planned.node).await.map_err(failed)
        }
        Fault::Pause => {
            signal(processes, planned.node, "STOP")?;
            sleep(planned.lasts).await;
            signal(processes, planned.node, "CONT")
        }
        Fault::PauseKill => {
            signal(processes, planned.node, "STOP")?;
            sleep(planned.lasts).await;
            processes.kill(planned.node).await.map_err(failed)?;
            processes.restart(planned.node).await.map_err(failed)
        }
        Fault::KillAll => {
            for node in 0..processes.nodes.len() {
                processes.kill(node).await.map_err(failed)?;
            }
            for node in 0..processes.nodes.len() {
                processes.restart(node).await.map_err(failed)?;
            }
            Ok(())
        }
        Fault::Transfer => {
            if let Ok(client) = stage.client() {
                let partition = (planned.lasts.as_millis() % 4) as u32;
                // It may be the leader already, or away.
                let _ = client.transfer_leader(partition, &processes.nodes[planned.node].name).await;
            }
            Ok(())
        }
    }
}

fn signal(processes: &Processes, node: usize, signal: &str) -> Result<(), String> {
    let pid = processes.pid(node).ok_or_else(|| format!("node {} does not run", node + 1))?;
    let sent = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status();
    match sent {
        Ok(status) if status.success() => Ok(()),
        _ => Err(format!("cannot send {signal} to {pid}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_schedule() {
        let faults = [Fault::Kill, Fault::Pause, Fault::PauseKill];
        let plan = |seed| schedule(&faults, seed, 3, Duration::from_secs(60));
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        assert!(plan(7).len() > 10);
    }
}
