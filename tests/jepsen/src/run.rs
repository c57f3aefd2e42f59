//! One run: a cluster, workers, faults, healing, draining, and the verdict.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use leasehold::processes::Processes;
use leasehold_client::v1::{QueueCounters, QueueSettings};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::checkers::{self, Verdict};
use crate::faults::{Fault, inject, schedule};
use crate::history::{Op, Recorder};
use crate::random::Random;
use crate::workers::{LEASE, QUEUE, Stage, consumer, sender};

#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["kill", "pause", "pause-kill", "transfer"])]
    faults: Vec<Fault>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds of faults.
    #[arg(long, default_value_t = 30)]
    time_limit: u64,
    #[arg(long, default_value_t = 3)]
    senders: u64,
    #[arg(long, default_value_t = 5)]
    consumers: u64,
    #[arg(long, default_value_t = 4)]
    partitions: u32,
    /// The `leasehold` program; without it, the one beside this program.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Where the history is kept; without it, only that of a violation is, in the temporary folder.
    #[arg(long)]
    history: Option<PathBuf>,
}

const DRAIN_PATIENCE: Duration = Duration::from_secs(120);

/// Runs a plan.
///
/// # Errors
/// When the cluster cannot be brought up, or a node does not come back.
pub async fn run(plan: &Plan) -> Result<Verdict, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let program = match &plan.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("leasehold"),
    };
    let mut processes =
        Processes::start(&program, dir.path(), plan.partitions).await.map_err(|error| error.to_string())?;
    let stage = Arc::new(Stage {
        recorder: Recorder::new(),
        endpoints: RwLock::new(processes.endpoints()),
        rows: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        is_drained: AtomicBool::new(false),
    });
    let client = processes.client().map_err(|error| error.to_string())?;
    let settings = QueueSettings { lease_ms: Some(LEASE.as_millis() as u64), ..QueueSettings::default() };
    client.create_queue(QUEUE, settings, plan.partitions).await.map_err(|error| error.to_string())?;
    let mut workers = JoinSet::new();
    for number in 0..plan.senders {
        workers.spawn(sender(stage.clone(), Random::new(plan.seed, number)));
    }
    for number in 0..plan.consumers {
        workers.spawn(consumer(stage.clone(), Random::new(plan.seed, 1_000 + number)));
    }
    let planned =
        schedule(&plan.faults, plan.seed, processes.nodes.len(), Duration::from_secs(plan.time_limit));
    inject(&stage, &mut processes, &planned).await?;
    stage.is_over.store(true, Ordering::Relaxed);
    let messages = drain(&stage).await?;
    stage.is_drained.store(true, Ordering::Relaxed);
    while workers.join_next().await.is_some() {}
    stage.recorder.add(Op::Remaining { messages });
    let history = stage.recorder.take();
    let mut verdict = checkers::check(&history);
    verdict.seed = Some(plan.seed);
    verdict.faults = planned.len();
    keep(plan, &history, &mut verdict, dir)?;
    Ok(verdict)
}

/// Waits until everything has been worked off; returns what is left when that takes too long.
async fn drain(stage: &Stage) -> Result<u64, String> {
    let client = stage.client().map_err(|error| error.to_string())?;
    let held = |counters: QueueCounters| counters.ready + counters.leased + counters.delayed + counters.dead;
    let end = Instant::now() + DRAIN_PATIENCE;
    let mut empty_since = None;
    loop {
        let described =
            client.describe_queue(QUEUE).await.ok().and_then(|described| described.counters).map(held);
        match described {
            // A send whose client gave up may still be on its way.
            Some(0) if empty_since.is_some_and(|since: Instant| since.elapsed() > LEASE) => return Ok(0),
            Some(0) => drop(empty_since.get_or_insert_with(Instant::now)),
            Some(left) if Instant::now() > end => return Ok(left),
            None if Instant::now() > end => return Err("the healed cluster does not answer".to_owned()),
            _ => empty_since = None,
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn keep(
    plan: &Plan,
    history: &crate::history::History,
    verdict: &mut Verdict,
    dir: tempfile::TempDir,
) -> Result<(), String> {
    let path = match &plan.history {
        Some(path) => path.clone(),
        None if verdict.holds() => return Ok(()),
        None => std::env::temp_dir().join(format!("leasehold-jepsen-{}.jsonl", plan.seed)),
    };
    history.save(&path).map_err(|error| error.to_string())?;
    verdict.history = Some(path.display().to_string());
    if !verdict.holds() {
        let faults =
            plan.faults.iter().map(|fault| format!("{fault:?}").to_lowercase()).collect::<Vec<_>>().join(",");
        let faults = faults.replace("pausekill", "pause-kill").replace("killall", "kill-all");
        let (seed, limit) = (plan.seed, plan.time_limit);
        verdict.replay =
            Some(format!("leasehold-jepsen run --faults {faults} --seed {seed} --time-limit {limit}"));
        verdict.data = Some(dir.keep().display().to_string());
    }
    Ok(())
}
