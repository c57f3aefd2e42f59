//! What can be asked of a partition's replica.

use bytes::Bytes;
use leasehold_partition::{Command, Delivery, QueueId, Receipt, Reply, RequestId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::failure::Failure;

pub type ReplySender<T> = oneshot::Sender<Result<T, Failure>>;

/// A request to the leader of a partition.
pub enum Request {
    /// A command that becomes part of the next entry.
    Command { call: CommandCall, reply: ReplySender<Reply> },
    /// A grant, at once or when something becomes deliverable.
    Receive(Receive),
    /// Tells when a receive of so many messages would deliver. The one who is told is waited for, for a moment, before others are.
    Ready { queue: QueueId, messages_max: u32, reply: ReplySender<()> },
    /// Leases that were granted to somebody who has gone since.
    GiveBack { unclaimed: Unclaimed, receipts: Vec<Receipt> },
}

/// A partition command on its way to the leader.
#[derive(Debug, Clone)]
pub struct CommandCall {
    pub queue: QueueId,
    /// As the partition encodes requests.
    pub command: Bytes,
    /// The distinct lease durations that the command's answer promises.
    pub promised_leases_ms: Vec<u32>,
}

impl CommandCall {
    /// Whether it makes the queue longer.
    pub fn adds_messages(&self) -> bool {
        matches!(Command::decode(&self.command), Ok(Command::Send { .. } | Command::Transfer { .. }))
    }
}

/// A receive, which the leader may park until there is something to grant.
pub struct Receive {
    pub queue: QueueId,
    pub options: ReceiveOptions,
    /// Until when it may wait; `None` answers at once.
    pub wait_until: Option<Instant>,
    /// Whether the leader knows when its wait ends.
    pub is_listed: bool,
    pub reply: ReplySender<Granted>,
}

/// What a consumer asks for.
#[derive(Debug, Clone)]
pub struct ReceiveOptions {
    pub messages_max: u32,
    pub bytes_max: u64,
    pub lease_ms: Option<u32>,
    pub attempt: Option<Vec<u8>>,
    pub consumer: Vec<u8>,
    pub request: Option<RequestId>,
}

impl ReceiveOptions {
    /// Whether another try of the same receive is told of the same leases.
    pub fn may_repeat(&self) -> bool {
        self.request.is_some() || self.attempt.is_some()
    }

    /// Whether both are tries of one receive.
    pub fn repeats(&self, other: &Self) -> bool {
        let name = |options: &Self| options.request.map(|id| (id.session, id.sequence));
        let is_equal = name(self).is_some() && name(self) == name(other);
        is_equal || (self.attempt.is_some() && self.attempt == other.attempt)
    }
}

/// Leases that were granted; their contents are still in the log. New ones go back to the leader when this is dropped before they were
/// claimed: whoever reads the contents may have gone by then.
#[derive(Debug, Default)]
pub struct Granted {
    pub deliveries: Vec<Delivery>,
    unclaimed: Option<Unclaimed>,
}

/// Whose leases go back when nobody claims them, and where to.
#[derive(Debug)]
pub struct Unclaimed {
    pub requests: mpsc::WeakUnboundedSender<Request>,
    pub queue: QueueId,
    pub options: ReceiveOptions,
}

impl Granted {
    /// `unclaimed` is none when somebody may hold the leases already.
    pub fn new(deliveries: Vec<Delivery>, unclaimed: Option<Unclaimed>) -> Self {
        Self { deliveries, unclaimed }
    }

    /// From here on the leases are somebody's, and end by themselves; returns what would have been given back.
    pub fn claim(&mut self) -> Option<Unclaimed> {
        self.unclaimed.take()
    }

    pub fn receipts(&self) -> Vec<Receipt> {
        self.deliveries.iter().map(|delivery| delivery.receipt).collect()
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        // A replica that has stopped takes nothing back, nor does one that leads no more.
        if let Some(unclaimed) = self.claim()
            && let Some(requests) = unclaimed.requests.upgrade()
        {
            let _ = requests.send(Request::GiveBack { unclaimed, receipts: self.receipts() });
        }
    }
}

impl Receive {
    /// Whether its consumer still waits for something to come.
    pub fn may_wait(&self) -> bool {
        self.wait_until.is_some_and(|end| end > Instant::now())
    }
}

impl Request {
    /// Roughly what it holds in memory.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Command { call, .. } => call.command.len(),
            Self::Receive(_) | Self::Ready { .. } => 256,
            // It waits for no room.
            Self::GiveBack { .. } => 0,
        }
    }

    pub fn fail(self, failure: Failure) {
        // Whoever asked may have gone.
        match self {
            Self::Command { reply, .. } => drop(reply.send(Err(failure))),
            Self::Receive(receive) => drop(receive.reply.send(Err(failure))),
            Self::Ready { reply, .. } => drop(reply.send(Err(failure))),
            Self::GiveBack { .. } => {}
        }
    }
}
