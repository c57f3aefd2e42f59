//! Founding a cluster: empty, or with the queues of a backup.
//!
//! ```text
//!   meet every node ─▶ is the founding sound? ─▶ every node joins ─▶ empty: the catalogue is founded, and told of the cluster
//!                                                                └▶ from a backup: it begins with that of the old cluster
//! ```

use std::sync::Arc;

use futures::Stream;
use leasehold_catalogue::{self as catalogue, Catalogue, Found, Founder, Kind, Reply};
use leasehold_proto::peer::peer_client::PeerClient;
use leasehold_proto::peer::{IdentifyRequest, IdentifyResponse, JoinRequest, Member, SnapshotChunk};
use leasehold_proto::v1::{InitNode, InitRequest, Reason};
use tonic::Status;
use tonic::transport::Channel;

use super::validate;
use crate::catalogue_link::CATALOGUE_GROUP;
use crate::core::Core;
use crate::failure::Failure;
use crate::identity::to_hex;
use crate::lane::Sockets;
use crate::node::Shell;
use crate::raft::{Copied, ReplicaNode, receive_copy};
use crate::versions::{self, Known};

const PARTITIONS: u32 = 16;
/// Times that a catalogue which begins with a state is looked for, each as long as a node looks for a leader.
const LOOKS_MAX: usize = 6;

/// A node that answered.
pub struct Met {
    client: PeerClient<Channel>,
    pub peer_address: String,
    pub answer: IdentifyResponse,
}

/// Founds an empty cluster; returns its id.
///
/// # Errors
/// When a node does not answer or belongs to a cluster, or the request does not fit the limits.
pub async fn found(shell: &Shell, request: InitRequest) -> Result<String, Failure> {
    refuse_member(shell)?;
    let mut met = meet_all(shell.sockets(), &request.nodes).await?;
    let found = found_of(&request, &met)?;
    check(&found)?;
    let core = join_all(shell, &mut met, &found, BringsState::No).await?;
    let cluster_id = to_hex(&found.cluster_id);
    core.catalogue.propose(Kind::Found(found)).await?;
    Ok(cluster_id)
}

/// Founds a cluster with the catalogue of a backup; its partitions wait for their states then. This node is the first founder.
///
/// # Errors
/// As [`found`], and when the catalogue is damaged: no node has joined then.
pub async fn found_again(
    shell: &Shell,
    request: InitRequest,
    records: impl Stream<Item = Result<SnapshotChunk, Status>>,
) -> Result<String, Status> {
    refuse_member(shell)?;
    let (copied, _) = receive_copy(shell.log(), CATALOGUE_GROUP, records).await?;
    let old = Catalogue::restore(&copied.state).map_err(|error| Status::data_loss(error.to_string()))?;
    let mut met = meet_all(shell.sockets(), &request.nodes).await?;
    // It has to bring the state.
    met.sort_by_key(|met| met.answer.name != shell.config.name);
    if met.first().is_none_or(|first| first.answer.name != shell.config.name) {
        return Err(not_among_them().into());
    }
    let found = found_of(&request, &met)?;
    let version = old.cluster().map_or(1, |cluster| cluster.version);
    if version > found.version {
        return Err(validate::invalid(format!(
            "the backup is of a cluster of version {version}, and these nodes know up to {}: start a later build, or without `version_max`",
            found.version
        ))
        .into());
    }
    let founded = old.found_again(found.clone()).map_err(validate::invalid)?;
    let core = join_all(shell, &mut met, &found, BringsState::Yes).await?;
    let copied = Copied { state: founded.snapshot().into(), ..copied };
    let members = found.founders.iter().map(|founder| {
        let node = ReplicaNode { node_id: founder.node, address: founder.peer_address.clone() };
        (founder.catalogue_replica, node)
    });
    core.catalogue.group.begin_with(copied, members.collect()).await.map_err(Status::internal)?;
    core.catalogue.group.campaign().await;
    for _ in 1..LOOKS_MAX {
        if core.catalogue.catch_up().await.is_ok() {
            return Ok(to_hex(&found.cluster_id));
        }
    }
    core.catalogue.catch_up().await.map_err(|failure| failure.after(true))?;
    Ok(to_hex(&found.cluster_id))
}

fn refuse_member(shell: &Shell) -> Result<(), Failure> {
    if shell.core().is_err() {
        return Ok(());
    }
    let detail =
        "this node belongs to a cluster already: to make another one, start nodes with empty data folders";
    Err(Failure::not_done(Reason::AlreadyInitialised, detail))
}

fn not_among_them() -> Failure {
    validate::invalid("this node is not among those of the new cluster: run `cluster init` on one that is")
}

async fn meet_all(sockets: &Sockets, nodes: &[InitNode]) -> Result<Vec<Met>, Failure> {
    let mut met = Vec::with_capacity(nodes.len());
    for node in nodes {
        met.push(meet(sockets, node).await?);
    }
    Ok(met)
}

/// The founding that is asked for, under a new id and a new secret.
fn found_of(request: &InitRequest, met: &[Met]) -> Result<Found, Failure> {
    let replication = match request.replication {
        0 if request.nodes.len() < 3 => 1,
        0 => 3,
        asked => asked,
    };
    let known = met.iter().map(Met::known).collect::<Vec<_>>();
    Ok(Found {
        cluster_id: random_bytes::<16>()?.to_vec(),
        secret: random_bytes::<32>()?.to_vec(),
        replication,
        partitions: if request.partitions == 0 { PARTITIONS } else { request.partitions },
        founders: founders(met),
        version: versions::common(&known).map_err(validate::invalid)?,
    })
}

/// Whether the catalogue begins with a state.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BringsState {
    No,
    Yes,
}

/// Makes all of them members, and returns what this node is then.
async fn join_all(
    shell: &Shell,
    met: &mut [Met],
    found: &Found,
    brings_state: BringsState,
) -> Result<Arc<Core>, Failure> {
    let members = found.founders.iter().map(|founder| Member {
        replica: founder.catalogue_replica,
        node: founder.node,
        address: founder.peer_address.clone(),
    });
    let members = members.collect::<Vec<_>>();
    // The first founder comes last: it asks the others for their votes.
    for (met, founder) in met.iter_mut().zip(&found.founders).rev() {
        let join = JoinRequest {
            cluster_id: found.cluster_id.clone().into(),
            node_id: founder.node,
            catalogue_replica: founder.catalogue_replica,
            founders: members.clone(),
            brings_state: brings_state == BringsState::Yes,
        };
        met.join(join).await?;
    }
    shell.core().map_err(|_| not_among_them())
}

/// Asks a node who it is: it must be the one that is meant, and belong to no cluster.
async fn meet(sockets: &Sockets, node: &InitNode) -> Result<Met, Failure> {
    let met = identify(sockets, node).await?;
    if met.is_member() { Err(met.refuse_as_member()) } else { Ok(met) }
}

/// Asks a node who it is: it must be the one that is meant.
///
/// # Errors
/// When it does not answer, or is another one.
pub async fn identify(sockets: &Sockets, node: &InitNode) -> Result<Met, Failure> {
    let unreachable = |error: String| {
        validate::invalid(format!("node {} does not answer at {}: {error}", node.name, node.peer_address))
    };
    let channel =
        sockets.open_channel(&node.peer_address).await.map_err(|error| unreachable(chain(&error)))?;
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
    Ok(Met { client, peer_address: node.peer_address.clone(), answer })
}

impl Met {
    /// Whether the node belongs to a cluster.
    pub fn is_member(&self) -> bool {
        !self.answer.cluster_id.is_empty()
    }

    /// What the node knows.
    pub fn known(&self) -> Known {
        Known { node: self.answer.name.clone(), version_max: Some(self.answer.machine_version_max.max(1)) }
    }

    pub fn refuse_as_member(&self) -> Failure {
        let name = &self.answer.name;
        let detail = format!("node {name} belongs to a cluster already: give it an empty data folder first");
        Failure::not_done(Reason::AlreadyInitialised, detail)
    }

    pub async fn join(&mut self, join: JoinRequest) -> Result<(), Failure> {
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
