//! What can be read of a partition without changing it.

use std::sync::Arc;

use crate::ids::{ContentRef, MessageKey, Origin, QueueId};
use crate::reply::RedriveProgress;
use crate::settings::Settings;
use crate::wire::wire_struct;

/// A shard at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardView {
    pub settings: Settings,
    pub revision: u64,
    pub counters: Counters,
    pub totals: Totals,
    /// When the oldest message that is not dead was sent.
    pub oldest_sent_wall_ms: Option<u64>,
    /// The current or the last redrive.
    pub redrive: Option<RedriveProgress>,
}

/// What a shard holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub ready: u64,
    pub leased: u64,
    pub delayed: u64,
    /// Waiting in the outbox, for a dead-letter queue or a redrive.
    pub dead: u64,
    /// Content bytes of the ready, leased and delayed.
    pub bytes: u64,
    /// Content bytes of the dead.
    pub dead_bytes: u64,
}

/// What a shard has seen since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub sent: u64,
    pub duplicates: u64,
    pub arrived: u64,
    pub granted: u64,
    pub acked: u64,
    pub extended: u64,
    pub released: u64,
    /// Leases that ended by themselves.
    pub expired: u64,
    /// Messages whose receive limit was met, or that were rejected.
    pub dead: u64,
    pub redriven: u64,
    pub transferred: u64,
    /// Messages whose retention or time to live ended.
    pub dropped: u64,
    pub purged: u64,
    /// Acks that came after their lease had ended, repeated acks among them.
    pub late: u64,
    /// Acks in the last tenth of their lease.
    pub last_tenth: u64,
}

wire_struct!(Counters { ready, leased, delayed, dead, bytes, dead_bytes });
wire_struct!(Totals {
    sent,
    duplicates,
    arrived,
    granted,
    acked,
    extended,
    released,
    expired,
    dead,
    redriven,
    transferred,
    dropped,
    purged,
} since 2 {
    late,
    last_tenth,
});

/// The next moments at which something is due. The leader proposes an `Expire` (or, for `garbage`, any command) then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadline {
    /// Garbage remains: due now.
    pub garbage: bool,
    /// The first lease ends, in log time.
    pub lease_log_ms: Option<u64>,
    /// The first delay ends, in log time.
    pub delay_log_ms: Option<u64>,
    /// Something remembered (deduplication id, attempt, session, headroom) may be forgotten, in log time. Never urgent.
    pub window_log_ms: Option<u64>,
    /// Retention or a time to live ends, in wall time.
    pub wall_ms: Option<u64>,
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    Leased,
    Delayed,
    /// In the outbox.
    Dead,
}

/// One message, as `find` and `peek` show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageView {
    pub key: MessageKey,
    pub queue: QueueId,
    pub content: ContentRef,
    pub state: State,
    pub sent_wall_ms: u64,
    pub receive_count: u32,
    pub first_received_wall_ms: Option<u64>,
    /// The end of its lease or delay, in log time.
    pub deadline_log_ms: Option<u64>,
    /// The latest grant, 0 before the first.
    pub grant: u64,
    pub origin: Option<Origin>,
}

/// A page of a peek.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peek {
    pub messages: Vec<MessageView>,
    /// Pass it as `after_sequence` for the next page; `None` at the end.
    pub next_after_sequence: Option<u64>,
}

/// Why a message waits in an outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboxReason {
    /// Its receive limit was met.
    Dead,
    Redrive,
    /// A consumer rejected it, for this reason.
    Rejected {
        why: Arc<[u8]>,
    },
}

/// One message that waits for its transfer to `target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxItem {
    pub number: u64,
    pub target: QueueId,
    pub reason: OutboxReason,
    pub key: MessageKey,
    pub content: ContentRef,
    pub receive_count: u32,
    pub sent_wall_ms: u64,
    /// The origin it came here with, if it came through a transfer.
    pub origin: Option<Origin>,
}
