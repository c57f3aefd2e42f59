//! Making, changing, listing, purging and deleting queues.

use futures::future::join_all;
use leasehold_catalogue::{
    self as catalogue, CreateQueue, DeleteQueue, Kind, PacePurge, QueueChange, Reply, SetQueue,
};
use leasehold_partition::{self as partition, Command};
use leasehold_proto::v1::{
    self, CreateQueueRequest, DeleteQueueRequest, ListQueuesRequest, ListQueuesResponse, Outcome,
    QueueSettings, Reason, SetQueueRequest,
};

use super::lookup;
use crate::core::Core;
use crate::failure::Failure;
use crate::queue_info::QueueInfo;
use crate::replica::{QueueSource as _, WantedShard, refusal, wall_ms};
use crate::router::Repeat;
use crate::service::Deletion;

const LIST_MAX: usize = 1_000;
/// Times that the shards of a queue are configured for one change of it.
const CONFIGURES_MAX: usize = 8;

/// Makes a queue; false when an equal one was there. With a pause it is refused so soon after a remembered deletion.
pub async fn create(core: &Core, request: CreateQueueRequest, pause_ms: u64) -> Result<bool, Failure> {
    let CreateQueueRequest { queue, settings, shards, request } = request;
    let (settings, tags, _) = change(settings.unwrap_or_default());
    let create = CreateQueue { name: queue, settings, shards, tags, wall_ms: wall_ms(), pause_ms };
    match core.catalogue.propose_for(request, Kind::CreateQueue(create)).await? {
        Reply::Queue { created, .. } => Ok(created),
        other => Err(Failure::unknown(Reason::None, format!("an unexpected reply: {other:?}"))),
    }
}

/// Changes the settings and tags that are present, all or none, if the queue is of revision `if_revision`; 0 takes any.
pub async fn set(core: &Core, request: SetQueueRequest, if_revision: u64) -> Result<(), Failure> {
    let SetQueueRequest { queue: name, settings, request } = request;
    let (change, tags, tags_removed) = change(settings.unwrap_or_default());
    let is_of_tags = change == QueueChange::default() && !(tags.is_empty() && tags_removed.is_empty());
    let set = SetQueue { name: name.clone(), change, wall_ms: wall_ms(), if_revision, tags, tags_removed };
    core.catalogue.propose_for(request, Kind::SetQueue(set)).await?;
    if is_of_tags {
        return Ok(());
    }
    // The catalogue has changed by now: what fails from here on is not a change that was not made. When this node does not come to it,
    // the leaders of the shards do.
    configure(core, &name).await.map_err(|failure| failure.after(true))
}

/// Brings every shard of a queue to where the catalogue is. It does not leave that to their leaders, whose copies of the catalogue may
/// be behind: when this returns, the settings are in force. Of two changes at a time the later one stays, for each looks again.
async fn configure(core: &Core, name: &str) -> Result<(), Failure> {
    let mut done = None;
    for _ in 0..CONFIGURES_MAX {
        let queue = lookup::queue_now(core, name).await?;
        let wanted_on = |shard| Some((shard, core.view.shard_of(queue.id(), shard)?));
        let shards = queue.shards().filter_map(wanted_on).collect::<Vec<_>>();
        let changed = shards.iter().map(|(_, wanted)| wanted.changed).max();
        if changed.is_some() && changed == done {
            return Ok(());
        }
        let all = shards.iter().map(|(shard, wanted)| configure_shard(core, &queue, *shard, wanted));
        match join_all(all).await.into_iter().collect::<Result<(), _>>() {
            Ok(()) => done = changed,
            // A partition has seen a later revision than this node, which looks again.
            Err(failure) if failure.reason == Reason::Busy => {}
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure::try_again(Reason::Busy, format!("{name} is changed all the time")))
}

async fn configure_shard(
    core: &Core,
    queue: &QueueInfo,
    shard: catalogue::PartitionId,
    wanted: &WantedShard,
) -> Result<(), Failure> {
    for command in wanted.commands(queue.id()) {
        send_to(core, queue, shard, command, Repeat::Safe).await?;
    }
    Ok(())
}

/// Names of queues, in order.
pub async fn list(core: &Core, request: &ListQueuesRequest) -> Result<ListQueuesResponse, Failure> {
    core.catalogue.catch_up().await?;
    Ok(core.view.look(|catalogue| {
        let named = catalogue.queues_named(&request.prefix, &request.after);
        page(named.map(|queue| queue.name.as_str()), request.queues_max)
    }))
}

/// Names of the queues that send their dead letters to the one named by `prefix`, in order.
pub async fn list_sources(core: &Core, request: &ListQueuesRequest) -> Result<ListQueuesResponse, Failure> {
    core.catalogue.catch_up().await?;
    let queue = lookup::queue(core, &request.prefix).await?;
    Ok(core.view.look(|catalogue| {
        let sources = catalogue.dead_letter_sources(catalogue::QueueId(queue.id().0), &request.after);
        page(sources, request.queues_max)
    }))
}

fn page<'a>(names: impl Iterator<Item = &'a str>, queues_max: u32) -> ListQueuesResponse {
    let max = if queues_max == 0 { LIST_MAX } else { (queues_max as usize).min(LIST_MAX) };
    let mut queues = names.take(max + 1).map(str::to_owned).collect::<Vec<_>>();
    let more = queues.len() > max;
    queues.truncate(max);
    ListQueuesResponse { queues, more }
}

/// Removes every message. With a pause it is refused so soon after the last such purge; one that failed may be tried again at once.
pub async fn purge(core: &Core, name: &str, pause_ms: u64) -> Result<(), Failure> {
    let queue = lookup::queue_now(core, name).await?;
    let now_ms = wall_ms();
    let purged_ms =
        core.view.look(|catalogue| catalogue.queue_by_name(name).map_or(0, |queue| queue.purged_wall_ms));
    if is_paused(purged_ms, pause_ms, now_ms) {
        let detail = format!("{name} was purged less than {pause_ms} ms ago: wait");
        return Err(Failure::not_done(Reason::TooSoon, detail));
    }
    for_each_shard(core, &queue, |_| Command::Purge { queue: queue.id() }, Repeat::Unsafe).await?;
    if pause_ms > 0 {
        let pace = PacePurge { name: name.to_owned(), wall_ms: now_ms, pause_ms };
        // The queue is purged, and two purges at once do no harm: without its pause it is only purged again sooner.
        if let Err(failure) = core.catalogue.propose(Kind::PacePurge(pace)).await {
            tracing::debug!(queue = name, %failure, "no pause follows a purge");
        }
    }
    Ok(())
}

/// Whether a paced purge was so short a time ago that the catalogue would allow no other.
fn is_paused(purged_ms: u64, pause_ms: u64, now_ms: u64) -> bool {
    pause_ms > 0 && purged_ms > 0 && now_ms < purged_ms.saturating_add(pause_ms)
}

/// Deletes a queue and all its messages.
pub async fn delete(core: &Core, request: DeleteQueueRequest, deletion: Deletion) -> Result<(), Failure> {
    let DeleteQueueRequest { queue: name, request } = request;
    let remember_wall_ms = match deletion {
        Deletion::Forgotten => 0,
        Deletion::Remembered => wall_ms(),
    };
    let delete = DeleteQueue { name, remember_wall_ms };
    core.catalogue.propose_for(request, Kind::DeleteQueue(delete)).await.map(drop)
}

/// Has a command executed by the leader of every shard.
///
/// # Errors
/// The first of them; nothing is done only if no shard has done it.
pub async fn for_each_shard(
    core: &Core,
    queue: &QueueInfo,
    make: impl Fn(catalogue::PartitionId) -> Command<'static>,
    repeat: Repeat,
) -> Result<(), Failure> {
    let all = queue.shards().map(|shard| send_to(core, queue, shard, make(shard), repeat));
    let results = join_all(all).await;
    let is_undone = |result: &Result<(), Failure>| {
        result.as_ref().is_err_and(|failure| failure.outcome == Outcome::NotDone)
    };
    let was_done = !results.iter().all(is_undone);
    results.into_iter().collect::<Result<(), _>>().map_err(|failure| failure.after(was_done))
}

pub async fn send_to(
    core: &Core,
    queue: &QueueInfo,
    shard: catalogue::PartitionId,
    command: Command<'static>,
    repeat: Repeat,
) -> Result<(), Failure> {
    match core.router.command(shard, lookup::call(queue.id(), &command.into()), repeat).await? {
        partition::Reply::Refused { reason } => Err(refusal(reason)),
        _ => Ok(()),
    }
}

type Tags = std::collections::BTreeMap<String, String>;

/// Settings as users give them, in the catalogue's words, with the tags to set and to remove.
fn change(settings: QueueSettings) -> (QueueChange, Tags, Vec<String>) {
    let allow = |allow: v1::RedriveAllow| catalogue::RedriveAllow { rule: allow.rule, queues: allow.queues };
    let change = QueueChange {
        kind: settings.kind,
        lease_ms: settings.lease_ms,
        delay_ms: settings.delay_ms,
        retention_ms: settings.retention_ms,
        dead_letter_queue: settings.dead_letter_queue,
        receives_max: settings.receives_max,
        content_deduplication: settings.content_deduplication,
        deduplication_window_ms: settings.deduplication_window_ms,
        in_flight_max: settings.in_flight_max,
        length_max: settings.length_max,
        bytes_max: settings.bytes_max,
        message_bytes_max: settings.message_bytes_max,
        adaptive_lease_ms_max: settings.adaptive_lease_ms_max,
        retry_percent: settings.retry_percent,
        retry_floor_per_s: settings.retry_floor_per_s,
        isolate_suspects: settings.isolate_suspects,
        wait_ms: settings.wait_ms,
        redrive_allow: settings.redrive_allow.map(allow),
        labels: settings.labels,
    };
    (change, settings.tags, settings.tags_removed)
}

#[cfg(test)]
mod tests {
    use super::is_paused;

    #[test]
    fn a_pause_follows_a_paced_purge_and_no_other() {
        assert!(is_paused(2_000, 60_000, 2_000) && is_paused(2_000, 60_000, 61_999));
        assert!(!is_paused(2_000, 60_000, 62_000));
        assert!(!is_paused(0, 60_000, 1_000), "it never was purged");
        assert!(!is_paused(2_000, 0, 2_001), "who asks keeps no pause");
    }
}
