//! What a queue's owner may choose.

use crate::ids::QueueId;
use crate::limits::{
    DEDUP_WINDOW_MS_MAX, DELAY_MS_MAX, LEASE_MS_MAX, RECEIVES_MAX, RETENTION_MS_MAX, RETENTION_MS_MIN,
    RETRY_FLOOR_PER_S_MAX, RETRY_PERCENT_MAX,
};
use crate::wire::{DecodeError, wire_enum, wire_struct};

/// How a queue orders its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Best-effort order.
    #[default]
    Standard,
    /// Strict order within each message group.
    Fifo,
}
wire_enum!(Kind { 0 => Standard {}, 1 => Fifo {} });

/// Where messages go that were received too often, and how often that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub queue: QueueId,
    pub receives_max: u32,
}
wire_struct!(DeadLetter { queue, receives_max });

/// How many redeliveries a standard queue's shard allows; what is beyond it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Redeliveries for a hundred first deliveries.
    pub percent: u32,
    /// Redeliveries a second that are allowed whatever else happens.
    pub floor_per_s: u32,
}
wire_struct!(RetryBudget { percent, floor_per_s });

impl RetryBudget {
    /// Checks every field against `limits`.
    pub fn validate(&self) -> Result<(), DecodeError> {
        if !(1..=RETRY_PERCENT_MAX).contains(&self.percent) {
            return Err(DecodeError::OutOfRange("percent"));
        }
        match (1..=RETRY_FLOOR_PER_S_MAX).contains(&self.floor_per_s) {
            true => Ok(()),
            false => Err(DecodeError::OutOfRange("floor_per_s")),
        }
    }
}

/// Whether messages whose consumer died with them are kept apart until it is known which one kills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    #[default]
    Off,
    On,
}
wire_enum!(Isolation { 0 => Off {}, 1 => On {} });

/// The settings of a queue, the same on all its shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub kind: Kind,
    /// The lease of a receive that names none.
    pub lease_ms: u32,
    /// The delay of a message that names none.
    pub delay_ms: u32,
    pub retention_ms: u64,
    pub dead_letter: Option<DeadLetter>,
    /// How long a deduplication id is remembered; 0 remembers none.
    pub dedup_window_ms: u64,
    /// Leases at any time; a standard queue answers `OverLimit` beyond it, a FIFO queue answers with nothing.
    pub in_flight_max: u32,
    /// Messages held (ready, leased and delayed); 0 is unbounded.
    pub length_max: u64,
    /// Bytes of contents held; 0 is unbounded.
    pub bytes_max: u64,
}
wire_struct!(Settings {
    kind,
    lease_ms,
    delay_ms,
    retention_ms,
    dead_letter,
    dedup_window_ms,
    in_flight_max,
    length_max,
    bytes_max,
});

impl Default for Settings {
    fn default() -> Self {
        Self {
            kind: Kind::Standard,
            lease_ms: 30_000,
            delay_ms: 0,
            retention_ms: 4 * 24 * 60 * 60 * 1000,
            dead_letter: None,
            dedup_window_ms: 300_000,
            in_flight_max: 120_000,
            length_max: 0,
            bytes_max: 0,
        }
    }
}

impl Settings {
    /// Checks every field against `limits`.
    pub fn validate(&self) -> Result<(), DecodeError> {
        let receives_ok = |dead: DeadLetter| (1..=RECEIVES_MAX).contains(&dead.receives_max);
        let checks = [
            (self.lease_ms <= LEASE_MS_MAX, "lease_ms"),
            (self.delay_ms <= DELAY_MS_MAX, "delay_ms"),
            ((RETENTION_MS_MIN..=RETENTION_MS_MAX).contains(&self.retention_ms), "retention_ms"),
            (self.dead_letter.is_none_or(receives_ok), "receives_max"),
            (self.dedup_window_ms <= DEDUP_WINDOW_MS_MAX, "dedup_window_ms"),
            (self.in_flight_max >= 1, "in_flight_max"),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some((_, field)) => Err(DecodeError::OutOfRange(field)),
            None => Ok(()),
        }
    }
}
