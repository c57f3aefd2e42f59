//! `leasehold-instructions`: what the hot paths cost, in instructions, which do not depend on how busy a machine is.
//!
//! ```text
//!   check ─▶ for each path: valgrind runs this program twice, with some rounds and with twice as many
//!                           (instructions of the second - of the first) / messages of the first = instructions a message
//!         ─▶ compared with baseline.json, which `--bless` writes
//! ```
//!
//! The difference leaves out what starting and setting up cost.
#![allow(clippy::print_stdout, reason = "verdicts are its output")]

mod baseline;
mod count;
mod log;
mod partition;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::baseline::Baseline;
use crate::count::CountError;

/// Counts the instructions of the hot paths.
#[derive(Debug, Parser)]
#[command(name = "leasehold-instructions", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fails when a path costs more than the baseline allows.
    Check,
    /// Writes what the paths cost now as the baseline: for a change that is worth what it costs, or made them cheaper.
    Bless,
    /// Runs a path and nothing else.
    Run {
        #[arg(value_enum)]
        path: Path,
        rounds: u32,
    },
}

/// What is measured. Each handles [`BATCH`] messages a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Path {
    /// Send, receive, ack of a standard queue, as entries of the log.
    Cycle,
    /// The same where messages have groups of 50 tenants.
    Tenants,
    /// The same of a FIFO queue with 50 groups.
    Fifo,
    /// The same, with a deduplication id on each message.
    Deduplication,
    /// Send, receive, and leases that end; then they are received again and acked.
    Redelivery,
    /// The state of a backlog as bytes, and back.
    Snapshot,
    /// An entry with the messages is appended to the log, written, and read back.
    Log,
}

/// Messages of a round.
const BATCH: u32 = 250;

impl Path {
    fn run(self, rounds: u32) {
        match self {
            Self::Cycle => partition::cycle(rounds, partition::Shape::Plain),
            Self::Tenants => partition::cycle(rounds, partition::Shape::Tenants),
            Self::Fifo => partition::cycle(rounds, partition::Shape::Fifo),
            Self::Deduplication => partition::cycle(rounds, partition::Shape::Deduplication),
            Self::Redelivery => partition::redelivery(rounds),
            Self::Snapshot => partition::snapshot(rounds),
            Self::Log => log::append_and_read(rounds),
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

fn main() -> ExitCode {
    let verdict = match Arguments::parse().task {
        Task::Run { path, rounds } => {
            path.run(rounds);
            return ExitCode::SUCCESS;
        }
        Task::Check => check(),
        Task::Bless => bless(),
    };
    match verdict {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!(
                "a hot path costs more than before: make it cheaper, or say why it is worth it and run `bless`"
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every path is within what the baseline allows.
fn check() -> Result<bool, CountError> {
    let baseline = Baseline::load()?;
    let tolerance = baseline.tolerance_percent(&count::compiler()?);
    let mut is_within = true;
    for path in Path::value_variants() {
        let now = count::instructions_a_message(*path)?;
        let row = baseline.compare(&path.name(), now, tolerance);
        println!("{row}");
        is_within &= row.is_within;
    }
    Ok(is_within)
}

fn bless() -> Result<bool, CountError> {
    let mut baseline = Baseline::new(count::compiler()?);
    for path in Path::value_variants() {
        let now = count::instructions_a_message(*path)?;
        println!("{:<16}{now:>8}", path.name());
        baseline.set(path.name(), now);
    }
    baseline.save()?;
    Ok(true)
}
