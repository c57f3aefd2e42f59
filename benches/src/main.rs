//! Measures a cluster of three nodes on this machine: all nodes and the clients in one process, every answer after the sync of a quorum.
#![allow(clippy::print_stdout)]

mod throughput;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures a cluster of three nodes on loopback")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Messages sent a second, in batches.
    Send(throughput::Load),
    /// Messages sent, received and acknowledged a second.
    Cycle(throughput::Load),
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Runtime::new();
    let runtime = runtime.unwrap_or_else(|error| panic!("cannot start: {error}"));
    let line = runtime.block_on(async {
        match arguments.what {
            What::Send(load) => throughput::send(&load).await,
            What::Cycle(load) => throughput::cycle(&load).await,
        }
    });
    println!("{line}");
}
