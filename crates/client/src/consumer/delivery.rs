//! A message in the hands of a handler.

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::{Error, Message};

/// What deliveries and the consumer tell the hub.
#[derive(Debug)]
pub(crate) enum Command {
    Settle { key: u64, how: Settle, reply: Option<oneshot::Sender<Result<(), Error>>> },
    Stop,
    Close(oneshot::Sender<()>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settle {
    Ack,
    Extend(Duration),
    Release(Duration),
}

/// A leased message; its fields are those of [`Message`].
///
/// The lease is extended while this is held. Dropped without [`Delivery::ack`] or [`Delivery::release`], the message goes back
/// to the queue at once, as far as the connection allows.
#[derive(Debug)]
pub struct Delivery {
    message: Message,
    key: u64,
    queue: Arc<str>,
    lease: Arc<LeaseState>,
    hub: mpsc::UnboundedSender<Command>,
    is_settled: bool,
}

/// What the hub and the holder know of one lease.
#[derive(Debug)]
pub(crate) struct LeaseState {
    /// `None` when it is lost.
    until: Mutex<Option<Instant>>,
    lost: Notify,
}

impl LeaseState {
    pub(crate) fn new(until: Instant) -> Arc<Self> {
        Arc::new(Self { until: Mutex::new(Some(until)), lost: Notify::new() })
    }

    pub(crate) fn until(&self) -> Option<Instant> {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lost lease stays lost.
    pub(crate) fn set_until(&self, until: Instant) {
        if let Some(known) = self.until.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            *known = until;
        }
    }

    pub(crate) fn lose(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.lost.notify_waiters();
    }
}

impl Delivery {
    pub(crate) fn new(
        message: Message,
        key: u64,
        queue: Arc<str>,
        lease: Arc<LeaseState>,
        hub: mpsc::UnboundedSender<Command>,
    ) -> Self {
        Self { message, key, queue, lease, hub, is_settled: false }
    }

    /// The queue it came from.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// How long the lease lasts at least, extensions included; zero when it ended or was lost.
    #[must_use]
    pub fn lease_left(&self) -> Duration {
        self.lease.until().map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Returns when the lease has ended: another consumer may have the message then. Never, while extensions succeed.
    pub async fn lease_lost(&self) {
        loop {
            let lost = self.lease.lost.notified();
            let Some(until) = self.lease.until() else { return };
            if Instant::now() >= until {
                return;
            }
            tokio::select! {
                () = lost => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
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

    /// Makes the lease end the given time from now, and each automatic extension reach as far.
    ///
    /// # Errors
    /// As [`Delivery::ack`], and `LeaseTooLong` beyond 12 h from the receive.
    pub async fn extend(&self, lease: Duration) -> Result<(), Error> {
        self.tell(Settle::Extend(lease)).await
    }

    /// The message, without its lease: it is released when nothing else holds it.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    fn settle(mut self, how: Settle) -> Settling {
        self.is_settled = true;
        self.tell(how)
    }

    fn tell(&self, how: Settle) -> Settling {
        let (reply, answer) = oneshot::channel();
        let _ = self.hub.send(Command::Settle { key: self.key, how, reply: Some(reply) });
        Settling { answer }
    }
}

impl Deref for Delivery {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.is_settled {
            let how = Settle::Release(Duration::ZERO);
            let _ = self.hub.send(Command::Settle { key: self.key, how, reply: None });
        }
    }
}

/// The result of an ack or release to come. Dropping it does not take the request back.
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
