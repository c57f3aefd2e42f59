//! W2: a backlog is received and acknowledged while nobody sends.

use bytes::Bytes;

use super::Plan;
use super::load::{Enough, Outstanding, RECEIVERS, drain, flood, receivers, senders};
use crate::compare::results::Log;
use crate::compare::system::{Failure, Queue, System, Through};
use crate::compare::window::Window;

const BODY_BYTES: usize = 1024;
const QUEUE: &str = "drain";

/// The backlog is what can be sent in the time in which it is drained then: more than can be received in it, or all of it is.
pub async fn run(system: &dyn System, plan: &Plan, log: &mut Log) -> Result<(), Failure> {
    system.create_queue(Queue::wide(QUEUE)).await?;
    let senders = senders(system, QUEUE, Outstanding::MANY.senders, Through::AnyNode).await?;
    let body = Bytes::from(vec![b'x'; BODY_BYTES]);
    flood(&senders, Outstanding::MANY.batch, &body, Enough::Time(plan.time)).await?;
    let receivers = receivers(system, QUEUE, RECEIVERS, Through::AnyNode).await?;
    let window = Window::open(system.pids());
    let acked = drain(receivers, plan.time).await?;
    log.record(format!("W2 {BODY_BYTES} B"), window.close(acked));
    Ok(())
}
