//! Moves messages between queues: dead ones to their dead-letter queue, redriven ones back.
//!
//! ```text
//!   outbox (source partition) ─Transfer, numbered─▶ target partition      remembers the last number of each source
//!            ▲                                            │
//!            └────────────────TransferDone◀───────────────┘               only then is it removed here
//! ```
//!
//! A crash between the two steps sends a message again, and the target recognises its number: it is never in neither queue and
//! never twice in the second. A shard of the target that is away holds back its own letters alone: `round.rs`.

mod pace;
mod round;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use leasehold_catalogue::PartitionId;
use leasehold_partition::limits::{ATTRIBUTES_BYTES_MAX, TRANSFER_MAX};
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
use crate::give_way::give_way;
use crate::queue_info::QueueInfo;
use crate::raft::Role;
use crate::replica::{CommandCall, QueueSource as _, Replica, refusal};
use crate::router::Repeat;

use pace::Share;
use round::Round;

/// The attribute that says why a consumer rejected a message.
const REJECTED: &str = "leasehold-rejected";
/// Messages and bytes of one transfer.
const ITEMS_MAX: usize = 256;
const ITEMS_BYTES_MAX: usize = 512 * 1024;
/// Letters that are looked at in one pass for those to transfer. As many can be removed at once.
const LOOK_MAX: usize = TRANSFER_MAX as usize;
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
    let mut known = Known::default();
    loop {
        let Some((core, replica)) = core.upgrade().zip(replica.upgrade()) else { return };
        let mut role = replica.role();
        // Waiting holds on to both, and so do the tasks of other replicas: somebody has to let go first.
        if *role.borrow_and_update() == Role::Stopped {
            return;
        }
        let pause = match pass(&core, &replica, &mut known).await {
            Ok(Progress::More) => {
                // A pass may have only looked.
                give_way().await;
                continue;
            }
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

/// What the task knows while its replica leads, and forgets afterwards.
#[derive(Default)]
struct Known {
    term: u64,
    paces: Paces,
    /// By queue and target, of those for which something waits.
    rounds: BTreeMap<(QueueId, QueueId), Round>,
}

async fn pass(core: &Core, replica: &Replica, known: &mut Known) -> Result<Progress, Failure> {
    let term = replica.group().term_led();
    if term != Some(known.term) {
        *known = Known { term: term.unwrap_or_default(), ..Known::default() };
    }
    if term.is_none() {
        return Ok(Progress::None);
    }
    let (waiting, redrives) = {
        let state = replica.machine().read();
        let targets_of =
            |queue| state.outbox_targets(queue).into_iter().map(move |(target, _)| (queue, target));
        let waiting = state.outbox_queues().flat_map(targets_of).collect::<BTreeSet<_>>();
        (waiting, state.redrive_queues().collect::<Vec<_>>())
    };
    // What an ended one may do is not the next one's.
    known.paces.retain(|queue, _| redrives.contains(queue));
    known.rounds.retain(|outbox, _| waiting.contains(outbox));
    let mut progress = Progress::None;
    let mut failed = None;
    for (queue, target) in waiting {
        let round = known.rounds.entry((queue, target)).or_default();
        // One target that is away holds back nobody else.
        match move_some(core, replica, queue, target, round).await {
            Ok(true) => progress = Progress::More,
            Ok(false) => {}
            Err(failure) => failed = Some(failure),
        }
    }
    for queue in redrives {
        progress = progress.max(redrive_some(core, replica, queue, &mut known.paces).await?);
    }
    match (progress, failed) {
        (Progress::None | Progress::Paced, Some(failure)) => Err(failure),
        (progress, _) => Ok(progress),
    }
}

/// A letter that was looked at.
struct Letter {
    item: OutboxItem,
    /// Where it goes, as soon as that is known.
    shard: Option<PartitionId>,
    is_wanted: bool,
}

/// Moves one batch from the outbox of `queue` to `target`; false when nothing is left to be moved at once.
async fn move_some(
    core: &Core,
    replica: &Replica,
    queue: QueueId,
    target: QueueId,
    round: &mut Round,
) -> Result<bool, Failure> {
    let Some(_moving) = core.transfer_hold.start_moving().await else { return Ok(false) };
    let Some(info) = core.view.queue_by_id(target) else {
        if !core.view.is_deleted(target) {
            return Ok(false);
        }
        let command = Command::TransferReturn { queue, target, items_max: ITEMS_MAX as u32 };
        return own(core, replica, queue, &command).await.map(|_| true);
    };
    round.begin_if_due(Instant::now());
    let (mut letters, has_more) = look(replica, &info, queue, round);
    let contents = read_contents(core, replica, &letters).await?;
    // What did not fit is looked at again.
    let has_more = has_more || contents.len() < letters.len();
    letters.truncate(contents.len());
    place_by_content(&info, &mut letters, &contents, round)?;
    let sent = transfer(core, replica, queue, &info, &letters, &contents, round).await?;
    let looked = letters.iter().map_while(|letter| Some((letter.shard?, letter.item.number)));
    let arrived = round.removable(looked);
    if arrived > 0 {
        let through_number = letters[arrived - 1].item.number;
        own(core, replica, queue, &Command::TransferDone { queue, target, through_number }).await?;
    }
    let is_over = !has_more || round.is_hopeless(info.shards().len());
    let last = letters.last().map(|letter| (letter.item.key, letter.item.number));
    let place = if arrived == letters.len() { round.place() } else { last };
    round.go_on(place, is_over);
    match sent.failed {
        Some(failure) if !sent.is_news && arrived == 0 && is_over => Err(failure),
        _ => Ok(sent.is_news || arrived > 0 || !is_over),
    }
}

/// The next letters, among them enough for one batch, and whether there are more.
fn look(replica: &Replica, info: &QueueInfo, queue: QueueId, round: &Round) -> (Vec<Letter>, bool) {
    let (mut letters, mut wanted) = (Vec::new(), 0);
    let mut place = round.place();
    while wanted < ITEMS_MAX && letters.len() < LOOK_MAX {
        let items = replica.machine().read().outbox_after(queue, info.id(), place, ITEMS_MAX);
        let is_last = items.len() < ITEMS_MAX;
        place = items.last().map(|item| (item.key, item.number)).or(place);
        for item in items {
            let shard = shard_of(info, &item);
            let is_wanted = shard.is_none_or(|shard| round.is_wanted(shard, item.number));
            wanted += usize::from(is_wanted);
            letters.push(Letter { item, shard, is_wanted });
        }
        if is_last {
            return (letters, false);
        }
    }
    (letters, true)
}

/// The contents of the first letters, as many as go together; none of a letter that is not wanted.
async fn read_contents(
    core: &Core,
    replica: &Replica,
    letters: &[Letter],
) -> Result<Vec<Option<Bytes>>, Failure> {
    let mut contents = Vec::with_capacity(letters.len());
    let (mut count, mut bytes) = (0, 0);
    for Letter { item, is_wanted, .. } in letters {
        if !is_wanted {
            contents.push(None);
            continue;
        }
        bytes += item.content.len as usize;
        if count == ITEMS_MAX || (count > 0 && bytes > ITEMS_BYTES_MAX) {
            break;
        }
        count += 1;
        contents.push(Some(core.router.answers().contents.read(replica.id(), item.content).await?));
    }
    Ok(contents)
}

/// Finds the shards of the letters whose contents have to say it.
fn place_by_content(
    info: &QueueInfo,
    letters: &mut [Letter],
    contents: &[Option<Bytes>],
    round: &Round,
) -> Result<(), Failure> {
    for (letter, bytes) in letters.iter_mut().zip(contents) {
        if letter.shard.is_none()
            && let Some(bytes) = bytes
        {
            let content = Content::decode(bytes).map_err(malformed)?;
            let shard = shard_for(info, letter.item.number, &content)?;
            letter.shard = Some(shard);
            letter.is_wanted = round.is_wanted(shard, letter.item.number);
        }
    }
    Ok(())
}

/// What came of the transfers of one batch.
struct Sent {
    /// Whether a shard has more than it was known to have.
    is_news: bool,
    failed: Option<Failure>,
}

/// Sends the letters that are wanted to their shards, and notes what these answer. A shard that is away or full holds up none of the
/// others.
async fn transfer(
    core: &Core,
    replica: &Replica,
    queue: QueueId,
    info: &QueueInfo,
    letters: &[Letter],
    contents: &[Option<Bytes>],
    round: &mut Round,
) -> Result<Sent, Failure> {
    let wanted = letters.iter().zip(contents).filter(|(letter, _)| letter.is_wanted);
    let wanted = wanted.filter_map(|(letter, bytes)| Some((&letter.item, letter.shard?, bytes.as_ref()?)));
    let wanted = wanted.collect::<Vec<_>>();
    let rejections = wanted.iter().map(|(item, _, bytes)| with_reason(item, bytes));
    let rejections = rejections.collect::<Result<Vec<_>, _>>()?;
    let mut by_shard: BTreeMap<PartitionId, Vec<TransferMessage<'_>>> = BTreeMap::new();
    for ((item, shard, bytes), rejected) in wanted.into_iter().zip(&rejections) {
        let message = message_of(replica, queue, item, bytes, rejected.as_deref())?;
        by_shard.entry(shard).or_default().push(TransferMessage { number: item.number, message });
    }
    let source = Source { partition: replica.id().0, queue };
    let transfers = by_shard.into_iter().map(|(shard, messages)| {
        let last_number = messages.last().map_or(0, |message| message.number);
        let call = call(info.id(), &Command::Transfer { queue: info.id(), source, messages });
        async move { (shard, last_number, core.router.command(shard, call, Repeat::Safe).await) }
    });
    let mut sent = Sent { is_news: false, failed: None };
    for (shard, last_number, reply) in join_all(transfers).await {
        let failure = match reply {
            Ok(Reply::Transferred { through_number, refused }) => {
                sent.is_news |= round.answered(shard, through_number);
                match refused {
                    Some(reason) => refusal(reason),
                    None if through_number >= last_number => continue,
                    None => unexpected(&Reply::Transferred { through_number, refused }),
                }
            }
            Ok(Reply::Refused { reason }) => refusal(reason),
            Ok(other) => unexpected(&other),
            Err(failure) => failure,
        };
        round.failed(shard, Instant::now());
        sent.failed = Some(failure);
    }
    Ok(sent)
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
    by_group.or_else(|| shard_by_number(info, number)).ok_or_else(|| refusal(Refusal::UnknownQueue))
}

/// The same without the content, where that is not needed.
fn shard_of(info: &QueueInfo, item: &OutboxItem) -> Option<PartitionId> {
    if info.is_fifo() {
        return info.shard_of_group(item.group.as_deref()?);
    }
    shard_by_number(info, item.number)
}

fn shard_by_number(info: &QueueInfo, number: u64) -> Option<PartitionId> {
    info.shards().nth((number % info.shards().len().max(1) as u64) as usize)
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
