//! The same workloads on Leasehold, NATS JetStream and RabbitMQ, each a cluster of real processes on loopback, side by side.
//!
//! ```text
//!  rounds × workloads × systems ─▶ a fresh cluster ─▶ logs in a journal ─▶ medians, spread, ratios ─▶ JSON, or Markdown with plots
//! ```
//!
//! Only one cluster runs at a time. Systems take turns at each workload and each round begins with another one, so that what
//! disturbs the machine for a while disturbs all of them. The loop knows neither systems nor workloads.

mod bodies;
mod build;
mod document;
mod echo;
#[cfg(test)]
mod fake;
mod figures;
mod floor;
mod journal;
mod latency;
mod machine;
mod metric;
mod plot;
mod report;
mod results;
mod system;
mod systems;
mod window;
mod workloads;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use document::Document;
use journal::{Conditions, Journal, Part, Skipped};
use machine::Machine;
use results::{Log, progress};
pub use system::Failure;
use system::Shape;
use systems::{Found, Name};
use workloads::{Plan, Workload};

/// What is compared, and where the results go.
#[derive(Debug, Clone, clap::Args)]
pub struct Comparison {
    /// Systems; one that is not there is left out, with the reason.
    #[arg(long, value_delimiter = ',', default_values_t = Name::ALL, value_enum)]
    systems: Vec<Name>,
    #[arg(long, value_delimiter = ',', default_values_t = Workload::ALL, value_enum)]
    workloads: Vec<Workload>,
    /// Rounds: in each, every system runs every workload.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// How long each case is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How long W7 is in the first run, on a system that did not fall behind in the 30 s that W7 is in each run.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pipeline_seconds: u64,
    /// Kills of a leader in W4, for each system, shared out over the runs.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    kills: u32,
    /// Over how many partitions a queue of Leasehold spreads in W1, W2, W3, W6 and W7.
    #[arg(long, default_value_t = Shape::USUAL.partitions, value_parser = clap::value_parser!(u32).range(1..=256))]
    partitions: u32,
    /// Keeps each run in this file when it is done. What it has already is not measured again, so a comparison that was cut short
    /// goes on, and its workloads can be measured one after the other, by calls that are otherwise the same.
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
    /// Where clusters keep their files and programs are brought to. It should be on the disk that is meant.
    #[arg(long, default_value = "target/tmp/compare")]
    work_dir: PathBuf,
    /// What else was going on, for readers of the report.
    #[arg(long, default_value = "")]
    note: String,
}

/// Tells again what a comparison kept.
#[derive(Debug, Clone, clap::Args)]
pub struct Report {
    /// What `compare --keep` wrote.
    file: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, clap::Args)]
struct Output {
    /// Prints one JSON document instead of Markdown.
    #[arg(long)]
    json: bool,
    /// Also writes Markdown to this file, and its plots into a folder beside it, of the same name.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

const FLOOR_TIME_MAX: Duration = Duration::from_secs(3);
/// A workload that takes longer on one cluster, beyond the time that it was given, is given up.
const WORKLOAD_TIME_MAX: Duration = Duration::from_secs(1_200);

/// A workload on a system that is still to be run.
#[derive(Debug, Clone, Copy)]
struct Turn<'a> {
    round: u32,
    workload: Workload,
    system: &'a Found,
}

/// Compares, and returns what is to be printed.
///
/// # Errors
/// When nothing can be compared, a file cannot be written or keeps what was measured otherwise. What fails in one system's run
/// is in the results.
pub async fn run(comparison: &Comparison) -> Result<String, Failure> {
    std::fs::create_dir_all(&comparison.work_dir)?;
    let conditions = conditions(comparison)?;
    let mut journal = match &comparison.keep {
        Some(path) => Journal::open(path, conditions)?,
        None => Journal::in_memory(conditions),
    };
    let (found, skipped) = find(comparison).await?;
    let systems = found.iter().map(Found::measured).collect::<Vec<_>>();
    journal.check(&systems)?;
    let turns = turns(comparison, &found, &journal);
    if !turns.is_empty() {
        let time = Duration::from_secs(comparison.seconds).min(FLOOR_TIME_MAX);
        let floor = floor::measure(&comparison.work_dir, time).await?;
        let (command, note) = (command(), comparison.note.clone());
        journal.begin_part(Part { command, note, systems, skipped, floor })?;
    }
    for (at, turn) in turns.iter().enumerate() {
        let Turn { round, workload, system } = turn;
        let what = format!("{}: {}", workload.key(), system.name.title());
        progress(&format!(
            "run {} of {}, {what} ({} of {})",
            round + 1,
            comparison.runs,
            at + 1,
            turns.len()
        ));
        let log = run_one(*turn, comparison).await;
        progress(&format!("{what}: it took {:.0} s", log.took_s));
        journal.keep(log)?;
    }
    comparison.output.tell(&journal.into_document())
}

/// Tells what was kept.
///
/// # Errors
/// When a file cannot be read or written.
pub fn tell_again(report: &Report) -> Result<String, Failure> {
    report.output.tell(&Journal::read(&report.file)?.into_document())
}

impl Output {
    fn tell(&self, document: &Document) -> Result<String, Failure> {
        if let Some(path) = &self.report {
            report::write(document, path)?;
        }
        Ok(if self.json { document.json().to_string() } else { report::markdown(document, None) })
    }
}

fn conditions(comparison: &Comparison) -> Result<Conditions, Failure> {
    Ok(Conditions {
        version: journal::VERSION,
        machine: Machine::here(&comparison.work_dir),
        harness: build::identity(&std::env::current_exe()?)?,
        runs: comparison.runs,
        seconds: comparison.seconds,
        pipeline_seconds: comparison.pipeline_seconds,
        kills: comparison.kills,
        partitions: comparison.partitions,
    })
}

async fn find(comparison: &Comparison) -> Result<(Vec<Found>, Vec<Skipped>), Failure> {
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    for name in &comparison.systems {
        match name.find(&comparison.work_dir).await {
            Ok(one) => found.push(one),
            Err(reason) => {
                progress(&format!("{} is left out: {reason}", name.title()));
                skipped.push(Skipped { name: *name, reason });
            }
        }
    }
    if found.is_empty() {
        let reasons = skipped.iter().map(|skipped| format!("{}: {}", skipped.name.key(), skipped.reason));
        return Err(Failure::new(format!(
            "none of the systems is there: {}",
            reasons.collect::<Vec<_>>().join("; ")
        )));
    }
    Ok((found, skipped))
}

/// In the order in which they are run: each round begins with another system.
fn turns<'a>(comparison: &Comparison, found: &'a [Found], journal: &Journal) -> Vec<Turn<'a>> {
    let mut turns = Vec::new();
    for round in 0..comparison.runs {
        let first = round as usize % found.len().max(1);
        for workload in &comparison.workloads {
            let order = found.iter().cycle().skip(first).take(found.len());
            turns.extend(order.map(|system| Turn { round, workload: *workload, system }));
        }
    }
    turns.retain(|turn| !journal.has(turn.workload, turn.round, turn.system.name));
    turns
}

async fn run_one(turn: Turn<'_>, comparison: &Comparison) -> Log {
    let mut log = Log::new(turn.workload, turn.round, turn.system.name);
    let plan = Plan::of(comparison, turn.round);
    let began = Instant::now();
    for shape in turn.workload.shapes(&plan) {
        if let Err(failure) = on_cluster(turn, shape, &comparison.work_dir, &plan, &mut log).await {
            let Shape { nodes, partitions } = shape;
            let reason = format!("{failure} (nodes: {nodes}, partitions: {partitions})");
            log.fail(turn.workload.title(), Failure::new(reason));
        }
    }
    log.took_s = began.elapsed().as_secs_f64();
    log
}

/// What was recorded before a failure stays.
async fn on_cluster(
    turn: Turn<'_>,
    shape: Shape,
    work_dir: &Path,
    plan: &Plan,
    log: &mut Log,
) -> Result<(), Failure> {
    let dir = tempfile::tempdir_in(work_dir)?;
    let mut system = turn.system.start(dir.path(), shape).await?;
    let time_max = WORKLOAD_TIME_MAX + plan.time_max();
    let late = |_| Err(Failure::new(format!("it was not done in {} s", time_max.as_secs())));
    let run = timeout(time_max, turn.workload.run(&mut *system, shape, plan, log));
    let ended = run.await.unwrap_or_else(late);
    system.stop().await?;
    ended
}

/// As it was typed, the program by its name.
fn command() -> String {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let name = Path::new(&program).file_name().map(|name| name.to_string_lossy().into_owned());
    let quoted = words.map(|word| if word.contains(' ') { format!("'{word}'") } else { word });
    std::iter::once(name.unwrap_or(program)).chain(quoted).collect::<Vec<_>>().join(" ")
}
