//! The catalogue's group on this node, and the way to its leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use leasehold_catalogue::{Command, Kind, NodeId, Refusal, Reply, RequestName};
use leasehold_proto::v1::{Outcome, Reason, RequestId};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::cluster::ClusterView;
use crate::failure::Failure;
use crate::lane::{FrameKind, Lanes};
use crate::limits::LEADER_WAIT_MS_MAX;
use crate::raft::{Applied, Group, GroupId, Payload, ProposeError, ReplicaNode, Role};
use crate::reconcile::is_majority;
use crate::replica::CutOff;

/// The catalogue's Raft group.
pub const CATALOGUE_GROUP: GroupId = GroupId(0);
/// Pause between two looks for the leader.
const LOOK_AGAIN_MS: u64 = 20;
const NO_ANSWER: &str = "the node that should lead the catalogue did not answer in time";

/// What the leader answered, and the command up to which a copy must have come to show it. Entries that are no commands, such as
/// the first of a new leader, are not counted: no copy shows them.
struct Answer {
    log_index: u64,
    reply: Reply,
}

/// Asks the catalogue for changes, wherever its leader is.
pub struct CatalogueLink {
    pub group: Group,
    pub cut_off: CutOff,
    view: Arc<ClusterView>,
    lanes: Arc<Lanes>,
}

impl CatalogueLink {
    pub fn new(group: Group, view: Arc<ClusterView>, lanes: Arc<Lanes>) -> Self {
        Self { group, cut_off: CutOff::default(), view, lanes }
    }

    /// Whether this node leads the catalogue, and under which term.
    pub fn leads(&self) -> Option<u64> {
        self.group.term_led()
    }

    /// The node that leads the catalogue, as far as this one knows; none when this one is cut off.
    pub fn leader_node(&self) -> Option<NodeId> {
        if self.cut_off.is_so() {
            return None;
        }
        match &*self.group.role().borrow() {
            Role::Leader { .. } => Some(self.view.here()),
            Role::Follower { leader } => leader.as_ref().map(|leader| NodeId(leader.node_id)),
            Role::Stopped => None,
        }
    }

    /// Has a command executed, and waits until this node's copy shows it. Every command of the catalogue may be repeated.
    ///
    /// # Errors
    /// When no leader was found in time, or the catalogue refuses.
    pub async fn propose(&self, kind: Kind) -> Result<Reply, Failure> {
        self.propose_for(None, kind).await
    }

    /// The same for a client, under the name of its request.
    ///
    /// # Errors
    /// As [`CatalogueLink::propose`].
    pub async fn propose_for(&self, request: Option<RequestId>, kind: Kind) -> Result<Reply, Failure> {
        let name = request.map(|id| RequestName {
            session: id.session,
            sequence: id.sequence,
            completed_below: id.completed_below,
        });
        let (answer, was_unknown) = self.ask(Bytes::from(Command::bytes_for(name, kind))).await?;
        self.wait_for(answer.log_index).await;
        match answer.reply {
            Reply::Refused { refusal: Refusal::RequestOver, detail } => {
                Err(Failure::unknown(Reason::None, detail))
            }
            Reply::Refused { refusal, detail } => {
                Err(Failure::not_done(reason_of(refusal), detail).after(was_unknown))
            }
            reply => Ok(reply),
        }
    }

    /// Waits until this node's copy shows everything that was decided before this call. Returns the last command of these, which a copy
    /// that is far behind does not show yet.
    ///
    /// # Errors
    /// When no leader was found in time.
    pub async fn catch_up(&self) -> Result<u64, Failure> {
        let asked = self.ask(Bytes::new()).await;
        // A question changes nothing, whether or not it was answered.
        let (answer, _) = asked.map_err(|failure| Failure { outcome: Outcome::NotDone, ..failure })?;
        self.wait_for(answer.log_index).await;
        Ok(answer.log_index)
    }

    /// Executes a command here, for this node or for another: `body` is the command, or nothing to ask how far the leader is.
    ///
    /// # Errors
    /// When this node does not lead the catalogue.
    pub async fn answer_here(&self, body: Bytes) -> Result<Bytes, Failure> {
        self.cut_off.or_answer(self.execute_here(body)).await.map(|answer| {
            let mut bytes = BytesMut::new();
            bytes.put_u64_le(answer.log_index);
            bytes.extend_from_slice(&answer.reply.encode());
            bytes.freeze()
        })
    }

    async fn execute_here(&self, body: Bytes) -> Result<Answer, Failure> {
        let term = self.leads().ok_or_else(|| Failure::not_leader(self.leader_node()))?;
        if body.is_empty() {
            self.group.catch_up().await.map_err(|_| Failure::not_leader(None))?;
            return Ok(Answer { log_index: self.view.revision(), reply: Reply::Done });
        }
        let mut proposal =
            self.group.propose(Payload::copy_of(&body), term).await.map_err(|error| lost(&error))?;
        match proposal.applied().await {
            Ok((log_index, Applied::Catalogue(reply))) => Ok(Answer { log_index, reply: *reply }),
            Ok(_) => Err(Failure::unknown(Reason::None, "the catalogue answered as something else")),
            Err(error) => Err(lost(&error)),
        }
    }

    /// The answer, and whether an earlier try may have been executed too.
    async fn ask(&self, body: Bytes) -> Result<(Answer, bool), Failure> {
        let end = Instant::now() + Duration::from_millis(LEADER_WAIT_MS_MAX);
        let mut hint = None;
        let mut was_unknown = false;
        for tries in 0.. {
            let asked = self.leader_node().or(hint).or_else(|| self.any_other(tries));
            // Who leads no more, or is not of the group any more, may never answer.
            let tried = timeout_at(end, self.ask_once(asked, body.clone())).await;
            let tried = tried.unwrap_or_else(|_| Err(Failure::unknown(Reason::NoLeader, NO_ANSWER)));
            match tried {
                Err(failure)
                    if failure.reason == Reason::NoLeader && !self.is_hopeless() && Instant::now() < end =>
                {
                    was_unknown |= failure.outcome == Outcome::Unknown;
                    hint = failure.leader.filter(|leader| *leader != self.view.here());
                    sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
                }
                Ok(answer) => return Ok((answer, was_unknown)),
                Err(failure) => return Err(failure.after(was_unknown)),
            }
        }
        Err(Failure::not_leader(None).after(was_unknown))
    }

    async fn ask_once(&self, node: Option<NodeId>, body: Bytes) -> Result<Answer, Failure> {
        match node {
            Some(node) if node == self.view.here() => self.cut_off.or_answer(self.execute_here(body)).await,
            Some(node) => self.ask_node(node, body).await,
            None => Err(Failure::not_leader(None)),
        }
    }

    /// Whether this node will not learn of a leader in time: its replica is cut off or has stopped.
    fn is_hopeless(&self) -> bool {
        self.cut_off.is_so() || *self.group.role().borrow() == Role::Stopped
    }

    /// Another node of the cluster. A node that came back elsewhere hears from no leader, but others know who it is.
    fn any_other(&self, tries: usize) -> Option<NodeId> {
        let others = self.view.look(|catalogue| {
            let ids = catalogue.nodes().map(|node| NodeId(node.id));
            ids.filter(|node| *node != self.view.here()).collect::<Vec<_>>()
        });
        others.get(tries % others.len().max(1)).copied()
    }

    async fn ask_node(&self, node: NodeId, body: Bytes) -> Result<Answer, Failure> {
        let address = self.view.peer_address(node).unwrap_or_default();
        let call =
            self.lanes.peer(node, &address).control.call(FrameKind::Catalogue, CATALOGUE_GROUP.0, 0, body)?;
        let mut answer = call.wait().await?;
        let malformed = || Failure::unknown(Reason::None, "a peer's answer is malformed");
        let log_index = answer.try_get_u64_le().map_err(|_| malformed())?;
        Ok(Answer { log_index, reply: Reply::decode(&answer).map_err(|_| malformed())? })
    }

    async fn wait_for(&self, log_index: u64) {
        let (mut applied, mut role) = (self.view.applied(), self.group.role());
        let patience = Duration::from_millis(LEADER_WAIT_MS_MAX);
        let shown_or_stopped = async {
            tokio::select! {
                shown = applied.wait_for(|applied| *applied >= log_index) => drop(shown),
                stopped = role.wait_for(|role| *role == Role::Stopped) => drop(stopped),
            }
        };
        // A copy that is this far behind says so by refusing later requests.
        let _ = timeout(patience, shown_or_stopped).await;
    }

    fn reaches(&self, replicas: &BTreeMap<u64, ReplicaNode>, replica: u64) -> bool {
        replicas.get(&replica).is_some_and(|node| self.lanes.is_reachable(NodeId(node.node_id)))
    }

    /// Brings the Raft group to the nodes that the catalogue has: every node a replica, some of them with a vote, which they get
    /// when all that shall have one have caught up.
    ///
    /// # Errors
    /// When leadership was lost on the way, or a node does not answer: it is tried again later.
    pub async fn follow_nodes(&self) -> Result<(), String> {
        let (wanted, voters) = self.view.look(|catalogue| {
            let replica = |node: &leasehold_catalogue::Node| {
                (node.catalogue_replica, ReplicaNode { node_id: node.id, address: node.peer_address.clone() })
            };
            let wanted = catalogue.nodes().map(replica).collect::<BTreeMap<_, _>>();
            let voters = catalogue.nodes().filter(|node| node.is_catalogue_voter);
            (wanted, voters.map(|node| node.catalogue_replica).collect::<Vec<_>>())
        });
        let members = self.group.members();
        if wanted.is_empty() || !members.is_committed {
            return Ok(());
        }
        for (replica, node) in &wanted {
            if !members.nodes.contains_key(replica) {
                self.group.add_follower(*replica, node.clone()).await?;
            }
        }
        let mut now = members.voters.clone();
        now.sort_unstable();
        let mut then = voters;
        then.sort_unstable();
        // A leader that was lost between both steps of a change leaves it to the next.
        if now != then || members.is_joint {
            let may_inherit = |replica: &&u64| then.contains(replica) && self.reaches(&wanted, **replica);
            let mut heirs = now.iter().filter(may_inherit).peekable();
            if !then.contains(&self.group.replica()) && heirs.peek().is_some() {
                // Who will have no vote leads no further: the next leader goes on from here.
                let heir = heirs.find(|replica| self.group.may_hand_over_to(**replica));
                let heir = heir.ok_or("the catalogue's next leader has not caught up yet")?;
                return self.group.transfer(*heir).await;
            }
            let answers =
                |replica: &&u64| **replica == self.group.replica() || self.reaches(&wanted, **replica);
            if !is_majority(then.iter().filter(answers).count(), then.len()) {
                tracing::debug!("too few of those that shall vote in the catalogue answer");
                return Ok(());
            }
            // A node has its place in the catalogue before it joins, and may never come: a vote that nobody casts would leave the
            // others one loss short of none.
            let is_new = |replica: &&u64| !now.contains(replica) && **replica != self.group.replica();
            let mut new = then.iter().filter(is_new);
            if let Some(replica) = new.find(|replica| !self.group.may_hand_over_to(**replica)) {
                tracing::debug!(replica, "a replica that shall vote in the catalogue has not caught up yet");
                return Ok(());
            }
            // Not dropped and taken in again: a leader that dropped itself could not append what brings it back.
            self.group.set_voters_of_members(&then).await?;
        }
        for replica in
            members.nodes.keys().filter(|replica| !wanted.contains_key(replica) && !then.contains(replica))
        {
            self.group.remove_learner(*replica).await?;
        }
        Ok(())
    }
}

fn lost(error: &ProposeError) -> Failure {
    match error {
        ProposeError::NotAppended => Failure::not_leader(None),
        ProposeError::Unknown => Failure::unknown(Reason::NoLeader, error.to_string()),
        ProposeError::Stopped(_) => {
            Failure { outcome: Outcome::Unknown, ..Failure::try_again(Reason::NodeFailed, error.to_string()) }
        }
    }
}

fn reason_of(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::AlreadyFounded => Reason::AlreadyInitialised,
        Refusal::NotFounded => Reason::NotInitialised,
        Refusal::QueueExists => Reason::QueueExists,
        Refusal::UnknownQueue => Reason::UnknownQueue,
        Refusal::UnknownNode => Reason::UnknownNode,
        Refusal::UnknownPartition => Reason::UnknownPartition,
        Refusal::TooSoon => Reason::TooSoon,
        Refusal::Changed => Reason::Changed,
        Refusal::Unspecified
        | Refusal::RequestOver
        | Refusal::InvalidArgument
        | Refusal::QueueInUse
        | Refusal::NodeExists
        | Refusal::NodeInUse
        | Refusal::LastNode
        | Refusal::NotSettled => Reason::InvalidArgument,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use leasehold_catalogue::{CreateQueue, Found, Founder};

    use super::*;
    use crate::raft::Machine as _;
    use crate::testing::{HERE, group, silent_lanes};

    /// Longer than what is bounded here takes. The clock stands still while anything is done, so no machine is too slow for it.
    const PATIENCE: Duration = Duration::from_millis(4 * LEADER_WAIT_MS_MAX);

    /// A node that knows two others, and no leader; they take what they are asked and never answer.
    async fn link_to_silent_nodes(dir: &Path) -> CatalogueLink {
        let view = Arc::new(ClusterView::new(NodeId(HERE), 1));
        let founder = |node: u64| Founder {
            node,
            name: format!("n{node}"),
            peer_address: format!("127.0.0.1:{node}"),
            client_address: format!("127.0.0.1:1{node}"),
            catalogue_replica: node,
        };
        let founders = (HERE..HERE + 3).map(founder).collect();
        let found = Found {
            cluster_id: vec![7; 16],
            secret: vec![7; 32],
            replication: 3,
            partitions: 1,
            founders,
            version: 1,
        };
        view.apply(1, &Bytes::from(Command::bytes_for(None, Kind::Found(found)))).unwrap();
        let lanes = silent_lanes();
        let group = group(dir, CATALOGUE_GROUP, view.clone(), lanes.clone()).await;
        let link = CatalogueLink::new(group, view, lanes);
        assert_eq!(link.any_other(0), Some(NodeId(HERE + 1)));
        link
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_never_answers_holds_nobody_for_ever_and_a_question_was_not_done() {
        let dir = tempfile::tempdir().unwrap();
        let link = link_to_silent_nodes(dir.path()).await;
        let failure = timeout(PATIENCE, link.catch_up()).await.unwrap().unwrap_err();
        assert_eq!((failure.outcome, failure.reason), (Outcome::NotDone, Reason::NoLeader), "{failure}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_a_silent_leader_may_have_made_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let link = link_to_silent_nodes(dir.path()).await;
        let create = || Kind::CreateQueue(CreateQueue { name: "q".to_owned(), ..CreateQueue::default() });
        let failure = timeout(PATIENCE, link.propose(create())).await.unwrap().unwrap_err();
        assert_eq!((failure.outcome, failure.reason), (Outcome::Unknown, Reason::NoLeader), "{failure}");
    }
}
