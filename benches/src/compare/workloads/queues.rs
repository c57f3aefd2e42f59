//! W5: many queues, each with a message: how fast they are created, what they take when nothing happens, and what a send costs
//! among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::try_join_all;
use tokio::time::sleep;

use super::Plan;
use super::projection::Projection;
use crate::compare::figures::figure;
use crate::compare::latency::Latencies;
use crate::compare::metric::{Metric, Reading};
use crate::compare::results::Log;
use crate::compare::system::{Failure, Queue, System};
use crate::compare::window::Window;
use crate::usage::{Usage, resident_mib};

const STAGES: [usize; 3] = [1_000, 10_000, 100_000];
/// A stage that would take longer is left out, and those after it.
const STAGE_TIME_MAX: Duration = Duration::from_secs(120);
const SIDE_BY_SIDE: usize = 64;
/// What creating left to do is done then.
const REST: Duration = Duration::from_secs(3);
const LEASE: Duration = Duration::from_secs(30);
const BODY: Bytes = Bytes::from_static(&[b'x'; 128]);

pub async fn run(system: &dyn System, plan: &Plan, log: &mut Log) -> Result<(), Failure> {
    let before_mib = resident_mib_each(system);
    let (mut created, mut projection) = (0, Projection::default());
    for queues in STAGES {
        let case = format!("W5 {} queues", figure(queues as f64));
        if let Some(failure) = projection.beyond(queues - created, STAGE_TIME_MAX) {
            log.fail(&case, failure);
            return Ok(());
        }
        let began = Instant::now();
        create(system, created..queues).await?;
        let create_s = began.elapsed().as_secs_f64();
        projection.note(queues - created, began.elapsed());
        let mut readings = vec![(Metric::QueuesPerS, (queues - created) as f64 / create_s)];
        fill(system, created..queues).await?;
        sleep(REST).await;
        let kib = (resident_mib_each(system) - before_mib).max(0.0) * 1024.0;
        readings.push((Metric::KibPerQueue, kib / queues as f64));
        readings.push((Metric::IdlePercent, idle_percent(system, plan.time).await));
        readings.extend(sends(system, queues, plan.time).await?);
        log.record(case, readings);
        created = queues;
    }
    Ok(())
}

fn name(number: usize) -> String {
    format!("queue-{number}")
}

async fn create(system: &dyn System, numbers: std::ops::Range<usize>) -> Result<(), Failure> {
    let creations = futures::stream::iter(numbers.map(Ok));
    creations
        .try_for_each_concurrent(SIDE_BY_SIDE, |number| async move {
            system.create_queue(Queue::narrow(&name(number), LEASE)).await
        })
        .await
}

/// A queue that never had a message may cost nothing yet.
async fn fill(system: &dyn System, numbers: std::ops::Range<usize>) -> Result<(), Failure> {
    let sends = futures::stream::iter(numbers.map(Ok));
    sends
        .try_for_each_concurrent(
            SIDE_BY_SIDE,
            |number| async move { system.send_one(&name(number), BODY).await },
        )
        .await
}

/// Of a node, on average.
fn resident_mib_each(system: &dyn System) -> f64 {
    let pids = system.pids();
    pids.iter().map(|pid| resident_mib(*pid)).sum::<f64>() / pids.len().max(1) as f64
}

/// Of all nodes together.
async fn idle_percent(system: &dyn System, time: Duration) -> f64 {
    let (before, began) = (Usage::of(&system.pids()), Instant::now());
    sleep(time).await;
    (Usage::of(&system.pids()).cpu_s - before.cpu_s) / began.elapsed().as_secs_f64() * 100.0
}

/// One message at a time from each of some senders, to all queues in turn.
async fn sends(system: &dyn System, queues: usize, time: Duration) -> Result<Vec<Reading>, Failure> {
    let window = Window::open(system.pids());
    let (end, turn) = (Instant::now() + time, Arc::new(AtomicUsize::new(0)));
    let senders = (0..SIDE_BY_SIDE).map(|_| {
        let turn = Arc::clone(&turn);
        async move {
            let (mut sent, mut latencies) = (0, Latencies::default());
            while Instant::now() < end {
                let began = Instant::now();
                system.send_one(&name(turn.fetch_add(1, Ordering::Relaxed) % queues), BODY).await?;
                latencies.add(began.elapsed());
                sent += 1;
            }
            Ok::<_, Failure>((sent, latencies))
        }
    });
    let (mut sent, mut latencies) = (0, Latencies::default());
    for (count, of_one) in try_join_all(senders).await? {
        sent += count;
        latencies.merge(&of_one);
    }
    let costs = window.close(sent).into_iter();
    let mut readings = costs.filter(|(metric, _)| *metric != Metric::ResidentMib).collect::<Vec<_>>();
    readings.extend(latencies.readings());
    Ok(readings)
}
