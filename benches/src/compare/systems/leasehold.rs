//! Leasehold: the release program beside this one, and the Rust client.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use leasehold::processes::Processes;
use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, Error, Message, NewMessage, ReceiveOptions};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{Found, Name};
use crate::compare::build;
use crate::compare::system::{Doing, Failure, Queue, Receiver, Sender, Shape, Spread, System, Through};
use crate::failover::TRANSFER_PAUSE;
use crate::footprint::{pids, program, ready};

const LEADER_PATIENCE: Duration = Duration::from_secs(20);
const RESTART_PATIENCE: Duration = Duration::from_secs(60);

pub async fn find() -> Result<Found, Failure> {
    let program = program()?;
    let output = Command::new(&program).arg("--version").output().await?;
    let said = String::from_utf8_lossy(&output.stdout);
    let number = said.trim().trim_start_matches("leasehold ");
    let version = format!("{number}, {}", build::identity(&program)?);
    Ok(Found { name: Name::Leasehold, version, program })
}

pub async fn start(program: &Path, dir: &Path, shape: Shape) -> Result<Box<dyn System>, Failure> {
    let shared = format!("limits.worker_threads={}", processors_each(shape.nodes));
    let settings = [shared.as_str()];
    let processes = Processes::start_sized(program, dir, shape.partitions, shape.nodes, &settings).await?;
    let client = processes.client()?;
    Ok(Box::new(Cluster { dir: dir.to_owned(), processes, client, partitions: shape.partitions }))
}

/// Nodes of one machine share its processors.
fn processors_each(nodes: usize) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / nodes.max(1)).max(1)
}

struct Cluster {
    dir: PathBuf,
    processes: Processes,
    client: Client,
    partitions: u32,
}

impl System for Cluster {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn pids(&self) -> Vec<u32> {
        pids(&self.processes)
    }

    fn queues_for(&self, _: u32) -> usize {
        1
    }

    fn create_queue<'a>(&'a self, queue: Queue<'a>) -> Doing<'a, ()> {
        async move {
            let lease_ms = u64::try_from(queue.lease.as_millis())?;
            let settings = QueueSettings { lease_ms: Some(lease_ms), ..QueueSettings::default() };
            let shards = match queue.spread {
                Spread::OnePartition => 1,
                Spread::AllPartitions => self.partitions,
            };
            self.client.create_queue(queue.name, settings, shards).await?;
            Ok(())
        }
        .boxed()
    }

    fn send_one<'a>(&'a self, queue: &'a str, body: Bytes) -> Doing<'a, ()> {
        async move {
            for result in self.client.send(queue, vec![NewMessage::new(body)]).await? {
                result?;
            }
            Ok(())
        }
        .boxed()
    }

    fn delete_queue<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        async move { Ok(self.client.delete_queue(name).await?) }.boxed()
    }

    /// The client follows the leader by itself, wherever it goes.
    fn sender<'a>(&'a self, queue: &'a str, _: Through) -> Doing<'a, Arc<dyn Sender>> {
        async move {
            let connection = Connection { client: self.processes.client()?, queue: queue.to_owned() };
            Ok(Arc::new(connection) as Arc<dyn Sender>)
        }
        .boxed()
    }

    fn receiver<'a>(&'a self, queue: &'a str, _: Through) -> Doing<'a, Box<dyn Receiver>> {
        async move {
            let connection = Connection { client: self.processes.client()?, queue: queue.to_owned() };
            Ok(Box::new(Leases { connection, next: None, receipts: Vec::new() }) as Box<dyn Receiver>)
        }
        .boxed()
    }

    fn leader<'a>(&'a self, queue: &'a str) -> Doing<'a, usize> {
        async move {
            let began = Instant::now();
            loop {
                let routes = self.client.routes(queue).await?;
                let address = routes.shards.first().map(|shard| shard.leader_address.as_str());
                let mut nodes = self.processes.nodes.iter();
                if let Some(leader) = nodes.position(|node| Some(node.client_address.as_str()) == address) {
                    return Ok(leader);
                }
                if began.elapsed() > LEADER_PATIENCE {
                    return Err(Failure::new(format!("{queue} has no leader")));
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
        .boxed()
    }

    fn kill(&mut self, node: usize) -> Doing<'_, ()> {
        async move { Ok(self.processes.kill(node).await?) }.boxed()
    }

    fn restart(&mut self, node: usize) -> Doing<'_, Duration> {
        async move {
            let began = Instant::now();
            self.processes.restart(node).await?;
            let late =
                |_| Failure::new(format!("node {node} did not take part again in {RESTART_PATIENCE:?}"));
            timeout(RESTART_PATIENCE, ready(&self.processes)).await.map_err(late)?;
            Ok(began.elapsed())
        }
        .boxed()
    }

    fn settle(&self) -> Doing<'_, ()> {
        async move {
            sleep(TRANSFER_PAUSE).await;
            Ok(())
        }
        .boxed()
    }

    fn stop(self: Box<Self>) -> Doing<'static, ()> {
        async move { Ok(self.processes.stop_all().await?) }.boxed()
    }
}

struct Connection {
    client: Client,
    queue: String,
}

impl Connection {
    fn ask(&self, options: ReceiveOptions) -> JoinHandle<Result<Vec<Message>, Error>> {
        let (client, queue) = (self.client.clone(), self.queue.clone());
        tokio::spawn(async move { client.receive(&queue, options).await })
    }
}

impl Sender for Connection {
    fn send(&self, bodies: Vec<Bytes>) -> BoxFuture<'_, Vec<Result<Instant, Failure>>> {
        async move {
            let count = bodies.len();
            let messages = bodies.into_iter().map(NewMessage::new).collect();
            let answered = self.client.send(&self.queue, messages).await;
            let now = Instant::now();
            match answered {
                Ok(results) => results.into_iter().map(|result| Ok(result.map(|_| now)?)).collect(),
                Err(error) => vec![Err(Failure::from(error)); count],
            }
        }
        .boxed()
    }
}

/// Asks for the next batch before it acknowledges the one that it has, as the streams of the other systems bring messages ahead.
struct Leases {
    connection: Connection,
    next: Option<JoinHandle<Result<Vec<Message>, Error>>>,
    /// Of what was received and not yet acknowledged.
    receipts: Vec<Bytes>,
}

/// A receive that nobody waits for any more is ended: its node gives back what it was granted.
impl Drop for Leases {
    fn drop(&mut self) {
        if let Some(next) = &self.next {
            next.abort();
        }
    }
}

impl Receiver for Leases {
    fn receive(&mut self, messages_max: usize, wait: Duration) -> Doing<'_, Vec<Bytes>> {
        async move {
            let messages_max = u32::try_from(messages_max)?;
            let options = ReceiveOptions { messages_max, wait, ..ReceiveOptions::default() };
            let asked = self.next.take().unwrap_or_else(|| self.connection.ask(options.clone()));
            // Until it is there: who gives up on this call ends the receive as well.
            let received = self.next.insert(asked).await;
            self.next = None;
            let messages = received??;
            self.next = (!messages.is_empty()).then(|| self.connection.ask(options));
            self.receipts.extend(messages.iter().map(|message| message.receipt.clone()));
            Ok(messages.into_iter().map(|message| message.body).collect())
        }
        .boxed()
    }

    fn ack(&mut self) -> Doing<'_, usize> {
        async move {
            let receipts = std::mem::take(&mut self.receipts);
            let outcomes = self.connection.client.ack(&self.connection.queue, &receipts).await?;
            Ok(outcomes.iter().filter(|outcome| outcome.is_ok()).count())
        }
        .boxed()
    }
}
