//! The end of a run: the queue is worked off, and what died is read.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold_histories::history::Op;
use leasehold_histories::workload::{LEASE, Workload};
use leasehold_node::simulation::SimulatedNode;
use leasehold_proto::v1::{AckRequest, QueueCounters, ReceiveRequest};
use tokio::time::{Instant, sleep};

use super::{DEAD_LETTER_QUEUE, QUEUE, Stage, WAIT, list_queues, row_of};
use crate::client::Client;

/// Waits until nothing is left in the queue for longer than a lease, reads what died, and writes down what the counters say then.
pub async fn drain(stage: Arc<Stage>, mut client: Client) {
    let mut empty_since: Option<Instant> = None;
    let bytes = loop {
        let counters = counters_of(&mut client, QUEUE).await;
        match counters {
            Some(counters) if is_empty(&counters) => {
                if empty_since.get_or_insert_with(Instant::now).elapsed() > LEASE {
                    break counters.bytes;
                }
            }
            Some(_) | None => empty_since = None,
        }
        sleep(Duration::from_millis(100)).await;
    };
    stage.is_drained.store(true, Ordering::Relaxed);
    if stage.workload == Workload::DeadLetter {
        read_dead_letters(&stage, &mut client).await;
    }
    if stage.workload == Workload::Queues {
        list_queues(&stage, &mut client).await;
    }
    stage.add(Op::Remaining { messages: 0, bytes });
}

fn is_empty(counters: &QueueCounters) -> bool {
    counters.ready + counters.leased + counters.delayed + counters.dead == 0
}

/// None when nobody answers.
async fn counters_of(client: &mut Client, queue: &'static str) -> Option<QueueCounters> {
    let serve = move |node: SimulatedNode| async move { node.describe_queue(queue).await };
    let described = client.call(Duration::ZERO, serve).await;
    Some(described.ok()?.counters.unwrap_or_default())
}

async fn read_dead_letters(stage: &Stage, client: &mut Client) {
    while !counters_of(client, DEAD_LETTER_QUEUE).await.is_some_and(|counters| is_empty(&counters)) {
        let (queue, request) = (DEAD_LETTER_QUEUE.to_owned(), Some(client.name()));
        let wait_ms = WAIT.as_millis() as u64;
        let wanted =
            ReceiveRequest { queue, messages_max: 100, wait_ms, request, ..ReceiveRequest::default() };
        let serve =
            |node: SimulatedNode, wanted: Arc<ReceiveRequest>| async move { node.receive(&wanted).await };
        let received = client.ask(WAIT, wanted, serve).await;
        let deliveries = received.map(|received| received.deliveries).unwrap_or_default();
        for delivery in &deliveries {
            let id = delivery.id.unwrap_or_default();
            let message = (id.partition, id.sequence);
            let receive_count = Some(delivery.origin.as_ref().map_or(0, |origin| origin.receive_count));
            stage.add(Op::DeadLetter { row: row_of(delivery), message, receive_count });
        }
        let receipts = deliveries.into_iter().map(|delivery| delivery.receipt).collect::<Vec<_>>();
        if !receipts.is_empty() {
            let (queue, request) = (DEAD_LETTER_QUEUE.to_owned(), Some(client.name()));
            let ack = AckRequest { queue, receipts, request };
            let serve = |node: SimulatedNode, ack: Arc<AckRequest>| async move { node.ack(&ack).await };
            // What was not acked comes again.
            let _ = client.ask(Duration::ZERO, ack, serve).await;
        }
    }
}
