//! By when the answers of one connection must have gone out.
//!
//! A client that takes nothing, or a few bytes now and then, would keep them and its place among the connections for ever. A
//! connection answers to the first of its deadlines: when that passes, all of the connection ends. Nothing is timed while no long
//! answer waits.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::limits::{ANSWER_BYTES_PER_S_MIN, STALL_MS_MAX};

/// The deadlines of one connection.
#[derive(Default)]
pub struct Deadlines {
    state: Mutex<State>,
    /// The first deadline is sooner than the one that is waited for.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Each with a number of its own, since two can fall together.
    waiting: BTreeSet<(Instant, u64)>,
    number: u64,
    /// Of all answers that wait.
    bytes: usize,
    /// What is waited for. It may be of an answer that has gone out.
    awaited: Option<Instant>,
}

/// Of one answer. It is met when this is dropped.
pub struct Deadline {
    of: Arc<Deadlines>,
    key: (Instant, u64),
    bytes: usize,
}

impl Deadlines {
    /// Begins to wait for an answer of so many bytes, which shares the connection with those that wait already.
    pub fn add(of: &Arc<Self>, bytes: usize) -> Deadline {
        let mut state = of.state();
        state.bytes += bytes;
        state.number += 1;
        let key = (Instant::now() + patience(state.bytes), state.number);
        state.waiting.insert(key);
        let is_sooner = state.awaited.is_none_or(|awaited| key.0 < awaited);
        drop(state);
        if is_sooner {
            of.changed.notify_one();
        }
        Deadline { of: Arc::clone(of), key, bytes }
    }

    /// Completes when an answer has not gone out in its time. One task waits for it.
    pub async fn passed(&self) {
        loop {
            match self.next() {
                None => self.changed.notified().await,
                Some(first) if first <= Instant::now() => return,
                Some(first) => {
                    // Either is a reason to look again.
                    let _ = timeout_at(first, self.changed.notified()).await;
                }
            }
        }
    }

    /// What is waited for from now on.
    fn next(&self) -> Option<Instant> {
        let mut state = self.state();
        state.awaited = state.waiting.first().map(|(first, _)| *first);
        state.awaited
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let mut state = self.of.state();
        state.waiting.remove(&self.key);
        state.bytes -= self.bytes;
    }
}

/// For so many bytes.
fn patience(bytes: usize) -> Duration {
    Duration::from_millis(STALL_MS_MAX + bytes as u64 * 1_000 / ANSWER_BYTES_PER_S_MIN)
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    const MIB: usize = 1024 * 1024;

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_time_for_its_length_and_for_those_before_it() {
        let deadlines = Arc::new(Deadlines::default());
        let began = Instant::now();
        let first = Deadlines::add(&deadlines, MIB);
        let second = Deadlines::add(&deadlines, MIB);
        drop(first);
        deadlines.passed().await;
        let waited = began.elapsed();
        let range = patience(2 * MIB)..patience(2 * MIB) + Duration::from_secs(1);
        assert!(range.contains(&waited), "{waited:?}");
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_comes_while_nothing_is_waited_for_is_seen() {
        let deadlines = Arc::new(Deadlines::default());
        let adding = async {
            sleep(Duration::from_secs(1)).await;
            Deadlines::add(&deadlines, MIB)
        };
        let both = async { tokio::join!(deadlines.passed(), adding) };
        let ((), _waits) = timeout(2 * patience(MIB), both).await.expect("nobody looked at it");
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_gone_out_is_not_waited_for() {
        let deadlines = Arc::new(Deadlines::default());
        let answering = async {
            for _ in 0..10 {
                let answer = Deadlines::add(&deadlines, MIB);
                sleep(patience(MIB) / 2).await;
                drop(answer);
            }
        };
        let is_served = tokio::select! {
            () = deadlines.passed() => false,
            () = answering => true,
        };
        assert!(is_served);
        assert_eq!(deadlines.state().bytes, 0);
        assert!(timeout(10 * patience(MIB), deadlines.passed()).await.is_err());
    }
}
