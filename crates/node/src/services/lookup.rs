//! From the name of a queue to what this node knows of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use leasehold_partition::QueueId;
use leasehold_proto::v1::{Reason, RequestId};

use crate::core::Core;
use crate::failure::Failure;
use crate::queue_info::QueueInfo;
use crate::replica::CommandCall;

/// Finds a queue. One that was made a moment ago through another node is asked after before it is called unknown.
pub async fn queue(core: &Core, name: &str) -> Result<QueueInfo, Failure> {
    if let Some(info) = core.view.queue(name) {
        return Ok(info);
    }
    core.catalogue.catch_up().await?;
    let unknown =
        || Failure::not_done(Reason::UnknownQueue, format!("queue {name:?} does not exist: create it first"));
    core.view.queue(name).ok_or_else(unknown)
}

/// Waits until this node's copy of the catalogue shows everything that was decided before this call.
///
/// # Errors
/// When no leader was found in time, or the copy is far behind.
pub async fn catch_up(core: &Core) -> Result<(), Failure> {
    let decided = core.catalogue.catch_up().await?;
    if *core.view.applied().borrow() < decided {
        return Err(Failure::try_again(Reason::NoLeader, "this node's copy of the catalogue is behind"));
    }
    Ok(())
}

/// Finds a queue as it is now, for who decides something about it: this node's copy may be behind.
pub async fn queue_now(core: &Core, name: &str) -> Result<QueueInfo, Failure> {
    catch_up(core).await?;
    queue(core, name).await
}

/// The queue that has the name of one that is gone: this node had not heard that it was made again.
pub async fn successor(core: &Core, gone: &QueueInfo) -> Result<Option<QueueInfo>, Failure> {
    core.catalogue.catch_up().await?;
    Ok(core.view.queue(gone.name()).filter(|found| found.id() != gone.id()))
}

/// A command as the partition takes it.
pub fn call(queue: QueueId, request: &leasehold_partition::Request<'_>) -> CommandCall {
    let mut bytes = Vec::with_capacity(request.len_bytes_about());
    request.encode_into(&mut bytes);
    CommandCall { queue, command: bytes.into(), promised_leases_ms: Vec::new() }
}

/// Whose turn it is among shards, modulo their number. A request that may be repeated meets the same one again.
pub fn turn(request: Option<&RequestId>) -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    match request {
        Some(request) => {
            (request.session ^ request.sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15)) as usize >> 7
        }
        None => NEXT.fetch_add(1, Ordering::Relaxed),
    }
}

pub fn request_id(request: Option<&RequestId>) -> Option<leasehold_partition::RequestId> {
    request.map(|request| leasehold_partition::RequestId {
        session: request.session,
        sequence: request.sequence,
        completed_below: request.completed_below,
    })
}

pub fn unexpected(reply: &leasehold_partition::Reply) -> Failure {
    Failure::unknown(Reason::None, format!("an unexpected reply: {reply:?}"))
}
