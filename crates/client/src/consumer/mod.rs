//! Receives messages as they come, keeps their leases while they are handled, and settles them in batches.

mod counters;
mod delivery;
mod failure;
mod groups;
mod hub;
mod job;
mod lanes;
mod leases;
mod pace;
mod run;
mod settles;
mod timings;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use leasehold_proto::v1::{Outcome, Reason};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::client::TIME_MAX;
use crate::{Client, Error};

pub use counters::{Counters, Counts};
pub use delivery::{Delivery, Settling};
pub use failure::{Failure, RetryPolicy};
pub use job::Job;

use delivery::Command;
use hub::Outgoing;

/// No lease is longer, from its receive on.
const LEASE_MAX: Duration = Duration::from_secs(12 * 60 * 60);

/// How a consumer is made.
///
/// ```no_run
/// use std::time::Duration;
/// use leasehold_client::{CancellationToken, RetryPolicy};
///
/// # async fn example(queue: leasehold_client::Queue) -> Result<(), leasehold_client::Error> {
/// let stop = CancellationToken::new();
/// let consumer = queue
///     .consumer()
///     .name("mailer@3")
///     .concurrency(64)
///     .buffer(16)
///     .batch_max(32)
///     .lease(Duration::from_secs(60))
///     .keep_leases_for(Duration::from_secs(600))
///     .handler_timeout(Duration::from_secs(300))
///     .retry(RetryPolicy::new(Duration::from_secs(5), Duration::from_secs(600)))
///     .stop_on(stop.clone())
///     .stop_within(Duration::from_secs(10));
/// let counters = consumer.counters();
/// consumer
///     .run(|job| async move {
///         println!("{:?}", job.body);
///         Ok(())
///     })
///     .await?;
/// println!("{} messages are done", counters.now().acked);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ConsumerBuilder {
    client: Client,
    options: Options,
}

#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) queue: String,
    pub(crate) concurrency: u64,
    buffer: Option<u64>,
    pub(crate) lease: Option<Duration>,
    pub(crate) name: String,
    pub(crate) keep_for: Duration,
    pub(crate) batch_max: u32,
    pub(crate) retry: RetryPolicy,
    pub(crate) time_max: Option<Duration>,
    pub(crate) stop: CancellationToken,
    pub(crate) stop_within: Duration,
    pub(crate) counters: Arc<Counters>,
}

impl Options {
    pub(crate) fn new(queue: String) -> Self {
        Self {
            queue,
            concurrency: 16,
            buffer: None,
            lease: None,
            name: String::new(),
            keep_for: Duration::from_secs(60 * 60),
            batch_max: 0,
            retry: RetryPolicy::default(),
            time_max: None,
            stop: CancellationToken::new(),
            stop_within: Duration::from_secs(30),
            counters: Arc::default(),
        }
    }

    pub(crate) fn buffer(&self) -> u64 {
        self.buffer.unwrap_or(self.concurrency)
    }
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, queue: String) -> Self {
        Self { client, options: Options::new(queue) }
    }

    /// Messages that are handled at a time; 16 unless told. Of a stream: those that are not settled.
    #[must_use]
    pub fn concurrency(mut self, messages: u32) -> Self {
        self.options.concurrency = u64::from(messages.max(1));
        self
    }

    /// Messages that may wait beside those that are handled; as many unless told. Fewer wait when handling takes long: what
    /// cannot begin within about a second is left to other consumers.
    #[must_use]
    pub fn buffer(mut self, messages: u32) -> Self {
        self.options.buffer = Some(u64::from(messages.max(1)));
        self
    }

    /// How long the lease lasts when handling begins, and how far each extension reaches; the queue's own unless told. Until
    /// then it is 5 s at most, extended while the message waits. At most 12 h, counted from the receive.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.options.lease = Some(lease.min(LEASE_MAX));
        self
    }

    /// Who receives, for `why`; at most 64 bytes.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = name.into();
        self
    }

    /// How long leases are extended by themselves, from when handling begins; 1 h unless told, zero for never. After that the
    /// lease ends, and the message goes to another consumer.
    #[must_use]
    pub fn keep_leases_for(mut self, most: Duration) -> Self {
        self.options.keep_for = most.min(TIME_MAX);
        self
    }

    /// The largest batch that a node sends at once; 256 unless told.
    #[must_use]
    pub fn batch_max(mut self, messages: u32) -> Self {
        self.options.batch_max = messages;
        self
    }

    /// When a message is ready again that a handler failed on; [`RetryPolicy::default`] unless told.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.options.retry = policy;
        self
    }

    /// How long one handler may take; without a limit unless told. It is dropped then, and the message tried again.
    #[must_use]
    pub fn handler_timeout(mut self, most: Duration) -> Self {
        self.options.time_max = Some(most.min(TIME_MAX));
        self
    }

    /// Stops the consumer in good order when the token is cancelled.
    #[must_use]
    pub fn stop_on(mut self, token: CancellationToken) -> Self {
        self.options.stop = token;
        self
    }

    /// How long handlers may still take when the consumer stops; 30 s unless told. Their [`Job::cancelled`] fires then, and a
    /// second later they are dropped and their messages given back.
    #[must_use]
    pub fn stop_within(mut self, most: Duration) -> Self {
        self.options.stop_within = most.min(TIME_MAX);
        self
    }

    /// What the handlers of this consumer did, counted while they do it.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.options.counters)
    }

    /// Starts a consumer on the runtime of the caller that gives its messages out as a stream.
    #[must_use]
    pub fn start(self) -> Consumer {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (outbox, arriving) = mpsc::unbounded_channel();
        let (stop, lost) = (self.options.stop.clone(), CancellationToken::new());
        let concurrency = self.options.concurrency;
        let stopped = Box::pin(stop.clone().cancelled_owned());
        let run = hub::run(self.client, self.options, commands.downgrade(), inbox, outbox, lost.clone());
        tokio::spawn(run);
        let (arrived, is_over) = (VecDeque::new(), false);
        Consumer { arriving, arrived, concurrency, commands, stopped, lost, is_over }
    }
}

/// A stream of the messages of one queue.
///
/// It ends when it is stopped, and after an error: when the queue cannot be consumed at all (`UnknownQueue`, `InvalidArgument`), or
/// something failed in this process. Losses of connections and leaders are not errors. When it is dropped, messages not handed
/// out go back to the queue; deliveries that are held can still be settled.
///
/// ```no_run
/// use futures::TryStreamExt;
///
/// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
/// let mut deliveries = client.queue("emails").consumer().concurrency(100).start();
/// while let Some(delivery) = deliveries.try_next().await? {
///     println!("{:?}", delivery.body);
///     delivery.ack().await?;
/// }
/// # Ok(())
/// # }
/// ```
pub struct Consumer {
    arriving: mpsc::UnboundedReceiver<Outgoing>,
    arrived: VecDeque<Delivery>,
    concurrency: u64,
    commands: mpsc::UnboundedSender<Command>,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Cancelled to tell everybody at work that time is over.
    lost: CancellationToken,
    /// It was stopped, or ended with an error.
    is_over: bool,
}

impl Consumer {
    /// Takes no more messages; those that wait to be handed out go back to the queue.
    ///
    /// ```no_run
    /// # async fn example(queue: leasehold_client::Queue) {
    /// let mut deliveries = queue.consumer().start();
    /// deliveries.stop();
    /// deliveries.close().await;
    /// # }
    /// ```
    pub fn stop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        self.is_over = true;
        self.arriving.close();
        self.arrived.clear();
        while self.arriving.try_recv().is_ok() {}
    }

    /// Changes [`ConsumerBuilder::concurrency`] from now on, for a consumer whose handlers turn out faster or slower. Fewer hold for what
    /// is asked of the nodes next: what they were asked for already still comes.
    ///
    /// ```no_run
    /// # async fn example(queue: leasehold_client::Queue) {
    /// let mut deliveries = queue.consumer().concurrency(4).start();
    /// deliveries.set_concurrency(64);
    /// # }
    /// ```
    pub fn set_concurrency(&mut self, messages: u32) {
        let messages = u64::from(messages.max(1));
        if messages != self.concurrency {
            self.concurrency = messages;
            let _ = self.commands.send(Command::Concurrency(messages));
        }
    }

    /// Stops, and waits until every delivery is settled and answered: also those that are still held elsewhere.
    pub async fn close(mut self) {
        self.stop();
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Close(done)).is_ok() {
            drop(self);
            let _ = wait.await;
        }
    }

    /// What came together: all that a grant brought of a message group. `None` at the end.
    fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if self.stopped.as_mut().poll(context).is_ready() {
            self.stop();
            return Poll::Ready(None);
        }
        // Its task lives until it is stopped.
        let batch = ready!(self.arriving.poll_recv(context)).unwrap_or_else(|| Err(ended_by_itself()));
        self.is_over = batch.is_err();
        Poll::Ready(Some(batch))
    }
}

fn ended_by_itself() -> Error {
    let detail = "the task of the consumer failed: what is not settled comes again when its lease has ended";
    Error::transport(Outcome::Unknown, Reason::None, detail)
}

impl Stream for Consumer {
    type Item = Result<Delivery, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            while let Some(delivery) = this.arrived.pop_front() {
                if !delivery.is_over() {
                    delivery.begin();
                    return Poll::Ready(Some(Ok(delivery)));
                }
                drop(delivery);
                // They go back with it.
                this.arrived.retain(|behind| !behind.is_over());
            }
            match ready!(this.poll_batch(context)) {
                Some(Ok(batch)) => this.arrived.extend(batch),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Consumer").field("arrived", &self.arrived.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    fn consumer_without_a_task() -> Consumer {
        let mut consumer = Client::connect(["127.0.0.1:1"]).unwrap().queue("q").consumer().start();
        (_, consumer.arriving) = mpsc::unbounded_channel();
        consumer
    }

    #[tokio::test]
    async fn a_task_that_ended_by_itself_is_an_error() {
        let mut consumer = consumer_without_a_task();
        let error = consumer.next().await.unwrap().unwrap_err();
        assert_eq!((error.outcome, error.reason), (Outcome::Unknown, Reason::None));
        assert!(consumer.next().await.is_none());
        let mut stopped = consumer_without_a_task();
        stopped.stop();
        assert!(stopped.next().await.is_none());
    }
}
