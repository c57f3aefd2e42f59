//! `leasehold demo`: three processes, real input, crashes on purpose, and a proof at the end.

mod failover;
mod proof;
mod work;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use leasehold::processes::Processes;
use leasehold_client::v1::{QueueCounters, QueueSettings};
use leasehold_client::{Client, NewMessage};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::failover::{Failover, kill_busiest, make_probes};
use self::proof::{Verdict, judge};
use self::work::Ledger;
use crate::input::lines;
use crate::output::{Failure, Output};

const QUEUE: &str = "flights";
/// The attribute with the number of the row.
const ROW: &str = "row";
const LEASE: Duration = Duration::from_secs(3);
const SHARDS: u32 = 4;
/// Rows of one send.
const BATCH: usize = 200;
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

/// What the display shows.
#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    failover_ms: AtomicU64,
}

/// Runs the demo.
///
/// # Errors
/// When the proof does not hold, or the cluster cannot be brought up.
pub async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let rows = rows(&arguments)?;
    let dir = tempfile::Builder::new().prefix("leasehold-demo-").tempdir()?;
    let told = |text: String| {
        if !output.is_json() {
            println!("{text}")
        }
    };
    told(format!("three nodes start, with their data in {}", dir.path().display()));
    let started = Instant::now();
    let mut processes = Processes::start(&std::env::current_exe()?, dir.path(), SHARDS).await?;
    let client = processes.client()?;
    let settings = QueueSettings { lease_ms: Some(LEASE.as_millis() as u64), ..QueueSettings::default() };
    client.create_queue(QUEUE, settings, SHARDS).await?;
    let probes = make_probes(&client, SHARDS).await?;
    told(format!(
        "{} rows are sent and processed; {CRASHING_CONSUMERS} consumers crash, one is too slow",
        rows.len()
    ));

    let (ledger, progress) = (Arc::new(Ledger::default()), Arc::new(Progress::default()));
    let mut workers = start_workers(&processes, &ledger, arguments.consumers)?;
    let display =
        (!output.is_json()).then(|| tokio::spawn(show(ledger.clone(), progress.clone(), rows.len())));
    let count = rows.len() as u64;
    let sending = tokio::spawn(send_all(client.clone(), rows, progress.clone()));
    let failover = if arguments.no_kill {
        None
    } else {
        wait_for(&ledger, count * KILL_AT_PERCENT / 100).await?;
        let failover = kill_busiest(&mut processes, &probes).await?;
        progress.failover_ms.store(failover.longest().as_millis() as u64, Ordering::Relaxed);
        sleep(RESTART_AFTER).await;
        processes.restart(failover.node).await?;
        Some(failover)
    };
    let sent = sending.await.map_err(|error| Failure::new(error.to_string()))??;
    wait_for(&ledger, count * DRAIN_AT_PERCENT / 100).await?;
    ledger.is_draining.store(true, Ordering::Relaxed);
    let remaining = drain(&client).await?;
    if let Some(failover) = &failover {
        wait_until_back(&processes, failover.node).await?;
    }
    ledger.is_over.store(true, Ordering::Relaxed);
    while workers.join_next().await.is_some() {}
    if let Some(display) = display {
        display.abort();
    }
    let records = ledger.take_records();
    let verdict = judge(&sent, &records, remaining);
    tell(&verdict, failover.as_ref(), &ledger, started.elapsed(), output);
    if arguments.keep {
        eprintln!("kept: {}", dir.keep().display());
    }
    if verdict.holds() { Ok(()) } else { Err(Failure::new("the proof does not hold")) }
}

fn rows(arguments: &Arguments) -> Result<Vec<String>, Failure> {
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

/// Sends every row until it is done; returns the rows that were answered as done.
async fn send_all(client: Client, rows: Vec<String>, progress: Arc<Progress>) -> Result<Vec<u64>, Failure> {
    let end = Instant::now() + PATIENCE;
    let mut waiting = rows.into_iter().enumerate().map(|(row, body)| (row as u64, body)).collect::<Vec<_>>();
    let mut sent = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let rest = waiting.split_off(waiting.len().min(BATCH));
        let batch = std::mem::replace(&mut waiting, rest);
        let messages = batch
            .iter()
            .map(|(row, body)| NewMessage::new(body.clone()).attribute(ROW, "Number", row.to_string()));
        let outcomes = client.send(QUEUE, messages.collect()).await;
        let done = |at: usize| outcomes.as_ref().is_ok_and(|outcomes| outcomes[at].is_ok());
        for (at, row) in batch.into_iter().enumerate() {
            if done(at) {
                sent.push(row.0);
            } else {
                waiting.push(row);
            }
        }
        progress.sent.store(sent.len() as u64, Ordering::Relaxed);
        if Instant::now() > end {
            return Err(Failure::new(format!("{} rows could not be sent in time", waiting.len())));
        }
    }
    Ok(sent)
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

async fn show(ledger: Arc<Ledger>, progress: Arc<Progress>, rows: usize) {
    let is_terminal = std::io::stdout().is_terminal();
    loop {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (sent, acked) = (count(&progress.sent), count(&ledger.acked));
        let failover = match count(&progress.failover_ms) {
            0 => String::new(),
            ms => format!(", failover {ms} ms"),
        };
        let line = format!(
            "sent {sent}/{rows}, processed {}, acked {acked}, in queue {}, redelivered {}, crashes {}{failover}",
            count(&ledger.processed),
            sent.saturating_sub(acked),
            count(&ledger.redelivered),
            count(&ledger.crashes),
        );
        if is_terminal {
            print!("\r\x1b[2K{line}");
            // A terminal that is gone needs no display.
            let _ = std::io::stdout().flush();
        } else {
            println!("{line}");
        }
        sleep(Duration::from_millis(if is_terminal { 100 } else { 1_000 })).await;
    }
}

fn tell(verdict: &Verdict, failover: Option<&Failover>, ledger: &Ledger, took: Duration, output: Output) {
    let failover_ms = failover.map(|failover| failover.longest().as_millis() as u64);
    let mut object = verdict.to_json();
    object["failover_ms"] = json!(failover_ms);
    object["killed"] = json!(failover.map(|failover| failover.node_name.clone()));
    object["consumer_crashes"] = json!(ledger.crashes.load(Ordering::Relaxed));
    object["seconds"] = json!(took.as_secs_f64());
    if output.is_json() {
        return output.line("", &object);
    }
    let duplicates =
        verdict.duplicates.iter().map(|(cause, count)| format!("{count} {cause}")).collect::<Vec<_>>();
    println!("\n");
    println!("sent               {:>8}", verdict.sent);
    println!("acknowledged       {:>8}", verdict.acked);
    println!("lost               {:>8}", verdict.lost.len());
    println!("redelivered        {:>8}", verdict.redelivered);
    println!("processed again    {:>8}  {}", verdict.duplicates.values().sum::<u64>(), duplicates.join(", "));
    println!("leases shortened   {:>8}", verdict.leases_shortened);
    println!("fencing violations {:>8}", verdict.fencing_violations);
    if let Some(failover) = failover {
        let led = failover.partitions.len();
        println!(
            "failover           {:>8} ms  {} was killed; it led {led} partitions",
            failover_ms.unwrap_or(0),
            failover.node_name
        );
    }
    println!("took               {:>8.1} s", took.as_secs_f64());
    println!("{}", if verdict.holds() { "the proof holds" } else { "THE PROOF DOES NOT HOLD" });
}
