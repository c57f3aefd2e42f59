//! Owners of queues: each makes its own under new names, looks for them through all nodes, fills them, deletes them, and makes some
//! again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold_histories::history::{Op, Outcome, QueueStep};
use leasehold_node::simulation::SimulatedNode;
use leasehold_proto::v1::{
    self, CreateQueueRequest, DeleteQueueRequest, NewMessage, QueueSettings, Reason, SendRequest,
};
use tokio::time::{Instant, sleep};

use super::{AGAIN, Stage};
use crate::client::{Client, Failed};

const PREFIX: &str = "owned-";
/// What nodes that were cut off may take to hear of the last changes.
const LIST_PATIENCE: Duration = Duration::from_secs(30);

/// Makes and deletes queues until the run is over.
pub async fn owner(stage: Arc<Stage>, mut client: Client) {
    let number = client.name().session;
    for round in 0.. {
        if stage.is_over.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("{PREFIX}{number}-{round}");
        // What becomes of a name after an answer that did not come is nobody's to say.
        let _ = life(&stage, &mut client, &name).await;
        sleep(Duration::from_millis(client.random.below(200))).await;
    }
}

/// The life of a name, until it ends or an answer does not come.
async fn life(stage: &Stage, client: &mut Client, name: &str) -> Option<()> {
    let generations = 1 + client.random.below(3);
    for generation in 0..generations {
        step(stage, client, name, QueueStep::Create).await?;
        for _ in 0..1 + client.random.below(3) {
            look(stage, client, name).await;
        }
        if client.random.percent(60) {
            step(stage, client, name, QueueStep::Fill).await?;
        }
        look(stage, client, name).await;
        let is_kept = generation + 1 == generations && client.random.percent(30);
        if is_kept {
            return Some(());
        }
        step(stage, client, name, QueueStep::Delete).await?;
        look(stage, client, name).await;
    }
    Some(())
}

async fn step(stage: &Stage, client: &mut Client, name: &str, step: QueueStep) -> Option<()> {
    let began_us = stage.now_us();
    let result = match step {
        QueueStep::Create => {
            let shards = 1 + client.random.below(2) as u32;
            let settings = Some(QueueSettings::default());
            let request = Some(client.name());
            let create = CreateQueueRequest { queue: name.to_owned(), settings, shards, request };
            let serve = |node: SimulatedNode, create: Arc<CreateQueueRequest>| async move {
                node.create_queue((*create).clone()).await.map(drop)
            };
            client.ask(Duration::ZERO, create, serve).await
        }
        QueueStep::Delete => {
            let delete = DeleteQueueRequest { queue: name.to_owned(), request: Some(client.name()) };
            let serve = |node: SimulatedNode, delete: Arc<DeleteQueueRequest>| async move {
                node.delete_queue((*delete).clone()).await
            };
            client.ask(Duration::ZERO, delete, serve).await
        }
        _ => fill(client, name).await,
    };
    // Only these say something about the queue; after all others the name is given up.
    let says_it = |failed: &Failed| matches!(failed.reason, Reason::UnknownQueue | Reason::QueueExists);
    let outcome = match result {
        Ok(()) => Outcome::Done,
        Err(failed) if says_it(&failed) => failed.outcome,
        Err(_) => Outcome::Unknown,
    };
    add(stage, name, step, began_us, outcome);
    (outcome == Outcome::Done).then_some(())
}

async fn fill(client: &mut Client, name: &str) -> Result<(), Failed> {
    let messages = vec![NewMessage { body: "filling".into(), ..NewMessage::default() }; 3];
    let batch = SendRequest { queue: name.to_owned(), messages, request: Some(client.name()) };
    let serve = |node: SimulatedNode, batch: Arc<SendRequest>| async move { node.send(&batch).await };
    let sent = client.ask(Duration::ZERO, batch, serve).await?;
    let failed = sent.iter().find(|sent| sent.outcome() != v1::Outcome::Done);
    failed.map_or(Ok(()), |sent| {
        Err(Failed { outcome: client.outcome_of(sent.outcome()), reason: sent.reason() })
    })
}

/// Asks one node, whichever.
async fn look(stage: &Stage, client: &mut Client, name: &str) {
    client.turn_to_any();
    let began_us = stage.now_us();
    let serve = |node: SimulatedNode, name: Arc<String>| async move { node.describe_queue(&name).await };
    let messages = match client.ask(Duration::ZERO, name.to_owned(), serve).await {
        Ok(described) => {
            let counters = described.counters.unwrap_or_default();
            Some(counters.ready + counters.leased + counters.delayed)
        }
        Err(failed) if failed.reason == Reason::UnknownQueue => None,
        Err(_) => return,
    };
    add(stage, name, QueueStep::Look { messages }, began_us, Outcome::Done);
}

fn add(stage: &Stage, name: &str, step: QueueStep, began_us: u64, outcome: Outcome) {
    stage.add(Op::Queue { queue: name.to_owned(), step, began_us, ended_us: stage.now_us(), outcome });
}

/// At the end: which of the queues each node lists, when all say the same or have had the time for it.
pub async fn list_queues(stage: &Stage, client: &mut Client) {
    let end = Instant::now() + LIST_PATIENCE;
    let name_of = |op: &Op| match op {
        Op::Queue { queue, .. } => Some(queue.clone()),
        _ => None,
    };
    let names = stage.ops().iter().filter_map(name_of).collect::<BTreeSet<_>>();
    loop {
        let began_us = stage.now_us();
        let mut lists = Vec::new();
        for node in 0..client.nodes() {
            client.turn_to(node);
            let serve = |node: SimulatedNode| async move { node.queues(PREFIX).await };
            lists.extend(client.call(Duration::ZERO, serve).await.ok());
        }
        let agree = lists.len() == client.nodes() && lists.windows(2).all(|pair| pair[0] == pair[1]);
        if !agree && Instant::now() < end {
            sleep(AGAIN).await;
            continue;
        }
        for (name, listed) in names.iter().flat_map(|name| lists.iter().map(move |list| (name, list))) {
            add(stage, name, QueueStep::List { is_there: listed.contains(name) }, began_us, Outcome::Done);
        }
        return;
    }
}
