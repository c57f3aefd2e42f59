//! Pauses between attempts: doubling, jittered, and longer for a client that repeats itself too much.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::session::random_u64;

const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(250);
const DOUBLINGS_MAX: u32 = 7;

/// The pauses of one call.
#[derive(Debug, Default, Clone)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The pause before the next attempt: jittered, and no shorter than the server's hint.
    pub(crate) fn next(&mut self, hint: Option<Duration>, budget: &RetryBudget) -> Duration {
        let doubled = PAUSE_MIN * 2_u32.pow(self.attempts.min(DOUBLINGS_MAX));
        self.attempts = self.attempts.saturating_add(1);
        let longest = if budget.take() { doubled.min(PAUSE_MAX) } else { PAUSE_MAX };
        let jittered = longest / 2 + jitter(longest / 2);
        hint.map_or(jittered, |hint| hint + jitter(hint / 4).max(jittered.min(hint)))
    }

    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// Retries a second that a client makes at short pauses; beyond them it makes only long ones.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    per_second: f64,
    left: Mutex<(Instant, f64)>,
}

impl RetryBudget {
    pub(crate) fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: Mutex::new((Instant::now(), per_second)) }
    }

    fn take(&self) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let earned = now.duration_since(left.0).as_secs_f64() * self.per_second;
        *left = (now, (left.1 + earned).min(self.per_second));
        let is_left = left.1 >= 1.0;
        if is_left {
            left.1 -= 1.0;
        }
        is_left
    }
}

/// Zero up to `most`.
fn jitter(most: Duration) -> Duration {
    let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random_u64() % nanos.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest() {
        let (budget, mut backoff) = (RetryBudget::new(1_000), Backoff::default());
        assert!(backoff.next(None, &budget) <= PAUSE_MIN);
        let pauses: Vec<_> = (0..20).map(|_| backoff.next(None, &budget)).collect();
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX));
        assert!(pauses[10..].iter().all(|pause| *pause >= PAUSE_MAX / 2));
    }

    #[test]
    fn a_hint_is_honoured() {
        let (budget, hint) = (RetryBudget::new(1_000), Duration::from_millis(50));
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            let pause = backoff.next(Some(hint), &budget);
            assert!((hint..=hint * 2).contains(&pause));
        }
    }

    #[test]
    fn a_spent_budget_makes_pauses_long() {
        let budget = RetryBudget::new(0);
        assert!(Backoff::default().next(None, &budget) >= PAUSE_MAX / 2);
    }
}
