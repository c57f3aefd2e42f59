//! What an entry does beyond its replies, gathered while it is applied.

use std::collections::{BTreeMap, BTreeSet};

use crate::effects::{Event, EventKind, History};
use crate::ids::QueueId;

#[derive(Debug)]
pub(crate) struct Notes {
    /// Queues in which something may have become deliverable.
    pub ready: BTreeSet<QueueId>,
    pub outbox: BTreeSet<QueueId>,
    pub freed: BTreeMap<u64, u64>,
    pub retained_bytes: u64,
    pub events: Vec<Event>,
    history: History,
    log_time_ms: u64,
    wall_time_ms: u64,
}

impl Notes {
    pub fn new(history: History, log_time_ms: u64, wall_time_ms: u64) -> Self {
        Self {
            ready: BTreeSet::new(),
            outbox: BTreeSet::new(),
            freed: BTreeMap::new(),
            retained_bytes: 0,
            events: Vec::new(),
            history,
            log_time_ms,
            wall_time_ms,
        }
    }

    /// Notes an event, made only when somebody collects it.
    pub fn event(&mut self, queue: QueueId, sequence: u64, kind: impl FnOnce() -> EventKind) {
        if self.history == History::Skip {
            return;
        }
        let kind = kind();
        if self.history == History::All || kind.is_unusual() {
            let (log_time_ms, wall_time_ms) = (self.log_time_ms, self.wall_time_ms);
            self.events.push(Event { log_time_ms, wall_time_ms, queue, sequence, kind });
        }
    }

    pub fn freed(&mut self, log_index: u64, bytes: u32) {
        *self.freed.entry(log_index).or_default() += u64::from(bytes);
    }
}
