//! A stream of events into a database, each counted once.
//!
//! Events come at a rate. A consumer takes them as a stream, in chunks of what is there, and writes each chunk in one transaction:
//! the event under its id, and the totals if the id is new. It acks after the commit. A crash between the two brings the chunk
//! again, and changes nothing: every tenth chunk is given back instead of acked to show it. In the end the totals are
//! compared with those of the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use leasehold_client::{Client, Delivery, NewMessage, Pending, Producer, QueueSettings};
use rusqlite::Connection as Database;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use crate::{Cluster, Failed, flights, say};

const QUEUE: &str = "clickstream";
const SHARDS: u32 = 4;
/// Events that one transaction writes.
const CHUNK_MAX: usize = 1_000;
/// Deliveries in hand: some chunks.
const IN_HAND_MAX: u32 = 8_000;
/// Every so many chunks are given back after the commit, as after a crash.
const CRASH_EVERY: usize = 10;
/// How often the sender looks how many are due.
const TICK: Duration = Duration::from_millis(5);

/// A clickstream into SQLite.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    cluster: Cluster,
    /// Events to send. The file has 48,000, and begins anew when it ends.
    #[arg(long, default_value_t = 500_000)]
    events: usize,
    /// Events a second.
    #[arg(long, default_value_t = 50_000)]
    rate: u32,
}

/// Flights and minutes of delay of each carrier.
type Totals = BTreeMap<String, (u64, i64)>;

/// Runs the example.
///
/// # Errors
/// When the totals differ, or something fails that is not made to fail.
pub async fn run(arguments: Arguments) -> Result<(), Failed> {
    let connection = arguments.cluster.connect().await?;
    connection.fresh_queue(QUEUE, QueueSettings::default(), SHARDS).await?;
    let (flights, all) = (Arc::new(flights()?), arguments.events);
    let dir = tempfile::tempdir()?;
    let database = open(&dir.path().join("events.db"))?;
    let began = Instant::now();
    let sending = tokio::spawn(send(connection.client.clone(), flights.clone(), all, arguments.rate));
    let storing = async {
        let stored = consume(&connection.client, database, all).await?;
        Ok::<_, Failed>((stored, began.elapsed()))
    };
    // What was not sent never comes: the first that fails ends both.
    let (sent_in, ((database, seen_again), took)) = tokio::try_join!(joined(sending), storing)?;
    let (expected, stored) = (totals_of(flights.iter().cycle().take(all)), totals_in(&database)?);
    let per_second = |time: Duration| all as f64 / time.as_secs_f64();
    say(&format!("sent           {all:>8}  {:.0} a second", per_second(sent_in)));
    say(&format!("stored         {all:>8}  {:.0} a second", per_second(took)));
    say(&format!("came again     {seen_again:>8}  and changed nothing"));
    say(&format!("carriers       {:>8}", stored.len()));
    connection.end().await;
    if stored != expected {
        return Err(format!("the totals differ: {stored:?} instead of {expected:?}").into());
    }
    say("the totals agree");
    Ok(())
}

/// Sends the events at the rate, and says how long that took.
async fn send(client: Client, flights: Arc<Vec<String>>, all: usize, rate: u32) -> Result<Duration, Failed> {
    let producer = client.queue(QUEUE).producer().start();
    let (handed_over, mut pending) = mpsc::unbounded_channel();
    let confirming = tokio::spawn(async move {
        while let Some(sent) = pending.recv().await {
            let sent: Pending = sent;
            sent.await?;
        }
        Ok::<_, Failed>(())
    });
    let began = Instant::now();
    let handed = hand_over(&producer, &flights, all, rate, handed_over).await;
    // A send that failed is why the next ones cannot be handed over.
    confirming.await??;
    handed?;
    Ok(began.elapsed())
}

/// What became of a task, also when it panicked.
async fn joined<T>(task: JoinHandle<Result<T, Failed>>) -> Result<T, Failed> {
    task.await?
}

/// Gives the events to the producer at the rate, and their answers to who waits for them.
async fn hand_over(
    producer: &Producer,
    flights: &[String],
    all: usize,
    rate: u32,
    handed_over: mpsc::UnboundedSender<Pending>,
) -> Result<(), Failed> {
    let (began, mut next) = (Instant::now(), 0);
    while next < all {
        let due = (began.elapsed().as_secs_f64() * f64::from(rate)) as usize + 1;
        for id in next..due.min(all) {
            let line = &flights[id % flights.len()];
            handed_over.send(producer.enqueue(NewMessage::new(format!("{id},{line}"))).await?)?;
        }
        next = due;
        sleep(TICK).await;
    }
    Ok(())
}

/// Stores events until all are there; gives the database back, and how many came again.
async fn consume(client: &Client, mut database: Database, all: usize) -> Result<(Database, usize), Failed> {
    let deliveries = client.queue(QUEUE).consumer().concurrency(IN_HAND_MAX).batch_max(1_000).start();
    let mut chunks = deliveries.ready_chunks(CHUNK_MAX).enumerate();
    let (mut stored, mut seen_again) = (0, 0);
    while stored < all {
        let Some((number, chunk)) = chunks.next().await else { return Err("the consumer ended".into()) };
        let chunk = futures::stream::iter(chunk).try_collect::<Vec<Delivery>>().await?;
        let lines: Vec<_> = chunk.iter().map(|delivery| delivery.body.clone()).collect();
        let count = lines.len();
        let (back, new) = spawn_blocking(move || {
            let new = store(&mut database, &lines);
            (database, new)
        })
        .await?;
        database = back;
        let new = new?;
        stored += new;
        seen_again += count - new;
        let is_crash = number % CRASH_EVERY == CRASH_EVERY - 1;
        let settled = chunk
            .into_iter()
            .map(|delivery| if is_crash { delivery.release(Duration::ZERO) } else { delivery.ack() });
        for result in join_all(settled).await {
            // One whose lease was lost meanwhile comes again.
            if let Err(error) = result {
                say(&format!("not settled: {error}"));
            }
        }
    }
    Ok((database, seen_again))
}

fn open(file: &Path) -> rusqlite::Result<Database> {
    let database = Database::open(file)?;
    database.execute_batch(
        "pragma journal_mode = wal;
         create table events (id integer primary key);
         create table carriers (carrier text primary key, flights integer, delay_minutes integer);",
    )?;
    Ok(database)
}

/// Writes a chunk in one transaction; returns how many of its events are new.
fn store(database: &mut Database, lines: &[bytes::Bytes]) -> Result<usize, Failed> {
    let transaction = database.transaction()?;
    let mut new = 0;
    {
        let mut event = transaction.prepare("insert into events values (?1) on conflict do nothing")?;
        let mut carrier = transaction.prepare(
            "insert into carriers values (?1, 1, ?2) on conflict do update
             set flights = flights + 1, delay_minutes = delay_minutes + excluded.delay_minutes",
        )?;
        for line in lines {
            let (id, line) = std::str::from_utf8(line)?.split_once(',').ok_or("an event without an id")?;
            if event.execute([id.parse::<i64>()?])? == 1 {
                let (name, delay_minutes) = carrier_of(line);
                carrier.execute((name, delay_minutes))?;
                new += 1;
            }
        }
    }
    transaction.commit()?;
    Ok(new)
}

/// The carrier, and the delay of the departure; a flight that never left has none.
fn carrier_of(line: &str) -> (&str, i64) {
    let field = |at: usize| line.split(',').nth(at).unwrap_or_default();
    (field(9), field(5).parse().unwrap_or(0))
}

fn totals_of<'a>(events: impl Iterator<Item = &'a String>) -> Totals {
    let mut totals = Totals::new();
    for line in events {
        let (carrier, delay_minutes) = carrier_of(line);
        let (flights, delays) = totals.entry(carrier.to_owned()).or_default();
        *flights += 1;
        *delays += delay_minutes;
    }
    totals
}

fn totals_in(database: &Database) -> Result<Totals, Failed> {
    let mut query = database.prepare("select carrier, flights, delay_minutes from carriers")?;
    let rows = query.query_map([], |row| {
        let flights = row.get::<_, i64>(1)?.unsigned_abs();
        Ok((row.get(0)?, (flights, row.get(2)?)))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
