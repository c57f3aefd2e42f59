//! Moves messages between queues: dead ones to their dead-letter queue, redriven ones back.
//!
//! ```text
//!   outbox (source partition) ─Transfer, numbered─▶ target partition      remembers the last number of each source
//!            ▲                                            │
//!            └────────────────TransferDone◀───────────────┘               only then is it removed here
//! ```
//!
//! A crash between the two steps sends a message again, and the target recognises its number: it is never in neither queue and
//! never twice in the second.

mod pace;

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use leasehold_catalogue::PartitionId;
use leasehold_partition::limits::ATTRIBUTES_BYTES_MAX;
use leasehold_partition::{
    Command, Content, NewMessage, Origin, OutboxItem, OutboxReason, QueueId, RedriveState, Refusal, Reply,
    Source, TransferMessage,
};
use leasehold_proto::v1::{Attribute, Reason};
use prost::Message as _;
use tokio::time::{Instant, sleep, timeout};

use crate::answers::StoredAttributes;
use crate::core::Core;
use crate::failure::Failure;
use crate::queue_info::QueueInfo;
use crate::raft::Role;
use crate::replica::{CommandCall, QueueSource as _, Replica, refusal};
use crate::router::Repeat;

use pace::Share;

/// The attribute that says why a consumer rejected a message.
const REJECTED: &str = "leasehold-rejected";
/// Messages and bytes of one transfer.
const ITEMS_MAX: usize = 256;
const ITEMS_BYTES_MAX: usize = 512 * 1024;
/// Messages that a redrive puts into the outbox at once, and how many may wait there.
const STEP_ITEMS_MAX: u32 = 256;
const WAITING_MAX: u64 = 1_024;
/// How often it looks when it was not woken.
const INTERVAL: Duration = Duration::from_millis(500);
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// A redrive with a rate looks this often whether it may move something.
const PACE: Duration = Duration::from_millis(100);

/// Serves the outboxes of one replica while it leads, until the replica goes away or stops.
pub async fn run(core: Weak<Core>, replica: Weak<Replica>) {
    let mut paces = BTreeMap::new();
    loop {
        let Some((core, replica)) = core.upgrade().zip(replica.upgrade()) else { return };
        let mut role = replica.role();
        // Waiting holds on to both, and so do the tasks of other replicas: somebody has to let go first.
        if *role.borrow_and_update() == Role::Stopped {
            return;
        }
        let pause = match pass(&core, &replica, &mut paces).await {
            Ok(Progress::More) => continue,
            Ok(Progress::Paced) => PACE,
            Ok(Progress::None) => INTERVAL,
            Err(failure) => {
                tracing::debug!(partition = replica.id().0, %failure, "an outbox waits");
                sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        let woken = async {
            tokio::select! {
                () = replica.outbox().notified() => {}
                changed = role.changed() => drop(changed),
            }
        };
        // It looks again either way.
        let _ = timeout(pause, woken).await;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    None,
    /// A redrive waits for its next share.
    Paced,
    More,
}

/// Since when each redrive with a rate may move something.
type Paces = BTreeMap<QueueId, Instant>;

async fn pass(core: &Core, replica: &Replica, paces: &mut Paces) -> Result<Progress, Failure> {
    if !matches!(*replica.role().borrow(), Role::Leader { .. }) {
        paces.clear();
        return Ok(Progress::None);
    }
    let (waiting, redrives) = {
        let state = replica.machine().read();
        let waiting = state.outbox_queues().collect::<Vec<_>>();
        let waiting =
            waiting.into_iter().map(|queue| (queue, state.outbox_targets(queue))).collect::<Vec<_>>();
        (waiting, state.redrive_queues().collect::<Vec<_>>())
    };
    // What an ended one may do is not the next one's.
    paces.retain(|queue, _| redrives.contains(queue));
    let mut progress = Progress::None;
    let mut failed = None;
    for (queue, targets) in waiting {
        for (target, _) in targets {
            // One target that is away holds back nobody else.
            match move_some(core, replica, queue, target).await {
                Ok(true) => progress = Progress::More,
                Ok(false) => {}
                Err(failure) => failed = Some(failure),
            }
        }
    }
    for queue in redrives {
        progress = progress.max(redrive_some(core, replica, queue, paces).await?);
    }
    match (progress, failed) {
        (Progress::None | Progress::Paced, Some(failure)) => Err(failure),
        (progress, _) => Ok(progress),
    }
}

/// Moves one batch from the outbox of `queue` to `target`; false when nothing could be moved.
async fn move_some(core: &Core, replica: &Replica, queue: QueueId, target: QueueId) -> Result<bool, Failure> {
    let Some(_moving) = core.transfer_hold.start_moving().await else { return Ok(false) };
    let Some(info) = core.view.queue_by_id(target) else {
        if !core.view.is_deleted(target) {
            return Ok(false);
        }
        let command = Command::TransferReturn { queue, target, items_max: ITEMS_MAX as u32 };
        return own(core, replica, queue, &command).await.map(|_| true);
    };
    let items = replica.machine().read().outbox(queue, target, ITEMS_MAX);
    let contents = read_contents(core, replica, &items).await?;
    let items = &items[..contents.len()];
    let mut by_shard: BTreeMap<PartitionId, Vec<TransferMessage<'_>>> = BTreeMap::new();
    let mut shards = Vec::with_capacity(items.len());
    let rejections = items.iter().zip(&contents).map(|(item, bytes)| with_reason(item, bytes));
    let rejections = rejections.collect::<Result<Vec<_>, _>>()?;
    for ((item, bytes), rejected) in items.iter().zip(&contents).zip(&rejections) {
        let message = message_of(replica, queue, item, bytes, rejected.as_deref())?;
        let shard = shard_for(&info, item.number, &message.content)?;
        shards.push(shard);
        by_shard.entry(shard).or_default().push(TransferMessage { number: item.number, message });
    }
    let source = Source { partition: replica.id().0, queue };
    let transfers = by_shard.into_iter().map(|(shard, messages)| {
        let call = call(target, &Command::Transfer { queue: target, source, messages });
        async move { (shard, core.router.command(shard, call, Repeat::Safe).await) }
    });
    let mut through = BTreeMap::new();
    let mut failed = None;
    // A shard that is away or full holds up none of the others, nor what has arrived before.
    for (shard, reply) in join_all(transfers).await {
        match reply {
            Ok(Reply::Transferred { through_number, refused }) => {
                through.insert(shard, through_number);
                failed = failed.or(refused.map(refusal));
            }
            Ok(Reply::Refused { reason }) => failed = Some(refusal(reason)),
            Ok(other) => failed = Some(unexpected(&other)),
            Err(failure) => failed = Some(failure),
        }
    }
    let has_arrived =
        |at: &usize| through.get(&shards[*at]).is_some_and(|number| *number >= items[*at].number);
    let arrived = (0..items.len()).take_while(has_arrived).count();
    if arrived > 0 {
        let through_number = items[arrived - 1].number;
        own(core, replica, queue, &Command::TransferDone { queue, target, through_number }).await?;
    }
    match failed {
        Some(failure) if arrived == 0 => Err(failure),
        _ => Ok(arrived > 0),
    }
}

async fn read_contents(core: &Core, replica: &Replica, items: &[OutboxItem]) -> Result<Vec<Bytes>, Failure> {
    let mut contents = Vec::with_capacity(items.len());
    let mut bytes = 0;
    for item in items {
        bytes += item.content.len as usize;
        if !contents.is_empty() && bytes > ITEMS_BYTES_MAX {
            break;
        }
        contents.push(core.router.answers().contents.read(replica.id(), item.content).await?);
    }
    Ok(contents)
}

fn message_of<'a>(
    replica: &Replica,
    queue: QueueId,
    item: &OutboxItem,
    bytes: &'a Bytes,
    rejected: Option<&'a [u8]>,
) -> Result<NewMessage<'a>, Failure> {
    let content = Content::decode(bytes).map_err(malformed)?;
    let content = Content { attributes: rejected.unwrap_or(content.attributes), ..content };
    let partition = replica.id().0;
    let origin = Origin { queue, partition, sequence: item.key.sequence, receive_count: item.receive_count };
    Ok(NewMessage { delay_ms: None, expiry_ms: None, content: Content { origin: Some(origin), ..content } })
}

/// The attributes of a message that was rejected, with the reason among them; `None` where nothing is to be added. A reason that does
/// not fit beside the sender's attributes is left to the history: a message that cannot arrive would be worse.
fn with_reason(item: &OutboxItem, bytes: &Bytes) -> Result<Option<Vec<u8>>, Failure> {
    let OutboxReason::Rejected { why } = &item.reason else { return Ok(None) };
    let content = Content::decode(bytes).map_err(malformed)?;
    let StoredAttributes { mut attributes } =
        StoredAttributes::decode(content.attributes).map_err(malformed)?;
    attributes.retain(|attribute| attribute.name != REJECTED);
    let value = Bytes::copy_from_slice(why);
    attributes.push(Attribute { name: REJECTED.to_owned(), r#type: "String".to_owned(), value });
    let encoded = StoredAttributes { attributes }.encode_to_vec();
    Ok((encoded.len() <= ATTRIBUTES_BYTES_MAX).then_some(encoded))
}

fn malformed(error: impl std::fmt::Display) -> Failure {
    Failure::unknown(Reason::NodeFailed, format!("a content is malformed: {error}"))
}

/// Always the same for one message, or its number would not be recognised.
fn shard_for(info: &QueueInfo, number: u64, content: &Content<'_>) -> Result<PartitionId, Failure> {
    let by_group = content.group.filter(|_| info.is_fifo()).and_then(|group| info.shard_of_group(group));
    let by_number = || info.shards().nth((number % info.shards().len().max(1) as u64) as usize);
    by_group.or_else(by_number).ok_or_else(|| refusal(Refusal::UnknownQueue))
}

async fn redrive_some(
    core: &Core,
    replica: &Replica,
    queue: QueueId,
    paces: &mut Paces,
) -> Result<Progress, Failure> {
    let (redrive, waiting) = {
        let state = replica.machine().read();
        let waiting = state.outbox_targets(queue).iter().map(|(_, count)| count).sum::<u64>();
        (state.shard(queue).and_then(|shard| shard.redrive), waiting)
    };
    let Some(redrive) = redrive.filter(|redrive| redrive.state == RedriveState::Running) else {
        paces.remove(&queue);
        return Ok(Progress::None);
    };
    if waiting >= WAITING_MAX {
        return Ok(Progress::Paced);
    }
    let items_max = match redrive.rate_per_s {
        0 => STEP_ITEMS_MAX,
        rate_per_s => allowed(core, replica, queue, rate_per_s, paces),
    };
    if items_max == 0 {
        return Ok(Progress::Paced);
    }
    let reply = own(core, replica, queue, &Command::RedriveStep { queue, items_max }).await?;
    match reply {
        // A step that finds nothing has to wait: what is ready may stand behind a leased message of its group.
        Reply::RedriveStepped { progress, .. }
            if redrive.rate_per_s == 0
                && (progress.moved, progress.kept) != (redrive.moved, redrive.kept) =>
        {
            Ok(Progress::More)
        }
        Reply::RedriveStepped { .. } => Ok(Progress::Paced),
        other => Err(unexpected(&other)),
    }
}

/// How many messages a redrive with a rate may move now; none of a queue that this node does not know.
fn allowed(core: &Core, replica: &Replica, queue: QueueId, rate_per_s: u32, paces: &mut Paces) -> u32 {
    let Some(info) = core.view.queue_by_id(queue) else { return 0 };
    let shards = info.shards().len() as u32;
    let Some(at) = info.shards().position(|shard| shard == replica.id()) else { return 0 };
    let share = Share { rate_per_s, shards, at: at as u32 };
    let now = Instant::now();
    let due = paces.entry(queue).or_insert_with(|| share.first(now));
    let (items, next) = share.take(*due, now, STEP_ITEMS_MAX);
    *due = next;
    items
}

/// Has a command executed by this partition.
async fn own(
    core: &Core,
    replica: &Replica,
    queue: QueueId,
    command: &Command<'_>,
) -> Result<Reply, Failure> {
    match core.router.command(replica.id(), call(queue, command), Repeat::Safe).await? {
        Reply::Refused { reason } => Err(refusal(reason)),
        reply => Ok(reply),
    }
}

fn call(queue: QueueId, command: &Command<'_>) -> CommandCall {
    let mut bytes = Vec::new();
    command.encode_into(&mut bytes);
    CommandCall { queue, command: bytes.into(), promised_leases_ms: Vec::new() }
}

fn unexpected(reply: &Reply) -> Failure {
    Failure::unknown(Reason::None, format!("an unexpected reply: {reply:?}"))
}
