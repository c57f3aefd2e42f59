//! The byte form of a shard: what it has itself and its usage, in the order in which they came to be.

use crate::lanes::Lanes;
use crate::list::List;
use crate::seldom::Seldom;
use crate::shard::Shard;
use crate::usage::Usage;
use crate::wire::{DecodeError, Reader, Wire};

impl<'a> Wire<'a> for Shard {
    fn put(&self, out: &mut Vec<u8>) {
        let usage = &*self.usage;
        self.queue.put(out);
        self.settings.put(out);
        self.revision.put(out);
        self.created_sequence.put(out);
        self.purged_sequence.put(out);
        self.counters.put(out);
        self.totals().put(out);
        self.lanes.put(out);
        usage.groups.put(out);
        usage.turns.put(out);
        self.age.put(out);
        usage.overdue.put(out);
        usage.outboxes.put(out);
        usage.arrived.put(out);
        usage.redrive.put(out);
        self.retention_due_ms.put(out);
        usage.tenants.put(out);
        usage.headroom.put(out);
        usage.headroom_due_ms.put(out);
        usage.damping.put(out);
        usage.damping_due_ms.put(out);
        usage.suspects.put(out);
    }

    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let mut shard = Self {
            queue: Wire::take(reader)?,
            settings: Wire::take(reader)?,
            revision: Wire::take(reader)?,
            created_sequence: Wire::take(reader)?,
            purged_sequence: Wire::take(reader)?,
            counters: Wire::take(reader)?,
            sent: 0,
            lanes: Lanes::default(),
            age: List::default(),
            retention_due_ms: None,
            usage: Seldom::untouched(),
        };
        let mut usage = Usage { totals: Wire::take(reader)?, ..Usage::default() };
        shard.sent = std::mem::take(&mut usage.totals.sent);
        shard.lanes = Wire::take(reader)?;
        usage.groups = Wire::take(reader)?;
        usage.turns = Wire::take(reader)?;
        shard.age = Wire::take(reader)?;
        usage.overdue = Wire::take(reader)?;
        usage.outboxes = Wire::take(reader)?;
        usage.arrived = Wire::take(reader)?;
        usage.redrive = Wire::take(reader)?;
        shard.retention_due_ms = Wire::take(reader)?;
        usage.tenants = reader.take_since(2)?;
        usage.headroom = reader.take_since(2)?;
        usage.headroom_due_ms = reader.take_since(2)?;
        usage.damping = reader.take_since(3)?;
        usage.damping_due_ms = reader.take_since(3)?;
        usage.suspects = reader.take_since(3)?;
        shard.usage = Seldom::of(usage);
        Ok(shard)
    }
}
