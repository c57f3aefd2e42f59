//! The service `Cluster`: founding, status, members.

use std::sync::Arc;
use std::time::Duration;

use leasehold_catalogue::{
    self as catalogue, AddNode, Kind, NodeId, PartitionId, Rebalance, RemoveNode, Reply,
};
use leasehold_proto::peer::{self, JoinRequest};
use leasehold_proto::v1::cluster_server::Cluster;
use leasehold_proto::v1::restore_chunk::Target;
use leasehold_proto::v1::{
    AddNodeRequest, AddNodeResponse, BackupRequest, DigestsRequest, DigestsResponse, HoldTransfersRequest,
    HoldTransfersResponse, InitRequest, InitResponse, NodeStatus, PartitionStatus, QueueKind, Reason,
    RemoveNodeRequest, RemoveNodeResponse, ReplicaDigest, RestoreChunk, RestoreResponse, RoutesRequest,
    RoutesResponse, ShardRoute, StatusRequest, StatusResponse, TransferLeaderRequest, TransferLeaderResponse,
};
use tokio::time::sleep;
use tonic::{Request, Response, Status, Streaming};

use super::{backup, founding, lookup, validate};
use crate::core::Core;
use crate::failure::Failure;
use crate::identity::to_hex;
use crate::node::Shell;
use crate::replica::Replica;

/// Replicas that one call may set in motion.
const MOVES_MAX: u32 = 1_024;
/// Times that a new node is asked to join, and the pause between them.
const JOINS_MAX: usize = 3;
const JOIN_AGAIN: Duration = Duration::from_millis(500);

/// Serves the cluster's administration as a node.
pub struct ClusterService {
    shell: Arc<Shell>,
}

impl ClusterService {
    pub fn new(shell: Arc<Shell>) -> Self {
        Self { shell }
    }

    async fn add_node(&self, request: AddNodeRequest) -> Result<u64, Failure> {
        let core = self.shell.core()?;
        let node = request.node.ok_or_else(|| validate::invalid("`node` is missing"))?;
        let mut met = founding::identify(self.shell.sockets(), &node).await?;
        lookup::catch_up(&core).await?;
        let known = core.view.look(|catalogue| catalogue.node_by_name(&met.answer.name).cloned());
        let id = match known {
            Some(known) if known.is_leaving => {
                let name = known.name;
                return Err(validate::invalid(format!(
                    "node {name} is leaving: wait until it is gone, and empty its data folder"
                )));
            }
            // It has joined: what is left of an earlier call is done now.
            Some(known) if is_member(&core, &known, &met) => known.id,
            _ if met.is_member() => return Err(met.refuse_as_member()),
            // As the replicas that it had, that of the catalogue among them, it would vote for what it has lost. Nobody knows whether it
            // ever had them.
            Some(known) => {
                return Err(validate::invalid(format!(
                    "node {0} is in the cluster and has lost what it had, or never joined: `remove-node {0}` first, and wait until it is gone",
                    known.name
                )));
            }
            None => Self::take_in(&core, &mut met).await?,
        };
        core.catalogue.propose(Kind::Rebalance(Rebalance { moves_max: MOVES_MAX })).await?;
        Ok(id)
    }

    /// Makes a node that belongs to no cluster, and that this one does not know, a member; returns its id.
    async fn take_in(core: &Core, met: &mut founding::Met) -> Result<u64, Failure> {
        let (version, knows) = (core.view.version(), met.answer.machine_version_max.max(1));
        if knows < version {
            return Err(validate::invalid(format!(
                "the cluster has version {version}, and node {} knows up to {knows}: start it with a later build, or without `version_max`",
                met.answer.name
            )));
        }
        let add = AddNode {
            name: met.answer.name.clone(),
            peer_address: met.peer_address.clone(),
            client_address: met.answer.client_address.clone(),
        };
        let Reply::Node { id, catalogue_replica } = core.catalogue.propose(Kind::AddNode(add)).await? else {
            return Err(Failure::unknown(Reason::None, "the catalogue answered as something else"));
        };
        let cluster_id = core.identity.cluster_id.to_vec().into();
        let join = JoinRequest { cluster_id, node_id: id, catalogue_replica, ..JoinRequest::default() };
        // To be asked twice changes nothing, and who is known and does not join has to be removed first.
        for _ in 1..JOINS_MAX {
            match met.join(join.clone()).await {
                Ok(()) => return Ok(id),
                Err(failure) => tracing::debug!(node = id, %failure, "a node is asked to join again"),
            }
            sleep(JOIN_AGAIN).await;
        }
        met.join(join).await?;
        Ok(id)
    }

    fn transfer_target(core: &Core, request: &TransferLeaderRequest) -> Result<u64, Failure> {
        core.view.look(|catalogue| {
            let node = catalogue.node_by_name(&request.node).ok_or_else(|| {
                Failure::not_done(
                    Reason::UnknownNode,
                    format!("no node of the cluster is named {:?}", request.node),
                )
            })?;
            let partition = catalogue.partition(PartitionId(request.partition)).ok_or_else(|| {
                Failure::not_done(
                    Reason::UnknownPartition,
                    format!("there is no partition {}", request.partition),
                )
            })?;
            let replica =
                partition.replicas.iter().find(|replica| replica.node == node.id).ok_or_else(|| {
                    validate::invalid(format!(
                        "partition {} has no replica on {}",
                        request.partition, request.node
                    ))
                })?;
            Ok(replica.id)
        })
    }
}

/// Whether the node that answered is the one that this cluster knows.
fn is_member(core: &Core, known: &catalogue::Node, met: &founding::Met) -> bool {
    let is_of_this = met.answer.cluster_id[..] == core.identity.cluster_id[..];
    is_of_this && met.answer.node_id == known.id
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        let cluster_id = founding::found(&self.shell, request.into_inner()).await?;
        Ok(Response::new(InitResponse { cluster_id }))
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let Ok(core) = self.shell.core() else {
            return Ok(Response::new(StatusResponse {
                node: self.shell.config.name.clone(),
                ..StatusResponse::default()
            }));
        };
        Ok(Response::new(status(&core, self.shell.readiness_of_core().is_ok())))
    }

    async fn add_node(&self, request: Request<AddNodeRequest>) -> Result<Response<AddNodeResponse>, Status> {
        let id = ClusterService::add_node(self, request.into_inner()).await?;
        Ok(Response::new(AddNodeResponse { id }))
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        let core = self.shell.core()?;
        let name = request.into_inner().name;
        core.catalogue.propose(Kind::RemoveNode(RemoveNode { name })).await?;
        Ok(Response::new(RemoveNodeResponse {}))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let core = self.shell.core()?;
        let request = request.into_inner();
        let replica = Self::transfer_target(&core, &request)?;
        core.router.ask(PartitionId(request.partition), peer::HandOver { replica }).await?;
        Ok(Response::new(TransferLeaderResponse {}))
    }

    async fn digests(&self, _request: Request<DigestsRequest>) -> Result<Response<DigestsResponse>, Status> {
        let core = self.shell.core()?;
        let hashed = tokio::task::spawn_blocking(move || digests(&core)).await;
        Ok(Response::new(hashed.map_err(|error| Failure::unknown(Reason::NodeFailed, error.to_string()))?))
    }

    type BackupStream = backup::Chunks;

    async fn hold_transfers(
        &self,
        _request: Request<HoldTransfersRequest>,
    ) -> Result<Response<HoldTransfersResponse>, Status> {
        let core = self.shell.core()?;
        Ok(Response::new(backup::hold_transfers(&core).await))
    }

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<backup::Chunks>, Status> {
        let core = self.shell.core()?;
        let BackupRequest { partition, hold } = request.into_inner();
        let chunks = match partition {
            Some(led) => backup::back_up_partition(core, led, hold).await?,
            None => backup::back_up_catalogue(core).await?,
        };
        Ok(Response::new(chunks))
    }

    async fn restore(
        &self,
        request: Request<Streaming<RestoreChunk>>,
    ) -> Result<Response<RestoreResponse>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.and_then(|first| first.target);
        let records = backup::records(chunks);
        let cluster_id = match first {
            Some(Target::Found(request)) => founding::found_again(&self.shell, request, records).await?,
            Some(Target::Partition(id)) => {
                let core = self.shell.core()?;
                backup::restore_partition(&core, PartitionId(id), records).await?;
                to_hex(&core.identity.cluster_id)
            }
            None => return Err(validate::invalid("the first chunk says what is restored").into()),
        };
        Ok(Response::new(RestoreResponse { cluster_id }))
    }

    async fn routes(&self, request: Request<RoutesRequest>) -> Result<Response<RoutesResponse>, Status> {
        let core = self.shell.core()?;
        let queue = lookup::queue(&core, &request.into_inner().queue).await?;
        let route = |shard: PartitionId| {
            let leader = core.router.leader_of(shard).and_then(|leader| core.view.client_address(leader));
            ShardRoute { partition: shard.0, leader_address: leader.unwrap_or_default() }
        };
        let kind = if queue.is_fifo() { QueueKind::Fifo } else { QueueKind::Standard };
        Ok(Response::new(RoutesResponse {
            shards: queue.shards().map(route).collect(),
            kind: kind as i32,
            lease_ms: queue.lease_ms(),
        }))
    }
}

fn digests(core: &Core) -> DigestsResponse {
    let of_replica = |replica: Arc<Replica>| {
        let (applied_index, state_hash) = replica.machine().digest();
        ReplicaDigest { partition: replica.id().0, applied_index, state_hash }
    };
    let catalogue = core.view.look(|catalogue| ReplicaDigest {
        partition: 0,
        applied_index: catalogue.revision(),
        state_hash: catalogue.state_hash(),
    });
    DigestsResponse {
        node: core.identity.name.clone(),
        catalogue: Some(catalogue),
        partitions: core.router.replicas().into_iter().map(of_replica).collect(),
    }
}

fn status(core: &Core, ready: bool) -> StatusResponse {
    let leader = |partition: &catalogue::Partition| core.router.leader_of(partition.partition_id());
    core.view.look(|catalogue| {
        let partitions = catalogue.partitions().map(|partition| {
            let replica = core.router.replica(partition.partition_id());
            let (applied_index, term) = replica.map(|replica| replica.group().progress()).unwrap_or_default();
            PartitionStatus {
                partition: partition.id,
                leader: leader(partition).map_or(0, |leader| leader.0),
                term,
                applied_index,
                replicas: partition.replicas.iter().map(|replica| replica.node).collect(),
                settled: partition.is_settled,
            }
        });
        let partitions = partitions.collect::<Vec<_>>();
        let nodes = catalogue.nodes().map(|node| NodeStatus {
            id: node.id,
            name: node.name.clone(),
            peer_address: node.peer_address.clone(),
            client_address: node.client_address.clone(),
            reachable: node.id == core.view.here().0 || core.lanes.is_reachable(NodeId(node.id)),
            leaving: node.is_leaving,
            replicas: partitions.iter().filter(|partition| partition.replicas.contains(&node.id)).count()
                as u32,
            leaders: partitions.iter().filter(|partition| partition.leader == node.id).count() as u32,
        });
        StatusResponse {
            cluster_id: to_hex(&core.identity.cluster_id),
            node: core.identity.name.clone(),
            ready,
            nodes: nodes.collect(),
            queues: catalogue.queues().len() as u64,
            version: catalogue.cluster().map_or(0, |cluster| cluster.version),
            partitions,
        }
    })
}
