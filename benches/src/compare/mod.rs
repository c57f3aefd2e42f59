//! The same workloads on Leasehold, NATS JetStream and RabbitMQ, each a cluster of real processes on loopback, side by side.
//!
//! ```text
//!  rounds × workloads × systems ─▶ a fresh cluster ─▶ records ─▶ medians, spread, ratios ─▶ JSON, or Markdown with plots
//! ```
//!
//! Only one cluster runs at a time. Systems take turns at each workload and each round begins with another one, so that what
//! disturbs the machine for a while disturbs all of them. The loop knows neither systems nor workloads.

mod bodies;
mod document;
mod echo;
mod figures;
mod floor;
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
use std::time::Duration;

use tokio::time::timeout;

use document::Document;
use machine::Machine;
use results::{Log, Results, progress};
pub use system::Failure;
use systems::{Found, Name};
use workloads::{Audience, Plan, Repeat, Workload};

/// What is compared, and where the results go.
#[derive(Debug, Clone, clap::Args)]
pub struct Comparison {
    /// Systems; one that is not there is left out, with the reason.
    #[arg(long, value_delimiter = ',', default_values_t = Name::ALL, value_enum)]
    systems: Vec<Name>,
    #[arg(long, value_delimiter = ',', default_values_t = Workload::ALL, value_enum)]
    workloads: Vec<Workload>,
    /// Rounds: in each, every system runs every workload, but W5, W6 and W7 in the first alone.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// How long each case is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How long W7 is.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pipeline_seconds: u64,
    /// Kills of a leader in W4, for each system, shared out over the runs.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    kills: u32,
    /// Prints one JSON document instead of Markdown.
    #[arg(long)]
    json: bool,
    /// Also writes Markdown to this file, and its plots into a folder beside it, of the same name.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Where clusters keep their files and programs are brought to. It should be on the disk that is meant.
    #[arg(long, default_value = "target/tmp/compare")]
    work_dir: PathBuf,
    /// What else was going on, for readers of the report.
    #[arg(long, default_value = "")]
    note: String,
}

const FLOOR_TIME_MAX: Duration = Duration::from_secs(3);
/// A workload that takes longer on one cluster is given up.
const WORKLOAD_TIME_MAX: Duration = Duration::from_secs(1_200);

/// Compares, and returns what is to be printed.
///
/// # Errors
/// When nothing can be compared or a file cannot be written. What fails in one system's run is in the results.
pub async fn run(comparison: &Comparison) -> Result<String, Failure> {
    std::fs::create_dir_all(&comparison.work_dir)?;
    let (found, skipped) = find(comparison).await?;
    let plan = Plan {
        time: Duration::from_secs(comparison.seconds),
        pipeline_time: Duration::from_secs(comparison.pipeline_seconds),
        kills: comparison.kills.div_ceil(comparison.runs) as usize,
    };
    let floor = floor::measure(&comparison.work_dir, plan.time.min(FLOOR_TIME_MAX)).await?;
    let mut results = Results::default();
    for round in 0..comparison.runs as usize {
        let is_due = |workload: &&Workload| round == 0 || workload.repeat() == Repeat::EachRun;
        for workload in comparison.workloads.iter().filter(is_due) {
            let asked =
                found.iter().filter(|one| one.name.is_ours() || workload.audience() == Audience::AllSystems);
            let mut order = asked.collect::<Vec<_>>();
            let first = round % order.len().max(1);
            order.rotate_left(first);
            for one in order {
                progress(&format!(
                    "run {} of {}, {}: {}",
                    round + 1,
                    comparison.runs,
                    workload.key(),
                    one.name.title()
                ));
                let mut log = Log { system: one.name, results: &mut results };
                if let Err(failure) = run_one(one, *workload, &comparison.work_dir, &plan, &mut log).await {
                    log.fail(workload.title(), failure);
                }
            }
        }
    }
    let document = Document {
        machine: Machine::here(&comparison.work_dir),
        command: command(),
        note: comparison.note.clone(),
        runs: comparison.runs,
        seconds: comparison.seconds,
        found,
        skipped,
        floor,
        results,
    };
    if let Some(path) = &comparison.report {
        report::write(&document, path)?;
    }
    Ok(if comparison.json { document.json().to_string() } else { report::markdown(&document, None) })
}

async fn find(comparison: &Comparison) -> Result<(Vec<Found>, Vec<(Name, Failure)>), Failure> {
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    for name in &comparison.systems {
        match name.find(&comparison.work_dir).await {
            Ok(one) => found.push(one),
            Err(failure) => {
                progress(&format!("{} is left out: {failure}", name.title()));
                skipped.push((*name, failure));
            }
        }
    }
    if found.is_empty() {
        let reasons = skipped.iter().map(|(name, failure)| format!("{}: {failure}", name.key()));
        return Err(Failure::new(format!(
            "none of the systems is there: {}",
            reasons.collect::<Vec<_>>().join("; ")
        )));
    }
    Ok((found, skipped))
}

/// One workload, on a cluster of its own for each shape.
async fn run_one(
    found: &Found,
    workload: Workload,
    work_dir: &Path,
    plan: &Plan,
    log: &mut Log<'_>,
) -> Result<(), Failure> {
    for shape in workload.shapes() {
        let dir = tempfile::tempdir_in(work_dir)?;
        let mut system = found.start(dir.path(), *shape).await?;
        let late = |_| Err(Failure::new(format!("it was not done in {} s", WORKLOAD_TIME_MAX.as_secs())));
        let run = timeout(WORKLOAD_TIME_MAX, workload.run(&mut *system, *shape, plan, log));
        let ended = run.await.unwrap_or_else(late);
        system.stop().await?;
        ended?;
    }
    Ok(())
}

/// As it was typed, the program by its name.
fn command() -> String {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let name = Path::new(&program).file_name().map(|name| name.to_string_lossy().into_owned());
    let quoted = words.map(|word| if word.contains(' ') { format!("'{word}'") } else { word });
    std::iter::once(name.unwrap_or(program)).chain(quoted).collect::<Vec<_>>().join(" ")
}
