//! One partition's state.

use crate::effects::{Applied, ApplyError, History};
use crate::ids::QueueId;
use crate::view::{Deadline, MessageView, OutboxItem, Peek, ShardView};

/// The queues of one partition.
#[derive(Debug, Default)]
pub struct Partition {}

impl Partition {
    pub fn new() -> Self {
        todo!()
    }
    /// Executes one entry.
    pub fn apply(
        &mut self,
        _log_index: u64,
        _payload: &[u8],
        _history: History,
    ) -> Result<Applied, ApplyError> {
        todo!()
    }
    pub fn log_time_ms(&self) -> u64 {
        todo!()
    }
    pub fn wall_time_ms(&self) -> u64 {
        todo!()
    }
    pub fn applied_index(&self) -> u64 {
        todo!()
    }
    pub fn machine_version(&self) -> u32 {
        todo!()
    }
    pub fn revision_min(&self) -> u64 {
        todo!()
    }
    pub fn shard(&self, _queue: QueueId) -> Option<ShardView> {
        todo!()
    }
    /// Whether a receive now would deliver.
    pub fn has_ready(&self, _queue: QueueId) -> bool {
        todo!()
    }
    pub fn next_deadline(&self) -> Option<Deadline> {
        todo!()
    }
    pub fn queues(&self) -> impl Iterator<Item = QueueId> + '_ {
        std::iter::empty()
    }
    /// Queues with a non-empty outbox.
    pub fn outbox_queues(&self) -> impl Iterator<Item = QueueId> + '_ {
        std::iter::empty()
    }
    /// The targets of a queue's outbox, with the items waiting for each.
    pub fn outbox_targets(&self, _queue: QueueId) -> Vec<(QueueId, u64)> {
        todo!()
    }
    /// The first items for one target, by number.
    pub fn outbox(&self, _queue: QueueId, _target: QueueId, _limit: usize) -> Vec<OutboxItem> {
        todo!()
    }
    /// Log indexes that hold live contents, with the live bytes of each, in order.
    pub fn live_contents(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        std::iter::empty()
    }
    /// The live contents of one entry, by offset.
    pub fn live_ranges(&self, _log_index: u64) -> Vec<(u32, u32)> {
        todo!()
    }
    pub fn peek(&self, _queue: QueueId, _after_sequence: u64, _limit: usize) -> Peek {
        todo!()
    }
    pub fn find(&self, _sequence: u64) -> Option<MessageView> {
        todo!()
    }
    pub fn state_hash(&self) -> u64 {
        todo!()
    }
    pub fn snapshot(&self) -> Vec<u8> {
        todo!()
    }
    pub fn restore(_bytes: &[u8]) -> Result<Self, SnapshotError> {
        todo!()
    }
    /// Recounts everything; panics with a message when something is off.
    pub fn check_invariants(&self) {
        todo!()
    }
}

/// Why a snapshot was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// The checksum does not match.
    Damaged,
    Decode(crate::DecodeError),
}
