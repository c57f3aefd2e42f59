//! A leased message in the hands of this process.

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::groups::GroupGrant;
use crate::client::TIME_MAX;
use crate::{Error, Message, RetryPolicy};

/// What deliveries and the consumer tell the hub.
#[derive(Debug)]
pub(crate) enum Command {
    /// Somebody works on it from now on.
    Begin(u64),
    Settle {
        key: u64,
        how: Settle,
        reply: Option<oneshot::Sender<Result<(), Error>>>,
    },
    /// Messages that are handled at a time from now on.
    Concurrency(u64),
    Stop,
    Close(oneshot::Sender<()>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settle {
    Ack,
    Extend(Duration),
    Release(Duration),
    /// Not yet.
    Postpone(Duration),
    /// Nobody has worked on it.
    GiveBack,
    /// With the delay of the release where there is no dead-letter queue.
    Reject(String, Duration),
}

/// A leased message; its fields are those of [`Message`].
///
/// The lease is extended while this is held. Dropped without [`Delivery::ack`], [`Delivery::release`] or [`Delivery::reject`],
/// the message goes back to the queue at once, as far as the connection allows.
///
/// ```no_run
/// use std::time::Duration;
/// use futures::TryStreamExt;
///
/// # async fn example(queue: leasehold_client::Queue) -> Result<(), leasehold_client::Error> {
/// let mut deliveries = queue.consumer().start();
/// while let Some(delivery) = deliveries.try_next().await? {
///     println!("{} {:?} {:?}", delivery.queue(), delivery.ordered_group(), delivery.message().id);
///     if delivery.lease_left() < Duration::from_secs(10) {
///         delivery.extend(Duration::from_secs(60)).await?;
///     }
///     if delivery.lease_lost().is_cancelled() {
///         continue; // another consumer may have it
///     }
///     match &delivery.body[..] {
///         b"later" => delivery.release(Duration::from_secs(60)).await?,
///         b"never" => delivery.reject("it said so").await?,
///         b"not here" => delivery.reject_or_release("not here", Duration::from_secs(60)).await?,
///         b"not me" => delivery.give_back().await?,
///         b"not yet" => delivery.postpone(Duration::from_secs(60)).await?,
///         _ => delivery.ack().await?,
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Delivery {
    message: Message,
    key: u64,
    queue: Arc<str>,
    /// Nothing of its group may be handled before it is settled.
    is_ordered: bool,
    lease: Arc<LeaseState>,
    hub: mpsc::UnboundedSender<Command>,
    is_settled: AtomicBool,
    /// Whether it was handed to a handler, or to whoever reads the stream.
    is_touched: AtomicBool,
}

/// What the hub and the holder know of one lease.
#[derive(Debug)]
pub(crate) struct LeaseState {
    until: Mutex<Instant>,
    lost: CancellationToken,
    /// Where order holds.
    pub(super) group_grant: Option<Arc<GroupGrant>>,
}

impl LeaseState {
    /// `lost` is cancelled when the lease is.
    pub(super) fn new(
        until: Instant,
        lost: CancellationToken,
        group_grant: Option<Arc<GroupGrant>>,
    ) -> Arc<Self> {
        Arc::new(Self { until: Mutex::new(until), lost, group_grant })
    }

    /// When it ends, as far as is known; `None` when it is lost.
    pub(crate) fn until(&self) -> Option<Instant> {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        (!self.lost.is_cancelled()).then_some(until)
    }

    pub(crate) fn set_until(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// A lost lease stays lost.
    pub(crate) fn lose(&self) {
        self.comes_again();
        self.lost.cancel();
    }

    /// The message is, or may be, not done: those behind it in its group must not be begun.
    pub(crate) fn comes_again(&self) {
        if let Some(group_grant) = &self.group_grant {
            group_grant.give_up();
        }
    }
}

impl Delivery {
    pub(crate) fn new(
        message: Message,
        key: u64,
        queue: Arc<str>,
        is_ordered: bool,
        lease: Arc<LeaseState>,
        hub: mpsc::UnboundedSender<Command>,
    ) -> Self {
        Self {
            message,
            key,
            queue,
            is_ordered,
            lease,
            hub,
            is_settled: AtomicBool::new(false),
            is_touched: AtomicBool::new(false),
        }
    }

    /// The queue it came from.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The message group within which order holds; none on a standard queue. Settle a message, and await that, before the next of its
    /// group is taken: of one that comes again, or may, because it was released, lost, or its ack failed, a stream hands out nothing
    /// that is behind it. Who takes several at a time has to release those that it has taken.
    #[must_use]
    pub fn ordered_group(&self) -> Option<&str> {
        self.message.group.as_deref().filter(|_| self.is_ordered)
    }

    /// Whether one before it in its group comes again, or its lease ended while it waited: it is not to be begun.
    pub(crate) fn is_over(&self) -> bool {
        self.lease.group_grant.as_ref().is_some_and(|group_grant| group_grant.is_given_up())
            || self.lease_left().is_zero()
    }

    /// Somebody works on it from now on: the processing lease starts.
    pub(crate) fn begin(&self) {
        self.is_touched.store(true, Ordering::Relaxed);
        let _ = self.hub.send(Command::Begin(self.key));
    }

    /// How long the lease lasts at least, extensions included; zero when it ended or was lost.
    #[must_use]
    pub fn lease_left(&self) -> Duration {
        self.lease.until().map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Fires when the lease has ended: another consumer may have the message then. Never, while extensions succeed.
    #[must_use]
    pub fn lease_lost(&self) -> &CancellationToken {
        &self.lease.lost
    }

    /// Removes the message from the queue: it is done. The request is on its way when this returns; await the result to know
    /// that it arrived.
    ///
    /// # Errors
    /// The future gives `ReceiptStale` or `MessageGone` when the lease was lost, `Unknown` when no answer came in time.
    pub fn ack(self) -> Settling {
        self.settle(Settle::Ack)
    }

    /// Gives the message back, ready again after the delay. On its way when this returns, as [`Delivery::ack`].
    ///
    /// # Errors
    /// As [`Delivery::ack`].
    pub fn release(self, delay: Duration) -> Settling {
        self.settle(Settle::Release(delay))
    }

    /// Moves the message to the dead-letter queue of its queue, where the reason is its attribute `leasehold-rejected`; at most
    /// 1,024 bytes of it. On its way when this returns, as [`Delivery::ack`].
    ///
    /// # Errors
    /// As [`Delivery::ack`], and `NoDeadLetterQueue`: the message is released then, as by [`RetryPolicy::default`].
    pub fn reject(self, why: impl Into<String>) -> Settling {
        let delay = RetryPolicy::default().delay(self.receive_count);
        self.reject_or_release(why, delay)
    }

    /// As [`Delivery::reject`], with the delay of the release where there is no dead-letter queue.
    ///
    /// # Errors
    /// As [`Delivery::reject`].
    pub fn reject_or_release(self, why: impl Into<String>, delay: Duration) -> Settling {
        self.settle(Settle::Reject(shortened(why.into()), delay))
    }

    /// Gives the message back that nobody has worked on: it is ready again at once, nothing has failed, and the receive does not
    /// count for the receive limit. On its way when this returns, as [`Delivery::ack`].
    ///
    /// # Errors
    /// As [`Delivery::ack`].
    pub fn give_back(self) -> Settling {
        self.settle(Settle::GiveBack)
    }

    /// Gives the message back that has to wait: it is ready again after the delay, nothing has failed, and the receive does not count
    /// for the receive limit. On its way when this returns, as [`Delivery::ack`].
    ///
    /// # Errors
    /// As [`Delivery::ack`].
    pub fn postpone(self, delay: Duration) -> Settling {
        self.settle(Settle::Postpone(delay))
    }

    /// Makes the lease end the given time from now, and each automatic extension reach as far.
    ///
    /// # Errors
    /// As [`Delivery::ack`], and `LeaseTooLong` beyond 12 h from the receive.
    pub async fn extend(&self, lease: Duration) -> Result<(), Error> {
        // More could be beyond what a clock counts; the node refuses less.
        self.tell(Settle::Extend(lease.min(TIME_MAX))).await
    }

    /// The message, without its lease: it is released when nothing else holds it.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    pub(crate) fn settle(&self, how: Settle) -> Settling {
        self.is_settled.store(true, Ordering::Relaxed);
        self.tell(how)
    }

    /// Gives it back, unless it is settled, whoever else holds it.
    pub(crate) fn give_up(&self) {
        if !self.is_settled.swap(true, Ordering::Relaxed) {
            drop(self.tell(Settle::Release(Duration::ZERO)));
        }
    }

    fn tell(&self, how: Settle) -> Settling {
        let (reply, answer) = oneshot::channel();
        if matches!(how, Settle::Release(_) | Settle::Postpone(_) | Settle::GiveBack) {
            self.lease.comes_again();
        }
        let _ = self.hub.send(Command::Settle { key: self.key, how, reply: Some(reply) });
        Settling { answer }
    }
}

/// The most of a reason that a node takes.
const REASON_BYTES_MAX: usize = 1_024;

pub(crate) fn shortened(mut why: String) -> String {
    if why.len() > REASON_BYTES_MAX {
        why.truncate(why.floor_char_boundary(REASON_BYTES_MAX));
    }
    why
}

impl Deref for Delivery {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !*self.is_settled.get_mut() {
            self.lease.comes_again();
            let how =
                if *self.is_touched.get_mut() { Settle::Release(Duration::ZERO) } else { Settle::GiveBack };
            let _ = self.hub.send(Command::Settle { key: self.key, how, reply: None });
        }
    }
}

/// The result of an ack, release or rejection to come. Dropping it does not take the request back.
///
/// ```no_run
/// use leasehold_client::Settling;
///
/// # async fn example(delivery: leasehold_client::Delivery) -> Result<(), leasehold_client::Error> {
/// let settling: Settling = delivery.ack(); // the request is on its way
/// settling.await?; // and now answered
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "the message is settled without it, but whether that succeeded is in the result"]
pub struct Settling {
    answer: oneshot::Receiver<Result<(), Error>>,
}

impl Future for Settling {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let gone = |_| Err(Error::timed_out("the consumer ended before an answer came"));
        Pin::new(&mut self.answer).poll(context).map(|answer| answer.unwrap_or_else(gone))
    }
}
