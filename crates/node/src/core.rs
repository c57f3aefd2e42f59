//! A node that belongs to a cluster: everything that works together, and the start of its replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use leasehold_catalogue::{Kind, NodeId, PartitionId, ReplicaId, UpdateNode};
use leasehold_raft_log::Log;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::answers::LocalAnswers;
use crate::catalogue_link::{CATALOGUE_GROUP, CatalogueLink};
use crate::cluster::ClusterView;
use crate::config::{Config, HistoryMode};
use crate::contents::Contents;
use crate::history::{HistoryStore, HistoryWriter};
use crate::identity::Identity;
use crate::lane::{Lanes, Origin, Transport};
use crate::raft::{Group, GroupId, GroupOptions, Machine, Network, ReplicaNode};
use crate::reconcile::Moving;
use crate::replica::{PartitionMachine, Replica, ReplicaParts, group_of};
use crate::router::Router;
use crate::transfer_hold::TransferHold;
use crate::{housekeeping, leaders, outbox, reconcile, seeds, versions};

/// A node whose addresses could not be announced tries again after this long.
const ANNOUNCE_AGAIN: Duration = Duration::from_millis(50);

/// What of a node exists only inside a cluster.
pub struct Core {
    pub config: Arc<Config>,
    pub identity: Identity,
    pub log: Log,
    pub lanes: Arc<Lanes>,
    pub view: Arc<ClusterView>,
    pub router: Arc<Router>,
    pub catalogue: CatalogueLink,
    pub moving: Moving,
    pub transfer_hold: TransferHold,
    /// Held while a partition is given a state of a backup.
    pub restoring: tokio::sync::Mutex<()>,
    pub pending_bytes: Arc<AtomicUsize>,
    history: Option<HistoryWriter>,
    /// Where other nodes and clients reach this one.
    pub peer_address: String,
    pub client_address: String,
    is_announced: AtomicBool,
}

/// What a core is started from.
pub struct CoreParts {
    pub config: Arc<Config>,
    pub identity: Identity,
    pub log: Log,
    pub transport: Arc<dyn Transport>,
    pub peer_address: String,
    pub client_address: String,
}

impl Core {
    /// Starts the catalogue's replica and everything that follows from it; the tasks end when the set is dropped.
    ///
    /// # Errors
    /// When the log, a snapshot or the history cannot be used.
    pub async fn start(parts: CoreParts, tasks: &mut JoinSet<()>) -> Result<Arc<Self>, String> {
        let CoreParts { config, identity, log, transport, peer_address, client_address } = parts;
        let here = NodeId(identity.node_id);
        let (events, peer_events) = mpsc::unbounded_channel();
        let lanes = Arc::new(Lanes::new(
            Origin::new(&identity.cluster_id, here, &peer_address),
            transport,
            Duration::from_millis(config.raft.liveness_timeout_ms),
            events,
        ));
        let view = Arc::new(ClusterView::new(here, config.version_max));
        let (store, history) = open_history(&config).await?;
        let contents = Contents { log: log.clone(), view: view.clone(), lanes: lanes.clone() };
        let answers = LocalAnswers { contents, view: view.clone(), history: store };
        let router = Arc::new(Router::new(here, view.clone(), lanes.clone(), answers));
        let network = Network::new(CATALOGUE_GROUP, lanes.clone(), log.clone());
        let options = group_options(&config, CATALOGUE_GROUP, identity.catalogue_replica);
        let machine: Arc<dyn Machine> = view.clone();
        let group = Group::start(options, machine, log.clone(), network).await?;
        let core = Arc::new(Self {
            catalogue: CatalogueLink::new(group, view.clone(), lanes.clone()),
            config,
            identity,
            log,
            lanes,
            view,
            router,
            moving: Moving::default(),
            transfer_hold: TransferHold::default(),
            restoring: tokio::sync::Mutex::default(),
            pending_bytes: Arc::new(AtomicUsize::new(0)),
            history,
            peer_address,
            client_address,
            is_announced: AtomicBool::new(false),
        });
        core.tell_log_what_lives();
        tasks.spawn(reconcile::run(core.clone()));
        tasks.spawn(leaders::watch_peers(core.clone(), peer_events));
        tasks.spawn(leaders::watch_reach(core.clone()));
        tasks.spawn(leaders::balance(core.clone()));
        tasks.spawn(leaders::watch_leaderless(core.clone()));
        tasks.spawn(housekeeping::run(core.clone()));
        tasks.spawn(announce(core.clone()));
        tasks.spawn(seeds::run(core.clone()));
        tasks.spawn(versions::run(core.clone()));
        Ok(core)
    }

    /// The log asks which entries, and which parts of one, are still wanted, when it makes room and when another replica is given them.
    fn tell_log_what_lives(&self) {
        let router = Arc::downgrade(&self.router);
        let replica_of = move |group: GroupId| {
            let partition = group.0.checked_sub(1).map(PartitionId);
            router.upgrade().zip(partition).and_then(|(router, partition)| router.replica(partition))
        };
        let find = replica_of.clone();
        self.log.set_live_entries_source(Arc::new(move |group| {
            find(group).map(|replica| replica.machine().live_contents()).unwrap_or_default()
        }));
        self.log.set_live_ranges_source(Arc::new(move |group, log_index| {
            replica_of(group).map(|replica| replica.machine().live_ranges(log_index)).unwrap_or_default()
        }));
    }

    /// Starts this node's replica of a partition from what the log holds. That may be of another replica, which moved away while the node
    /// was down: its entries are the group's, and the votes that it gave bind the new one too, which is more than Raft asks for.
    ///
    /// # Errors
    /// When the log or the snapshot cannot be read.
    pub async fn start_replica(self: &Arc<Self>, id: PartitionId, replica: ReplicaId) -> Result<(), String> {
        let machine = Arc::new(PartitionMachine::new(id, self.history.clone()));
        let group_id = group_of(id);
        let network = Network::new(group_id, self.lanes.clone(), self.log.clone());
        let options = group_options(&self.config, group_id, replica.0);
        let shared: Arc<dyn Machine> = machine.clone();
        let group = Group::start(options, shared, self.log.clone(), network).await?;
        let replica = Arc::new(Replica::start(ReplicaParts {
            id,
            group,
            machine,
            queues: self.view.clone(),
            pending_bytes: self.pending_bytes.clone(),
            pending_bytes_max: self.config.limits.pending_bytes_max as usize,
        }));
        tokio::spawn(outbox::run(Arc::downgrade(self), Arc::downgrade(&replica)));
        tracing::debug!(partition = id.0, replica = replica.group().replica(), "a replica has started");
        self.router.add_replica(replica);
        Ok(())
    }

    /// Founds the catalogue's group with these replicas; does nothing when it was founded before.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn found_catalogue(
        &self,
        members: impl IntoIterator<Item = (u64, ReplicaNode)>,
    ) -> Result<(), String> {
        self.catalogue.group.initialise(members.into_iter().collect()).await
    }

    /// Whether the catalogue has this node's addresses. Until then others may not find it, and must not be stopped.
    pub fn is_announced(&self) -> bool {
        self.is_announced.load(Ordering::Acquire)
    }

    /// Stops all groups as they are.
    pub async fn halt(&self) {
        for replica in self.router.replicas() {
            replica.stop().await;
        }
        self.catalogue.group.shutdown().await;
    }
}

/// Tells the catalogue where this node is, when it has come back elsewhere.
async fn announce(core: Arc<Core>) {
    let here = core.view.here();
    let mut changes = core.view.changes();
    loop {
        let known = core.view.look(|catalogue| {
            catalogue.node(here).map(|node| (node.peer_address.clone(), node.client_address.clone()))
        });
        match known {
            Some((peer, client)) if peer == core.peer_address && client == core.client_address => {
                return core.is_announced.store(true, Ordering::Release);
            }
            Some(_) => {
                let (peer_address, client_address) = (core.peer_address.clone(), core.client_address.clone());
                let update = Kind::UpdateNode(UpdateNode { id: here.0, peer_address, client_address });
                match core.catalogue.propose(update).await {
                    Ok(_) => return core.is_announced.store(true, Ordering::Release),
                    Err(failure) => {
                        tracing::warn!(%failure, "the node's new address cannot be announced yet")
                    }
                }
            }
            None => drop(changes.changed().await),
        }
        tokio::time::sleep(ANNOUNCE_AGAIN).await;
    }
}

type History = (Option<Arc<HistoryStore>>, Option<HistoryWriter>);

async fn open_history(config: &Config) -> Result<History, String> {
    let collects = match config.history.mode {
        HistoryMode::Off => return Ok((None, None)),
        HistoryMode::Unusual => leasehold_partition::History::Unusual,
        HistoryMode::All => leasehold_partition::History::All,
    };
    let (path, bytes_max) = (config.data_dir.join("history"), config.history.bytes_max);
    let opening = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || HistoryStore::open(&path, collects, bytes_max))
    };
    let opened = opening.await.map_err(|error| error.to_string())?;
    let (store, writer) =
        opened.map_err(|error| format!("the history in {} cannot be used: {error}", path.display()))?;
    Ok((Some(store), Some(writer)))
}

fn group_options(config: &Config, id: GroupId, replica: u64) -> GroupOptions {
    GroupOptions {
        id,
        replica,
        heartbeat_ms: config.raft.heartbeat_ms,
        election_ms_min: config.raft.election_min_ms,
        election_ms_max: config.raft.election_max_ms,
    }
}
