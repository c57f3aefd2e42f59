//! The clients' work, and what they write down of it.

mod consumer;
mod drain;
mod lessee;
mod owner;
mod sender;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use leasehold_histories::history::Op;
use leasehold_histories::workload::{LEASE, RECEIVES_MAX, Workload};
use leasehold_node::simulation::SimulatedNode;
use leasehold_proto::v1::{
    AckRequest, CreateQueueRequest, Delivery, ExtendItem, ExtendRequest, QueueKind, QueueSettings,
    ReceiveRequest, ReleaseItem, ReleaseRequest, SettleOutcome,
};
use tokio::time::{Instant, sleep};

use crate::client::{Client, Failed};
use crate::trace;

pub use consumer::consumer;
pub use drain::drain;
pub use lessee::lessee;
pub use owner::{list_queues, owner};
pub use sender::sender;

pub const QUEUE: &str = "work";
const DEAD_LETTER_QUEUE: &str = "dead";
/// A queue spreads over this many partitions.
const SHARDS: u32 = 3;
const WAIT: Duration = Duration::from_millis(300);
const AGAIN: Duration = Duration::from_millis(20);

/// What all clients share.
pub struct Stage {
    pub workload: Workload,
    start: Instant,
    ops: Mutex<Vec<Op>>,
    rows: AtomicU64,
    pub is_over: AtomicBool,
    pub is_drained: AtomicBool,
}

impl Stage {
    /// The clock begins where this is called.
    pub fn new(workload: Workload) -> Arc<Self> {
        Arc::new(Self {
            workload,
            start: Instant::now(),
            ops: Mutex::new(vec![Op::Began { workload }]),
            rows: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            is_drained: AtomicBool::new(false),
        })
    }

    pub fn ops(&self) -> MutexGuard<'_, Vec<Op>> {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn us(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_micros() as u64
    }

    fn now_us(&self) -> u64 {
        self.us(Instant::now())
    }

    fn add(&self, op: Op) {
        trace::event(&[crc32c::crc32c(format!("{op:?}").as_bytes()).into()], format_args!("{op:?}"));
        self.ops().push(op);
    }
}

/// Makes the queues of the workload; the cluster may be founded meanwhile.
pub async fn create_queues(stage: &Stage, client: &mut Client) {
    let settings = QueueSettings { lease_ms: Some(LEASE.as_millis() as u64), ..QueueSettings::default() };
    let settings = match stage.workload {
        Workload::Fifo => QueueSettings { kind: Some(QueueKind::Fifo as i32), ..settings },
        Workload::DeadLetter => QueueSettings {
            dead_letter_queue: Some(DEAD_LETTER_QUEUE.to_owned()),
            receives_max: Some(RECEIVES_MAX),
            ..settings
        },
        _ => settings,
    };
    let is_dead_letter = stage.workload == Workload::DeadLetter;
    let dead = is_dead_letter.then(|| (DEAD_LETTER_QUEUE, QueueSettings::default()));
    for (queue, settings) in dead.into_iter().chain([(QUEUE, settings)]) {
        let create = CreateQueueRequest {
            queue: queue.to_owned(),
            settings: Some(settings),
            shards: SHARDS,
            request: None,
        };
        let serve = |node: SimulatedNode, create: Arc<CreateQueueRequest>| async move {
            node.create_queue((*create).clone()).await
        };
        while client.ask(WAIT, create.clone(), serve).await.is_err() {
            sleep(AGAIN).await;
        }
    }
}

/// What was sent; a row that nobody sent when the body is none.
fn row_of(delivery: &Delivery) -> u64 {
    std::str::from_utf8(&delivery.body).ok().and_then(|row| row.trim_end().parse().ok()).unwrap_or(u64::MAX)
}

/// A message in the hands of a consumer.
struct Held {
    message: (u32, u64),
    grant: u64,
    receipt: Bytes,
}

async fn receive(
    stage: &Stage,
    client: &mut Client,
    messages_max: u32,
    lease_ms: Option<u64>,
) -> Option<(Vec<Held>, Instant)> {
    let (queue, wait_ms, request) = (QUEUE.to_owned(), WAIT.as_millis() as u64, Some(client.name()));
    let wanted =
        ReceiveRequest { queue, messages_max, lease_ms, wait_ms, request, ..ReceiveRequest::default() };
    let began = Instant::now();
    let serve = |node: SimulatedNode, wanted: Arc<ReceiveRequest>| async move { node.receive(&wanted).await };
    let received = client.ask(WAIT, wanted, serve).await;
    let at = Instant::now();
    let Ok(received) = received else {
        sleep(AGAIN).await;
        return None;
    };
    let leased = (began + Duration::from_millis(received.waited_ms)).min(at);
    let mut held = Vec::new();
    for delivery in received.deliveries {
        let id = delivery.id.unwrap_or_default();
        let (message, grant) = ((id.partition, id.sequence), delivery.fencing_token);
        stage.add(Op::Grant {
            row: row_of(&delivery),
            message,
            grant,
            receive_count: delivery.receive_count,
            began_us: stage.us(began),
            ended_us: stage.us(at),
            lease_until_us: stage.us(leased + Duration::from_millis(delivery.lease_ms)),
        });
        held.push(Held { message, grant, receipt: delivery.receipt });
    }
    (!held.is_empty()).then_some((held, at))
}

/// What is done with messages that are held.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settle {
    Ack,
    Extend(Duration),
    Release(Duration),
}

async fn settle(stage: &Stage, client: &mut Client, held: &[Held], what: Settle) {
    if held.is_empty() {
        return;
    }
    let began_us = stage.now_us();
    let settled = ask_to_settle(client, held, what).await;
    let ended_us = stage.now_us();
    for (at, Held { message, grant, .. }) in held.iter().enumerate() {
        let (message, grant) = (*message, *grant);
        let outcome = settled
            .as_ref()
            .map_or_else(|failed| failed.outcome, |outcomes| client.outcome_of(outcomes[at].outcome()));
        let us = |duration: Duration| duration.as_micros() as u64;
        stage.add(match what {
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

async fn ask_to_settle(
    client: &mut Client,
    held: &[Held],
    what: Settle,
) -> Result<Vec<SettleOutcome>, Failed> {
    let (queue, request) = (QUEUE.to_owned(), Some(client.name()));
    let receipts = held.iter().map(|held| held.receipt.clone());
    match what {
        Settle::Ack => {
            let ack = AckRequest { queue, receipts: receipts.collect(), request };
            let serve = |node: SimulatedNode, ack: Arc<AckRequest>| async move { node.ack(&ack).await };
            client.ask(Duration::ZERO, ack, serve).await
        }
        Settle::Extend(lease) => {
            let lease_ms = lease.as_millis() as u64;
            let items = receipts.map(|receipt| ExtendItem { receipt, lease_ms }).collect();
            let extend = ExtendRequest { queue, items, request };
            let serve =
                |node: SimulatedNode, extend: Arc<ExtendRequest>| async move { node.extend(&extend).await };
            client.ask(Duration::ZERO, extend, serve).await
        }
        Settle::Release(delay) => {
            let delay_ms = delay.as_millis() as u64;
            let items =
                receipts.map(|receipt| ReleaseItem { receipt, delay_ms, ..ReleaseItem::default() }).collect();
            let release = ReleaseRequest { queue, items, request };
            let serve = |node: SimulatedNode, release: Arc<ReleaseRequest>| async move {
                node.release(&release).await
            };
            client.ask(Duration::ZERO, release, serve).await
        }
    }
}
