//! How long consumers take for a queue's messages, to be held against the time they have.
//!
//! ```text
//!   log time     ..|----- previous window -----|-- current window ..now
//!   rest         [ held | last tenth | late | extended | expired ]     of consumers that name no version
//!   mailer-1.4   [ held | ..                                     ]     grant ──▶ ack, by who was granted the message
//! ```
//!
//! Every replica measures the same in log time, so a new leader knows all of it at once. What is shown is of the current and
//! the previous window; what is older is forgotten whole, so nothing fades and a rare job counts as much as a frequent one.
//!
//! A consumer that calls itself `mailer-1.4@host-7` or `mailer-1.4/7` is of the version `mailer-1.4`. Only the latest few
//! versions are kept apart; others join the rest.

use std::sync::Arc;

use crate::histogram::Histogram;
use crate::limits::{HEADROOM_VERSIONS_MAX, HEADROOM_WINDOW_MS};
use crate::wire::wire_struct;

/// The version of consumers that name none, and of those that are not kept apart.
const REST: u32 = 0;

/// What was measured of leases. Counts stop at the highest number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measure {
    /// From grant to ack, in log time.
    pub held: Histogram,
    /// Acks in the last tenth of the lease, as granted or last extended.
    pub last_tenth: u32,
    /// Acks that came after their lease had ended, repeated acks among them. It is not known of which version.
    pub late: u32,
    pub extended: u32,
    /// Leases that ended by themselves.
    pub expired: u32,
}
wire_struct!(Measure { held, last_tenth, late, extended, expired });

impl Measure {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Counts everything that `other` has counted.
    pub fn add(&mut self, other: &Self) {
        self.held.add(&other.held);
        let pairs = [
            (&mut self.last_tenth, other.last_tenth),
            (&mut self.late, other.late),
            (&mut self.extended, other.extended),
            (&mut self.expired, other.expired),
        ];
        pairs.into_iter().for_each(|(sum, more)| *sum = sum.saturating_add(more));
    }
}

/// One version in both windows.
#[derive(Debug)]
struct Series {
    version: Arc<[u8]>,
    /// What leases name it by; not used again while a lease may name it.
    id: u32,
    /// When it was granted something last.
    used_ms: u64,
    current: Measure,
    previous: Measure,
}
wire_struct!(Series { version, id, used_ms, current, previous });

impl Series {
    fn new(version: Arc<[u8]>, id: u32, used_ms: u64) -> Self {
        Self { version, id, used_ms, current: Measure::default(), previous: Measure::default() }
    }
}

#[derive(Debug)]
pub(crate) struct Headroom {
    /// The number of the current window.
    window: u64,
    next_id: u32,
    /// The rest, then up to `HEADROOM_VERSIONS_MAX` versions.
    series: Vec<Series>,
}
wire_struct!(Headroom { window, next_id, series });

impl Headroom {
    /// No lease of the queue names a version by an id from `ids_from` on.
    pub fn new(now_ms: u64, ids_from: u64) -> Self {
        let next_id = (ids_from as u32).max(REST + 1);
        let rest = Series::new(Arc::from([]), REST, now_ms);
        Self { window: now_ms / HEADROOM_WINDOW_MS, next_id, series: vec![rest] }
    }

    /// When all of it is too old to be shown.
    pub fn outdated_ms(&self) -> u64 {
        (self.window + 2) * HEADROOM_WINDOW_MS
    }

    /// The id of a version that is granted something now. A new one takes the place of the one not seen for longest.
    pub fn id_of(&mut self, version: &[u8], now_ms: u64) -> u32 {
        if let Some(series) = self.series.iter_mut().skip(1).find(|series| *series.version == *version) {
            series.used_ms = now_ms;
            return series.id;
        }
        if self.series.len() > HEADROOM_VERSIONS_MAX {
            self.forget_idlest();
        }
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(REST + 1);
        self.series.push(Series::new(version.into(), id, now_ms));
        id
    }

    fn forget_idlest(&mut self) {
        let numbered = self.series.iter().enumerate().skip(1);
        if let Some((at, _)) = numbered.min_by_key(|(_, series)| (series.used_ms, series.id)) {
            let gone = self.series.remove(at);
            self.series[0].current.add(&gone.current);
            self.series[0].previous.add(&gone.previous);
        }
    }

    /// What is measured now of the version with this id. O(versions), and the buckets when a window ends.
    pub fn measure(&mut self, id: u32, now_ms: u64) -> &mut Measure {
        self.turn_windows(now_ms / HEADROOM_WINDOW_MS);
        let at = self.series.iter().position(|series| series.id == id).unwrap_or(0);
        &mut self.series[at].current
    }

    fn turn_windows(&mut self, window: u64) {
        let passed = window - self.window;
        if passed == 0 {
            return;
        }
        self.window = window;
        for series in &mut self.series {
            let ended = std::mem::take(&mut series.current);
            series.previous = if passed == 1 { ended } else { Measure::default() };
        }
    }

    /// What was measured in this window and the one before, by version, the rest first. O(buckets).
    pub fn view(&self, now_ms: u64) -> Vec<(Arc<[u8]>, Measure)> {
        let passed = now_ms / HEADROOM_WINDOW_MS - self.window;
        let all = self.series.iter().map(|series| {
            let mut sum = Measure::default();
            if passed <= 1 {
                sum.add(&series.current);
            }
            if passed == 0 {
                sum.add(&series.previous);
            }
            (series.version.clone(), sum)
        });
        all.filter(|(_, measure)| !measure.is_empty()).collect()
    }

    pub fn check_invariants(&self) {
        assert!((1..=1 + HEADROOM_VERSIONS_MAX).contains(&self.series.len()), "versions are bounded");
        assert_eq!(self.series[0].id, REST, "the rest is first");
        let ids: std::collections::BTreeSet<u32> = self.series.iter().map(|series| series.id).collect();
        assert_eq!(ids.len(), self.series.len(), "an id is one version's");
    }
}

/// The version that a consumer's name begins with, if it names one.
pub(crate) fn version_of(consumer: &[u8]) -> Option<&[u8]> {
    let end = consumer.iter().position(|byte| matches!(byte, b'@' | b'/'))?;
    Some(&consumer[..end]).filter(|version| !version.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = HEADROOM_WINDOW_MS;

    fn shown(headroom: &Headroom, now_ms: u64) -> Vec<(String, u64)> {
        let name = |version: &[u8]| String::from_utf8_lossy(version).into_owned();
        headroom.view(now_ms).iter().map(|(version, measure)| (name(version), measure.held.total())).collect()
    }

    #[test]
    fn a_name_has_a_version_before_the_first_mark() {
        let cases = [
            ("mailer-1.4@host-7", Some("mailer-1.4")),
            ("mailer-1.4/7", Some("mailer-1.4")),
            ("a@b/c", Some("a")),
            ("mailer", None),
            ("", None),
            ("@host", None),
        ];
        for (consumer, version) in cases {
            assert_eq!(version_of(consumer.as_bytes()), version.map(str::as_bytes), "{consumer}");
        }
    }

    #[test]
    fn two_windows_are_shown_and_no_more() {
        let mut headroom = Headroom::new(10, 1);
        headroom.measure(REST, 10).held.record(5);
        assert_eq!(headroom.outdated_ms(), 2 * HOUR_MS);
        assert_eq!(shown(&headroom, 2 * HOUR_MS - 1), [(String::new(), 1)]);
        assert_eq!(shown(&headroom, 2 * HOUR_MS), []);
        headroom.measure(REST, HOUR_MS).held.record(5);
        assert_eq!(shown(&headroom, HOUR_MS), [(String::new(), 2)]);
        assert_eq!(shown(&headroom, 2 * HOUR_MS), [(String::new(), 1)]);
        headroom.measure(REST, 9 * HOUR_MS).held.record(5);
        assert_eq!(shown(&headroom, 9 * HOUR_MS), [(String::new(), 1)]);
    }

    #[test]
    fn the_version_not_seen_for_longest_joins_the_rest() {
        let mut headroom = Headroom::new(0, 1);
        let versions: Vec<String> = (0..=HEADROOM_VERSIONS_MAX).map(|number| format!("v{number}")).collect();
        let ids: Vec<u32> = (0..)
            .zip(&versions[..HEADROOM_VERSIONS_MAX])
            .map(|(now_ms, version)| headroom.id_of(version.as_bytes(), now_ms))
            .collect();
        ids.iter().for_each(|id| headroom.measure(*id, 50).held.record(1));
        assert_eq!(headroom.id_of(b"v0", 60), ids[0], "known again");
        headroom.id_of(versions[HEADROOM_VERSIONS_MAX].as_bytes(), 70);
        headroom.measure(ids[1], 80).held.record(1);
        headroom.check_invariants();
        let shown = shown(&headroom, 90);
        assert_eq!(shown[0], (String::new(), 2), "what v1 had, and what its leases bring later");
        assert!(shown.contains(&("v0".to_owned(), 1)) && !shown.iter().any(|(name, _)| name == "v1"));
    }
}
