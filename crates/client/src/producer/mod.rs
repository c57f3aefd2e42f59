//! Sends many messages with few requests, each of them once.
//!
//! ```text
//!  send ─▶ bytes permit ─▶ batcher ─▶ Publish stream ─▶ any node
//!                             ▲            │
//!                  unanswered batches ◀────┘ answers; after a loss all of them again, under the same request ids
//! ```

mod batcher;
mod sink;
mod stream;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use leasehold_proto::v1::Reason;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use sink::{ProducerSink, SinkError};

use crate::client::TIME_MAX;
use crate::{Client, Error, ItemResults, NewMessage, Sent};

/// Bytes that the fields of a message take beside what is counted.
const MESSAGE_OVERHEAD_BYTES: usize = 64;
/// Body and attributes of a message: no queue can be set to take more.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// What else of a message may be on the wire: its names, times, lengths, and attributes that do not count. Far more than can be right;
/// what is wrong, but not so large, the node refuses by itself and not its batch.
const REST_BYTES_MAX: usize = 64 * 1024;
/// Messages of one send, and their bodies and attributes, that a node takes.
const SEND_MESSAGES_MAX: usize = 1_000;
const SEND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The largest gRPC message that a node takes.
const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A batch is closed by the message that reaches it.
const BATCH_BYTES_MAX: usize = 3 * 1024 * 1024 - 4096;
const _: () = assert!(BATCH_BYTES_MAX + MESSAGE_BYTES_MAX <= SEND_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX + MESSAGE_BYTES_MAX + REST_BYTES_MAX < REQUEST_BYTES_MAX);

/// How a [`Producer`] is made.
///
/// ```no_run
/// use std::time::Duration;
///
/// # async fn example(queue: leasehold_client::Queue) -> Result<(), leasehold_client::Error> {
/// let producer = queue
///     .producer()
///     .linger(Duration::from_millis(5))
///     .batch(1_000, 1024 * 1024)
///     .batches_in_flight(4)
///     .bytes_in_flight(64 * 1024 * 1024)
///     .start();
/// producer.send("hello").await?;
/// producer.flush().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ProducerBuilder {
    client: Client,
    options: Options,
}

#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) queue: String,
    pub(crate) linger: Duration,
    pub(crate) batch_messages_max: usize,
    pub(crate) batch_bytes_max: usize,
    /// By the kind of the queue where it is not told.
    pub(crate) batches_in_flight_max: Option<usize>,
    pub(crate) bytes_in_flight_max: usize,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, queue: String) -> Self {
        let options = Options {
            queue,
            linger: Duration::from_millis(1),
            batch_messages_max: 256,
            batch_bytes_max: 1024 * 1024,
            batches_in_flight_max: None,
            bytes_in_flight_max: 16 * 1024 * 1024,
        };
        Self { client, options }
    }

    /// How long a batch waits for more messages while another is under way; 1 ms unless told.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.options.linger = linger.min(TIME_MAX);
        self
    }

    /// Messages and bytes that close a batch; at most 1,000 and 3 MiB, 256 and 1 MiB unless told.
    #[must_use]
    pub fn batch(mut self, messages_max: usize, bytes_max: usize) -> Self {
        self.options.batch_messages_max = messages_max.clamp(1, SEND_MESSAGES_MAX);
        self.options.batch_bytes_max = bytes_max.clamp(1, BATCH_BYTES_MAX);
        self
    }

    /// Batches that are under way at a time, 1 to 64; unless told, 8 to a standard queue and 1 to a FIFO queue. With 1, messages of a
    /// group keep their order even when a batch is sent again, as when a leader is lost.
    #[must_use]
    pub fn batches_in_flight(mut self, batches_max: usize) -> Self {
        self.options.batches_in_flight_max = Some(batches_max.clamp(1, 64));
        self
    }

    /// Bytes of messages without an answer, beyond which sending waits; 16 MiB unless told.
    #[must_use]
    pub fn bytes_in_flight(mut self, bytes_max: usize) -> Self {
        self.options.bytes_in_flight_max = bytes_max.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        self
    }

    /// Starts the producer on the runtime of the caller.
    #[must_use]
    pub fn start(self) -> Producer {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (bytes_max, ended) = (self.options.bytes_in_flight_max, CancellationToken::new());
        tokio::spawn(batcher::run(self.client, self.options, inbox, ended.clone().drop_guard()));
        Producer { commands, bytes: Arc::new(Semaphore::new(bytes_max)), bytes_max, ended }
    }
}

/// Sends messages to one queue in batches; clones share them.
///
/// ```no_run
/// use leasehold_client::{NewMessage, Outcome};
///
/// # async fn example(queue: leasehold_client::Queue) -> Result<(), leasehold_client::Error> {
/// let producer = queue.producer().start();
/// let pending = producer.enqueue("in a batch with what comes next").await?;
/// for result in producer.send_all(["a", "b", "c"]).await {
///     match result {
///         Ok(sent) => println!("done: {:?}", sent.id),
///         Err(error) if error.outcome == Outcome::NotDone => println!("not done: {error}"),
///         Err(error) => println!("unknown: {error}"),
///     }
/// }
/// pending.await?;
/// producer.close().await;
/// # Ok(())
/// # }
/// ```
///
/// When the last clone is dropped, what was handed over is still sent.
#[derive(Debug, Clone)]
pub struct Producer {
    commands: mpsc::UnboundedSender<Command>,
    bytes: Arc<Semaphore>,
    bytes_max: usize,
    /// Fires when the batcher has ended: everything has its result.
    ended: CancellationToken,
}

#[derive(Debug)]
pub(crate) enum Command {
    Send(Outgoing),
    Flush(oneshot::Sender<()>),
    Close,
}

/// A message that waits for its answer.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) message: NewMessage,
    pub(crate) size_bytes: usize,
    pub(crate) reply: oneshot::Sender<Result<Sent, Error>>,
    pub(crate) permit: OwnedSemaphorePermit,
}

impl Producer {
    /// Sends a message and waits until a quorum has it on disk.
    ///
    /// # Errors
    /// As [`Producer::enqueue`]; `NotDone` when the message was refused, `Unknown` when no answer came within the client's call timeout.
    pub async fn send(&self, message: impl Into<NewMessage>) -> Result<Sent, Error> {
        self.enqueue(message).await?.await
    }

    /// Hands a message over, waiting only for room; the result comes with the future that is returned.
    ///
    /// # Errors
    /// `NotDone` when the producer is closed, and with `MessageTooLarge` when the message is larger than any queue can take.
    pub async fn enqueue(&self, message: impl Into<NewMessage>) -> Result<Pending, Error> {
        let message = message.into();
        let size_bytes = sendable_bytes(&message)? + MESSAGE_OVERHEAD_BYTES;
        let permits = u32::try_from(size_bytes.min(self.bytes_max)).unwrap_or(u32::MAX);
        let permit =
            Arc::clone(&self.bytes).acquire_many_owned(permits).await.map_err(|_| Error::stopped(CLOSED))?;
        let (reply, answer) = oneshot::channel();
        let outgoing = Outgoing { message, size_bytes, reply, permit };
        self.commands.send(Command::Send(outgoing)).map_err(|_| Error::stopped(CLOSED))?;
        Ok(Pending { answer })
    }

    /// Sends messages and waits for all; each has its own result, in order.
    pub async fn send_all(
        &self,
        batch: impl IntoIterator<Item = impl Into<NewMessage>>,
    ) -> ItemResults<Sent> {
        let mut pending = Vec::new();
        for message in batch {
            pending.push(self.enqueue(message).await);
        }
        let mut results = Vec::with_capacity(pending.len());
        for answer in pending {
            results.push(match answer {
                Ok(answer) => answer.await,
                Err(error) => Err(error),
            });
        }
        results
    }

    /// Waits until every message handed over before has its result, also when the producer is being closed.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Flush(done)).is_ok() {
            let _ = wait.await;
        } else {
            self.ended.cancelled().await;
        }
    }

    /// Takes no more messages, on any clone, and waits until those handed over have their results.
    pub async fn close(&self) {
        // Where this cannot be sent, it is being closed already.
        let _ = self.commands.send(Command::Close);
        self.ended.cancelled().await;
    }
}

/// The bytes of a message on the wire. One that no node can take is refused: the others of its batch would be with it.
fn sendable_bytes(message: &NewMessage) -> Result<usize, Error> {
    let too_large = |detail: String| Err(Error::not_done(Reason::MessageTooLarge, detail));
    let (counted, on_wire) = (message.counted_bytes(), message.size_bytes());
    if counted > MESSAGE_BYTES_MAX {
        return too_large(format!(
            "a message has {counted} bytes with its attributes: no queue takes more than {MESSAGE_BYTES_MAX}"
        ));
    }
    let wire_max = MESSAGE_BYTES_MAX + REST_BYTES_MAX;
    if on_wire > wire_max {
        return too_large(format!(
            "a message has {on_wire} bytes with all its fields: no node takes more than {wire_max}"
        ));
    }
    Ok(on_wire)
}

/// The result of a message to come. The message is sent whether or not this is awaited.
///
/// ```no_run
/// use leasehold_client::Pending;
///
/// # async fn example(producer: leasehold_client::Producer) -> Result<(), leasehold_client::Error> {
/// let pending: Pending = producer.enqueue("hello").await?;
/// println!("{:?}", pending.await?.id);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pending {
    answer: oneshot::Receiver<Result<Sent, Error>>,
}

impl Future for Pending {
    type Output = Result<Sent, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let gone = |_| Err(Error::timed_out("the producer ended before an answer came"));
        Pin::new(&mut self.answer).poll(context).map(|answer| answer.unwrap_or_else(gone))
    }
}

const CLOSED: &str = "the producer is closed";
