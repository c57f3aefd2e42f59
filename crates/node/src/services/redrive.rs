//! Starting and ending redrives, on all shards of a queue.

use leasehold_catalogue as catalogue;
use leasehold_partition::{self as partition, Command};
use leasehold_proto::v1::{RedriveProgress, RedriveState, StartRedriveRequest};

use super::describe::{describe_shards, redrive_of};
use super::queue_changes::{for_each_shard, send_to};
use super::{lookup, validate};
use crate::core::Core;
use crate::failure::Failure;
use crate::queue_info::QueueInfo;
use crate::redrive_id::RedriveId;
use crate::replica::{refusal, wall_ms};
use crate::router::Repeat;

/// Starts a redrive and returns its id.
pub async fn start(core: &Core, request: &StartRedriveRequest) -> Result<u64, Failure> {
    let queue = lookup::queue_now(core, &request.queue).await?;
    let target = target(core, &queue, &request.target).await?;
    // The same on every shard, so that one cancel ends all.
    let id = RedriveId::new(wall_ms(), core.catalogue.group.progress().0 ^ core.view.here().0).0;
    let rate_per_s = request.rate_per_s;
    let start =
        |_: catalogue::PartitionId| Command::RedriveStart { queue: queue.id(), target, rate_per_s, id };
    for_each_shard(core, &queue, start, Repeat::Safe).await?;
    Ok(id)
}

/// Ends the redrive of a queue, and says how far it had come.
pub async fn cancel(core: &Core, name: &str) -> Result<RedriveProgress, Failure> {
    let queue = lookup::queue_now(core, name).await?;
    let shards = describe_shards(core, &queue).await?;
    let running = shards.iter().filter_map(|shard| Some((shard.partition, shard.redrive.as_ref()?)));
    let running = running.filter(|(_, redrive)| redrive.running).collect::<Vec<_>>();
    if running.is_empty() {
        return Err(refusal(partition::Refusal::RedriveUnknown));
    }
    for (shard, redrive) in running {
        let command = Command::RedriveCancel { queue: queue.id(), id: redrive.id };
        send_to(core, &queue, catalogue::PartitionId(shard), command, Repeat::Safe).await?;
    }
    let progress = redrive_of(&describe_shards(core, &queue).await?).unwrap_or_default();
    Ok(RedriveProgress { running: false, state: RedriveState::RedriveCancelled as i32, ..progress })
}

async fn target(core: &Core, queue: &QueueInfo, target: &str) -> Result<Option<partition::QueueId>, Failure> {
    if target.is_empty() {
        return Ok(None);
    }
    let target = lookup::queue(core, target).await?;
    if target.is_fifo() != queue.is_fifo() {
        return Err(validate::invalid(format!(
            "{} and {} are not of the same kind",
            queue.name(),
            target.name()
        )));
    }
    Ok(Some(target.id()))
}
