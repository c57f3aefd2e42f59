//! How a handler says that it did not succeed, and when the message comes again.

use std::fmt;
use std::time::Duration;

use crate::session::random_u64;

/// Why a message is not done, and what is to become of it.
///
/// Any error becomes one that tries again later, so `?` works in handlers.
///
/// ```
/// use std::time::Duration;
/// use leasehold_client::{Failure, Job};
///
/// async fn handle(job: Job) -> Result<(), Failure> {
///     let text = std::str::from_utf8(&job.body).map_err(|error| Failure::reject(error.to_string()))?;
///     if text == "later" {
///         return Err(Failure::retry_after(Duration::from_secs(60), "it said so"));
///     }
///     if text == "not yet" {
///         return Err(Failure::postpone(Duration::from_secs(60), "its time has not come"));
///     }
///     let number: u32 = text.parse()?;
///     if number == 0 {
///         return Err(Failure::retry("it is not ready"));
///     }
///     Ok(())
/// }
/// assert_eq!(Failure::reject("no such user").why(), "no such user");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub(crate) wish: Wish,
    why: String,
}

/// What a handler wants to become of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Retry,
    RetryAfter(Duration),
    Postpone(Duration),
    Reject,
}

impl Failure {
    /// Again, when the consumer's [`RetryPolicy`] says.
    #[must_use]
    pub fn retry(why: impl Into<String>) -> Self {
        Self { wish: Wish::Retry, why: why.into() }
    }

    /// Again after the given time, at most 12 h.
    #[must_use]
    pub fn retry_after(delay: Duration, why: impl Into<String>) -> Self {
        Self { wish: Wish::RetryAfter(delay), why: why.into() }
    }

    /// Again after the given time, at most 12 h, and nothing has failed: neither does the receive count for the receive limit, nor the
    /// message for the retry budget. For a message that has to wait for something, such as a quota or another message; it may wait
    /// as long as it lives, in up to 65,535 receives: those beyond count for the limit.
    #[must_use]
    pub fn postpone(delay: Duration, why: impl Into<String>) -> Self {
        Self { wish: Wish::Postpone(delay), why: why.into() }
    }

    /// Never again: to the dead-letter queue, with the reason. Where the queue has none, the message is tried again.
    #[must_use]
    pub fn reject(why: impl Into<String>) -> Self {
        Self { wish: Wish::Reject, why: why.into() }
    }

    /// For people; of a rejected message its attribute.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::retry(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.why)
    }
}

/// When a message is ready again: a delay that doubles with each receive, of which a part is drawn by lot, so that messages
/// that failed together do not come back together.
///
/// ```
/// use std::time::Duration;
/// use leasehold_client::RetryPolicy;
///
/// let policy = RetryPolicy::new(Duration::from_secs(2), Duration::from_secs(60)).jitter_percent(0);
/// assert_eq!(policy.delay(1), Duration::from_secs(2));
/// assert_eq!(policy.delay(3), Duration::from_secs(8));
/// assert_eq!(policy.delay(30), Duration::from_secs(60));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    first: Duration,
    longest: Duration,
    jitter_percent: u32,
}

/// The longest delay of a release.
pub(crate) const DELAY_MAX: Duration = Duration::from_secs(12 * 60 * 60);
const DOUBLINGS_MAX: u32 = 30;

impl Default for RetryPolicy {
    /// From 1 s to 5 min; up to half of each delay is left out by lot.
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(5 * 60))
    }
}

impl RetryPolicy {
    /// The delay after the first receive, and the longest; at most 12 h.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest: longest.min(DELAY_MAX), jitter_percent: 50 }
    }

    /// How much of each delay may be left out by lot; 50 unless told.
    #[must_use]
    pub fn jitter_percent(mut self, percent: u32) -> Self {
        self.jitter_percent = percent.min(100);
        self
    }

    /// The delay of a message that was received so often.
    #[must_use]
    pub fn delay(&self, receive_count: u32) -> Duration {
        let doublings = receive_count.saturating_sub(1).min(DOUBLINGS_MAX);
        let delay = self.first.saturating_mul(1 << doublings).min(self.longest);
        let jitter = delay * self.jitter_percent / 100;
        let jitter_nanos = u64::try_from(jitter.as_nanos()).unwrap_or(u64::MAX);
        delay - Duration::from_nanos(random_u64() % jitter_nanos.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_longest_and_differ() {
        let policy = RetryPolicy::default();
        for receive_count in [1, 2, 5, 9, 10, 1_000, u32::MAX] {
            let doubled = Duration::from_secs(1 << (receive_count - 1).min(20)).min(Duration::from_secs(300));
            let delays: Vec<_> = (0..50).map(|_| policy.delay(receive_count)).collect();
            assert!(delays.iter().all(|delay| *delay <= doubled && *delay >= doubled / 2), "{delays:?}");
            assert!(delays.iter().any(|delay| *delay != delays[0]));
        }
        assert!(RetryPolicy::new(Duration::MAX, Duration::MAX).delay(9) <= DELAY_MAX);
    }

    #[test]
    fn an_error_is_tried_again() {
        let parse = || -> Result<u32, Failure> { Ok("x".parse::<u32>()?) };
        let failure = parse().unwrap_err();
        assert_eq!((failure.wish, failure.why()), (Wish::Retry, "invalid digit found in string"));
    }
}
