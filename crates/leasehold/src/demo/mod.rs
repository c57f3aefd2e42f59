//! `leasehold demo`: three processes, real input, crashes on purpose, and a proof at the end.

mod display;
mod failover;
mod proof;
mod work;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use leasehold::processes::Processes;
use leasehold_client::v1::{QueueCounters, QueueSettings};
use leasehold_client::{Client, NewMessage, Outcome, Reason, Sent};
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::display::Proof;
use self::failover::{Failover, kill_busiest, make_probes};
use self::proof::{SentRow, judge};
use self::work::Ledger;
use crate::input::lines;
use crate::output::{Failure, Output, say};
use crate::server::Stop;

const QUEUE: &str = "flights";
/// The attribute with the number of the row.
const ROW: &str = "row";
const LEASE: Duration = Duration::from_secs(3);
const SHARDS: u32 = 4;
/// Rows of one send.
const BATCH: usize = 200;
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// The sender is ahead of the workers by one in so many rows at most.
const AHEAD_MAX_SHARE: usize = 8;
const CRASHING_CONSUMERS: usize = 2;
/// Share of the rows, in percent, after which the leader is killed, and after which nobody misbehaves any more.
const KILL_AT_PERCENT: u64 = 40;
const DRAIN_AT_PERCENT: u64 = 80;
const RESTART_AFTER: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(240);

#[derive(clap::Args)]
pub struct Arguments {
    /// A text file, one message a line; may be compressed with gzip. Without it, the flights of examples/data.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Rows to send; without it, all.
    #[arg(long)]
    messages: Option<usize>,
    /// Consumers that do their work, beside two that crash and one that is too slow.
    #[arg(long, default_value_t = 4)]
    consumers: usize,
    /// Kills no node.
    #[arg(long)]
    no_kill: bool,
    /// Keeps the data and the logs of the nodes, and says where.
    #[arg(long)]
    keep: bool,
}

/// Runs the demo.
///
/// # Errors
/// When the proof does not hold, the cluster cannot be brought up, or a signal comes.
pub async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let rows = rows(&arguments)?;
    let mut stop = Stop::new()?;
    let dir = tempfile::Builder::new().prefix("leasehold-demo-").tempdir()?;
    if !output.is_json() {
        println!("three nodes start, with their data in {}", dir.path().display());
    }
    let started = Instant::now();
    let mut processes = None;
    let ended = tokio::select! {
        ended = prove(&arguments, rows, dir.path(), &mut processes, output) => ended,
        () = stop.asked() => Err(Failure::new("stopped before the proof was complete")),
    };
    // The nodes are gone before their data is.
    if let Some(processes) = processes {
        processes.kill_all().await?;
    }
    if arguments.keep {
        say(format_args!("kept: {}", dir.keep().display()));
    } else if let Err(error) = dir.close() {
        say(format_args!("the data could not be removed: {error}"));
    }
    let proof = ended?;
    proof.tell(started.elapsed(), output)?;
    if proof.verdict.holds() { Ok(()) } else { Err(Failure::new("the proof does not hold")) }
}

async fn prove(
    arguments: &Arguments,
    rows: Vec<Bytes>,
    dir: &Path,
    processes: &mut Option<Processes>,
    output: Output,
) -> Result<Proof, Failure> {
    let processes = processes.insert(Processes::start(&std::env::current_exe()?, dir, SHARDS).await?);
    let client = processes.client()?;
    let settings = QueueSettings { lease_ms: Some(LEASE.as_millis() as u64), ..QueueSettings::default() };
    client.create_queue(QUEUE, settings, SHARDS).await?;
    let probes = make_probes(&client, SHARDS).await?;
    if !output.is_json() {
        let count = rows.len();
        println!(
            "{count} rows are sent and processed; {CRASHING_CONSUMERS} consumers crash, one is too slow"
        );
    }
    let count = rows.len() as u64;
    let ledger = Arc::new(Ledger::new(rows.clone()));
    let mut workers = start_workers(processes, &ledger, arguments.consumers)?;
    let mut helpers = JoinSet::new();
    if !output.is_json() {
        helpers.spawn(display::show(ledger.clone(), count));
    }
    let work = async {
        let sending = send_all(client.clone(), rows, &ledger);
        let (sent, failover) =
            tokio::try_join!(sending, fail_over(arguments, processes, &probes, &ledger, count))?;
        wait_for(&ledger, count * DRAIN_AT_PERCENT / 100).await?;
        ledger.is_draining.store(true, Ordering::Relaxed);
        Ok::<_, Failure>((sent, failover, drain(&client).await?))
    };
    let (sent, failover, remaining) = tokio::select! {
        done = work => done?,
        failure = broken(&mut workers) => return Err(failure),
    };
    if let Some(failover) = &failover {
        wait_until_back(processes, failover.node).await?;
    }
    ledger.is_over.store(true, Ordering::Relaxed);
    while let Some(worker) = workers.join_next().await {
        worker.map_err(|error| Failure::new(format!("a worker broke: {error}")))?;
    }
    let records = ledger.take_records();
    let verdict = judge(&sent, &records, remaining);
    let crashes = ledger.crashes.load(Ordering::Relaxed);
    Ok(Proof::new(verdict, failover, &records, crashes))
}

/// Waits until a worker panics: what it did would be missing from the proof.
async fn broken(workers: &mut JoinSet<()>) -> Failure {
    loop {
        match workers.join_next().await {
            Some(Err(error)) => return Failure::new(format!("a worker broke: {error}")),
            Some(Ok(())) => {}
            None => std::future::pending().await,
        }
    }
}

/// Kills the busiest node in mid-stream, and starts it again some time later.
async fn fail_over(
    arguments: &Arguments,
    processes: &mut Processes,
    probes: &[(String, u32)],
    ledger: &Ledger,
    count: u64,
) -> Result<Option<Failover>, Failure> {
    if arguments.no_kill {
        return Ok(None);
    }
    wait_for(ledger, count * KILL_AT_PERCENT / 100).await?;
    let failover = kill_busiest(processes, probes).await?;
    ledger.failover_ms.store(failover.longest().as_millis() as u64, Ordering::Relaxed);
    sleep(RESTART_AFTER).await;
    processes.restart(failover.node).await?;
    Ok(Some(failover))
}

fn rows(arguments: &Arguments) -> Result<Vec<Bytes>, Failure> {
    let flights = || {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/flights.csv.gz");
        if source.exists() { source } else { PathBuf::from("examples/data/flights.csv.gz") }
    };
    let path = arguments.file.clone().unwrap_or_else(flights);
    let unreadable = |error: std::io::Error| {
        Failure::usage(format!("{} cannot be read ({error}): name a text file with --file", path.display()))
    };
    let has_header = usize::from(arguments.file.is_none());
    let rows =
        lines(&path).map_err(unreadable)?.skip(has_header).take(arguments.messages.unwrap_or(usize::MAX));
    let rows = rows.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    if rows.is_empty() {
        return Err(Failure::usage(format!("{} has no lines: there is nothing to send", path.display())));
    }
    Ok(rows)
}

fn start_workers(
    processes: &Processes,
    ledger: &Arc<Ledger>,
    consumers: usize,
) -> Result<JoinSet<()>, Failure> {
    let mut workers = JoinSet::new();
    for number in 1..=consumers.max(1) {
        workers.spawn(work::good(processes.client()?, format!("good-{number}"), ledger.clone()));
    }
    for number in 1..=CRASHING_CONSUMERS {
        workers.spawn(work::crashing(processes.endpoints(), format!("crashing-{number}"), ledger.clone()));
    }
    workers.spawn(work::slow(processes.client()?, "slow".to_owned(), ledger.clone()));
    Ok(workers)
}

/// Sends every row until it is done, not far ahead of the workers: the kill shall fall into the sending too.
async fn send_all(client: Client, rows: Vec<Bytes>, ledger: &Ledger) -> Result<Vec<SentRow>, Failure> {
    let end = Instant::now() + PATIENCE;
    let producer = client.queue(QUEUE).producer().batch(BATCH, BATCH_BYTES_MAX).start();
    let ahead_max = (rows.len() / AHEAD_MAX_SHARE).max(BATCH) as u64;
    let mut waiting = rows.into_iter().zip(0..).map(|(body, row)| (row, body, 0)).collect::<VecDeque<_>>();
    let mut sent = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        while sent.len() as u64 >= ledger.acked.load(Ordering::Relaxed) + ahead_max && Instant::now() < end {
            sleep(Duration::from_millis(2)).await;
        }
        let batch = waiting.drain(..waiting.len().min(BATCH)).collect::<Vec<_>>();
        let messages = batch
            .iter()
            .map(|(row, body, _)| NewMessage::new(body.clone()).attribute(ROW, "Number", row.to_string()));
        let results = producer.send_all(messages.collect::<Vec<_>>()).await;
        for ((row, body, unknown_tries), result) in batch.into_iter().zip(results) {
            match result {
                Ok(Sent { id, .. }) => {
                    sent.push(SentRow { row, message: (id.partition, id.sequence), unknown_tries });
                }
                Err(error) if Instant::now() > end || is_final(&error) => {
                    return Err(Failure::new(format!("row {row} cannot be sent: {error}")));
                }
                Err(error) => {
                    let is_unknown = error.outcome == Outcome::Unknown;
                    waiting.push_back((row, body, unknown_tries + u32::from(is_unknown)));
                }
            }
        }
        ledger.sent.store(sent.len() as u64, Ordering::Relaxed);
    }
    producer.close().await;
    Ok(sent)
}

/// The same message would be refused again.
fn is_final(error: &leasehold_client::Error) -> bool {
    let is_refused = matches!(
        error.reason,
        Reason::UnknownQueue | Reason::InvalidArgument | Reason::MessageTooLarge | Reason::BatchTooLarge
    );
    is_refused && error.outcome == Outcome::NotDone
}

async fn wait_for(ledger: &Ledger, acked: u64) -> Result<(), Failure> {
    let end = Instant::now() + PATIENCE;
    while ledger.acked.load(Ordering::Relaxed) < acked {
        if Instant::now() > end {
            return Err(Failure::new(format!("{acked} rows were not processed within {PATIENCE:?}")));
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Waits until a node that was killed takes part again: it must not only be missed by nobody.
async fn wait_until_back(processes: &Processes, at: usize) -> Result<(), Failure> {
    let node = &processes.nodes[at];
    let client = Client::connect([format!("http://{}", node.client_address)])?;
    let end = Instant::now() + PATIENCE;
    while !client.cluster_status().await.is_ok_and(|status| status.ready) {
        if Instant::now() > end {
            return Err(Failure::new(format!("{} was started again and does not take part", node.name)));
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Waits until the queue is empty; returns what is left when that takes too long.
async fn drain(client: &Client) -> Result<u64, Failure> {
    let end = Instant::now() + PATIENCE;
    let held = |counters: QueueCounters| counters.ready + counters.leased + counters.delayed + counters.dead;
    loop {
        let remaining =
            client.describe_queue(QUEUE).await.ok().and_then(|described| described.counters).map(held);
        match remaining {
            Some(0) => return Ok(0),
            Some(remaining) if Instant::now() > end => return Ok(remaining),
            None if Instant::now() > end => return Err(Failure::new("the queue cannot be described")),
            _ => sleep(Duration::from_millis(100)).await,
        }
    }
}
