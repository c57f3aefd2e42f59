//! A cluster of nodes in one process, on loopback, for tests.

mod authorised;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use leasehold_client::v1::{InitNode, PartitionStatus, StatusResponse};
use leasehold_client::{Client, ClientBuilder, Error, Message, Outcome, Reason, ReceiveOptions, Tls};
use leasehold_node::Node;
use leasehold_node::config::Config;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

pub use authorised::Authorised;

/// Longer than anything takes that works, on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A founding that may or may not have happened is begun anew with other nodes, up to so often in all.
const FOUNDINGS_MAX: u32 = 3;
/// A node takes over within this time, unless it is too busy.
const TAKES_OVER: Duration = Duration::from_millis(500);

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct Plan {
    pub nodes: usize,
    pub partitions: u32,
    /// Configuration over the defaults, by key.
    pub settings: Vec<(String, String)>,
    /// How clients speak TLS with it.
    pub tls: Option<Tls>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { nodes: 3, partitions: 4, settings: Vec::new(), tls: None }
    }
}

/// Nodes that can be stopped and started again; all of them end with this value.
pub struct TestCluster {
    dir: TempDir,
    settings: Vec<(String, String)>,
    tls: Option<Tls>,
    nodes: Vec<(String, Option<Node>)>,
    /// Where each node was reached first: it comes back there.
    ports: BTreeMap<String, (u16, u16)>,
}

impl TestCluster {
    /// Starts and founds a cluster, and waits until it is ready.
    pub async fn start(plan: Plan) -> Self {
        let mut founding = 1;
        loop {
            let mut cluster = Self { tls: plan.tls.clone(), ..Self::empty(plan.settings.clone()) };
            for number in 1..=plan.nodes {
                cluster.add_process(&format!("n{number}")).await;
            }
            match cluster.found(plan.partitions).await {
                Ok(_) => {
                    cluster.wait_until_ready().await;
                    return cluster;
                }
                Err(error) if is_open(&error) && founding < FOUNDINGS_MAX => cluster.end().await,
                Err(error) => panic!("{error}"),
            }
            founding += 1;
        }
    }

    async fn found(&self, partitions: u32) -> Result<String, Error> {
        let nodes = self.nodes.iter().filter_map(|(name, node)| Some(init_node(name, node.as_ref()?)));
        self.client().init_cluster(nodes.collect(), partitions, 0).await
    }

    /// No node yet.
    pub fn empty(settings: Vec<(String, String)>) -> Self {
        let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        Self { dir, settings, tls: None, nodes: Vec::new(), ports: BTreeMap::new() }
    }

    /// Starts a node that belongs to no cluster.
    pub async fn add_process(&mut self, name: &str) {
        let node = self.start_node(name).await;
        self.ports.insert(name.to_owned(), (node.client_address().port(), node.peer_address().port()));
        self.nodes.push((name.to_owned(), Some(node)));
    }

    async fn start_node(&self, name: &str) -> Node {
        Node::start(self.config_of(name)).await.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn config_of(&self, name: &str) -> Config {
        let dir = self.dir_of(name);
        let (client_port, peer_port) = self.ports.get(name).copied().unwrap_or_default();
        let mut overrides = vec![
            ("name".to_owned(), name.to_owned()),
            ("data_dir".to_owned(), dir.display().to_string()),
            ("client_listen".to_owned(), format!("127.0.0.1:{client_port}")),
            ("peer_listen".to_owned(), format!("127.0.0.1:{peer_port}")),
            ("admin_listen".to_owned(), "127.0.0.1:0".to_owned()),
            ("log.segment_bytes".to_owned(), (16 << 20).to_string()),
            ("limits.disk_low_bytes".to_owned(), (64 << 20).to_string()),
        ];
        overrides.extend(self.settings.iter().cloned());
        Config::load(None, std::iter::empty(), &overrides).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn dir_of(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn node(&self, name: &str) -> &Node {
        let found = self.nodes.iter().find(|(other, _)| other == name);
        found.and_then(|(_, node)| node.as_ref()).unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// As `cluster init` and `cluster add-node` want it.
    pub fn init_node(&self, name: &str) -> InitNode {
        init_node(name, self.node(name))
    }

    /// A client that knows every running node.
    pub fn client(&self) -> Client {
        self.client_of(self.nodes.iter().filter_map(|(_, node)| node.as_ref()))
    }

    /// A client that knows one node only.
    pub fn client_at(&self, name: &str) -> Client {
        self.client_of([self.node(name)].into_iter())
    }

    fn client_of<'a>(&self, nodes: impl Iterator<Item = &'a Node>) -> Client {
        let builder = Client::builder(nodes.map(|node| node.client_address().to_string()));
        let builder = self.tls.iter().cloned().fold(builder, ClientBuilder::tls);
        builder.build().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Sets a key for the nodes that start from now on.
    pub fn set(&mut self, key: &str, value: &str) {
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    /// Stops a node in good order.
    pub async fn stop(&mut self, name: &str) {
        if let Some(node) = self.slot(name).take() {
            node.shutdown().await;
        }
    }

    /// Starts a stopped node again, where it was.
    pub async fn restart(&mut self, name: &str) {
        let node = self.start_node(name).await;
        *self.slot(name) = Some(node);
    }

    /// What a stopped node says that refuses to start.
    ///
    /// # Panics
    /// When it starts.
    pub async fn refusal(&self, name: &str) -> String {
        match Node::start(self.config_of(name)).await {
            Ok(_) => panic!("{name} has started"),
            Err(error) => error.to_string(),
        }
    }

    /// Starts a stopped node again, on other ports.
    pub async fn restart_elsewhere(&mut self, name: &str) {
        self.ports.remove(name);
        self.restart(name).await;
    }

    fn slot(&mut self, name: &str) -> &mut Option<Node> {
        let found = self.nodes.iter_mut().find(|(other, _)| other == name);
        found.map(|(_, node)| node).unwrap_or_else(|| panic!("there is no node {name}"))
    }

    /// Waits until every running node can serve.
    pub async fn wait_until_ready(&self) {
        let nodes = || self.nodes.iter().filter_map(|(_, node)| node.as_ref());
        eventually("every node is ready", async || nodes().all(Node::is_ready)).await;
    }

    /// Stops everything in good order.
    pub async fn end(mut self) {
        for (_, node) in &mut self.nodes {
            if let Some(node) = node.take() {
                node.shutdown().await;
            }
        }
    }
}

fn init_node(name: &str, node: &Node) -> InitNode {
    InitNode { name: name.to_owned(), peer_address: node.peer_address().to_string() }
}

/// Whether a founding may have happened, as far as is known: a busy machine may lose an answer.
fn is_open(error: &Error) -> bool {
    error.outcome == Outcome::Unknown || error.reason == Reason::AlreadyInitialised
}

pub fn endpoint(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// Receives until something comes. A node that was held up for a second gives back what it has granted, and says at once that there
/// is nothing, however long the receive may wait; the message comes again, and its receive count tells.
///
/// # Panics
/// When nothing comes within [`PATIENCE`].
pub async fn receive_some(client: &Client, queue: &str, options: &ReceiveOptions) -> Vec<Message> {
    let end = Instant::now() + PATIENCE;
    loop {
        let received = client.receive(queue, options.clone()).await;
        let messages = received.unwrap_or_else(|error| panic!("{error}"));
        if !messages.is_empty() {
            return messages;
        }
        assert!(Instant::now() < end, "{queue}: nothing came within {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn status(client: &Client) -> StatusResponse {
    client.cluster_status().await.unwrap_or_else(|error| panic!("{error}"))
}

fn of_partition(status: &StatusResponse, partition: u32) -> &PartitionStatus {
    let found = status.partitions.iter().find(|known| known.partition == partition);
    found.unwrap_or_else(|| panic!("there is no partition {partition}"))
}

/// The term of a partition at the node that answers. When it has grown, the leader has changed, or has been elected again.
pub async fn term(client: &Client, partition: u32) -> u64 {
    of_partition(&status(client).await, partition).term
}

/// Has the leader of a partition change. `client` asks one node only, since another one may not know of the last term yet.
///
/// # Panics
/// When nobody takes over within [`PATIENCE`].
pub async fn change_leader(client: &Client, partition: u32) {
    let before = term(client, partition).await;
    eventually("the leader has changed", async || {
        let status = status(client).await;
        let now = of_partition(&status, partition);
        if now.term > before && now.leader != 0 {
            return true;
        }
        let heir = status.nodes.iter().find(|node| node.id != now.leader && now.replicas.contains(&node.id));
        if let Some(heir) = heir {
            // Nobody may lead at this moment.
            let _ = client.transfer_leader(partition, &heir.name).await;
            sleep(TAKES_OVER).await;
        }
        false
    })
    .await;
}

/// Waits until something holds.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
}
