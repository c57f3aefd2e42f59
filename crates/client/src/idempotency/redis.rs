//! Records in Redis.

use std::time::Duration;

use ::redis::aio::ConnectionManager;
use ::redis::{Client, IntoConnectionInfo, RedisError, cmd};
use bytes::Bytes;

use super::conditional::{Conditional, Table};

/// Replaces a value on a condition, as one step of the server. An empty argument is no value: a record is never empty.
const REPLACE: &str = "
local found = redis.call('GET', KEYS[1]) or ''
if found ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1";
/// A hundred years, which the server can still add to its clock.
const KEEP_MS_MAX: u64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// A store in Redis. What it survives depends on the server: with `appendonly yes` and `appendfsync always` a record is on its
/// disk before the effect runs; by default the last second may be lost with the machine, and a fail-over to a replica may lose
/// more. What is lost is as if it had crashed before.
///
/// ```no_run
/// use leasehold_client::idempotency::{Idempotent, redis::RedisStore};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let once = Idempotent::new(RedisStore::connect("redis://127.0.0.1/", "operations:").await?);
/// # let _ = once;
/// # Ok(())
/// # }
/// ```
pub type RedisStore = Conditional<RedisTable>;

/// Values in Redis, under keys that begin alike.
///
/// ```no_run
/// use leasehold_client::idempotency::redis::{RedisStore, RedisTable};
///
/// fn table(store: &RedisStore) -> &RedisTable {
///     store.table()
/// }
/// # let _ = table;
/// ```
#[derive(Clone)]
pub struct RedisTable {
    connection: ConnectionManager,
    prefix: String,
}

impl RedisStore {
    /// Connects, and again whenever the connection is lost. Keys get the prefix.
    ///
    /// # Errors
    /// When the address is malformed or nobody answers there.
    pub async fn connect(
        address: impl IntoConnectionInfo,
        prefix: impl Into<String>,
    ) -> Result<Self, RedisError> {
        let connection = ConnectionManager::new(Client::open(address)?).await?;
        Ok(Self::new(RedisTable { connection, prefix: prefix.into() }))
    }
}

impl Table for RedisTable {
    type Error = RedisError;

    async fn get(&self, key: &str) -> Result<Option<Bytes>, RedisError> {
        let mut connection = self.connection.clone();
        let found: Option<Vec<u8>> =
            cmd("GET").arg(format!("{}{key}", self.prefix)).query_async(&mut connection).await?;
        Ok(found.map(Bytes::from))
    }

    async fn replace(
        &self,
        key: &str,
        expected: Option<&Bytes>,
        next: Option<&Bytes>,
        keep_for: Duration,
    ) -> Result<bool, RedisError> {
        let mut connection = self.connection.clone();
        let value = |value: Option<&Bytes>| value.map_or_else(Vec::new, |value| value.to_vec());
        let keep_ms = u64::try_from(keep_for.as_millis()).unwrap_or(u64::MAX).clamp(1, KEEP_MS_MAX);
        let mut replace = cmd("EVAL");
        replace.arg(REPLACE).arg(1).arg(format!("{}{key}", self.prefix));
        replace.arg(value(expected)).arg(value(next)).arg(keep_ms);
        replace.query_async(&mut connection).await
    }
}

impl std::fmt::Debug for RedisTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RedisTable").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
