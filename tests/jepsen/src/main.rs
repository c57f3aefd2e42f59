//! `leasehold-jepsen`: drives a cluster of real processes, injects faults, and judges the history of what every client saw.
#![allow(clippy::print_stdout)]

mod damage;
mod faults;
mod machine;
mod network;
mod run;
mod workers;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use leasehold_histories::checkers;
use leasehold_histories::history::History;

#[derive(Parser)]
#[command(about = "Real processes, real faults, checked histories")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// One JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a workload under faults and checks its history.
    Run(run::Plan),
    /// Judges a history that was kept.
    Check { history: PathBuf },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let verdict = match arguments.command {
        Command::Run(plan) => run::run(&plan),
        Command::Check { history } => History::load(&history).map(|history| checkers::check(&history)),
    };
    match verdict {
        Ok(verdict) => {
            if arguments.json {
                println!("{}", verdict.to_json());
            } else {
                print!("{verdict}");
            }
            if verdict.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            if arguments.json {
                println!("{}", serde_json::json!({ "error": error }));
            } else {
                eprintln!("{error}");
            }
            ExitCode::from(2)
        }
    }
}
