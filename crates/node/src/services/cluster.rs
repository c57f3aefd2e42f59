//! The service `Cluster`: founding, status, members.

use std::sync::Arc;

use leasehold_catalogue::{
    self as catalogue, AddNode, Found, Founder, Kind, NodeId, PartitionId, Rebalance, RemoveNode, Reply,
};
use leasehold_proto::peer::{self, peer_client::PeerClient};
use leasehold_proto::peer::{IdentifyRequest, IdentifyResponse, JoinRequest, Member};
use leasehold_proto::v1::cluster_server::Cluster;
use leasehold_proto::v1::{
    AddNodeRequest, AddNodeResponse, DigestsRequest, DigestsResponse, InitNode, InitRequest, InitResponse,
    NodeStatus, PartitionStatus, QueueKind, Reason, RemoveNodeRequest, RemoveNodeResponse, ReplicaDigest,
    RoutesRequest, RoutesResponse, ShardRoute, StatusRequest, StatusResponse, TransferLeaderRequest,
    TransferLeaderResponse,
};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::{lookup, validate};
use crate::core::Core;
use crate::failure::Failure;
use crate::identity::to_hex;
use crate::lane::open_channel;
use crate::node::Shell;
use crate::replica::Replica;

const PARTITIONS: u32 = 16;
/// Replicas that one call may set in motion.
const MOVES_MAX: u32 = 1_024;

/// Serves the cluster's administration as a node.
pub struct ClusterService {
    shell: Arc<Shell>,
}

/// A node that answered.
struct Met {
    client: PeerClient<Channel>,
    peer_address: String,
    answer: IdentifyResponse,
}

impl ClusterService {
    pub fn new(shell: Arc<Shell>) -> Self {
        Self { shell }
    }

    async fn init(&self, request: InitRequest) -> Result<String, Failure> {
        if self.shell.core().is_ok() {
            let detail = "this node belongs to a cluster already: to make another one, start nodes with empty data folders";
            return Err(Failure::not_done(Reason::AlreadyInitialised, detail));
        }
        let partitions = if request.partitions == 0 { PARTITIONS } else { request.partitions };
        let replication = match request.replication {
            0 if request.nodes.len() < 3 => 1,
            0 => 3,
            asked => asked,
        };
        let mut met = Vec::with_capacity(request.nodes.len());
        for node in &request.nodes {
            met.push(meet(node).await?);
        }
        let founders = founders(&met);
        let (cluster_id, secret) = (random_bytes::<16>()?, random_bytes::<32>()?);
        let found = Found {
            cluster_id: cluster_id.to_vec(),
            secret: secret.to_vec(),
            replication,
            partitions,
            founders,
        };
        check(&found)?;
        let members = found.founders.iter().map(|founder| Member {
            replica: founder.catalogue_replica,
            node: founder.node,
            address: founder.peer_address.clone(),
        });
        let members = members.collect::<Vec<_>>();
        // The first founder comes last: it asks the others for their votes.
        for (met, founder) in met.iter_mut().zip(&found.founders).rev() {
            let join = JoinRequest {
                cluster_id: cluster_id.to_vec().into(),
                node_id: founder.node,
                catalogue_replica: founder.catalogue_replica,
                founders: members.clone(),
            };
            met.join(join).await?;
        }
        let core = self.shell.core().map_err(|_| {
            validate::invalid(
                "this node is not among those of the new cluster: run `cluster init` on one that is",
            )
        })?;
        core.catalogue.propose(Kind::Found(found)).await?;
        Ok(to_hex(&cluster_id))
    }

    async fn add_node(&self, request: AddNodeRequest) -> Result<u64, Failure> {
        let core = self.shell.core()?;
        let node = request.node.ok_or_else(|| validate::invalid("`node` is missing"))?;
        let mut met = meet(&node).await?;
        let add = AddNode {
            name: met.answer.name.clone(),
            peer_address: met.peer_address.clone(),
            client_address: met.answer.client_address.clone(),
        };
        let Reply::Node { id, catalogue_replica } = core.catalogue.propose(Kind::AddNode(add)).await? else {
            return Err(Failure::unknown(Reason::None, "the catalogue answered as something else"));
        };
        let cluster_id = core.identity.cluster_id.to_vec().into();
        met.join(JoinRequest { cluster_id, node_id: id, catalogue_replica, founders: Vec::new() }).await?;
        core.catalogue.propose(Kind::Rebalance(Rebalance { moves_max: MOVES_MAX })).await?;
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

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        let cluster_id = ClusterService::init(self, request.into_inner()).await?;
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

    async fn routes(&self, request: Request<RoutesRequest>) -> Result<Response<RoutesResponse>, Status> {
        let core = self.shell.core()?;
        let queue = lookup::queue(&core, &request.into_inner().queue).await?;
        let route = |shard: &PartitionId| {
            let leader = core.router.leader_of(*shard).and_then(|leader| core.view.client_address(leader));
            ShardRoute { partition: shard.0, leader_address: leader.unwrap_or_default() }
        };
        let kind = if queue.is_fifo() { QueueKind::Fifo } else { QueueKind::Standard };
        Ok(Response::new(RoutesResponse {
            shards: queue.shards.iter().map(route).collect(),
            kind: kind as i32,
            lease_ms: u64::from(queue.settings.lease_ms),
        }))
    }
}

/// Asks a node who it is: it must be the one that is meant, and belong to no cluster.
async fn meet(node: &InitNode) -> Result<Met, Failure> {
    let unreachable = |error: String| {
        validate::invalid(format!("node {} does not answer at {}: {error}", node.name, node.peer_address))
    };
    let channel = open_channel(&node.peer_address).await.map_err(|error| unreachable(chain(&error)))?;
    let mut client = PeerClient::new(channel);
    let answer = client
        .identify(IdentifyRequest {})
        .await
        .map_err(|status| unreachable(status.message().to_owned()))?;
    let answer = answer.into_inner();
    if answer.name != node.name {
        return Err(validate::invalid(format!(
            "at {} is node {:?}, not {:?}",
            node.peer_address, answer.name, node.name
        )));
    }
    if !answer.cluster_id.is_empty() {
        let detail =
            format!("node {} belongs to a cluster already: give it an empty data folder first", node.name);
        return Err(Failure::not_done(Reason::AlreadyInitialised, detail));
    }
    Ok(Met { client, peer_address: node.peer_address.clone(), answer })
}

impl Met {
    async fn join(&mut self, join: JoinRequest) -> Result<(), Failure> {
        let joined = self.client.join(join).await;
        joined.map(drop).map_err(|status| {
            let detail = format!("node {} did not join: {}", self.answer.name, status.message());
            Failure::unknown(Reason::None, detail)
        })
    }
}

fn founders(met: &[Met]) -> Vec<Founder> {
    let founder = |(met, number): (&Met, u64)| Founder {
        node: number,
        name: met.answer.name.clone(),
        peer_address: met.peer_address.clone(),
        client_address: met.answer.client_address.clone(),
        catalogue_replica: number,
    };
    met.iter().zip(1..).map(founder).collect()
}

/// Whether the founding will be accepted, before any node has joined.
fn check(found: &Found) -> Result<(), Failure> {
    let bytes = catalogue::Command::bytes(Kind::Found(found.clone()));
    match catalogue::Catalogue::new().apply(1, &bytes) {
        Ok(Reply::Refused { detail, .. }) => Err(validate::invalid(detail)),
        Ok(_) => Ok(()),
        Err(error) => Err(validate::invalid(error.to_string())),
    }
}

fn random_bytes<const LEN: usize>() -> Result<[u8; LEN], Failure> {
    use std::io::Read;
    let mut bytes = [0; LEN];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    read.map_err(|error| validate::invalid(format!("/dev/urandom cannot be read: {error}")))?;
    Ok(bytes)
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", chain(source)))
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
            partitions,
        }
    })
}
