//! A partition's replica on this node: its group, its state machine, and the task that leads when it is this replica's turn.

mod cut_off;
mod failures;
mod grace;
mod leader;
mod log_clock;
mod machine;
mod request;
mod waiters;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use leasehold_catalogue::{NodeId, PartitionId};
use leasehold_partition::{Isolation, QueueId, Refusal, RetryBudget, Settings};
use leasehold_proto::v1::Reason;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use crate::failure::Failure;
use crate::raft::{Group, GroupId, Role};

pub use cut_off::CutOff;
pub use leader::Leadership;
pub use log_clock::wall_ms;
pub use machine::PartitionMachine;
pub use request::{CommandCall, Receive, ReceiveOptions, ReplySender, Request};

/// A queue's shard as the catalogue wants it.
#[derive(Debug, Clone)]
pub struct WantedShard {
    pub settings: Settings,
    pub retry_budget: Option<RetryBudget>,
    pub isolation: Isolation,
    /// Revision of the catalogue in which the queue changed last.
    pub changed: u64,
    /// Revision of the catalogue that was read.
    pub revision: u64,
}

/// Where a leader looks up the queues it serves.
pub trait QueueSource: Send + Sync + 'static {
    /// The shard of `queue` on `partition`, if the catalogue has it there.
    fn shard_of(&self, queue: QueueId, partition: PartitionId) -> Option<WantedShard>;

    /// Up to where leases of the queue grow with the work; 0 for not at all.
    fn adaptive_lease_ms_max(&self, queue: QueueId) -> u64;

    /// What all nodes of the cluster can execute.
    fn version(&self) -> u32;

    /// Whether the queue existed, as far as this copy of the catalogue reaches, and does no more.
    fn is_deleted(&self, queue: QueueId) -> bool;
}

/// What a replica's handle and its task have in common.
pub struct Shared {
    pub id: PartitionId,
    pub group: Group,
    pub machine: Arc<PartitionMachine>,
    /// Woken when messages wait for their transfer to another queue.
    pub outbox: Notify,
    queues: Arc<dyn QueueSource>,
    /// To the task that leads. The channel ends with the replica's handle.
    requests: mpsc::WeakUnboundedSender<Request>,
    /// Requests that wait, over all partitions of the node.
    pending_bytes: Arc<AtomicUsize>,
}

impl Shared {
    fn taken(&self, bytes: usize) {
        self.pending_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The replica of one partition on this node.
pub struct Replica {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Request>,
    pending_bytes_max: usize,
    cut_off: CutOff,
    task: AbortHandle,
}

/// What a replica is started with.
pub struct ReplicaParts {
    pub id: PartitionId,
    pub group: Group,
    pub machine: Arc<PartitionMachine>,
    pub queues: Arc<dyn QueueSource>,
    pub pending_bytes: Arc<AtomicUsize>,
    pub pending_bytes_max: usize,
}

impl Replica {
    pub fn start(parts: ReplicaParts) -> Self {
        let (requests, queue) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            id: parts.id,
            group: parts.group,
            machine: parts.machine,
            outbox: Notify::new(),
            queues: parts.queues,
            requests: requests.downgrade(),
            pending_bytes: parts.pending_bytes,
        });
        let task = tokio::spawn(run(shared.clone(), queue)).abort_handle();
        let cut_off = CutOff::default();
        Self { shared, requests, pending_bytes_max: parts.pending_bytes_max, cut_off, task }
    }

    pub fn id(&self) -> PartitionId {
        self.shared.id
    }

    pub fn group(&self) -> &Group {
        &self.shared.group
    }

    pub fn machine(&self) -> &PartitionMachine {
        &self.shared.machine
    }

    pub fn role(&self) -> watch::Receiver<Role> {
        self.shared.group.role()
    }

    /// The node whose replica leads, as far as this replica knows.
    pub fn leader_node(&self, here: NodeId) -> Option<NodeId> {
        match &*self.role().borrow() {
            Role::Leader { .. } => Some(here),
            Role::Follower { leader } => leader.as_ref().map(|leader| NodeId(leader.node_id)),
            Role::Stopped => None,
        }
    }

    /// Whether too few of its voters answer here for anything to be decided.
    pub fn cut_off(&self) -> &CutOff {
        &self.cut_off
    }

    /// Wakes when messages wait for their transfer to another queue.
    pub fn outbox(&self) -> &Notify {
        &self.shared.outbox
    }

    /// Asks the leader for something; a follower refuses.
    ///
    /// # Errors
    /// `BUSY` when too much waits on this node already, and what the leader answers.
    pub async fn ask<T>(&self, make: impl FnOnce(ReplySender<T>) -> Request) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        let request = make(reply);
        let bytes = request.size_bytes();
        let waiting = self.shared.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting + bytes > self.pending_bytes_max {
            self.shared.taken(bytes);
            let detail = format!("{waiting} bytes of requests wait on this node (limit pending_bytes_max)");
            return Err(Failure::try_again(Reason::Busy, detail));
        }
        if self.requests.send(request).is_err() {
            self.shared.taken(bytes);
            return Err(Failure::try_again(Reason::Stopping, "the replica is stopping"));
        }
        let lost = Failure::unknown(Reason::NoLeader, "the replica stopped before it answered");
        answer.await.unwrap_or(Err(lost))
    }

    /// Stops the group and everything that waits.
    pub async fn stop(&self) {
        self.task.abort();
        self.shared.group.shutdown().await;
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The Raft group of a partition; group 0 is the catalogue's.
pub fn group_of(partition: PartitionId) -> GroupId {
    GroupId(partition.0 + 1)
}

async fn run(shared: Arc<Shared>, mut requests: mpsc::UnboundedReceiver<Request>) {
    let mut role = shared.group.role();
    loop {
        let now = role.borrow_and_update().clone();
        match now {
            Role::Leader { term } => lead(&shared, term, &mut requests, &mut role).await,
            Role::Follower { leader } => {
                let leader = leader.map(|leader| NodeId(leader.node_id));
                refuse_until_changed(&shared, &Failure::not_leader(leader), &mut requests, &mut role).await;
            }
            Role::Stopped => {
                let failure =
                    Failure::try_again(Reason::NodeFailed, "the partition's replica on this node has halted");
                refuse_until_changed(&shared, &failure, &mut requests, &mut role).await;
            }
        }
        if requests.is_closed() || role.has_changed().is_err() {
            return;
        }
    }
}

async fn lead(
    shared: &Arc<Shared>,
    term: u64,
    requests: &mut mpsc::UnboundedReceiver<Request>,
    role: &mut watch::Receiver<Role>,
) {
    let started = tokio::select! {
        started = Leadership::start(shared.clone(), term) => started,
        _ = role.changed() => return role.mark_changed(),
    };
    match started {
        Ok(mut leadership) => leadership.serve(requests, role).await,
        Err(error) => {
            tracing::debug!(partition = shared.id.0, term, error, "could not take office");
            // They must not wait for a majority that does not come, nor take the room of those who ask other partitions.
            while let Ok(request) = requests.try_recv() {
                shared.taken(request.size_bytes());
                request.fail(Failure::not_leader(None));
            }
            // A leader that cannot reach a quorum tries again, unless its role changes first.
            let pause = tokio::time::sleep(std::time::Duration::from_millis(20));
            tokio::select! {
                () = pause => {}
                _ = role.changed() => role.mark_changed(),
            }
        }
    }
}

async fn refuse_until_changed(
    shared: &Shared,
    failure: &Failure,
    requests: &mut mpsc::UnboundedReceiver<Request>,
    role: &mut watch::Receiver<Role>,
) {
    loop {
        tokio::select! {
            _ = role.changed() => return role.mark_changed(),
            request = requests.recv() => {
                let Some(request) = request else { return };
                shared.taken(request.size_bytes());
                request.fail(failure.clone());
            }
        }
    }
}

/// A refusal of the state machine in the words of the protocol.
pub fn refusal(refusal: Refusal) -> Failure {
    let reason = match refusal {
        Refusal::UnknownQueue => Reason::UnknownQueue,
        Refusal::QueueFull => Reason::QueueFull,
        Refusal::GroupRequired => Reason::GroupRequired,
        Refusal::DelayNotAllowed => Reason::DelayNotAllowed,
        Refusal::RedriveRunning => Reason::RedriveRunning,
        Refusal::RedriveUnknown => Reason::NoRedrive,
        Refusal::KindIsFixed | Refusal::TargetIsSource => Reason::InvalidArgument,
        Refusal::StaleRevision { .. } => {
            return Failure::try_again(Reason::Busy, "the leader's copy of the catalogue is behind");
        }
        Refusal::RequestForgotten => {
            return Failure::unknown(Reason::None, "the request is too old to be recognised");
        }
    };
    Failure::not_done(reason, refusal_detail(refusal))
}

fn refusal_detail(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownQueue => "the queue does not exist",
        Refusal::QueueFull => {
            "the queue is at its maximum length or size: receive from it, or raise length_max or bytes_max"
        }
        Refusal::GroupRequired => "a message of a FIFO queue needs a message group",
        Refusal::DelayNotAllowed => "a FIFO queue has one delay for all its messages: set it on the queue",
        Refusal::RedriveRunning => "a redrive of this queue is running: cancel it first",
        Refusal::RedriveUnknown => "no redrive of this queue is running",
        Refusal::KindIsFixed => "a queue keeps the kind it was created with",
        Refusal::TargetIsSource => "a queue cannot be its own target",
        Refusal::StaleRevision { .. } | Refusal::RequestForgotten => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_and_the_partitions_have_different_groups() {
        assert_eq!(group_of(PartitionId(0)), GroupId(1));
    }
}
