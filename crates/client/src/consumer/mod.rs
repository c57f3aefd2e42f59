//! Receives messages as they come, keeps their leases while they are handled, and settles them in batches.

mod delivery;
mod hub;
mod lanes;
mod leases;
mod pace;
mod run;
mod settles;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::{Client, Error};

pub use delivery::{Delivery, Settling};
pub use run::RetryAfter;

use delivery::Command;

/// How a [`Consumer`] is made.
#[derive(Debug, Clone)]
pub struct ConsumerBuilder {
    client: Client,
    options: Options,
}

#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) queue: String,
    pub(crate) credit: u64,
    pub(crate) lease: Option<Duration>,
    pub(crate) name: String,
    pub(crate) keep_for: Duration,
    pub(crate) batch_max: u32,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, queue: String) -> Self {
        let options = Options {
            queue,
            credit: 256,
            lease: None,
            name: String::new(),
            keep_for: Duration::from_secs(60 * 60),
            batch_max: 0,
        };
        Self { client, options }
    }

    /// Messages that this consumer holds at most, waiting or being handled; 256 unless told.
    #[must_use]
    pub fn credit(mut self, messages: u32) -> Self {
        self.options.credit = u64::from(messages.max(1));
        self
    }

    /// How long a lease lasts, and how far each extension reaches; the queue's own unless told.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.options.lease = Some(lease);
        self
    }

    /// Who receives, for `why`; at most 64 bytes.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = name.into();
        self
    }

    /// How long leases are extended by themselves, from the arrival of a message; 1 h unless told, zero for never.
    #[must_use]
    pub fn keep_leases_for(mut self, most: Duration) -> Self {
        self.options.keep_for = most;
        self
    }

    /// The largest batch that a node sends at once; 256 unless told.
    #[must_use]
    pub fn batch_max(mut self, messages: u32) -> Self {
        self.options.batch_max = messages;
        self
    }

    /// Starts the consumer on the runtime of the caller.
    #[must_use]
    pub fn start(self) -> Consumer {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (outbox, deliveries) = mpsc::unbounded_channel();
        tokio::spawn(hub::run(self.client, self.options, commands.downgrade(), inbox, outbox));
        Consumer {
            deliveries,
            stop: StopHandle { commands: commands.downgrade(), is_stopped: Arc::default() },
            commands,
        }
    }
}

/// Receives the messages of one queue.
///
/// When it is dropped, messages not handed out go back to the queue; deliveries that are held can still be settled.
#[derive(Debug)]
pub struct Consumer {
    deliveries: mpsc::UnboundedReceiver<Result<Delivery, Error>>,
    commands: mpsc::UnboundedSender<Command>,
    stop: StopHandle,
}

/// Stops a consumer from elsewhere, for example one that runs a handler.
#[derive(Debug, Clone)]
pub struct StopHandle {
    commands: mpsc::WeakUnboundedSender<Command>,
    is_stopped: Arc<AtomicBool>,
}

impl StopHandle {
    /// As [`Consumer::stop`].
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.send(Command::Stop);
        }
    }
}

impl Consumer {
    /// A handle to stop this consumer with.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Waits for a message; `None` after [`Consumer::stop`], or after an error was returned.
    ///
    /// Cancel safe: a message that was not returned is returned by the next call.
    ///
    /// # Errors
    /// When the queue cannot be consumed at all (`UnknownQueue`, `InvalidArgument`): the consumer has ended then. Losses of
    /// connections and leaders are not errors.
    pub async fn next(&mut self) -> Result<Option<Delivery>, Error> {
        let next = self.deliveries.recv().await;
        if self.stop.is_stopped.load(Ordering::Acquire) {
            drop(next);
            self.stop();
            return Ok(None);
        }
        next.transpose()
    }

    /// Takes no more messages; those that wait to be handed out go back to the queue.
    pub fn stop(&mut self) {
        self.stop.stop();
        self.deliveries.close();
        while self.deliveries.try_recv().is_ok() {}
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
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop();
    }
}
