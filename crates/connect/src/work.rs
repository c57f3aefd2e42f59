//! Brings one batch to the endpoint, in as many requests as that takes, and settles its messages.
//!
//! A batch that failed as a whole is asked again in halves, the first half first, until what fails is one message: it alone comes
//! again, or is rejected. A batch that was refused stays whole and waits for the gate: it was not tried.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use leasehold_client::{CancellationToken, Delivery, Message, Reason, RetryPolicy};
use tokio::time::Instant;

use crate::answer::{Failed, Outcome, Rules, Verdict};
use crate::endpoint::Endpoint;
use crate::gate::{Gate, Pass};
use crate::gathering::Piece;
use crate::numbers::Count;
use crate::request::{Source, id_text};
use crate::{Kind, Numbers};

/// The longest delay of a release.
const RELEASE_MAX: Duration = Duration::from_secs(12 * 60 * 60);

impl Piece for Delivery {
    fn group(&self) -> Option<&str> {
        self.ordered_group()
    }

    fn size_bytes(&self) -> usize {
        self.body.len()
    }
}

/// What all batches share.
pub(crate) struct Shared {
    pub(crate) endpoint: Endpoint,
    pub(crate) gate: Arc<Gate>,
    pub(crate) numbers: Arc<Numbers>,
    pub(crate) source: Source,
    pub(crate) rules: Rules,
    pub(crate) retry: RetryPolicy,
    pub(crate) stop: CancellationToken,
}

/// The groups of a batch.
pub(crate) struct Finished {
    pub(crate) done: HashSet<String>,
    /// Of which something comes again.
    pub(crate) returned: HashSet<String>,
}

/// Brings a batch to its end. `pass` is for its first request.
pub(crate) async fn deliver(shared: Arc<Shared>, batch: Vec<Delivery>, pass: Pass) -> Finished {
    let groups = batch.iter().filter_map(Piece::group).map(str::to_owned).collect::<HashSet<_>>();
    let mut work = Work { shared: &shared, returned: HashSet::new() };
    work.run(batch, pass).await;
    let returned = work.returned;
    Finished { done: groups.difference(&returned).cloned().collect(), returned }
}

struct Work<'a> {
    shared: &'a Shared,
    /// Groups of which something comes again: nothing behind it may be handled.
    returned: HashSet<String>,
}

impl Work<'_> {
    async fn run(&mut self, batch: Vec<Delivery>, pass: Pass) {
        // The next is last.
        let mut parts = vec![batch];
        let mut pass = Some(pass);
        while let Some(part) = parts.pop() {
            let part = self.still_wanted(part);
            if part.is_empty() {
                continue;
            }
            let admitted = match pass.take() {
                Some(pass) => Some(pass),
                None => self.admitted().await,
            };
            let Some(admitted) = admitted else {
                parts.push(part);
                return self.give_back(parts.into_iter().flatten());
            };
            // It may have waited at the gate for longer than its leases lasted.
            let mut part = self.still_wanted(part);
            if part.is_empty() {
                continue;
            }
            match self.ask(&part, admitted).await {
                Verdict::Each(outcomes) => self.settle_all(part, outcomes).await,
                Verdict::Refused(_) => parts.push(part),
                Verdict::Failed(failed) if part.len() == 1 => {
                    self.settle_all(part, vec![Outcome::Retry(failed.retry_after)]).await;
                }
                Verdict::Failed(_) => {
                    self.shared.numbers.halved();
                    parts.push(part.split_off(part.len().div_ceil(2)));
                    parts.push(part);
                }
            }
        }
    }

    /// `None` when the connector stops: no more requests are started.
    async fn admitted(&self) -> Option<Pass> {
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => None,
            pass = self.shared.gate.enter() => Some(pass),
        }
    }

    async fn ask(&self, part: &[Delivery], pass: Pass) -> Verdict {
        let messages = part.iter().map(Delivery::message).collect::<Vec<&Message>>();
        let request = self.shared.source.request(self.shared.rules.form, &messages);
        let began = Instant::now();
        let answer = self.shared.endpoint.ask(request).await;
        let ids = messages.iter().map(|message| id_text(message.id)).collect::<Vec<_>>();
        let verdict = match answer {
            Ok(answer) => self.shared.rules.judge(&ids, &answer),
            Err(failed) if failed.kind == Kind::Unreachable => Verdict::Refused(failed),
            Err(failed) => Verdict::Failed(failed),
        };
        self.note(&verdict, pass, began, ids.len());
        verdict
    }

    /// Tells the gate, the counters and the log how a request went.
    fn note(&self, verdict: &Verdict, pass: Pass, began: Instant, messages: usize) {
        let took = began.elapsed();
        let tell = |failed: &Failed| {
            self.shared.numbers.request(took, Some(failed.kind));
            let (kind, why, queue) = (failed.kind.name(), &failed.why, &self.shared.source.queue);
            tracing::warn!(
                queue,
                kind,
                messages,
                took_ms = took.as_millis() as u64,
                "a request failed: {why}"
            );
        };
        match verdict {
            Verdict::Each(outcomes) => {
                self.shared.numbers.request(took, None);
                let is_futile = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Retry(_)));
                if is_futile { pass.failed() } else { pass.succeeded() }
            }
            Verdict::Failed(failed) => {
                tell(failed);
                pass.failed();
            }
            Verdict::Refused(failed) => {
                tell(failed);
                pass.refused(failed.retry_after);
            }
        }
    }

    /// Those that are to be asked about. One whose lease was lost is another's, and one behind a message that comes again has to wait.
    fn still_wanted(&mut self, part: Vec<Delivery>) -> Vec<Delivery> {
        let mut wanted = Vec::new();
        for delivery in part {
            if delivery.lease_left().is_zero() || self.is_behind(&delivery) {
                self.give_back([delivery]);
            } else {
                wanted.push(delivery);
            }
        }
        wanted
    }

    fn is_behind(&self, delivery: &Delivery) -> bool {
        delivery.group().is_some_and(|group| self.returned.contains(group))
    }

    /// Settles each message as the endpoint said, but for those behind one of their group that comes again.
    async fn settle_all(&mut self, part: Vec<Delivery>, outcomes: Vec<Outcome>) {
        let (shared, mut settling) = (self.shared, Vec::new());
        for (delivery, outcome) in part.into_iter().zip(outcomes) {
            if self.is_behind(&delivery) {
                self.give_back([delivery]);
                continue;
            }
            let group = delivery.group().map(str::to_owned);
            if matches!(outcome, Outcome::Retry(_)) {
                self.returned.extend(group.clone());
            }
            settling.push(async move { (group, shared.settle(delivery, outcome).await) });
        }
        for (group, settled) in join_all(settling).await {
            if settled == Settled::ComesAgain {
                self.returned.extend(group);
            }
        }
    }

    /// Without a failure of their own.
    fn give_back(&mut self, deliveries: impl IntoIterator<Item = Delivery>) {
        for delivery in deliveries {
            self.returned.extend(delivery.group().map(str::to_owned));
            self.shared.give_back(delivery);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Done,
    ComesAgain,
}

impl Shared {
    /// Nobody was asked about it, or what was answered does not count.
    pub(crate) fn give_back(&self, delivery: Delivery) {
        drop(delivery.give_back());
        self.numbers.message(Count::Returned);
    }

    async fn settle(&self, delivery: Delivery, outcome: Outcome) -> Settled {
        let (queue, id) = (delivery.queue().to_owned(), id_text(delivery.id));
        let (settling, count) = match outcome {
            Outcome::Done => (delivery.ack(), Count::Acked),
            Outcome::Retry(asked) => {
                let delay = asked.unwrap_or_else(|| self.retry.delay(delivery.receive_count));
                (delivery.release(delay.min(RELEASE_MAX)), Count::Retried)
            }
            Outcome::Reject(why) => {
                let delay = self.retry.delay(delivery.receive_count);
                (delivery.reject_or_release(why, delay), Count::Rejected)
            }
        };
        let (count, settled) = match settling.await {
            Ok(()) if count == Count::Retried => (count, Settled::ComesAgain),
            Ok(()) => (count, Settled::Done),
            Err(error) if error.reason == Reason::NoDeadLetterQueue => {
                tracing::warn!(queue, id, "a message was rejected, and is tried again instead: {error}");
                (Count::Retried, Settled::ComesAgain)
            }
            Err(error) => {
                tracing::warn!(queue, id, "a message could not be settled: {error}");
                (Count::Unsettled, Settled::ComesAgain)
            }
        };
        self.numbers.message(count);
        settled
    }
}
