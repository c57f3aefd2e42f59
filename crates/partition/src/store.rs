//! What the shards of a partition share: the clocks, the counters that never repeat, the records and the timers.

use crate::arena::{Arena, NONE};
use crate::buckets::Buckets;
use crate::entries::Entries;
use crate::ids::{ContentRef, Receipt};
use crate::message::{Expiry, Group, Message, Side, Timer, slot_or_none};
use crate::notes::Notes;
use crate::runs::Messages;
use crate::wire::wire_struct;

#[derive(Debug)]
pub(crate) struct Store {
    pub log_time_ms: u64,
    pub wall_time_ms: u64,
    /// Every sequence, grant and outbox number below these was given out, and none is given out twice.
    pub next_sequence: u64,
    pub next_grant: u64,
    pub next_number: u64,
    pub messages: Messages,
    pub sides: Arena<Side>,
    pub groups: Arena<Group>,
    pub entries: Entries,
    /// Every leased message's side record, by the end of its lease.
    pub leases: Buckets<Timer>,
    /// Every delayed message's, by the end of its delay.
    pub delays: Buckets<Timer>,
    /// Every side record with `expiry_armed`, by `expiry_wall_ms`.
    pub expiries: Buckets<Expiry>,
}
wire_struct!(Store {
    log_time_ms,
    wall_time_ms,
    next_sequence,
    next_grant,
    next_number,
    messages,
    sides,
    groups,
    entries,
    leases,
    delays,
    expiries,
});

/// How a message was sent.
#[derive(Clone, Copy)]
pub(crate) struct Sent {
    pub content: ContentRef,
    pub wall_ms: u64,
}

impl Store {
    pub fn new() -> Self {
        Self {
            log_time_ms: 0,
            wall_time_ms: 0,
            next_sequence: 1,
            next_grant: 1,
            next_number: 1,
            messages: Messages::new(),
            sides: Arena::new(),
            groups: Arena::new(),
            entries: Entries::new(),
            leases: Buckets::default(),
            delays: Buckets::default(),
            expiries: Buckets::default(),
        }
    }

    /// About how many bytes `put` appends, and seldom fewer.
    pub fn len_bytes_about(&self) -> usize {
        const MESSAGE_BYTES: usize = 73;
        const FOLLOWER_BYTES: usize = 8;
        const SIDE_BYTES: usize = 144;
        const ENTRY_BYTES: usize = 80;
        const OTHER_BYTES: usize = 4096;
        let followers = self.messages.followers_about();
        let records = (self.messages.len() - followers) * MESSAGE_BYTES
            + followers * FOLLOWER_BYTES
            + self.sides.len() * SIDE_BYTES
            + self.entries.records.len() * ENTRY_BYTES;
        OTHER_BYTES + records
    }

    pub fn side(&self, slot: u32) -> Option<&Side> {
        self.side_of(&self.messages[slot])
    }

    pub fn side_of(&self, message: &Message) -> Option<&Side> {
        slot_or_none(message.side).map(|side| &self.sides[side])
    }

    /// The message's side record, made when it has none.
    pub fn side_slot(&mut self, slot: u32) -> u32 {
        if self.messages[slot].side == NONE {
            self.messages[slot].side = self.sides.insert(Side::new(slot));
        }
        self.messages[slot].side
    }

    pub fn side_mut(&mut self, slot: u32) -> &mut Side {
        let side = self.side_slot(slot);
        &mut self.sides[side]
    }

    /// What the entry of a message tells of it.
    pub fn sent(&self, message: &Message) -> Sent {
        let entry = &self.entries.records[message.entry];
        let content = ContentRef { log_index: entry.log_index, offset: message.offset, len: message.len };
        Sent { content, wall_ms: entry.wall_ms }
    }

    pub fn content(&self, message: &Message) -> ContentRef {
        self.sent(message).content
    }

    pub fn sent_wall_ms(&self, message: &Message) -> u64 {
        self.entries.records[message.entry].wall_ms
    }

    pub fn receipt(&self, slot: u32) -> Receipt {
        let grant = self.side(slot).map_or(0, |side| side.grant);
        Receipt { slot, sequence: self.messages[slot].sequence, grant }
    }

    /// Lets a lease end at another time, because its holder extends it or asks for it again. O(log deadlines).
    pub fn move_lease(&mut self, side: u32, deadline_ms: u64, lease_ms: u32, is_extended: bool) {
        let record = &mut self.sides[side];
        record.extended = is_extended;
        record.lease_ms = lease_ms;
        let old_ms = std::mem::replace(&mut record.deadline_ms, deadline_ms);
        self.leases.remove(&mut self.sides, old_ms, side);
        self.leases.insert(&mut self.sides, deadline_ms, side);
    }

    /// Takes a message off the times to live.
    pub fn disarm_expiry(&mut self, slot: u32) {
        let Some(side) = slot_or_none(self.messages[slot].side) else { return };
        if std::mem::replace(&mut self.sides[side].expiry_armed, false) {
            let expiry_wall_ms = self.sides[side].expiry_wall_ms;
            self.expiries.remove(&mut self.sides, expiry_wall_ms, side);
        }
    }

    /// Gives a message a time to live, unless it has an earlier one; 0 keeps the one it has.
    pub fn arm_expiry(&mut self, slot: u32, expiry_wall_ms: u64) {
        self.disarm_expiry(slot);
        let side = self.side_slot(slot);
        let earlier =
            [self.sides[side].expiry_wall_ms, expiry_wall_ms].into_iter().filter(|at| *at > 0).min();
        if let Some(at) = earlier {
            self.sides[side].expiry_wall_ms = at;
            self.sides[side].expiry_armed = true;
            self.expiries.insert(&mut self.sides, at, side);
        }
    }

    /// Frees a message that is in no list and no lease or delay timer any more.
    pub fn free(&mut self, slot: u32, notes: &mut Notes) {
        self.disarm_expiry(slot);
        let log_index = self.entries.detach(&mut self.messages, slot);
        let message = self.messages.remove(slot);
        if let Some(side) = slot_or_none(message.side) {
            self.sides.remove(side);
        }
        notes.freed(log_index, message.len);
    }
}
