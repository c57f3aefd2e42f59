//! A producer as a sink of messages, for programs that are made of streams.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Sink;
use futures::future::BoxFuture;

use super::{Pending, Producer};
use crate::{Error, NewMessage};

/// Messages without a result, beyond which the sink takes no more.
const UNANSWERED_MAX: usize = 16 * 1024;

/// A message of a [`ProducerSink`] that was not sent, or is not known to be.
///
/// ```no_run
/// use futures::SinkExt;
/// use leasehold_client::{ProducerSink, SinkError};
///
/// # async fn example(mut sink: ProducerSink) {
/// while let Err(SinkError { position, error }) = sink.flush().await {
///     println!("message {position}: {error}");
/// }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message {position} of the sink: {error}")]
pub struct SinkError {
    /// Counts the messages given to the sink, from 0.
    pub position: u64,
    /// Why.
    #[source]
    pub error: Error,
}

/// Sends what it is given; see [`Producer::sink`].
pub struct ProducerSink {
    producer: Producer,
    /// A message that waits for room.
    entering: Option<BoxFuture<'static, Result<Pending, Error>>>,
    /// With their positions, in the order in which they were given.
    unanswered: VecDeque<(u64, Pending)>,
    /// Messages given so far.
    given: u64,
    /// What an earlier message ended with, until it can be told without losing the one at hand.
    failed: Option<SinkError>,
}

impl Producer {
    /// A sink that sends through this producer. Flushed, it has a result for every message; an error is of the message that it
    /// names, and the sink goes on with the others, that with which it was told included: flush again to learn of those.
    ///
    /// ```no_run
    /// use futures::{SinkExt, StreamExt, stream};
    /// use leasehold_client::{Client, NewMessage};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = Client::connect(["127.0.0.1:7400"])?;
    /// let mut sink = client.queue("numbers").producer().start().sink();
    /// let mut numbers = stream::iter((0..10_000).map(|number| Ok(NewMessage::new(number.to_string()))));
    /// sink.send_all(&mut numbers).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn sink(&self) -> ProducerSink {
        ProducerSink {
            producer: self.clone(),
            entering: None,
            unanswered: VecDeque::new(),
            given: 0,
            failed: None,
        }
    }
}

impl ProducerSink {
    /// Ready when every message is handed over to the producer.
    fn poll_enter(&mut self, context: &mut Context<'_>) -> Poll<Result<(), SinkError>> {
        let Some(entering) = &mut self.entering else { return Poll::Ready(Ok(())) };
        let entered = ready!(entering.as_mut().poll(context));
        self.entering = None;
        let position = self.given;
        self.given += 1;
        let pending = entered.map_err(|error| SinkError { position, error })?;
        self.unanswered.push_back((position, pending));
        Poll::Ready(Ok(()))
    }

    /// Ready when there is room for another message.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), SinkError>> {
        ready!(self.poll_enter(context))?;
        self.poll_answers(context, UNANSWERED_MAX)
    }

    /// Ready when at most so many messages have no result.
    fn poll_answers(&mut self, context: &mut Context<'_>, most: usize) -> Poll<Result<(), SinkError>> {
        while let Some((position, first)) = self.unanswered.front_mut() {
            let Poll::Ready(result) = Pin::new(first).poll(context) else {
                return if self.unanswered.len() <= most { Poll::Ready(Ok(())) } else { Poll::Pending };
            };
            let position = *position;
            self.unanswered.pop_front();
            if let Err(error) = result {
                return Poll::Ready(Err(SinkError { position, error }));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Sink<NewMessage> for ProducerSink {
    type Error = SinkError;

    fn poll_ready(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), SinkError>> {
        let this = self.get_mut();
        // Who is told an error here drops the message that it was going to give.
        if this.failed.is_none() {
            this.failed = ready!(this.poll_room(context)).err();
        }
        Poll::Ready(Ok(()))
    }

    fn start_send(self: Pin<&mut Self>, message: NewMessage) -> Result<(), SinkError> {
        let this = self.get_mut();
        assert!(this.entering.is_none(), "a sink is ready before it is given something");
        let producer = this.producer.clone();
        this.entering = Some(Box::pin(async move { producer.enqueue(message).await }));
        this.failed.take().map_or(Ok(()), Err)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), SinkError>> {
        let this = self.get_mut();
        if let Some(error) = this.failed.take() {
            return Poll::Ready(Err(error));
        }
        ready!(this.poll_enter(context))?;
        this.poll_answers(context, 0)
    }

    /// As flushing: the producer stays open for its other users.
    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), SinkError>> {
        self.poll_flush(context)
    }
}

impl fmt::Debug for ProducerSink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ProducerSink")
            .field("unanswered", &self.unanswered.len())
            .finish_non_exhaustive()
    }
}
