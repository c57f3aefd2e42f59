//! One run: a cluster, workers, faults, healing, draining, and the verdict.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use leasehold::processes::{Build, NODES, Place, Processes};
use leasehold::replicas::{Comparison, compare};
use leasehold_client::v1::QueueCounters;
use leasehold_histories::checkers::{self, Verdict, Violations, progress};
use leasehold_histories::history::{History, Op, Recorder};
use leasehold_histories::random::Random;
use leasehold_histories::workload::{CONSUMERS, LEASE, PRODUCERS, Workload};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::faults::{Builds, Fault, Overlap, Planned, Scene, finish_upgrade, inject, schedule};
use crate::machine::{Loss, Machines};
use crate::network::{self, Network};
use crate::workers::{
    REPEATED_QUEUE, Stage, consumer, lessee, list_queues, owner, read_dead_letters, repeater, sender, streams,
};
use crate::workload::{Bodies, QUEUE, queues, settings};

#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    #[arg(long, value_enum, default_value = "queue")]
    workload: Workload,
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["kill", "pause", "pause-kill", "transfer"])]
    faults: Vec<Fault>,
    /// Lets two faults be in force at a time, such as a kill during a partition.
    #[arg(long)]
    overlap: bool,
    /// What nodes and clients talk over; faults of the network need namespaces.
    #[arg(long, value_enum, default_value = "auto")]
    network: network::Kind,
    /// Lets the disks of all nodes say that a sync is done without doing it: the checkers have to find what that loses.
    #[arg(long)]
    lie_about_syncs: bool,
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
    /// Each has a replica of every partition.
    #[arg(long, default_value_t = NODES, value_parser = nodes)]
    nodes: usize,
    /// The `leasehold` program; without it, the one beside this program.
    #[arg(long)]
    program: Option<PathBuf>,
    /// The program of an earlier build, from which `upgrade` comes; without it, the same one, which is told to do what version 1 does.
    #[arg(long)]
    earlier: Option<PathBuf>,
    /// Where the history is kept; without it, only that of a violation is, in the temporary folder.
    #[arg(long)]
    history: Option<PathBuf>,
    /// Keeps the data folders and the logs of the nodes also when nothing was violated.
    #[arg(long)]
    keep: bool,
}

/// How many nodes a cluster can have here.
fn nodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(nodes @ (3 | 5)) => Ok(nodes),
        _ => Err("it can be 3 or 5".to_owned()),
    }
}

const DRAIN_PATIENCE: Duration = Duration::from_secs(120);
const QUIET_PATIENCE: Duration = Duration::from_secs(60);
const OWNERS: u64 = 3;
/// The smallest that can be set.
const SMALL_CACHE: &str = "limits.cache_bytes=1MiB";
/// What the first build does.
const FIRST_VERSION: &str = "version_max=1";

/// Runs a plan. Call it before there are threads: they would not be in the network of the clients.
///
/// # Errors
/// When the cluster cannot be brought up, or a node does not come back.
pub fn run(plan: &Plan) -> Result<Verdict, String> {
    let is_needed = plan.faults.iter().any(|fault| fault.is_of_network());
    let network = match plan.network {
        network::Kind::Auto if !is_needed => None,
        kind => Network::make(kind, plan.nodes, plan.seed)?,
    };
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(run_over(plan, network.as_ref()))
}

async fn run_over(plan: &Plan, network: Option<&Network>) -> Result<Verdict, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    match run_in(plan, dir.path(), network).await {
        Ok((history, mut verdict)) => {
            keep(plan, &history, &mut verdict, dir)?;
            Ok(verdict)
        }
        Err(error) => Err(format!("{error}; see {}; repeat: {}", dir.keep().display(), plan.replay())),
    }
}

async fn run_in(plan: &Plan, dir: &Path, network: Option<&Network>) -> Result<(History, Verdict), String> {
    let machines = plan.machines(dir)?;
    let builds = plan.builds()?;
    let mut processes = start_nodes(plan, &builds, dir, network, machines.as_ref()).await?;
    let stage = Arc::new(set_up(plan, &processes).await?);
    // Not before: a cluster whose founding is lost does not come back at all.
    if let Some(machines) = machines.as_ref().filter(|_| plan.lie_about_syncs) {
        machines.lie_about_syncs().map_err(|error| error.to_string())?;
    }
    let mut workers = start_workers(plan, &stage);
    let (planned, skipped) = plan.schedule(processes.nodes.len(), network.is_some(), machines.is_some());
    let mut scene = Scene {
        stage: &stage,
        processes: &mut processes,
        builds: &builds,
        network,
        machines: machines.as_ref(),
        repeated: BTreeMap::new(),
        damaged: BTreeMap::new(),
        noticed: 0,
        full_before: 0,
        out_of_memory: 0,
        lost: Loss::default(),
        in_force: 0,
    };
    inject(&mut scene, &planned, Duration::from_secs(plan.time_limit)).await?;
    let version = finish_upgrade(&mut scene).await?;
    let (noticed, out_of_memory, lost) = (scene.noticed, scene.out_of_memory, scene.lost);
    await_progress(&stage).await;
    stage.is_over.store(true, Ordering::Relaxed);
    drain(&stage).await?;
    stage.is_drained.store(true, Ordering::Relaxed);
    while let Some(ended) = workers.join_next().await {
        ended.map_err(|error| format!("a worker did not end: {error}"))?;
    }
    for queue in queues(plan.workload).dead {
        read_dead_letters(&stage, queue, QUIET_PATIENCE).await.map_err(|error| error.to_string())?;
    }
    list_queues(&stage).await.map_err(|error| format!("queues cannot be listed: {error}"))?;
    compare_replicas(&stage).await.map_err(|error| format!("replicas cannot be compared: {error}"))?;
    let history = stage.recorder.take();
    let mut verdict = checkers::check(&history);
    verdict.seed = Some(plan.seed);
    verdict.faults = planned.len();
    verdict.skipped = skipped;
    verdict.counts.extend(network.map(Network::counts).into_iter().flatten());
    if plan.faults.iter().any(|fault| fault.is_of_reads()) {
        verdict.counts.insert("damage_noticed", noticed);
    }
    if plan.workload == Workload::Streams {
        let endless = std::mem::take(&mut *stage.endless.lock().unwrap_or_else(PoisonError::into_inner));
        verdict.violations.insert("no end", endless);
    }
    verdict.counts.extend(version.map(|version| ("version", version)));
    verdict.counts.insert("refused_for_length", stage.full.load(Ordering::Relaxed));
    verdict.counts.insert("out_of_memory", out_of_memory);
    if machines.is_some() {
        verdict.counts.insert("lost_writes", lost.changes as u64);
        verdict.counts.insert("lost_names", lost.names as u64);
    }
    if !plan.faults.iter().any(|fault| fault.is_of_memory()) {
        verdict.violations.insert("panic", panics_of_all(&processes)?);
    }
    Ok((history, verdict))
}

/// What the nodes said of panics, in all their lives.
fn panics_of_all(processes: &Processes) -> Result<Violations, String> {
    let mut found = Violations::new();
    for (at, node) in processes.nodes.iter().enumerate() {
        let words = std::fs::read(processes.log_path(at)).map_err(|error| error.to_string())?;
        found.extend(panics(&node.name, &String::from_utf8_lossy(&words)));
    }
    Ok(found)
}

fn panics(name: &str, words: &str) -> Violations {
    let said = words.lines().filter(|line| line.contains("panicked at"));
    said.map(|line| format!("{name}: {line}")).collect()
}

impl Plan {
    /// The machines of the nodes, if a fault needs them: what they write down costs time.
    fn machines(&self, dir: &Path) -> Result<Option<Machines>, String> {
        if !self.lie_about_syncs && !self.faults.iter().any(|fault| fault.is_of_machine()) {
            return Ok(None);
        }
        Machines::make(dir, self.nodes)
    }

    /// What nodes are started as, first and later.
    fn builds(&self) -> Result<Builds, String> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("leasehold"),
        };
        let settings: &[&str] = match self.bodies() {
            Bodies::Short => &[],
            Bodies::Long => &[SMALL_CACHE],
        };
        let earlier = || match &self.earlier {
            Some(earlier) => Build::new(earlier, settings),
            None => Build::new(&program, &[settings, &[FIRST_VERSION]].concat()),
        };
        let is_upgraded = self.faults.iter().any(|fault| fault.is_of_builds());
        Ok(Builds { earlier: is_upgraded.then(earlier), later: Build::new(&program, settings) })
    }

    /// Long, if a fault is about what is read from the disk while a node runs.
    fn bodies(&self) -> Bodies {
        let is_needed = self.faults.iter().any(|fault| fault.is_of_reads());
        if is_needed { Bodies::Long } else { Bodies::Short }
    }

    /// The faults of the run, and the names of those that are not possible here.
    fn schedule(&self, nodes: usize, has_network: bool, has_machines: bool) -> (Vec<Planned>, Vec<String>) {
        let is_possible = |fault: &Fault| {
            (has_network || !fault.is_of_network())
                && (has_machines || !fault.is_of_machine())
                && fault.is_possible_with(nodes)
        };
        let (possible, skipped): (Vec<_>, Vec<_>) = self.faults.iter().copied().partition(is_possible);
        let overlap = if self.overlap { Overlap::Two } else { Overlap::One };
        let planned = schedule(&possible, self.seed, nodes, Duration::from_secs(self.time_limit), overlap);
        (planned, skipped.into_iter().map(Fault::name).collect())
    }

    fn replay(&self) -> String {
        let faults = self.faults.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(",");
        let (seed, limit) = (self.seed, self.time_limit);
        let overlap = if self.overlap { " --overlap" } else { "" };
        let lie = if self.lie_about_syncs { " --lie-about-syncs" } else { "" };
        let workload = self.workload.name();
        let earlier = self.earlier.as_ref().map(|program| format!(" --earlier {}", program.display()));
        let earlier = earlier.unwrap_or_default();
        let nodes = if self.nodes == NODES { String::new() } else { format!(" --nodes {}", self.nodes) };
        format!(
            "leasehold-jepsen run --workload {workload} --faults {faults}{overlap}{lie}{earlier}{nodes} --seed {seed} --time-limit {limit}"
        )
    }
}

async fn start_nodes(
    plan: &Plan,
    builds: &Builds,
    dir: &Path,
    network: Option<&Network>,
    machines: Option<&Machines>,
) -> Result<Processes, String> {
    let on_loopback = || vec![Place::default(); plan.nodes];
    let mut places = network.map_or_else(on_loopback, Network::places);
    if let Some(machines) = machines {
        for (node, place) in places.iter_mut().enumerate() {
            *place = machines.place(node, std::mem::take(place));
        }
    }
    let first = builds.earlier.as_ref().unwrap_or(&builds.later);
    Processes::start_in(first, dir, plan.partitions, places).await.map_err(|error| error.to_string())
}

/// Makes the queue, and what all workers share.
async fn set_up(plan: &Plan, processes: &Processes) -> Result<Stage, String> {
    let client = processes.client().map_err(|error| error.to_string())?;
    for (queue, settings) in queues(plan.workload).made {
        let created = client.create_queue(queue, settings, plan.partitions).await;
        created.map_err(|error| error.to_string())?;
    }
    client
        .create_queue(REPEATED_QUEUE, settings(Workload::Queue), 1)
        .await
        .map_err(|error| error.to_string())?;
    let routes = client.routes(QUEUE).await.map_err(|error| error.to_string())?;
    let recorder = Recorder::default();
    recorder.add(Op::Began { workload: plan.workload });
    Ok(Stage {
        workload: plan.workload,
        bodies: plan.bodies(),
        recorder,
        endpoints: RwLock::new(processes.endpoints()),
        partitions: routes.shards.iter().map(|shard| shard.partition).collect(),
        rows: AtomicU64::new(0),
        full: AtomicU64::new(0),
        queues: Mutex::default(),
        endless: Mutex::default(),
        calls: tokio::sync::RwLock::default(),
        is_held_back: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
        is_drained: AtomicBool::new(false),
    })
}

fn start_workers(plan: &Plan, stage: &Arc<Stage>) -> JoinSet<()> {
    let mut workers = JoinSet::new();
    workers.spawn(repeater(stage.clone(), Random::new(plan.seed, 2_000)));
    if plan.workload == Workload::Streams {
        for number in 0..PRODUCERS {
            workers.spawn(streams::producer(stage.clone(), number, Random::new(plan.seed, number)));
        }
        for number in 0..CONSUMERS {
            workers.spawn(streams::consumer(stage.clone(), number, plan.seed));
        }
        return workers;
    }
    for number in 0..plan.senders {
        workers.spawn(sender(stage.clone(), Random::new(plan.seed, number)));
    }
    let consumers = match plan.workload {
        // They sleep on their messages most of the time: enough to take at once what is ready.
        Workload::Leases => plan.consumers * 4,
        _ => plan.consumers,
    };
    for number in 0..consumers {
        let random = Random::new(plan.seed, 1_000 + number);
        match plan.workload {
            Workload::Leases => workers.spawn(lessee(stage.clone(), random)),
            _ => workers.spawn(consumer(stage.clone(), random)),
        };
    }
    let owners = if plan.workload == Workload::Queues { OWNERS } else { 0 };
    for number in 0..owners {
        workers.spawn(owner(stage.clone(), number, Random::new(plan.seed, 3_000 + number)));
    }
    workers
}

/// Lets the senders go on until every partition has served them, or until the checker has its violation.
async fn await_progress(stage: &Stage) {
    let at_us = stage.recorder.now_us();
    stage.recorder.add(Op::Healed { at_us, partitions: stage.partitions.clone() });
    let end = Instant::now() + progress::BOUND;
    loop {
        let served = stage.recorder.look(|ops| progress::served_since(ops, at_us));
        if Instant::now() > end || stage.partitions.iter().all(|partition| served.contains_key(partition)) {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Messages and bytes.
type Held = (u64, u64);

/// Waits until everything has been worked off, and writes down what is left when that takes too long.
async fn drain(stage: &Stage) -> Result<(), String> {
    let client = stage.client().map_err(|error| error.to_string())?;
    let held = |counters: QueueCounters| {
        let messages = counters.ready + counters.leased + counters.delayed + counters.dead;
        (messages, counters.bytes)
    };
    let end = Instant::now() + DRAIN_PATIENCE;
    let mut empty_since = None;
    loop {
        let mut described: Option<Held> = Some((0, 0));
        for queue in queues(stage.workload).drained {
            let of = client.describe_queue(queue).await.ok().and_then(|of| of.counters).map(held);
            described = described.zip(of).map(|(all, of): (Held, Held)| (all.0 + of.0, all.1 + of.1));
        }
        match described {
            // A send whose client gave up may still be on its way.
            Some((messages, bytes))
                if Instant::now() > end
                    || empty_since.is_some_and(|since: Instant| since.elapsed() > LEASE && messages == 0) =>
            {
                stage.recorder.add(Op::Remaining { messages, bytes });
                return Ok(());
            }
            Some((0, _)) => drop(empty_since.get_or_insert_with(Instant::now)),
            None if Instant::now() > end => return Err("the healed cluster does not answer".to_owned()),
            _ => empty_since = None,
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// What the nodes hold when nothing happens any more.
async fn compare_replicas(stage: &Stage) -> Result<(), leasehold_client::Error> {
    let found = compare(&stage.clients_of_nodes(QUIET_PATIENCE)?, QUIET_PATIENCE).await?;
    let Comparison { equal, busy, diverged } = found;
    stage.recorder.add(Op::Replicas { equal: equal as u64, busy, diverged });
    Ok(())
}

fn keep(plan: &Plan, history: &History, verdict: &mut Verdict, dir: tempfile::TempDir) -> Result<(), String> {
    if plan.keep || !verdict.holds() {
        verdict.data = Some(dir.keep().display().to_string());
    }
    if !verdict.holds() {
        verdict.replay = Some(plan.replay());
    }
    let path = match &plan.history {
        Some(path) => path.clone(),
        None if verdict.holds() => return Ok(()),
        None => std::env::temp_dir().join(format!("leasehold-jepsen-{}.jsonl", plan.seed)),
    };
    history.save(&path).map_err(|error| error.to_string())?;
    verdict.history = Some(path.display().to_string());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_node_is_found_and_what_it_says_otherwise_is_not() {
        let panicked = "thread 'main' panicked at crates/node/src/node.rs:7:9:\nthe index is 3\n";
        assert_eq!(panics("n2", panicked).len(), 1);
        assert!(panics("n2", "ready\nno leader is known\n").is_empty());
    }
}
