//! The names of things: queues, messages, receipts, requests, and the place of a content in the log.

use crate::wire::{DecodeError, Reader, Wire, wire_struct};

/// A queue, as the catalogue numbers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u64);

impl<'a> Wire<'a> for QueueId {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self(u64::take(reader)?))
    }
}

/// One message of a partition. Slots are used again, sequences never: the pair names one message for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageKey {
    pub slot: u32,
    pub sequence: u64,
}
wire_struct!(MessageKey { slot, sequence });

/// The proof of one lease. `grant` grows strictly over the whole partition: it is the fencing token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Receipt {
    pub slot: u32,
    pub sequence: u64,
    pub grant: u64,
}
wire_struct!(Receipt { slot, sequence, grant });

impl Receipt {
    pub fn key(&self) -> MessageKey {
        MessageKey { slot: self.slot, sequence: self.sequence }
    }
}

/// Where a message's content lies: the range of an entry's payload that `Content::decode` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRef {
    pub log_index: u64,
    pub offset: u32,
    pub len: u32,
}
wire_struct!(ContentRef { log_index, offset, len });

/// Where a dead-lettered or redriven message came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub queue: QueueId,
    pub partition: u32,
    pub sequence: u64,
    pub receive_count: u32,
}
wire_struct!(Origin { queue, partition, sequence, receive_count });

/// The queue, on its partition, that a transfer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    pub partition: u32,
    pub queue: QueueId,
}
wire_struct!(Source { partition, queue });

/// The name of a client's request. A request that comes again under the same name gets its first reply and changes nothing.
///
/// A session must not have more than `SESSION_REPLIES_MAX` requests under way. All its requests below `completed_below` are
/// answered for good, so their replies may be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    pub session: u64,
    pub sequence: u64,
    pub completed_below: u64,
}
wire_struct!(RequestId { session, sequence, completed_below });
