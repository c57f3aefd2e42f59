//! W6: a deep backlog: what nodes remember of it, whether sends and receives become slower, and how long a node takes to come
//! back with it.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Plan;
use super::load::{Enough, Outstanding, RECEIVERS, drain, flood, receivers, senders};
use super::projection::Projection;
use crate::compare::figures::figure;
use crate::compare::machine::free_bytes;
use crate::compare::metric::Metric;
use crate::compare::results::Log;
use crate::compare::system::{Failure, Queue, System, Through};
use crate::compare::window::Window;

const STAGES: [usize; 3] = [1_000_000, 5_000_000, 10_000_000];
/// A stage that would take longer is left out, and those after it.
const STAGE_TIME_MAX: Duration = Duration::from_secs(150);
const BODY_BYTES: usize = 1024;
const QUEUE: &str = "backlog";
/// Three copies, with what surrounds a message and what is not yet cleared away.
const DISK_BYTES_EACH: u64 = 3 * 1024 * 13 / 10;
/// What the machine keeps.
const DISK_BYTES_LEFT: u64 = 4 * 1024 * 1024 * 1024;

pub async fn run(system: &mut dyn System, plan: &Plan, log: &mut Log) -> Result<(), Failure> {
    system.create_queue(Queue::wide(QUEUE)).await?;
    let body = Bytes::from(vec![b'x'; BODY_BYTES]);
    let (mut filled, mut projection) = (0, Projection::default());
    for messages in STAGES {
        let name = format!("W6 {} messages", figure(messages as f64));
        let more = messages - filled;
        if let Some(failure) = projection.beyond(more, STAGE_TIME_MAX).or_else(|| beyond_disk(system, more)) {
            log.fail(&name, failure);
            break;
        }
        if filled > 0 {
            system.settle().await?;
        }
        let senders = senders(&*system, QUEUE, Outstanding::MANY.senders, Through::AnyNode).await?;
        let (window, began) = (Window::open(system.pids()), Instant::now());
        let enough = Enough::Messages(more as u64);
        let sent = flood(&senders, Outstanding::MANY.batch, &body, enough).await?;
        projection.note(more, began.elapsed());
        log.record(format!("{name}: send"), window.close(sent.messages));
        let receivers = receivers(&*system, QUEUE, RECEIVERS, Through::AnyNode).await?;
        let window = Window::open(system.pids());
        let acked = drain(receivers, plan.time).await?;
        log.record(format!("{name}: receive and ack"), window.close(acked));
        filled = messages - acked as usize;
        restart(system, &name, log).await?;
    }
    Ok(())
}

async fn restart(system: &mut dyn System, name: &str, log: &mut Log) -> Result<(), Failure> {
    let leader = system.leader(QUEUE).await?;
    system.kill(leader).await?;
    let took = system.restart(leader).await?;
    log.record(format!("{name}: restart of the leader"), vec![(Metric::RestartMs, took.as_secs_f64() * 1e3)]);
    Ok(())
}

fn beyond_disk(system: &dyn System, messages: usize) -> Option<Failure> {
    let needed_bytes = messages as u64 * DISK_BYTES_EACH + DISK_BYTES_LEFT;
    let free_bytes = match free_bytes(system.dir()) {
        Ok(free_bytes) => free_bytes,
        Err(failure) => return Some(failure),
    };
    let gib = |bytes: u64| figure(bytes as f64 / f64::from(1 << 30));
    (free_bytes < needed_bytes).then(|| {
        Failure::new(format!(
            "it needs {} GiB of the disk, and {} GiB are free",
            gib(needed_bytes),
            gib(free_bytes)
        ))
    })
}
