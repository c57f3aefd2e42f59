//! A node as a process holds it: listeners, the log, and, once it belongs to a cluster, the core.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use leasehold_catalogue::NodeId;
use leasehold_proto::peer::{IdentifyResponse, JoinRequest};
use leasehold_proto::v1::Reason;
use leasehold_raft_log::{FileSystem as _, Log, OpenError, Options, RealFileSystem, Recovered};
use tokio::net::TcpListener;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::admin_http::{self, AdminState, NotReady, Readiness};
use crate::config::{AddressError, Config};
use crate::core::{Core, CoreParts};
use crate::failure::Failure;
use crate::identity::{FORMAT_VERSION, FoundLog, Identity, IdentityError};
use crate::lane::Sockets;
use crate::leaders;
use crate::raft::ReplicaNode;
use crate::service::Service;
use crate::serving::{serve_clients, serve_peers, until};
use crate::telemetry::{self, TelemetryError};
use crate::tls::{Listener, Tls, TlsFilesError};

/// How long a stop waits for calls that are being answered.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);
/// How long the first founder waits for the others before it asks for their votes.
const FOUNDERS_PATIENCE: Duration = Duration::from_secs(2);

/// What its votes and entries would do in a group of the same number is nobody's to say.
const LOG_OWNERLESS: &str = "the log of this node holds partitions of a cluster, and its identity is gone: restore the identity, or \
     empty the data folder and start the node again";

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot {action} {what}: {error}")]
    Io { action: &'static str, what: String, error: std::io::Error },
    #[error(transparent)]
    Log(#[from] OpenError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] TlsFilesError),
    #[error(
        "the address {address} cannot be told to others ({error}): set `client_advertise` and `peer_advertise`"
    )]
    Advertise { address: SocketAddr, error: AddressError },
    #[error("the node cannot take up its place in the cluster: {0}")]
    Core(String),
}

/// What every service of a node shares, in a cluster or not.
pub struct Shell {
    pub config: Arc<Config>,
    log: Log,
    /// Whether the log holds groups of a cluster, and nothing says of which: the identity is gone.
    is_log_ownerless: bool,
    tls: Option<Arc<Tls>>,
    sockets: Sockets,
    peer_address: String,
    client_address: String,
    core: OnceLock<Arc<Core>>,
    joining: AsyncMutex<()>,
    tasks: Mutex<JoinSet<()>>,
    stop: watch::Receiver<bool>,
}

impl Shell {
    /// Completes when the node stops serving.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        until(self.stop.clone())
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The way to other nodes.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// What a listener secures its connections with.
    pub fn tls(&self, listener: Listener) -> Option<(Arc<Tls>, Listener)> {
        Some((self.tls.clone()?, listener))
    }

    /// What this node does in its cluster.
    ///
    /// # Errors
    /// `NOT_INITIALISED` while it belongs to none.
    pub fn core(&self) -> Result<Arc<Core>, Failure> {
        self.core.get().cloned().ok_or_else(|| {
            let detail = "this node belongs to no cluster: run `leasehold cluster init`, or add it to one";
            Failure::not_done(Reason::NotInitialised, detail)
        })
    }

    pub fn identify(&self) -> IdentifyResponse {
        let identity = self.core.get().map(|core| &core.identity);
        identify(&self.config, identity, &self.peer_address, &self.client_address)
    }

    /// Makes this node a member of a cluster; to be told the same twice changes nothing.
    ///
    /// # Errors
    /// When it is a member of another one, has the log of one, or cannot start.
    pub async fn join(&self, join: JoinRequest) -> Result<(), Failure> {
        let _one_at_a_time = self.joining.lock().await;
        let invalid = |detail: String| Failure::not_done(Reason::InvalidArgument, detail);
        let cluster_id: [u8; 16] =
            join.cluster_id[..].try_into().map_err(|_| invalid("a cluster id has 16 bytes".to_owned()))?;
        if join.node_id == 0 || join.catalogue_replica == 0 {
            return Err(invalid("node_id and catalogue_replica are above 0".to_owned()));
        }
        let identity = Identity {
            cluster_id,
            node_id: join.node_id,
            catalogue_replica: join.catalogue_replica,
            name: self.config.name.clone(),
            log_unique_id: Some(self.log.unique_id()),
            format_version: FORMAT_VERSION,
        };
        if let Some(core) = self.core.get() {
            if core.identity == identity {
                return Ok(());
            }
            return Err(Failure::not_done(
                Reason::AlreadyInitialised,
                "this node belongs to a cluster already",
            ));
        }
        if self.is_log_ownerless {
            return Err(Failure::not_done(Reason::AlreadyInitialised, LOG_OWNERLESS));
        }
        let failed = |detail: String| Failure::try_again(Reason::NodeFailed, detail);
        identity.store(&self.config.data_dir).map_err(|error| failed(error.to_string()))?;
        let core = self.start_core(identity).await.map_err(failed)?;
        for founder in join.founders.iter().filter(|founder| founder.node != join.node_id) {
            core.lanes.follow_address(NodeId(founder.node), &founder.address);
        }
        if join.founders.first().is_some_and(|first| first.node == join.node_id) {
            let members = join.founders.into_iter().map(|founder| {
                (founder.replica, ReplicaNode { node_id: founder.node, address: founder.address })
            });
            let members = members.collect::<Vec<_>>();
            wait_for_links(&core, &members).await;
            if !join.brings_state {
                core.found_catalogue(members).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    async fn start_core(&self, identity: Identity) -> Result<Arc<Core>, String> {
        let mut tasks = JoinSet::new();
        let parts = CoreParts {
            config: self.config.clone(),
            identity,
            log: self.log.clone(),
            transport: Arc::new(self.sockets.clone()),
            peer_address: self.peer_address.clone(),
            client_address: self.client_address.clone(),
        };
        let core = Core::start(parts, &mut tasks).await?;
        *self.tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
        Ok(self.core.get_or_init(|| core).clone())
    }

    /// Whether this node can serve its clients.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn readiness_of_core(&self) -> Result<(), NotReady> {
        let not_ready = |reason: &'static str, detail: String| Err(NotReady { reason, detail });
        if let Some(failure) = self.log.failure() {
            return not_ready("LOG_FAILED", failure.to_string());
        }
        let Some(core) = self.core.get() else {
            return not_ready("NOT_INITIALISED", "the node belongs to no cluster".to_owned());
        };
        if !core.view.is_founded() {
            return not_ready(
                "NO_CATALOGUE",
                "the node has not heard of the cluster's catalogue yet".to_owned(),
            );
        }
        if !core.is_announced() {
            return not_ready(
                "NOT_ANNOUNCED",
                "the cluster does not know this node's address yet".to_owned(),
            );
        }
        let partitions = core.view.look(|catalogue| {
            catalogue.partitions().map(|partition| partition.partition_id()).collect::<Vec<_>>()
        });
        let is_led = |partition: &leasehold_catalogue::PartitionId| match core.router.replica(*partition) {
            Some(_) => core.router.leader_of(*partition).is_some(),
            None => !core.view.nodes_of(*partition).contains(&core.view.here()),
        };
        match partitions.iter().find(|partition| !is_led(partition)) {
            Some(partition) => {
                not_ready("NO_LEADER", format!("partition {partition} has no leader that this node knows"))
            }
            None => Ok(()),
        }
    }
}

/// What a node says of itself.
pub fn identify(
    config: &Config,
    identity: Option<&Identity>,
    peer_address: &str,
    client_address: &str,
) -> IdentifyResponse {
    IdentifyResponse {
        name: config.name.clone(),
        cluster_id: identity.map(|identity| identity.cluster_id.to_vec().into()).unwrap_or_default(),
        node_id: identity.map_or(0, |identity| identity.node_id),
        client_address: client_address.to_owned(),
        peer_address: peer_address.to_owned(),
        machine_version_max: config.version_max,
    }
}

struct ShellReadiness(Arc<Shell>);

impl Readiness for ShellReadiness {
    fn readiness(&self) -> Result<(), NotReady> {
        self.0.readiness_of_core()
    }
}

/// Votes that are asked for before there is a link cost an election time-out.
async fn wait_for_links(core: &Core, members: &[(u64, ReplicaNode)]) {
    let others =
        || members.iter().map(|(_, node)| NodeId(node.node_id)).filter(|node| *node != core.view.here());
    let linked = async {
        while !others().all(|node| core.lanes.is_reachable(node)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Without all of them the group is founded all the same, only later.
    let _ = tokio::time::timeout(FOUNDERS_PATIENCE, linked).await;
}

/// A running node.
pub struct Node {
    shell: Arc<Shell>,
    client_address: SocketAddr,
    peer_address: SocketAddr,
    admin_address: Option<SocketAddr>,
    stopping: watch::Sender<bool>,
    clients: JoinHandle<()>,
    servers: JoinSet<()>,
}

struct Listeners {
    client: TcpListener,
    peer: TcpListener,
    admin: Option<TcpListener>,
}

impl Node {
    /// Opens the data folder, binds the listeners and takes up the place in the cluster that the folder says.
    ///
    /// # Errors
    /// When a listener is taken, the log or the identity cannot be used, or a replica cannot be started.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        config.log_warnings();
        let metrics = telemetry::metrics()?;
        let tls = config.tls.as_ref().map(Tls::load).transpose()?.map(Arc::new);
        create_dir(&config.data_dir)?;
        let identity = Identity::load(&config.data_dir, &config.name)?;
        let log = open_log(&config)?;
        let found = FoundLog { unique_id: log.unique_id(), is_empty: log.groups().is_empty() };
        if let Some(identity) = &identity {
            identity.check_log(&config.data_dir, found)?;
        }
        let is_log_ownerless = identity.is_none() && !found.is_empty;
        if is_log_ownerless {
            tracing::warn!("{LOG_OWNERLESS}");
        }
        let listeners = Listeners::bind(&config).await?;
        let (client_address, peer_address) = (local(&listeners.client)?, local(&listeners.peer)?);
        let admin_address = listeners.admin.as_ref().map(local).transpose()?;
        let advertise = |address| move |error| StartError::Advertise { address, error };
        let client = config.client_advertised(client_address).map_err(advertise(client_address))?;
        let peer = config.peer_advertised(peer_address).map_err(advertise(peer_address))?;
        let (stopping, stop) = watch::channel(false);
        let shell = Arc::new(Shell {
            config: Arc::new(config),
            log,
            is_log_ownerless,
            sockets: Sockets::new(tls.clone()),
            tls: tls.clone(),
            peer_address: peer.to_string(),
            client_address: client.to_string(),
            core: OnceLock::new(),
            joining: AsyncMutex::new(()),
            tasks: Mutex::new(JoinSet::new()),
            stop: stop.clone(),
        });
        if let Some(identity) = identity {
            shell.start_core(identity).await.map_err(StartError::Core)?;
        }
        let mut servers = JoinSet::new();
        if let Some(admin) = listeners.admin {
            let state = AdminState { metrics, readiness: Arc::new(ShellReadiness(shell.clone())) };
            servers.spawn(admin_http::serve(admin, tls.clone(), state, until(stop.clone())));
        }
        if let Some(tls) = tls {
            servers.spawn(tls.keep_fresh());
        }
        servers.spawn(metrics.run_upkeep());
        servers.spawn(serve_peers(shell.clone(), listeners.peer, stop.clone()));
        let clients = tokio::spawn(serve_clients(shell.clone(), listeners.client, stop));
        tracing::info!(node = %shell.config.name, client = %client_address, peer = %peer_address, "serves");
        Ok(Self { shell, client_address, peer_address, admin_address, stopping, clients, servers })
    }

    /// Where clients reach it.
    pub fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    /// Where other nodes reach it.
    pub fn peer_address(&self) -> SocketAddr {
        self.peer_address
    }

    /// Where metrics, health and readiness are served.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// What the connections of gateways in this process are secured with.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.shell.tls.clone()
    }

    /// What gateways in this process call.
    pub fn service(&self) -> Service {
        Service::new(self.shell.clone())
    }

    /// Whether it can serve its clients.
    pub fn is_ready(&self) -> bool {
        self.shell.readiness_of_core().is_ok()
    }

    /// Waits until it cannot go on; returns why.
    pub async fn failed(&self) -> String {
        self.shell.log.failed().await.to_string()
    }

    /// Hands over what it leads, answers what it was asked, and stops.
    pub async fn shutdown(mut self) {
        let core = self.shell.core.get().cloned();
        if let Some(core) = &core {
            leaders::hand_over_all(core).await;
        }
        self.stopping.send_replace(true);
        if tokio::time::timeout(DRAIN_PATIENCE, &mut self.clients).await.is_err() {
            tracing::debug!("some clients stayed connected until the end");
            self.clients.abort();
        }
        self.servers.shutdown().await;
        if let Some(core) = &core {
            core.halt().await;
        }
        let tasks = std::mem::take(&mut *self.shell.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        drop(tasks);
        if let Ok(metrics) = telemetry::metrics() {
            metrics.forget_queues(&self.shell.config.name);
        }
        let log = self.shell.log.clone();
        // The log waits for its last batch.
        if let Err(error) = tokio::task::spawn_blocking(move || log.close()).await {
            tracing::error!(%error, "the log did not close cleanly");
        }
    }
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, StartError> {
        let admin = match config.admin_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        Ok(Self { client: bind(config.client_listen).await?, peer: bind(config.peer_listen).await?, admin })
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let failed = |error| StartError::Io { action: "listen on", what: address.to_string(), error };
    TcpListener::bind(address).await.map_err(failed)
}

fn local(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    let failed =
        |error| StartError::Io { action: "learn the address of", what: "a listener".to_owned(), error };
    listener.local_addr().map_err(failed)
}

fn create_dir(dir: &Path) -> Result<(), StartError> {
    let failed = |error| StartError::Io { action: "create", what: dir.display().to_string(), error };
    // Durably: what is synced in a folder that is lost is lost with it.
    RealFileSystem::default().create_dir(dir).map_err(failed)
}

fn open_log(config: &Config) -> Result<Log, StartError> {
    let options = Options {
        segment_bytes: config.log.segment_bytes,
        cache_bytes: config.limits.cache_bytes as usize,
        disk_low_bytes: config.limits.disk_low_bytes,
        ..Options::default()
    };
    let (log, recovered) =
        Log::open(Arc::new(RealFileSystem::default()), &config.data_dir.join("log"), options)?;
    let Recovered { records, bytes, read_bytes } = recovered;
    tracing::info!(records, bytes, read_bytes, "the log is open");
    Ok(log)
}
