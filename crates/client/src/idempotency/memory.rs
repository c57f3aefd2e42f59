//! Records in the memory of the process.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::conditional::{Conditional, Table};
use crate::client::TIME_MAX;

/// Records that are looked at for their end by each write.
const EXPIRED_MAX: usize = 16;

/// A store that forgets everything with its process: redelivered messages that the process acked before it ended are recognised,
/// those that outlive it are not.
///
/// ```
/// use leasehold_client::idempotency::{Idempotent, MemoryStore};
///
/// let once = Idempotent::new(MemoryStore::default());
/// # let _ = once;
/// ```
pub type MemoryStore = Conditional<MemoryTable>;

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(MemoryTable::default())
    }
}

/// Values in memory, each forgotten when its time is over.
///
/// ```
/// use std::time::Duration;
/// use bytes::Bytes;
/// use leasehold_client::idempotency::{MemoryTable, Table};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), std::convert::Infallible> {
/// let (table, value) = (MemoryTable::default(), Bytes::from("done"));
/// assert!(table.replace("order 7", None, Some(&value), Duration::from_secs(60)).await?);
/// assert_eq!(table.get("order 7").await?, Some(value));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct MemoryTable {
    values: Mutex<Values>,
}

#[derive(Debug, Default)]
struct Values {
    by_key: HashMap<String, (Bytes, Instant)>,
    /// By their ends.
    ends: BTreeSet<(Instant, String)>,
}

impl Values {
    fn remove(&mut self, key: &str) {
        if let Some((_, end)) = self.by_key.remove(key) {
            self.ends.remove(&(end, key.to_owned()));
        }
    }

    fn insert(&mut self, key: &str, value: Bytes, end: Instant) {
        self.remove(key);
        self.by_key.insert(key.to_owned(), (value, end));
        self.ends.insert((end, key.to_owned()));
    }

    fn expire(&mut self, now: Instant) {
        for _ in 0..EXPIRED_MAX {
            let Some((end, _)) = self.ends.first() else { return };
            if *end > now {
                return;
            }
            if let Some((_, key)) = self.ends.pop_first() {
                self.by_key.remove(&key);
            }
        }
    }

    fn get(&self, key: &str, now: Instant) -> Option<&Bytes> {
        self.by_key.get(key).filter(|(_, end)| *end > now).map(|(value, _)| value)
    }
}

impl Table for MemoryTable {
    type Error = Infallible;

    async fn get(&self, key: &str) -> Result<Option<Bytes>, Infallible> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(values.get(key, Instant::now()).cloned())
    }

    async fn replace(
        &self,
        key: &str,
        expected: Option<&Bytes>,
        next: Option<&Bytes>,
        keep_for: Duration,
    ) -> Result<bool, Infallible> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        values.expire(now);
        if values.get(key, now) != expected {
            return Ok(false);
        }
        match next {
            Some(value) => values.insert(key, value.clone(), now + keep_for.min(TIME_MAX)),
            None => values.remove(key),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_value_is_forgotten_when_its_time_is_over() {
        let table = MemoryTable::default();
        let (one, two) = (Bytes::from("1"), Bytes::from("2"));
        let second = Duration::from_secs(1);
        assert!(table.replace("a", None, Some(&one), second).await.unwrap());
        assert!(!table.replace("a", None, Some(&two), second).await.unwrap());
        assert!(table.replace("a", Some(&one), Some(&two), second * 3).await.unwrap());
        tokio::time::advance(second * 2).await;
        assert_eq!(table.get("a").await.unwrap(), Some(two));
        tokio::time::advance(second).await;
        assert_eq!(table.get("a").await.unwrap(), None);
        assert!(table.replace("b", None, Some(&one), Duration::MAX).await.unwrap());
        let values = table.values.lock().unwrap();
        assert_eq!((values.by_key.len(), values.ends.len()), (1, 1));
    }
}
