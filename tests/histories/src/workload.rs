//! What is sent: everything about a message follows from its row, so that a history says it by its first line.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub const LEASE: Duration = Duration::from_millis(1_500);
/// Receives after which a message is dead, in the workload about that.
pub const RECEIVES_MAX: u32 = 3;

const GROUPS: u64 = 64;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// One standard queue.
    #[default]
    Queue,
    /// A FIFO queue with 64 message groups.
    Fifo,
    /// A third of the messages is delayed by up to 3 s.
    Delays,
    /// Every message has a deduplication id; a part of them is sent again, and all of which nobody knows whether they were sent.
    Deduplication,
    /// A message that is received three times in vain goes to a dead-letter queue, which is read at the end.
    DeadLetter,
    /// Leases of many lengths that are extended, outlived and used too late.
    Leases,
    /// One standard queue, and many others that are made, filled, deleted and made again.
    Queues,
}

impl Workload {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The longest pause of a sender between two batches. Groups and dead messages take more time to be worked off.
    pub fn pause_ms_max(self) -> u64 {
        match self {
            Self::Queue => 10,
            Self::Queues => 40,
            // Few enough that what is ready is taken at once: how late a lease ends shows.
            Self::Leases => 100,
            Self::Delays | Self::Deduplication => 20,
            Self::DeadLetter => 50,
            Self::Fifo => 300,
        }
    }

    /// How many of a hundred batches that were sent are sent again.
    pub fn repeated_percent(self) -> u64 {
        if self == Self::Deduplication { 20 } else { 0 }
    }
}

/// The message group of a row. Three in a row are of one group, so that a batch has several of it.
pub fn group_of(row: u64) -> u64 {
    row / 3 % GROUPS
}

pub fn delay_of(row: u64) -> Duration {
    if row.is_multiple_of(3) { Duration::from_millis(row * 7_919 % 3_000) } else { Duration::ZERO }
}
