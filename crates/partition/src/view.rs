//! What can be read of a partition without changing it.

use std::sync::Arc;

use crate::ids::{ContentRef, MessageKey, Origin, QueueId};
use crate::reply::RedriveProgress;
use crate::settings::{Isolation, RetryBudget, Settings};
use crate::wire::{wire_enum, wire_struct};

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
    /// None without a retry budget.
    pub damping: Option<DampingView>,
    pub suspects: SuspectsView,
}

/// What a receive may find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prospect {
    /// Messages that are ready; 0 when none of them may be given, for the order or for the leases of others.
    pub ready: u64,
    /// Whether what is sent without a delay of its own can be received by the same entry.
    pub gives_at_once: bool,
}

/// The messages that may have killed their consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SuspectsView {
    pub isolation: Isolation,
    /// Those that are ready.
    pub waiting: u64,
    /// Those that are leased.
    pub on_trial: u32,
}

/// What a retry budget does at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DampingView {
    /// None once it is switched off, while what was held is let go.
    pub budget: Option<RetryBudget>,
    pub mood: Mood,
    /// When the mood changed last; 0 for never.
    pub since_wall_ms: u64,
    /// Messages that wait.
    pub held: u64,
    /// Redeliveries that are allowed now.
    pub allowed: u64,
    /// Of the messages handled last, `OUTCOMES_MAX` at most: those that failed, each once.
    pub failed: u32,
    /// Those that were acknowledged.
    pub acked: u32,
    /// Failures of those that had failed already.
    pub repeated: u32,
}

/// What the outcomes of a queue's messages are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Calm,
    /// Most messages fail.
    Storm,
}
wire_enum!(Mood { 0 => Calm {}, 1 => Storm {} });

/// What a shard holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub ready: u64,
    pub leased: u64,
    /// The held among them.
    pub delayed: u64,
    /// Waiting in the outbox, for a dead-letter queue or a redrive.
    pub dead: u64,
    /// Content bytes of the ready, leased, delayed and held.
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
    /// Messages that came back and had to wait for the retry budget.
    pub held: u64,
    /// Messages whose receive limit was met in a storm, and that were held instead of being dead.
    pub spared: u64,
    /// Of the released, those with which nothing had failed: no consumer had worked on them, or it had put them off.
    pub given_back: u64,
    /// Of the dead, those that their consumer rejected.
    pub rejected: u64,
    /// Of the expired, those whose consumer was gone.
    pub lost: u64,
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
} since 3 {
    held,
    spared,
    given_back,
    rejected,
    lost,
});

/// The next moments at which something is due. The leader proposes an `Expire` (or, for `garbage`, any command) then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadline {
    /// Garbage remains: due now.
    pub garbage: bool,
    /// The first lease ends, in log time.
    pub lease_log_ms: Option<u64>,
    /// The first delay ends, or the first held message is let go, in log time.
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
    /// It came back and waits for the queue's retry budget.
    Held,
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
    /// The end of its lease or delay, or before when it is held for certain, in log time.
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
    /// Its message group, which its content has too. None where the state knows it no more: then the content may have one all the same.
    pub group: Option<Arc<[u8]>>,
}
