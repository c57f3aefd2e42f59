//! How many requests may be under way, and when the next may start: more while the endpoint keeps up, fewer when it says "not now".
//!
//! The limit grows by one for each round of successes and is halved by a refusal, as TCP does it. A refusal also shuts the gate for a
//! time that doubles, or that the endpoint names. So do failures when nothing succeeds between them: an endpoint that fails on
//! everything is asked less and less, and its messages do not run through their receives in a minute.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leasehold_client::RetryPolicy;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The longest pause that an endpoint can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);
/// Failures without a success between them, from which on each makes a pause. A message that fails alone makes fewer: its batch is
/// halved ten times at most, and its neighbours succeed.
const FAILURES_MAX: u32 = 16;

#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Notify,
    limit_max: u32,
    pauses: RetryPolicy,
}

/// `1 <= limit <= limit_max`.
#[derive(Debug)]
struct State {
    limit: u32,
    under_way: u32,
    /// When requests may start again.
    open_at: Instant,
    /// A request that started before has nothing to say of how things are since.
    judged_at: Instant,
    refused_in_a_row: u32,
    failed_in_a_row: u32,
    /// Since the limit changed.
    succeeded: u32,
}

/// The right to one request. Dropped, it says nothing of the endpoint.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    started: Instant,
}

impl Gate {
    pub(crate) fn new(limit: u32, limit_max: u32) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            limit: limit.clamp(1, limit_max),
            under_way: 0,
            open_at: now,
            judged_at: now,
            refused_in_a_row: 0,
            failed_in_a_row: 0,
            succeeded: 0,
        };
        let pauses = RetryPolicy::new(PAUSE_FIRST, PAUSE_MAX);
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new(), limit_max, pauses })
    }

    /// Requests that may be under way.
    pub(crate) fn limit(&self) -> u32 {
        self.with(|state| state.limit)
    }

    /// Waits until a request may start. Cancel safe.
    pub(crate) async fn enter(self: &Arc<Self>) -> Pass {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.try_enter() {
                Ok(started) => return Pass { gate: Arc::clone(self), started },
                Err(Some(open_at)) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(open_at) => {}
                },
                Err(None) => changed.await,
            }
        }
    }

    /// When it started; or when to ask again, as far as that is known.
    fn try_enter(&self) -> Result<Instant, Option<Instant>> {
        let now = Instant::now();
        self.with(|state| {
            if state.under_way >= state.limit {
                return Err(None);
            }
            if state.open_at > now {
                return Err(Some(state.open_at));
            }
            state.under_way += 1;
            Ok(now)
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Pass {
    /// The endpoint handled something.
    pub(crate) fn succeeded(self) {
        let limit_max = self.gate.limit_max;
        self.gate.with(|state| {
            (state.refused_in_a_row, state.failed_in_a_row) = (0, 0);
            state.succeeded += 1;
            if state.succeeded >= state.limit {
                (state.limit, state.succeeded) = ((state.limit + 1).min(limit_max), 0);
            }
        });
    }

    /// The endpoint handled nothing of it.
    pub(crate) fn failed(self) {
        let now = Instant::now();
        self.gate.with(|state| {
            if self.started < state.judged_at {
                return;
            }
            state.failed_in_a_row = state.failed_in_a_row.saturating_add(1);
            if let Some(beyond @ 1..) = state.failed_in_a_row.checked_sub(FAILURES_MAX) {
                state.shut(now, self.gate.pauses.delay(beyond));
            }
        });
    }

    /// The endpoint did not try, or was not there.
    pub(crate) fn refused(self, retry_after: Option<Duration>) {
        let now = Instant::now();
        self.gate.with(|state| {
            if self.started >= state.judged_at {
                state.refused_in_a_row = state.refused_in_a_row.saturating_add(1);
                (state.limit, state.succeeded) = ((state.limit / 2).max(1), 0);
                state.shut(now, self.gate.pauses.delay(state.refused_in_a_row));
            }
            if let Some(asked) = retry_after {
                state.open_at = state.open_at.max(now + asked.min(RETRY_AFTER_MAX));
            }
        });
    }
}

impl State {
    fn shut(&mut self, now: Instant, pause: Duration) {
        self.judged_at = now;
        self.open_at = self.open_at.max(now + pause);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.with(|state| state.under_way -= 1);
        self.gate.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::time::advance;

    use super::*;

    fn try_enter(gate: &Arc<Gate>) -> Option<Pass> {
        gate.enter().now_or_never()
    }

    /// How long the gate stays shut.
    async fn pause_of(gate: &Arc<Gate>) -> Duration {
        let asked = Instant::now();
        drop(gate.enter().await);
        asked.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_as_the_limit_are_under_way_and_it_grows_with_success() {
        let gate = Gate::new(2, 4);
        let (one, two) = (try_enter(&gate).unwrap(), try_enter(&gate).unwrap());
        assert!(try_enter(&gate).is_none());
        one.succeeded();
        assert!(try_enter(&gate).is_some(), "its place is free");
        assert_eq!(gate.limit(), 2);
        two.succeeded();
        assert_eq!(gate.limit(), 3);
        for _ in 0..20 {
            try_enter(&gate).unwrap().succeeded();
        }
        assert_eq!(gate.limit(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_place_that_becomes_free() {
        let gate = Gate::new(1, 1);
        let pass = gate.enter().await;
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { drop(gate.enter().await) }
        });
        tokio::task::yield_now().await;
        drop(pass);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_halves_the_limit_once_for_all_that_were_under_way() {
        let gate = Gate::new(8, 8);
        let passes = (0..8).map(|_| try_enter(&gate).unwrap()).collect::<Vec<_>>();
        advance(Duration::from_millis(10)).await;
        passes.into_iter().for_each(|pass| pass.refused(None));
        assert_eq!(gate.limit(), 4);
        let pause = pause_of(&gate).await;
        assert!(pause >= PAUSE_FIRST / 2 && pause <= PAUSE_FIRST, "{pause:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_in_a_row_make_longer_pauses_until_one_succeeds() {
        let gate = Gate::new(8, 8);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            gate.enter().await.refused(None);
            pauses.push(pause_of(&gate).await);
        }
        assert_eq!(gate.limit(), 1);
        assert!(pauses[11] >= PAUSE_MAX / 2 && pauses.iter().all(|pause| *pause <= PAUSE_MAX), "{pauses:?}");
        gate.enter().await.succeeded();
        assert_eq!(gate.limit(), 2);
        gate.enter().await.refused(None);
        assert!(pause_of(&gate).await <= PAUSE_FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn the_endpoint_says_how_long_up_to_a_limit() {
        let gate = Gate::new(8, 8);
        for (asked, kept) in [(60, 60), (3_600, 900)] {
            gate.enter().await.refused(Some(Duration::from_secs(asked)));
            let pause = pause_of(&gate).await;
            assert_eq!(pause.as_secs(), kept);
        }
        // Also by one that was under way when others were refused.
        let (early, late) = (gate.enter().await, gate.enter().await);
        advance(Duration::from_millis(1)).await;
        early.refused(None);
        late.refused(Some(Duration::from_secs(60)));
        assert_eq!(pause_of(&gate).await.as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn only_failures_without_any_success_slow_down() {
        let gate = Gate::new(2, 2);
        for _ in 0..5 {
            for _ in 0..FAILURES_MAX {
                try_enter(&gate).unwrap().failed();
            }
            try_enter(&gate).unwrap().succeeded();
        }
        for _ in 0..FAILURES_MAX {
            try_enter(&gate).unwrap().failed();
        }
        for _ in 0..12 {
            gate.enter().await.failed();
            assert!(try_enter(&gate).is_none());
        }
        assert!(pause_of(&gate).await >= PAUSE_MAX / 2);
        assert_eq!(gate.limit(), 2);
    }
}
