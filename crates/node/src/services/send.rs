//! Sending: a batch is split by shard, each part is one command, and every message gets its own outcome.

use std::collections::BTreeMap;

use leasehold_catalogue::PartitionId;
use leasehold_partition::{self as partition, Command, Content, Reply, Request};
use leasehold_proto::v1::{MessageId, NewMessage, Outcome, Reason, RequestId, SendOutcome, SendRequest};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::{each, lookup, place, validate};
use crate::answers::StoredAttributes;
use crate::core::Core;
use crate::failure::Failure;
use crate::identity::to_hex;
use crate::queue_info::QueueInfo;
use crate::replica::refusal;
use crate::router::Repeat;

/// Messages of one batch that go to the same shard, by their places in the batch.
type Parts = BTreeMap<PartitionId, Vec<usize>>;

/// Sends a batch; one outcome for each message, in order.
///
/// # Errors
/// When nothing of it was done, or all of it has an unknown outcome.
pub async fn send(core: &Core, request: &SendRequest) -> Result<Vec<SendOutcome>, Failure> {
    validate::send(&request.messages)?;
    let queue = lookup::queue(core, &request.queue).await?;
    let sent = send_to(core, &queue, request).await;
    if is_gone(&sent)
        && let Some(queue) = lookup::successor(core, &queue).await?
    {
        return send_to(core, &queue, request).await;
    }
    sent
}

/// Whether a shard said that there is no such queue, and nothing was done.
fn is_gone(sent: &Result<Vec<SendOutcome>, Failure>) -> bool {
    let is_so =
        |outcome: Outcome, reason: i32| outcome == Outcome::NotDone && reason == Reason::UnknownQueue as i32;
    match sent {
        Ok(outcomes) => {
            outcomes.iter().any(|sent| is_so(sent.outcome(), sent.reason))
                && outcomes.iter().all(|sent| sent.outcome() == Outcome::NotDone)
        }
        Err(failure) => is_so(failure.outcome, failure.reason as i32),
    }
}

async fn send_to(core: &Core, queue: &QueueInfo, request: &SendRequest) -> Result<Vec<SendOutcome>, Failure> {
    let unheard_of = SendOutcome { outcome: Outcome::Unknown as i32, ..SendOutcome::default() };
    let mut outcomes = vec![unheard_of; request.messages.len()];
    let mut parts = Parts::new();
    let contents = Contents::of(queue, &request.messages);
    let anywhere = any_shard(queue, request.request.as_ref());
    for (at, message) in request.messages.iter().enumerate() {
        match validate::message(queue, message) {
            Ok(()) => {
                parts.entry(contents.shard(queue, message, at).unwrap_or(anywhere)).or_default().push(at)
            }
            Err(failure) => outcomes[at] = failed(&failure),
        }
    }
    let sends =
        parts.iter().map(|(shard, places)| send_part(core, queue, *shard, places, request, &contents));
    let mut results = each(sends).await;
    let was_split = parts.values().map(Vec::len).sum::<usize>() < outcomes.len() || results.len() > 1;
    if !was_split && let Some(Err(failure)) = results.pop_if(|result| result.is_err()) {
        return Err(failure);
    }
    for (places, result) in parts.values().zip(results) {
        place(&mut outcomes, places.iter().copied(), result, failed);
    }
    Ok(outcomes)
}

/// What the messages of a batch need beside themselves.
struct Contents {
    attributes: Vec<Vec<u8>>,
    deduplication_ids: Vec<Option<Vec<u8>>>,
}

impl Contents {
    fn of(queue: &QueueInfo, messages: &[NewMessage]) -> Self {
        let attributes = |message: &NewMessage| match message.attributes.as_slice() {
            [] => Vec::new(),
            attributes => StoredAttributes { attributes: attributes.to_vec() }.encode_to_vec(),
        };
        let deduplication_id = |message: &NewMessage| match &message.deduplication_id {
            Some(id) => Some(id.clone().into_bytes()),
            None => queue.content_deduplication().then(|| content_id(message)),
        };
        Self {
            attributes: messages.iter().map(attributes).collect(),
            deduplication_ids: messages.iter().map(deduplication_id).collect(),
        }
    }

    /// The shard that a message must go to: that of its group, or where its deduplication id is remembered.
    fn shard(&self, queue: &QueueInfo, message: &NewMessage, at: usize) -> Option<PartitionId> {
        let group = message.group.as_deref().filter(|_| queue.is_fifo()).map(str::as_bytes);
        let key = group.or(self.deduplication_ids[at].as_deref())?;
        queue.shard_of_group(key)
    }
}

/// The same for equal bodies, whatever their attributes: SHA-256 in hex, as SQS has it. Nobody can make another body with the same
/// id, whose message would be taken for a repetition.
fn content_id(message: &NewMessage) -> Vec<u8> {
    to_hex(&Sha256::digest(&message.body)).into_bytes()
}

/// A shard for what may go anywhere.
fn any_shard(queue: &QueueInfo, request: Option<&RequestId>) -> PartitionId {
    let at = lookup::turn(request) % queue.shards().len().max(1);
    queue.shards().nth(at).unwrap_or(PartitionId(0))
}

async fn send_part(
    core: &Core,
    queue: &QueueInfo,
    shard: PartitionId,
    places: &[usize],
    request: &SendRequest,
    contents: &Contents,
) -> Result<Vec<SendOutcome>, Failure> {
    let messages = places.iter().map(|at| new_message(&request.messages[*at], contents, *at)).collect();
    let command = Command::Send { queue: queue.id(), messages };
    let named = Request { id: lookup::request_id(request.request.as_ref()), command };
    let repeat = if named.id.is_some() { Repeat::Safe } else { Repeat::Unsafe };
    match core.router.command(shard, lookup::call(queue.id(), &named), repeat).await? {
        Reply::Sent { outcomes } => Ok(outcomes.into_iter().map(|outcome| sent(shard, outcome)).collect()),
        Reply::Refused { reason } => Err(refusal(reason)),
        other => Err(lookup::unexpected(&other)),
    }
}

fn new_message<'a>(message: &'a NewMessage, contents: &'a Contents, at: usize) -> partition::NewMessage<'a> {
    partition::NewMessage {
        // Checked against limits that are below what the type holds.
        delay_ms: message.delay_ms.and_then(|delay_ms| u32::try_from(delay_ms).ok()),
        expiry_ms: message.expiry_ms,
        content: Content {
            group: message.group.as_deref().map(str::as_bytes),
            dedup_id: contents.deduplication_ids[at].as_deref(),
            attributes: &contents.attributes[at],
            body: &message.body,
            origin: None,
        },
    }
}

fn sent(shard: PartitionId, outcome: partition::SendOutcome) -> SendOutcome {
    let id = |sequence| Some(MessageId { partition: shard.0, sequence });
    match outcome {
        partition::SendOutcome::Sent { key } => {
            SendOutcome { id: id(key.sequence), ..SendOutcome::default() }
        }
        partition::SendOutcome::Duplicate { sequence } => {
            SendOutcome { id: id(sequence), duplicate: true, ..SendOutcome::default() }
        }
        partition::SendOutcome::Refused { reason } => failed(&refusal(reason)),
    }
}

pub fn failed(failure: &Failure) -> SendOutcome {
    let outcome = if failure.outcome == Outcome::Done { Outcome::Unknown } else { failure.outcome };
    SendOutcome {
        outcome: outcome as i32,
        reason: failure.reason as i32,
        detail: failure.detail.clone(),
        ..SendOutcome::default()
    }
}
