//! What a partition answers: one reply for each command, kept for retried requests and sent between nodes.

use crate::ids::{ContentRef, MessageKey, QueueId, Receipt};
use crate::wire::{DecodeError, Reader, Wire, wire_enum, wire_struct};

const WIRE_VERSION: u8 = 1;
/// Of the outcome of a message that was sent: its tag and its key.
const SENT_BYTES: usize = 13;

/// The answer to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The command did nothing, for this reason.
    Refused { reason: Refusal },
    /// Answers `Configure`, `Delete`, `Purge`, `Mark`, `RedriveStart`, `RedriveCancel`, `SetVersion`,
    /// `SetRetryBudget`, `SetIsolation` and `Lost`.
    Done,
    /// Answers `Send`, one outcome for each message.
    Sent { outcomes: Vec<SendOutcome> },
    /// Answers `Transfer`: everything up to `through_number` is here, now or from before. When a message was refused,
    /// nothing from it on was added.
    Transferred { through_number: u64, refused: Option<Refusal> },
    /// Answers `Receive`.
    Received { deliveries: Vec<Delivery> },
    /// Answers `Receive` on a standard queue whose leases are at `in_flight_max`.
    OverLimit,
    /// Answers `Ack`, `Extend`, `Release`, `Reject`, `GiveBack` and `Postpone`, one outcome for each receipt.
    Settled { outcomes: Vec<Outcome> },
    /// Answers `Expire`: leases and delays ended, held messages let go among them, messages dropped (retention, time to live, or swept garbage), and
    /// remembered ids and sessions forgotten. `more` says that more is due now.
    Expired { leases: u32, delays: u32, dropped: u32, forgotten: u32, more: bool },
    /// Answers `TransferDone` and `TransferReturn`: items that left the outbox, and those left in it for that target.
    OutboxReduced { removed: u32, remaining: u64 },
    /// Answers `RedriveStep`.
    RedriveStepped { moved: u32, progress: RedriveProgress },
}
wire_enum!(Reply {
    0 => Refused { reason },
    1 => Done {},
    2 => Sent { outcomes },
    3 => Transferred { through_number, refused },
    4 => Received { deliveries },
    5 => OverLimit {},
    6 => Settled { outcomes },
    7 => Expired { leases, delays, dropped, forgotten, more },
    8 => OutboxReduced { removed, remaining },
    9 => RedriveStepped { moved, progress },
});

impl Reply {
    /// About as many bytes as `encode_into` appends, and seldom fewer.
    pub fn len_bytes_about(&self) -> usize {
        const OTHER_BYTES: usize = 64;
        let items_bytes = match self {
            Self::Sent { outcomes } => outcomes.len() * SENT_BYTES,
            Self::Received { deliveries } => deliveries.len() * size_of::<Delivery>(),
            Self::Settled { outcomes } => outcomes.len(),
            _ => 0,
        };
        OTHER_BYTES + items_bytes
    }

    /// Appends the byte form.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.push(WIRE_VERSION);
        self.put(out);
    }

    /// Reads what `encode_into` wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.version(WIRE_VERSION)?;
        let reply = Self::take(&mut reader)?;
        reader.finish()?;
        Ok(reply)
    }

    /// Whether it is the reply of a receive that got nothing. Such a receive is not done: while its consumer waits it is
    /// executed again, under the same request id.
    pub(crate) fn is_empty_handed(&self) -> bool {
        match self {
            Self::Received { deliveries } => deliveries.is_empty(),
            Self::OverLimit => true,
            _ => false,
        }
    }
}

/// Why a command, or one message of it, was refused. Nothing was changed for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    UnknownQueue,
    /// The catalogue revision is older than one this partition has applied.
    StaleRevision {
        revision_min: u64,
    },
    /// A queue keeps the kind it was created with.
    KindIsFixed,
    /// `length_max` or `bytes_max` is reached.
    QueueFull,
    /// A message of a FIFO queue needs a group.
    GroupRequired,
    /// A message of a FIFO queue has no delay of its own.
    DelayNotAllowed,
    /// The request is older than what its session still remembers.
    RequestForgotten,
    /// A redrive of this queue is running under another id.
    RedriveRunning,
    /// No such redrive is running.
    RedriveUnknown,
    /// A queue cannot be its own target.
    TargetIsSource,
}
wire_enum!(Refusal {
    1 => UnknownQueue {},
    2 => StaleRevision { revision_min },
    3 => KindIsFixed {},
    4 => QueueFull {},
    5 => GroupRequired {},
    6 => DelayNotAllowed {},
    7 => RequestForgotten {},
    8 => RedriveRunning {},
    9 => RedriveUnknown {},
    10 => TargetIsSource {},
});

/// What became of one message of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOutcome {
    Sent {
        key: MessageKey,
    },
    /// Its deduplication id is within its window; `sequence` is the first message's.
    Duplicate {
        sequence: u64,
    },
    Refused {
        reason: Refusal,
    },
}
wire_enum!(SendOutcome { 0 => Sent { key }, 1 => Duplicate { sequence }, 2 => Refused { reason } });

/// One granted message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its `sequence` is the message's, its `grant` the fencing token.
    pub receipt: Receipt,
    pub content: ContentRef,
    /// This grant included.
    pub receive_count: u32,
    pub sent_wall_ms: u64,
    pub first_received_wall_ms: u64,
    /// When the lease ends, in log time.
    pub deadline_log_ms: u64,
    pub lease_ms: u32,
}
wire_struct!(Delivery {
    receipt,
    content,
    receive_count,
    sent_wall_ms,
    first_received_wall_ms,
    deadline_log_ms,
    lease_ms,
});

/// What became of one receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The message exists no more: it was settled, dropped by retention, transferred or purged.
    Gone,
    /// The lease ended, or the message was granted again, before this.
    Stale,
    /// The partition never issued this receipt for this queue.
    Invalid,
    /// The new end would lie more than `LEASE_MS_MAX` after the grant. The lease stays as it was.
    LeaseTooLong,
    /// The queue has no dead-letter queue to reject to. The lease stays as it was.
    NoDeadLetterQueue,
}
wire_enum!(Outcome {
    0 => Done {},
    1 => Gone {},
    2 => Stale {},
    3 => Invalid {},
    4 => LeaseTooLong {},
    5 => NoDeadLetterQueue {},
});

/// How far a redrive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedriveProgress {
    pub id: u64,
    /// `None` sends each message to its origin; those without one stay.
    pub target: Option<QueueId>,
    /// Of all shards together; 0 is no limit.
    pub rate_per_s: u32,
    pub state: RedriveState,
    /// Messages moved to the outbox.
    pub moved: u64,
    /// Messages passed over because they have no origin, and those that came back because their target exists no more.
    pub kept: u64,
    /// Messages that were ready at the start: about how many there are to move.
    pub total: u64,
}
wire_struct!(RedriveProgress { id, target, rate_per_s, state, moved, kept, total });

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedriveState {
    Running,
    Complete,
    Cancelled,
}
wire_enum!(RedriveState { 0 => Running {}, 1 => Complete {}, 2 => Cancelled {} });
