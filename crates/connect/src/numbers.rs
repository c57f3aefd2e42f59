//! What a connector did, counted while it does it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Requests whose times are remembered: the last ones.
const TIMES_MAX: usize = 1_024;

/// Why a request did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No connection could be made.
    Unreachable,
    /// The endpoint said "not now": 429 or 503.
    Refused,
    /// No answer came in time.
    TimedOut,
    /// The connection ended before the answer did.
    Broken,
    /// Another status than success.
    Status,
    /// A success that could not be understood.
    Answer,
}

impl Kind {
    /// Every kind, in the order of [`Tally::failed`].
    pub const ALL: [Self; 6] =
        [Self::Unreachable, Self::Refused, Self::TimedOut, Self::Broken, Self::Status, Self::Answer];

    /// A name for logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Broken => "broken",
            Self::Status => "status",
            Self::Answer => "answer",
        }
    }
}

/// Counts while requests are made.
#[derive(Debug, Default)]
pub struct Numbers {
    requests: AtomicU64,
    failed: [AtomicU64; Kind::ALL.len()],
    halved: AtomicU64,
    acked: AtomicU64,
    retried: AtomicU64,
    postponed: AtomicU64,
    rejected: AtomicU64,
    returned: AtomicU64,
    unsettled: AtomicU64,
    times: Mutex<VecDeque<Duration>>,
}

/// What [`Numbers`] had counted at some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Requests that ended, however.
    pub requests: u64,
    /// Those that did not succeed, by [`Kind::ALL`].
    pub failed: [u64; Kind::ALL.len()],
    /// Batches that failed and were asked again in halves.
    pub halved: u64,
    /// Messages done: their acks were answered.
    pub acked: u64,
    /// Messages given back because they failed.
    pub retried: u64,
    /// Messages put off because an answer said so.
    pub postponed: u64,
    /// Messages moved to the dead-letter queue because an answer said so.
    pub rejected: u64,
    /// Messages given back without a failure of their own: at a stop, behind one of their group that failed, or because
    /// their endpoint was away for too long.
    pub returned: u64,
    /// Messages whose settlement was refused or not answered, mostly because their leases were lost.
    pub unsettled: u64,
    /// Half of the last thousand requests took no longer.
    pub p50: Duration,
    /// 99 of 100 of them took no longer.
    pub p99: Duration,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    Acked,
    Retried,
    Postponed,
    Rejected,
    Returned,
    Unsettled,
}

impl Numbers {
    pub(crate) fn request(&self, took: Duration, failed: Option<Kind>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(kind) = failed {
            self.failed[kind as usize].fetch_add(1, Ordering::Relaxed);
        }
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() == TIMES_MAX {
            times.pop_front();
        }
        times.push_back(took);
    }

    pub(crate) fn halved(&self) {
        self.halved.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn message(&self, what: Count) {
        self.of(what).fetch_add(1, Ordering::Relaxed);
    }

    fn of(&self, what: Count) -> &AtomicU64 {
        match what {
            Count::Acked => &self.acked,
            Count::Retried => &self.retried,
            Count::Postponed => &self.postponed,
            Count::Rejected => &self.rejected,
            Count::Returned => &self.returned,
            Count::Unsettled => &self.unsettled,
        }
    }

    /// What is counted so far.
    ///
    /// ```
    /// assert_eq!(leasehold_connect::Numbers::default().now().requests, 0);
    /// ```
    #[must_use]
    pub fn now(&self) -> Tally {
        let messages = |what| self.of(what).load(Ordering::Relaxed);
        let mut times = Vec::from(self.times.lock().unwrap_or_else(PoisonError::into_inner).clone());
        times.sort_unstable();
        Tally {
            requests: self.requests.load(Ordering::Relaxed),
            failed: Kind::ALL.map(|kind| self.failed[kind as usize].load(Ordering::Relaxed)),
            halved: self.halved.load(Ordering::Relaxed),
            acked: messages(Count::Acked),
            retried: messages(Count::Retried),
            postponed: messages(Count::Postponed),
            rejected: messages(Count::Rejected),
            returned: messages(Count::Returned),
            unsettled: messages(Count::Unsettled),
            p50: quantile(&times, 50),
            p99: quantile(&times, 99),
        }
    }
}

/// Of sorted times; zero of none.
fn quantile(times: &[Duration], percent: usize) -> Duration {
    let rank = (times.len() * percent).div_ceil(100);
    times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_kind_and_times_are_those_of_the_last() {
        let numbers = Numbers::default();
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
            numbers.request(Duration::from_secs(60), Some(kind));
        }
        for ms in 1..=TIMES_MAX as u64 {
            numbers.request(Duration::from_millis(ms), None);
        }
        let tally = numbers.now();
        assert_eq!((tally.requests, tally.failed), (6 + TIMES_MAX as u64, [1; 6]));
        assert_eq!((tally.p50, tally.p99), (Duration::from_millis(512), Duration::from_millis(1_014)));
    }

    #[test]
    fn a_quantile_is_one_of_the_times() {
        let ms = Duration::from_millis;
        assert_eq!(quantile(&[], 99), Duration::ZERO);
        assert_eq!((quantile(&[ms(5)], 50), quantile(&[ms(5)], 99)), (ms(5), ms(5)));
        assert_eq!(quantile(&[ms(1), ms(2), ms(3)], 50), ms(2));
    }
}
