//! A queue, as requests need it: the catalogue's own record, read in the words of the partitions.

use std::sync::Arc;

use leasehold_catalogue::{PartitionId, Queue, QueueKind, QueueSettings};
use leasehold_partition::{self as partition, Isolation, QueueId, RetryBudget, Settings};

use crate::replica::WantedShard;

/// A queue as it was when it was looked up. It shares the record of the catalogue: a node may know a million queues.
#[derive(Debug, Clone)]
pub struct QueueInfo(Arc<Queue>);

impl QueueInfo {
    pub(crate) fn of(queue: &Arc<Queue>) -> Self {
        Self(queue.clone())
    }

    pub fn is_fifo(&self) -> bool {
        self.0.settings.kind() == QueueKind::Fifo
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether messages without a deduplication id get one from their content.
    pub fn content_deduplication(&self) -> bool {
        self.0.settings.content_deduplication
    }

    /// Bytes that a message may have with its attributes.
    pub fn message_bytes_max(&self) -> usize {
        self.0.settings.message_bytes_max as usize
    }

    /// How long a receive waits that leaves it to the queue.
    pub fn wait_ms(&self) -> u64 {
        self.0.settings.wait_ms
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.0.settings.labels.get(name).map(String::as_str)
    }

    pub(crate) fn id(&self) -> QueueId {
        QueueId(self.0.id)
    }

    /// The lease of a receive that names none.
    pub(crate) fn lease_ms(&self) -> u64 {
        self.0.settings.lease_ms
    }

    /// Up to where leases grow; 0 for not at all.
    pub(crate) fn adaptive_lease_ms_max(&self) -> u64 {
        self.0.settings.adaptive_lease_ms_max
    }

    pub(crate) fn isolation(&self) -> Isolation {
        if self.0.settings.isolate_suspects { Isolation::On } else { Isolation::Off }
    }

    /// In the order in which message groups are dealt to them.
    pub(crate) fn shards(&self) -> impl ExactSizeIterator<Item = PartitionId> + '_ {
        self.0.partitions()
    }

    pub(crate) fn has_shard_on(&self, partition: PartitionId) -> bool {
        self.0.shards.contains(&partition.0)
    }

    /// The shard of a message group.
    pub(crate) fn shard_of_group(&self, group: &[u8]) -> Option<PartitionId> {
        leasehold_catalogue::shard_of_group(&self.0.shards, group)
    }

    /// The queue's shard on a partition, if it has one there. `revision` is that of the catalogue it was found in.
    pub(crate) fn wanted_on(&self, partition: PartitionId, revision: u64) -> Option<WantedShard> {
        self.has_shard_on(partition).then(|| WantedShard {
            settings: partition_settings(&self.0.settings),
            retry_budget: shard_budget(&self.0.settings, self.0.shards.len() as u64),
            isolation: self.isolation(),
            changed: self.0.revision,
            revision,
        })
    }
}

/// A shard's part of the retry budget: its own share, and of the floor an equal part, rounded up so that none is without.
fn shard_budget(settings: &QueueSettings, shards: u64) -> Option<RetryBudget> {
    let floor_per_s = settings.retry_floor_per_s().div_ceil(shards.max(1));
    (settings.retry_percent > 0)
        .then(|| RetryBudget { percent: narrow(settings.retry_percent), floor_per_s: narrow(floor_per_s) })
}

/// The catalogue's limits are below what these types hold.
fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn partition_settings(settings: &QueueSettings) -> Settings {
    Settings {
        kind: match settings.kind() {
            QueueKind::Standard => partition::Kind::Standard,
            QueueKind::Fifo => partition::Kind::Fifo,
        },
        lease_ms: narrow(settings.lease_ms),
        delay_ms: narrow(settings.delay_ms),
        retention_ms: settings.retention_ms,
        dead_letter: settings.dead_letter.map(|dead_letter| partition::DeadLetter {
            queue: QueueId(dead_letter.queue),
            receives_max: dead_letter.receives_max,
        }),
        dedup_window_ms: settings.deduplication_window_ms,
        in_flight_max: narrow(settings.in_flight_max),
        length_max: settings.length_max,
        bytes_max: settings.bytes_max,
    }
}
