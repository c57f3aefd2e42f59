//! What can be asked of a partition. The same bytes travel between nodes and lie in the log.

use crate::content::{NewMessage, TransferMessage, name_in_range};
use crate::ids::{QueueId, Receipt, RequestId, Source};
use crate::limits::{
    CONSUMER_BYTES_MAX, LEASE_MS_MAX, RECEIVE_MESSAGES_MAX, REJECT_REASON_BYTES_MAX, RELEASE_DELAY_MS_MAX,
    SEND_MESSAGES_MAX, SETTLE_ITEMS_MAX,
};
use crate::settings::{Isolation, RetryBudget, Settings};
use crate::wire::{DecodeError, Reader, Span, Wire, wire_enum};

const WIRE_VERSION: u8 = 1;
/// The tags of the commands that make a shard what the catalogue wants.
const CONFIGURING_TAGS: [u8; 3] = [1, 19, 21];
/// About what a small message takes in a request.
const BYTES_PER_SPAN: usize = 64;

/// A command; its byte fields borrow from the request, or from the log entry, they came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Creates or updates a shard. `revision` is that of the catalogue the settings were read from, not that of the queue's
    /// last change: one older than this partition has seen is refused, and the node reads the catalogue again.
    Configure { queue: QueueId, settings: Settings, revision: u64 },
    /// Deletes a shard and all it holds, outbox included, and refuses catalogue revisions below this one from now on.
    Delete { queue: QueueId, revision: u64 },
    /// Drops every message of the queue, leased ones included. Dead ones awaiting their transfer stay.
    Purge { queue: QueueId },
    /// Adds messages.
    Send { queue: QueueId, messages: Vec<NewMessage<'a>> },
    /// Adds copies of messages from another queue's outbox to `queue`, each number of a source exactly once.
    /// Numbers must grow. Applied up to the first message that is refused.
    Transfer { queue: QueueId, source: Source, messages: Vec<TransferMessage<'a>> },
    /// Grants leases.
    Receive {
        queue: QueueId,
        messages_max: u32,
        /// Content bytes; the first message is granted whatever its size.
        bytes_max: u64,
        lease_ms: Option<u32>,
        attempt: Option<&'a [u8]>,
        consumer: &'a [u8],
    },
    /// Settles messages.
    Ack { queue: QueueId, receipts: Vec<Receipt> },
    /// Gives each lease a new end, so many milliseconds from now; 0 releases it.
    Extend { queue: QueueId, items: Vec<(Receipt, u32)> },
    /// Ends leases; each message is ready again after its delay in milliseconds.
    Release { queue: QueueId, items: Vec<(Receipt, u32)> },
    /// Only moves the clocks.
    Mark,
    /// Ends leases due at `leases_as_of_ms` (never beyond log time), and everything else that is due. Bounded by `items_max`.
    Expire { leases_as_of_ms: u64, items_max: u32 },
    /// Every item of `queue`'s outbox for `target` up to this number has arrived: remove it here.
    TransferDone { queue: QueueId, target: QueueId, through_number: u64 },
    /// `target` exists no more: its items become ready in `queue` again.
    TransferReturn { queue: QueueId, target: QueueId, items_max: u32 },
    /// Starts moving the messages ready now to `target`, or each to its origin. `rate_per_s` is kept for the leaders: that of all
    /// shards together; 0 is no limit.
    RedriveStart { queue: QueueId, target: Option<QueueId>, rate_per_s: u32, id: u64 },
    /// Stops a redrive. What is in the outbox already still moves.
    RedriveCancel { queue: QueueId, id: u64 },
    /// Moves up to `items_max` messages of a running redrive into the outbox.
    RedriveStep { queue: QueueId, items_max: u32 },
    /// Raises the machine version.
    SetVersion { version: u32 },
    /// Moves messages to the queue's dead-letter queue whatever their receive counts, each with the reason that its consumer gave.
    Reject { queue: QueueId, items: Vec<(Receipt, &'a [u8])> },
    /// Gives a shard a retry budget, or takes it away. A FIFO shard gets none: what is held would hold back first deliveries.
    SetRetryBudget { queue: QueueId, budget: Option<RetryBudget>, revision: u64 },
    /// Ends leases of messages that no consumer has worked on: they are ready again, and nothing has failed.
    GiveBack { queue: QueueId, receipts: Vec<Receipt> },
    /// Begins or ends the isolation of suspects. A FIFO shard isolates none: their groups have an order.
    SetIsolation { queue: QueueId, isolation: Isolation, revision: u64 },
    /// A consumer seems to be gone. When it is not heard of again, the leases that it has end with it.
    Lost { queue: QueueId, consumer: &'a [u8] },
    /// Ends leases of messages that their consumers put off: nothing has failed, and each is ready again after its delay in
    /// milliseconds.
    Postpone { queue: QueueId, items: Vec<(Receipt, u32)> },
}
wire_enum!('a Command {
    1 => Configure { queue, settings, revision },
    2 => Delete { queue, revision },
    3 => Purge { queue },
    4 => Send { queue, messages },
    5 => Transfer { queue, source, messages },
    6 => Receive { queue, messages_max, bytes_max, lease_ms, attempt, consumer },
    7 => Ack { queue, receipts },
    8 => Extend { queue, items },
    9 => Release { queue, items },
    10 => Mark {},
    11 => Expire { leases_as_of_ms, items_max },
    12 => TransferDone { queue, target, through_number },
    13 => TransferReturn { queue, target, items_max },
    14 => RedriveStart { queue, target, rate_per_s, id },
    15 => RedriveCancel { queue, id },
    16 => RedriveStep { queue, items_max },
    17 => SetVersion { version },
    18 => Reject { queue, items },
    19 => SetRetryBudget { queue, budget, revision },
    20 => GiveBack { queue, receipts },
    21 => SetIsolation { queue, isolation, revision },
    22 => Lost { queue, consumer },
    23 => Postpone { queue, items },
});

/// A command, perhaps under a client's request name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub id: Option<RequestId>,
    pub command: Command<'a>,
}

impl<'a> From<Command<'a>> for Request<'a> {
    fn from(command: Command<'a>) -> Self {
        Self { id: None, command }
    }
}

impl<'a> Request<'a> {
    /// About as many bytes as `encode_into` appends, and seldom fewer, when messages are what there is most of.
    pub fn len_bytes_about(&self) -> usize {
        const REQUEST_BYTES: usize = 64;
        match &self.command {
            Command::Send { messages, .. } => {
                REQUEST_BYTES
                    + messages.iter().map(|message| message.content.len_bytes_about()).sum::<usize>()
            }
            Command::Ack { receipts, .. } => REQUEST_BYTES + receipts.len() * size_of::<Receipt>(),
            _ => REQUEST_BYTES,
        }
    }

    /// Appends the byte form: `[version | request id | command]`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        encode_request(self.id, &self.command, out);
    }

    /// Reads and validates what `encode_into` wrote.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Self::decode_with_spans(bytes).map(|(request, _)| request)
    }

    /// Also says where the contents of its messages lie in `bytes`, in the order of the messages.
    pub(crate) fn decode_with_spans(bytes: &'a [u8]) -> Result<(Self, Vec<Span>), DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.spans.reserve(bytes.len() / BYTES_PER_SPAN);
        reader.version(WIRE_VERSION)?;
        let id = Wire::take(&mut reader)?;
        let command = Command::take(&mut reader)?;
        reader.finish()?;
        command.validate()?;
        Ok((Self { id, command }, reader.spans))
    }
}

pub(crate) fn encode_request(id: Option<RequestId>, command: &Command<'_>, out: &mut Vec<u8>) {
    out.push(WIRE_VERSION);
    id.put(out);
    command.put(out);
}

impl<'a> Command<'a> {
    /// Appends the byte form of a `Request` without a name.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        encode_request(None, self, out);
    }

    /// Reads the command of an encoded `Request`, whatever its name.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Request::decode(bytes).map(|request| request.command)
    }

    /// Reads the command of an encoded `Request` if it makes a shard what the catalogue wants: `Configure`, `SetRetryBudget` or
    /// `SetIsolation`. Of every other one no more is read than its tag.
    pub fn decode_configuring(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        reader.version(WIRE_VERSION).ok()?;
        let _name: Option<RequestId> = Wire::take(&mut reader).ok()?;
        let tag = bytes.get(reader.at())?;
        if !CONFIGURING_TAGS.contains(tag) {
            return None;
        }
        Self::take(&mut reader).ok()
    }

    /// How many messages it sends that ask for no delay of their own.
    pub(crate) fn sent(&self) -> usize {
        match self {
            Self::Send { messages, .. } => {
                messages.iter().filter(|message| message.delay_ms.unwrap_or(0) == 0).count()
            }
            _ => 0,
        }
    }

    /// Checks every field against `limits`: what passes can lie in a log without ever halting a partition.
    pub fn validate(&self) -> Result<(), DecodeError> {
        match self {
            Self::Configure { settings, .. } => settings.validate(),
            Self::Send { messages, .. } => {
                count_in_range(messages.len(), SEND_MESSAGES_MAX, "messages")?;
                messages.iter().try_for_each(NewMessage::validate)
            }
            Self::Transfer { messages, .. } => validate_transfer(messages),
            Self::Receive { messages_max, lease_ms, attempt, consumer, .. } => {
                name_in_range(*attempt, "attempt")?;
                let in_range = (1..=RECEIVE_MESSAGES_MAX).contains(messages_max);
                range(in_range, "messages_max")?;
                range(lease_ms.is_none_or(|lease_ms| lease_ms <= LEASE_MS_MAX), "lease_ms")?;
                range(consumer.len() <= CONSUMER_BYTES_MAX, "consumer")
            }
            Self::Ack { receipts, .. } | Self::GiveBack { receipts, .. } => {
                count_in_range(receipts.len(), SETTLE_ITEMS_MAX, "receipts")
            }
            Self::Lost { consumer, .. } => range(consumer.len() <= CONSUMER_BYTES_MAX, "consumer"),
            Self::SetRetryBudget { budget, .. } => budget.map_or(Ok(()), |budget| budget.validate()),
            Self::Extend { items, .. } => count_in_range(items.len(), SETTLE_ITEMS_MAX, "items"),
            Self::Release { items, .. } | Self::Postpone { items, .. } => {
                count_in_range(items.len(), SETTLE_ITEMS_MAX, "items")?;
                range(items.iter().all(|(_, delay_ms)| *delay_ms <= RELEASE_DELAY_MS_MAX), "delay_ms")
            }
            Self::Reject { items, .. } => {
                count_in_range(items.len(), SETTLE_ITEMS_MAX, "items")?;
                range(items.iter().all(|(_, why)| why.len() <= REJECT_REASON_BYTES_MAX), "why")
            }
            _ => Ok(()),
        }
    }
}

fn validate_transfer(messages: &[TransferMessage<'_>]) -> Result<(), DecodeError> {
    count_in_range(messages.len(), SEND_MESSAGES_MAX, "messages")?;
    range(messages.windows(2).all(|pair| pair[0].number < pair[1].number), "number")?;
    messages.iter().try_for_each(|item| item.message.validate())
}

fn count_in_range(count: usize, max: usize, field: &'static str) -> Result<(), DecodeError> {
    range(count <= max, field)
}

fn range(holds: bool, field: &'static str) -> Result<(), DecodeError> {
    if holds { Ok(()) } else { Err(DecodeError::OutOfRange(field)) }
}
