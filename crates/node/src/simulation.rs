//! The core of a node for a simulation, which brings the disk, the network, the clocks and the runtime itself. Everything from the
//! services down is what a process runs; what is left out are listeners, telemetry and the history behind `why`.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;

use futures::Stream;
use leasehold_catalogue::{Found, Founder, Kind, PartitionId};
use leasehold_proto::peer::{IdentifyResponse, LaneHello, SnapshotAnswer, SnapshotChunk};
use leasehold_proto::v1::{
    AckRequest, CreateQueueRequest, CreateQueueResponse, DeleteQueueRequest, DescribeQueueResponse,
    ExtendRequest, ReceiveRequest, ReceiveResponse, ReleaseRequest, SendOutcome, SendRequest, SettleOutcome,
};
use leasehold_raft_log::Log;
use tokio::task::JoinSet;
use tonic::{Request, Status};

use crate::config::{Config, HistoryMode};
use crate::core::{Core, CoreParts};
use crate::identity::{FORMAT_VERSION, Identity};
use crate::node::identify;
use crate::raft::ReplicaNode;
use crate::service::Deletion;
use crate::services::{self, Counting, Settle};

pub use crate::failure::Failure;
pub use crate::lane::{Batches, Frame, FrameKind, FrameStream, Transport, TransportError};
pub use crate::raft::{Calls, Claim};

/// A node's place in the cluster.
#[derive(Debug, Clone)]
pub struct Place {
    pub name: String,
    /// Also the Raft id of its replica of the catalogue.
    pub node_id: u64,
    pub address: String,
}

/// What one replica of a partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaState {
    pub partition: u32,
    pub applied_index: u64,
    pub state_hash: u64,
    pub leads: bool,
}

/// A node; its tasks are those of the runtime it was started on, and end with it.
#[derive(Clone)]
pub struct SimulatedNode {
    core: Arc<Core>,
    _tasks: Arc<JoinSet<()>>,
}

impl SimulatedNode {
    /// Starts from what the log holds. The history of `config` is off.
    ///
    /// # Errors
    /// When the log or a snapshot cannot be used.
    pub async fn start(
        mut config: Config,
        cluster_id: [u8; 16],
        place: Place,
        log: Log,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, String> {
        config.history.mode = HistoryMode::Off;
        let Place { name, node_id, address } = place;
        let identity = Identity {
            cluster_id,
            node_id,
            catalogue_replica: node_id,
            name,
            log_unique_id: Some(log.unique_id()),
            format_version: FORMAT_VERSION,
        };
        let (peer_address, client_address) = (address.clone(), address);
        let config = Arc::new(config);
        let mut tasks = JoinSet::new();
        let parts = CoreParts { config, identity, log, transport, peer_address, client_address };
        let core = Core::start(parts, &mut tasks).await?;
        Ok(Self { core, _tasks: Arc::new(tasks) })
    }

    /// Founds the cluster, as the first of its nodes does.
    ///
    /// # Errors
    /// When no quorum answers.
    pub async fn found(&self, secret: [u8; 32], founders: &[Place], partitions: u32) -> Result<(), Failure> {
        let members = founders.iter().map(|founder| {
            let node = ReplicaNode { node_id: founder.node_id, address: founder.address.clone() };
            (founder.node_id, node)
        });
        let founded = self.core.found_catalogue(members).await;
        founded.map_err(|error| Failure::unknown(leasehold_proto::v1::Reason::NodeFailed, error))?;
        let founders = founders.iter().map(|founder| Founder {
            node: founder.node_id,
            catalogue_replica: founder.node_id,
            name: founder.name.clone(),
            peer_address: founder.address.clone(),
            client_address: founder.address.clone(),
        });
        let founders = founders.collect::<Vec<_>>();
        let (cluster_id, secret) = (self.core.identity.cluster_id.to_vec(), secret.to_vec());
        let found = Found { cluster_id, secret, replication: 3, partitions, founders, version: 1 };
        self.core.catalogue.propose(Kind::Found(found)).await.map(drop)
    }

    /// Serves a lane that another node opens; the tasks run where this is called.
    ///
    /// # Errors
    /// When the caller is of another cluster.
    pub fn serve_lane(
        &self,
        hello: &LaneHello,
        frames: impl Stream<Item = Vec<Frame>> + Send + 'static,
    ) -> Result<FrameStream, String> {
        services::serve_lane(self.core.clone(), hello, frames, pending())
    }

    /// What this node says of itself.
    pub fn identify(&self) -> IdentifyResponse {
        identify(
            &self.core.config,
            Some(&self.core.identity),
            &self.core.peer_address,
            &self.core.client_address,
        )
    }

    /// # Errors
    /// When the stream breaks or cannot be used.
    pub async fn take_snapshot(
        &self,
        request: Request<impl Stream<Item = Result<SnapshotChunk, Status>> + Send>,
    ) -> Result<SnapshotAnswer, Status> {
        services::take_snapshot(&self.core, request).await
    }

    /// # Errors
    /// As the service.
    pub async fn create_queue(&self, request: CreateQueueRequest) -> Result<CreateQueueResponse, Failure> {
        let created = services::create(&self.core, request, 0).await?;
        Ok(CreateQueueResponse { created })
    }

    /// # Errors
    /// As the service.
    pub async fn delete_queue(&self, request: DeleteQueueRequest) -> Result<(), Failure> {
        services::delete(&self.core, request, Deletion::Forgotten).await
    }

    /// The queues whose names begin so, when everything decided before is known here.
    ///
    /// # Errors
    /// As the service.
    pub async fn queues(&self, prefix: &str) -> Result<BTreeSet<String>, Failure> {
        self.core.catalogue.catch_up().await?;
        let names = |queue: &leasehold_catalogue::Queue| queue.name.clone();
        Ok(self.core.view.look(|catalogue| catalogue.queues_named(prefix, "").map(names).collect()))
    }

    /// # Errors
    /// As the service.
    pub async fn describe_queue(&self, queue: &str) -> Result<DescribeQueueResponse, Failure> {
        services::describe(&self.core, queue, Counting::AllShards).await
    }

    /// # Errors
    /// As the service.
    pub async fn send(&self, request: &SendRequest) -> Result<Vec<SendOutcome>, Failure> {
        services::send(&self.core, request).await
    }

    /// # Errors
    /// As the service.
    pub async fn receive(&self, request: &ReceiveRequest) -> Result<ReceiveResponse, Failure> {
        services::receive(&self.core, request).await
    }

    /// # Errors
    /// As the service.
    pub async fn ack(&self, request: &AckRequest) -> Result<Vec<SettleOutcome>, Failure> {
        let AckRequest { queue, receipts, request } = request;
        services::settle(&self.core, queue, Settle::Ack(receipts), request.as_ref()).await
    }

    /// # Errors
    /// As the service.
    pub async fn extend(&self, request: &ExtendRequest) -> Result<Vec<SettleOutcome>, Failure> {
        let ExtendRequest { queue, items, request } = request;
        services::settle(&self.core, queue, Settle::Extend(items), request.as_ref()).await
    }

    /// # Errors
    /// As the service.
    pub async fn release(&self, request: &ReleaseRequest) -> Result<Vec<SettleOutcome>, Failure> {
        let ReleaseRequest { queue, items, request } = request;
        services::settle(&self.core, queue, Settle::Release(items), request.as_ref()).await
    }

    /// Hands leadership of a partition to its replica on another node, if this one leads.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn hand_over(&self, partition: u32, to_node: u64) -> Result<(), String> {
        let Some(replica) = self.core.router.replica(PartitionId(partition)) else { return Ok(()) };
        let members = replica.group().members();
        let to = members.nodes.iter().find(|(_, node)| node.node_id == to_node).map(|(id, _)| *id);
        match to {
            Some(to) => replica.group().transfer(to).await,
            None => Ok(()),
        }
    }

    /// Takes a snapshot of every replica here and drops the entries that it covers: a follower that is behind needs it.
    pub async fn drop_entries(&self) {
        for replica in self.core.router.replicas() {
            replica.group().take_snapshot().await;
            replica.group().purge_through(replica.group().progress().0).await;
        }
    }

    /// The replicas here, by partition. Their counters and indexes are checked against a recount.
    pub fn replicas(&self) -> Vec<ReplicaState> {
        let replicas = self.core.router.replicas().into_iter();
        let state = |replica: Arc<crate::replica::Replica>| {
            let state = replica.machine().read();
            state.check_invariants();
            ReplicaState {
                partition: replica.id().0,
                applied_index: state.applied_index(),
                state_hash: state.state_hash(),
                leads: replica.group().term_led().is_some(),
            }
        };
        replicas.map(state).collect()
    }

    /// The partitions of a queue, once this node knows it.
    pub fn partitions_of(&self, queue: &str) -> Vec<u32> {
        let info = self.core.view.queue(queue);
        info.map(|info| info.shards().map(|shard| shard.0).collect()).unwrap_or_default()
    }
}
