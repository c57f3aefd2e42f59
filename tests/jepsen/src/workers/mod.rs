//! The clients: senders of unique rows, and those who do something with what was sent.

mod consumer;
mod lessee;
mod owner;
mod repeater;
pub mod streams;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use leasehold_client::v1::Reason;
use leasehold_client::{Client, Error, Lease, Message, NewMessage, ReceiveOptions};
use leasehold_histories::history::{Op, Outcome, Recorder};
use leasehold_histories::random::Random;
use leasehold_histories::workload::Workload;
use tokio::sync::RwLock;
use tokio::time::sleep;

use crate::workload::{self, Bodies, QUEUE, message};

pub use consumer::consumer;
pub use lessee::lessee;
pub use owner::{list_queues, owner};
pub use repeater::{REPEATED_QUEUE, repeater};

const CALL_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(20);
const RECEIVE_WAIT: Duration = Duration::from_millis(300);

/// What all workers share.
pub struct Stage {
    pub workload: Workload,
    pub bodies: Bodies,
    pub recorder: Recorder,
    pub endpoints: std::sync::RwLock<Vec<String>>,
    /// Those that hold the queue.
    pub partitions: Vec<u32>,
    pub rows: AtomicU64,
    /// Messages that were refused because the queue was full.
    pub full: AtomicU64,
    /// Queues that were asked to be made, by their names.
    pub queues: Mutex<BTreeSet<String>>,
    /// What producers and consumers did not come to an end with.
    pub endless: Mutex<Vec<String>>,
    /// Read for as long as a client waits for an answer; who writes it has all clients stand still.
    pub calls: RwLock<()>,
    /// While it is, nothing is received: what is sent stays on the disks.
    pub is_held_back: AtomicBool,
    pub is_over: AtomicBool,
    pub is_drained: AtomicBool,
}

impl Stage {
    /// Where all nodes are now.
    fn endpoints(&self) -> Vec<String> {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A client of its own that knows all nodes.
    pub fn client(&self) -> Result<Client, Error> {
        self.patient_client(CALL_TIMEOUT)
    }

    /// The same, and it waits so long for an answer.
    pub fn patient_client(&self, patience: Duration) -> Result<Client, Error> {
        Client::builder(self.endpoints()).call_timeout(patience).build()
    }

    /// For each node a client that knows it alone, and waits so long for an answer.
    pub fn clients_of_nodes(&self, patience: Duration) -> Result<Vec<Client>, Error> {
        let endpoints = self.endpoints();
        let of_node = |endpoint| Client::builder([endpoint]).call_timeout(patience).build();
        endpoints.into_iter().map(of_node).collect()
    }
}

fn outcome<T>(result: Result<&T, &Error>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(error) if error.outcome == leasehold_client::Outcome::Unknown => Outcome::Unknown,
        Err(_) => Outcome::NotDone,
    }
}

/// Sends unique rows until the run is over.
pub async fn sender(stage: Arc<Stage>, mut random: Random) {
    let Ok(mut client) = stage.client() else { return };
    while !stage.is_over.load(Ordering::Relaxed) {
        let count = 1 + random.below(20);
        let first = stage.rows.fetch_add(count, Ordering::Relaxed);
        let is_known = send(&stage, &client, first..first + count).await;
        let is_repeated = random.percent(stage.workload.repeated_percent());
        if random.percent(2) || is_repeated {
            // A sender that was started again is another session.
            client = stage.client().unwrap_or(client);
        }
        if is_repeated || (!is_known && stage.workload == Workload::Deduplication) {
            send(&stage, &client, first..first + count).await;
        }
        sleep(Duration::from_millis(random.below(stage.workload.pause_ms_max()))).await;
    }
}

/// Sends rows in one batch; false when it is not known of all of them whether they were sent.
async fn send(stage: &Stage, client: &Client, rows: std::ops::Range<u64>) -> bool {
    let messages =
        rows.clone().map(|row| message(stage.workload, row, stage.bodies)).collect::<Vec<NewMessage>>();
    let _call = stage.calls.read().await;
    let began_us = stage.recorder.now_us();
    let sent = client.send(QUEUE, messages).await;
    let ended_us = stage.recorder.now_us();
    let mut is_known = true;
    for (at, row) in rows.enumerate() {
        let result = sent.as_ref().and_then(|outcomes| outcomes[at].as_ref());
        let message = result.ok().map(|sent| (sent.id.partition, sent.id.sequence));
        let is_full = |error: &&Error| error.reason == Reason::QueueFull;
        if result.as_ref().is_err_and(is_full) {
            stage.full.fetch_add(1, Ordering::Relaxed);
        }
        let outcome = outcome(result);
        is_known &= outcome != Outcome::Unknown;
        stage.recorder.add(Op::Send { row, began_us, ended_us, outcome, message });
    }
    is_known
}

/// Reads a dead-letter queue until it is empty, as it says itself.
///
/// # Errors
/// When the queue cannot be read although it was tried for so long.
pub async fn read_dead_letters(stage: &Stage, queue: &str, patience: Duration) -> Result<(), Error> {
    let client = stage.patient_client(patience)?;
    loop {
        let options = ReceiveOptions { messages_max: 100, wait: RECEIVE_WAIT, ..ReceiveOptions::default() };
        let messages = client.receive(queue, options).await?;
        for message in &messages {
            let message_id = (message.id.partition, message.id.sequence);
            let receive_count = Some(message.origin.as_ref().map_or(0, |origin| origin.receive_count));
            stage.recorder.add(Op::DeadLetter { row: row_of(message), message: message_id, receive_count });
        }
        let receipts = messages.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
        if !receipts.is_empty() {
            client.ack(queue, &receipts).await?;
            continue;
        }
        let counters = client.describe_queue(queue).await?.counters.unwrap_or_default();
        if counters.ready + counters.leased == 0 {
            return Ok(());
        }
    }
}

/// Leases messages and writes the grants down, with when they came.
async fn receive(stage: &Stage, client: &Client, wanted: ReceiveOptions) -> Option<(Vec<Message>, Instant)> {
    while stage.is_held_back.load(Ordering::Relaxed) {
        sleep(RETRY_PAUSE).await;
    }
    let options = ReceiveOptions { wait: RECEIVE_WAIT, ..wanted };
    let call = stage.calls.read().await;
    let began_us = stage.recorder.now_us();
    let received = client.receive(QUEUE, options).await;
    let at = Instant::now();
    drop(call);
    let Ok(messages) = received else {
        sleep(RETRY_PAUSE).await;
        return None;
    };
    for message in &messages {
        stage.recorder.add(Op::Grant {
            row: row_of(message),
            message: (message.id.partition, message.id.sequence),
            grant: message.fencing_token,
            receive_count: message.receive_count,
            began_us,
            ended_us: stage.recorder.us(at),
            lease_until_us: stage.recorder.us(message.lease_until.into_std()),
        });
    }
    (!messages.is_empty()).then_some((messages, at))
}

/// What is done under a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settle {
    Ack,
    /// Ready again after this time.
    Release(Duration),
    /// The lease ends this long from now.
    Extend(Duration),
}

async fn settle(stage: &Stage, client: &Client, messages: &[Message], settle: Settle) {
    let receipts = || messages.iter().map(|message| message.receipt.clone());
    let leases = |duration| receipts().map(|receipt| Lease::new(receipt, duration)).collect::<Vec<_>>();
    let _call = stage.calls.read().await;
    let began_us = stage.recorder.now_us();
    let settled = match settle {
        Settle::Ack => client.ack(QUEUE, &receipts().collect::<Vec<_>>()).await,
        Settle::Release(delay) => client.release(QUEUE, &leases(delay)).await,
        Settle::Extend(lease) => client.extend(QUEUE, &leases(lease)).await,
    };
    let ended_us = stage.recorder.now_us();
    for (at, message) in messages.iter().enumerate() {
        let outcome = outcome(settled.as_ref().and_then(|outcomes| outcomes[at].as_ref()));
        let (message, grant) = ((message.id.partition, message.id.sequence), message.fencing_token);
        let us = |duration: Duration| duration.as_micros() as u64;
        stage.recorder.add(match settle {
            Settle::Ack => Op::Ack { message, grant, began_us, ended_us, outcome },
            Settle::Release(delay) => {
                Op::Release { message, grant, began_us, ended_us, outcome, delay_us: us(delay) }
            }
            Settle::Extend(lease) => {
                Op::Extend { message, grant, began_us, ended_us, outcome, lease_us: us(lease) }
            }
        });
    }
}

/// What was sent; a row that nobody sent when the body is none that was.
fn row_of(message: &Message) -> u64 {
    workload::row_of(&message.body).unwrap_or(u64::MAX)
}
