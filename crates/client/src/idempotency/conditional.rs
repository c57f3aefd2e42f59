//! A store over any table that can replace a value if it is still what it was: an embedded store, Redis, DynamoDB.
//!
//! ```text
//!   begin:   get ─▶ rule ─▶ replace what was found by the claim      ── lost the race ─▶ get again
//!   finish:  replace the claim by the result                         ── another's is there ─▶ superseded
//! ```

use std::error::Error;
use std::future::Future;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::rule::{Record, Unreadable, Verdict, judge};
use super::store::{Begun, Finished, Operation, Store, Times};

/// Races that are lost before others are let go first.
const RACES_MAX: u32 = 16;
/// How long a result is tried to be recorded: without its record the effect would be repeated.
const FINISH_TIME_MAX: Duration = Duration::from_secs(30);
const FINISH_PAUSE_MIN: Duration = Duration::from_millis(50);
const FINISH_PAUSE_MAX: Duration = Duration::from_secs(3);

/// Values under keys, replaced one at a time and on a condition.
///
/// In DynamoDB `get` is a `GetItem` with a consistent read, and `replace` a `PutItem` or `DeleteItem` with the condition
/// `attribute_not_exists(id)`, or `#value = :expected`; `keep_for` becomes the attribute of its time to live, and an item whose
/// time is over counts as missing. What it takes, over a map:
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::Mutex;
/// use std::time::Duration;
/// use bytes::Bytes;
/// use leasehold_client::idempotency::{Conditional, Idempotent, Table};
///
/// #[derive(Default)]
/// struct Items(Mutex<HashMap<String, Bytes>>);
///
/// impl Table for Items {
///     type Error = std::convert::Infallible;
///
///     async fn get(&self, key: &str) -> Result<Option<Bytes>, Self::Error> {
///         Ok(self.0.lock().unwrap().get(key).cloned())
///     }
///
///     async fn replace(
///         &self,
///         key: &str,
///         expected: Option<&Bytes>,
///         next: Option<&Bytes>,
///         _keep_for: Duration,
///     ) -> Result<bool, Self::Error> {
///         let mut items = self.0.lock().unwrap();
///         if items.get(key) != expected {
///             return Ok(false); // ConditionalCheckFailedException
///         }
///         match next {
///             Some(value) => items.insert(key.to_owned(), value.clone()),
///             None => items.remove(key),
///         };
///         Ok(true)
///     }
/// }
///
/// let once = Idempotent::new(Conditional::new(Items::default()));
/// # let _ = once;
/// ```
pub trait Table: Send + Sync + 'static {
    /// Why the table could not say.
    type Error: Error + Send + Sync + 'static;

    /// The value under a key, as of the latest write.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Bytes>, Self::Error>> + Send;

    /// Puts `next` in the place of `expected`, as one step, and forgets it after `keep_for`; `None` is no value. False, and
    /// nothing changed, when another value is there.
    fn replace(
        &self,
        key: &str,
        expected: Option<&Bytes>,
        next: Option<&Bytes>,
        keep_for: Duration,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;
}

/// A [`Store`] whose records are in a [`Table`], apart from the effects.
///
/// ```
/// use leasehold_client::idempotency::{Conditional, MemoryTable};
///
/// let store = Conditional::new(MemoryTable::default());
/// println!("{:?}", store.table());
/// ```
#[derive(Debug)]
pub struct Conditional<T> {
    table: T,
    now_ms: fn() -> u64,
}

/// The right to run an effect whose record is in a [`Table`].
///
/// ```
/// use leasehold_client::idempotency::{Claim, MemoryStore, Store};
///
/// fn is_a_claim<S: Store<Claim = Claim>>() {}
/// is_a_claim::<MemoryStore>();
/// ```
#[derive(Debug)]
pub struct Claim {
    key: String,
    record: Record,
    written: Bytes,
    keep_for: Duration,
}

/// Why a table-based store could not say.
///
/// ```
/// use leasehold_client::idempotency::ConditionalError;
///
/// fn may_pass<E>(error: &ConditionalError<E>) -> bool {
///     matches!(error, ConditionalError::Table(_))
/// }
/// assert!(!may_pass::<()>(&ConditionalError::Unreadable("a record of version 9".into())));
/// ```
#[derive(Debug, thiserror::Error)]
pub enum ConditionalError<E> {
    /// The table failed.
    #[error("{0}")]
    Table(#[source] E),
    /// A record is not one of ours, or of a newer version.
    #[error("{0}")]
    Unreadable(String),
}

impl<E> From<Unreadable> for ConditionalError<E> {
    fn from(unreadable: Unreadable) -> Self {
        Self::Unreadable(unreadable.to_string())
    }
}

impl<T: Table> Conditional<T> {
    /// Keeps its records in that table.
    pub fn new(table: T) -> Self {
        Self::with_clock(table, wall_ms)
    }

    pub(super) fn with_clock(table: T, now_ms: fn() -> u64) -> Self {
        Self { table, now_ms }
    }

    /// The table.
    pub fn table(&self) -> &T {
        &self.table
    }

    /// What is on record, and its bytes.
    async fn read(&self, key: &str) -> Result<Option<(Record, Bytes)>, ConditionalError<T::Error>> {
        let found = self.table.get(key).await.map_err(ConditionalError::Table)?;
        Ok(found.map(|bytes| Record::from_bytes(&bytes).map(|record| (record, bytes))).transpose()?)
    }

    async fn replace(
        &self,
        key: &str,
        expected: Option<&Bytes>,
        next: Option<&Bytes>,
        keep_for: Duration,
    ) -> Result<bool, ConditionalError<T::Error>> {
        self.table.replace(key, expected, next, keep_for).await.map_err(ConditionalError::Table)
    }

    /// Puts a result in the place of its claim, or of nothing: a claim that was forgotten is nobody else's. May be repeated.
    async fn record(&self, claim: &Claim, done: &Bytes) -> Result<Finished, ConditionalError<T::Error>> {
        if self.replace(&claim.key, Some(&claim.written), Some(done), claim.keep_for).await? {
            return Ok(Finished::Recorded);
        }
        let mut found = self.read(&claim.key).await?;
        if found.is_none() {
            if self.replace(&claim.key, None, Some(done), claim.keep_for).await? {
                return Ok(Finished::Recorded);
            }
            found = self.read(&claim.key).await?;
        }
        Ok(match found {
            // The answer to an earlier try was lost.
            Some((_, bytes)) if bytes == *done => Finished::Recorded,
            Some((record, _)) => record.result().cloned().map_or(Finished::Superseded, Finished::Earlier),
            None => Finished::Superseded,
        })
    }
}

impl<T: Table> Store for Conditional<T> {
    type Error = ConditionalError<T::Error>;
    type Claim = Claim;

    async fn begin(&self, operation: &Operation, times: Times) -> Result<Begun<Claim>, Self::Error> {
        let claim_ms = u64::try_from(times.claim_for.as_millis()).unwrap_or(u64::MAX);
        for _ in 0..RACES_MAX {
            let found = self.read(&operation.key).await?;
            let now_ms = (self.now_ms)();
            match judge(found.as_ref().map(|(record, _)| record), operation, now_ms) {
                Verdict::Done(result) => return Ok(Begun::Done(result)),
                Verdict::Superseded => return Ok(Begun::Superseded),
                Verdict::Busy(left) => return Ok(Begun::Busy(Some(left))),
                Verdict::Claim => {}
            }
            let record = Record::claim(operation, now_ms.saturating_add(claim_ms));
            let written = record.to_bytes();
            let expected = found.as_ref().map(|(_, bytes)| bytes);
            let lasts = times.keep_for.max(times.claim_for);
            if self.replace(&operation.key, expected, Some(&written), lasts).await? {
                let (key, keep_for) = (operation.key.clone(), times.keep_for);
                return Ok(Begun::Claimed(Claim { key, record, written, keep_for }));
            }
        }
        Ok(Begun::Busy(None))
    }

    async fn finish(&self, claim: Claim, result: Bytes) -> Result<Finished, Self::Error> {
        let done = claim.record.clone().with_result(result).to_bytes();
        let (began, mut pause) = (Instant::now(), FINISH_PAUSE_MIN);
        loop {
            match self.record(&claim, &done).await {
                Err(ConditionalError::Table(error)) if began.elapsed() < FINISH_TIME_MAX => {
                    tracing::warn!(key = claim.key, %error, "a result was not recorded: trying again");
                }
                finished => return finished,
            }
            sleep(pause).await;
            pause = (pause * 2).min(FINISH_PAUSE_MAX);
        }
    }

    async fn abandon(&self, claim: Claim) -> Result<(), Self::Error> {
        // Where it is not ours any more, there is nothing to abandon.
        self.replace(&claim.key, Some(&claim.written), None, Duration::ZERO).await.map(drop)
    }
}

pub(super) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::idempotency::{Idempotent, MemoryTable};

    const SECOND: Duration = Duration::from_secs(1);

    #[derive(Debug, thiserror::Error)]
    #[error("a hiccup")]
    struct Hiccup;

    /// After its first write, the claim, it fails twice: once before it has written, and once after.
    #[derive(Default)]
    struct Hiccups {
        table: MemoryTable,
        writes: AtomicU32,
    }

    impl Table for Hiccups {
        type Error = Hiccup;

        async fn get(&self, key: &str) -> Result<Option<Bytes>, Hiccup> {
            Ok(self.table.get(key).await.unwrap())
        }

        async fn replace(
            &self,
            key: &str,
            expected: Option<&Bytes>,
            next: Option<&Bytes>,
            keep_for: Duration,
        ) -> Result<bool, Hiccup> {
            let before = self.writes.fetch_add(1, Ordering::SeqCst);
            if before == 1 {
                return Err(Hiccup);
            }
            let replaced = self.table.replace(key, expected, next, keep_for).await.unwrap();
            if before == 2 { Err(Hiccup) } else { Ok(replaced) }
        }
    }

    fn operation(message: &str, fencing_token: u64) -> Operation {
        Operation { key: "k".into(), message: message.into(), fencing_token }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hiccup_of_the_table_after_an_effect_does_not_repeat_it() {
        let once = Idempotent::new(Conditional::new(Hiccups::default()));
        let effects = Arc::new(AtomicU32::new(0));
        for fencing_token in [1, 2] {
            let (operation, effects) = (operation("m", fencing_token), Arc::clone(&effects));
            let applied = once.apply(&operation, move |_| {
                Box::pin(async move {
                    effects.fetch_add(1, Ordering::SeqCst);
                    Ok(Bytes::from("done"))
                })
            });
            assert_eq!(applied.await.unwrap(), "done");
        }
        assert_eq!(effects.load(Ordering::SeqCst), 1);
        assert_eq!(once.store().table().writes.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_outlasts_the_time_of_records_and_a_result_its_claim() {
        let store = Conditional::new(MemoryTable::default());
        let times = Times { keep_for: SECOND, claim_for: SECOND * 5 };
        let Begun::Claimed(claim) = store.begin(&operation("m", 1), times).await.unwrap() else {
            panic!("it is free");
        };
        tokio::time::advance(SECOND * 4).await;
        assert!(matches!(store.begin(&operation("n", 1), times).await.unwrap(), Begun::Busy(Some(_))));
        tokio::time::advance(SECOND * 4).await;
        assert_eq!(store.finish(claim, Bytes::from("late")).await.unwrap(), Finished::Recorded);
        let again = store.begin(&operation("n", 1), times).await.unwrap();
        assert!(matches!(again, Begun::Done(result) if result == "late"));
    }
}
