//! `cargo run --release -p leasehold-examples --bin email_once`: see the module of this name.

use std::process::ExitCode;

use clap::Parser;
use leasehold_examples::{email_once, exit};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    arguments: email_once::Arguments,
}

#[tokio::main]
async fn main() -> ExitCode {
    exit(email_once::run(Program::parse().arguments).await)
}
