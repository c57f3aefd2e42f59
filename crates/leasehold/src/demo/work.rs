//! The consumers of the demo: some do their work, some crash in the middle of it, one is too slow.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use leasehold_client::{Client, Error, Message, Outcome, Reason, ReceiveOptions};
use tokio::time::sleep;

use super::proof::{Ending, Record};
use super::{LEASE, QUEUE, ROW};

/// Messages that a good worker takes at once, and how long it works on them.
const BATCH: u32 = 50;
const WORK: Duration = Duration::from_millis(40);
/// Messages that a crash leaves half done.
const CRASH_BATCH: u32 = 20;
const RESTART_PAUSE: Duration = Duration::from_millis(700);
const SLOW_BATCH: u32 = 5;
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What all workers write into.
#[derive(Default)]
pub struct Ledger {
    /// What was sent, by row.
    bodies: Vec<Bytes>,
    records: Mutex<Vec<Record>>,
    pub sent: AtomicU64,
    /// 0 until it is known.
    pub failover_ms: AtomicU64,
    /// Deliveries in the hands of workers.
    pub in_flight: AtomicU64,
    pub processed: AtomicU64,
    pub acked: AtomicU64,
    pub redelivered: AtomicU64,
    pub crashes: AtomicU64,
    /// No more misbehaviour: what is left shall be worked off.
    pub is_draining: AtomicBool,
    pub is_over: AtomicBool,
}

impl Ledger {
    pub fn new(bodies: Vec<Bytes>) -> Self {
        Self { bodies, ..Self::default() }
    }

    pub fn take_records(&self) -> Vec<Record> {
        std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, message: &Message, received: Instant, is_processed: bool, ending: Ending) {
        let row = message.attribute(ROW).and_then(|row| std::str::from_utf8(row).ok()?.parse::<u64>().ok());
        // A message that nobody of the demo sent shows up as a row that was not sent.
        let row = row.unwrap_or(u64::MAX);
        let body = usize::try_from(row).ok().and_then(|row| self.bodies.get(row));
        let record = Record {
            row,
            message: (message.id.partition, message.id.sequence),
            fencing_token: message.fencing_token,
            receive_count: message.receive_count,
            received,
            lease_until: message.lease_until.into_std(),
            finished: Instant::now(),
            is_intact: body == Some(&message.body),
            is_processed,
            ending,
        };
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.processed.fetch_add(u64::from(is_processed), Ordering::Relaxed);
        self.acked.fetch_add(u64::from(ending == Ending::Acked), Ordering::Relaxed);
        self.redelivered.fetch_add(u64::from(message.receive_count > 1), Ordering::Relaxed);
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }
}

async fn receive(client: &Client, consumer: &str, messages_max: u32, ledger: &Ledger) -> Vec<Message> {
    let wait = Duration::from_millis(500);
    let options =
        ReceiveOptions { messages_max, wait, consumer: consumer.to_owned(), ..ReceiveOptions::default() };
    match client.receive(QUEUE, options).await {
        Ok(messages) => {
            ledger.in_flight.fetch_add(messages.len() as u64, Ordering::Relaxed);
            messages
        }
        Err(_) => {
            // A node may be down: the next try finds another.
            sleep(RETRY_PAUSE).await;
            Vec::new()
        }
    }
}

async fn ack(client: &Client, messages: &[Message]) -> Vec<Ending> {
    let receipts = messages.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
    match client.ack(QUEUE, &receipts).await {
        Ok(outcomes) => outcomes.iter().map(|outcome| ending(outcome.as_ref().err())).collect(),
        Err(error) => vec![ending(Some(&error)); messages.len()],
    }
}

fn ending(error: Option<&Error>) -> Ending {
    match error {
        None => Ending::Acked,
        Some(error) if error.outcome == Outcome::Unknown => Ending::AckUnknown,
        Some(error) => match error.reason {
            Reason::ReceiptStale => Ending::Stale,
            Reason::MessageGone => Ending::Gone,
            _ => Ending::NotAcked,
        },
    }
}

/// Processes and acknowledges until the demo is over.
pub async fn good(client: Client, name: String, ledger: Arc<Ledger>) {
    while !ledger.is_over.load(Ordering::Relaxed) {
        let messages = receive(&client, &name, BATCH, &ledger).await;
        if messages.is_empty() {
            continue;
        }
        let received = Instant::now();
        sleep(WORK).await;
        let endings = ack(&client, &messages).await;
        for (message, ending) in messages.iter().zip(endings) {
            ledger.add(message, received, true, ending);
        }
    }
}

/// Crashes in the middle of every batch: half of it is processed, none acknowledged, and the connections are gone.
pub async fn crashing(endpoints: Vec<String>, name: String, ledger: Arc<Ledger>) {
    while !ledger.is_draining.load(Ordering::Relaxed) {
        let Ok(client) = Client::connect(endpoints.clone()) else { return };
        let messages = receive(&client, &name, CRASH_BATCH, &ledger).await;
        let received = Instant::now();
        for (at, message) in messages.iter().enumerate() {
            ledger.add(message, received, at < messages.len() / 2, Ending::Crashed);
        }
        ledger.crashes.fetch_add(u64::from(!messages.is_empty()), Ordering::Relaxed);
        drop(client);
        sleep(RESTART_PAUSE).await;
    }
}

/// Works longer than its lease lasts, and then acknowledges.
pub async fn slow(client: Client, name: String, ledger: Arc<Ledger>) {
    while !ledger.is_draining.load(Ordering::Relaxed) {
        let messages = receive(&client, &name, SLOW_BATCH, &ledger).await;
        if messages.is_empty() {
            continue;
        }
        let received = Instant::now();
        sleep(LEASE + Duration::from_secs(2)).await;
        let endings = ack(&client, &messages).await;
        for (message, ending) in messages.iter().zip(endings) {
            ledger.add(message, received, true, ending);
        }
    }
}
