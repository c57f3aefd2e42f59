//! What this node knows of its cluster: its copy of the catalogue.

use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use leasehold_catalogue::{Catalogue, Command, Kind, NodeId, PartitionId};
use leasehold_partition::QueueId;
use prost::Message as _;
use tokio::sync::watch;

use crate::queue_info::QueueInfo;
use crate::raft::{Applied, Machine, MachineError, Replacement};
use crate::receipt_token::ReceiptKey;
use crate::replica::{QueueSource, WantedShard};

/// This node's copy of the catalogue: the state machine of its replica, and what everybody here reads.
pub struct ClusterView {
    here: NodeId,
    /// The highest version of a cluster that this node has a place in.
    version_max: u32,
    copy: RwLock<Catalogue>,
    key: OnceLock<ReceiptKey>,
    changed: watch::Sender<u64>,
    applied: watch::Sender<u64>,
}

impl ClusterView {
    /// The view of a cluster that this node has heard nothing of yet.
    pub fn new(here: NodeId, version_max: u32) -> Self {
        Self {
            here,
            version_max,
            copy: RwLock::new(Catalogue::new()),
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
        look(&self.read())
    }

    pub fn queue(&self, name: &str) -> Option<QueueInfo> {
        self.read().queue_by_name(name).map(QueueInfo::of)
    }

    pub fn queue_by_id(&self, id: QueueId) -> Option<QueueInfo> {
        self.read().queue(leasehold_catalogue::QueueId(id.0)).map(QueueInfo::of)
    }

    pub fn queue_name(&self, id: u64) -> Option<String> {
        self.queue_by_id(QueueId(id)).map(|queue| queue.name().to_owned())
    }

    pub fn revision(&self) -> u64 {
        self.read().revision()
    }

    pub fn is_founded(&self) -> bool {
        self.read().cluster().is_some()
    }

    /// The version of the cluster, as far as this copy shows it: what all nodes can execute.
    pub fn version(&self) -> u32 {
        version_of(&self.read())
    }

    /// The nodes of a partition's replicas, the best one to lead first.
    pub fn nodes_of(&self, partition: PartitionId) -> Vec<NodeId> {
        let copy = self.read();
        let found = copy.partition(partition);
        found
            .map(|found| found.replicas.iter().map(|replica| replica.node_id()).collect())
            .unwrap_or_default()
    }

    pub fn peer_address(&self, node: NodeId) -> Option<String> {
        self.read().node(node).map(|node| node.peer_address.clone())
    }

    pub fn client_address(&self, node: NodeId) -> Option<String> {
        self.read().node(node).map(|node| node.client_address.clone())
    }

    pub fn node_name(&self, node: NodeId) -> Option<String> {
        self.read().node(node).map(|node| node.name.clone())
    }

    /// The key of this cluster's receipts; `None` before this node has heard of the founding.
    pub fn receipt_key(&self) -> Option<ReceiptKey> {
        if let Some(key) = self.key.get() {
            return Some(key.clone());
        }
        let secret: [u8; 16] = *self.read().cluster()?.secret.first_chunk()?;
        Some(self.key.get_or_init(|| ReceiptKey::derive(&secret)).clone())
    }

    /// # Errors
    /// When this node cannot be in a cluster of that version.
    fn check_version(&self, version: u32) -> Result<(), MachineError> {
        if version <= self.version_max {
            return Ok(());
        }
        Err(MachineError(format!(
            "the cluster has version {version}, and this node knows up to {}: start a later build, or one that `version_max` does not hold back",
            self.version_max
        )))
    }

    fn read(&self) -> RwLockReadGuard<'_, Catalogue> {
        self.copy.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueSource for ClusterView {
    fn shard_of(&self, queue: QueueId, partition: PartitionId) -> Option<WantedShard> {
        let (info, revision) = {
            let copy = self.read();
            let queue = copy.queue(leasehold_catalogue::QueueId(queue.0))?;
            (QueueInfo::of(queue), copy.revision())
        };
        info.wanted_on(partition, revision)
    }

    fn adaptive_lease_ms_max(&self, queue: QueueId) -> u64 {
        self.queue_by_id(queue).map_or(0, |info| info.adaptive_lease_ms_max())
    }

    fn version(&self) -> u32 {
        self.version()
    }

    fn is_deleted(&self, id: QueueId) -> bool {
        let id = leasehold_catalogue::QueueId(id.0);
        let copy = self.read();
        copy.has_given_out(id) && copy.queue(id).is_none()
    }
}

impl Machine for ClusterView {
    fn apply(&self, log_index: u64, payload: &Bytes) -> Result<Applied, MachineError> {
        let command = Command::decode(payload.clone()).map_err(|error| MachineError(error.to_string()))?;
        match &command.kind {
            Some(Kind::Found(found)) => self.check_version(found.version)?,
            Some(Kind::SetVersion(set)) => self.check_version(set.version)?,
            _ => {}
        }
        let mut copy = self.copy.write().unwrap_or_else(PoisonError::into_inner);
        let reply = copy.apply(log_index, payload).map_err(|error| MachineError(error.to_string()))?;
        let revision = copy.revision();
        drop(copy);
        if !is_of_one_queue(&command) {
            self.changed.send_replace(revision);
        }
        self.applied.send_replace(log_index);
        Ok(Applied::Catalogue(Box::new(reply)))
    }

    fn snapshot(&self) -> Vec<u8> {
        self.read().snapshot()
    }

    fn read_snapshot(self: Arc<Self>, bytes: &[u8]) -> Result<Replacement, MachineError> {
        let catalogue = Catalogue::restore(bytes).map_err(|error| MachineError(error.to_string()))?;
        self.check_version(version_of(&catalogue))?;
        let revision = catalogue.revision();
        Ok(Box::new(move || {
            *self.copy.write().unwrap_or_else(PoisonError::into_inner) = catalogue;
            self.changed.send_replace(revision);
            self.applied.send_modify(|applied| *applied = revision.max(*applied));
        }))
    }

    fn live_contents(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }

    fn live_ranges(&self, _log_index: u64) -> Vec<(u32, u32)> {
        Vec::new()
    }
}

fn version_of(catalogue: &Catalogue) -> u32 {
    catalogue.cluster().map_or(1, |cluster| cluster.version.max(1))
}

fn is_of_one_queue(command: &Command) -> bool {
    use Kind::{CreateQueue, DeleteQueue, SetQueue, TagQueue};
    matches!(command.kind, Some(CreateQueue(_) | SetQueue(_) | TagQueue(_) | DeleteQueue(_)))
}
