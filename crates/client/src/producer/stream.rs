//! The Publish stream of a producer: opened when there is something to send, and again after a loss.

use std::future::pending;
use std::time::Duration;

use futures::future::BoxFuture;
use leasehold_proto::v1::{Outcome, PublishRequest, PublishResponse, Reason};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use crate::backoff::Backoff;
use crate::call::ATTEMPT_TIME_MAX;
use crate::client::messages;
use crate::{Client, Error};

/// Looks at what a queue is, for as long as the stream lasts, and the pause between them.
const LOOKS_MAX: usize = 4;
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// One stream at a time.
pub(super) struct Stream {
    client: Client,
    queue: String,
    /// Of this stream; each opening has another.
    id: u64,
    state: State,
    backoff: Backoff,
}

enum State {
    Closed { until: Instant },
    Opening { requests: UnboundedSender<PublishRequest>, opening: BoxFuture<'static, Result<Open, Error>> },
    Open { requests: UnboundedSender<PublishRequest>, open: Open },
}

struct Open {
    address: String,
    /// Of the queue, as far as it was known then.
    is_standard: bool,
    answers: Box<Streaming<PublishResponse>>,
}

/// What a stream tells its producer.
pub(super) enum Event {
    Answer(PublishResponse),
    /// It opened, or may be opened again: there may be something to send.
    Changed,
    /// What was sent on the stream of that id has no answer.
    Lost(u64, Error),
}

impl Stream {
    pub(super) fn new(client: Client, queue: String) -> Self {
        let state = State::Closed { until: Instant::now() };
        Self { client, queue, id: 0, state, backoff: Backoff::default() }
    }

    /// The id of the stream to send on, opening it if need be; `None` while waiting before another attempt.
    pub(super) fn ready(&mut self) -> Option<u64> {
        if let State::Closed { until } = self.state {
            if Instant::now() < until {
                return None;
            }
            self.id += 1;
            let (requests, outgoing) = unbounded_channel();
            let outgoing = UnboundedReceiverStream::new(outgoing);
            let opening = Box::pin(open(self.client.clone(), self.queue.clone(), outgoing));
            self.state = State::Opening { requests, opening };
        }
        Some(self.id)
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Whether it is open, and its queue known to have no order.
    pub(super) fn is_to_standard(&self) -> bool {
        matches!(&self.state, State::Open { open, .. } if open.is_standard)
    }

    /// When something that is due at `at` can be sent at the earliest.
    pub(super) fn not_before(&self, at: Instant) -> Instant {
        match self.state {
            State::Closed { until } => at.max(until),
            _ => at,
        }
    }

    /// Queues a request; what is lost with the stream is reported as such.
    pub(super) fn send(&self, request: PublishRequest) {
        if let State::Opening { requests, .. } | State::Open { requests, .. } = &self.state {
            let _ = requests.send(request);
        }
    }

    /// The next event. Cancel safe.
    pub(super) async fn next(&mut self) -> Event {
        match &mut self.state {
            State::Closed { until } if *until <= Instant::now() => pending().await,
            State::Closed { until } => {
                sleep_until(*until).await;
                Event::Changed
            }
            State::Opening { opening, .. } => match opening.await {
                Ok(open) => {
                    self.opened(open);
                    Event::Changed
                }
                Err(error) => self.close(error),
            },
            State::Open { open, .. } => match open.answers.message().await {
                Ok(Some(answer)) => {
                    self.backoff.reset();
                    Event::Answer(answer)
                }
                Ok(None) => self.fail("the node ended the stream"),
                Err(status) => {
                    let error = Error { outcome: Outcome::Unknown, ..status.into() };
                    self.close(error)
                }
            },
        }
    }

    /// Gives the stream up.
    pub(super) fn fail(&mut self, detail: &str) -> Event {
        self.close(Error::transport(Outcome::Unknown, Reason::None, detail))
    }

    /// Gives the stream up for what its node answered: what else was sent on it may have happened.
    pub(super) fn leave(&mut self, why: Error) -> Event {
        self.close(Error { outcome: Outcome::Unknown, ..why })
    }

    fn opened(&mut self, open: Open) {
        let closed = State::Closed { until: Instant::now() };
        if let State::Opening { requests, .. } = std::mem::replace(&mut self.state, closed) {
            self.state = State::Open { requests, open };
        }
    }

    fn close(&mut self, error: Error) -> Event {
        let error = match &self.state {
            State::Open { open, .. } => self.client.note_error(&open.address, Some(&self.queue), error),
            _ => error,
        };
        let pause = self.backoff.next(error.retry_after, &self.client.settings().budget);
        self.state = State::Closed { until: Instant::now() + pause };
        tracing::debug!(queue = self.queue, %error, "a publish stream was lost");
        Event::Lost(self.id, error)
    }
}

async fn open(
    client: Client,
    queue: String,
    outgoing: UnboundedReceiverStream<PublishRequest>,
) -> Result<Open, Error> {
    let (mut address, mut facts) = client.address_and_facts(&queue).await;
    for _ in 1..LOOKS_MAX {
        if facts.is_some() {
            break;
        }
        sleep(LOOK_AGAIN).await;
        (address, facts) = client.address_and_facts(&queue).await;
    }
    let is_standard = facts.is_some_and(|facts| !facts.is_fifo);
    let mut messages = messages(client.channels().channel(&address)?);
    let result = match timeout(ATTEMPT_TIME_MAX, messages.publish(outgoing)).await {
        Ok(answer) => answer.map_err(Error::from),
        Err(_) => Err(Error::timed_out(format!("{address} did not open a stream in time"))),
    };
    let result = client.note_result(&address, Some(&queue), result);
    result.map(|answer| Open { address, is_standard, answers: Box::new(answer.into_inner()) })
}
