//! The steps of each order in order, and orders beside each other.
//!
//! An order is a message group of a FIFO queue: created, paid, shipped. Payments fail at first and are tried again; what is behind
//! them in their order waits, all other orders go on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use leasehold_client::{CancellationToken, Failure, Job, NewMessage, QueueKind, QueueSettings, RetryPolicy};
use tokio::time::sleep;

use crate::{Cluster, Failed, say};

const QUEUE: &str = "fifo-orders";
const STEPS: [&str; 3] = ["created", "paid", "shipped"];
/// Payments of every so many orders fail at first.
const FAIL_EVERY: usize = 5;
const STEP_TIME: Duration = Duration::from_millis(5);
/// Longer than the example takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// Orders, step by step.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    cluster: Cluster,
    /// Orders, of three steps each.
    #[arg(long, default_value_t = 400)]
    orders: usize,
}

/// What happened to the orders.
#[derive(Default)]
struct Ledger {
    /// The steps of each, in the order in which they happened.
    orders: BTreeMap<String, Vec<String>>,
    at_work: usize,
    at_work_most: usize,
}

type SharedLedger = Arc<Mutex<Ledger>>;

/// Runs the example.
///
/// # Errors
/// When the steps of an order are not in order, or something fails that is not made to fail.
pub async fn run(arguments: Arguments) -> Result<(), Failed> {
    let connection = arguments.cluster.connect().await?;
    let settings = QueueSettings { kind: Some(QueueKind::Fifo.into()), ..QueueSettings::default() };
    connection.fresh_queue(QUEUE, settings, 2).await?;
    let step = |order: usize, step: &str| NewMessage::new(step.to_owned()).group(format!("order {order}"));
    let all = STEPS.iter().flat_map(|name| (0..arguments.orders).map(move |order| step(order, name)));
    connection.send(QUEUE, all.collect::<Vec<_>>()).await?;

    let (ledger, stop) = (SharedLedger::default(), CancellationToken::new());
    let retry = RetryPolicy::new(Duration::from_millis(50), Duration::from_millis(500));
    let consumer =
        connection.client.queue(QUEUE).consumer().concurrency(32).retry(retry).stop_on(stop.clone());
    let (counters, began) = (consumer.counters(), Instant::now());
    let working = tokio::spawn(consumer.run(handler(&ledger)));
    while counters.now().acked < (arguments.orders * STEPS.len()) as u64 {
        if began.elapsed() > PATIENCE {
            return Err(format!("not done: {:?}", counters.now()).into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    working.await??;
    connection.end().await;
    let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
    let counts = counters.now();
    say(&format!("orders         {:>8}", ledger.orders.len()));
    say(&format!("steps          {:>8}", counts.acked));
    say(&format!("payments again {:>8}", counts.retried));
    say(&format!("at a time      {:>8}  at most", ledger.at_work_most));
    match ledger.orders.iter().find(|(_, steps)| **steps != STEPS) {
        Some((order, steps)) => Err(format!("{order}: {steps:?}").into()),
        None => {
            say("every order went step by step");
            Ok(())
        }
    }
}

fn handler(
    ledger: &SharedLedger,
) -> impl Fn(Job) -> futures::future::BoxFuture<'static, Result<(), Failure>> + Send + Sync + use<> {
    let ledger = Arc::clone(ledger);
    move |job| {
        let ledger = Arc::clone(&ledger);
        Box::pin(async move {
            with(&ledger, |ledger| {
                ledger.at_work += 1;
                ledger.at_work_most = ledger.at_work_most.max(ledger.at_work);
            });
            sleep(STEP_TIME).await;
            let result = take_step(&ledger, &job);
            with(&ledger, |ledger| ledger.at_work -= 1);
            result
        })
    }
}

fn take_step(ledger: &SharedLedger, job: &Job) -> Result<(), Failure> {
    let (Some(order), step) = (job.group.clone(), std::str::from_utf8(&job.body)?) else {
        return Err(Failure::reject("a step without an order"));
    };
    let number: usize = order.trim_start_matches("order ").parse()?;
    if step == "paid" && number.is_multiple_of(FAIL_EVERY) && job.receive_count < 3 {
        return Err(Failure::retry("the bank is busy"));
    }
    with(ledger, |ledger| {
        let steps = ledger.orders.entry(order).or_default();
        // One whose ack was lost comes again: it is done already.
        if steps.last().is_none_or(|last| last != step) {
            steps.push(step.to_owned());
        }
    });
    Ok(())
}

fn with(ledger: &SharedLedger, change: impl FnOnce(&mut Ledger)) {
    change(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner));
}
