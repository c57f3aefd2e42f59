//! What a queue is and holds, in the words of the protocol.

use futures::future::try_join_all;
use leasehold_catalogue as catalogue;
use leasehold_proto::peer;
use leasehold_proto::v1::{
    self, DescribeQueueResponse, QueueCounters, QueueSettings, RedriveProgress, RedriveState,
    ShardDescription,
};

use super::lookup;
use crate::core::Core;
use crate::endings;
use crate::failure::Failure;
use crate::headroom;
use crate::queue_info::QueueInfo;
use crate::storms;

/// Whether a description has counters, for which the leader of every shard is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    AllShards,
    None,
}

/// Describes a queue.
pub async fn describe(core: &Core, name: &str, counting: Counting) -> Result<DescribeQueueResponse, Failure> {
    let queue = lookup::queue_now(core, name).await?;
    let shards = match counting {
        Counting::AllShards => describe_shards(core, &queue).await?,
        Counting::None => Vec::new(),
    };
    Ok(description(core, &queue, shards))
}

pub async fn describe_shards(core: &Core, queue: &QueueInfo) -> Result<Vec<ShardDescription>, Failure> {
    let shards = queue.shards().map(|shard| core.router.ask(shard, peer::Describe { queue: queue.id().0 }));
    try_join_all(shards).await
}

/// The redrive of a queue from those of its shards: it runs while one of them does, and is the last one otherwise.
pub fn redrive_of(shards: &[ShardDescription]) -> Option<RedriveProgress> {
    let of_shards = || shards.iter().filter_map(|shard| shard.redrive.as_ref());
    let last = of_shards().max_by_key(|redrive| {
        (redrive.running, redrive.id, redrive.state() == RedriveState::RedriveCancelled)
    })?;
    // A shard may still tell of the one before.
    let same = || of_shards().filter(|redrive| redrive.id == last.id);
    let moved = same().map(|redrive| redrive.moved).sum::<u64>();
    let total = same().map(|redrive| redrive.total).sum::<u64>();
    Some(RedriveProgress { moved, total, ..last.clone() })
}

fn description(core: &Core, queue: &QueueInfo, shards: Vec<ShardDescription>) -> DescribeQueueResponse {
    let recorded =
        core.view.look(|catalogue| catalogue.queue_by_name(queue.name()).cloned()).unwrap_or_default();
    let mut counters = QueueCounters::default();
    for shard in &shards {
        let of_shard = shard.counters.unwrap_or_default();
        counters.ready += of_shard.ready;
        counters.leased += of_shard.leased;
        counters.delayed += of_shard.delayed;
        counters.dead += of_shard.dead;
        counters.bytes += of_shard.bytes;
        counters.oldest_age_ms = counters.oldest_age_ms.max(of_shard.oldest_age_ms);
    }
    let (floor_ms, ceiling_ms) = (recorded.settings.lease_ms, recorded.settings.adaptive_lease_ms_max);
    let report = headroom::report(&shards, floor_ms, ceiling_ms);
    let retry_budget = storms::sum(&shards);
    let endings = endings::sum(&shards);
    let mut advice = report.advice;
    advice.extend(retry_budget.as_ref().into_iter().flat_map(storms::advice));
    advice.extend(endings::advice(&endings));
    let (created_wall_ms, modified_wall_ms) = (recorded.created_wall_ms, recorded.modified_wall_ms);
    DescribeQueueResponse {
        queue: queue.name().to_owned(),
        redrive: redrive_of(&shards),
        revision: recorded.revision,
        settings: Some(settings(core, catalogue::Queue::clone(&recorded))),
        counters: Some(counters),
        shards,
        created_wall_ms,
        modified_wall_ms,
        headroom: Some(report.all),
        versions: report.versions,
        advice,
        retry_budget,
        endings: Some(endings),
    }
}

fn settings(core: &Core, queue: catalogue::Queue) -> QueueSettings {
    let catalogue::Queue { settings, tags, .. } = queue;
    let dead_letter = settings.dead_letter;
    QueueSettings {
        kind: Some(settings.kind),
        lease_ms: Some(settings.lease_ms),
        delay_ms: Some(settings.delay_ms),
        retention_ms: Some(settings.retention_ms),
        dead_letter_queue: dead_letter.and_then(|dead_letter| core.view.queue_name(dead_letter.queue)),
        receives_max: dead_letter.map(|dead_letter| dead_letter.receives_max),
        content_deduplication: Some(settings.content_deduplication),
        deduplication_window_ms: Some(settings.deduplication_window_ms),
        in_flight_max: Some(settings.in_flight_max),
        length_max: Some(settings.length_max),
        bytes_max: Some(settings.bytes_max),
        message_bytes_max: Some(settings.message_bytes_max),
        adaptive_lease_ms_max: Some(settings.adaptive_lease_ms_max),
        retry_percent: Some(settings.retry_percent),
        isolate_suspects: Some(settings.isolate_suspects),
        retry_floor_per_s: (settings.retry_percent > 0).then(|| settings.retry_floor_per_s()),
        wait_ms: Some(settings.wait_ms),
        redrive_allow: settings
            .redrive_allow
            .map(|allow| v1::RedriveAllow { rule: allow.rule, queues: allow.queues }),
        labels: settings.labels,
        tags,
        tags_removed: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: u64, state: RedriveState, moved: u64) -> ShardDescription {
        let running = state == RedriveState::RedriveUnderWay;
        let redrive =
            RedriveProgress { id, running, state: state.into(), moved, total: 10, ..Default::default() };
        ShardDescription { redrive: Some(redrive), ..ShardDescription::default() }
    }

    #[test]
    fn the_redrive_of_a_queue_is_the_one_that_runs_and_what_its_shards_have_done() {
        use RedriveState::{RedriveCancelled, RedriveComplete, RedriveUnderWay};
        let seen = |shards: &[ShardDescription]| {
            redrive_of(shards)
                .map(|redrive| (redrive.id, redrive.state(), redrive.running, redrive.moved, redrive.total))
        };
        assert_eq!(seen(&[ShardDescription::default()]), None);
        let over = shard(7, RedriveComplete, 3);
        let shards = [over.clone(), shard(7, RedriveUnderWay, 4)];
        assert_eq!(seen(&shards), Some((7, RedriveUnderWay, true, 7, 20)));
        let shards = [over.clone(), shard(7, RedriveCancelled, 4)];
        assert_eq!(seen(&shards), Some((7, RedriveCancelled, false, 7, 20)));
        // One that was refused, and taken back where it had begun, is later and not the one that runs.
        let shards = [shard(8, RedriveCancelled, 0), shard(7, RedriveUnderWay, 4)];
        assert_eq!(seen(&shards), Some((7, RedriveUnderWay, true, 4, 10)));
        let shards = [over, shard(8, RedriveComplete, 5)];
        assert_eq!(seen(&shards), Some((8, RedriveComplete, false, 5, 10)));
    }
}
