//! Who holds which leases, and the messages that may have killed their consumer.
//!
//! ```text
//!   a consumer dies holding 8 messages; their leases end
//!     waiting  [ a b c d e f g H ]   each of them in company of 4 at most from now on
//!     trial    [ a b c d ]           one at a time: all four are acknowledged
//!     trial    [ e f g H ]           the consumer dies: company of 2
//!     trial    [ e f ]  [ g H ]      it dies again: each alone
//!     trial    [ g ]  [ H ]          H pays with its receive count, and nobody else does
//! ```
//!
//! A consumer is known by the name that it receives under. Somebody else notices that it is gone and says so; that alone changes
//! nothing, for it may only have lost a connection. When it is heard again it is alive, and when its leases end by
//! themselves it was not.
//!
//! A grant that ended with a consumer is excused, unless the message was alone: it does not count for the receive limit. Only one
//! group of suspects is leased at a time, so that none is blamed for another; everything else is granted as always.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::list::List;
use crate::message::Order;
use crate::settings::Isolation;
use crate::view::SuspectsView;
use crate::wire::{DecodeError, Reader, Wire, wire_struct};

/// No consumer: one without a name, or of a shard that does not isolate suspects.
pub(crate) const NOBODY: u32 = 0;

/// A consumer with leases.
#[derive(Debug)]
struct Holder {
    name: Arc<[u8]>,
    leased: u32,
    /// How many leases it had when it was noticed to be gone; 0 while it is there.
    gone_with: u32,
}
wire_struct!(Holder { name, leased, gone_with });

#[derive(Debug, Default)]
pub(crate) struct Suspects {
    /// Off when it was switched off: suspects that wait are granted as others are, and there are no new ones.
    pub isolation: Isolation,
    /// By the number that their leases name them by.
    holders: BTreeMap<u32, Holder>,
    by_name: BTreeMap<Arc<[u8]>, u32>,
    last_holder: u32,
    /// The suspects that are ready.
    pub waiting: List<Order>,
    pub waiting_len: u64,
    /// Suspects that are leased.
    pub on_trial: u32,
}

impl Suspects {
    /// The number of the consumer that is granted something now, and is there.
    pub fn holder_of(&mut self, name: &[u8]) -> u32 {
        if self.isolation == Isolation::Off || name.is_empty() {
            return NOBODY;
        }
        if let Some(holder) = self.by_name.get(name) {
            return *holder;
        }
        while self.last_holder == NOBODY || self.holders.contains_key(&self.last_holder) {
            self.last_holder = self.last_holder.wrapping_add(1);
        }
        let name: Arc<[u8]> = name.into();
        self.by_name.insert(name.clone(), self.last_holder);
        self.holders.insert(self.last_holder, Holder { name, leased: 0, gone_with: 0 });
        self.last_holder
    }

    /// Notes that a consumer was heard of.
    pub fn heard(&mut self, name: &[u8]) {
        if let Some(holder) = self.by_name.get(name).copied() {
            self.heard_of(holder);
        }
    }

    pub fn heard_of(&mut self, holder: u32) {
        if let Some(holder) = self.holders.get_mut(&holder) {
            holder.gone_with = 0;
        }
    }

    pub fn gone(&mut self, name: &[u8]) {
        let holder = self.by_name.get(name).and_then(|holder| self.holders.get_mut(holder));
        if let Some(holder) = holder {
            holder.gone_with = holder.leased;
        }
    }

    /// With how many leases the consumer was when it went, if it is gone.
    pub fn gone_with(&self, holder: u32) -> Option<u32> {
        let holder = self.holders.get(&holder).filter(|_| self.isolation == Isolation::On)?;
        Some(holder.gone_with).filter(|leases| *leases > 0)
    }

    /// Counts a lease on its consumer.
    pub fn leased(&mut self, holder: u32) {
        if let Some(holder) = self.holders.get_mut(&holder) {
            holder.leased += 1;
        }
    }

    /// Counts it off again; a consumer without leases is forgotten.
    pub fn ended(&mut self, holder: u32) {
        let Some(record) = self.holders.get_mut(&holder) else { return };
        record.leased -= 1;
        self.forget_idle(holder);
    }

    /// Forgets a consumer that has no leases.
    pub fn forget_idle(&mut self, holder: u32) {
        if let Some(record) = self.holders.get(&holder).filter(|record| record.leased == 0) {
            self.by_name.remove(&record.name);
            self.holders.remove(&holder);
        }
    }

    /// Whether a suspect could be granted now.
    pub fn has_ready(&self) -> bool {
        !self.waiting.is_empty() && (self.on_trial == 0 || self.isolation == Isolation::Off)
    }

    /// Forgets all leases and messages: they are gone.
    pub fn forget(&mut self) {
        *self = Self { isolation: self.isolation, last_holder: self.last_holder, ..Self::default() };
    }

    pub fn view(&self) -> SuspectsView {
        let Self { isolation, waiting_len, on_trial, .. } = *self;
        SuspectsView { isolation, waiting: waiting_len, on_trial }
    }

    /// Leases of each consumer, by its number.
    pub fn leases(&self) -> BTreeMap<u32, u32> {
        self.holders.iter().map(|(holder, record)| (*holder, record.leased)).collect()
    }

    pub fn check_invariants(&self) {
        assert_eq!(self.holders.len(), self.by_name.len(), "each consumer has one name");
        for (holder, record) in &self.holders {
            assert_eq!(self.by_name.get(&record.name), Some(holder), "a consumer is found by its name");
            assert!(record.leased > 0, "a consumer without leases is forgotten");
        }
    }
}

impl<'a> Wire<'a> for Suspects {
    fn put(&self, out: &mut Vec<u8>) {
        self.isolation.put(out);
        self.holders.put(out);
        self.last_holder.put(out);
        self.waiting.put(out);
        self.waiting_len.put(out);
        self.on_trial.put(out);
    }

    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let isolation = Wire::take(reader)?;
        let holders = BTreeMap::<u32, Holder>::take(reader)?;
        let by_name = holders.iter().map(|(holder, record)| (record.name.clone(), *holder)).collect();
        Ok(Self {
            isolation,
            holders,
            by_name,
            last_holder: Wire::take(reader)?,
            waiting: Wire::take(reader)?,
            waiting_len: Wire::take(reader)?,
            on_trial: Wire::take(reader)?,
        })
    }
}
