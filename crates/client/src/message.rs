//! Messages as programs write and read them.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use leasehold_proto::v1::{self, Attribute, MessageId, Origin};
use prost::Message as _;
use tokio::time::Instant;

use crate::Error;

/// Attributes that do not count with Amazon, and so not with a node, while they are no longer than this.
const OF_SQS: &[&str] = &["AWS.TraceHeader", "AWS.MessageDeduplicationId"];
const OF_SQS_BYTES_MAX: usize = 1_024;

/// A message to send.
///
/// ```
/// use std::time::Duration;
/// use leasehold_client::NewMessage;
///
/// let message = NewMessage::new("cat.jpg")
///     .attribute("width", "Number", "640")
///     .group("cats")
///     .deduplication_id("cat-42")
///     .delay(Duration::from_secs(5))
///     .expiry(Duration::from_secs(3_600));
/// assert_ne!(message, NewMessage::from("cat.jpg"));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewMessage {
    pub(crate) wire: v1::NewMessage,
}

impl NewMessage {
    /// A message without attributes, available at once.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { wire: v1::NewMessage { body: body.into(), ..Default::default() } }
    }

    /// Adds an attribute; `kind` is for example `String`, `Number` or `Binary` and not interpreted by the broker.
    #[must_use]
    pub fn attribute(
        mut self,
        name: impl Into<String>,
        kind: impl Into<String>,
        value: impl Into<Bytes>,
    ) -> Self {
        let attribute = Attribute { name: name.into(), r#type: kind.into(), value: value.into() };
        self.wire.attributes.push(attribute);
        self
    }

    /// Holds the message back, up to 15 minutes, in milliseconds. Not on FIFO queues.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.wire.delay_ms = Some(millis(delay));
        self
    }

    /// Removes the message this long after it was sent, unless it is leased then.
    #[must_use]
    pub fn expiry(mut self, expiry: Duration) -> Self {
        self.wire.expiry_ms = Some(millis(expiry));
        self
    }

    /// The message group of a FIFO queue, or the tenant of a standard queue.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.wire.group = Some(group.into());
        self
    }

    /// Messages with the same id within the queue's window are sent once.
    #[must_use]
    pub fn deduplication_id(mut self, id: impl Into<String>) -> Self {
        self.wire.deduplication_id = Some(id.into());
        self
    }

    /// Bytes on the wire.
    pub(crate) fn size_bytes(&self) -> usize {
        self.wire.encoded_len()
    }

    /// Body and attributes, as a node counts them for the limit of a queue.
    pub(crate) fn counted_bytes(&self) -> usize {
        let is_of_sqs = |attribute: &Attribute| {
            OF_SQS.contains(&attribute.name.as_str()) && attribute.value.len() <= OF_SQS_BYTES_MAX
        };
        let counted = self.wire.attributes.iter().filter(|attribute| !is_of_sqs(attribute));
        let of_attribute =
            |attribute: &Attribute| attribute.name.len() + attribute.r#type.len() + attribute.value.len();
        self.wire.body.len() + counted.map(of_attribute).sum::<usize>()
    }
}

impl From<Bytes> for NewMessage {
    fn from(body: Bytes) -> Self {
        Self::new(body)
    }
}

impl From<Vec<u8>> for NewMessage {
    fn from(body: Vec<u8>) -> Self {
        Self::new(body)
    }
}

impl From<String> for NewMessage {
    fn from(body: String) -> Self {
        Self::new(body)
    }
}

impl From<&str> for NewMessage {
    fn from(body: &str) -> Self {
        Self::new(body.to_owned())
    }
}

/// A message that is on the disks of a quorum.
///
/// ```no_run
/// use leasehold_client::{NewMessage, Sent};
///
/// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
/// for sent in client.send("emails", vec![NewMessage::new("hello").deduplication_id("42")]).await? {
///     let Sent { id, duplicate } = sent?;
///     println!("{id:?}, sent before: {duplicate}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Names the message in its queue.
    pub id: MessageId,
    /// It was recognised as sent before; `id` is that of the first.
    pub duplicate: bool,
}

impl Sent {
    pub(crate) fn from_outcome(outcome: &v1::SendOutcome) -> Result<Self, Error> {
        match Error::of_item(outcome.outcome, outcome.reason, &outcome.detail) {
            None => Ok(Self { id: outcome.id.unwrap_or_default(), duplicate: outcome.duplicate }),
            Some(error) => Err(error),
        }
    }
}

/// A leased message.
///
/// ```no_run
/// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
/// for message in client.receive("thumbnails", Default::default()).await? {
///     let width = message.attribute("width");
///     println!("{:?} {width:?}, received {} times", message.body, message.receive_count);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Message {
    /// Proof of the lease, for ack, extend and release.
    pub receipt: Bytes,
    /// Names the message in its queue.
    pub id: MessageId,
    /// What was sent.
    pub body: Bytes,
    /// In the order they were sent.
    pub attributes: Vec<Attribute>,
    /// 1 on the first delivery.
    pub receive_count: u32,
    /// By the clock of the partition's leader then.
    pub sent_at: SystemTime,
    /// When it was first leased, by the clock of the partition's leader then.
    pub first_received_at: SystemTime,
    /// The lease lasts at least until then, unless it is extended. A consumer extends it by itself: ask its delivery.
    pub lease_until: Instant,
    /// Grows with every grant of the same message or message group: write it beside the side effect and refuse smaller ones.
    pub fencing_token: u64,
    /// The message group or tenant.
    pub group: Option<String>,
    /// As given by the sender.
    pub deduplication_id: Option<String>,
    /// Where a dead-lettered message came from.
    pub origin: Option<Origin>,
}

impl Message {
    /// The value of the first attribute of that name.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&Bytes> {
        self.attributes.iter().find(|attribute| attribute.name == name).map(|attribute| &attribute.value)
    }

    /// `leased` is when its lease began, or earlier.
    pub(crate) fn from_wire(wire: v1::Delivery, leased: Instant) -> Self {
        Self {
            receipt: wire.receipt,
            id: wire.id.unwrap_or_default(),
            body: wire.body,
            attributes: wire.attributes,
            receive_count: wire.receive_count,
            sent_at: wall_time(wire.sent_wall_ms),
            first_received_at: wall_time(wire.first_received_wall_ms),
            lease_until: leased + Duration::from_millis(wire.lease_ms),
            fencing_token: wire.fencing_token,
            group: wire.group,
            deduplication_id: wire.deduplication_id,
            origin: wire.origin,
        }
    }
}

/// A message as the protocol has it, whose lease begins now: for tests of what handles messages.
impl From<v1::Delivery> for Message {
    fn from(wire: v1::Delivery) -> Self {
        Self::from_wire(wire, Instant::now())
    }
}

/// What a receive asks for.
///
/// ```no_run
/// use std::time::Duration;
/// use leasehold_client::{Lease, ReceiveOptions};
///
/// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
/// let options = ReceiveOptions { messages_max: 10, wait: Duration::from_secs(20), ..ReceiveOptions::default() };
/// let messages = client.receive("thumbnails", options).await?;
/// // More time for all of them.
/// let longer = |receipt| Lease::new(receipt, Duration::from_secs(600));
/// client.extend("thumbnails", &messages.iter().map(|message| longer(message.receipt.clone())).collect::<Vec<_>>()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReceiveOptions {
    /// 1 to 1,000; 0 means 1.
    pub messages_max: u32,
    /// The queue's own when absent; up to 12 h, in milliseconds.
    pub lease: Option<Duration>,
    /// How long to wait for the first message, up to 20 s.
    pub wait: Duration,
    /// Who receives, for `why`; at most 64 bytes.
    pub consumer: String,
    /// The same attempt id within 5 minutes returns the same messages while their leases are untouched; these count anew from then.
    pub attempt_id: Option<String>,
    /// Bodies in all; 0 means 4 MiB. At least one message is returned whatever its size.
    pub bytes_max: u64,
}

/// A lease to make longer or to end.
///
/// ```
/// use std::time::Duration;
/// use leasehold_client::Lease;
///
/// let lease = Lease::new(&b"receipt"[..], Duration::from_secs(60));
/// assert_eq!(lease.duration.as_secs(), 60);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Of the delivery.
    pub receipt: Bytes,
    /// From now: until the lease ends, or until a released message is ready again.
    pub duration: Duration,
}

impl Lease {
    /// Pairs a receipt with a time from now.
    pub fn new(receipt: impl Into<Bytes>, duration: Duration) -> Self {
        Self { receipt: receipt.into(), duration }
    }
}

/// A message that cannot be handled, and why.
///
/// ```no_run
/// use leasehold_client::Rejection;
///
/// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
/// for message in client.receive("thumbnails", Default::default()).await? {
///     let rejection = Rejection::new(message.receipt, "this is no picture");
///     for rejected in client.reject("thumbnails", &[rejection]).await? {
///         rejected?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Of the delivery.
    pub receipt: Bytes,
    /// For people; at most 1,024 bytes.
    pub why: String,
}

impl Rejection {
    /// Pairs a receipt with a reason.
    pub fn new(receipt: impl Into<Bytes>, why: impl Into<String>) -> Self {
        Self { receipt: receipt.into(), why: why.into() }
    }
}

/// Writes a message id as `partition-sequence`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IdText(pub(crate) MessageId);

impl fmt::Display for IdText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.0.partition, self.0.sequence)
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn wall_time(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH)
}
