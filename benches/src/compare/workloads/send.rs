//! W1: messages are sent, and nobody receives them.

use bytes::Bytes;

use super::Plan;
use super::load::{Enough, Outstanding, flood, senders, warm};
use crate::compare::results::Log;
use crate::compare::system::{Failure, Queue, System, Through};
use crate::compare::window::Window;

pub async fn run(system: &dyn System, plan: &Plan, log: &mut Log) -> Result<(), Failure> {
    // The least first: what a case leaves to do, files to clear or snapshots to write, is not the next one's.
    for outstanding in [Outstanding::ONE, Outstanding::SOME, Outstanding::MANY] {
        for bytes in [128, 1024] {
            case(system, plan, bytes, outstanding, log).await?;
        }
    }
    Ok(())
}

async fn case(
    system: &dyn System,
    plan: &Plan,
    bytes: usize,
    outstanding: Outstanding,
    log: &mut Log,
) -> Result<(), Failure> {
    let queue = format!("send-{bytes}-{}", outstanding.messages());
    system.create_queue(Queue::wide(&queue)).await?;
    let senders = senders(system, &queue, outstanding.senders, Through::AnyNode).await?;
    let body = Bytes::from(vec![b'x'; bytes]);
    warm(&senders, &body).await?;
    let window = Window::open(system.pids());
    let sent = flood(&senders, outstanding.batch, &body, Enough::Time(plan.time)).await?;
    let mut readings = window.close(sent.messages);
    readings.extend(sent.latencies.readings());
    log.record(format!("W1 {bytes} B, {} outstanding", outstanding.messages()), readings);
    system.delete_queue(&queue).await
}
