//! Handles messages with a function.
//!
//! ```text
//!   stream ─▶ Waiting ─ a permit is free ─▶ task: handler ─▶ ack, release, reject ─▶ answered
//!               ▲                                              └─ the permit is free again
//!               └───────────── the next of its group ◀─────────────────────────────────┘
//! ```

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use leasehold_proto::v1::Reason;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::counters::{Count, Counters};
use super::delivery::{Settle, shortened};
use super::failure::{DELAY_MAX, Wish};
use super::groups::Waiting;
use super::{Consumer, ConsumerBuilder, Delivery, Failure, Job, Options};
use crate::Error;

/// Settlements without an answer, beyond which no handler is started.
const UNANSWERED_MAX: usize = 4_096;
/// How long handlers have to heed the sign that they have to end.
const LAST_MOMENT: Duration = Duration::from_secs(1);

impl ConsumerBuilder {
    /// Handles messages until [`ConsumerBuilder::stop_on`] says so. `Ok` removes a message from the queue; a [`Failure`] gives it
    /// back after a delay, puts it off, or moves it to the dead-letter queue; a panic or a timeout gives it back and is counted.
    ///
    /// At the end everything that was received is finished or given back. When this future is dropped, handlers are dropped at
    /// once, and what they held is given back.
    ///
    /// Messages of a group of a FIFO queue are handled one after the other, in order. When one of them is given back, so are those
    /// behind it.
    ///
    /// ```no_run
    /// # async fn send_mail(body: &[u8]) -> Result<(), std::io::Error> { Ok(()) }
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let consumer = client.queue("emails").consumer().concurrency(64).name("mailer");
    /// consumer
    ///     .run(|job| async move {
    ///         send_mail(&job.body).await?;
    ///         Ok(())
    ///     })
    ///     .await
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the queue cannot be consumed at all (`UnknownQueue`, `InvalidArgument`), or something failed in this process. Losses of
    /// connections and leaders are not errors.
    pub async fn run<H, F>(self, handler: H) -> Result<(), Error>
    where
        H: Fn(Job) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let options = self.options.clone();
        let mut runner = Runner {
            permits: Arc::new(Semaphore::new(usize::try_from(options.concurrency).unwrap_or(usize::MAX))),
            consumer: self.start(),
            options,
            handler: Arc::new(handler),
            waiting: Waiting::new(),
            tasks: JoinSet::new(),
        };
        let ended = runner.run().await;
        runner.end().await;
        ended
    }
}

struct Runner<H> {
    consumer: Consumer,
    options: Options,
    handler: Arc<H>,
    permits: Arc<Semaphore>,
    waiting: Waiting<Delivery>,
    tasks: JoinSet<Ended>,
}

/// What became of a message.
struct Ended {
    /// Within which order holds.
    group: Option<String>,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It will not come again: what is behind it in its group may begin.
    Done,
    /// It comes again, here or elsewhere.
    Returned,
}

impl<H, F> Runner<H>
where
    H: Fn(Job) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    async fn run(&mut self) -> Result<(), Error> {
        loop {
            let may_start = !self.is_stopped()
                && self.waiting.is_ready()
                && self.tasks.len() < UNANSWERED_MAX + self.permits_in_use();
            tokio::select! {
                permit = Arc::clone(&self.permits).acquire_owned(), if may_start => {
                    self.start(permit.expect("the semaphore is never closed"));
                }
                Some(ended) = self.tasks.join_next() => self.on_ended(ended.ok()),
                batch = poll_fn(|context| self.consumer.poll_batch(context)) => match batch {
                    Some(batch) => self.admit(batch?),
                    None => return Ok(()),
                },
            }
        }
    }

    /// The end of the stream says so too, but only when it is the loop's turn to hear of it.
    fn is_stopped(&self) -> bool {
        self.options.stop.is_cancelled()
    }

    fn permits_in_use(&self) -> usize {
        usize::try_from(self.options.concurrency).unwrap_or(usize::MAX) - self.permits.available_permits()
    }

    fn admit(&mut self, batch: Vec<Delivery>) {
        for delivery in batch {
            let group = delivery.ordered_group().map(str::to_owned);
            self.waiting.add(group.as_deref(), delivery);
        }
    }

    fn start(&mut self, permit: OwnedSemaphorePermit) {
        // The stop may have come while the place was waited for, from the handler that had it.
        if self.is_stopped() {
            return;
        }
        let Some((group, delivery)) = self.waiting.next() else { return };
        // The lease was lost while it waited.
        if delivery.lease_left().is_zero() {
            self.options.counters.add(Count::Returned);
            drop(delivery);
            return self.on_ended(Some(Ended { group, fate: Fate::Returned }));
        }
        delivery.begin();
        self.options.counters.add(Count::Started);
        let work = Work {
            handler: Arc::clone(&self.handler),
            counters: Arc::clone(&self.options.counters),
            options: self.options.clone(),
        };
        self.tasks.spawn(async move { Ended { group, fate: work.run(delivery, permit).await } });
    }

    /// `None` when the task was aborted.
    fn on_ended(&mut self, ended: Option<Ended>) {
        let Some(Ended { group: Some(group), fate }) = ended else { return };
        match fate {
            Fate::Done => self.waiting.done(group),
            Fate::Returned => {
                let returned = self.waiting.returned(&group);
                returned.iter().for_each(|_| self.options.counters.add(Count::Returned));
            }
        }
    }

    /// Gives back what waits, and waits for what is handled.
    async fn end(mut self) {
        self.consumer.stop();
        let waited = self.waiting.drain();
        waited.iter().for_each(|_| self.options.counters.add(Count::Returned));
        drop(waited);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(self.options.stop_within, all).await.is_err() {
            self.consumer.lost.cancel();
            let all = async { while self.tasks.join_next().await.is_some() {} };
            if timeout(LAST_MOMENT, all).await.is_err() {
                self.tasks.shutdown().await;
            }
        }
        self.consumer.close().await;
    }
}

fn tell(delivery: &Delivery, failure: &Failure) {
    let (queue, id, why) = (delivery.queue(), delivery.id, failure.why());
    match failure.wish {
        Wish::Postpone(_) => tracing::debug!(queue, ?id, why, "a handler put a message off"),
        _ => tracing::warn!(queue, ?id, why, "a handler failed"),
    }
}

/// One message at a handler.
struct Work<H> {
    handler: Arc<H>,
    counters: Arc<Counters>,
    options: Options,
}

/// Gives a message back when its handler is dropped half-way.
struct GivenUp(Arc<Delivery>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

impl<H, F> Work<H>
where
    H: Fn(Job) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    /// Has a fate whatever panics, also what is dropped: without one nothing more of the group would begin.
    async fn run(self, delivery: Delivery, permit: OwnedSemaphorePermit) -> Fate {
        let counters = Arc::clone(&self.counters);
        let handled = AssertUnwindSafe(self.handle(delivery, permit)).catch_unwind().await;
        handled.unwrap_or_else(|_| {
            counters.add(Count::Panicked);
            Fate::Returned
        })
    }

    async fn handle(self, delivery: Delivery, permit: OwnedSemaphorePermit) -> Fate {
        let delivery = Arc::new(delivery);
        // What the handler started may hold the job for longer than this task lives.
        let _given_up = GivenUp(Arc::clone(&delivery));
        let result = self.call(&delivery).await;
        let (how, count) = match &result {
            Ok(()) => (Settle::Ack, Count::Acked),
            Err(failure) => {
                tell(&delivery, failure);
                self.settle_of(failure, delivery.receive_count)
            }
        };
        let settling = delivery.settle(how);
        drop(permit);
        match settling.await {
            Ok(()) => {
                self.counters.add(count);
                let comes_again = matches!(count, Count::Retried | Count::Postponed);
                if comes_again { Fate::Returned } else { Fate::Done }
            }
            Err(error) if error.reason == Reason::NoDeadLetterQueue => {
                tracing::warn!(
                    queue = delivery.queue(),
                    "a message was rejected, and is tried again instead: {error}"
                );
                self.counters.add(Count::Retried);
                Fate::Returned
            }
            Err(error) => {
                tracing::warn!(queue = delivery.queue(), id = ?delivery.id, %error, "a message could not be settled");
                self.counters.add(Count::Unsettled);
                Fate::Returned
            }
        }
    }

    async fn call(&self, delivery: &Arc<Delivery>) -> Result<(), Failure> {
        let end = self.options.time_max.map(|time_max| Instant::now() + time_max);
        let job = Job::new(Arc::clone(delivery), end);
        let cancelled = job.cancelled().clone();
        // A handler may panic before it gives a future, and its future when it is dropped because time is over.
        let called = async {
            let called = async { (self.handler)(job).await };
            match self.options.time_max {
                None => Some(called.await),
                Some(time_max) => timeout(time_max, called).await.ok(),
            }
        };
        let (count, why) = match AssertUnwindSafe(called).catch_unwind().await {
            Ok(Some(result)) => return result,
            Ok(None) => (Count::TimedOut, "the handler took too long"),
            Err(_) => (Count::Panicked, "the handler panicked"),
        };
        cancelled.cancel();
        self.counters.add(count);
        Err(Failure::retry(why))
    }

    fn settle_of(&self, failure: &Failure, receive_count: u32) -> (Settle, Count) {
        let by_policy = self.options.retry.delay(receive_count);
        match failure.wish {
            Wish::Retry => (Settle::Release(by_policy), Count::Retried),
            Wish::RetryAfter(delay) => (Settle::Release(delay.min(DELAY_MAX)), Count::Retried),
            Wish::Postpone(delay) => (Settle::Postpone(delay.min(DELAY_MAX)), Count::Postponed),
            Wish::Reject => (Settle::Reject(shortened(failure.why().to_owned()), by_policy), Count::Rejected),
        }
    }
}
