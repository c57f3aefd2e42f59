//! One Raft group's replica on this node, in our own words.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures::Stream;
use futures::stream::BoxStream;
use leasehold_catalogue::NodeId;
use leasehold_raft_log::Log;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, ForwardToLeader, InitializeError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::metrics::RaftServerMetrics;
use openraft::raft::{AppendEntriesRequest, ClientWriteResult, StreamAppendResult};
use openraft::type_config::alias::{CommittedLeaderIdOf, OneshotReceiverOf, WatchReceiverOf};
use openraft::{ChangeMembers, Config, Raft, ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::watch;

use super::arrivals::Arrivals;
use super::machine::Adapter;
use super::{
    Applied, GroupId, Image, Machine, Network, Payload, ReplicaNode, SnapshotMeta, TypeConfig, Vote,
};

/// How far a replica that shall lead may be behind: the entries that a leader sends in its moment of handing over, and that are never
/// purged.
const HEIR_LAG_MAX: u64 = LOG_KEPT_MAX;
/// Entries before the last snapshot that stay in the log.
const LOG_KEPT_MAX: u64 = 64;

/// What a replica is at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It leads, under this term.
    Leader { term: u64 },
    /// Another replica leads, if any is known.
    Follower { leader: Option<ReplicaNode> },
    /// The group has halted on this node: a failed log, a damaged file, an entry from a newer version.
    Stopped,
}

/// Why a proposal has no outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// It was not appended: nothing happened.
    #[error("the replica does not lead")]
    NotAppended,
    /// It was appended, and leadership was lost before it was known to be committed.
    #[error("leadership was lost before the entry was known to be committed")]
    Unknown,
    /// The group has halted on this node.
    #[error("the group has stopped: {0}")]
    Stopped(String),
}

/// How a group is started.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    pub id: GroupId,
    /// This replica's Raft id; never used before by another one.
    pub replica: u64,
    pub heartbeat_ms: u64,
    pub election_ms_min: u64,
    pub election_ms_max: u64,
}

/// A replica of one group. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    pub(super) id: GroupId,
    pub(super) replica: u64,
    pub(super) raft: Raft<TypeConfig, Adapter>,
    pub(super) network: Network,
    pub(super) role: watch::Receiver<Role>,
    /// The last term of which this replica has handed over the leadership; 0 before the first.
    pub(super) term_given_up: Arc<AtomicU64>,
    /// Whether a leader has sent anything since the start.
    has_heard: Arc<watch::Sender<bool>>,
    pub(super) arrivals: Arc<Arrivals>,
}

/// An entry on its way through the group.
pub struct Proposal {
    outcome: OneshotReceiverOf<TypeConfig, ClientWriteResult<TypeConfig>>,
}

impl Proposal {
    /// Waits until the entry is committed and applied here.
    ///
    /// # Errors
    /// When that did not happen, or cannot be known any more.
    pub async fn applied(&mut self) -> Result<(u64, Applied), ProposeError> {
        match (&mut self.outcome).await {
            Ok(Ok(written)) => Ok((written.log_id.index, written.data)),
            Ok(Err(ClientWriteError::ForwardToLeader(ForwardToLeader { reason, .. }))) => Err(match reason {
                ForwardReason::LeaseExpired | ForwardReason::LeadershipTransfer => ProposeError::NotAppended,
                ForwardReason::NotLeader => ProposeError::Unknown,
            }),
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        }
    }
}

impl Group {
    /// Starts the replica from what the log holds.
    ///
    /// # Errors
    /// When the log or the snapshot cannot be read.
    pub async fn start(
        options: GroupOptions,
        machine: Arc<dyn Machine>,
        log: Log,
        network: Network,
    ) -> Result<Self, String> {
        let config = raft_config(&options).map_err(|error| error.to_string())?;
        let adapter = Adapter::open(options.id, log.clone(), machine).map_err(|error| error.to_string())?;
        let storage = log.group::<TypeConfig>(options.id);
        let raft = Raft::new(options.replica, Arc::new(config), network.clone(), storage, adapter)
            .await
            .map_err(|error| error.to_string())?;
        let (sender, role) = watch::channel(Role::Follower { leader: None });
        let (has_heard, hears) = watch::channel(false);
        let (metrics, ending) = (raft.server_metrics(), raft.metrics());
        tokio::spawn(async move {
            follow_role(metrics, options.replica, sender, hears).await;
            if let Err(error @ (Fatal::StorageError(_) | Fatal::Panicked)) =
                &ending.borrow_watched().running_state
            {
                tracing::error!(group = options.id.0, %error, "the group has halted on this node, others lead it");
            }
        });
        let has_heard = Arc::new(has_heard);
        let term_given_up = Arc::new(AtomicU64::new(0));
        let (id, replica, arrivals) = (options.id, options.replica, Arc::default());
        Ok(Self { id, replica, raft, network, role, term_given_up, has_heard, arrivals })
    }

    pub fn id(&self) -> GroupId {
        self.id
    }

    pub fn replica(&self) -> u64 {
        self.replica
    }

    /// Founds the group; does nothing when it was founded before.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn initialise(&self, members: BTreeMap<u64, ReplicaNode>) -> Result<(), String> {
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The replica's role, as it changes.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// The term in which the replica leads, while it does.
    pub fn term_led(&self) -> Option<u64> {
        match *self.role.borrow() {
            Role::Leader { term } => Some(term),
            Role::Follower { .. } | Role::Stopped => None,
        }
    }

    /// Proposes an entry under `term`: refused when the replica no longer leads in it, so stamps never get out of order.
    /// Entries of one caller are appended in the order of its calls.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn propose(&self, payload: Payload, term: u64) -> Result<Proposal, ProposeError> {
        let (responder, outcome) = ProgressResponder::complete_only();
        let write = self.raft.write(payload).responder(responder);
        match write.with_leader(CommittedLeaderIdOf::<TypeConfig>::new(term)).await {
            Ok(()) => Ok(Proposal { outcome }),
            Err(fatal) => Err(ProposeError::Stopped(fatal.to_string())),
        }
    }

    /// Waits until everything committed before this call, by any leader, is applied here. Only a leader can.
    ///
    /// # Errors
    /// When this replica does not lead.
    pub async fn catch_up(&self) -> Result<(), String> {
        self.raft
            .ensure_linearizable(ReadPolicy::ReadIndex)
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// Waits until everything that was appended here before the last [`Group::catch_up`], committed or not, is applied here. That
    /// took a round of Raft's own loop, so its metrics show what had been appended.
    ///
    /// # Errors
    /// When the group has stopped.
    pub async fn apply_appended(&self) -> Result<(), String> {
        let mut metrics = self.raft.metrics();
        let last = metrics.borrow_watched().last_log_index;
        while metrics.borrow_watched().last_applied.map(|applied| applied.index) < last {
            metrics.changed().await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Voters and learners, by replica id, and how far a change of them has come.
    pub fn members(&self) -> Members {
        let metrics = self.raft.server_metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let voters = membership.voter_ids().collect::<Vec<_>>();
        Members {
            nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
            is_committed: metrics.membership_config == metrics.committed_membership_config,
            is_joint: membership.get_joint_config().len() > 1,
            voters,
        }
    }

    /// Adds a learner and waits until it has caught up, on its own word: while the log is short, Raft itself would take one that was
    /// never reached for one that has everything.
    ///
    /// # Errors
    /// When this replica does not lead or the change is refused.
    pub async fn add_learner(&self, replica: u64, node: ReplicaNode) -> Result<(), String> {
        self.add_follower(replica, node).await?;
        let mut metrics = self.raft.metrics();
        while !self.may_hand_over_to(replica) {
            if metrics.borrow_watched().replication.is_none() {
                return Err("leadership was lost while a new replica caught up".to_owned());
            }
            metrics.changed().await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Adds a learner and does not wait for it.
    ///
    /// # Errors
    /// As [`Group::add_learner`].
    pub async fn add_follower(&self, replica: u64, node: ReplicaNode) -> Result<(), String> {
        self.raft.add_learner(replica, node, false).await.map(drop).map_err(|error| error.to_string())
    }

    /// Makes exactly these replicas the voters; others are dropped.
    ///
    /// # Errors
    /// As [`Group::add_learner`].
    pub async fn set_voters(&self, voters: &[u64]) -> Result<(), String> {
        let voters = voters.iter().copied().collect::<std::collections::BTreeSet<_>>();
        self.raft.change_membership(voters, false).await.map(drop).map_err(|error| error.to_string())
    }

    /// Makes exactly these replicas the voters; others stay, without a vote.
    ///
    /// # Errors
    /// As [`Group::add_learner`].
    pub async fn set_voters_of_members(&self, voters: &[u64]) -> Result<(), String> {
        let voters = voters.iter().copied().collect::<std::collections::BTreeSet<_>>();
        self.raft.change_membership(voters, true).await.map(drop).map_err(|error| error.to_string())
    }

    /// Drops a replica that does not vote.
    ///
    /// # Errors
    /// As [`Group::add_learner`].
    pub async fn remove_learner(&self, replica: u64) -> Result<(), String> {
        let change = ChangeMembers::RemoveNodes([replica].into());
        self.raft.change_membership(change, false).await.map(drop).map_err(|error| error.to_string())
    }

    /// The vote that this replica holds to.
    pub(super) fn given_vote(&self) -> Vote {
        self.raft.server_metrics().borrow_watched().vote
    }

    /// Index of the last entry applied here, and the replica's term.
    pub fn progress(&self) -> (u64, u64) {
        let metrics = self.raft.metrics().borrow_watched().clone();
        (metrics.last_applied.map_or(0, |id| id.index), metrics.current_term)
    }

    /// Index of the last entry that is in a snapshot.
    pub fn snapshot_index(&self) -> Option<u64> {
        self.raft.metrics().borrow_watched().snapshot.map(|id| id.index)
    }

    /// Whether a replica has nearly everything that this one has, which leads. One that has not would be waited for in vain.
    pub fn may_hand_over_to(&self, replica: u64) -> bool {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let matched = metrics.replication.and_then(|of| of.get(&replica).copied().flatten());
        matched.is_some_and(|id| Some(id.index + HEIR_LAG_MAX) >= metrics.last_log_index)
    }

    /// Whether a replica is being sent a snapshot. A newer one, and the purge that comes with it, would make what is sent useless.
    pub fn sends_snapshot(&self) -> bool {
        self.network.sends_snapshot()
    }

    /// Takes a snapshot in the background; the log before it can be purged afterwards.
    pub async fn take_snapshot(&self) {
        if let Err(error) = self.raft.trigger().snapshot().await {
            tracing::warn!(group = self.id.0, %error, "cannot take a snapshot");
        }
    }

    /// Drops the entries that the last snapshot covers, also those that are kept for followers that lag a little.
    pub async fn purge_through(&self, log_index: u64) {
        if let Err(error) = self.raft.trigger().purge_log(log_index).await {
            tracing::warn!(group = self.id.0, %error, "cannot purge the log");
        }
    }

    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = self.id.0, %error, "the group did not stop cleanly");
        }
    }

    pub(super) fn stream_append<S>(
        &self,
        requests: S,
    ) -> BoxStream<'static, Result<StreamAppendResult<TypeConfig>, Fatal<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static,
    {
        self.has_heard.send_replace(true);
        Box::pin(self.raft.stream_append(requests))
    }

    pub(super) async fn install_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        image: Image,
    ) -> Result<Vote, String> {
        self.has_heard.send_replace(true);
        let snapshot = openraft::Snapshot { meta, snapshot: image };
        self.raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map(|answer| answer.vote)
            .map_err(|error| error.to_string())
    }
}

/// Who belongs to a group.
#[derive(Debug, Clone)]
pub struct Members {
    pub nodes: BTreeMap<u64, ReplicaNode>,
    /// Of both configurations, where a change is half-way.
    pub voters: Vec<u64>,
    /// Whether a majority has what this replica has last.
    pub is_committed: bool,
    /// Whether a change is half-way: whoever leads has to end it.
    pub is_joint: bool,
}

impl Members {
    /// Whether no change is under way.
    pub fn is_settled(&self) -> bool {
        self.is_committed && !self.is_joint
    }

    /// The voters that live on other nodes than `node`, most preferred first is up to the caller.
    pub fn voters_beyond(&self, node: NodeId) -> Vec<u64> {
        let elsewhere = |id: &&u64| self.nodes.get(id).is_some_and(|member| member.node_id != node.0);
        self.voters.iter().filter(elsewhere).copied().collect()
    }
}

fn raft_config(options: &GroupOptions) -> Result<Config, openraft::ConfigError> {
    let config = Config {
        cluster_name: "leasehold".to_owned(),
        heartbeat_interval: options.heartbeat_ms,
        election_timeout_min: options.election_ms_min,
        election_timeout_max: options.election_ms_max,
        enable_pre_vote: Some(true),
        // A leader that lost its quorum goes on asking for it, so it serves again as soon as the others are back. Followers that
        // hear it and are not heard, for whom Raft would have it be silent, are the business of the lanes.
        quorum_loss_probe_interval: None,
        // A snapshot is taken when the log wants room, not after a number of entries.
        snapshot_policy: SnapshotPolicy::Never,
        // An entry may be a MiB: what is kept for followers that lag a little must not pin the log.
        max_in_snapshot_log_to_keep: LOG_KEPT_MAX,
        purge_batch_size: 64,
        max_payload_entries: 64,
        replication_lag_threshold: HEIR_LAG_MAX,
        install_snapshot_timeout: 60_000,
        api_channel_size: Some(1_024),
        notification_channel_size: Some(4_096),
        // Leadership is proven by an election after a restart: the restored machine may be behind.
        enable_leader_restore: Some(false),
        backoff: "50ms 100ms 200ms 500ms".to_owned(),
        ..Config::default()
    };
    config.validate()
}

/// Until the group is gone: the task must not keep it alive.
async fn follow_role(
    mut metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    replica: u64,
    role: watch::Sender<Role>,
    mut has_heard: watch::Receiver<bool>,
) {
    let term_at_start = metrics.borrow_watched().vote.leader_id.term;
    loop {
        let seen = metrics.borrow_watched().clone();
        let term = seen.vote.leader_id.term;
        let now = match seen.state {
            ServerState::Leader => Role::Leader { term },
            _ => {
                let members = seen.membership_config.membership();
                // The vote that was read at the start names a leader of then, who may have been started anew as well.
                let is_of_now = term != term_at_start || *has_heard.borrow();
                let leader = seen.current_leader.filter(|leader| is_of_now && *leader != replica);
                Role::Follower { leader: leader.and_then(|leader| members.get_node(&leader).cloned()) }
            }
        };
        role.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        let is_gone = tokio::select! {
            changed = metrics.changed() => changed.is_err(),
            heard = has_heard.changed() => heard.is_err(),
            () = role.closed() => true,
        };
        if is_gone {
            role.send_replace(Role::Stopped);
            return;
        }
    }
}
