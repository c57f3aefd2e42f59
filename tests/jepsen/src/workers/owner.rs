//! Owners of queues: each makes its own under new names, looks for them through all nodes, fills them, deletes them, and makes some
//! again.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, Error, NewMessage, Reason};
use leasehold_histories::history::{Op, Outcome, QueueStep};
use leasehold_histories::random::Random;
use tokio::time::{Instant, sleep};

use super::{CALL_TIMEOUT, RETRY_PAUSE, Stage, outcome};

const PREFIX: &str = "owned-";
/// What nodes that were cut off may take to hear of the last changes.
const LIST_PATIENCE: Duration = Duration::from_secs(30);

struct Owner {
    stage: Arc<Stage>,
    client: Client,
}

/// Makes and deletes queues until the run is over.
pub async fn owner(stage: Arc<Stage>, number: u64, mut random: Random) {
    let Ok(client) = stage.client() else { return };
    let owner = Owner { stage: stage.clone(), client };
    for round in 0.. {
        if stage.is_over.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("{PREFIX}{number}-{round}");
        stage.queues.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        // What becomes of a name after an answer that did not come is nobody's to say.
        let _ = owner.life(&name, &mut random).await;
        sleep(RETRY_PAUSE).await;
    }
}

impl Owner {
    /// The life of a name, until it ends or an answer does not come.
    async fn life(&self, name: &str, random: &mut Random) -> Option<()> {
        let generations = 1 + random.below(3);
        for generation in 0..generations {
            self.step(name, QueueStep::Create, random).await?;
            for _ in 0..1 + random.below(3) {
                self.look(name, random).await;
            }
            if random.percent(60) {
                self.step(name, QueueStep::Fill, random).await?;
            }
            self.look(name, random).await;
            let is_kept = generation + 1 == generations && random.percent(30);
            if is_kept {
                return Some(());
            }
            self.step(name, QueueStep::Delete, random).await?;
            self.look(name, random).await;
        }
        Some(())
    }

    async fn step(&self, name: &str, step: QueueStep, random: &mut Random) -> Option<()> {
        let _call = self.stage.calls.read().await;
        let began_us = self.stage.recorder.now_us();
        let result = match step {
            QueueStep::Create => {
                let shards = 1 + random.below(2) as u32;
                self.client.create_queue(name, QueueSettings::default(), shards).await.map(drop)
            }
            QueueStep::Delete => self.client.delete_queue(name).await,
            _ => self.fill(name).await,
        };
        // Only these say something about the queue; after all others the name is given up.
        let says_it = |error: &Error| matches!(error.reason, Reason::UnknownQueue | Reason::QueueExists);
        let outcome = match result {
            Err(error) if !says_it(&error) => Outcome::Unknown,
            result => outcome(result.as_ref()),
        };
        self.add(name, step, began_us, outcome);
        (outcome == Outcome::Done).then_some(())
    }

    async fn fill(&self, name: &str) -> Result<(), Error> {
        let sent = self.client.send(name, vec![NewMessage::new("filling"); 3]).await?;
        sent.into_iter().try_for_each(|outcome| outcome.map(drop))
    }

    /// Asks one node, whichever.
    async fn look(&self, name: &str, random: &mut Random) {
        let clients = self.stage.clients_of_nodes(CALL_TIMEOUT).unwrap_or_default();
        let Some(client) = clients.get(random.below(clients.len() as u64) as usize) else { return };
        let _call = self.stage.calls.read().await;
        let began_us = self.stage.recorder.now_us();
        let messages = match client.describe_queue(name).await {
            Ok(described) => {
                let counters = described.counters.unwrap_or_default();
                Some(counters.ready + counters.leased + counters.delayed)
            }
            Err(error) if error.reason == Reason::UnknownQueue => None,
            Err(_) => return,
        };
        self.add(name, QueueStep::Look { messages }, began_us, Outcome::Done);
    }

    fn add(&self, name: &str, step: QueueStep, began_us: u64, outcome: Outcome) {
        let ended_us = self.stage.recorder.now_us();
        self.stage.recorder.add(Op::Queue { queue: name.to_owned(), step, began_us, ended_us, outcome });
    }
}

/// At the end: which of the queues each node lists, when all say the same or have had the time for it.
///
/// # Errors
/// When a node does not answer.
pub async fn list_queues(stage: &Stage) -> Result<(), Error> {
    let end = Instant::now() + LIST_PATIENCE;
    let names = stage.queues.lock().unwrap_or_else(PoisonError::into_inner).clone();
    loop {
        let began_us = stage.recorder.now_us();
        let mut lists = Vec::new();
        for client in stage.clients_of_nodes(LIST_PATIENCE)? {
            lists.push(list(&client).await?);
        }
        let agree = lists.windows(2).all(|pair| pair[0] == pair[1]);
        if !agree && Instant::now() < end {
            sleep(RETRY_PAUSE).await;
            continue;
        }
        let ended_us = stage.recorder.now_us();
        for (name, listed) in names.iter().flat_map(|name| lists.iter().map(move |list| (name, list))) {
            let step = QueueStep::List { is_there: listed.contains(name) };
            let queue = name.clone();
            stage.recorder.add(Op::Queue { queue, step, began_us, ended_us, outcome: Outcome::Done });
        }
        return Ok(());
    }
}

async fn list(client: &Client) -> Result<BTreeSet<String>, Error> {
    let mut names = BTreeSet::new();
    let mut after = String::new();
    loop {
        let page = client.list_queues(PREFIX, 1_000, &after).await?;
        after = page.queues.last().cloned().unwrap_or_default();
        names.extend(page.queues);
        if !page.more {
            return Ok(names);
        }
    }
}
