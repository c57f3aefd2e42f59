//! How often which duration was measured, in buckets that grow with the duration.
//!
//! ```text
//!   ms      0 1 2 .. 15 | 16-17 18-19 .. 30-31 | 32-35 36-39 .. 60-63 | ..      each octave in eight buckets
//!   counts  [          first: 3 |  9  120  40  2 ]                              only those from the first to the last in use
//! ```
//!
//! Below 16 ms buckets are exact; above, one is an eighth of its lower end wide at most. So a quantile is never below the true
//! one, and above it by an eighth at most.

use crate::limits::LEASE_MS_MAX;
use crate::wire::wire_struct;

/// Buckets of an octave, as a power of two.
const OCTAVE_BITS: u32 = 3;
const OCTAVE: u64 = 1 << OCTAVE_BITS;
/// Buckets in all.
const BUCKETS_MAX: usize = bucket_of(LEASE_MS_MAX as u64) + 1;

const _: () = assert!(BUCKETS_MAX <= u8::MAX as usize);

/// A histogram of milliseconds. Counts stop at the highest number instead of starting again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// The bucket of the first count.
    first: u8,
    /// Up to the last bucket in use; both ends are above zero.
    counts: Vec<u32>,
}
wire_struct!(Histogram { first, counts });

const fn bucket_of(ms: u64) -> usize {
    if ms < OCTAVE {
        return ms as usize;
    }
    let octave = ms.ilog2() - OCTAVE_BITS;
    (octave as u64 * OCTAVE + (ms >> octave)) as usize
}

/// The longest duration of a bucket.
const fn up_to_ms(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < OCTAVE {
        return bucket;
    }
    let octave = bucket / OCTAVE - 1;
    ((bucket % OCTAVE + OCTAVE + 1) << octave) - 1
}

impl Histogram {
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Counts one duration; one above the longest lease counts as that. Allocates when a bucket is used for the first time.
    pub fn record(&mut self, ms: u64) {
        self.record_many(ms, 1);
    }

    /// Counts a duration so many times: with `buckets`, the way to move a histogram from one place to another.
    pub fn record_many(&mut self, ms: u64, count: u32) {
        if count > 0 {
            let bucket = bucket_of(ms.min(u64::from(LEASE_MS_MAX)));
            let counted = self.count_of(bucket);
            *counted = counted.saturating_add(count);
        }
    }

    /// The count of a bucket, made when there is none.
    fn count_of(&mut self, bucket: usize) -> &mut u32 {
        if self.counts.is_empty() {
            self.first = bucket as u8;
        }
        let first = usize::from(self.first);
        if bucket < first {
            self.counts.splice(0..0, std::iter::repeat_n(0, first - bucket));
            self.first = bucket as u8;
        }
        let at = bucket - usize::from(self.first);
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        &mut self.counts[at]
    }

    /// Counts everything that `other` has counted.
    pub fn add(&mut self, other: &Self) {
        other.buckets().for_each(|(up_to_ms, count)| self.record_many(up_to_ms, count));
    }

    /// The buckets in use: the longest duration of each, and how often it was met.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        let numbered = (usize::from(self.first)..).zip(&self.counts);
        numbered.filter(|(_, count)| **count > 0).map(|(bucket, count)| (up_to_ms(bucket), *count))
    }

    /// How many durations were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// The duration that `permille` of a thousand durations do not exceed, from above; 0 of nothing. O(buckets).
    pub fn quantile_ms(&self, permille: u32) -> u64 {
        let rank = (self.total() * u64::from(permille)).div_ceil(1000).max(1);
        let mut seen = 0;
        let reached = self.buckets().find(|(_, count)| {
            seen += u64::from(*count);
            seen >= rank
        });
        reached.map_or(0, |(up_to_ms, _)| up_to_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_hold_what_is_in_their_range() {
        for bucket in 0..BUCKETS_MAX {
            let last = up_to_ms(bucket);
            assert_eq!(bucket_of(last), bucket);
            assert_eq!(bucket_of(last + 1), bucket + 1);
        }
        assert_eq!(
            (0..16).map(|ms| up_to_ms(bucket_of(ms))).collect::<Vec<_>>(),
            (0..16).collect::<Vec<_>>()
        );
    }

    /// The bound of the error, for every duration up to 100 s and a sample of the longer ones.
    #[test]
    fn a_bucket_is_an_eighth_wide_at_most() {
        for ms in (0..100_000).chain((100_000..=u64::from(LEASE_MS_MAX)).step_by(997)) {
            let up_to = up_to_ms(bucket_of(ms));
            assert!(up_to >= ms && (up_to - ms) * 8 <= ms, "{ms} counts as {up_to}");
        }
    }

    #[test]
    fn quantiles_are_those_of_a_sorted_list_and_an_eighth_more_at_most() {
        let mut histogram = Histogram::default();
        let mut state = 7u64;
        let mut all: Vec<u64> = (0..5_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) % (1 << (state >> 60))
            })
            .collect();
        all.iter().for_each(|ms| histogram.record(*ms));
        all.sort_unstable();
        for permille in [0, 1, 250, 500, 990, 999, 1000] {
            let rank = (all.len() * permille as usize).div_ceil(1000).max(1);
            let (truth, shown) = (all[rank - 1], histogram.quantile_ms(permille));
            assert!(shown >= truth && (shown - truth) * 8 <= truth, "{permille}: {shown} for {truth}");
        }
        assert_eq!(histogram.total(), 5_000);
    }

    #[test]
    fn counts_can_be_added_up_and_stop_at_the_highest() {
        let (mut left, mut right) = (Histogram::default(), Histogram::default());
        [40, 3, 1_000].iter().for_each(|ms| left.record(*ms));
        [3, 90_000_000, 0].iter().for_each(|ms| right.record(*ms));
        left.add(&right);
        let shown: Vec<_> = left.buckets().collect();
        let longest = up_to_ms(bucket_of(u64::from(LEASE_MS_MAX)));
        assert_eq!(shown, [(0, 1), (3, 2), (43, 1), (1_023, 1), (longest, 1)]);
        assert_eq!((Histogram::default().quantile_ms(500), Histogram::default().total()), (0, 0));
        left.record_many(0, u32::MAX);
        assert_eq!(left.buckets().next(), Some((0, u32::MAX)));
    }
}
