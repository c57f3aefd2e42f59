//! W7: a clickstream: 50,000 events of 500 B a second become rows of an embedded store, which an event that comes twice changes
//! once.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use redb::{Database, Durability, ReadableTable, TableDefinition};

use super::Plan;
use super::paced::{self, Paced, Work};
use crate::compare::bodies::Stamp;
use crate::compare::results::Log;
use crate::compare::system::{Doing, Failure, System};

const RATE_PER_S: u64 = 50_000;
const BODY_BYTES: usize = 500;
/// Rows that events belong to.
const VISITORS: u64 = 100_000;
/// The newest event of each visitor.
const NEWEST: TableDefinition<'_, u64, u64> = TableDefinition::new("newest");

pub async fn run(system: &dyn System, plan: &Plan, log: &mut Log) -> Result<(), Failure> {
    let store = Store::create(&system.dir().join("store.redb"))?;
    let work = Arc::new(store);
    let paced =
        Paced { queue: "clicks", rate_per_s: RATE_PER_S, bytes: BODY_BYTES, time: plan.pipeline_time, work };
    let readings = paced::run(system, &paced).await?;
    log.record(format!("W7 50,000/s of {BODY_BYTES} B for {} s", plan.pipeline_time.as_secs()), readings);
    Ok(())
}

struct Store {
    database: Arc<Database>,
}

impl Store {
    fn create(path: &Path) -> Result<Self, Failure> {
        Ok(Self { database: Arc::new(Database::create(path)?) })
    }
}

impl Work for Store {
    /// In one transaction. It is not synced: the queue still has what the store would lose with the machine only until the ack,
    /// so a real pipeline syncs now and then and acknowledges behind that; what is measured here is the queue.
    fn done<'a>(&'a self, bodies: &'a [Bytes]) -> Doing<'a, ()> {
        let database = Arc::clone(&self.database);
        let numbers = bodies.iter().filter_map(|body| Stamp::of(body)).map(|stamp| stamp.number).collect();
        async move { tokio::task::spawn_blocking(move || upsert(&database, numbers)).await? }.boxed()
    }
}

/// An event that is older than what the row has changes nothing, and so does one that comes again.
fn upsert(database: &Database, numbers: Vec<u64>) -> Result<(), Failure> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::None)?;
    {
        let mut newest = transaction.open_table(NEWEST)?;
        for number in numbers {
            let visitor = number % VISITORS;
            let is_newer = newest.get(visitor)?.is_none_or(|known| known.value() < number);
            if is_newer {
                newest.insert(visitor, number)?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use redb::ReadableDatabase;

    use super::*;

    #[test]
    fn an_event_that_comes_again_or_late_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&dir.path().join("s.redb")).unwrap();
        upsert(&store.database, vec![7, 7 + VISITORS, 8]).unwrap();
        upsert(&store.database, vec![7, 8]).unwrap();
        let newest = store.database.begin_read().unwrap().open_table(NEWEST).unwrap();
        let of = |visitor| newest.get(visitor).unwrap().map(|number| number.value());
        assert_eq!((of(7), of(8), of(9)), (Some(7 + VISITORS), Some(8), None));
    }
}
