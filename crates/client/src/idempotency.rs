//! Effects that happen once although messages may come twice.
//!
//! [`Once`] claims the operation of a message in a store, runs the effect, and records its result. What a crash leaves behind:
//!
//! | crash | next delivery |
//! |---|---|
//! | before the claim | runs the effect |
//! | between claim and record | runs the effect **again**: it has to carry the fencing token, or be idempotent by itself |
//! | after the record | returns the recorded result |

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::Delivery;
use crate::message::IdText;

/// Names what a message asks for: the same at every delivery. A message that moved to a dead-letter queue or back is another,
/// since fencing tokens cannot be compared between partitions.
#[must_use]
pub fn operation_id(delivery: &Delivery) -> String {
    format!("{}/{}", delivery.queue(), IdText(delivery.id))
}

/// What a store keeps of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Somebody started on it.
    Claimed,
    /// It happened, with this result.
    Done(Bytes),
}

/// An operation in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Of the delivery that wrote it.
    pub fencing_token: u64,
    /// How far it came.
    pub progress: Progress,
}

/// What became of a conditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// The record is there now.
    Written,
    /// This record was there, and stays.
    Refused(Record),
}

/// A store that decides a condition and a write as one step.
pub trait ConditionalStore: Send + Sync {
    /// Why the store could not say.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Writes the record, unless the one that is there is `Done` or has a larger fencing token.
    fn put_if_newer(
        &self,
        key: &str,
        fencing_token: u64,
        progress: Progress,
    ) -> impl Future<Output = Result<Put, Self::Error>> + Send;
}

/// A store for tests: it forgets everything with the process, which is when it would be needed.
#[derive(Debug, Default)]
pub struct InMemoryStore {
    records: Mutex<HashMap<String, Record>>,
}

impl ConditionalStore for InMemoryStore {
    type Error = Infallible;

    async fn put_if_newer(
        &self,
        key: &str,
        fencing_token: u64,
        progress: Progress,
    ) -> Result<Put, Infallible> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = records.get(key)
            && (matches!(record.progress, Progress::Done(_)) || record.fencing_token > fencing_token)
        {
            return Ok(Put::Refused(record.clone()));
        }
        records.insert(key.to_owned(), Record { fencing_token, progress });
        Ok(Put::Written)
    }
}

/// Why an operation has no result.
#[derive(Debug, thiserror::Error)]
pub enum OnceError<E, S> {
    /// A later delivery of the same message has it: stop, and do not ack.
    #[error("a later delivery took the operation over")]
    Superseded,
    /// The effect failed.
    #[error("the effect failed: {0}")]
    Effect(#[source] E),
    /// The store failed; when the effect had run already, it runs again at the next delivery.
    #[error("the store failed: {0}")]
    Store(#[source] S),
}

/// Runs effects once, as far as its store remembers.
#[derive(Debug)]
pub struct Once<S> {
    store: S,
}

impl<S: ConditionalStore> Once<S> {
    /// Remembers in `store`.
    pub fn new(store: S) -> Self {
        Self { store }
    }

    /// Runs the effect of a message unless it is recorded as done, and returns its result, which may be the recorded one.
    ///
    /// # Errors
    /// When the effect or the store failed, or a later delivery has taken the operation over.
    pub async fn run<F, E>(
        &self,
        delivery: &Delivery,
        effect: impl FnOnce() -> F,
    ) -> Result<Bytes, OnceError<E, S::Error>>
    where
        F: Future<Output = Result<Bytes, E>>,
    {
        self.run_as(&operation_id(delivery), delivery.fencing_token, effect).await
    }

    /// As [`Once::run`], for an operation that has a name of its own, such as an order number. Tokens under one key have to be
    /// of one message or message group: those of different partitions cannot be compared.
    ///
    /// # Errors
    /// As [`Once::run`].
    pub async fn run_as<F, E>(
        &self,
        key: &str,
        fencing_token: u64,
        effect: impl FnOnce() -> F,
    ) -> Result<Bytes, OnceError<E, S::Error>>
    where
        F: Future<Output = Result<Bytes, E>>,
    {
        if let Some(done) = self.put(key, fencing_token, Progress::Claimed).await? {
            return Ok(done);
        }
        let result = effect().await.map_err(OnceError::Effect)?;
        let earlier = self.put(key, fencing_token, Progress::Done(result.clone())).await?;
        Ok(earlier.unwrap_or(result))
    }

    /// The recorded result, when there is one already.
    async fn put<E>(
        &self,
        key: &str,
        fencing_token: u64,
        progress: Progress,
    ) -> Result<Option<Bytes>, OnceError<E, S::Error>> {
        let put = self.store.put_if_newer(key, fencing_token, progress).await.map_err(OnceError::Store)?;
        match put {
            Put::Written => Ok(None),
            Put::Refused(Record { progress: Progress::Done(result), .. }) => Ok(Some(result)),
            Put::Refused(_) => Err(OnceError::Superseded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn effect(result: &'static str) -> Result<Bytes, Infallible> {
        Ok(Bytes::from(result))
    }

    #[tokio::test]
    async fn the_first_result_stays() {
        let once = Once::new(InMemoryStore::default());
        assert_eq!(once.run_as("a", 1, || effect("first")).await.unwrap(), "first");
        assert_eq!(once.run_as("a", 2, || effect("second")).await.unwrap(), "first");
        assert_eq!(once.run_as("b", 1, || effect("other")).await.unwrap(), "other");
    }

    #[tokio::test]
    async fn a_failed_effect_runs_again() {
        let once = Once::new(InMemoryStore::default());
        let failed = once.run_as("a", 1, || async { Err::<Bytes, _>("no") }).await;
        assert!(matches!(failed, Err(OnceError::Effect("no"))));
        assert_eq!(once.run_as("a", 1, || effect("yes")).await.unwrap(), "yes");
    }

    #[tokio::test]
    async fn an_older_delivery_is_superseded() {
        let once = Once::new(InMemoryStore::default());
        let put = once.store.put_if_newer("a", 7, Progress::Claimed).await.unwrap();
        assert_eq!(put, Put::Written);
        let older = once.run_as("a", 6, || effect("late")).await;
        assert!(matches!(older, Err(OnceError::Superseded)));
        assert_eq!(once.run_as("a", 7, || effect("mine")).await.unwrap(), "mine");
    }
}
