//! Brings one batch to the endpoint, in as many requests as that takes, and settles its messages.
//!
//! A batch that failed as a whole is asked again in halves, the first half first, until what fails is one message: it alone comes
//! again, or is rejected. A batch that was refused stays whole and waits for the gate: it was not tried. When there is no more time for
//! requests, what has failed in a larger part has failed, and what was not tried goes back.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use leasehold_client::{CancellationToken, Delivery, Message, Reason, RetryPolicy, Settling};
use tokio::time::{Instant, sleep_until};

use crate::answer::{Failed, Outcome, Rules, Verdict};
use crate::endpoint::Endpoint;
use crate::gate::{Gate, Pass};
use crate::gathering::{Piece, followed};
use crate::numbers::Count;
use crate::part::{Ended, Part};
use crate::request::{Source, id_text};
use crate::{Kind, Numbers};

/// The longest delay of a release.
const RELEASE_MAX: Duration = Duration::from_secs(12 * 60 * 60);

/// A message in hand.
pub(crate) struct Held {
    delivery: Delivery,
    taken: Instant,
}

impl Held {
    pub(crate) fn new(delivery: Delivery, taken: Instant) -> Self {
        Self { delivery, taken }
    }
}

impl Piece for Held {
    fn group(&self) -> Option<&str> {
        self.delivery.ordered_group()
    }

    fn size_bytes(&self) -> usize {
        self.delivery.body.len()
    }

    fn since(&self) -> Instant {
        self.taken
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
    /// How long a message may wait for its request to start.
    pub(crate) wait_max: Duration,
    pub(crate) stop: CancellationToken,
}

/// The groups of a batch.
pub(crate) struct Finished {
    pub(crate) done: HashSet<String>,
    /// Of which something comes again.
    pub(crate) returned: HashSet<String>,
}

/// Brings a batch to its end. `pass` is for its first request.
pub(crate) async fn deliver(shared: Arc<Shared>, batch: Vec<Held>, pass: Pass) -> Finished {
    let groups = batch.iter().filter_map(Piece::group).map(str::to_owned).collect::<HashSet<_>>();
    let taken = batch.iter().map(|held| held.taken).min().unwrap_or_else(Instant::now);
    let mut work = Work { shared: &shared, begin_until: taken + shared.wait_max, returned: HashSet::new() };
    work.run(batch, pass).await;
    let returned = work.returned;
    Finished { done: groups.difference(&returned).cloned().collect(), returned }
}

struct Work<'a> {
    shared: &'a Shared,
    /// Later than this, a request might outlast its leases.
    begin_until: Instant,
    /// Groups of which something comes again: nothing behind it may be handled.
    returned: HashSet<String>,
}

impl Work<'_> {
    async fn run(&mut self, batch: Vec<Held>, pass: Pass) {
        // The next is last.
        let mut parts = vec![Part::new(batch)];
        let mut pass = Some(pass);
        while let Some(part) = parts.pop() {
            let part = self.still_wanted(part);
            if part.pieces.is_empty() {
                continue;
            }
            let admitted = match self.admitted(pass.take()).await {
                Ok(pass) => pass,
                Err(ended) => {
                    parts.push(part);
                    return self.leave(parts, ended).await;
                }
            };
            // It may have waited at the gate for longer than its leases lasted.
            let part = self.still_wanted(part);
            if part.pieces.is_empty() {
                continue;
            }
            match self.ask(&part.pieces, admitted).await {
                Verdict::Each(outcomes) => self.settle_all(part.pieces, outcomes).await,
                Verdict::Refused(_) => parts.push(part),
                Verdict::Failed(failed) if part.pieces.len() == 1 => {
                    self.settle_all(part.pieces, vec![Outcome::Retry(failed.retry_after)]).await;
                }
                Verdict::Failed(_) => {
                    self.shared.numbers.halved();
                    let [first, rest] = part.halves();
                    parts.extend([rest, first]);
                }
            }
        }
    }

    /// The right to a request, which may be there already, or why none is started any more.
    async fn admitted(&self, pass: Option<Pass>) -> Result<Pass, Ended> {
        if let Some(pass) = pass {
            // What waited for its batch may have done so for too long.
            return if Instant::now() < self.begin_until { Ok(pass) } else { Err(Ended::Late) };
        }
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => Err(Ended::Stopped),
            () = sleep_until(self.begin_until) => Err(Ended::Late),
            pass = self.shared.gate.enter() => Ok(pass),
        }
    }

    /// Settles what nothing more is asked about, the next part, which is the last, first.
    async fn leave(&mut self, parts: Vec<Part<Held>>, ended: Ended) {
        for part in parts.into_iter().rev() {
            if part.has_failed(ended) {
                let outcomes = vec![Outcome::Retry(None); part.pieces.len()];
                self.settle_all(part.pieces, outcomes).await;
            } else {
                self.give_back(part.pieces);
            }
        }
    }

    async fn ask(&self, part: &[Held], pass: Pass) -> Verdict {
        let messages = part.iter().map(|held| held.delivery.message()).collect::<Vec<&Message>>();
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
                let is_futile = outcomes
                    .iter()
                    .all(|outcome| matches!(outcome, Outcome::Retry(_) | Outcome::Postpone(_)));
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
    fn still_wanted(&mut self, mut part: Part<Held>) -> Part<Held> {
        let mut wanted = Vec::new();
        for held in std::mem::take(&mut part.pieces) {
            if held.delivery.lease_left().is_zero() || self.is_behind(&held) {
                self.give_back([held]);
            } else {
                wanted.push(held);
            }
        }
        part.with(wanted)
    }

    fn is_behind(&self, held: &Held) -> bool {
        held.group().is_some_and(|group| self.returned.contains(group))
    }

    /// Settles each message as the endpoint said, but for those behind one of their group that comes again.
    async fn settle_all(&mut self, part: Vec<Held>, outcomes: Vec<Outcome>) {
        let (shared, mut settling) = (self.shared, Vec::new());
        let followed = followed(&part);
        for ((held, outcome), is_followed) in part.into_iter().zip(outcomes).zip(followed) {
            if self.is_behind(&held) {
                self.give_back([held]);
                continue;
            }
            let is_rejected = matches!(outcome, Outcome::Reject(_));
            if matches!(outcome, Outcome::Retry(_) | Outcome::Postpone(_)) {
                self.returned.extend(held.group().map(str::to_owned));
            }
            let settled = shared.settled(shared.settle(held, outcome));
            // A queue may have nowhere to put it: it comes again then, before those behind it.
            if is_rejected && is_followed {
                self.note_settled(settled.await);
            } else {
                settling.push(settled);
            }
        }
        for settled in join_all(settling).await {
            self.note_settled(settled);
        }
    }

    fn note_settled(&mut self, (group, settled): (Option<String>, Settled)) {
        if settled == Settled::ComesAgain {
            self.returned.extend(group);
        }
    }

    /// Without a failure of their own.
    fn give_back(&mut self, part: impl IntoIterator<Item = Held>) {
        for held in part {
            self.returned.extend(held.group().map(str::to_owned));
            self.shared.give_back(held);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Done,
    ComesAgain,
}

/// A settlement on its way.
struct Sent {
    group: Option<String>,
    queue: String,
    id: String,
    settling: Settling,
    /// What it counts as when it succeeds.
    count: Count,
}

impl Shared {
    /// Nobody was asked about it, or what was answered does not count.
    pub(crate) fn give_back(&self, held: Held) {
        drop(held.delivery.give_back());
        self.numbers.message(Count::Returned);
    }

    /// The request is on its way when this returns.
    fn settle(&self, held: Held, outcome: Outcome) -> Sent {
        let group = held.group().map(str::to_owned);
        let delivery = held.delivery;
        let (queue, id) = (delivery.queue().to_owned(), id_text(delivery.id));
        let (settling, count) = match outcome {
            Outcome::Done => (delivery.ack(), Count::Acked),
            Outcome::Retry(asked) => {
                let delay = asked.unwrap_or_else(|| self.retry.delay(delivery.receive_count));
                (delivery.release(delay.min(RELEASE_MAX)), Count::Retried)
            }
            Outcome::Postpone(delay) => (delivery.postpone(delay.min(RELEASE_MAX)), Count::Postponed),
            Outcome::Reject(why) => {
                let delay = self.retry.delay(delivery.receive_count);
                (delivery.reject_or_release(why, delay), Count::Rejected)
            }
        };
        Sent { group, queue, id, settling, count }
    }

    /// What became of it, and its group.
    async fn settled(&self, sent: Sent) -> (Option<String>, Settled) {
        let Sent { group, queue, id, settling, count } = sent;
        let (count, settled) = match settling.await {
            Ok(()) if matches!(count, Count::Retried | Count::Postponed) => (count, Settled::ComesAgain),
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
        (group, settled)
    }
}
