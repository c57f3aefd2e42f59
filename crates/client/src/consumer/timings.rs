//! How long handling takes, so that leases are extended when they have to be, and as much waits here as can be handled soon.
//!
//! A histogram with buckets that grow by a quarter of an octave. It forgets by halving: the last thousand or two count.

use std::time::Duration;

/// Four buckets for each doubling, from 1 ms to over 12 h.
const BUCKETS: usize = 104;
const BUCKETS_PER_DOUBLING: f64 = 4.0;
/// Measurements before anything is concluded.
const COUNT_MIN: u32 = 32;
/// Measurements after which all counts are halved.
const COUNT_MAX: u32 = 2_048;

#[derive(Debug)]
pub(super) struct Timings {
    counts: [u32; BUCKETS],
    count: u32,
}

impl Timings {
    pub(super) fn new() -> Self {
        Self { counts: [0; BUCKETS], count: 0 }
    }

    pub(super) fn record(&mut self, took: Duration) {
        if self.count == COUNT_MAX {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.count = self.counts.iter().sum();
        }
        self.counts[bucket(took)] += 1;
        self.count += 1;
    }

    /// What 99 of 100 do not exceed; `None` while too little is known.
    pub(super) fn p99(&self) -> Option<Duration> {
        self.quantile(99)
    }

    /// What half of them do not exceed.
    pub(super) fn median(&self) -> Option<Duration> {
        self.quantile(50)
    }

    fn quantile(&self, percent: u32) -> Option<Duration> {
        if self.count < COUNT_MIN {
            return None;
        }
        let rank = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        let reached = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        Some(end_of(reached.unwrap_or(BUCKETS - 1)))
    }
}

fn bucket(took: Duration) -> usize {
    let doublings = (took.as_secs_f64() * 1_000.0).max(1.0).log2();
    ((doublings * BUCKETS_PER_DOUBLING).ceil() as usize).min(BUCKETS - 1)
}

/// The longest time in a bucket.
fn end_of(bucket: usize) -> Duration {
    Duration::from_secs_f64((bucket as f64 / BUCKETS_PER_DOUBLING).exp2() / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_quantile_is_at_most_a_bucket_too_long() {
        let mut timings = Timings::new();
        for number in 1..=1_000 {
            timings.record(ms(number));
        }
        let (p99, median) = (timings.p99().unwrap(), timings.median().unwrap());
        assert!(p99 >= ms(990) && p99 < ms(990).mul_f64(1.2), "{p99:?}");
        assert!(median >= ms(500) && median < ms(500).mul_f64(1.2), "{median:?}");
    }

    #[test]
    fn little_says_nothing_and_the_old_is_forgotten() {
        let mut timings = Timings::new();
        for _ in 1..COUNT_MIN {
            timings.record(ms(5));
        }
        assert_eq!(timings.p99(), None);
        timings.record(Duration::from_secs(100_000));
        assert!(timings.p99().unwrap() > Duration::from_secs(12 * 3600));
        for _ in 0..COUNT_MAX * 8 {
            timings.record(ms(1));
        }
        assert!(timings.p99().unwrap() < ms(2));
    }
}
