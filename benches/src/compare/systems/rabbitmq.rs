//! RabbitMQ: the installed server, run beside any service of its own: nodes with own names, ports, cookie and home, and an own
//! process that maps names to ports. Queues are quorum queues; a connection goes to the node that leads the queue.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, PublisherConfirm,
};
use tokio::process::Command;
use tokio::time::timeout;

use super::servers::{Server, Start, folder, free_ports, until_done};
use super::{Found, Name};
use crate::compare::system::{Doing, Failure, Queue, Receiver, Sender, Shape, System, Through};

/// Not the script in the search path: that one becomes another user.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
const LIBRARIES: &str = "/usr/lib/rabbitmq/lib";
const REPLICAS: usize = 3;
const START_PATIENCE: Duration = Duration::from_secs(90);
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Messages that are under way to a receiver or wait for its ack.
const PREFETCH: u16 = 512;
const COOKIE: &str = "COMPAREDONLOOPBACK";
const PERSISTENT: u8 = 2;
/// Releases before 3.11 answer to the second.
const COUNT_RUNNING: &str =
    "length(try rabbit_nodes:list_running() catch error:undef -> rabbit_mnesia:cluster_nodes(running) end).";

pub async fn find() -> Result<Found, Failure> {
    let program = Path::new(SCRIPTS).join("rabbitmq-server");
    if !program.exists() {
        return Err(Failure::new(format!(
            "{} is not there: install Debian's `rabbitmq-server`",
            program.display()
        )));
    }
    let releases = std::fs::read_dir(LIBRARIES)?.filter_map(Result::ok).map(|entry| entry.file_name());
    let version = releases
        .filter_map(|name| name.to_string_lossy().strip_prefix("rabbitmq_server-").map(str::to_owned));
    Ok(Found { name: Name::Rabbitmq, version: version.max().unwrap_or_default(), program })
}

pub async fn start(program: &Path, dir: &Path, shape: Shape) -> Result<Box<dyn System>, Failure> {
    let dir = dir.canonicalize()?;
    let ports = free_ports(shape.nodes * 2 + 1)?;
    let (amqp_ports, rest) = ports.split_at(shape.nodes);
    let (names_port, distribution_ports) = (rest[0], &rest[1..]);
    write_cookie(&dir)?;
    let names = Server::start(Start {
        program: "epmd".into(),
        arguments: ["-port", &names_port.to_string(), "-address", "127.0.0.1"].map(OsString::from).to_vec(),
        variables: Vec::new(),
        log: dir.join("epmd.log"),
    })?;
    let mut cluster = Cluster {
        dir: dir.clone(),
        nodes: Vec::new(),
        _names: names,
        amqp_ports: amqp_ports.to_vec(),
        replicas: shape.nodes.min(REPLICAS),
        channels: (0..shape.nodes).map(|_| tokio::sync::Mutex::default()).collect(),
        leaders: Mutex::default(),
        turn: AtomicUsize::new(0),
    };
    for (at, distribution_port) in distribution_ports.iter().enumerate() {
        let folder = folder(&dir, &short_name(at))?;
        std::fs::write(folder.join("rabbitmq.conf"), configuration(amqp_ports[at], shape.nodes))?;
        std::fs::write(folder.join("enabled_plugins"), "[].\n")?;
        std::fs::write(folder.join("env.conf"), "")?;
        let variables = variables(at, &dir, &folder, names_port, *distribution_port);
        let (program, log) = (program.to_owned(), folder.join("log"));
        cluster.nodes.push(Server::start(Start {
            program,
            arguments: vec!["-noinput".into()],
            variables,
            log,
        })?);
        // The first founds the cluster that the others find.
        let connected = until_done(START_PATIENCE, || connect(amqp_ports[at]).boxed()).await;
        connected
            .map_err(|failure| Failure::new(format!("{failure}: {}", cluster.nodes[at].last_words())))?;
    }
    cluster.until_whole(&dir, names_port).await?;
    Ok(Box::new(cluster))
}

/// Nodes of one cluster know each other by it. Only its owner may read it, or Erlang refuses it.
fn write_cookie(home: &Path) -> Result<(), Failure> {
    let path = home.join(".erlang.cookie");
    std::fs::write(&path, COOKIE)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400))?;
    Ok(())
}

fn short_name(at: usize) -> String {
    format!("rabbit{}", at + 1)
}

fn node_name(at: usize) -> String {
    format!("{}@localhost", short_name(at))
}

fn configuration(amqp_port: u16, nodes: usize) -> String {
    let members = (0..nodes)
        .map(|at| format!("cluster_formation.classic_config.nodes.{} = {}\n", at + 1, node_name(at)))
        .collect::<String>();
    format!(
        "listeners.tcp.1 = 127.0.0.1:{amqp_port}\n\
         cluster_formation.peer_discovery_backend = classic_config\n\
         cluster_formation.randomized_startup_delay_range.min = 0\n\
         cluster_formation.randomized_startup_delay_range.max = 1\n\
         {members}\
         log.file.level = warning\n"
    )
}

/// All that a node would look for elsewhere.
fn variables(
    at: usize,
    home: &Path,
    folder: &Path,
    names_port: u16,
    distribution_port: u16,
) -> Vec<(String, OsString)> {
    let below = |name: &str| OsString::from(folder.join(name));
    let text = |text: &str| OsString::from(text);
    let variables = [
        ("HOME", OsString::from(home)),
        ("ERL_EPMD_PORT", text(&names_port.to_string())),
        ("ERL_EPMD_ADDRESS", text("127.0.0.1")),
        // The script becomes the server, so that the process that was started is the one to be measured and ended.
        ("RABBITMQ_ALLOW_INPUT", text("1")),
        ("RABBITMQ_NODENAME", text(&node_name(at))),
        ("RABBITMQ_DIST_PORT", text(&distribution_port.to_string())),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", text("-kernel inet_dist_use_interface {127,0,0,1}")),
        ("RABBITMQ_CONFIG_FILE", below("rabbitmq.conf")),
        ("RABBITMQ_CONF_ENV_FILE", below("env.conf")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", below("enabled_plugins")),
        ("RABBITMQ_MNESIA_BASE", below("data")),
        ("RABBITMQ_LOG_BASE", below("logs")),
        ("RABBITMQ_PID_FILE", below("pid")),
        ("RABBITMQ_GENERATED_CONFIG_DIR", below("generated")),
        ("RABBITMQ_PLUGINS_EXPAND_DIR", below("plugins")),
    ];
    variables.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

async fn connect(port: u16) -> Result<Connection, Failure> {
    let uri = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    let connecting = Connection::connect(&uri, ConnectionProperties::default());
    let late =
        |_| Failure::new(format!("nothing on port {port} accepted a connection in {CONNECT_PATIENCE:?}"));
    Ok(timeout(CONNECT_PATIENCE, connecting).await.map_err(late)??)
}

struct Cluster {
    dir: PathBuf,
    nodes: Vec<Server>,
    /// Outlives the nodes.
    _names: Server,
    amqp_ports: Vec<u16>,
    replicas: usize,
    /// To each node, for what needs no connection of its own; opened when it is first used, and again after it broke.
    channels: Vec<tokio::sync::Mutex<Option<(Connection, Channel)>>>,
    /// The node that a queue was declared on leads it.
    leaders: Mutex<HashMap<String, usize>>,
    turn: AtomicUsize,
}

impl Cluster {
    async fn until_whole(&self, home: &Path, names_port: u16) -> Result<(), Failure> {
        until_done(START_PATIENCE, || self.has_all_nodes(home, names_port).boxed()).await
    }

    async fn has_all_nodes(&self, home: &Path, names_port: u16) -> Result<(), Failure> {
        let mut command = Command::new(PathBuf::from(SCRIPTS).join("rabbitmqctl"));
        command.args(["-n", &node_name(0), "eval", COUNT_RUNNING]);
        command.env("HOME", home).env("ERL_EPMD_PORT", names_port.to_string()).kill_on_drop(true);
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if said == self.nodes.len().to_string() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Err(Failure::new(format!("{said} of {} nodes run: {words}", self.nodes.len())))
    }

    fn leaders(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.leaders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leader_of(&self, queue: &str) -> Result<usize, Failure> {
        self.leaders().get(queue).copied().ok_or_else(|| Failure::new(format!("{queue} was not created")))
    }

    async fn channel_to(&self, node: usize) -> Result<Channel, Failure> {
        let mut held = self.channels[node].lock().await;
        if let Some((_, channel)) = held.as_ref().filter(|(_, channel)| channel.status().connected()) {
            return Ok(channel.clone());
        }
        let connection = connect(self.amqp_ports[node]).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        *held = Some((connection, channel.clone()));
        Ok(channel)
    }

    async fn channel(&self, queue: &str, through: Through) -> Result<(Connection, Channel), Failure> {
        let leader = self.leader_of(queue)?;
        let allowed = (0..self.nodes.len()).cycle().skip(leader).take(self.nodes.len());
        let node = allowed.into_iter().find(|node| through.allows(*node)).unwrap_or(leader);
        let connection = connect(self.amqp_ports[node]).await?;
        let channel = connection.create_channel().await?;
        Ok((connection, channel))
    }
}

impl System for Cluster {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(Server::pid).collect()
    }

    /// Each is one group.
    fn queues_for(&self, partitions: u32) -> usize {
        partitions as usize
    }

    /// There is no lease: a message belongs to its receiver while that is connected.
    fn create_queue<'a>(&'a self, queue: Queue<'a>) -> Doing<'a, ()> {
        async move {
            let node = self.turn.fetch_add(1, Ordering::Relaxed) % self.nodes.len();
            let channel = self.channel_to(node).await?;
            let mut arguments = FieldTable::default();
            let text = |text: &str| AMQPValue::LongString(text.into());
            arguments.insert("x-queue-type".into(), text("quorum"));
            arguments.insert("x-queue-leader-locator".into(), text("client-local"));
            arguments.insert(
                "x-quorum-initial-group-size".into(),
                AMQPValue::LongInt(i32::try_from(self.replicas)?),
            );
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            channel.queue_declare(queue.name.into(), options, arguments).await?;
            self.leaders().insert(queue.name.to_owned(), node);
            Ok(())
        }
        .boxed()
    }

    fn send_one<'a>(&'a self, queue: &'a str, body: Bytes) -> Doing<'a, ()> {
        async move {
            let channel = self.channel_to(self.leader_of(queue)?).await?;
            publish(&channel, queue, &body).await?.await.map_err(Failure::from).and_then(confirmed)
        }
        .boxed()
    }

    fn delete_queue<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        async move {
            let channel = self.channel_to(self.leader_of(name)?).await?;
            channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?;
            self.leaders().remove(name);
            Ok(())
        }
        .boxed()
    }

    fn sender<'a>(&'a self, queue: &'a str, through: Through) -> Doing<'a, Arc<dyn Sender>> {
        async move {
            let (connection, channel) = self.channel(queue, through).await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(Arc::new(Publisher { _connection: connection, channel, queue: queue.to_owned() })
                as Arc<dyn Sender>)
        }
        .boxed()
    }

    fn receiver<'a>(&'a self, queue: &'a str, through: Through) -> Doing<'a, Box<dyn Receiver>> {
        async move {
            let (connection, channel) = self.channel(queue, through).await?;
            channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            let consumer =
                channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
            let subscriber = Subscriber {
                _connection: connection,
                channel,
                consumer,
                queue: queue.to_owned(),
                last_tag: None,
                unacked: 0,
            };
            Ok(Box::new(subscriber) as Box<dyn Receiver>)
        }
        .boxed()
    }

    fn leader<'a>(&'a self, queue: &'a str) -> Doing<'a, usize> {
        async move { self.leader_of(queue) }.boxed()
    }

    fn kill(&mut self, node: usize) -> Doing<'_, ()> {
        self.nodes[node].kill().boxed()
    }

    fn restart(&mut self, node: usize) -> Doing<'_, Duration> {
        async move {
            let began = Instant::now();
            self.nodes[node].restart()?;
            until_done(START_PATIENCE, || connect(self.amqp_ports[node]).boxed()).await?;
            Ok(began.elapsed())
        }
        .boxed()
    }

    fn stop(mut self: Box<Self>) -> Doing<'static, ()> {
        async move {
            for node in &mut self.nodes {
                node.kill().await?;
            }
            self._names.kill().await
        }
        .boxed()
    }
}

async fn publish(channel: &Channel, queue: &str, body: &[u8]) -> Result<PublisherConfirm, lapin::Error> {
    let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    channel.basic_publish("".into(), queue.into(), BasicPublishOptions::default(), body, properties).await
}

fn confirmed(confirmation: Confirmation) -> Result<(), Failure> {
    if confirmation.is_ack() { Ok(()) } else { Err(Failure::new("the publish was refused")) }
}

struct Publisher {
    _connection: Connection,
    channel: Channel,
    queue: String,
}

impl Sender for Publisher {
    /// One after the other without waiting, so that they travel together.
    fn send(&self, bodies: Vec<Bytes>) -> BoxFuture<'_, Vec<Result<Instant, Failure>>> {
        async move {
            let mut sent = Vec::with_capacity(bodies.len());
            for body in bodies {
                sent.push(publish(&self.channel, &self.queue, &body).await);
            }
            join_all(sent.into_iter().map(|published| async move {
                confirmed(published?.await?)?;
                Ok(Instant::now())
            }))
            .await
        }
        .boxed()
    }
}

struct Subscriber {
    _connection: Connection,
    channel: Channel,
    consumer: Consumer,
    queue: String,
    /// Of what was received and not yet acknowledged, the last, and how many they are.
    last_tag: Option<u64>,
    unacked: usize,
}

impl Receiver for Subscriber {
    fn receive(&mut self, messages_max: usize, wait: Duration) -> Doing<'_, Vec<Bytes>> {
        async move {
            let mut bodies = Vec::new();
            let Ok(first) = timeout(wait, self.consumer.next()).await else { return Ok(bodies) };
            let mut next = Some(first);
            while let Some(arrived) = next {
                let delivery = arrived.ok_or_else(|| Failure::new("the consumer was cancelled"))??;
                self.last_tag = Some(delivery.delivery_tag);
                self.unacked += 1;
                bodies.push(Bytes::from(delivery.data));
                next = if bodies.len() < messages_max { self.consumer.next().now_or_never() } else { None };
            }
            Ok(bodies)
        }
        .boxed()
    }

    /// The answer to the second request comes from the queue's leader after the ack.
    fn ack(&mut self) -> Doing<'_, usize> {
        async move {
            let Some(tag) = self.last_tag.take() else { return Ok(0) };
            let acked = std::mem::take(&mut self.unacked);
            self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
            let passive =
                QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
            self.channel.queue_declare(self.queue.as_str().into(), passive, FieldTable::default()).await?;
            Ok(acked)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_listens_on_loopback_and_keeps_everything_in_its_own_folder() {
        let text = configuration(4001, 3);
        assert!(text.contains("listeners.tcp.1 = 127.0.0.1:4001\n"), "{text}");
        assert!(text.contains("nodes.3 = rabbit3@localhost\n") && !text.contains("nodes.4"), "{text}");
        let variables = variables(0, Path::new("/a"), Path::new("/a/b"), 7, 8);
        let paths = variables.iter().filter(|(_, value)| Path::new(value).is_absolute());
        assert!(paths.clone().count() >= 8);
        assert!(paths.into_iter().all(|(_, value)| Path::new(value).starts_with("/a")), "{variables:?}");
    }
}
