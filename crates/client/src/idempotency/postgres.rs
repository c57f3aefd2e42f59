//! Records in PostgreSQL, in the transaction of the effect: both happen, or neither does.
//!
//! ```text
//!   begin     BEGIN; insert the record        a second one for the key waits here until the first has ended
//!   effect    … on claim.connection()
//!   finish    set the result; COMMIT
//! ```
//!
//! A crash at any point before the commit rolls both back. A handler that lost its lease and goes on holds the row: the next
//! delivery waits for it, and then finds its result or its rollback. One that leaves its transaction idle for longer than
//! `claim_for`, because its machine died or it waits for something else, is rolled back by the server.

use std::time::Duration;

use bytes::Bytes;
use sqlx::postgres::{PgConnection, PgPool, PgRow};
use sqlx::{Postgres, Row, Transaction};

use super::store::{Begun, Finished, Operation, Store, Times};

/// How long a second one for the same operation waits for the first before its message is given back.
const LOCK_WAIT: &str = "2s";
/// Of PostgreSQL: the lock was not to be had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// Rows that vanish between two statements before others are let go first.
const RACES_MAX: u32 = 16;
/// A longer key is kept as its hash: an index takes some 2,700 bytes.
const KEY_BYTES_MAX: usize = 1_024;
/// The longest that the server can be told to wait for a transaction.
const IDLE_MS_MAX: u128 = i32::MAX as u128;
/// A hundred years, which can still be added to a timestamp.
const KEEP_S_MAX: f64 = 100.0 * 365.0 * 24.0 * 60.0 * 60.0;

/// A store in the table `leasehold_operations`. A key that PostgreSQL cannot store, with a `\0` or of more than 1,024 bytes, is
/// kept as its SHA-256.
///
/// ```no_run
/// use leasehold_client::Failure;
/// use leasehold_client::idempotency::{Idempotent, postgres::PostgresStore};
///
/// # async fn example(queue: leasehold_client::Queue) -> Result<(), Box<dyn std::error::Error>> {
/// let store = PostgresStore::new(sqlx::PgPool::connect("postgres://127.0.0.1/shop").await?);
/// store.create_table().await?;
/// let once = Idempotent::new(store);
/// let handler = once.handler_within(|job, claim| {
///     Box::pin(async move {
///         sqlx::query("update stock set left = left - 1 where item = $1")
///             .bind(String::from_utf8_lossy(&job.body).into_owned())
///             .execute(claim.connection())
///             .await?;
///         Ok::<(), Failure>(())
///     })
/// });
/// queue.consumer().run(handler).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct PostgresStore {
    pool: PgPool,
}

/// An operation that is under way, and its transaction. Dropped, both are rolled back.
///
/// ```no_run
/// use leasehold_client::idempotency::postgres::PostgresClaim;
///
/// async fn effect(claim: &mut PostgresClaim) -> Result<(), sqlx::Error> {
///     sqlx::query("update stock set left = left - 1").execute(claim.connection()).await?;
///     Ok(())
/// }
/// # let _ = effect;
/// ```
#[derive(Debug)]
pub struct PostgresClaim {
    transaction: Transaction<'static, Postgres>,
    /// As it is stored.
    key: String,
    keep_for: Duration,
}

impl PostgresClaim {
    /// Where the effect has to happen to happen with its record.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }
}

impl PostgresStore {
    /// Keeps its records in that database. Each handler at work has a connection of the pool.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Makes the table where it is missing.
    ///
    /// # Errors
    /// When the database cannot be reached or does not allow it.
    pub async fn create_table(&self) -> Result<(), sqlx::Error> {
        // Two that make it at once would meet in the catalogue of the database.
        let mut transaction = self.pool.begin().await?;
        sqlx::query("select pg_advisory_xact_lock(hashtext('leasehold_operations'))")
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "create table if not exists leasehold_operations (
                 key text primary key,
                 message text not null,
                 fencing_token bigint not null,
                 result bytea not null,
                 expires_at timestamptz not null
             )",
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query(
            "create index if not exists leasehold_operations_expiry on leasehold_operations (expires_at)",
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    }

    /// Removes up to so many records whose time is over, and says how many: call it from time to time. Records that are over count as
    /// missing also before.
    ///
    /// ```no_run
    /// # async fn example(store: leasehold_client::idempotency::postgres::PostgresStore) -> Result<(), sqlx::Error> {
    /// while store.remove_expired(1_000).await? > 0 {}
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn remove_expired(&self, records_max: u32) -> Result<u64, sqlx::Error> {
        let removed = sqlx::query(
            "delete from leasehold_operations where key in (
                 select key from leasehold_operations where expires_at <= now()
                 order by expires_at limit $1 for update skip locked
             )",
        )
        .bind(i64::from(records_max))
        .execute(&self.pool)
        .await?;
        Ok(removed.rows_affected())
    }

    /// The row of the operation is this transaction's, or what was recorded before.
    async fn claim_or_result(
        &self,
        operation: &Operation,
        times: Times,
    ) -> Result<Begun<PostgresClaim>, sqlx::Error> {
        for _ in 0..RACES_MAX {
            let mut transaction = self.pool.begin().await?;
            let patience = bound(&mut transaction, times.claim_for).await?;
            let key = stored_key(&mut transaction, &operation.key).await?;
            if insert(&mut transaction, &key, operation, times.keep_for).await? {
                // The effect has the patience of the session.
                sqlx::query("select set_config('lock_timeout', $1, true)")
                    .bind(patience)
                    .execute(&mut *transaction)
                    .await?;
                let keep_for = times.keep_for;
                return Ok(Begun::Claimed(PostgresClaim { transaction, key, keep_for }));
            }
            let found: Option<PgRow> = sqlx::query("select result from leasehold_operations where key = $1")
                .bind(key)
                .fetch_optional(&mut *transaction)
                .await?;
            if let Some(row) = found {
                return Ok(Begun::Done(row.try_get::<Vec<u8>, _>(0)?.into()));
            }
        }
        Ok(Begun::Busy(None))
    }
}

/// Bounds how long the transaction waits for another one, and how long it may be idle. Returns the bound of the first that the
/// session had, read before it is changed.
async fn bound(
    transaction: &mut Transaction<'static, Postgres>,
    claim_for: Duration,
) -> Result<String, sqlx::Error> {
    sqlx::query_scalar(
        "with before as materialized (select current_setting('lock_timeout') as patience)
         select patience, set_config('lock_timeout', $1, true),
                set_config('idle_in_transaction_session_timeout', $2, true)
         from before",
    )
    .bind(LOCK_WAIT)
    .bind(claim_for.as_millis().clamp(1, IDLE_MS_MAX).to_string())
    .fetch_one(&mut **transaction)
    .await
}

/// The key itself where PostgreSQL can store it.
async fn stored_key(
    transaction: &mut Transaction<'static, Postgres>,
    key: &str,
) -> Result<String, sqlx::Error> {
    if key.len() <= KEY_BYTES_MAX && !key.contains('\0') {
        return Ok(key.to_owned());
    }
    sqlx::query_scalar("select 'sha256:' || encode(sha256($1), 'hex')")
        .bind(key.as_bytes())
        .fetch_one(&mut **transaction)
        .await
}

/// True when the row was missing or its time was over.
async fn insert(
    transaction: &mut Transaction<'static, Postgres>,
    key: &str,
    operation: &Operation,
    keep_for: Duration,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(
        "insert into leasehold_operations as known (key, message, fencing_token, result, expires_at)
         values ($1, $2, $3, '', now() + $4 * interval '1 second')
         on conflict (key) do update
             set message = excluded.message, fencing_token = excluded.fencing_token,
                 result = excluded.result, expires_at = excluded.expires_at
             where known.expires_at <= now()",
    )
    .bind(key)
    .bind(&operation.message)
    .bind(operation.fencing_token.cast_signed())
    .bind(seconds(keep_for))
    .execute(&mut **transaction)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

fn seconds(keep_for: Duration) -> f64 {
    keep_for.as_secs_f64().min(KEEP_S_MAX)
}

impl Store for PostgresStore {
    type Error = sqlx::Error;
    type Claim = PostgresClaim;

    async fn begin(&self, operation: &Operation, times: Times) -> Result<Begun<PostgresClaim>, sqlx::Error> {
        match self.claim_or_result(operation, times).await {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(LOCK_NOT_AVAILABLE) => {
                Ok(Begun::Busy(None))
            }
            begun => begun,
        }
    }

    async fn finish(&self, claim: PostgresClaim, result: Bytes) -> Result<Finished, sqlx::Error> {
        let PostgresClaim { mut transaction, key, keep_for } = claim;
        // Its time runs from now on: the effect may have taken longer than results are kept.
        sqlx::query(
            "update leasehold_operations
             set result = $2, expires_at = clock_timestamp() + $3 * interval '1 second'
             where key = $1",
        )
        .bind(key)
        .bind(result.as_ref())
        .bind(seconds(keep_for))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Finished::Recorded)
    }

    async fn abandon(&self, claim: PostgresClaim) -> Result<(), sqlx::Error> {
        claim.transaction.rollback().await
    }
}
