//! What this node knows of its cluster: its copy of the catalogue, arranged for look-ups.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use leasehold_catalogue::{Catalogue, Command, Kind, NodeId, PartitionId, Queue, QueueKind};
use leasehold_partition::{self as partition, Isolation, QueueId, RetryBudget, Settings};
use prost::Message as _;
use tokio::sync::watch;

use crate::raft::{Applied, Machine, MachineError};
use crate::receipt_token::ReceiptKey;
use crate::replica::{QueueSource, WantedShard};

/// A queue, as requests need it.
#[derive(Debug, Clone)]
pub struct QueueInfo {
    pub(crate) id: QueueId,
    pub(crate) name: String,
    pub(crate) settings: Settings,
    pub(crate) content_deduplication: bool,
    pub(crate) message_bytes_max: usize,
    /// Up to where leases grow; 0 for not at all.
    pub(crate) adaptive_lease_ms_max: u64,
    /// Of each shard.
    retry_budget: Option<RetryBudget>,
    pub(crate) isolation: Isolation,
    wait_ms: u64,
    labels: BTreeMap<String, String>,
    /// In the order in which message groups are dealt to them.
    pub(crate) shards: Vec<PartitionId>,
    /// Entry of the catalogue that changed it last.
    pub(crate) revision: u64,
}

impl QueueInfo {
    fn of(queue: &Queue) -> Self {
        let settings = &queue.settings;
        Self {
            id: QueueId(queue.id),
            name: queue.name.clone(),
            settings: partition_settings(settings),
            content_deduplication: settings.content_deduplication,
            message_bytes_max: settings.message_bytes_max as usize,
            adaptive_lease_ms_max: settings.adaptive_lease_ms_max,
            isolation: if settings.isolate_suspects { Isolation::On } else { Isolation::Off },
            retry_budget: shard_budget(settings, queue.partitions().count() as u64),
            wait_ms: settings.wait_ms,
            labels: settings.labels.clone(),
            shards: queue.partitions().collect(),
            revision: queue.revision,
        }
    }

    pub fn is_fifo(&self) -> bool {
        self.settings.kind == partition::Kind::Fifo
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether messages without a deduplication id get one from their content.
    pub fn content_deduplication(&self) -> bool {
        self.content_deduplication
    }

    /// Bytes that a message may have with its attributes.
    pub fn message_bytes_max(&self) -> usize {
        self.message_bytes_max
    }

    /// How long a receive waits that leaves it to the queue.
    pub fn wait_ms(&self) -> u64 {
        self.wait_ms
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    /// The shard of a message group.
    pub(crate) fn shard_of_group(&self, group: &[u8]) -> Option<PartitionId> {
        let shards = self.shards.iter().map(|shard| shard.0).collect::<Vec<_>>();
        leasehold_catalogue::shard_of_group(&shards, group)
    }
}

/// A shard's part of the retry budget: its own share, and of the floor an equal part, rounded up so that none is without.
fn shard_budget(settings: &leasehold_catalogue::QueueSettings, shards: u64) -> Option<RetryBudget> {
    let floor_per_s = settings.retry_floor_per_s().div_ceil(shards.max(1));
    (settings.retry_percent > 0)
        .then(|| RetryBudget { percent: narrow(settings.retry_percent), floor_per_s: narrow(floor_per_s) })
}

/// The catalogue's limits are below what these types hold.
fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn partition_settings(settings: &leasehold_catalogue::QueueSettings) -> Settings {
    Settings {
        kind: match settings.kind() {
            QueueKind::Standard => partition::Kind::Standard,
            QueueKind::Fifo => partition::Kind::Fifo,
        },
        lease_ms: narrow(settings.lease_ms),
        delay_ms: narrow(settings.delay_ms),
        retention_ms: settings.retention_ms,
        dead_letter: settings.dead_letter.map(|dead_letter| partition::DeadLetter {
            queue: QueueId(dead_letter.queue),
            receives_max: dead_letter.receives_max,
        }),
        dedup_window_ms: settings.deduplication_window_ms,
        in_flight_max: narrow(settings.in_flight_max),
        length_max: settings.length_max,
        bytes_max: settings.bytes_max,
    }
}

#[derive(Default)]
struct Copy {
    catalogue: Catalogue,
    by_name: HashMap<String, Arc<QueueInfo>>,
    by_id: HashMap<QueueId, Arc<QueueInfo>>,
}

impl Copy {
    fn of(catalogue: Catalogue) -> Self {
        let mut copy = Self::default();
        for queue in catalogue.queues() {
            copy.insert(QueueInfo::of(queue));
        }
        copy.catalogue = catalogue;
        copy
    }

    fn insert(&mut self, info: QueueInfo) {
        let info = Arc::new(info);
        self.by_name.insert(info.name.clone(), info.clone());
        self.by_id.insert(info.id, info);
    }

    /// Brings the look-ups of one queue up to date.
    fn refresh(&mut self, name: &str) {
        if let Some(old) = self.by_name.remove(name) {
            self.by_id.remove(&old.id);
        }
        if let Some(info) = self.catalogue.queue_by_name(name).map(QueueInfo::of) {
            self.insert(info);
        }
    }
}

/// This node's copy of the catalogue: the state machine of its replica, and what everybody here reads.
pub struct ClusterView {
    here: NodeId,
    copy: RwLock<Copy>,
    key: OnceLock<ReceiptKey>,
    changed: watch::Sender<u64>,
    applied: watch::Sender<u64>,
}

impl ClusterView {
    /// The view of a cluster that this node has heard nothing of yet.
    pub fn new(here: NodeId) -> Self {
        let copy = Copy { catalogue: Catalogue::new(), ..Copy::default() };
        Self {
            here,
            copy: RwLock::new(copy),
            key: OnceLock::new(),
            changed: watch::Sender::new(0),
            applied: watch::Sender::new(0),
        }
    }

    pub fn here(&self) -> NodeId {
        self.here
    }

    /// Wakes when anything but queues has changed; the value is the catalogue's revision.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Index of the last command of the catalogue that this copy shows.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Looks at the catalogue itself.
    pub fn look<T>(&self, look: impl FnOnce(&Catalogue) -> T) -> T {
        look(&self.read().catalogue)
    }

    pub fn queue(&self, name: &str) -> Option<Arc<QueueInfo>> {
        self.read().by_name.get(name).cloned()
    }

    pub fn queue_by_id(&self, id: QueueId) -> Option<Arc<QueueInfo>> {
        self.read().by_id.get(&id).cloned()
    }

    pub fn queue_name(&self, id: u64) -> Option<String> {
        self.queue_by_id(QueueId(id)).map(|queue| queue.name.clone())
    }

    pub fn revision(&self) -> u64 {
        self.read().catalogue.revision()
    }

    pub fn is_founded(&self) -> bool {
        self.read().catalogue.cluster().is_some()
    }

    /// The nodes of a partition's replicas, the best one to lead first.
    pub fn nodes_of(&self, partition: PartitionId) -> Vec<NodeId> {
        let copy = self.read();
        let found = copy.catalogue.partition(partition);
        found
            .map(|found| found.replicas.iter().map(|replica| replica.node_id()).collect())
            .unwrap_or_default()
    }

    pub fn peer_address(&self, node: NodeId) -> Option<String> {
        self.read().catalogue.node(node).map(|node| node.peer_address.clone())
    }

    pub fn client_address(&self, node: NodeId) -> Option<String> {
        self.read().catalogue.node(node).map(|node| node.client_address.clone())
    }

    pub fn node_name(&self, node: NodeId) -> Option<String> {
        self.read().catalogue.node(node).map(|node| node.name.clone())
    }

    /// The key of this cluster's receipts; `None` before this node has heard of the founding.
    pub fn receipt_key(&self) -> Option<ReceiptKey> {
        if let Some(key) = self.key.get() {
            return Some(key.clone());
        }
        let secret: [u8; 16] = *self.read().catalogue.cluster()?.secret.first_chunk()?;
        Some(self.key.get_or_init(|| ReceiptKey::derive(&secret)).clone())
    }

    fn read(&self) -> RwLockReadGuard<'_, Copy> {
        self.copy.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueSource for ClusterView {
    fn shard_of(&self, queue: QueueId, partition: PartitionId) -> Option<WantedShard> {
        let copy = self.read();
        let info = copy.by_id.get(&queue).filter(|info| info.shards.contains(&partition))?;
        let catalogue_revision = copy.catalogue.revision();
        Some(WantedShard {
            settings: info.settings,
            retry_budget: info.retry_budget,
            isolation: info.isolation,
            changed: info.revision,
            revision: catalogue_revision,
        })
    }

    fn adaptive_lease_ms_max(&self, queue: QueueId) -> u64 {
        self.read().by_id.get(&queue).map_or(0, |info| info.adaptive_lease_ms_max)
    }

    fn is_deleted(&self, id: QueueId) -> bool {
        let copy = self.read();
        copy.catalogue.has_given_out(leasehold_catalogue::QueueId(id.0)) && !copy.by_id.contains_key(&id)
    }
}

impl Machine for ClusterView {
    fn apply(&self, log_index: u64, payload: &Bytes) -> Result<Applied, MachineError> {
        let command = Command::decode(payload.clone()).map_err(|error| MachineError(error.to_string()))?;
        let mut copy = self.copy.write().unwrap_or_else(PoisonError::into_inner);
        let reply =
            copy.catalogue.apply(log_index, payload).map_err(|error| MachineError(error.to_string()))?;
        let queue = match &command.kind {
            Some(Kind::CreateQueue(create)) => Some(create.name.as_str()),
            Some(Kind::SetQueue(set)) => Some(set.name.as_str()),
            Some(Kind::TagQueue(tag)) => Some(tag.name.as_str()),
            Some(Kind::DeleteQueue(delete)) => Some(delete.name.as_str()),
            _ => None,
        };
        match queue {
            Some(name) => copy.refresh(name),
            None => drop(self.changed.send_replace(copy.catalogue.revision())),
        }
        drop(copy);
        self.applied.send_replace(log_index);
        Ok(Applied::Catalogue(Box::new(reply)))
    }

    fn snapshot(&self) -> Vec<u8> {
        self.read().catalogue.snapshot()
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), MachineError> {
        let catalogue = Catalogue::restore(bytes).map_err(|error| MachineError(error.to_string()))?;
        let revision = catalogue.revision();
        *self.copy.write().unwrap_or_else(PoisonError::into_inner) = Copy::of(catalogue);
        self.changed.send_replace(revision);
        self.applied.send_modify(|applied| *applied = revision.max(*applied));
        Ok(())
    }

    fn live_contents(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }

    fn live_ranges(&self, _log_index: u64) -> Vec<(u32, u32)> {
        Vec::new()
    }
}
