//! How fast the shards of a queue redrive together. Each leader moves its shard's part of the rate, and their turns are spread:
//!
//! ```text
//!   2 a second, 4 shards     0   1   2   3   0   1   2   3       which shard moves a message, each 500 ms
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// What could not be moved in time is made up for so far back, and no further: it would be more than the rate.
const BEHIND_MAX: Duration = Duration::from_secs(1);

/// One shard's part of a rate, which is not 0.
pub struct Share {
    /// Of the whole queue.
    pub rate_per_s: u32,
    pub shards: u32,
    /// The shard's place among them.
    pub at: u32,
}

impl Share {
    /// When the first message may go.
    pub fn first(&self, now: Instant) -> Instant {
        now + self.time_of(self.at)
    }

    /// How many messages may go that were due since `due`, and since when the next is due.
    pub fn take(&self, due: Instant, now: Instant, items_max: u32) -> (u32, Instant) {
        if now < due {
            return (0, due);
        }
        let late = (now - due).min(BEHIND_MAX);
        let each = self.time_of(self.shards);
        let passed = u32::try_from(late.as_micros() / each.as_micros()).unwrap_or(u32::MAX);
        let items = passed.saturating_add(1).min(items_max);
        (items, now - late + each * items)
    }

    /// The time that the queue takes for so many messages.
    fn time_of(&self, messages: u32) -> Duration {
        Duration::from_micros((u64::from(messages) * 1_000_000).div_ceil(u64::from(self.rate_per_s)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN_MS: u64 = 60_000;
    const PASS_MS: u64 = 100;

    /// When the messages of all shards move, in milliseconds from the start.
    fn moved_ms(rate_per_s: u32, shards: u32) -> Vec<u64> {
        let start = Instant::now();
        let mut moved = Vec::new();
        for at in 0..shards {
            let share = Share { rate_per_s, shards, at };
            let mut due = share.first(start);
            for ms in (0..RUN_MS).step_by(PASS_MS as usize) {
                let (items, next) = share.take(due, start + Duration::from_millis(ms), 256);
                due = next;
                moved.extend((0..items).map(|_| ms));
            }
        }
        moved.sort_unstable();
        moved
    }

    #[test]
    fn shards_move_the_rate_together_and_no_more() {
        for (rate, shards) in [(1, 1), (1, 4), (2, 4), (3, 4), (7, 1), (10, 4), (500, 3)] {
            let moved = moved_ms(rate, shards);
            let rate = rate as usize;
            assert!((rate * 59..=rate * 60).contains(&moved.len()), "{} of {rate} a second", moved.len());
            // Beyond one message each pass, those of a pass go at once.
            let is_even = moved.windows(rate + 2).all(|some| some[rate + 1] - some[0] >= 1_000);
            assert!(is_even || rate > 10, "{rate} a second of {shards} shards");
        }
    }

    #[test]
    fn a_long_wait_is_not_made_up_for() {
        let share = Share { rate_per_s: 10, shards: 1, at: 0 };
        let due = share.first(Instant::now());
        let now = due + Duration::from_secs(3_600);
        assert_eq!(share.take(due, now, 256), (11, now + Duration::from_millis(100)));
        assert_eq!(share.take(due, now, 3), (3, now - Duration::from_millis(700)));
    }
}
