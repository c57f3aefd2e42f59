//! Measures a cluster of three nodes on this machine, with its clients beside it; every answer comes after the sync of a quorum.
#![allow(clippy::print_stdout)]

mod compare;
mod failover;
mod footprint;
mod sqs;
mod throughput;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// As in the program that is measured: some of its nodes run in this process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Time from the kill of a leader to the next send and receive that are done.
    Failover(failover::Rounds),
    /// Processor time of a cluster that does nothing.
    Idle(footprint::Idle),
    /// Memory of many queues.
    Queues(footprint::Queues),
    /// Memory and restart with a long backlog.
    Backlog(footprint::Backlog),
    /// Requests of SQS clients a second, and what each costs.
    Sqs(sqs::Requests),
    /// Leasehold, NATS JetStream and RabbitMQ under the same workloads.
    Compare(compare::Comparison),
    /// What `compare --keep` wrote, as JSON or Markdown.
    Report(compare::Report),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Runtime::new();
    let runtime = runtime.unwrap_or_else(|error| panic!("cannot start: {error}"));
    let told = runtime.block_on(async {
        Ok(match arguments.what {
            What::Send(load) => throughput::send(&load).await.to_string(),
            What::Cycle(load) => throughput::cycle(&load).await.to_string(),
            What::Failover(rounds) => failover::measure(&rounds).await.to_string(),
            What::Idle(idle) => footprint::idle(&idle).await.to_string(),
            What::Queues(queues) => footprint::queues(&queues).await.to_string(),
            What::Backlog(backlog) => footprint::backlog(&backlog).await.to_string(),
            What::Sqs(requests) => sqs::measure(&requests).await.to_string(),
            What::Compare(comparison) => compare::run(&comparison).await?,
            What::Report(report) => compare::tell_again(&report)?,
        })
    });
    match told {
        Ok(told) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Err::<_, compare::Failure>(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}
