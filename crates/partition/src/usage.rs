//! What a shard has once more was done with it than sending messages without a group.
//!
//! Most queues of a node with very many are hardly used: they do without.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use crate::damping::Damping;
use crate::headroom::Headroom;
use crate::ids::{QueueId, Source};
use crate::list::List;
use crate::message::{Age, Order, Turn};
use crate::reply::RedriveProgress;
use crate::seldom::Untouched;
use crate::suspects::Suspects;
use crate::tenants::Tenants;
use crate::view::Totals;
use crate::wire::wire_struct;

/// The dead messages for one target, by number.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub items: List<Order>,
    pub len: u64,
}
wire_struct!(Outbox { items, len });

#[derive(Debug)]
pub(crate) struct Redrive {
    pub progress: RedriveProgress,
    /// Messages still to look at.
    pub remaining: u64,
}
wire_struct!(Redrive { progress, remaining });

#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// All but `sent`, which is the shard's own.
    pub totals: Totals,
    pub groups: BTreeMap<Arc<[u8]>, u32>,
    /// The deliverable groups of a FIFO shard.
    pub turns: List<Turn>,
    /// Messages whose retention ended while they were leased.
    pub overdue: List<Age>,
    pub outboxes: BTreeMap<QueueId, Outbox>,
    /// The highest number that arrived from each source.
    pub arrived: BTreeMap<Source, u64>,
    pub redrive: Option<Redrive>,
    /// The groups of a standard shard that have something ready.
    pub tenants: Tenants,
    /// None while nothing was measured lately.
    pub headroom: Option<Box<Headroom>>,
    /// The shard's place in `Partition::headrooms`.
    pub headroom_due_ms: Option<u64>,
    /// None without a retry budget.
    pub damping: Option<Box<Damping>>,
    /// The shard's place in `Partition::dampings`.
    pub damping_due_ms: Option<u64>,
    /// None where suspects were never isolated.
    pub suspects: Option<Box<Suspects>>,
}

impl Untouched for Usage {
    fn untouched() -> &'static Self {
        static UNTOUCHED: LazyLock<Usage> = LazyLock::new(Usage::default);
        &UNTOUCHED
    }

    fn is_untouched(&self) -> bool {
        let Self {
            totals,
            groups,
            turns,
            overdue,
            outboxes,
            arrived,
            redrive,
            tenants,
            headroom,
            headroom_due_ms,
            damping,
            damping_due_ms,
            suspects,
        } = self;
        let maps_are = groups.is_empty() && outboxes.is_empty() && arrived.is_empty();
        let lists_are = turns.is_empty() && overdue.is_empty() && tenants.is_untouched();
        let parts_are = redrive.is_none() && headroom.is_none() && damping.is_none() && suspects.is_none();
        let times_are = headroom_due_ms.is_none() && damping_due_ms.is_none();
        *totals == Totals::default() && maps_are && lists_are && parts_are && times_are
    }
}
