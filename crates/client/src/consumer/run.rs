//! Handles messages with a function.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;

use super::{Consumer, Delivery};
use crate::Error;

/// A handler's wish to have the message again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryAfter {
    /// Until the message is ready again; `None` doubles with each receive, from 1 s to 5 min.
    pub delay: Option<Duration>,
    /// For the log.
    pub why: String,
}

impl RetryAfter {
    /// Again after the given time.
    pub fn new(delay: Duration, why: impl Into<String>) -> Self {
        Self { delay: Some(delay), why: why.into() }
    }

    fn delay_of(&self, receive_count: u32) -> Duration {
        let doubled = || Duration::from_secs(1_u64 << receive_count.saturating_sub(1).min(8));
        self.delay.unwrap_or_else(doubled).min(DELAY_MAX)
    }
}

const DELAY_MAX: Duration = Duration::from_secs(5 * 60);

/// Any error means: again, later each time.
impl<E: std::error::Error> From<E> for RetryAfter {
    fn from(error: E) -> Self {
        Self { delay: None, why: error.to_string() }
    }
}

impl fmt::Display for RetryAfter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.why)
    }
}

impl Consumer {
    /// Handles messages, up to `concurrency` at a time, until the consumer ends. The handler's `Ok` removes the message, its
    /// error gives it back after a delay, and so does its panic. Dropping the future stops the handlers and releases what they
    /// hold.
    ///
    /// # Errors
    /// As [`Consumer::next`].
    pub async fn run<H, F>(mut self, concurrency: usize, handler: H) -> Result<(), Error>
    where
        H: Fn(Arc<Delivery>) -> F,
        F: Future<Output = Result<(), RetryAfter>> + Send + 'static,
    {
        let mut handlers = JoinSet::new();
        let ended = loop {
            while handlers.len() >= concurrency.max(1) {
                handlers.join_next().await;
            }
            match self.next().await {
                Ok(Some(delivery)) => {
                    let delivery = Arc::new(delivery);
                    let handled = handler(Arc::clone(&delivery));
                    handlers.spawn(settle_after(delivery, handled));
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        while handlers.join_next().await.is_some() {}
        ended
    }
}

async fn settle_after(delivery: Arc<Delivery>, handled: impl Future<Output = Result<(), RetryAfter>>) {
    let panicked = |_| Err(RetryAfter { delay: None, why: "the handler panicked".to_owned() });
    let result = AssertUnwindSafe(handled).catch_unwind().await.unwrap_or_else(panicked);
    let Some(delivery) = Arc::into_inner(delivery) else {
        tracing::warn!("a handler kept its delivery: it is released when that is dropped");
        return;
    };
    let id = delivery.id;
    let settled = match result {
        Ok(()) => delivery.ack(),
        Err(retry) => {
            tracing::warn!(?id, why = %retry, "a handler failed");
            let delay = retry.delay_of(delivery.receive_count);
            delivery.release(delay)
        }
    };
    if let Err(error) = settled.await {
        tracing::warn!(?id, %error, "a message could not be settled");
    }
}
