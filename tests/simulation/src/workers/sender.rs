//! A sender of unique rows, which sends some of them again.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold_histories::history::{Op, Outcome};
use leasehold_histories::workload::{Workload, delay_of, group_of};
use leasehold_node::simulation::SimulatedNode;
use leasehold_proto::v1::{self, NewMessage, SendOutcome, SendRequest};
use tokio::time::sleep;

use super::{QUEUE, Stage};
use crate::client::Client;

/// How many of a hundred requests are made once more after their answer, under the same name.
const REPEATED_PERCENT: u64 = 3;

/// Sends until the run is over.
pub async fn sender(stage: Arc<Stage>, mut client: Client) {
    while !stage.is_over.load(Ordering::Relaxed) {
        let count = 1 + client.random.below(20);
        let first = stage.rows.fetch_add(count, Ordering::Relaxed);
        let is_known = send(&stage, &mut client, first..first + count).await;
        let is_repeated = client.random.percent(stage.workload.repeated_percent());
        if client.random.percent(2) || is_repeated {
            client.begin_again();
        }
        if is_repeated || (!is_known && stage.workload == Workload::Deduplication) {
            send(&stage, &mut client, first..first + count).await;
        }
        sleep(Duration::from_millis(client.random.below(2 * stage.workload.pause_ms_max()))).await;
    }
}

fn message(workload: Workload, row: u64) -> NewMessage {
    // Bodies of many lengths fill the segments of the log.
    let width = (row * 7_919 % 400) as usize;
    let message = NewMessage { body: format!("{row:<width$}").into(), ..NewMessage::default() };
    match workload {
        Workload::Queue | Workload::DeadLetter | Workload::Leases | Workload::Queues | Workload::Streams => {
            message
        }
        Workload::Fifo => NewMessage {
            group: Some(group_of(row).to_string()),
            deduplication_id: Some(row.to_string()),
            ..message
        },
        Workload::Delays => NewMessage { delay_ms: Some(delay_of(row).as_millis() as u64), ..message },
        Workload::Deduplication => NewMessage { deduplication_id: Some(row.to_string()), ..message },
    }
}

/// Sends rows in one batch; false when it is not known of all of them whether they were sent.
async fn send(stage: &Stage, client: &mut Client, rows: Range<u64>) -> bool {
    let messages = rows.clone().map(|row| message(stage.workload, row)).collect();
    let batch = SendRequest { queue: QUEUE.to_owned(), messages, request: Some(client.name()) };
    let began_us = stage.now_us();
    let sent = client.ask(Duration::ZERO, batch.clone(), serve).await;
    let ended_us = stage.now_us();
    let mut is_known = true;
    for (at, row) in rows.enumerate() {
        let (outcome, id) = match &sent {
            Ok(outcomes) => (client.outcome_of(outcomes[at].outcome()), outcomes[at].id),
            Err(failed) => (failed.outcome, None),
        };
        is_known &= outcome != Outcome::Unknown;
        let message = id.filter(|_| outcome == Outcome::Done).map(|id| (id.partition, id.sequence));
        stage.add(Op::Send { row, began_us, ended_us, outcome, message });
    }
    if client.random.percent(REPEATED_PERCENT)
        && let Some(first) = sent.ok().as_deref().and_then(ids)
    {
        let request = format!("{:?}", batch.request);
        let again = client.ask(Duration::ZERO, batch, serve).await;
        if let Some(again) = again.ok().as_deref().and_then(ids) {
            stage.add(Op::Repeat { request, first, again });
        }
    }
    is_known
}

async fn serve(
    node: SimulatedNode,
    batch: Arc<SendRequest>,
) -> Result<Vec<SendOutcome>, leasehold_node::simulation::Failure> {
    node.send(&batch).await
}

/// What was sent, if all of it was.
fn ids(outcomes: &[SendOutcome]) -> Option<Vec<String>> {
    let id = |sent: &SendOutcome| {
        let id = sent.id.filter(|_| sent.outcome() == v1::Outcome::Done)?;
        Some(format!("{}-{}", id.partition, id.sequence))
    };
    outcomes.iter().map(id).collect()
}
