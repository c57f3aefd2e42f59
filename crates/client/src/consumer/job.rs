//! A message in the hands of a handler.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Delivery;
use crate::{Error, Message};

/// What a handler works on; its fields are those of [`Message`]. Clones share the lease, which is kept while the handler runs.
///
/// ```
/// use std::time::Duration;
/// use leasehold_client::{Failure, Job};
///
/// async fn handle(job: Job) -> Result<(), Failure> {
///     println!("{} until {:?}", job.queue(), job.deadline());
///     if job.body.len() > 1_000_000 {
///         job.extend(Duration::from_secs(600)).await?;
///     }
///     tokio::select! {
///         () = job.cancelled().cancelled() => Err(Failure::retry("there is no time left")),
///         () = tokio::task::yield_now() => Ok(()),
///     }
/// }
/// # let _ = handle;
/// ```
#[derive(Debug, Clone)]
pub struct Job {
    delivery: Arc<Delivery>,
    /// When the handler is dropped.
    end: Option<Instant>,
    cancelled: CancellationToken,
}

impl Job {
    pub(super) fn new(delivery: Arc<Delivery>, end: Option<Instant>) -> Self {
        let cancelled = delivery.lease_lost().child_token();
        Self { delivery, end, cancelled }
    }

    /// The queue it came from.
    #[must_use]
    pub fn queue(&self) -> &str {
        self.delivery.queue()
    }

    /// Until when the handler may work as far as is known: the end of the lease, which is extended by itself, or that of
    /// [`crate::ConsumerBuilder::handler_timeout`] if it is earlier. In the past when the lease was lost.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        let lease = Instant::now() + self.delivery.lease_left();
        self.end.map_or(lease, |end| end.min(lease))
    }

    /// Fires when working on makes no sense: the lease was lost, the handler timed out or panicked, or the consumer has to end. Hand
    /// it to what the handler starts; check it before an effect that cannot be taken back.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// As [`Delivery::extend`].
    ///
    /// # Errors
    /// As [`Delivery::extend`].
    pub async fn extend(&self, lease: Duration) -> Result<(), Error> {
        self.delivery.extend(lease).await
    }
}

impl Deref for Job {
    type Target = Message;

    fn deref(&self) -> &Message {
        self.delivery.message()
    }
}
