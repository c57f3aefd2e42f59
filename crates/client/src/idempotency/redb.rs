//! Records in a file of this machine, with `redb`: every write is synced before it counts.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redb::{Database, ReadableDatabase, ReadableTable, Table as Rows, TableDefinition, TableError};
use bytes::Bytes;

use super::conditional::{Conditional, Table, wall_ms};

/// By key: when it is forgotten, in wall time, and the record.
const VALUES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("leasehold_operations_1");
/// The same by their ends.
const ENDS: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("leasehold_operation_ends_1");
/// Records that are removed by each write when their time is over.
const EXPIRED_MAX: usize = 16;

/// A store in a file that one process has open. Writes take turns, with a sync each: some hundred operations a second on a
/// usual disk. After an error of the disk the file is opened again, and repaired where that is needed.
///
/// ```no_run
/// use leasehold_client::idempotency::{Idempotent, redb::RedbStore};
///
/// let once = Idempotent::new(RedbStore::open("operations.redb")?);
/// # let _ = once;
/// # Ok::<(), leasehold_client::idempotency::redb::RedbError>(())
/// ```
pub type RedbStore = Conditional<RedbTable>;

/// Values in a file.
///
/// ```no_run
/// use leasehold_client::idempotency::redb::{RedbError, RedbStore, RedbTable};
///
/// # fn example() -> Result<(), RedbError> {
/// let store = RedbStore::open("operations.redb")?;
/// let table: &RedbTable = store.table();
/// # let _ = table;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RedbTable {
    file: Arc<File>,
}

/// The file, open unless it failed.
#[derive(Debug)]
struct File {
    path: PathBuf,
    database: Mutex<Option<Arc<Database>>>,
}

/// Why the file could not say.
#[derive(Debug, thiserror::Error)]
pub enum RedbError {
    /// The file cannot be read or written: is it open elsewhere, is the disk full?
    #[error("{0}")]
    Database(#[from] ::redb::Error),
    /// The runtime is stopping, or the write panicked.
    #[error("the work was not finished: {0}")]
    Unfinished(String),
}

impl RedbStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// When it is open elsewhere, is not such a file, or cannot be read or written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RedbError> {
        // The folder of the process may be another one when the file is opened again.
        let path = std::path::absolute(path).map_err(::redb::Error::from)?;
        let database = Database::create(&path).map_err(::redb::Error::from)?;
        let file = File { path, database: Mutex::new(Some(Arc::new(database))) };
        Ok(Self::new(RedbTable { file: Arc::new(file) }))
    }
}

impl File {
    /// `redb` refuses everything after an error of the disk, until the file is opened anew: the next call does that.
    fn run<T>(&self, work: impl FnOnce(&Database) -> Result<T, ::redb::Error>) -> Result<T, ::redb::Error> {
        let database = self.opened()?;
        let done = work(&database);
        if let Err(::redb::Error::Io(_) | ::redb::Error::PreviousIo) = &done {
            self.close(&database);
        }
        done
    }

    fn opened(&self) -> Result<Arc<Database>, ::redb::Error> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*database {
            return Ok(Arc::clone(open));
        }
        // A file that is gone is not made anew: it would have forgotten everything.
        let open = Arc::new(Database::open(&self.path)?);
        *database = Some(Arc::clone(&open));
        Ok(open)
    }

    /// Those who still work with it end with errors; another one may have been opened meanwhile.
    fn close(&self, failed: &Arc<Database>) {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if database.as_ref().is_some_and(|open| Arc::ptr_eq(open, failed)) {
            *database = None;
        }
    }
}

impl RedbTable {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, ::redb::Error> + Send + 'static,
    ) -> Result<T, RedbError> {
        let file = Arc::clone(&self.file);
        let done = tokio::task::spawn_blocking(move || file.run(work)).await;
        Ok(done.map_err(|error| RedbError::Unfinished(error.to_string()))??)
    }
}

impl Table for RedbTable {
    type Error = RedbError;

    async fn get(&self, key: &str) -> Result<Option<Bytes>, RedbError> {
        let key = key.to_owned();
        self.blocking(move |database| {
            let transaction = database.begin_read()?;
            let values = match transaction.open_table(VALUES) {
                // Nothing was ever written.
                Err(TableError::TableDoesNotExist(_)) => return Ok(None),
                values => values?,
            };
            Ok(live(&values, &key)?.map(Bytes::from))
        })
        .await
    }

    async fn replace(
        &self,
        key: &str,
        expected: Option<&Bytes>,
        next: Option<&Bytes>,
        keep_for: Duration,
    ) -> Result<bool, RedbError> {
        let (key, expected, next) = (key.to_owned(), expected.cloned(), next.cloned());
        let end_ms = wall_ms().saturating_add(u64::try_from(keep_for.as_millis()).unwrap_or(u64::MAX));
        self.blocking(move |database| {
            let transaction = database.begin_write()?;
            {
                let mut values = transaction.open_table(VALUES)?;
                let mut ends = transaction.open_table(ENDS)?;
                if live(&values, &key)?.as_deref() != expected.as_deref() {
                    return Ok(false);
                }
                remove(&mut values, &mut ends, &key)?;
                if let Some(next) = &next {
                    values.insert(key.as_str(), (end_ms, next.as_ref()))?;
                    ends.insert((end_ms, key.as_str()), ())?;
                }
                remove_expired(&mut values, &mut ends)?;
            }
            transaction.commit()?;
            Ok(true)
        })
        .await
    }
}

/// The value under a key, unless its time is over.
fn live(
    values: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
    key: &str,
) -> Result<Option<Vec<u8>>, ::redb::Error> {
    let found = values.get(key)?;
    Ok(found.and_then(|found| {
        let (end_ms, value) = found.value();
        (end_ms > wall_ms()).then(|| value.to_vec())
    }))
}

type Values<'t> = Rows<'t, &'static str, (u64, &'static [u8])>;
type Ends<'t> = Rows<'t, (u64, &'static str), ()>;

fn remove(values: &mut Values<'_>, ends: &mut Ends<'_>, key: &str) -> Result<(), ::redb::Error> {
    let end_ms = values.remove(key)?.map(|removed| removed.value().0);
    if let Some(end_ms) = end_ms {
        ends.remove((end_ms, key))?;
    }
    Ok(())
}

fn remove_expired(values: &mut Values<'_>, ends: &mut Ends<'_>) -> Result<(), ::redb::Error> {
    let now_ms = wall_ms();
    for _ in 0..EXPIRED_MAX {
        let first = ends.first()?.map(|(end, _)| (end.value().0, end.value().1.to_owned()));
        let Some((_, key)) = first.filter(|(end_ms, _)| *end_ms <= now_ms) else { break };
        remove(values, ends, &key)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn after_an_error_of_the_disk_the_file_is_opened_again() {
        let name = format!("leasehold-redb-{}-{}", std::process::id(), wall_ms());
        let path = std::env::temp_dir().join(name);
        let store = RedbStore::open(&path).unwrap();
        let (table, value) = (store.table(), Bytes::from("done"));
        assert!(table.replace("k", None, Some(&value), Duration::from_secs(60)).await.unwrap());
        let failed = table.blocking(|_| Err::<(), _>(::redb::Error::PreviousIo)).await;
        assert!(failed.is_err());
        assert!(table.file.database.lock().unwrap().is_none());
        assert_eq!(table.get("k").await.unwrap(), Some(value));
        drop(store);
        std::fs::remove_file(path).unwrap();
    }
}
