//! Sending, receiving and settling, one call at a time.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use leasehold_proto::v1::{
    AckRequest, ExtendItem, ExtendRequest, MessageId, PeekRequest, Peeked, ReceiveRequest, RejectItem,
    RejectRequest, ReleaseItem, ReleaseRequest, SendRequest, SettleOutcome, SettleResponse, WhyRequest,
    WhyResponse,
};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::call::{Attempts, Repeat};
use crate::client::{TIME_MAX, messages, miscounted};
use crate::message::millis;
use crate::{Client, Error, Lease, Message, NewMessage, ReceiveOptions, Rejection, Sent};

/// Of each item of a request, in order.
///
/// ```
/// use leasehold_client::{ItemResults, Sent};
///
/// fn all_sent(results: &ItemResults<Sent>) -> bool {
///     results.iter().all(Result::is_ok)
/// }
/// assert!(all_sent(&Vec::new()));
/// ```
pub type ItemResults<T> = Vec<Result<T, Error>>;

impl Client {
    /// Sends up to 1,000 messages, 4 MiB in all, and returns after a quorum has them on disk. Messages that are refused for a
    /// passing reason are tried again with the others, under the same request id: none is sent twice.
    ///
    /// ```no_run
    /// use leasehold_client::NewMessage;
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let batch = vec![NewMessage::new("one"), NewMessage::new("two")];
    /// for sent in client.send("emails", batch).await? {
    ///     println!("{:?}", sent?.id);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When nothing is known of any message; those refused one by one are in the result.
    pub async fn send(&self, queue: &str, batch: Vec<NewMessage>) -> Result<ItemResults<Sent>, Error> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let attempts = self.attempts(queue);
        let request = attempts.begin(self.writes()).await?;
        let wire = SendRequest {
            queue: queue.to_owned(),
            messages: batch.into_iter().map(|message| message.wire).collect(),
            request: Some(request.id()),
        };
        let attempt = |channel| {
            let wire = wire.clone();
            async move { messages(channel).send(wire).await }
        };
        let read = |answer: leasehold_proto::v1::SendResponse| {
            answer.outcomes.iter().map(Sent::from_outcome).collect()
        };
        self.call_for_items(attempts, wire.messages.len(), attempt, read).await
    }

    /// Leases messages; an empty result after `options.wait` means that there were none.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use leasehold_client::ReceiveOptions;
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let options = ReceiveOptions { wait: Duration::from_secs(20), ..ReceiveOptions::default() };
    /// for message in client.receive("emails", options).await? {
    ///     println!("{:?}", message.body);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When no messages could be leased. After `Unknown`, messages may be leased to nobody until their leases end.
    pub async fn receive(&self, queue: &str, options: ReceiveOptions) -> Result<Vec<Message>, Error> {
        let (asked, wait) = (Instant::now(), options.wait.min(TIME_MAX));
        let attempts = Attempts::new(self, Some(queue), Repeat::Safe, wait);
        let request = attempts.begin(self.receives()).await?;
        let wire = ReceiveRequest {
            queue: queue.to_owned(),
            messages_max: options.messages_max,
            lease_ms: options.lease.map(millis),
            // It may have waited for its turn already.
            wait_ms: millis(wait).saturating_sub(millis(asked.elapsed())),
            consumer: options.consumer,
            request: Some(request.id()),
            attempt_id: options.attempt_id,
            bytes_max: options.bytes_max,
        };
        let answer = self
            .call(attempts, |channel| {
                let wire = wire.clone();
                async move {
                    let sent = Instant::now();
                    let answer = messages(channel).receive(wire).await?;
                    Ok(answer.map(|answer| (sent, answer)))
                }
            })
            .await?;
        let (sent, answer) = answer;
        // The answer may have been on its way for long, and its leases did not wait for it.
        let leased = (sent + Duration::from_millis(answer.waited_ms)).min(Instant::now());
        Ok(answer.deliveries.into_iter().map(|delivery| Message::from_wire(delivery, leased)).collect())
    }

    /// Removes messages that are done. At most 4,096 receipts.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let messages = client.receive("emails", Default::default()).await?;
    /// let receipts = messages.into_iter().map(|message| message.receipt).collect::<Vec<_>>();
    /// for acked in client.ack("emails", &receipts).await? {
    ///     acked?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When nothing is known of any receipt. Of single ones: `ReceiptStale`, `MessageGone`, `ReceiptForged`.
    pub async fn ack(&self, queue: &str, receipts: &[Bytes]) -> Result<ItemResults<()>, Error> {
        let attempts = self.attempts(queue);
        let request = attempts.begin(self.writes()).await?;
        let wire =
            AckRequest { queue: queue.to_owned(), receipts: receipts.to_vec(), request: Some(request.id()) };
        let attempt = |channel| {
            let wire = wire.clone();
            async move { messages(channel).ack(wire).await }
        };
        self.settle(attempts, receipts.len(), attempt).await
    }

    /// Makes leases end the given time from now, up to 12 h after their receive. At most 4,096.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use leasehold_client::Lease;
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let messages = client.receive("emails", Default::default()).await?;
    /// let longer = |message: leasehold_client::Message| Lease::new(message.receipt, Duration::from_secs(60));
    /// let leases = messages.into_iter().map(longer).collect::<Vec<_>>();
    /// client.extend("emails", &leases).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::ack`], and `LeaseTooLong`.
    pub async fn extend(&self, queue: &str, leases: &[Lease]) -> Result<ItemResults<()>, Error> {
        let attempts = self.attempts(queue);
        let request = attempts.begin(self.writes()).await?;
        let item =
            |lease: &Lease| ExtendItem { receipt: lease.receipt.clone(), lease_ms: millis(lease.duration) };
        let wire = ExtendRequest {
            queue: queue.to_owned(),
            items: leases.iter().map(item).collect(),
            request: Some(request.id()),
        };
        let attempt = |channel| {
            let wire = wire.clone();
            async move { messages(channel).extend(wire).await }
        };
        self.settle(attempts, leases.len(), attempt).await
    }

    /// Gives messages back, ready again after the given time. At most 4,096.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use leasehold_client::Lease;
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let messages = client.receive("emails", Default::default()).await?;
    /// let in_a_minute = |message: leasehold_client::Message| Lease::new(message.receipt, Duration::from_secs(60));
    /// let leases = messages.into_iter().map(in_a_minute).collect::<Vec<_>>();
    /// client.release("emails", &leases).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::ack`].
    pub async fn release(&self, queue: &str, leases: &[Lease]) -> Result<ItemResults<()>, Error> {
        self.release_as(queue, leases, false).await
    }

    /// Gives messages back that have to wait: ready again after the given time, and the receive does not count for the receive
    /// limit, since nothing has failed. At most 4,096.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use leasehold_client::Lease;
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let messages = client.receive("emails", Default::default()).await?;
    /// let when_the_quota_is_back = Duration::from_secs(60);
    /// let later = |message: leasehold_client::Message| Lease::new(message.receipt, when_the_quota_is_back);
    /// let leases = messages.into_iter().map(later).collect::<Vec<_>>();
    /// client.postpone("emails", &leases).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::ack`].
    pub async fn postpone(&self, queue: &str, leases: &[Lease]) -> Result<ItemResults<()>, Error> {
        self.release_as(queue, leases, true).await
    }

    async fn release_as(
        &self,
        queue: &str,
        leases: &[Lease],
        put_off: bool,
    ) -> Result<ItemResults<()>, Error> {
        let attempts = self.attempts(queue);
        let request = attempts.begin(self.writes()).await?;
        let item = |lease: &Lease| ReleaseItem {
            receipt: lease.receipt.clone(),
            delay_ms: millis(lease.duration),
            untouched: false,
            put_off,
        };
        let wire = ReleaseRequest {
            queue: queue.to_owned(),
            items: leases.iter().map(item).collect(),
            request: Some(request.id()),
        };
        let attempt = |channel| {
            let wire = wire.clone();
            async move { messages(channel).release(wire).await }
        };
        self.settle(attempts, leases.len(), attempt).await
    }

    /// Moves messages to the queue's dead-letter queue, each with a reason of at most 1,024 bytes. At most 4,096.
    ///
    /// ```no_run
    /// use leasehold_client::Rejection;
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let messages = client.receive("emails", Default::default()).await?;
    /// let rejections = messages.into_iter().map(|message| Rejection::new(message.receipt, "no such address"));
    /// client.reject("emails", &rejections.collect::<Vec<_>>()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::ack`], and `NoDeadLetterQueue`: the lease stays as it was.
    pub async fn reject(&self, queue: &str, rejections: &[Rejection]) -> Result<ItemResults<()>, Error> {
        let attempts = self.attempts(queue);
        let request = attempts.begin(self.writes()).await?;
        let item = |rejection: &Rejection| RejectItem {
            receipt: rejection.receipt.clone(),
            why: rejection.why.clone(),
        };
        let wire = RejectRequest {
            queue: queue.to_owned(),
            items: rejections.iter().map(item).collect(),
            request: Some(request.id()),
        };
        let attempt = |channel| {
            let wire = wire.clone();
            async move { messages(channel).reject(wire).await }
        };
        self.settle(attempts, rejections.len(), attempt).await
    }

    /// Looks at up to 1,000 messages without leasing them; 0 means 10.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// for message in client.peek("emails", 10).await? {
    ///     println!("{:?}: {:?}", message.id, message.body);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When no answer came, or the queue is unknown.
    pub async fn peek(&self, queue: &str, messages_max: u32) -> Result<Vec<Peeked>, Error> {
        let answer = self
            .call(self.attempts(queue), |channel| {
                let wire = PeekRequest { queue: queue.to_owned(), messages_max };
                async move { messages(channel).peek(wire).await }
            })
            .await?;
        Ok(answer.messages)
    }

    /// The life of one message.
    ///
    /// ```no_run
    /// use leasehold_client::MessageId;
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let life = client.why("emails", MessageId { partition: 2, sequence: 17 }).await?;
    /// println!("{}", life.state);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When no answer came, or the queue or partition is unknown.
    pub async fn why(&self, queue: &str, id: MessageId) -> Result<WhyResponse, Error> {
        self.call(self.attempts(queue), |channel| {
            let wire = WhyRequest { queue: queue.to_owned(), id: Some(id) };
            async move { messages(channel).why(wire).await }
        })
        .await
    }

    fn attempts<'a>(&'a self, queue: &'a str) -> Attempts<'a> {
        Attempts::new(self, Some(queue), Repeat::Safe, Duration::ZERO)
    }

    async fn settle<F>(
        &self,
        attempts: Attempts<'_>,
        asked: usize,
        attempt: impl Fn(Channel) -> F,
    ) -> Result<ItemResults<()>, Error>
    where
        F: Future<Output = Result<Response<SettleResponse>, Status>>,
    {
        if asked == 0 {
            return Ok(Vec::new());
        }
        let read = |answer: SettleResponse| answer.outcomes.iter().map(settled).collect();
        self.call_for_items(attempts, asked, attempt, read).await
    }

    /// A call whose items have results of their own: tried again as a whole until every item has a final one.
    async fn call_for_items<A, T, F>(
        &self,
        mut attempts: Attempts<'_>,
        asked: usize,
        attempt: impl Fn(Channel) -> F,
        read: impl Fn(A) -> ItemResults<T>,
    ) -> Result<ItemResults<T>, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut items = Items::new(asked);
        loop {
            let answer = attempts.once(&attempt).await.map(&read);
            let error = match items.take(answer) {
                None => return Ok(items.into_results()),
                Some(error) => error,
            };
            if let Err(error) = attempts.pause(error).await {
                return items.end(error);
            }
        }
    }
}

/// What is known of the items of one request, over its attempts.
struct Items<T> {
    results: Vec<Option<Result<T, Error>>>,
    /// Every item may have happened at an earlier attempt.
    was_unknown: bool,
}

impl<T> Items<T> {
    fn new(asked: usize) -> Self {
        Self { results: std::iter::repeat_with(|| None).take(asked).collect(), was_unknown: false }
    }

    /// Keeps what an attempt answered, and returns why to try again.
    fn take(&mut self, answer: Result<ItemResults<T>, Error>) -> Option<Error> {
        let results = match answer {
            Ok(results) if results.len() == self.results.len() => results,
            Ok(results) => return Some(miscounted(results.len(), self.results.len())),
            Err(error) => {
                self.was_unknown |= error.outcome == leasehold_proto::v1::Outcome::Unknown;
                return Some(error);
            }
        };
        let mut again = None;
        for (slot, result) in self.results.iter_mut().zip(results) {
            if let Err(error) = &result
                && error.is_transient()
                && again.is_none()
                && !is_final(slot.as_ref())
            {
                again = Some(error.clone());
            }
            if !is_final(slot.as_ref()) {
                let was_unknown = self.was_unknown || matches!(slot, Some(Err(error)) if is_unknown(error));
                *slot = Some(result.map_err(|error| error.after(was_unknown)));
            }
        }
        again
    }

    /// Time is over: what is known of the items, or the error when no item was ever answered.
    fn end(self, error: Error) -> Result<ItemResults<T>, Error> {
        if self.results.iter().all(Option::is_none) {
            return Err(error);
        }
        let was_unknown = self.was_unknown;
        let ended = |result: Result<T, Error>| match result {
            Err(error) if error.is_transient() => Err(error.after(was_unknown)),
            final_result => final_result,
        };
        Ok(self.into_results().into_iter().map(ended).collect())
    }

    fn into_results(self) -> ItemResults<T> {
        let unanswered = || Err(Error::timed_out("no answer came"));
        self.results.into_iter().map(|result| result.unwrap_or_else(unanswered)).collect()
    }
}

fn is_final<T>(result: Option<&Result<T, Error>>) -> bool {
    match result {
        None => false,
        Some(Ok(_)) => true,
        Some(Err(error)) => !error.is_transient(),
    }
}

fn is_unknown(error: &Error) -> bool {
    error.outcome == leasehold_proto::v1::Outcome::Unknown
}

/// The result of one receipt.
pub(crate) fn settled(outcome: &SettleOutcome) -> Result<(), Error> {
    Error::of_item(outcome.outcome, outcome.reason, &outcome.detail).map_or(Ok(()), Err)
}
