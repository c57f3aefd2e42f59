//! The `leasehold` command.
//!
//! Exit codes: 0 done, 1 not done, 2 wrong usage, 3 the outcome is unknown, or it was done and could not be told.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod backup_command;
mod cluster;
mod connect;
mod demo;
mod dev;
mod endings;
mod exec;
mod headroom;
mod input;
mod messages;
mod output;
mod queue;
mod receive;
mod send;
mod server;
mod settle;
mod storms;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use leasehold_client::{Client, Tls};

use crate::output::{Failure, Output};

/// The same with every C library, and what large blocks leave goes back to the system (docs/decisions/032).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    name = "leasehold",
    version,
    about = "A distributed work queue whose leases survive the death of a node",
    after_help = "Exit codes: 0 done, 1 not done, 2 wrong usage, 3 the outcome is unknown, or it was done and could not be told."
)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// A node of the cluster; repeat it to name several.
    #[arg(
        long,
        global = true,
        env = "LEASEHOLD_ENDPOINT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    endpoint: Vec<String>,
    /// Believes nodes whose certificates the authorities in this PEM file have signed, in place of the system's. TLS is spoken with
    /// it, and with endpoints that begin with https://.
    #[arg(long, global = true, env = "LEASEHOLD_CLIENT_TLS_AUTHORITY_FILE", value_name = "FILE")]
    tls_authority_file: Option<PathBuf>,
    /// The certificate to show to nodes that ask for one, as PEM.
    #[arg(long, global = true, env = "LEASEHOLD_CLIENT_TLS_CERTIFICATE_FILE", value_name = "FILE")]
    tls_certificate_file: Option<PathBuf>,
    /// Its key, as PEM.
    #[arg(long, global = true, env = "LEASEHOLD_CLIENT_TLS_KEY_FILE", value_name = "FILE")]
    tls_key_file: Option<PathBuf>,
    /// One JSON object a line instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one node.
    Server(server::Arguments),
    /// Runs a cluster in this process, for development.
    Dev(dev::Arguments),
    /// Shows, on real processes, that a crash loses no message and shortens no lease.
    Demo(demo::Arguments),
    /// Founds a cluster, shows it, and changes its members.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Takes and checks backups of the whole cluster.
    #[command(subcommand)]
    Backup(backup_command::Command),
    /// Makes and manages queues.
    #[command(subcommand)]
    Queue(queue::Command),
    /// Sends messages: the argument, or the lines of a file or of stdin.
    Send(send::Arguments),
    /// Receives messages.
    Receive(receive::Arguments),
    /// Removes messages that are done from their queue.
    Ack(settle::Ack),
    /// Makes leases end later, or sooner.
    Extend(settle::Extend),
    /// Gives messages back, at once or after a delay.
    Release(settle::Release),
    /// Gives messages back that have to wait: the receive does not count for the receive limit.
    Postpone(settle::Postpone),
    /// Moves messages to the dead-letter queue, with a reason.
    Reject(settle::Reject),
    /// Hands messages to an HTTP endpoint.
    #[command(subcommand)]
    Connect(connect::Command),
    /// Looks at messages without leasing them.
    Peek(messages::Peek),
    /// Tells the life of one message.
    Why(messages::Why),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    let output = Output::new(arguments.global.json);
    let outcome = match arguments.command {
        Command::Server(arguments) => server::run(&arguments, output),
        command => on_runtime(0, run(command, &arguments.global, output)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.failed(&failure),
    }
}

/// Does it on a runtime with so many threads, or with one a processor when that is 0.
fn on_runtime(worker_threads: usize, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if worker_threads > 0 {
        builder.worker_threads(worker_threads);
    }
    let runtime = builder.enable_all().build()?;
    let outcome = runtime.block_on(work);
    // What is still under way, such as a read of stdin, must not hold up the end.
    runtime.shutdown_background();
    outcome
}

/// Help on stdout, or what is wrong with the arguments, as JSON when they ask for it.
fn usage(error: &clap::Error) -> ExitCode {
    let wants_json = std::env::args_os().any(|argument| argument == "--json");
    if error.use_stderr() && wants_json {
        return Output::new(true).failed(&Failure::usage(error.to_string().trim_end()));
    }
    // Who has closed the output needs no help.
    let _ = error.print();
    ExitCode::from(error.exit_code() as u8)
}

async fn run(command: Command, global: &Global, output: Output) -> Result<(), Failure> {
    let client = || global.client();
    match command {
        Command::Server(_) => unreachable!("a node has a runtime of its own"),
        Command::Dev(arguments) => dev::run(arguments, output).await,
        Command::Demo(arguments) => demo::run(arguments, output).await,
        Command::Cluster(command) => cluster::run(command, &client()?, output).await,
        Command::Backup(command) => backup_command::run(command, client, output).await,
        Command::Queue(command) => queue::run(command, &client()?, output).await,
        Command::Send(arguments) => send::run(arguments, &client()?, output).await,
        Command::Receive(arguments) => receive::run(arguments, &client()?, output).await,
        Command::Ack(arguments) => settle::ack(arguments, &client()?, output).await,
        Command::Extend(arguments) => settle::extend(arguments, &client()?, output).await,
        Command::Release(arguments) => settle::release(arguments, &client()?, output).await,
        Command::Postpone(arguments) => settle::postpone(arguments, &client()?, output).await,
        Command::Reject(arguments) => settle::reject(arguments, &client()?, output).await,
        Command::Connect(command) => connect::run(command, client()?, output).await,
        Command::Peek(arguments) => messages::peek(arguments, &client()?, output).await,
        Command::Why(arguments) => messages::why(arguments, &client()?, output).await,
    }
}

impl Global {
    fn client(&self) -> Result<Client, Failure> {
        let builder = Client::builder(self.endpoint.iter().cloned());
        Ok(match self.tls()? {
            Some(tls) => builder.tls(tls).build()?,
            None => builder.build()?,
        })
    }

    fn tls(&self) -> Result<Option<Tls>, Failure> {
        let identity = match (&self.tls_certificate_file, &self.tls_key_file) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            (None, None) => None,
            _ => {
                return Err(Failure::usage(
                    "a certificate and its key go together: give both files, or none",
                ));
            }
        };
        let authorities = self.tls_authority_file.as_deref().map(read).transpose()?;
        if authorities.is_none() && identity.is_none() {
            return Ok(None);
        }
        let tls = authorities.into_iter().fold(Tls::new(), Tls::authorities);
        Ok(Some(identity.into_iter().fold(tls, |tls, (certificate, key)| tls.identity(certificate, key))))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_has_as_many_threads_as_it_is_told_or_one_a_processor() {
        let processors = std::thread::available_parallelism().unwrap().get();
        for (told, wanted) in [(1, 1), (5, 5), (0, processors)] {
            let work = async {
                assert_eq!(tokio::runtime::Handle::current().metrics().num_workers(), wanted);
                Ok(())
            };
            assert!(on_runtime(told, work).is_ok());
        }
    }
}
