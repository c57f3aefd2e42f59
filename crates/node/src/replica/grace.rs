//! How much later than its deadline a lease may be ended, so that no consumer loses time it was promised.
//!
//! A lease's deadline counts from the stamp of its entry, but the consumer counts from the answer, which leaves after the commit.
//! The leader remembers by how much answers lagged, grouped by the second in which their leases end, and ends those leases that
//! much later. What it inherited from another leader gets the most that any leader lets an answer lag.

use std::collections::BTreeMap;

use crate::limits::{ANSWER_ALLOWANCE_MS, INHERITED_GRACE_MS};

const BUCKET_MS: u64 = 1_000;

/// The lags of the answers of one leadership.
#[derive(Debug)]
pub struct Grace {
    /// Leases that end up to here may have been granted by an earlier leader.
    inherited_until_ms: u64,
    /// For the leases that end in a second: the largest lag of their answers. At most 12 h of seconds.
    lag_ms_by_second: BTreeMap<u64, u64>,
}

impl Grace {
    /// `longest_lease_end_ms` bounds the deadlines of the leases that were there before.
    pub fn inherit(longest_lease_end_ms: u64) -> Self {
        Self { inherited_until_ms: longest_lease_end_ms, lag_ms_by_second: BTreeMap::new() }
    }

    /// An answer that promises a lease until `deadline_ms` leaves `lag_ms` after its entry's stamp.
    pub fn answered(&mut self, deadline_ms: u64, lag_ms: u64) {
        let lag = self.lag_ms_by_second.entry(deadline_ms / BUCKET_MS).or_default();
        *lag = (*lag).max(lag_ms);
    }

    /// By how much the leases that end at `deadline_ms` are ended later.
    pub fn slack_ms(&self, deadline_ms: u64) -> u64 {
        let own = self.lag_ms_by_second.get(&(deadline_ms / BUCKET_MS)).copied().unwrap_or_default();
        let inherited = if deadline_ms <= self.inherited_until_ms { INHERITED_GRACE_MS } else { 0 };
        own.max(inherited) + ANSWER_ALLOWANCE_MS
    }

    /// Up to which deadline leases may be ended now. Every lease at or below it has had its slack.
    pub fn leases_as_of_ms(&self, now_ms: u64) -> u64 {
        let inherited = if self.inherited_until_ms == 0 { 0 } else { INHERITED_GRACE_MS };
        let first = now_ms.saturating_sub(inherited + ANSWER_ALLOWANCE_MS);
        let slack =
            self.lag_ms_by_second.range(..=now_ms / BUCKET_MS).map(|(_, lag)| *lag).max().unwrap_or_default();
        let inherited = if first <= self.inherited_until_ms { inherited } else { 0 };
        now_ms.saturating_sub(slack.max(inherited) + ANSWER_ALLOWANCE_MS)
    }

    /// Forgets the lags of leases that have been ended.
    pub fn ended_through(&mut self, deadline_ms: u64) {
        self.lag_ms_by_second = self.lag_ms_by_second.split_off(&(deadline_ms / BUCKET_MS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_no_earlier_than_its_duration_after_the_answer() {
        let mut grace = Grace::inherit(0);
        grace.answered(30_000, 400);
        assert_eq!(grace.slack_ms(30_000), 400 + ANSWER_ALLOWANCE_MS);
        assert!(grace.leases_as_of_ms(30_000 + 399 + ANSWER_ALLOWANCE_MS) < 30_000);
        assert!(grace.leases_as_of_ms(30_000 + 400 + ANSWER_ALLOWANCE_MS) >= 30_000);
    }

    #[test]
    fn inherited_leases_get_the_longest_lag_any_leader_allows() {
        let grace = Grace::inherit(5_000);
        assert!(grace.leases_as_of_ms(5_000 + INHERITED_GRACE_MS) < 5_000);
        assert_eq!(grace.leases_as_of_ms(5_000 + INHERITED_GRACE_MS + ANSWER_ALLOWANCE_MS), 5_000);
        let past = 5_000 + 2 * INHERITED_GRACE_MS + 2 * ANSWER_ALLOWANCE_MS;
        assert_eq!(grace.leases_as_of_ms(past), past - ANSWER_ALLOWANCE_MS);
    }

    #[test]
    fn a_lag_is_forgotten_with_its_leases() {
        let mut grace = Grace::inherit(0);
        grace.answered(1_500, 900);
        grace.answered(9_000, 3);
        grace.ended_through(2_400);
        assert_eq!(grace.slack_ms(1_500), ANSWER_ALLOWANCE_MS);
        assert_eq!(grace.slack_ms(9_000), 3 + ANSWER_ALLOWANCE_MS);
    }
}
