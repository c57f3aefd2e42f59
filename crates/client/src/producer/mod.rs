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

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

pub use sink::{ProducerSink, SinkError};

use crate::client::TIME_MAX;
use crate::{Client, Error, ItemResults, NewMessage, Sent};

/// Bytes that the fields of a message take beside what is counted.
const MESSAGE_OVERHEAD_BYTES: usize = 64;
/// The message that closes a batch may be 1 MiB; a send is 4 MiB at most.
const BATCH_BYTES_MAX: usize = 3 * 1024 * 1024 - 4096;

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
    pub(crate) batches_in_flight_max: usize,
    pub(crate) bytes_in_flight_max: usize,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, queue: String) -> Self {
        let options = Options {
            queue,
            linger: Duration::from_millis(1),
            batch_messages_max: 256,
            batch_bytes_max: 1024 * 1024,
            batches_in_flight_max: 8,
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
        self.options.batch_messages_max = messages_max.clamp(1, 1_000);
        self.options.batch_bytes_max = bytes_max.clamp(1, BATCH_BYTES_MAX);
        self
    }

    /// Batches that are under way at a time, 1 to 64; 8 unless told. With 1, messages of a group keep their order even when
    /// a batch is sent again.
    #[must_use]
    pub fn batches_in_flight(mut self, batches_max: usize) -> Self {
        self.options.batches_in_flight_max = batches_max.clamp(1, 64);
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
        let bytes_max = self.options.bytes_in_flight_max;
        tokio::spawn(batcher::run(self.client, self.options, inbox));
        Producer { commands, bytes: Arc::new(Semaphore::new(bytes_max)), bytes_max }
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
}

#[derive(Debug)]
pub(crate) enum Command {
    Send(Outgoing),
    Flush(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
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
    /// `NotDone` when the message was refused, `Unknown` when no answer came within the client's call timeout.
    pub async fn send(&self, message: impl Into<NewMessage>) -> Result<Sent, Error> {
        self.enqueue(message).await?.await
    }

    /// Hands a message over, waiting only for room; the result comes with the future that is returned.
    ///
    /// # Errors
    /// `NotDone` when the producer is closed.
    pub async fn enqueue(&self, message: impl Into<NewMessage>) -> Result<Pending, Error> {
        let message = message.into();
        let size_bytes = message.size_bytes() + MESSAGE_OVERHEAD_BYTES;
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

    /// Waits until every message handed over before has its result.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Flush(done)).is_ok() {
            let _ = wait.await;
        }
    }

    /// Takes no more messages, on any clone, and waits until those handed over have their results.
    pub async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Close(done)).is_ok() {
            let _ = wait.await;
        }
    }
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
