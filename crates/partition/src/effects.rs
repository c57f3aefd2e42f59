//! Hints for the leader, as data. Losing every one of them may delay something and corrupts nothing: whatever they say can
//! be read from the state as well.

use std::sync::Arc;

use crate::ids::QueueId;
use crate::wire::DecodeError;

/// Whether `apply` collects `Effects::history`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    Skip,
    /// What happens to messages that need more than one receive, or do not end with an ack.
    Unusual,
    All,
}

/// What one entry did beyond its replies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Queues with something deliverable that may not have had it before, in order.
    pub ready: Vec<QueueId>,
    /// Queues whose outbox grew, in order.
    pub outbox: Vec<QueueId>,
    /// Content bytes that nothing refers to any more, by the log index that holds them, in order.
    pub freed: Vec<(u64, u64)>,
    /// Content bytes of this entry that the state refers to now, before `freed`.
    pub retained_bytes: u64,
    pub history: Vec<Event>,
}

/// A moment in a message's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub log_time_ms: u64,
    pub wall_time_ms: u64,
    pub queue: QueueId,
    /// The message; for `Purged` and `Deleted` the last sequence given out, since they concern all of the queue's so far.
    pub sequence: u64,
    pub kind: EventKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    Sent,
    Duplicate,
    /// Arrived from another queue.
    Arrived,
    Granted {
        grant: u64,
        receive_count: u32,
        lease_ms: u32,
        consumer: Arc<[u8]>,
    },
    Acked {
        grant: u64,
    },
    Extended {
        grant: u64,
        lease_ms: u32,
    },
    Released {
        grant: u64,
        delay_ms: u32,
    },
    /// The lease ended by itself.
    Expired {
        grant: u64,
    },
    /// Its consumer will not have it; `Dead` follows.
    Rejected {
        grant: u64,
        why: Arc<[u8]>,
    },
    /// Its consumer died with it and others: it is granted with so many at most from now on, itself included.
    Suspected {
        company: u16,
    },
    /// It waits for the queue's retry budget.
    Held,
    /// Its receive limit is met, and it does not die of it, because most messages fail.
    Spared,
    /// The receive limit was met, or it was rejected: it waits for its transfer.
    Dead {
        number: u64,
        target: QueueId,
    },
    /// A redrive took it: it waits for its transfer.
    Redriven {
        number: u64,
        target: QueueId,
    },
    /// Its transfer is confirmed: it is gone from here.
    Transferred {
        number: u64,
        target: QueueId,
    },
    /// Its target exists no more: it is ready here again.
    Returned {
        number: u64,
    },
    /// Retention or its time to live ended.
    Dropped,
    Purged,
    Deleted,
}

impl EventKind {
    /// Whether it belongs to a life that is more than one send, one receive and one ack.
    pub fn is_unusual(&self) -> bool {
        match self {
            Self::Sent | Self::Acked { .. } => false,
            Self::Granted { receive_count, .. } => *receive_count > 1,
            _ => true,
        }
    }
}

/// The result of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// One for each command, in order.
    pub replies: Vec<crate::Reply>,
    pub effects: Effects,
}

/// An entry this code cannot execute. Nothing was changed; the partition must halt, because another replica might manage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyError {
    Decode(DecodeError),
    /// `SetVersion` asks for more than `MACHINE_VERSION_MAX`.
    UnsupportedVersion(u32),
}

impl std::fmt::Display for ApplyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Decode(error) => write!(f, "undecodable entry: {error}"),
            Self::UnsupportedVersion(version) => write!(f, "machine version {version} is not supported"),
        }
    }
}

impl std::error::Error for ApplyError {}

impl From<DecodeError> for ApplyError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_life_is_not_unusual() {
        let granted =
            |receive_count| EventKind::Granted { grant: 1, receive_count, lease_ms: 1, consumer: [].into() };
        assert!(!EventKind::Sent.is_unusual() && !EventKind::Acked { grant: 1 }.is_unusual());
        assert!(!granted(1).is_unusual());
        assert!(granted(2).is_unusual());
        assert!(EventKind::Expired { grant: 1 }.is_unusual());
    }
}
