//! A message's record, and the side record of those that need more.
//!
//! A message that was only sent costs one slot of the first arena. What concerns leases, delays, expiry and transfers lies
//! in a side record, which exists from the first grant, delay or transfer on.

use crate::arena::NONE;
use crate::ids::{MessageKey, Origin, QueueId, Receipt};
use crate::lanes::{Lane, Lanes};
use crate::list::{Links, linked};
use crate::suspects::NOBODY;
use crate::view::{OutboxReason, State};
use crate::wire::{wire_enum, wire_struct};

wire_enum!(State { 0 => Ready {}, 1 => Leased {}, 2 => Delayed {}, 3 => Dead {}, 4 => Held {} });
wire_enum!(OutboxReason { 0 => Dead {}, 1 => Redrive {}, 2 => Rejected { why } });

/// Which of a shard's age lists holds a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aged {
    /// `Shard::age`: retention will come for it.
    Due,
    /// `Usage::overdue`: retention came while it was leased; it is dropped when its lease ends.
    Overdue,
    /// None: it is dead.
    Off,
}
wire_enum!(Aged { 0 => Due {}, 1 => Overdue {}, 2 => Off {} });

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub sequence: u64,
    pub queue: QueueId,
    pub offset: u32,
    pub len: u32,
    /// The record of the log entry that holds the content.
    pub entry: u32,
    /// A lane (standard), the group's list (FIFO), or the outbox's (dead).
    pub order: Links,
    /// `Shard::age` or `Usage::overdue`.
    pub age: Links,
    /// The messages of the same entry.
    pub sibling: Links,
    /// Its message group, also while it is dead; `NONE` in a standard queue when it has none.
    pub group: u32,
    pub side: u32,
    pub state: State,
    pub aged: Aged,
    pub lane: Lane,
}
wire_struct!(Message {
    sequence,
    queue,
    offset,
    len,
    entry,
    order,
    age,
    sibling,
    group,
    side,
    state,
    aged,
    lane,
});
linked!(Message, Order, order);
linked!(Message, Age, age);
linked!(Message, Sibling, sibling);

const _: () = assert!(size_of::<Option<Message>>() <= 64);

const _: () = assert!(size_of::<Option<Side>>() <= 160);

impl Message {
    pub fn key(&self, slot: u32) -> MessageKey {
        MessageKey { slot, sequence: self.sequence }
    }
}

#[derive(Debug)]
pub(crate) struct Side {
    pub message: u32,
    /// The latest grant; 0 before the first.
    pub grant: u64,
    pub receive_count: u32,
    /// Of the latest grant or extension.
    pub lease_ms: u32,
    /// The end of the lease or delay, or before when it is held for certain, in log time.
    pub deadline_ms: u64,
    /// When the latest grant was made, in log time.
    pub granted_ms: u64,
    /// 0 before the first grant.
    pub first_received_wall_ms: u64,
    /// When its time to live ends; 0 for never.
    pub expiry_wall_ms: u64,
    /// Whether `expiry` is in the timers.
    pub expiry_armed: bool,
    /// Whether the latest lease was extended.
    pub extended: bool,
    pub origin: Option<Origin>,
    /// The number in the outbox; 0 outside.
    pub number: u64,
    pub target: QueueId,
    pub reason: OutboxReason,
    /// The version of the consumer with the latest lease, in `Usage::headroom`.
    pub version: u32,
    /// The generation of `Usage::damping` in which its failure was counted; 0 before the first.
    pub failed_in: u32,
    /// The consumer with the latest lease, in `Usage::suspects`.
    pub holder: u32,
    /// With how many others at most it is leased as a suspect, itself included; 0 when it is none.
    pub company: u16,
    /// Grants that do not count for the receive limit.
    pub excused: u16,
    /// In the timers of its lease or delay, or among the held.
    pub timer: Links,
    /// In the timers of times to live.
    pub expiry: Links,
}
wire_struct!(Side {
    message,
    grant,
    receive_count,
    lease_ms,
    deadline_ms,
    granted_ms,
    first_received_wall_ms,
    expiry_wall_ms,
    expiry_armed,
    extended,
    origin,
    number,
    target,
    reason,
    timer,
    expiry,
} since 2 {
    version,
} since 3 {
    failed_in,
    holder,
    company,
    excused,
});
linked!(Side, Timer, timer);
linked!(Side, Expiry, expiry);

impl Side {
    pub fn new(message: u32) -> Self {
        Self {
            message,
            grant: 0,
            receive_count: 0,
            lease_ms: 0,
            deadline_ms: 0,
            granted_ms: 0,
            first_received_wall_ms: 0,
            expiry_wall_ms: 0,
            expiry_armed: false,
            extended: false,
            origin: None,
            number: 0,
            target: QueueId(0),
            reason: OutboxReason::Dead,
            version: 0,
            failed_in: 0,
            holder: NOBODY,
            company: 0,
            excused: 0,
            timer: Links::OFF,
            expiry: Links::OFF,
        }
    }
}

/// A receipt's lease, if it is the one that holds the message now.
pub(crate) fn holds(message: &Message, side: &Side, receipt: &Receipt) -> bool {
    message.state == State::Leased && message.sequence == receipt.sequence && side.grant == receipt.grant
}

/// A message group: an order on a FIFO shard, a tenant on a standard one.
#[derive(Debug)]
pub(crate) struct Group {
    pub name: std::sync::Arc<[u8]>,
    /// On a FIFO shard its messages in order, whatever their state, dead ones excepted.
    pub messages: crate::list::List<Order>,
    /// How many of its messages are leased. Above zero, nothing of a FIFO group is deliverable.
    pub leased: u32,
    /// Messages whose `group` is this one, dead ones included. The record is freed at zero.
    pub members: u32,
    /// Whether it is in `Usage::turns` (FIFO) or `Usage::tenants` (standard).
    pub in_turn: bool,
    pub turn: Links,
    /// On a standard shard its ready messages.
    pub lanes: Lanes,
    /// The leases under which `Usage::tenants` holds it; 0 outside.
    pub rank: u32,
}
wire_struct!(Group { name, messages, leased, members, in_turn, turn } since 2 { lanes, rank });
linked!(Group, Turn, turn);

const _: () = assert!(size_of::<Option<Group>>() <= 72);

impl Group {
    pub fn new(name: std::sync::Arc<[u8]>) -> Self {
        Self {
            name,
            messages: crate::list::List::default(),
            leased: 0,
            members: 0,
            in_turn: false,
            turn: Links::OFF,
            lanes: Lanes::default(),
            rank: 0,
        }
    }
}

pub(crate) fn slot_or_none(slot: u32) -> Option<u32> {
    (slot != NONE).then_some(slot)
}
