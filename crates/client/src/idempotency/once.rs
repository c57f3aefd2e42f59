//! Claims, runs and records.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::store::{Begun, Finished, Operation, Store, Times, name_of};
use crate::{Failure, Job};

/// Longer than any message lives: 14 days of retention, and a day.
const KEEP_FOR: Duration = Duration::from_secs(15 * 24 * 60 * 60);
/// How long a handler waits for another message that is at its operation, before its message is given back.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(2);
const BUSY_PAUSE_MIN: Duration = Duration::from_millis(20);
/// For how long it is put off then.
const PUT_OFF_MIN: Duration = Duration::from_secs(1);
const PUT_OFF_MAX: Duration = Duration::from_secs(30);
const PUT_OFF_BLINDLY: Duration = Duration::from_secs(5);
const CLAIM_FOR: Duration = Duration::from_secs(5 * 60);

type Key = dyn Fn(&Job) -> String + Send + Sync;

/// Makes the effects of handlers happen once; see the [module](crate::idempotency) for what it promises with which store. Clones share the store.
///
/// ```
/// use std::time::Duration;
/// use leasehold_client::Job;
/// use leasehold_client::idempotency::{Idempotent, MemoryStore};
///
/// let once = Idempotent::new(MemoryStore::default())
///     .key(|job: &Job| format!("order {}", job.body.escape_ascii()))
///     .keep_for(Duration::from_secs(30 * 24 * 60 * 60))
///     .claim_for(Duration::from_secs(60));
/// let handler = once.handler(|job| async move {
///     println!("{:?}", job.body);
///     Ok(())
/// });
/// // With the claim, such as the transaction of a `PostgresStore`:
/// let within = once.handler_within(|job, claim| {
///     Box::pin(async move {
///         println!("{:?} under {claim:?}", job.body);
///         Ok(())
///     })
/// });
/// println!("{:?}", once.store());
/// # let _ = (handler, within);
/// ```
pub struct Idempotent<S> {
    store: Arc<S>,
    key: Arc<Key>,
    times: Times,
}

impl<S> Clone for Idempotent<S> {
    fn clone(&self) -> Self {
        Self { store: Arc::clone(&self.store), key: Arc::clone(&self.key), times: self.times }
    }
}

impl<S: Store> Idempotent<S> {
    /// Remembers in that store. An operation is named by its queue, its message's id and when that was sent, unless [`Idempotent::key`]
    /// says otherwise: the same in a cluster that was restored from a backup, and another in a new one.
    pub fn new(store: S) -> Self {
        let key = |job: &Job| name_of(job.queue(), job);
        let times = Times { keep_for: KEEP_FOR, claim_for: CLAIM_FOR };
        Self { store: Arc::new(store), key: Arc::new(key), times }
    }

    /// How the operation of a message is named: messages with the same name have one effect together, so what asks for different
    /// effects needs different names. Names of different handlers that share a store have to differ.
    #[must_use]
    pub fn key(mut self, key: impl Fn(&Job) -> String + Send + Sync + 'static) -> Self {
        self.key = Arc::new(key);
        self
    }

    /// How long results are remembered; 15 days unless told, which is longer than a message lives. A message for the same operation
    /// that comes later has its effect again.
    #[must_use]
    pub fn keep_for(mut self, time: Duration) -> Self {
        self.times.keep_for = time;
        self
    }

    /// How long another message for the same operation waits for a handler that says nothing; 5 min unless told. Longer than a handler
    /// may take, or both run. Deliveries of one message do not wait: they are ordered by their fencing tokens. In a `PostgresStore` it is
    /// how long an effect may leave its transaction idle, before the server rolls it back.
    #[must_use]
    pub fn claim_for(mut self, time: Duration) -> Self {
        self.times.claim_for = time;
        self
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Wraps a handler for [`crate::ConsumerBuilder::run`].
    pub fn handler<H, F>(
        &self,
        handler: H,
    ) -> impl Fn(Job) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync + 'static + use<S, H, F>
    where
        H: Fn(Job) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.handler_within(move |job, _: &mut S::Claim| Box::pin(handler(job)))
    }

    /// As [`Idempotent::handler`], for effects that use the claim: that of a `PostgresStore` is the transaction in which the result is
    /// recorded.
    pub fn handler_within<H>(
        &self,
        handler: H,
    ) -> impl Fn(Job) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync + 'static + use<S, H>
    where
        H: for<'c> Fn(Job, &'c mut S::Claim) -> BoxFuture<'c, Result<(), Failure>> + Send + Sync + 'static,
    {
        let (once, handler) = (self.clone(), Arc::new(handler));
        move |job| {
            let (once, handler) = (once.clone(), Arc::clone(&handler));
            Box::pin(async move {
                let operation = once.operation(&job);
                let applied = once.apply(&operation, move |claim| {
                    Box::pin(async move {
                        in_time(job.cancelled(), job.deadline())?;
                        handler(job, claim).await.map(|()| Bytes::new())
                    })
                });
                applied.await.map(drop)
            })
        }
    }

    /// What a job asks for.
    ///
    /// ```
    /// use leasehold_client::Job;
    /// use leasehold_client::idempotency::{Idempotent, MemoryStore, Operation};
    ///
    /// fn named(once: &Idempotent<MemoryStore>, job: &Job) -> Operation {
    ///     once.operation(job)
    /// }
    /// # let _ = named;
    /// ```
    #[must_use]
    pub fn operation(&self, job: &Job) -> Operation {
        Operation::new((self.key)(job), job)
    }

    /// Waits a moment for another message that is at the operation.
    async fn begin(&self, operation: &Operation) -> Result<Begun<S::Claim>, S::Error> {
        let (began, mut pause) = (Instant::now(), BUSY_PAUSE_MIN);
        loop {
            let begun = self.store.begin(operation, self.times).await?;
            if !matches!(begun, Begun::Busy(_)) || began.elapsed() >= BUSY_WAIT_MAX {
                return Ok(begun);
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    /// Runs an effect unless it is recorded as done, and returns its result, which may be the recorded one: for handlers that have to
    /// tell it on.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use leasehold_client::idempotency::{Idempotent, MemoryStore, Operation};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let once = Idempotent::new(MemoryStore::default());
    /// let operation = Operation { key: "order 7".into(), message: "orders/1-9".into(), fencing_token: 3 };
    /// for _ in 0..2 {
    ///     let receipt = once
    ///         .apply(&operation, |_| Box::pin(async { Ok(Bytes::from("charged")) }))
    ///         .await
    ///         .map_err(|failure| failure.to_string())?;
    ///     assert_eq!(receipt, "charged");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// That of the effect. Otherwise a [`Failure`] that tries again, since the store failed or another delivery took the operation over, or
    /// that postpones, since another message is at it.
    pub async fn apply<E>(&self, operation: &Operation, effect: E) -> Result<Bytes, Failure>
    where
        E: for<'c> FnOnce(&'c mut S::Claim) -> BoxFuture<'c, Result<Bytes, Failure>> + Send,
    {
        let key = &operation.key;
        let failed =
            |error: S::Error| Failure::retry(format!("the store of operation {key:?} failed: {error}"));
        let superseded = || Failure::retry(format!("operation {key:?} was taken over by a later delivery"));
        let mut claim = match self.begin(operation).await.map_err(failed)? {
            Begun::Claimed(claim) => claim,
            Begun::Done(result) => return Ok(result),
            Begun::Superseded => return Err(superseded()),
            Begun::Busy(left) => return Err(busy(key, left, self.times.claim_for)),
        };
        let result = match effect(&mut claim).await {
            Ok(result) => result,
            Err(failure) => {
                if let Err(error) = self.store.abandon(claim).await {
                    tracing::debug!(key, %error, "a claim could not be abandoned: it is taken over or ends");
                }
                return Err(failure);
            }
        };
        match self.store.finish(claim, result.clone()).await.map_err(failed)? {
            Finished::Recorded => Ok(result),
            Finished::Earlier(earlier) => Ok(earlier),
            Finished::Superseded => Err(superseded()),
        }
    }
}

/// An effect does not begin for a message that another delivery may have, or that nobody waits for any more: the claim may have
/// taken its time.
fn in_time(cancelled: &CancellationToken, deadline: Instant) -> Result<(), Failure> {
    if cancelled.is_cancelled() || deadline <= Instant::now() {
        return Err(Failure::retry("there was no time left for the effect"));
    }
    Ok(())
}

/// Puts the message off for as long as the other one is silent so far, where that is known: its handler may be at work, or have died
/// and come again in a moment.
fn busy(key: &str, left: Option<Duration>, claim_for: Duration) -> Failure {
    let why = format!("another message is at operation {key:?}");
    let Some(left) = left else { return Failure::postpone(PUT_OFF_BLINDLY, why) };
    let silent = claim_for.saturating_sub(left);
    let delay = silent.clamp(PUT_OFF_MIN, PUT_OFF_MAX).min(left);
    Failure::postpone(delay, format!("{why}, for {} ms at most", left.as_millis()))
}

impl<S: std::fmt::Debug> std::fmt::Debug for Idempotent<S> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Idempotent").field("store", &self.store).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Takes long to say that somebody else has it, and for how long.
    struct SlowlyBusy(Option<Duration>);

    impl Store for SlowlyBusy {
        type Error = Infallible;
        type Claim = ();

        async fn begin(&self, _: &Operation, _: Times) -> Result<Begun<()>, Infallible> {
            sleep(BUSY_WAIT_MAX).await;
            Ok(Begun::Busy(self.0))
        }

        async fn finish(&self, _: (), _: Bytes) -> Result<Finished, Infallible> {
            Ok(Finished::Recorded)
        }

        async fn abandon(&self, _: ()) -> Result<(), Infallible> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_whose_operation_is_busy_is_put_off_for_as_long_as_the_other_is_silent() {
        for (left_s, delay_s) in [(None, 5), (Some(300), 1), (Some(290), 10), (Some(200), 30), (Some(7), 7)] {
            let left = left_s.map(Duration::from_secs);
            let (once, began) = (Idempotent::new(SlowlyBusy(left)), Instant::now());
            let known = left_s.map(|left_s| format!(", for {left_s}000 ms at most")).unwrap_or_default();
            let why = format!("another message is at operation \"k\"{known}");
            let expected = Failure::postpone(Duration::from_secs(delay_s), why);
            let operation = Operation { key: "k".into(), message: "m".into(), fencing_token: 1 };
            let given_back = once.apply(&operation, |_| Box::pin(async { Ok(Bytes::new()) })).await;
            assert_eq!(given_back, Err(expected));
            assert!(began.elapsed() < BUSY_WAIT_MAX * 2, "{:?}", began.elapsed());
        }
    }

    #[tokio::test]
    async fn no_effect_begins_without_a_lease() {
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let cancelled = CancellationToken::new();
        assert_eq!(in_time(&cancelled, later), Ok(()));
        assert!(in_time(&cancelled, now).is_err());
        cancelled.cancel();
        assert!(in_time(&cancelled, later).is_err());
    }
}
