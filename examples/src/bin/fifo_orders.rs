//! `cargo run --release -p leasehold-examples --bin fifo_orders`: see the module of this name.

use std::process::ExitCode;

use clap::Parser;
use leasehold_examples::{exit, fifo_orders};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    arguments: fifo_orders::Arguments,
}

#[tokio::main]
async fn main() -> ExitCode {
    exit(fifo_orders::run(Program::parse().arguments).await)
}
