//! The partition's own clock: where the log's last stamp stands, plus the monotonic time that has passed since.
//!
//! Wall clocks of nodes need not agree and may jump: they never enter. A new leader starts from the last stamp in its log, so time
//! stood still between the old leader's last entry and its own start, and leases got longer, never shorter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leasehold_partition::limits::STAMP_STEP_MS_MAX;
use tokio::time::Instant;

/// Stamps of one leadership. Stamps never fall.
#[derive(Debug)]
pub struct LogClock {
    base_ms: u64,
    base: Instant,
    last_ms: u64,
}

impl LogClock {
    /// Starts from the log time that everything applied so far has reached.
    pub fn start(log_time_ms: u64, now: Instant) -> Self {
        Self { base_ms: log_time_ms, base: now, last_ms: log_time_ms }
    }

    /// The time for the next entry. After a long idleness it moves in bounded steps, as `apply` does.
    pub fn stamp(&mut self, now: Instant) -> u64 {
        let stamp_ms = self.now_ms(now).min(self.last_ms + STAMP_STEP_MS_MAX);
        if stamp_ms < self.now_ms(now) {
            *self = Self::start(stamp_ms, now);
        }
        self.last_ms = stamp_ms;
        stamp_ms
    }

    /// The time it is, without stamping anything.
    pub fn now_ms(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.base);
        self.last_ms.max(self.base_ms + u64::try_from(passed.as_millis()).unwrap_or(u64::MAX / 2))
    }

    /// When the clock will show `log_ms`.
    pub fn instant_of(&self, log_ms: u64) -> Instant {
        self.base + Duration::from_millis(log_ms.saturating_sub(self.base_ms))
    }
}

/// The wall clock, for retention and for what people read; milliseconds since 1970.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_follow_monotonic_time_and_never_fall() {
        let start = Instant::now();
        let mut clock = LogClock::start(1_000, start);
        assert_eq!(clock.stamp(start), 1_000);
        assert_eq!(clock.stamp(start + Duration::from_millis(7)), 1_007);
        assert_eq!(clock.stamp(start + Duration::from_millis(3)), 1_007);
    }

    #[test]
    fn a_long_silence_advances_by_one_bounded_step() {
        let start = Instant::now();
        let mut clock = LogClock::start(0, start);
        let later = start + Duration::from_millis(10 * STAMP_STEP_MS_MAX);
        assert_eq!(clock.stamp(later), STAMP_STEP_MS_MAX);
        assert_eq!(clock.stamp(later + Duration::from_millis(5)), STAMP_STEP_MS_MAX + 5);
        assert_eq!(clock.instant_of(STAMP_STEP_MS_MAX + 5), later + Duration::from_millis(5));
    }
}
