//! `cargo run --release -p leasehold-examples --bin clickstream`: see the module of this name.

use std::process::ExitCode;

use clap::Parser;
use leasehold_examples::{clickstream, exit};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    arguments: clickstream::Arguments,
}

#[tokio::main]
async fn main() -> ExitCode {
    exit(clickstream::run(Program::parse().arguments).await)
}
