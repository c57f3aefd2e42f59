//! The partition's state machine, shared between the group that feeds it and everybody who reads it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use leasehold_catalogue::PartitionId;
use leasehold_partition::{History, Partition};

use crate::history::HistoryWriter;
use crate::limits::SNAPSHOT_LOG_FACTOR;
use crate::raft::{Applied, Machine, MachineError, Replacement};

/// One partition's state. It is locked for single operations only, and never together with anything else.
pub struct PartitionMachine {
    id: PartitionId,
    state: Mutex<Partition>,
    /// Where the lives of messages are written down, on every replica, so that they outlive a leader.
    history: Option<HistoryWriter>,
    /// Bytes applied since the last snapshot, and the weight of the state then.
    applied_bytes: AtomicU64,
    snapshot_weight_bytes: AtomicU64,
}

impl PartitionMachine {
    pub fn new(id: PartitionId, history: Option<HistoryWriter>) -> Self {
        Self {
            id,
            state: Mutex::new(Partition::new()),
            history,
            applied_bytes: AtomicU64::new(0),
            snapshot_weight_bytes: AtomicU64::new(0),
        }
    }

    /// The state, to read. A panic inside `apply` is a bug that halts the group; what it left is not read as if whole.
    pub fn read(&self) -> MutexGuard<'_, Partition> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last entry that the state holds, and the hash of the state. O(state), and nothing is applied meanwhile.
    pub fn digest(&self) -> (u64, u64) {
        let state = self.read();
        (state.applied_index(), state.state_hash())
    }

    /// What it took to make the last snapshot ([`Partition::weight_bytes`]); 0 before the first.
    pub fn snapshot_weight_bytes(&self) -> u64 {
        self.snapshot_weight_bytes.load(Ordering::Relaxed)
    }

    /// Whether so much was applied that a snapshot would shorten a restart: `bytes_min`, or [`SNAPSHOT_LOG_FACTOR`] times the weight of
    /// the last one.
    pub fn wants_snapshot(&self, bytes_min: u64) -> bool {
        let bytes = bytes_min.max(self.snapshot_weight_bytes().saturating_mul(SNAPSHOT_LOG_FACTOR));
        self.applied_bytes.load(Ordering::Relaxed) > bytes
    }
}

impl Machine for PartitionMachine {
    fn apply(&self, log_index: u64, payload: &Bytes) -> Result<Applied, MachineError> {
        self.applied_bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
        let collect = self.history.as_ref().map_or(History::Skip, HistoryWriter::collects);
        let mut state =
            self.state.lock().map_err(|_| MachineError("an earlier entry panicked".to_owned()))?;
        let applied = state.apply(log_index, payload, collect);
        drop(state);
        let mut applied = applied.map_err(|error| MachineError(error.to_string()))?;
        if let Some(history) = &self.history {
            history.append(self.id, log_index, std::mem::take(&mut applied.effects.history));
        }
        Ok(Applied::Partition(Box::new(applied)))
    }

    fn snapshot(&self) -> Vec<u8> {
        let state = self.read();
        let bytes = state.snapshot();
        let weight_bytes = state.weight_bytes(bytes.len());
        drop(state);
        self.applied_bytes.store(0, Ordering::Relaxed);
        self.snapshot_weight_bytes.store(weight_bytes, Ordering::Relaxed);
        bytes
    }

    fn read_snapshot(self: Arc<Self>, bytes: &[u8]) -> Result<Replacement, MachineError> {
        let restored = Partition::restore(bytes).map_err(|error| MachineError(error.to_string()))?;
        let weight_bytes = restored.weight_bytes(bytes.len());
        Ok(Box::new(move || {
            self.snapshot_weight_bytes.store(weight_bytes, Ordering::Relaxed);
            *self.read() = restored;
        }))
    }

    fn live_contents(&self) -> Vec<(u64, u64)> {
        self.read().live_contents().collect()
    }

    fn live_ranges(&self, log_index: u64) -> Vec<(u32, u32)> {
        self.read().live_ranges(log_index)
    }
}
