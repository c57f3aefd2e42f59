//! The clients: senders of unique rows, and consumers that ack, hold too long, give back or crash.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use leasehold_client::{Client, Error, Lease, Message, NewMessage, ReceiveOptions};
use leasehold_histories::history::{Op, Outcome, Recorder};
use leasehold_histories::workload::{LEASE, Workload};
use tokio::time::sleep;

use crate::random::Random;
use crate::workload::{DEAD_LETTER_QUEUE, QUEUE, message};

const CALL_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// What all workers share.
pub struct Stage {
    pub workload: Workload,
    pub recorder: Recorder,
    pub endpoints: std::sync::RwLock<Vec<String>>,
    /// Those that hold the queue.
    pub partitions: Vec<u32>,
    pub rows: AtomicU64,
    pub is_over: AtomicBool,
    pub is_drained: AtomicBool,
}

impl Stage {
    /// A client of its own that knows where all nodes are now.
    pub fn client(&self) -> Result<Client, Error> {
        let endpoints = self.endpoints.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        Client::builder(endpoints).call_timeout(CALL_TIMEOUT).build()
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
    let messages = rows.clone().map(|row| message(stage.workload, row)).collect::<Vec<NewMessage>>();
    let began_us = stage.recorder.now_us();
    let sent = client.send(QUEUE, messages).await;
    let ended_us = stage.recorder.now_us();
    let mut is_known = true;
    for (at, row) in rows.enumerate() {
        let result = sent.as_ref().and_then(|outcomes| outcomes[at].as_ref());
        let message = result.ok().map(|sent| (sent.id.partition, sent.id.sequence));
        let outcome = outcome(result);
        is_known &= outcome != Outcome::Unknown;
        stage.recorder.add(Op::Send { row, began_us, ended_us, outcome, message });
    }
    is_known
}

/// Reads the dead-letter queue until it is empty, as it says itself.
///
/// # Errors
/// When the queue cannot be read.
pub async fn read_dead_letters(stage: &Stage) -> Result<(), Error> {
    let client = stage.client()?;
    loop {
        let wait = Duration::from_millis(300);
        let options = ReceiveOptions { messages_max: 100, wait, ..ReceiveOptions::default() };
        let messages = client.receive(DEAD_LETTER_QUEUE, options).await?;
        for message in &messages {
            let message_id = (message.id.partition, message.id.sequence);
            stage.recorder.add(Op::DeadLetter { row: row_of(message), message: message_id });
        }
        let receipts = messages.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
        if !receipts.is_empty() {
            client.ack(DEAD_LETTER_QUEUE, &receipts).await?;
            continue;
        }
        let counters = client.describe_queue(DEAD_LETTER_QUEUE).await?.counters.unwrap_or_default();
        if counters.ready + counters.leased == 0 {
            return Ok(());
        }
    }
}

/// What was sent; a row that nobody sent when the body is none.
fn row_of(message: &Message) -> u64 {
    std::str::from_utf8(&message.body).ok().and_then(|row| row.parse().ok()).unwrap_or(u64::MAX)
}

/// Consumes until the queue is drained; misbehaves until the run is over.
pub async fn consumer(stage: Arc<Stage>, mut random: Random) {
    let Ok(mut client) = stage.client() else { return };
    while !stage.is_drained.load(Ordering::Relaxed) {
        let Some((messages, received)) = receive(&stage, &client, 1 + random.below(20)).await else {
            continue;
        };
        let behaviour = if stage.is_over.load(Ordering::Relaxed) { 99 } else { random.below(100) };
        match behaviour {
            0..10 => client = stage.client().unwrap_or(client),
            10..18 => {
                let held = LEASE + Duration::from_millis(200 + random.below(1_000));
                sleep(held.saturating_sub(received.elapsed())).await;
                ack(&stage, &client, &messages).await;
            }
            18..28 => release(&stage, &client, &messages).await,
            _ => {
                sleep(Duration::from_millis(random.below(20))).await;
                ack(&stage, &client, &messages).await;
            }
        }
    }
}

async fn receive(stage: &Stage, client: &Client, messages_max: u64) -> Option<(Vec<Message>, Instant)> {
    let wait = Duration::from_millis(300);
    let options = ReceiveOptions { messages_max: messages_max as u32, wait, ..ReceiveOptions::default() };
    let began_us = stage.recorder.now_us();
    let received = client.receive(QUEUE, options).await;
    let at = Instant::now();
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

async fn ack(stage: &Stage, client: &Client, messages: &[Message]) {
    let receipts = messages.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
    let began_us = stage.recorder.now_us();
    let acked = client.ack(QUEUE, &receipts).await;
    let ended_us = stage.recorder.now_us();
    for (at, message) in messages.iter().enumerate() {
        let outcome = outcome(acked.as_ref().and_then(|outcomes| outcomes[at].as_ref()));
        let (message, grant) = ((message.id.partition, message.id.sequence), message.fencing_token);
        stage.recorder.add(Op::Ack { message, grant, began_us, ended_us, outcome });
    }
}

async fn release(stage: &Stage, client: &Client, messages: &[Message]) {
    let leases = messages
        .iter()
        .map(|message| Lease::new(message.receipt.clone(), Duration::ZERO))
        .collect::<Vec<_>>();
    let began_us = stage.recorder.now_us();
    let released = client.release(QUEUE, &leases).await;
    let ended_us = stage.recorder.now_us();
    for (at, message) in messages.iter().enumerate() {
        let outcome = outcome(released.as_ref().and_then(|outcomes| outcomes[at].as_ref()));
        let (message, grant) = ((message.id.partition, message.id.sequence), message.fencing_token);
        stage.recorder.add(Op::Release { message, grant, began_us, ended_us, outcome });
    }
}
