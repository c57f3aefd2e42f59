//! `cargo run --release -p leasehold-examples --bin cache_warmer`: see the module of this name.

use std::process::ExitCode;

use clap::Parser;
use leasehold_examples::{cache_warmer, exit};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    arguments: cache_warmer::Arguments,
}

#[tokio::main]
async fn main() -> ExitCode {
    exit(cache_warmer::run(Program::parse().arguments).await)
}
