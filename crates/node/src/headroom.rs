//! What the leaders have measured of a queue's consumers, added up over its shards and put beside its lease.

mod adaptive;
mod advice;

use std::collections::BTreeMap;
use std::sync::Arc;

use leasehold_partition::Measure;
use leasehold_proto::v1::{Advice, Headroom, HeadroomBucket, ShardDescription};

pub use adaptive::lease_ms;

/// What a queue's description says of its headroom.
pub struct Report {
    /// Of all versions.
    pub all: Headroom,
    pub versions: Vec<Headroom>,
    pub advice: Vec<Advice>,
}

/// Adds up what shards have measured, beside the queue's lease and up to where it grows. O(buckets of all).
pub fn report(shards: &[ShardDescription], floor_ms: u64, ceiling_ms: u64) -> Report {
    let mut versions: BTreeMap<&str, Measure> = BTreeMap::new();
    let mut all = Measure::default();
    for headroom in shards.iter().flat_map(|shard| &shard.headroom) {
        let measure = measured(headroom);
        all.add(&measure);
        versions.entry(&headroom.version).or_default().add(&measure);
    }
    let lease_ms = lease_ms(floor_ms, ceiling_ms, &all);
    let advice = advice::of(lease_ms, &all, &versions);
    let versions = versions.iter().map(|(version, measure)| shown(version, measure, lease_ms)).collect();
    Report { all: shown("", &all, lease_ms), versions, advice }
}

/// What was measured of all versions.
pub fn sum(versions: &[(Arc<[u8]>, Measure)]) -> Measure {
    let mut sum = Measure::default();
    versions.iter().for_each(|(_, measure)| sum.add(measure));
    sum
}

/// A measure with its quantiles, and the buckets they are made of.
pub fn shown(version: &str, measure: &Measure, lease_ms: u64) -> Headroom {
    let Measure { held, last_tenth, late, extended, expired } = measure;
    let bucket = |(up_to_ms, acks)| HeadroomBucket { up_to_ms, acks: u64::from(acks) };
    Headroom {
        version: version.to_owned(),
        acks: held.total(),
        p50_ms: held.quantile_ms(500),
        p99_ms: held.quantile_ms(990),
        p999_ms: held.quantile_ms(999),
        ratio_permille: ratio_permille(measure, lease_ms),
        last_tenth: u64::from(*last_tenth),
        late: u64::from(*late),
        extended: u64::from(*extended),
        expired: u64::from(*expired),
        buckets: held.buckets().map(bucket).collect(),
        lease_ms,
    }
}

/// A queue's lease over p99, in thousandths; 0 without acks.
pub fn ratio_permille(measure: &Measure, lease_ms: u64) -> u64 {
    match measure.held.total() {
        0 => 0,
        _ => lease_ms * 1000 / measure.held.quantile_ms(990).max(1),
    }
}

/// The measure that another node has shown.
fn measured(headroom: &Headroom) -> Measure {
    let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let mut measure = Measure {
        last_tenth: count(headroom.last_tenth),
        late: count(headroom.late),
        extended: count(headroom.extended),
        expired: count(headroom.expired),
        ..Measure::default()
    };
    for HeadroomBucket { up_to_ms, acks } in &headroom.buckets {
        measure.held.record_many(*up_to_ms, count(*acks));
    }
    measure
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(times_ms: &[u64], late: u32) -> Measure {
        let mut measure =
            Measure { late, expired: 2 * late, extended: 3, last_tenth: 4, ..Measure::default() };
        times_ms.iter().for_each(|ms| measure.held.record(*ms));
        measure
    }

    fn shard(headroom: Vec<Headroom>) -> ShardDescription {
        ShardDescription { headroom, ..ShardDescription::default() }
    }

    #[test]
    fn what_is_shown_can_be_added_up_again() {
        let measure = measure(&[0, 5, 17, 900, 43_200_000, 17], 7);
        assert_eq!(measured(&shown("v", &measure, 1_000)), measure);
    }

    #[test]
    fn shards_add_up_by_version_and_in_all() {
        let shards = [
            shard(vec![shown("", &measure(&[10; 3], 1), 100), shown("v1", &measure(&[20; 2], 0), 100)]),
            shard(Vec::new()),
            shard(vec![shown("v1", &measure(&[40; 98], 2), 100)]),
        ];
        let report = report(&shards, 100, 0);
        let all = &report.all;
        assert_eq!((all.acks, all.late, all.expired, all.extended, all.last_tenth), (103, 3, 6, 9, 12));
        assert_eq!((all.p50_ms, all.p99_ms, all.p999_ms, all.ratio_permille), (43, 43, 43, 2325));
        let versions = report.versions.iter().map(|version| (version.version.as_str(), version.acks));
        assert_eq!(versions.collect::<Vec<_>>(), [("", 3), ("v1", 100)]);
    }

    #[test]
    fn a_lease_that_has_grown_is_the_one_that_counts() {
        let mut measure = Measure::default();
        measure.held.record_many(40_000, 200);
        let shards = [shard(vec![shown("", &measure, 30_000)])];
        let report = report(&shards, 30_000, 600_000);
        assert_eq!((report.all.lease_ms, report.all.ratio_permille), (3 * 40_959, 3_000));
        assert_eq!(report.advice, []);
        assert_eq!(super::report(&shards, 30_000, 0).advice[0].code, "raise-lease");
    }

    #[test]
    fn nothing_measured_is_nothing_said() {
        let report = report(&[shard(Vec::new())], 30_000, 0);
        assert_eq!(report.all, Headroom { lease_ms: 30_000, ..Headroom::default() });
        assert!(report.versions.is_empty() && report.advice.is_empty());
    }
}
