//! From the name of a queue to what this node knows of it.

use std::sync::Arc;

use leasehold_partition::QueueId;
use leasehold_proto::v1::Reason;

use crate::cluster::QueueInfo;
use crate::core::Core;
use crate::failure::Failure;
use crate::replica::CommandCall;

/// Finds a queue. One that was made a moment ago through another node is asked after before it is called unknown.
pub async fn queue(core: &Core, name: &str) -> Result<Arc<QueueInfo>, Failure> {
    if let Some(info) = core.view.queue(name) {
        return Ok(info);
    }
    core.catalogue.catch_up().await?;
    let unknown =
        || Failure::not_done(Reason::UnknownQueue, format!("queue {name:?} does not exist: create it first"));
    core.view.queue(name).ok_or_else(unknown)
}

/// A command as the partition takes it.
pub fn call(queue: QueueId, request: &leasehold_partition::Request<'_>) -> CommandCall {
    let mut bytes = Vec::new();
    request.encode_into(&mut bytes);
    CommandCall { queue, command: bytes.into(), promised_leases_ms: Vec::new() }
}

pub fn request_id(
    request: Option<&leasehold_proto::v1::RequestId>,
) -> Option<leasehold_partition::RequestId> {
    request.map(|request| leasehold_partition::RequestId {
        session: request.session,
        sequence: request.sequence,
        completed_below: request.completed_below,
    })
}

pub fn unexpected(reply: &leasehold_partition::Reply) -> Failure {
    Failure::unknown(Reason::None, format!("an unexpected reply: {reply:?}"))
}
