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
    let shards = queue.shards().collect::<Vec<_>>();
    let rate_of = |shard: catalogue::PartitionId| {
        let at = shards.iter().position(|other| *other == shard).unwrap_or_default();
        part(request.rate_per_s, at as u32, shards.len() as u32)
    };
    // The same on every shard, so that one cancel ends all.
    let id = RedriveId::new(wall_ms(), core.catalogue.group.progress().0 ^ core.view.here().0).0;
    let start = |shard| Command::RedriveStart { queue: queue.id(), target, rate_per_s: rate_of(shard), id };
    for_each_shard(core, &queue, start, Repeat::Safe).await?;
    Ok(id)
}

/// A shard's part of a rate, of which 0 is no limit. All parts are the rate together, but none is less than 1.
fn part(rate_per_s: u32, at: u32, shards: u32) -> u32 {
    match rate_per_s {
        0 => 0,
        rate => (rate / shards + u32::from(at < rate % shards)).max(1),
    }
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

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn the_parts_of_a_rate_are_the_rate_as_far_as_each_is_one() {
        let parts = |rate, shards| (0..shards).map(|at| part(rate, at, shards)).collect::<Vec<_>>();
        assert_eq!(parts(10, 4), [3, 3, 2, 2]);
        assert_eq!(parts(500, 3), [167, 167, 166]);
        assert_eq!(parts(1, 2), [1, 1]);
        assert_eq!(parts(0, 2), [0, 0]);
    }
}
