//! What is sent: everything about a message follows from its row, so that a history says it by its first line.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub const LEASE: Duration = Duration::from_millis(1_500);
/// Receives after which a message is dead, in the workload about that.
pub const RECEIVES_MAX: u32 = 3;

const GROUPS: u64 = 64;

/// Producers and consumers of the workload of streams.
pub const PRODUCERS: u64 = 4;
pub const CONSUMERS: u64 = 6;
/// Few, so that several messages of one wait for each other.
const STREAM_GROUPS: u64 = 16;

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
    /// Producers and consumers of the client crate, on a standard queue and on one with 16 message groups.
    Streams,
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
            Self::Fifo | Self::Streams => 300,
        }
    }

    /// Whether the simulation can run it: it has clients of its own, and none of the client crate.
    pub fn is_simulated(self) -> bool {
        self != Self::Streams
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

/// A row of the workload of streams: a message in the life of a producer, which are numbered together.
pub fn row_of_stream(life: u64, place: u64) -> u64 {
    (life << 32) | place
}

/// The life of a producer that sent a row.
pub fn life_of(row: u64) -> u64 {
    row >> 32
}

/// The number of the life that a producer lives after so many others.
pub fn life_of_producer(producer: u64, lived: u64) -> u64 {
    lived * PRODUCERS + producer
}

fn producer_of(life: u64) -> u64 {
    life % PRODUCERS
}

/// Whether a life sends to the queue with message groups.
pub fn is_ordered(life: u64) -> bool {
    producer_of(life).is_multiple_of(2)
}

/// Whether a life has one batch under way at a time.
pub fn is_one_by_one(life: u64) -> bool {
    (producer_of(life) / 2).is_multiple_of(2)
}

/// The message group of a row of the workload of streams. Three in a row are of one.
pub fn stream_group_of(row: u64) -> Option<u64> {
    is_ordered(life_of(row)).then_some((row & u64::from(u32::MAX)) / 3 % STREAM_GROUPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_a_stream_says_who_sent_it_and_how() {
        for (producer, lived) in [(0, 0), (1, 3), (2, 7), (3, 1)] {
            let life = life_of_producer(producer, lived);
            let row = row_of_stream(life, 50);
            assert_eq!((life_of(row), producer_of(life)), (life, producer));
            assert_eq!(is_ordered(life), producer == 0 || producer == 2);
            assert_eq!(is_one_by_one(life), producer < 2);
            assert_eq!(stream_group_of(row), is_ordered(life).then_some(0));
        }
        assert_eq!(stream_group_of(u64::MAX), None, "a body that nobody sent is of no group");
    }
}
