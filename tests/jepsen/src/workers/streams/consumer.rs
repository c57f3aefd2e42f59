//! A consumer in one life after the other: a stream of deliveries or a handler of jobs, at the queue with groups or at the other one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold_client::{CancellationToken, RetryPolicy};
use leasehold_histories::random::Random;
use leasehold_histories::workload::{CONSUMERS, LEASE};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};

use super::super::{RETRY_PAUSE, Stage};
use super::hold::Life;
use super::{end, handlers};
use crate::workload::{GROUPS_QUEUE, QUEUE};

const CONCURRENCY: u32 = 8;
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(200));
/// How often to look whether a life is over, and whether everything of it is.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// For what a killed consumer is doing at that moment.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How a consumer has its messages.
#[derive(Debug, Clone, Copy)]
enum By {
    Stream,
    Run,
}

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    InOrder,
    Dropped,
    Killed,
}

/// Consumes until the queues are drained; misbehaves until the run is over.
pub async fn consumer(stage: Arc<Stage>, number: u64, seed: u64) {
    let mut random = Random::new(seed, 1_000 + number);
    for lived in 0.. {
        if stage.is_drained.load(Ordering::Relaxed) {
            return;
        }
        if !stage.is_held_back.load(Ordering::Relaxed) {
            let call = stage.calls.read().await;
            let life = Life {
                stage: Arc::clone(&stage),
                queue: if number.is_multiple_of(2) { GROUPS_QUEUE } else { QUEUE },
                seed,
                consumer: lived * CONSUMERS + number,
                began_us: stage.recorder.now_us(),
            };
            live(Arc::new(life), &mut random).await;
            drop(call);
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// From its start until nothing of it is left.
async fn live(life: Arc<Life>, random: &mut Random) {
    let lasts = Duration::from_millis(500 + random.below(3_500));
    let by = if random.percent(75) { By::Stream } else { By::Run };
    let how = match random.below(100) {
        _ if life.stage.is_over.load(Ordering::Relaxed) => End::InOrder,
        0..40 => End::InOrder,
        40..70 => End::Dropped,
        _ => End::Killed,
    };
    let stop = CancellationToken::new();
    let work = work(Arc::clone(&life), by, stop.clone());
    let own = if how == End::Killed { runtime() } else { None };
    let mut task = match &own {
        Some(runtime) => runtime.spawn(work),
        None => tokio::spawn(work),
    };
    await_end(&life.stage, lasts, &task).await;
    let what = format!("a consumer in life {}, {by:?}, {how:?}", life.consumer);
    match own {
        Some(runtime) => {
            let killed = spawn_blocking(move || runtime.shutdown_timeout(KILL_PATIENCE));
            // It has no result.
            let _ = killed.await;
        }
        None if how == End::InOrder => {
            stop.cancel();
            end(&life.stage, &what, &mut task).await;
        }
        None => {}
    }
    task.abort();
    let let_go = async {
        while Arc::strong_count(&life) > 1 {
            sleep(LOOK_AGAIN).await;
        }
    };
    end(&life.stage, &what, let_go).await;
}

fn runtime() -> Option<Runtime> {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().ok()
}

async fn work(life: Arc<Life>, by: By, stop: CancellationToken) {
    let Ok(client) = life.stage.client() else { return };
    let consumer = client
        .queue(life.queue)
        .consumer()
        .name(format!("life-{}", life.consumer))
        .concurrency(CONCURRENCY)
        // Known from the start, also when nobody says what the queue's is: no extension makes a lease shorter.
        .lease(LEASE)
        .retry(RetryPolicy::new(RETRY.0, RETRY.1))
        .stop_on(stop);
    match by {
        By::Stream => handlers::stream(life, consumer).await,
        By::Run => handlers::run(life, consumer).await,
    }
}

async fn await_end(stage: &Stage, lasts: Duration, task: &JoinHandle<()>) {
    let end = Instant::now() + lasts;
    let goes_on = || {
        !task.is_finished()
            && !stage.is_drained.load(Ordering::Relaxed)
            && !stage.is_held_back.load(Ordering::Relaxed)
    };
    while Instant::now() < end && goes_on() {
        sleep(LOOK_AGAIN).await;
    }
}
