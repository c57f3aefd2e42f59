//! W7: a clickstream: 50,000 events of 500 B a second become rows of an embedded store, which an event that comes twice changes
//! once.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use redb::{Database, Durability, ReadableTable, TableDefinition};

use super::Plan;
use super::paced::{self, BEHIND_MAX, Paced, Work};
use crate::compare::bodies::Stamp;
use crate::compare::metric::Metric;
use crate::compare::results::Log;
use crate::compare::system::{Doing, Failure, System};

const RATE_PER_S: u64 = 50_000;
const BODY_BYTES: usize = 500;
/// Rows that events belong to.
const VISITORS: u64 = 100_000;
/// The newest event of each visitor.
const NEWEST: TableDefinition<'_, u64, u64> = TableDefinition::new("newest");

/// Once, and a second time for longer if the system did not fall behind.
pub async fn run(system: &dyn System, plan: &Plan, log: &mut Log) -> Result<(), Failure> {
    let first = run_for(plan.pipeline_time, "clicks", system, log).await?;
    match (first, plan.pipeline_held_time) {
        (Verdict::KeptUp, Some(time)) => run_for(time, "clicks-held", system, log).await.map(drop),
        _ => Ok(()),
    }
}

enum Verdict {
    KeptUp,
    FellBehind,
}

/// With a queue and a store of its own.
async fn run_for(
    time: Duration,
    queue: &'static str,
    system: &dyn System,
    log: &mut Log,
) -> Result<Verdict, Failure> {
    let work = Arc::new(Store::create(&system.dir().join(format!("{queue}.redb")))?);
    let paced =
        Paced { queue, rate_per_s: RATE_PER_S, bytes: BODY_BYTES, time, behind_max: BEHIND_MAX, work };
    let mut outcome = paced::run(system, &paced).await?;
    outcome.readings.push((Metric::LastedS, outcome.lasted.as_secs_f64()));
    let verdict = if outcome.fell_behind { Verdict::FellBehind } else { Verdict::KeptUp };
    outcome.tell(&format!("W7 50,000/s of {BODY_BYTES} B for {} s", time.as_secs()), log);
    Ok(verdict)
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
    use crate::compare::fake::{Fake, Receiving};
    use crate::compare::systems::Name;
    use crate::compare::workloads::Workload;

    async fn cases(receiving: Receiving, plan: &Plan) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(Workload::W7, 0, Name::Nats);
        run(&Fake::new(dir.path(), receiving), plan, &mut log).await.unwrap();
        log.records.into_iter().map(|record| record.case).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_system_that_does_not_fall_behind_is_held_once() {
        let (short, long) = (Duration::from_millis(100), Duration::from_secs(1));
        let once =
            Plan { time: short, pipeline_time: short, pipeline_held_time: None, kills: 1, partitions: 4 };
        let short_case = "W7 50,000/s of 500 B for 0 s";
        assert_eq!(cases(Receiving::Works, &once).await, [short_case]);
        let held = Plan { pipeline_held_time: Some(long), ..once };
        assert_eq!(cases(Receiving::Works, &held).await, [short_case, "W7 50,000/s of 500 B for 1 s"]);
    }

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
