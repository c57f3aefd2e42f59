//! One call, tried until it has a result or its time is over.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use leasehold_proto::v1::Outcome;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::backoff::Backoff;
use crate::session::{Request, Sessions};
use crate::{Client, Error};

/// What an attempt may take beyond the wait it asks for: more than a node looks for a leader.
pub(crate) const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(6);

/// Whether a request of unknown outcome may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It is recognised by its request id, or repeating changes nothing.
    Safe,
    Unsafe,
}

/// The attempts of one call.
pub(crate) struct Attempts<'a> {
    client: &'a Client,
    queue: Option<&'a str>,
    repeat: Repeat,
    wait: Duration,
    deadline: Instant,
    backoff: Backoff,
    was_unknown: bool,
}

impl<'a> Attempts<'a> {
    /// `queue` is that whose leaders are asked first; `wait` is what the server may wait before it answers.
    pub(crate) fn new(client: &'a Client, queue: Option<&'a str>, repeat: Repeat, wait: Duration) -> Self {
        let deadline = Instant::now() + client.settings().call_timeout + wait;
        Self { client, queue, repeat, wait, deadline, backoff: Backoff::default(), was_unknown: false }
    }

    /// Names the request of the call; what it waits for that counts as time of the call.
    ///
    /// # Errors
    /// `NotDone` when the time is over before anything was sent.
    pub(crate) async fn begin(&self, sessions: &Arc<Sessions>) -> Result<Request, Error> {
        sessions.begin(self.deadline).await
    }

    pub(crate) async fn once<T, F>(&mut self, attempt: impl FnOnce(Channel) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let address = self.client.address_for(self.queue).await;
        let channel = self.client.channels().channel(&address)?;
        let end = self.deadline.min(Instant::now() + ATTEMPT_TIME_MAX + self.wait);
        let result = match timeout_at(end, attempt(channel)).await {
            Ok(answer) => answer.map(Response::into_inner).map_err(Error::from),
            Err(_) => Err(Error::timed_out(format!("{address} did not answer in time"))),
        };
        self.client.note_result(&address, self.queue, result)
    }

    /// Waits before the next attempt, or gives the error back that ends the call.
    pub(crate) async fn pause(&mut self, error: Error) -> Result<(), Error> {
        let earlier_unknown = self.was_unknown;
        self.was_unknown |= error.outcome == Outcome::Unknown;
        let is_safe = self.repeat == Repeat::Safe || !self.was_unknown;
        let pause = self.backoff.next(error.retry_after, &self.client.settings().budget);
        if !error.is_transient() || !is_safe || Instant::now() + pause >= self.deadline {
            return Err(error.after(earlier_unknown));
        }
        sleep(pause).await;
        Ok(())
    }
}

impl Client {
    /// Tries one request until it has a result.
    pub(crate) async fn call<T, F>(
        &self,
        mut attempts: Attempts<'_>,
        attempt: impl Fn(Channel) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            match attempts.once(&attempt).await {
                Ok(result) => return Ok(result),
                Err(error) => attempts.pause(error).await?,
            }
        }
    }
}
