//! Every store holds to the same contract; what each promises beyond it, against real servers.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use leasehold_client::Failure;
use leasehold_client::idempotency::postgres::{PostgresClaim, PostgresStore};
use leasehold_client::idempotency::redb::RedbStore;
use leasehold_client::idempotency::redis::RedisStore;
use leasehold_client::idempotency::{Begun, Finished, Idempotent, MemoryStore, Operation, Store, Times};
use leasehold_store_tests::Server;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::time::{Instant, sleep};

const TIMES: Times = Times { keep_for: Duration::from_secs(3_600), claim_for: Duration::from_secs(3_600) };
const SHORT: Duration = Duration::from_millis(1_500);
/// What has to be asked within a short time is tried so often on a machine that may stand still meanwhile.
const ROUNDS_MAX: u32 = 5;

fn operation(key: &str, message: &str, fencing_token: u64) -> Operation {
    Operation { key: key.to_owned(), message: message.to_owned(), fencing_token }
}

async fn claim<S: Store>(store: &S, operation: &Operation) -> S::Claim {
    match store.begin(operation, TIMES).await.unwrap() {
        Begun::Claimed(claim) => claim,
        _ => panic!("{operation:?} is not free"),
    }
}

async fn result_of<S: Store>(store: &S, operation: &Operation) -> Option<Bytes> {
    match store.begin(operation, TIMES).await.unwrap() {
        Begun::Done(result) => Some(result),
        _ => None,
    }
}

/// What every store does.
async fn holds_the_contract<S: Store>(store: S) {
    // The first result stays, for every delivery and message.
    let first = claim(&store, &operation("a", "m", 1)).await;
    assert_eq!(store.finish(first, Bytes::from("one")).await.unwrap(), Finished::Recorded);
    for again in [operation("a", "m", 1), operation("a", "m", 9), operation("a", "n", 1)] {
        assert_eq!(result_of(&store, &again).await.unwrap(), "one");
    }
    // What was abandoned, or dropped by a crash, is free for the next delivery.
    let abandoned = claim(&store, &operation("b", "m", 1)).await;
    store.abandon(abandoned).await.unwrap();
    drop(claim(&store, &operation("b", "n", 1)).await);
    let taken = claim(&store, &operation("b", "n", 2)).await;
    assert_eq!(store.finish(taken, Bytes::new()).await.unwrap(), Finished::Recorded);
    assert_eq!(result_of(&store, &operation("b", "m", 3)).await.unwrap(), "");
    let mut round = 1;
    while !keeps_for_its_time(&store, &format!("c{round}")).await {
        assert!(round < ROUNDS_MAX, "the machine is too slow for {SHORT:?}");
        round += 1;
    }
    gives_away_what_is_silent(&store).await;
    one_of_many_runs(store).await;
}

/// A result is kept from its record on, also when its effect took longer than that, and forgotten when its time is over; false when
/// it could not be asked for in time.
async fn keeps_for_its_time<S: Store>(store: &S, key: &str) -> bool {
    let short = Times { keep_for: SHORT, ..TIMES };
    let Begun::Claimed(kept_shortly) = store.begin(&operation(key, "m", 1), short).await.unwrap() else {
        panic!("it is free");
    };
    sleep(SHORT * 2).await;
    let recorded = Instant::now();
    assert_eq!(store.finish(kept_shortly, Bytes::from("old")).await.unwrap(), Finished::Recorded);
    let kept = result_of(store, &operation(key, "n", 1)).await;
    let is_in_time = recorded.elapsed() < SHORT;
    assert!(!is_in_time || kept.as_deref() == Some(&b"old"[..]), "{kept:?}");
    sleep(SHORT * 2).await;
    let renewed = claim(store, &operation(key, "n", 1)).await;
    assert_eq!(store.finish(renewed, Bytes::from("new")).await.unwrap(), Finished::Recorded);
    assert_eq!(result_of(store, &operation(key, "m", 1)).await.unwrap(), "new");
    is_in_time
}

/// Another message gets an operation whose holder says nothing for longer than it may, though its claim was not dropped.
async fn gives_away_what_is_silent<S: Store>(store: &S) {
    let impatient = Times { claim_for: Duration::from_secs(1), ..TIMES };
    let Begun::Claimed(silent) = store.begin(&operation("d", "m", 1), impatient).await.unwrap() else {
        panic!("it is free");
    };
    sleep(Duration::from_secs(3)).await;
    let other = claim(store, &operation("d", "n", 1)).await;
    assert_eq!(store.finish(other, Bytes::from("other")).await.unwrap(), Finished::Recorded);
    // An error, or what the other recorded.
    let finished = store.finish(silent, Bytes::from("silent")).await;
    assert!(!matches!(finished, Ok(Finished::Recorded)), "{finished:?}");
    assert_eq!(result_of(store, &operation("d", "m", 2)).await.unwrap(), "other");
}

/// Many messages ask for one operation at once: one effect, and one result for all.
async fn one_of_many_runs<S: Store>(store: S) {
    let once = Idempotent::new(store);
    let effects = Arc::new(AtomicU32::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20_u32 {
        let (once, effects) = (once.clone(), Arc::clone(&effects));
        tasks.spawn(async move {
            let operation = operation("many", &format!("m{number}"), 1);
            loop {
                let effects = Arc::clone(&effects);
                let applied = once.apply(&operation, move |_| {
                    Box::pin(async move {
                        effects.fetch_add(1, Ordering::SeqCst);
                        sleep(Duration::from_millis(50)).await;
                        Ok(Bytes::from(number.to_string()))
                    })
                });
                if let Ok(result) = applied.await {
                    return result;
                }
            }
        });
    }
    let results = tasks.join_all().await;
    assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
    assert_eq!(effects.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_holds_the_contract() {
    holds_the_contract(MemoryStore::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redb_holds_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    holds_the_contract(RedbStore::open(dir.path().join("operations.redb")).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redb_remembers_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("operations.redb");
    let store = RedbStore::open(&file).unwrap();
    assert!(RedbStore::open(&file).is_err(), "it is open");
    let first = claim(&store, &operation("a", "m", 1)).await;
    store.finish(first, Bytes::from("one")).await.unwrap();
    drop(claim(&store, &operation("b", "m", 1)).await);
    drop(store);
    let store = RedbStore::open(&file).unwrap();
    assert_eq!(result_of(&store, &operation("a", "m", 2)).await.unwrap(), "one");
    // The claim of the process that ended is there: the next delivery of the same message has it, another message waits.
    assert!(matches!(store.begin(&operation("b", "n", 1), TIMES).await.unwrap(), Begun::Busy(_)));
    assert!(matches!(store.begin(&operation("b", "m", 0), TIMES).await.unwrap(), Begun::Superseded));
    claim(&store, &operation("b", "m", 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_holds_the_contract() {
    let Some(server) = Server::redis() else { return };
    let address = format!("redis://127.0.0.1:{}/", server.port());
    holds_the_contract(RedisStore::connect(address, "test:").await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_lets_nobody_record_whose_claim_was_taken_over() {
    let Some(server) = Server::redis() else { return };
    let address = format!("redis://127.0.0.1:{}/", server.port());
    let store = RedisStore::connect(address, "test:").await.unwrap();
    let stale = claim(&store, &operation("a", "m", 1)).await;
    let holder = claim(&store, &operation("a", "m", 2)).await;
    assert_eq!(store.finish(stale, Bytes::from("stale")).await.unwrap(), Finished::Superseded);
    assert!(matches!(store.begin(&operation("a", "m", 1), TIMES).await.unwrap(), Begun::Superseded));
    assert_eq!(store.finish(holder, Bytes::from("mine")).await.unwrap(), Finished::Recorded);
    assert_eq!(result_of(&store, &operation("a", "m", 1)).await.unwrap(), "mine");
}

async fn postgres(server: &Server) -> PgPool {
    let options = PgConnectOptions::new()
        .host("127.0.0.1")
        .port(server.port())
        .username("postgres")
        .database("postgres");
    // It listens before it answers.
    for _ in 0..600 {
        let pool = PgPoolOptions::new().max_connections(40).connect_with(options.clone()).await;
        if let Ok(pool) = pool {
            return pool;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("PostgreSQL does not answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_holds_the_contract() {
    let Some(server) = Server::postgres() else { return };
    let store = PostgresStore::new(postgres(&server).await);
    store.create_table().await.unwrap();
    store.create_table().await.unwrap();
    holds_the_contract(store.clone()).await;
    assert_eq!(store.remove_expired(100).await.unwrap(), 0);
    let Begun::Claimed(claim) =
        store.begin(&operation("e", "m", 1), Times { keep_for: SHORT, ..TIMES }).await.unwrap()
    else {
        panic!("it is free");
    };
    store.finish(claim, Bytes::new()).await.unwrap();
    sleep(SHORT * 2).await;
    assert_eq!(store.remove_expired(100).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_takes_any_key_and_leaves_the_patience_of_the_session() {
    let Some(server) = Server::postgres() else { return };
    let options = postgres(&server).await.connect_options();
    let pool = PgPoolOptions::new().max_connections(1).connect_with((*options).clone()).await.unwrap();
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    let (long, longer) = ("k".repeat(10_000), "k".repeat(10_001));
    for (number, key) in ["a\0b", "a\0c", long.as_str(), longer.as_str()].into_iter().enumerate() {
        let result = number.to_string();
        let held = claim(&store, &operation(key, "m", 1)).await;
        assert_eq!(store.finish(held, Bytes::from(result.clone())).await.unwrap(), Finished::Recorded);
        assert_eq!(result_of(&store, &operation(key, "n", 1)).await.unwrap(), result);
    }
    sqlx::query("set lock_timeout to '7s'").execute(&pool).await.unwrap();
    let mut held = claim(&store, &operation("b", "m", 1)).await;
    let patience: String = sqlx::query_scalar("select current_setting('lock_timeout')")
        .fetch_one(held.connection())
        .await
        .unwrap();
    assert_eq!(patience, "7s");
}

/// A generator that gives the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

async fn pay(claim: &mut PostgresClaim, key: String) -> Result<Bytes, Failure> {
    sqlx::query("insert into payments (operation) values ($1)")
        .bind(&key)
        .execute(claim.connection())
        .await?;
    sqlx::query("update totals set paid = paid + 1").execute(claim.connection()).await?;
    Ok(Bytes::from(key))
}

/// Handlers are dropped at any moment, connections are ended by the server, and each message is delivered until its handler succeeds,
/// and once more.
#[tokio::test(flavor = "multi_thread")]
async fn an_effect_in_postgres_happens_exactly_once_whatever_crashes() {
    let Some(server) = Server::postgres() else { return };
    let pool = postgres(&server).await;
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    sqlx::query("create table payments (operation text not null)").execute(&pool).await.unwrap();
    sqlx::query("create table totals (paid bigint not null)").execute(&pool).await.unwrap();
    sqlx::query("insert into totals values (0)").execute(&pool).await.unwrap();
    let (once, mut random) = (Idempotent::new(store), Random(7));
    let mut crashes = 0;
    for number in 0..60 {
        let key = format!("order {number}");
        let mut is_done = false;
        for fencing_token in 1.. {
            let operation = operation(&key, &format!("m{}", fencing_token % 2), fencing_token);
            let paid = key.clone();
            let applied = once.apply(&operation, move |claim| Box::pin(pay(claim, paid)));
            // It takes ten steps and more: the first deliveries die, later ones live longer.
            let life = random.below(4 + fencing_token);
            if random.below(4) == 0 {
                end_connections(&pool).await;
            }
            match for_steps(life, applied).await {
                Some(Ok(result)) => {
                    assert_eq!(result, key);
                    if is_done {
                        break;
                    }
                    is_done = true;
                }
                _ => crashes += 1,
            }
        }
    }
    let twice: i64 = sqlx::query_scalar(
        "select count(*) from (select operation from payments group by 1 having count(*) > 1) t",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    let (payments, total): (i64, i64) =
        sqlx::query_as("select (select count(*) from payments), (select paid from totals)")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!((payments, total, twice), (60, 60, 0));
    assert!(crashes > 100, "only {crashes} handlers crashed");
}

/// Drops a future when it has been polled so often: each time it waits for the server once.
async fn for_steps<T>(steps: u64, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut left) = (Box::pin(future), steps);
    poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// The server ends what is idle in a transaction, as it does with clients that went away.
async fn end_connections(pool: &PgPool) {
    let ended = sqlx::query(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where pid <> pg_backend_pid() and datname = current_database() and state = 'idle in transaction'",
    );
    // Its own connection may be one that was ended before.
    let _ = ended.execute(pool).await;
}
