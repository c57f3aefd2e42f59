//! Whose message a standard shard grants next, so that a noisy tenant does not delay the quiet ones.
//!
//! ```text
//!   leases held    tenants with something ready, the longest wait first
//!        0         [ e  h ]     <- the next grant, in turn with the messages that have no group
//!        1         [ a  d ]
//!       30         [ noisy ]
//! ```
//!
//! A message group of a standard queue is a tenant. The tenant with the fewest leases is next; among equals the one that has
//! been there longest, which makes them take turns. A lease is a consumer's time being spent, so equal leases are an equal
//! share of that time, however long a message takes. A message without a group is a tenant by itself and holds no lease: it
//! goes before tenants that do, and takes turns with those that do not.
//!
//! A tenant exists while it has messages; nothing is remembered of it afterwards. Every operation is O(log distinct counts of
//! leases).

use crate::arena::Arena;
use crate::buckets::Buckets;
use crate::lanes::Lanes;
use crate::message::{Group, Turn, slot_or_none};
use crate::store::Store;
use crate::wire::{wire_enum, wire_struct};

/// Who is preferred when both a tenant without leases and a message without a group could be next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Prefers {
    #[default]
    Tenant,
    Ungrouped,
}
wire_enum!(Prefers { 0 => Tenant {}, 1 => Ungrouped {} });

#[derive(Debug, Default)]
pub(crate) struct Tenants {
    /// Every group with a ready message, by the leases it holds.
    by_leases: Buckets<Turn>,
    prefers: Prefers,
}
wire_struct!(Tenants { by_leases, prefers });

impl Tenants {
    pub fn is_empty(&self) -> bool {
        self.by_leases.is_empty()
    }

    pub fn is_untouched(&self) -> bool {
        self.is_empty() && self.prefers == Prefers::default()
    }

    /// The tenant whose turn it is.
    pub fn first(&self) -> Option<u32> {
        self.by_leases.first().map(|(_, group)| group)
    }

    /// The message that the next grant takes, where `ungrouped` are those without a group. O(1).
    pub fn next(&self, ungrouped: &Lanes, store: &Store) -> Option<u32> {
        let Some((leases, group)) = self.by_leases.first() else { return ungrouped.first() };
        match ungrouped.first() {
            Some(slot) if leases > 0 || self.prefers == Prefers::Ungrouped => Some(slot),
            _ => store.groups[group].lanes.first(),
        }
    }

    /// Notes that a message of this group, if it has one, was granted.
    pub fn granted(&mut self, group: u32) {
        self.prefers = match slot_or_none(group) {
            Some(_) => Prefers::Ungrouped,
            None => Prefers::Tenant,
        };
    }

    /// Puts a tenant where it belongs after its ready messages or its leases changed. Where the number of its leases changed,
    /// it goes behind the others with as many; else it keeps its place.
    pub fn refresh(&mut self, groups: &mut Arena<Group>, group: u32) {
        let record = &groups[group];
        let wanted = (!record.lanes.is_empty()).then_some(record.leased);
        let current = record.in_turn.then_some(record.rank);
        if wanted == current {
            return;
        }
        if let Some(rank) = current {
            self.by_leases.remove(groups, u64::from(rank), group);
        }
        if let Some(rank) = wanted {
            self.by_leases.insert(groups, u64::from(rank), group);
        }
        let record = &mut groups[group];
        (record.in_turn, record.rank) = (wanted.is_some(), wanted.unwrap_or(0));
    }

    pub fn iter<'a>(&'a self, groups: &'a Arena<Group>) -> impl Iterator<Item = (u64, u32)> + 'a {
        self.by_leases.iter(groups)
    }
}
