//! Starting and ending redrives, on all shards of a queue. One runs at a time: it begins on all shards or on none.

use futures::future::join_all;
use leasehold_catalogue as catalogue;
use leasehold_partition::{self as partition, Command};
use leasehold_proto::peer;
use leasehold_proto::v1::{
    Outcome, Reason, RedriveProgress, RedriveState, ShardDescription, StartRedriveRequest,
};

use super::describe::{describe_shards, redrive_of};
use super::queue_changes::send_to;
use super::{lookup, validate};
use crate::core::Core;
use crate::failure::Failure;
use crate::queue_info::QueueInfo;
use crate::redrive_id::RedriveId;
use crate::replica::{refusal, wall_ms};
use crate::router::Repeat;

/// Starts a redrive and returns its id.
///
/// # Errors
/// `REDRIVE_RUNNING` when one runs on any shard. Nothing is done then, unless both began at the same moment and this one has moved
/// something before it was taken back.
pub async fn start(core: &Core, request: &StartRedriveRequest) -> Result<u64, Failure> {
    let queue = lookup::queue_now(core, &request.queue).await?;
    let target = target(core, &queue, &request.target).await?;
    let described = describe_shards(core, &queue).await;
    // A question changes nothing, whether or not it was answered.
    let shards = described.map_err(|failure| Failure { outcome: Outcome::NotDone, ..failure })?;
    if shards.iter().filter_map(|shard| shard.redrive.as_ref()).any(|redrive| redrive.running) {
        return Err(refusal(partition::Refusal::RedriveRunning));
    }
    // The same on every shard, so that one cancel ends all.
    let id = RedriveId::new(wall_ms(), core.catalogue.group.progress().0 ^ core.view.here().0).0;
    let rate_per_s = request.rate_per_s;
    let starts = queue.shards().map(|shard| {
        let start = Command::RedriveStart { queue: queue.id(), target, rate_per_s, id };
        let started = send_to(core, &queue, shard, start, Repeat::Safe);
        async move { (shard, started.await) }
    });
    let started = join_all(starts).await;
    let failures = || started.iter().filter_map(|(_, result)| result.as_ref().err());
    let begun = started.iter().filter(|(_, result)| !result.as_ref().is_err_and(is_undone));
    let begun = begun.map(|(shard, _)| *shard).collect::<Vec<_>>();
    if failures().any(|failure| failure.reason == Reason::RedriveRunning) {
        let is_unclear = failures().any(|failure| !is_undone(failure));
        let has_moved = take_back(core, &queue, id, begun).await;
        return Err(refusal(partition::Refusal::RedriveRunning).after(is_unclear || has_moved));
    }
    let first = failures().next().cloned();
    first.map_or(Ok(id), |failure| Err(failure.after(!begun.is_empty())))
}

fn is_undone(failure: &Failure) -> bool {
    failure.outcome == Outcome::NotDone
}

/// Ends a redrive that could not begin on all shards, on those where it began; true when it has moved something there, or may have.
async fn take_back(core: &Core, queue: &QueueInfo, id: u64, begun: Vec<catalogue::PartitionId>) -> bool {
    let ended = begun.into_iter().map(|shard| async move {
        let cancel = Command::RedriveCancel { queue: queue.id(), id };
        let cancelled = send_to(core, queue, shard, cancel, Repeat::Safe).await;
        let described = core.router.ask(shard, peer::Describe { queue: queue.id().0 }).await;
        match (cancelled, described) {
            (Ok(()), Ok(shard)) => shard.redrive.is_none_or(|redrive| redrive.id != id || redrive.moved > 0),
            _ => true,
        }
    });
    join_all(ended).await.contains(&true)
}

/// Ends the redrive of a queue, the one with this id where one is given, and says how far it had come.
///
/// # Errors
/// `NO_REDRIVE` when none runs, or not the one with this id; or when a shard does not answer.
pub async fn cancel(core: &Core, name: &str, id: Option<u64>) -> Result<RedriveProgress, Failure> {
    let queue = lookup::queue_now(core, name).await?;
    let shards = describe_of(core, &queue, id).await?;
    let running = shards.iter().filter_map(|shard| Some((shard.partition, shard.redrive.as_ref()?)));
    let running = running.filter(|(_, redrive)| redrive.running).collect::<Vec<_>>();
    if running.is_empty() {
        return Err(refusal(partition::Refusal::RedriveUnknown));
    }
    for (shard, redrive) in running {
        let command = Command::RedriveCancel { queue: queue.id(), id: redrive.id };
        send_to(core, &queue, catalogue::PartitionId(shard), command, Repeat::Safe).await?;
    }
    let progress = redrive_of(&describe_of(core, &queue, id).await?).unwrap_or_default();
    Ok(RedriveProgress { running: false, state: RedriveState::RedriveCancelled as i32, ..progress })
}

/// The shards of a queue, without what they tell of other redrives than the one with this id.
async fn describe_of(
    core: &Core,
    queue: &QueueInfo,
    id: Option<u64>,
) -> Result<Vec<ShardDescription>, Failure> {
    let mut shards = describe_shards(core, queue).await?;
    for shard in &mut shards {
        shard.redrive.take_if(|redrive| id.is_some_and(|id| redrive.id != id));
    }
    Ok(shards)
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
