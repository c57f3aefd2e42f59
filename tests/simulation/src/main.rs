//! `leasehold-simulation`: a whole cluster in one thread, deterministic from a seed. docs/reliability.md says what for.
#![allow(clippy::print_stdout, reason = "verdicts are its output")]

mod client;
mod faults;
mod judge;
mod machine;
mod network;
mod run;
mod seeds;
mod system;
mod trace;
mod transport;
mod workers;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use leasehold_histories::checkers::Verdict;
use leasehold_histories::history::History;
use leasehold_histories::workload::Workload;

use crate::faults::Fault;
use crate::run::Plan;
use crate::seeds::Seeds;
use crate::trace::Telling;

/// Simulates a cluster from seeds, and judges what its clients saw.
#[derive(Debug, Parser)]
#[command(name = "leasehold-simulation", version, args_override_self = true)]
struct Arguments {
    /// Without it, all of them but `streams`, which needs real processes.
    #[arg(long, value_enum, value_delimiter = ',')]
    workload: Vec<Workload>,
    /// One seed, or a range such as 1..100, without its end.
    #[arg(long, default_value = "1")]
    seeds: Seeds,
    #[command(flatten)]
    plan: Plan,
    /// Tells everything that happens, on standard error: for one seed and one workload.
    #[arg(long)]
    trace: bool,
    /// Where the history of a single run is kept.
    #[arg(long)]
    history: Option<PathBuf>,
    /// Runs at a time, when there are several.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    if arguments.workload.is_empty() {
        let all = Workload::value_variants().iter().copied();
        arguments.workload = all.filter(|workload| workload.is_simulated()).collect();
    }
    if let Some(real) = arguments.workload.iter().find(|workload| !workload.is_simulated()) {
        let name = real.name();
        eprintln!("the workload {name} needs real processes and real time: leasehold-jepsen runs it");
        return ExitCode::from(2);
    }
    if arguments.plan.faults.is_empty() {
        arguments.plan.faults = Fault::value_variants().to_vec();
    }
    match (arguments.workload.as_slice(), arguments.seeds.single()) {
        ([workload], Some(seed)) => one(&arguments, *workload, seed),
        _ if seeds::run_all(&arguments) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// What a step takes is milliseconds, also on a busy machine.
const STANDSTILL: Duration = Duration::from_secs(120);

/// Waits for a run, unless its time stands still: a task that is always ready lets it not go on.
fn watch<T>(run: &JoinHandle<T>) -> Result<(), String> {
    let (mut seen_us, mut since) = (u64::MAX, Instant::now());
    while !run.is_finished() {
        std::thread::sleep(Duration::from_millis(5));
        let now_us = world::NOW_US.load(Ordering::Relaxed);
        if now_us != seen_us {
            (seen_us, since) = (now_us, Instant::now());
        } else if since.elapsed() > STANDSTILL {
            return Err(format!("time stands still at {now_us} us: something is busy without end"));
        }
    }
    Ok(())
}

/// Runs one seed in a thread of its own, where randomness and time are those of the simulation.
fn one(arguments: &Arguments, workload: Workload, seed: u64) -> ExitCode {
    let telling = if arguments.trace { Telling::Events } else { Telling::Silent };
    let plan = arguments.plan.clone();
    if let Err(error) = leasehold_node::telemetry::metrics() {
        // Its clock is calibrated against time that passes, so it is made before time stands still. Nothing else looks at it.
        eprintln!("the metrics of the nodes cannot be kept: {error}");
    }
    let thread = std::thread::spawn(move || {
        system::simulate(seed);
        trace::start(telling);
        run::run(&plan, workload, seed)
    });
    let outcome = match watch(&thread) {
        Ok(()) => thread.join(),
        Err(story) => {
            let mut verdict = Verdict { seed: Some(seed), ..Verdict::default() };
            verdict.violations.insert("simulation", vec![story]);
            Ok(run::Outcome { verdict, history: History::default(), hash: 0 })
        }
    };
    let Ok(run::Outcome { mut verdict, history, hash }) = outcome else { return ExitCode::FAILURE };
    if let Some(path) = &arguments.history {
        if let Err(error) = history.save(path) {
            eprintln!("the history cannot be kept in {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        verdict.history = Some(path.display().to_string());
    }
    if !verdict.holds() {
        verdict.replay = Some(seeds::replay(arguments, workload, seed));
    }
    let mut told = verdict.to_json();
    told["trace"] = format!("{hash:016x}").into();
    told["workload"] = workload.name().into();
    println!("{told}");
    if verdict.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
