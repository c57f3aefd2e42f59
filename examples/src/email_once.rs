//! Each order gets one mail, however often its handler dies.
//!
//! The handler is wrapped by `Idempotent` over a file, and the mail carries the operation's name, as mail providers take it: a
//! provider sends the same name once. So every point at which a handler can die is covered: before the mail by the
//! redelivery, between mail and record by the provider, after the record by the record.
//!
//! Handlers panic at random, and the whole consumer is dropped in the middle several times, with its handlers, as if the process had
//! been killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leasehold_client::idempotency::Idempotent;
use leasehold_client::idempotency::redb::{RedbError, RedbStore};
use leasehold_client::{Client, Failure, Job, NewMessage, QueueSettings, RetryPolicy};
use tokio::time::{Instant, sleep, timeout};

use crate::{Cluster, Failed, say};

const QUEUE: &str = "email-once";
/// Lives of the consumer that end in the middle.
const DEATHS: u64 = 4;
const LIFE: Duration = Duration::from_millis(400);
/// Longer than the example takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// Mails that are sent once.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    cluster: Cluster,
    /// Orders to confirm.
    #[arg(long, default_value_t = 300)]
    orders: usize,
}

/// Sends each mail once for each name, as providers promise.
#[derive(Default)]
struct Provider {
    /// Mails by name, with how often they were asked for.
    mails: Mutex<BTreeMap<String, u32>>,
}

impl Provider {
    async fn send(&self, name: &str) {
        sleep(Duration::from_millis(2)).await;
        *self.mails.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default() += 1;
        sleep(Duration::from_millis(2)).await;
    }

    fn mails(&self) -> BTreeMap<String, u32> {
        self.mails.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Says when to die.
#[derive(Default)]
struct Fate {
    asked: AtomicU64,
}

impl Fate {
    /// One in five, at each of its points.
    fn tempt(&self) {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        assert!(asked.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 0xff >= 51, "the handler dies here");
    }
}

/// Runs the example.
///
/// # Errors
/// When an order has no mail or several, or something fails that is not made to fail.
pub async fn run(arguments: Arguments) -> Result<(), Failed> {
    // The panics are part of the example.
    std::panic::set_hook(Box::new(|_| {}));
    let connection = arguments.cluster.connect().await?;
    connection.fresh_queue(QUEUE, QueueSettings::default(), 1).await?;
    let orders = (0..arguments.orders).map(|number| format!("order {number}"));
    // Each comes twice, as from a shop that was not sure.
    let messages = orders.flat_map(|order| [NewMessage::new(order.clone()), NewMessage::new(order)]);
    connection.send(QUEUE, messages).await?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("mails.redb");
    let (provider, fate) = (Arc::new(Provider::default()), Arc::new(Fate::default()));
    let mut panics = 0;
    for life in 0..=DEATHS {
        let consumer = connection.client.queue(QUEUE).consumer().concurrency(16);
        let consumer =
            consumer.retry(RetryPolicy::new(Duration::from_millis(50), Duration::from_millis(500)));
        let counters = consumer.counters();
        let once = Idempotent::new(open(&file).await?).key(name_of);
        let running = consumer.run(confirm(once, Arc::clone(&provider), Arc::clone(&fate)));
        if life < DEATHS {
            // Dropped in the middle, with all its handlers.
            let _ = timeout(LIFE, running).await;
        } else {
            tokio::select! {
                ended = running => ended?,
                done = timeout(PATIENCE, until_empty(&connection.client)) => done??,
            }
        }
        panics += counters.now().panicked;
    }
    connection.end().await;
    let mails = provider.mails();
    let repeated = mails.values().filter(|asked| **asked > 1).count();
    say(&format!("orders         {:>8}  each sent to the queue twice", arguments.orders));
    say(&format!("handlers died  {panics:>8}  and {DEATHS} consumers in the middle"));
    say(&format!("mails          {:>8}", mails.len()));
    say(&format!("asked twice    {repeated:>8}  between mail and record: the provider knew the name"));
    if mails.len() != arguments.orders {
        return Err(format!("{} mails for {} orders", mails.len(), arguments.orders).into());
    }
    say("one mail for each order");
    Ok(())
}

/// Names the mail of a message: different bodies have different names, whatever is in them.
fn name_of(job: &Job) -> String {
    job.body.escape_ascii().to_string()
}

/// The handler, which dies at any of its points.
fn confirm(
    once: Idempotent<RedbStore>,
    provider: Arc<Provider>,
    fate: Arc<Fate>,
) -> impl Fn(Job) -> futures::future::BoxFuture<'static, Result<(), Failure>> + Send + Sync {
    let inner = {
        let fate = Arc::clone(&fate);
        once.handler(move |job: Job| {
            let (provider, fate) = (Arc::clone(&provider), Arc::clone(&fate));
            async move {
                fate.tempt();
                provider.send(&name_of(&job)).await;
                fate.tempt();
                Ok(())
            }
        })
    };
    move |job| {
        let (handled, fate) = (inner(job), Arc::clone(&fate));
        Box::pin(async move {
            fate.tempt();
            handled.await?;
            fate.tempt();
            Ok(())
        })
    }
}

/// The file of a consumer that was dropped is closed when its last write is done.
async fn open(file: &Path) -> Result<RedbStore, RedbError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match RedbStore::open(file) {
            Err(_) if Instant::now() < end => sleep(Duration::from_millis(20)).await,
            opened => return opened,
        }
    }
}

/// Waits until every message is acked.
async fn until_empty(client: &Client) -> Result<(), Failed> {
    loop {
        let counters = client.describe_queue(QUEUE).await?.counters.unwrap_or_default();
        if counters.ready + counters.leased + counters.delayed == 0 {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
}
