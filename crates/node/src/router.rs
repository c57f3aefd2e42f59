//! Brings each request to the leader of its partition, wherever that is at this moment.
//!
//! ```text
//!  service ─▶ Router ─┬─ the leader is here ──▶ Replica
//!                     └─ elsewhere ─▶ lane ─▶ that node's inbound ─▶ its Replica
//! ```
//!
//! A request that certainly did not happen is tried again until its patience ends, since a partition gets a new leader within
//! moments. One that may have happened is given back as unknown, unless it carries a request id: then trying again is safe.
//!
//! A replica that reaches no majority has nobody to bring a request to: it cannot commit if it leads, and does not hear of a new
//! leader elsewhere. Its node says so at once, also to those who wait already, and clients go to another one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use leasehold_catalogue::{NodeId, PartitionId};
use leasehold_partition::Reply;
use leasehold_proto::peer;
use leasehold_proto::v1::{Outcome, Reason};
use prost::Message;
use tokio::time::{Instant, sleep};

use crate::answers::LocalAnswers;
use crate::cluster::ClusterView;
use crate::failure::Failure;
use crate::lane::{FrameKind, Lanes};
use crate::limits::LEADER_WAIT_MS_MAX;
use crate::question::Question;
use crate::raft::Role;
use crate::replica::{CommandCall, Replica, Request, group_of};

/// Pause between two looks for a leader.
const LOOK_AGAIN_MS: u64 = 15;
const LEADER_WAIT: Duration = Duration::from_millis(LEADER_WAIT_MS_MAX);

/// Whether a request of unknown outcome may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It carries a name by which the partition recognises it, or repeating changes nothing.
    Safe,
    /// It would happen twice.
    Unsafe,
}

/// A reply, and what is known of the tries before the one that it answers.
pub struct Answered {
    pub reply: Reply,
    /// One of them may have been executed.
    pub was_unknown: bool,
}

/// The replicas of this node, and the ways to all others.
pub struct Router {
    here: NodeId,
    view: Arc<ClusterView>,
    lanes: Arc<Lanes>,
    answers: LocalAnswers,
    replicas: RwLock<BTreeMap<PartitionId, Arc<Replica>>>,
    /// Leaders of partitions without a replica here, as other nodes told.
    hints: Mutex<BTreeMap<PartitionId, NodeId>>,
}

impl Router {
    pub fn new(here: NodeId, view: Arc<ClusterView>, lanes: Arc<Lanes>, answers: LocalAnswers) -> Self {
        Self {
            here,
            view,
            lanes,
            answers,
            replicas: RwLock::new(BTreeMap::new()),
            hints: Mutex::new(BTreeMap::new()),
        }
    }

    pub fn answers(&self) -> &LocalAnswers {
        &self.answers
    }

    pub fn add_replica(&self, replica: Arc<Replica>) {
        self.replicas.write().unwrap_or_else(PoisonError::into_inner).insert(replica.id(), replica);
    }

    pub fn remove_replica(&self, partition: PartitionId) -> Option<Arc<Replica>> {
        self.replicas.write().unwrap_or_else(PoisonError::into_inner).remove(&partition)
    }

    pub fn replica(&self, partition: PartitionId) -> Option<Arc<Replica>> {
        self.replicas.read().unwrap_or_else(PoisonError::into_inner).get(&partition).cloned()
    }

    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The node that leads a partition, as far as this one knows; none when this one is cut off.
    pub fn leader_of(&self, partition: PartitionId) -> Option<NodeId> {
        if let Some(replica) = self.replica(partition) {
            return replica.leader_node(self.here).filter(|_| !replica.cut_off().is_so());
        }
        let hint = self.hints.lock().unwrap_or_else(PoisonError::into_inner).get(&partition).copied();
        hint.or_else(|| self.view.nodes_of(partition).first().copied())
    }

    /// Whether this node will not learn of a leader in time: its replica is cut off or has stopped.
    pub fn is_hopeless(&self, partition: PartitionId) -> bool {
        self.replica(partition)
            .is_some_and(|replica| replica.cut_off().is_so() || *replica.role().borrow() == Role::Stopped)
    }

    /// Has a command executed by the leader of a partition.
    ///
    /// # Errors
    /// When no leader was found in time, the leader refused, or the outcome is unknown.
    pub async fn command(
        &self,
        partition: PartitionId,
        call: CommandCall,
        repeat: Repeat,
    ) -> Result<Reply, Failure> {
        self.command_after_all(partition, call, repeat).await.map(|answered| answered.reply)
    }

    /// The same, for who has to know whether the reply is that of the first execution.
    ///
    /// # Errors
    /// As [`Router::command`].
    pub async fn command_after_all(
        &self,
        partition: PartitionId,
        call: CommandCall,
        repeat: Repeat,
    ) -> Result<Answered, Failure> {
        let message = peer::Command {
            queue: call.queue.0,
            command: call.command.clone(),
            promised_leases_ms: call.promised_leases_ms.clone(),
        };
        let body = LazyBody::new(move || message.encode_to_vec().into());
        let patience = Patience::of(LEADER_WAIT);
        let mut was_unknown = false;
        loop {
            let tried = match self.way_to(partition) {
                Way::Here(replica) => replica.cut_off().or_answer(self.execute(&replica, call.clone())).await,
                Way::Node(node) => {
                    let answer =
                        ask_node(&self.view, &self.lanes, node, FrameKind::Command, partition, body.get())
                            .await;
                    answer.and_then(|bytes| Reply::decode(&bytes).map_err(|error| malformed(&error)))
                }
                Way::Unknown => Err(Failure::not_leader(None)),
            };
            match tried {
                Err(failure) if self.may_repeat(partition, &failure, repeat, &patience) => {
                    was_unknown |= failure.outcome == Outcome::Unknown;
                    sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
                }
                Ok(reply) => return Ok(Answered { reply, was_unknown }),
                Err(failure) => return Err(failure.after(was_unknown)),
            }
        }
    }

    /// Has a question answered by the leader of a partition.
    ///
    /// # Errors
    /// As [`Router::command`].
    pub async fn ask<Q: Question>(&self, partition: PartitionId, question: Q) -> Result<Q::Answer, Failure> {
        self.ask_within(partition, question, LEADER_WAIT).await
    }

    /// The same, looking for the leader for so long. It is asked once at least.
    ///
    /// # Errors
    /// As [`Router::command`].
    pub async fn ask_within<Q: Question>(
        &self,
        partition: PartitionId,
        question: Q,
        leader_wait: Duration,
    ) -> Result<Q::Answer, Failure> {
        let kind = question.clone().kind();
        let repeat = repeat_of(&kind);
        let body = LazyBody::new(move || peer::Query { kind: Some(kind.clone()) }.encode_to_vec().into());
        let patience = Patience::of(leader_wait);
        let mut was_unknown = false;
        loop {
            let tried = match self.way_to(partition) {
                Way::Here(replica) => {
                    replica.cut_off().or_answer(question.answer(&self.answers, &replica)).await
                }
                Way::Node(node) => {
                    let answer =
                        ask_node(&self.view, &self.lanes, node, FrameKind::Query, partition, body.get())
                            .await;
                    answer.and_then(|bytes| Q::Answer::decode(bytes).map_err(|error| malformed(&error)))
                }
                Way::Unknown => Err(Failure::not_leader(None)),
            };
            match tried {
                Err(failure) if self.may_repeat(partition, &failure, repeat, &patience) => {
                    was_unknown |= failure.outcome == Outcome::Unknown;
                    sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
                }
                done => return done.map_err(|failure| failure.after(was_unknown)),
            }
        }
    }

    /// Serves a question that another node asks of a replica here.
    ///
    /// # Errors
    /// When the replica does not lead, and what it answers.
    pub async fn answer_here(&self, partition: PartitionId, query: peer::Query) -> Result<Bytes, Failure> {
        let replica = self.replica_here(partition)?;
        replica.cut_off().or_answer(self.answers.answer(&replica, query)).await
    }

    /// Serves a command that another node brings to a replica here.
    ///
    /// # Errors
    /// As [`Router::answer_here`].
    pub async fn command_here(&self, partition: PartitionId, call: CommandCall) -> Result<Reply, Failure> {
        let replica = self.replica_here(partition)?;
        replica.cut_off().or_answer(self.execute(&replica, call)).await
    }

    async fn execute(&self, replica: &Replica, call: CommandCall) -> Result<Reply, Failure> {
        if self.answers.contents.log.disk_is_low() && call.adds_messages() {
            let detail = "the leader's disk is nearly full: acks still work, sends do not";
            return Err(Failure::try_again(Reason::DiskLow, detail));
        }
        replica.ask(|reply| Request::Command { call, reply }).await
    }

    fn replica_here(&self, partition: PartitionId) -> Result<Arc<Replica>, Failure> {
        self.replica(partition).ok_or_else(|| Failure::not_leader(None))
    }

    fn way_to(&self, partition: PartitionId) -> Way {
        let leader = self.leader_of(partition);
        match (leader, self.replica(partition)) {
            (Some(leader), Some(replica)) if leader == self.here => Way::Here(replica),
            (Some(leader), _) if leader != self.here => Way::Node(leader),
            _ => Way::Unknown,
        }
    }

    fn may_repeat(
        &self,
        partition: PartitionId,
        failure: &Failure,
        repeat: Repeat,
        patience: &Patience,
    ) -> bool {
        if failure.reason != Reason::NoLeader {
            return false;
        }
        self.learn(partition, failure);
        let is_safe = repeat == Repeat::Safe || failure.outcome == Outcome::NotDone;
        is_safe && !self.is_hopeless(partition) && !patience.has_ended()
    }

    /// Remembers whom a follower named, or forgets a leader that did not answer as one.
    fn learn(&self, partition: PartitionId, failure: &Failure) {
        if self.replica(partition).is_some() {
            return;
        }
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = self.view.nodes_of(partition);
        let next_of = |node: &NodeId| {
            let position = nodes.iter().position(|other| other == node).map_or(0, |position| position + 1);
            nodes.get(position % nodes.len().max(1)).copied()
        };
        let before = hints.get(&partition).or(nodes.first()).copied();
        if let Some(next) = failure.leader.or_else(|| before.and_then(|node| next_of(&node))) {
            hints.insert(partition, next);
        }
    }
}

/// Asks the replica of a partition on a node.
///
/// # Errors
/// When it cannot be reached, or refuses.
pub async fn ask_node(
    view: &ClusterView,
    lanes: &Lanes,
    node: NodeId,
    kind: FrameKind,
    partition: PartitionId,
    body: Bytes,
) -> Result<Bytes, Failure> {
    let address = view.peer_address(node).unwrap_or_default();
    let peer = lanes.peer(node, &address);
    let answer = peer.bulk.call(kind, group_of(partition).0, 0, body)?;
    Ok(answer.wait().await?)
}

/// A receive without a name would grant twice; the other questions write nothing.
fn repeat_of(kind: &peer::query::Kind) -> Repeat {
    match kind {
        peer::query::Kind::Receive(receive) if receive.request.is_none() => Repeat::Unsafe,
        _ => Repeat::Safe,
    }
}

enum Way {
    Here(Arc<Replica>),
    Node(NodeId),
    Unknown,
}

/// How long to look for a leader.
struct Patience {
    end: Instant,
}

impl Patience {
    fn of(duration: Duration) -> Self {
        Self { end: Instant::now() + duration }
    }

    fn has_ended(&self) -> bool {
        Instant::now() >= self.end
    }
}

/// Encoded at the first use: a request whose leader is here never is.
struct LazyBody<F> {
    encode: F,
    body: std::sync::OnceLock<Bytes>,
}

impl<F: Fn() -> Bytes> LazyBody<F> {
    fn new(encode: F) -> Self {
        Self { encode, body: std::sync::OnceLock::new() }
    }

    fn get(&self) -> Bytes {
        self.body.get_or_init(|| (self.encode)()).clone()
    }
}

fn malformed(error: &dyn std::fmt::Display) -> Failure {
    Failure::unknown(Reason::None, format!("a peer's answer is malformed: {error}"))
}
