//! Who is to lead a group: elections that are asked for, votes, and leadership that is handed over. docs/decisions/004 says why.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use leasehold_catalogue::NodeId;
use openraft::errors::Fatal;
use openraft::raft::{TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse};
use tokio::time::timeout;

use super::group::{Group, Members, Role};
use super::{LogId, ReplicaNode, TypeConfig, Vote};

/// How long a voter may think about whether an election is wanted.
const CONSENT_PATIENCE: Duration = Duration::from_millis(300);
/// How long a replica may take to take over leadership that was handed to it.
const TRANSFER_PATIENCE: Duration = Duration::from_millis(500);
/// The longest pause before one is asked that was asked before.
const TRANSFER_PAUSE_MAX: Duration = Duration::from_secs(8);

/// A vote for real, or a question whether it would be granted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum VotePhase {
    Before,
    Real,
}

impl Group {
    /// Asks for votes at once, because the leader's node is known to be gone. Voters grant it although they heard the leader a
    /// moment ago; so it asks first whether they want an election, and without a majority that does nothing happens: a higher term
    /// would end a leadership that serves the others well. Returns whether it asked for votes.
    pub async fn campaign(&self) -> bool {
        let Ok((vote, last)) = self.vote_and_last_log_id().await else { return false };
        let asked_for = Vote::new(vote.leader_id.term, self.replica);
        if !self.is_wanted(VoteRequest::new(asked_for, last)).await {
            return false;
        }
        if let Err(error) = self.raft.trigger().elect(false).await {
            tracing::warn!(group = self.id.0, %error, "cannot campaign");
        }
        true
    }

    /// Whether a majority of the voters, this one included, would have this replica lead.
    async fn is_wanted(&self, mut request: VoteRequest<TypeConfig>) -> bool {
        request.leadership_transfer = true;
        let members = self.members();
        let others =
            members.nodes.iter().filter(|(id, _)| **id != self.replica && members.voters.contains(id));
        let mut asked = others
            .map(|(id, node)| self.network.asks_for_election(*id, node, &request, CONSENT_PATIENCE))
            .collect::<FuturesUnordered<_>>();
        let mut consents = 1;
        while consents * 2 <= members.voters.len() {
            match asked.next().await {
                Some(consent) => consents += usize::from(consent),
                None => return false,
            }
        }
        true
    }

    /// Whether this voter would have another replica lead: it hears no leader, and its log is not the longer one.
    fn wants_election(&self, request: &VoteRequest<TypeConfig>, last: Option<LogId>) -> bool {
        let members = self.members();
        let asker = members.nodes.get(&request.vote.leader_id.voted_for).map(|node| node.node_id);
        // Who asks does not lead, whatever is believed here.
        let is_heard = |leader: &ReplicaNode| {
            Some(leader.node_id) != asker && self.network.is_reachable(NodeId(leader.node_id))
        };
        let hears_leader = match &*self.role.borrow() {
            Role::Leader { .. } => true,
            Role::Follower { leader } => leader.as_ref().is_some_and(is_heard),
            Role::Stopped => false,
        };
        !hears_leader && request.last_log_id >= last
    }

    /// What Raft itself would vote by. Its watch of what was written knows no entry after a start or a vote.
    async fn vote_and_last_log_id(&self) -> Result<(Vote, Option<LogId>), Fatal<TypeConfig>> {
        self.raft.with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().copied())).await
    }

    /// Hands leadership to another replica. From here on this one proposes nothing more: when the other does not take over, the
    /// next one that can be reached shall. Asked again in the same term, it only tells the one that is named now. To hand it to
    /// this one is nothing to do: Raft would propose nothing more, and wait for itself.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn transfer(&self, to: u64) -> Result<(), String> {
        let Role::Leader { term } = *self.role.borrow() else { return Ok(()) };
        if to == self.replica {
            return Ok(());
        }
        self.raft.trigger().transfer_leader(to).await.map_err(|error| error.to_string())?;
        // Leadership that was given up does not come back in its term, so one task sees to it until the term is over.
        if self.term_given_up.fetch_max(term, Ordering::Relaxed) < term {
            tokio::spawn(self.clone().transfer_on(term, to));
        }
        Ok(())
    }

    /// Whether this replica leads only until another one takes over.
    pub fn gives_up_leadership(&self) -> bool {
        let given_up = self.term_given_up.load(Ordering::Relaxed);
        matches!(*self.role.borrow(), Role::Leader { term } if term == given_up)
    }

    /// Hands leadership on, from one reachable voter to the next, until the term is over. More and more slowly once all were asked:
    /// a leader that hears nothing stays in its term for as long as that lasts.
    async fn transfer_on(self, term: u64, mut to: u64) {
        let mut role = self.role();
        let mut pause = TRANSFER_PATIENCE;
        let mut asked = BTreeSet::from([to]);
        while timeout(pause, role.wait_for(|role| *role != Role::Leader { term })).await.is_err() {
            let members = self.members();
            let mut others = members.voters_in_reach(|node| self.network.is_reachable(node));
            others.retain(|voter| *voter != self.replica);
            // In the order of their ids, and around.
            let next = others.iter().find(|voter| **voter > to).or(others.first()).copied();
            let Some(next) = next else { continue };
            // Not every time: nothing that is said later is news.
            if pause == TRANSFER_PATIENCE {
                tracing::warn!(group = self.id.0, to, next, "a replica does not take over leadership");
            }
            if !asked.insert(next) {
                pause = (pause * 2).min(TRANSFER_PAUSE_MAX);
            }
            to = next;
            if let Err(error) = self.raft.trigger().transfer_leader(to).await {
                return tracing::warn!(group = self.id.0, %error, "leadership cannot be handed on");
            }
        }
    }

    pub(super) async fn vote(
        &self,
        mut request: VoteRequest<TypeConfig>,
        phase: VotePhase,
    ) -> Result<VoteResponse<TypeConfig>, String> {
        let (vote, last) = self.vote_and_last_log_id().await.map_err(|error| error.to_string())?;
        let wants_election = self.wants_election(&request, last);
        let answer = match phase {
            // Raft's own question is about the leader's lease, and this one about whether it can be heard.
            VotePhase::Before if request.leadership_transfer => {
                return Ok(VoteResponse::new(vote, last, wants_election));
            }
            VotePhase::Before => self.raft.pre_vote(request).await,
            VotePhase::Real => {
                // The mark of a transfer lets Raft vote in the time of a leader that was heard a moment ago and is not any more.
                request.leadership_transfer |= wants_election;
                self.raft.vote(request).await
            }
        };
        answer.map_err(|error| error.to_string())
    }

    pub(super) async fn handle_transfer(
        &self,
        request: TransferLeaderRequest<TypeConfig>,
    ) -> Result<TransferLeaderResponse<TypeConfig>, String> {
        let answer = if self.is_heir_as_started(&request).await.map_err(|error| error.to_string())? {
            self.raft.trigger().elect(false).await.map(Ok)
        } else {
            self.raft.handle_transfer_leader(request).await
        };
        answer.map_err(|error| error.to_string())
    }

    /// Whether leadership is handed to this replica, and it had everything that it needs when it was started. Raft counts only what
    /// was written since, and would let the group wait.
    async fn is_heir_as_started(
        &self,
        request: &TransferLeaderRequest<TypeConfig>,
    ) -> Result<bool, Fatal<TypeConfig>> {
        let has_appended =
            self.raft.watch_log_progress().get().is_some_and(|point| point.last_log_id.is_some());
        if *request.to_node_id() != self.replica || has_appended {
            return Ok(false);
        }
        let (vote, last) = self.vote_and_last_log_id().await?;
        Ok(vote == *request.from_leader() && last.as_ref() >= request.last_log_id())
    }
}

impl Members {
    /// The voters whose nodes can be reached, by their ids.
    fn voters_in_reach(&self, is_reachable: impl Fn(NodeId) -> bool) -> Vec<u64> {
        let can_be_reached =
            |id: &&u64| self.nodes.get(id).is_some_and(|node| is_reachable(NodeId(node.node_id)));
        let mut voters = self.voters.iter().filter(can_be_reached).copied().collect::<Vec<_>>();
        voters.sort_unstable();
        voters
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::raft::{Applied, GroupId, Machine, MachineError, Payload, Replacement};
    use crate::testing::{ADDRESS, HERE, group, silent_lanes};

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(30);
    /// No replica has this id, so none takes over.
    const NOBODY: u64 = 99;

    /// Keeps nothing.
    struct Empty;

    impl Machine for Empty {
        fn apply(&self, _log_index: u64, _payload: &Bytes) -> Result<Applied, MachineError> {
            Ok(Applied::Nothing)
        }

        fn snapshot(&self) -> Vec<u8> {
            Vec::new()
        }

        fn read_snapshot(self: Arc<Self>, _bytes: &[u8]) -> Result<Replacement, MachineError> {
            Ok(Box::new(|| {}))
        }

        fn live_contents(&self) -> Vec<(u64, u64)> {
            Vec::new()
        }

        fn live_ranges(&self, _log_index: u64) -> Vec<(u32, u32)> {
            Vec::new()
        }
    }

    /// The only voter of its group, once it leads.
    async fn leader(dir: &Path) -> Group {
        let group = group(dir, GroupId(1), Arc::new(Empty), silent_lanes()).await;
        let node = ReplicaNode { node_id: HERE, address: ADDRESS.to_owned() };
        group.initialise(BTreeMap::from([(HERE, node)])).await.unwrap();
        let mut role = group.role();
        let leads = role.wait_for(|role| matches!(role, Role::Leader { .. }));
        drop(timeout(PATIENCE, leads).await.unwrap().unwrap());
        group
    }

    fn tasks() -> usize {
        tokio::runtime::Handle::current().metrics().num_alive_tasks()
    }

    #[tokio::test]
    async fn a_leader_that_hands_over_to_itself_leads_on() {
        let dir = tempfile::tempdir().unwrap();
        let group = leader(dir.path()).await;
        group.transfer(HERE).await.unwrap();
        assert!(!group.gives_up_leadership());
        let Role::Leader { term } = *group.role().borrow() else { panic!("it does not lead") };
        let payload = Payload::copy_of(b"written after it");
        let mut proposal = group.propose(payload, term).await.unwrap();
        timeout(PATIENCE, proposal.applied()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn leadership_that_nobody_takes_over_is_handed_on_by_one_task() {
        let dir = tempfile::tempdir().unwrap();
        let group = leader(dir.path()).await;
        assert!(!group.gives_up_leadership());
        let before = tasks();
        for _ in 0..20 {
            group.transfer(NOBODY).await.unwrap();
        }
        assert!(group.gives_up_leadership());
        assert!(tasks() <= before + 1, "{} tasks, {before} before", tasks());
    }
}
