//! Fills a cache in the background: asked for by many, done once, tried again when the source is slow, and given up for what cannot be.
//!
//! Everybody who misses an entry asks for it. The route is the deduplication id, so that a thousand askers are one message. The source
//! fails now and then: the message comes again by the retry policy. What no source knows is rejected, and waits in a dead-letter
//! queue with the reason for somebody to look.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::TryStreamExt;
use leasehold_client::{CancellationToken, Client, Failure, Job, NewMessage, QueueSettings, RetryPolicy};
use tokio::time::{sleep, timeout};

use crate::{Cluster, Failed, flights, say};

const QUEUE: &str = "cache-warmer";
const DEAD: &str = "cache-warmer-dead";
/// Every so many requests of the source fail.
const FAIL_EVERY: u32 = 7;
/// What nobody flies.
const UNKNOWN: &str = "JFK-ZZZ";
/// Longer than the example takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cache that is filled by a queue.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    cluster: Cluster,
    /// Requests that miss the cache, 48,000 at most.
    #[arg(long, default_value_t = 20_000)]
    misses: usize,
}

/// Flights a route, by `origin-destination`.
#[derive(Default)]
struct Cache {
    entries: Mutex<BTreeMap<String, u32>>,
    asked: AtomicU32,
}

/// Runs the example.
///
/// # Errors
/// When the cache is not what it has to be, or something fails that is not made to fail.
pub async fn run(arguments: Arguments) -> Result<(), Failed> {
    let connection = arguments.cluster.connect().await?;
    connection.fresh_queue(DEAD, QueueSettings::default(), 1).await?;
    let settings = QueueSettings {
        dead_letter_queue: Some(DEAD.to_owned()),
        receives_max: Some(20),
        ..QueueSettings::default()
    };
    connection.fresh_queue(QUEUE, settings, 2).await?;
    let lines = flights()?;
    let source = Arc::new(count_routes(&lines));
    let misses: Vec<String> = lines.iter().take(arguments.misses).map(|line| route_of(line)).collect();
    let wanted: BTreeSet<String> = misses.iter().cloned().collect();
    let asked = misses.iter().map(String::as_str).chain([UNKNOWN]);
    // Of another run on the same cluster nothing is remembered; in containers process ids repeat.
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let run = format!("{}-{}", since_1970.as_nanos(), std::process::id());
    let messages =
        asked.map(|route| NewMessage::new(route.to_owned()).deduplication_id(format!("{run} {route}")));
    connection.send(QUEUE, messages).await?;

    let (cache, stop) = (Arc::new(Cache::default()), CancellationToken::new());
    let retry = RetryPolicy::new(Duration::from_millis(20), Duration::from_millis(200));
    let consumer =
        connection.client.queue(QUEUE).consumer().concurrency(32).retry(retry).stop_on(stop.clone());
    let counters = consumer.counters();
    let warming = tokio::spawn(consumer.run(warm(Arc::clone(&cache), source)));
    let why = timeout(PATIENCE, rejected(&connection.client)).await??;
    let is_full = async {
        while cache.entries.lock().unwrap_or_else(PoisonError::into_inner).len() < wanted.len() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, is_full).await?;
    stop.cancel();
    warming.await??;
    let counts = counters.now();
    connection.end().await;
    say(&format!("misses         {:>8}", misses.len()));
    say(&format!("routes warmed  {:>8}  each by one message", counts.acked));
    say(&format!("tried again    {:>8}  the source failed", counts.retried));
    say(&format!("rejected       {:>8}  {UNKNOWN}: {why}", counts.rejected));
    let warmed: BTreeSet<String> =
        cache.entries.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
    if warmed != wanted {
        return Err("the cache has other routes than were asked for".into());
    }
    say("the cache is warm");
    Ok(())
}

/// The handler: asks the source, and keeps what it says.
fn warm(
    cache: Arc<Cache>,
    source: Arc<BTreeMap<String, u32>>,
) -> impl Fn(Job) -> futures::future::BoxFuture<'static, Result<(), Failure>> + Send + Sync {
    move |job| {
        let (cache, source) = (Arc::clone(&cache), Arc::clone(&source));
        Box::pin(async move {
            let route = std::str::from_utf8(&job.body).map_err(|error| Failure::reject(error.to_string()))?;
            if cache.asked.fetch_add(1, Ordering::Relaxed) % FAIL_EVERY == FAIL_EVERY - 1 {
                return Err(Failure::retry("the source is busy"));
            }
            let count = source.get(route).ok_or_else(|| Failure::reject("nobody flies there"))?;
            // To fill an entry twice does what filling it once does.
            cache.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(route.to_owned(), *count);
            Ok(())
        })
    }
}

/// Waits for the dead letter, and gives its reason.
async fn rejected(client: &Client) -> Result<String, Failed> {
    let mut dead = client.queue(DEAD).consumer().start();
    let delivery = dead.try_next().await?.ok_or("the consumer ended")?;
    let why = delivery.attribute("leasehold-rejected").ok_or("a dead letter without a reason")?;
    let why = String::from_utf8_lossy(why).into_owned();
    delivery.ack().await?;
    dead.close().await;
    Ok(why)
}

fn count_routes(lines: &[String]) -> BTreeMap<String, u32> {
    let mut routes = BTreeMap::new();
    lines.iter().for_each(|line| *routes.entry(route_of(line)).or_default() += 1);
    routes
}

fn route_of(line: &str) -> String {
    let field = |at: usize| line.split(',').nth(at).unwrap_or_default();
    format!("{}-{}", field(12), field(13))
}
