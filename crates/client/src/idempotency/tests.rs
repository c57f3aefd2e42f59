//! Property: under crashes and redeliveries at every step an effect that shares a transaction with its record is applied exactly
//! once; one apart from its record is applied at least once, not by a delivery that claims it after the record, and twice only when
//! a handler dies, or is overtaken, between its claim and its record.
//!
//! A seeded scheduler delivers messages again and again, as a broker does whose leases end too early, advances one of the running
//! handlers by one await point, or lets it crash there. A failure names its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::store::{Begun, Finished, Operation, Store, Times};
use super::{Conditional, Idempotent, MemoryTable, Table};
use crate::Failure;

const SEEDS: u64 = 400;
const STEPS: usize = 300;

/// Where a handler can be advanced or crash.
async fn await_point() {
    let mut was_pending = false;
    std::future::poll_fn(|_| {
        if was_pending {
            return Poll::Ready(());
        }
        was_pending = true;
        Poll::Pending
    })
    .await;
}

/// A table with await points before and after each access.
struct Slow(MemoryTable);

impl Table for Slow {
    type Error = Infallible;

    async fn get(&self, key: &str) -> Result<Option<Bytes>, Infallible> {
        await_point().await;
        let found = self.0.get(key).await;
        await_point().await;
        found
    }

    async fn replace(
        &self,
        key: &str,
        expected: Option<&Bytes>,
        next: Option<&Bytes>,
        keep_for: Duration,
    ) -> Result<bool, Infallible> {
        await_point().await;
        let replaced = self.0.replace(key, expected, next, keep_for).await;
        await_point().await;
        replaced
    }
}

/// What the world has of the effects, and a database that can change it together with a record.
#[derive(Default)]
struct World {
    /// How often each operation's effect happened.
    effects: BTreeMap<String, u32>,
    /// What is on record.
    results: BTreeMap<String, Bytes>,
    locked: BTreeSet<String>,
}

type SharedWorld = Arc<Mutex<World>>;

/// Keeps record and effect in one transaction, with a row lock for each key, as PostgreSQL does.
struct Transactional(SharedWorld);

struct Open {
    world: SharedWorld,
    key: String,
    effects: u32,
}

/// A rollback frees the lock, and so does a commit.
impl Drop for Open {
    fn drop(&mut self) {
        self.world.lock().unwrap().locked.remove(&self.key);
    }
}

impl Store for Transactional {
    type Error = Infallible;
    type Claim = Open;

    async fn begin(&self, operation: &Operation, _: Times) -> Result<Begun<Open>, Infallible> {
        await_point().await;
        {
            let world = &mut *self.0.lock().unwrap();
            if let Some(result) = world.results.get(&operation.key) {
                return Ok(Begun::Done(result.clone()));
            }
            if !world.locked.insert(operation.key.clone()) {
                return Ok(Begun::Busy(None));
            }
        }
        let open = Open { world: Arc::clone(&self.0), key: operation.key.clone(), effects: 0 };
        await_point().await;
        Ok(Begun::Claimed(open))
    }

    async fn finish(&self, open: Open, result: Bytes) -> Result<Finished, Infallible> {
        await_point().await;
        {
            let world = &mut *self.0.lock().unwrap();
            *world.effects.entry(open.key.clone()).or_default() += open.effects;
            world.results.insert(open.key.clone(), result);
        }
        drop(open);
        await_point().await;
        Ok(Finished::Recorded)
    }

    async fn abandon(&self, open: Open) -> Result<(), Infallible> {
        await_point().await;
        drop(open);
        Ok(())
    }
}

/// A generator that gives the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn of(&mut self, count: usize) -> usize {
        usize::try_from(self.below(count as u64)).unwrap()
    }
}

/// A handler that runs, and the delivery that it is for.
struct Running {
    message: usize,
    fencing_token: u64,
    handling: BoxFuture<'static, Result<Bytes, Failure>>,
}

/// Messages of operations, two for some of them, delivered by a broker at its worst.
struct Broker<S: Store> {
    once: Idempotent<S>,
    effect: Box<MakeEffect<S>>,
    random: Random,
    /// The operation and the latest fencing token of each message that is not acked; `None` when it is.
    messages: Vec<(String, Option<u64>)>,
    running: Vec<Running>,
    results: BTreeMap<String, BTreeSet<Bytes>>,
}

/// The effect of a delivery.
type MakeEffect<S> = dyn Fn(&Operation) -> Effect<S> + Send + Sync;
type Effect<S> =
    Box<dyn for<'c> FnOnce(&'c mut <S as Store>::Claim) -> BoxFuture<'c, Result<Bytes, Failure>> + Send>;

impl<S: Store> Broker<S> {
    fn new(seed: u64, store: S, effect: impl Fn(&Operation) -> Effect<S> + Send + Sync + 'static) -> Self {
        let keys = ["a", "b", "b", "c"];
        Self {
            once: Idempotent::new(store).claim_for(Duration::ZERO),
            effect: Box::new(effect),
            random: Random(seed),
            messages: keys.iter().map(|key| ((*key).to_owned(), Some(0))).collect(),
            running: Vec::new(),
            results: BTreeMap::new(),
        }
    }

    /// A delivery, whether or not an earlier one still runs.
    fn deliver(&mut self, message: usize) {
        let (key, Some(fencing_token)) = &mut self.messages[message] else { return };
        *fencing_token += 1;
        let operation =
            Operation { key: key.clone(), message: format!("m{message}"), fencing_token: *fencing_token };
        let (once, effect) = (self.once.clone(), (self.effect)(&operation));
        let token = *fencing_token;
        let handling = Box::pin(async move { once.apply(&operation, effect).await });
        self.running.push(Running { message, fencing_token: token, handling });
    }

    /// One await point further.
    fn advance(&mut self, at: usize) {
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(result) = Pin::new(&mut self.running[at].handling).poll(&mut context) else { return };
        let Running { message, fencing_token, .. } = self.running.swap_remove(at);
        let (key, latest) = &mut self.messages[message];
        if let Ok(result) = result {
            self.results.entry(key.clone()).or_default().insert(result);
            // The ack of an earlier delivery is stale.
            if *latest == Some(fencing_token) {
                *latest = None;
            }
        }
    }

    async fn step(&mut self, crashes: impl Fn(&Self, usize) -> bool) {
        let choice = self.random.below(10);
        if choice < 2 || self.running.is_empty() {
            let message = self.random.of(self.messages.len());
            self.deliver(message);
        } else {
            let at = self.random.of(self.running.len());
            if choice == 2 && crashes(self, at) {
                drop(self.running.swap_remove(at));
            } else {
                self.advance(at);
            }
        }
        tokio::time::advance(Duration::from_millis(self.random.below(40))).await;
    }

    /// Nothing crashes any more: everything is done in the end.
    async fn heal(&mut self) {
        for _ in 0..100_000 {
            if self.running.is_empty() {
                let Some(message) = self.messages.iter().position(|(_, latest)| latest.is_some()) else {
                    return;
                };
                self.deliver(message);
            }
            let at = self.random.of(self.running.len());
            self.advance(at);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        panic!("messages are left that nobody finishes");
    }
}

fn result_of(operation: &Operation) -> Bytes {
    Bytes::from(format!("{} by {} {}", operation.key, operation.message, operation.fencing_token))
}

#[tokio::test(start_paused = true)]
async fn an_effect_in_the_transaction_of_its_record_happens_exactly_once() {
    let mut crashes = 0;
    for seed in 0..SEEDS {
        let world = SharedWorld::default();
        let effect = |operation: &Operation| -> Effect<Transactional> {
            let result = result_of(operation);
            Box::new(move |open: &mut Open| {
                Box::pin(async move {
                    await_point().await;
                    open.effects += 1;
                    await_point().await;
                    Ok(result)
                })
            })
        };
        let mut broker = Broker::new(seed, Transactional(Arc::clone(&world)), effect);
        for _ in 0..STEPS {
            let before = broker.running.len();
            broker.step(|_, _| true).await;
            crashes += usize::from(broker.running.len() < before);
        }
        broker.heal().await;
        let world = world.lock().unwrap();
        let expected = ["a", "b", "c"].map(|key| (key.to_owned(), 1)).into();
        assert_eq!(world.effects, expected, "seed {seed}");
        let one_result = |results: &BTreeSet<Bytes>| results.len() == 1;
        assert!(broker.results.values().all(one_result), "seed {seed}: {:?}", broker.results);
    }
    assert!(crashes > 1_000, "only {crashes} handlers crashed or ended");
}

/// What the effects of a store apart do to the world, with the point at which each delivery is.
#[derive(Default)]
struct Apart {
    effects: BTreeMap<String, u32>,
    /// Deliveries whose effect has begun and whose result is not recorded.
    between: BTreeSet<(String, u64)>,
}

fn effect_apart(
    apart: &Arc<Mutex<Apart>>,
) -> impl Fn(&Operation) -> Effect<Conditional<Slow>> + Send + Sync + use<> {
    let apart = Arc::clone(apart);
    move |operation| {
        let (apart, operation) = (Arc::clone(&apart), operation.clone());
        Box::new(move |_| {
            Box::pin(async move {
                await_point().await;
                {
                    let apart = &mut *apart.lock().unwrap();
                    apart.between.insert((operation.message.clone(), operation.fencing_token));
                    *apart.effects.entry(operation.key.clone()).or_default() += 1;
                }
                await_point().await;
                Ok(result_of(&operation))
            })
        })
    }
}

#[tokio::test(start_paused = true)]
async fn an_effect_apart_from_its_record_happens_again_only_when_nothing_recorded_it() {
    let mut repeated = 0;
    for seed in 0..SEEDS {
        let apart = Arc::new(Mutex::new(Apart::default()));
        let store = Conditional::with_clock(Slow(MemoryTable::default()), || 0);
        let mut broker = Broker::new(seed, store, effect_apart(&apart));
        for _ in 0..STEPS {
            broker.step(|_, _| true).await;
        }
        broker.heal().await;
        let effects = apart.lock().unwrap().effects.clone();
        assert!(["a", "b", "c"].iter().all(|key| effects[*key] >= 1), "seed {seed}: {effects:?}");
        repeated += effects.values().filter(|count| **count > 1).count();
        // Everybody got the one result that was recorded.
        let one_result = |results: &BTreeSet<Bytes>| results.len() == 1;
        assert!(broker.results.values().all(one_result), "seed {seed}: {:?}", broker.results);
        // What is recorded is never done again.
        for message in 0..broker.messages.len() {
            broker.messages[message].1 = Some(1_000);
        }
        broker.heal().await;
        assert_eq!(apart.lock().unwrap().effects, effects, "seed {seed}");
    }
    assert!(repeated > 10, "crashes between effect and record were tried {repeated} times");
}

#[tokio::test(start_paused = true)]
async fn an_effect_apart_happens_once_when_no_handler_dies_or_is_overtaken_within_it() {
    for seed in 0..SEEDS {
        let apart = Arc::new(Mutex::new(Apart::default()));
        let store = Conditional::with_clock(Slow(MemoryTable::default()), || 0);
        let mut broker = Broker::new(seed, store, effect_apart(&apart));
        for _ in 0..STEPS {
            // One at a time, and none crashes between its effect and its record.
            if broker.running.is_empty() {
                let message = broker.random.of(broker.messages.len());
                broker.deliver(message);
            }
            let Some(running) = broker.running.first() else { continue };
            let of = (format!("m{}", running.message), running.fencing_token);
            let is_between = apart.lock().unwrap().between.contains(&of);
            if !is_between && broker.random.below(4) == 0 {
                broker.running.clear();
            } else {
                broker.advance(0);
            }
        }
        broker.heal().await;
        let effects = &apart.lock().unwrap().effects;
        assert!(effects.values().all(|count| *count == 1) && effects.len() == 3, "seed {seed}: {effects:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_message_waits_for_a_claim_and_is_given_back_when_it_takes_long() {
    let once = Idempotent::new(super::MemoryStore::default()).claim_for(Duration::from_secs(60));
    let times = Times { keep_for: Duration::MAX, claim_for: Duration::from_secs(60) };
    let Begun::Claimed(claim) = once.store().begin(&operation("m"), times).await.unwrap() else {
        panic!("it is free");
    };
    let apply = |once: Idempotent<super::MemoryStore>| async move {
        once.apply(&operation("n"), |_| Box::pin(async { Ok(Bytes::from("n")) })).await
    };
    let failure = apply(once.clone()).await.unwrap_err();
    assert!(failure.why().contains("another message"), "{failure}");
    let waiting = tokio::spawn(apply(once.clone()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(once.store().finish(claim, Bytes::from("m")).await.unwrap(), Finished::Recorded);
    assert_eq!(waiting.await.unwrap().unwrap(), "m");
}

fn operation(message: &str) -> Operation {
    Operation { key: "k".into(), message: message.into(), fencing_token: 1 }
}

#[tokio::test]
async fn a_failed_effect_frees_its_claim_and_keeps_its_wish() {
    let once = Idempotent::new(super::MemoryStore::default());
    let failed = once.apply(&operation("m"), |_| Box::pin(async { Err(Failure::reject("no")) })).await;
    assert_eq!(failed.unwrap_err(), Failure::reject("no"));
    let other = once.apply(&operation("n"), |_| Box::pin(async { Ok(Bytes::from("yes")) })).await;
    assert_eq!(other.unwrap(), "yes");
}
