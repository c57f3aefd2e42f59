//! Requests on streams, from their first attempt until each of their items has a final result.
//!
//! ```text
//!              send                answer: done or refused
//!   Waiting ──────────▶ Sent ─────────────────────────────▶ finished
//!      ▲                  │ passing refusal, loss of the stream
//!      └──────────────────┘ the same request id and content again, until the deadline
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use leasehold_proto::v1::{Outcome, Reason};
use tokio::time::Instant;

use crate::backoff::{Backoff, RetryBudget};
use crate::call::ATTEMPT_TIME_MAX;
use crate::client::{Settings, miscounted};
use crate::session::Request;
use crate::{Error, ItemResults};

/// Requests by their tag. `W` is what is sent, `I` an item that waits for its result.
#[derive(Debug)]
pub(crate) struct Unanswered<W, I> {
    entries: BTreeMap<u64, Entry<W, I>>,
}

#[derive(Debug)]
struct Entry<W, I> {
    wire: W,
    request: Request,
    items: Vec<Option<Item<I>>>,
    state: State,
    backoff: Backoff,
    last_error: Option<Error>,
    deadline: Instant,
}

#[derive(Debug)]
struct Item<I> {
    item: I,
    /// An earlier attempt may have done it.
    was_unknown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { until: Instant },
    Sent { stream: u64, at: Instant },
}

/// Items and what became of them.
pub(crate) type Finished<I, T> = Vec<(I, Result<T, Error>)>;

impl<W, I> Unanswered<W, I> {
    pub(crate) fn new() -> Self {
        Self { entries: BTreeMap::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many of them are such requests.
    pub(crate) fn count(&self, is_such: impl Fn(&W) -> bool) -> usize {
        self.entries.values().filter(|entry| is_such(&entry.wire)).count()
    }

    /// The oldest tag.
    pub(crate) fn first_tag(&self) -> Option<u64> {
        self.entries.first_key_value().map(|(tag, _)| *tag)
    }

    /// Adds a request to be sent at once. `wire` carries the request's id.
    pub(crate) fn add(&mut self, tag: u64, request: Request, wire: W, items: Vec<I>, time_max: Duration) {
        let now = Instant::now();
        let entry = Entry {
            wire,
            request,
            items: items.into_iter().map(|item| Some(Item { item, was_unknown: false })).collect(),
            state: State::Waiting { until: now },
            backoff: Backoff::default(),
            last_error: None,
            deadline: now + time_max,
        };
        let before = self.entries.insert(tag, entry);
        assert!(before.is_none(), "tags are used once");
    }

    /// Whether a request waits to be sent now.
    pub(crate) fn has_due(&self, now: Instant) -> bool {
        self.entries.values().any(|entry| entry.is_due(now))
    }

    /// What is to be sent now, in the order of tags. The caller sends each on the stream that `choose` names.
    pub(crate) fn send_due(
        &mut self,
        now: Instant,
        choose: impl Fn(&W) -> u64,
    ) -> impl Iterator<Item = (u64, u64, &W)> {
        self.entries.iter_mut().filter(move |(_, entry)| entry.is_due(now)).map(move |(tag, entry)| {
            let stream = choose(&entry.wire);
            entry.state = State::Sent { stream, at: now };
            (*tag, stream, &entry.wire)
        })
    }

    /// Whether a request on that stream has waited so long that the stream must be dead.
    pub(crate) fn is_stuck(&self, stream: u64, now: Instant) -> bool {
        self.entries.values().any(|entry| {
            matches!(entry.state, State::Sent { stream: on, at } if on == stream && at + ATTEMPT_TIME_MAX <= now)
        })
    }

    /// When to look again, unless something happens before.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let of_entry = |entry: &Entry<W, I>| match entry.state {
            State::Waiting { until } => until.min(entry.deadline),
            State::Sent { at, .. } => (at + ATTEMPT_TIME_MAX).min(entry.deadline),
        };
        self.entries.values().map(of_entry).min()
    }

    /// Takes an answer. Items with a passing refusal wait for another attempt of the whole request.
    pub(crate) fn answer<T>(
        &mut self,
        tag: u64,
        answer: Result<ItemResults<T>, Error>,
        settings: &Settings,
    ) -> Finished<I, T> {
        let Some(entry) = self.entries.get_mut(&tag) else { return Vec::new() };
        let asked = entry.items.len();
        let results = match answer {
            Ok(results) if results.len() == asked => results,
            Ok(results) => refused(miscounted(results.len(), asked), asked),
            Err(error) => refused(error, asked),
        };
        let finished = entry.take(results, &settings.budget);
        if entry.items.iter().all(Option::is_none) {
            self.entries.remove(&tag);
        }
        finished
    }

    /// A stream ended: what was sent on it is sent again, or ends with the error if that is final.
    pub(crate) fn lose<T>(&mut self, stream: u64, error: &Error, settings: &Settings) -> Finished<I, T> {
        let on_stream =
            |entry: &Entry<W, I>| matches!(entry.state, State::Sent { stream: on, .. } if on == stream);
        let lost: Vec<u64> =
            self.entries.iter().filter(|(_, entry)| on_stream(entry)).map(|(tag, _)| *tag).collect();
        let mut finished = Vec::new();
        for tag in lost {
            finished.extend(self.answer(tag, Err(error.clone()), settings));
        }
        finished
    }

    /// Ends the requests whose time is over.
    pub(crate) fn expire<T>(&mut self, now: Instant) -> Finished<I, T> {
        let is_over = |entry: &Entry<W, I>| entry.deadline <= now;
        let over: Vec<u64> =
            self.entries.iter().filter(|(_, entry)| is_over(entry)).map(|(tag, _)| *tag).collect();
        let entries = over.into_iter().filter_map(|tag| self.entries.remove(&tag));
        entries.flat_map(Entry::end).collect()
    }
}

impl<W, I> Entry<W, I> {
    fn is_due(&self, now: Instant) -> bool {
        matches!(self.state, State::Waiting { until } if until <= now)
    }

    fn take<T>(&mut self, results: ItemResults<T>, budget: &RetryBudget) -> Finished<I, T> {
        let mut finished = Vec::new();
        let mut again = None;
        for (slot, result) in self.items.iter_mut().zip(results) {
            let Some(mut item) = slot.take() else { continue };
            match result {
                Err(error) if error.is_transient() => {
                    item.was_unknown |= error.outcome == Outcome::Unknown;
                    again = Some(error);
                    *slot = Some(item);
                }
                result => finished.push((item.item, result.map_err(|error| error.after(item.was_unknown)))),
            }
        }
        if let Some(error) = again {
            let pause = self.backoff.next(error.retry_after, budget);
            self.state = State::Waiting { until: Instant::now() + pause };
            self.last_error = Some(error);
        }
        finished
    }

    fn end<T>(self) -> Finished<I, T> {
        let is_sent = matches!(self.state, State::Sent { .. });
        let id = self.request.id();
        let error = match self.last_error {
            Some(error) => error,
            None if is_sent => Error::timed_out(format!("request {}: no answer came in time", id.sequence)),
            None => Error::transport(Outcome::NotDone, Reason::TimedOut, "no node was reached"),
        };
        let ended = |item: Item<I>| {
            let error = Error { outcome: Outcome::NotDone, ..error.clone() };
            (item.item, Err(error.after(item.was_unknown || is_sent)))
        };
        self.items.into_iter().flatten().map(ended).collect()
    }
}

fn refused<T>(error: Error, asked: usize) -> ItemResults<T> {
    std::iter::repeat_with(|| Err(error.clone())).take(asked).collect()
}

#[cfg(test)]
mod tests {
    use leasehold_proto::v1::RequestId;

    use super::*;
    use crate::session::Sessions;

    fn settings() -> Settings {
        Settings { call_timeout: Duration::from_secs(10), budget: RetryBudget::new(100) }
    }

    fn one_request(items: Vec<u32>) -> Unanswered<RequestId, u32> {
        let mut unanswered = Unanswered::new();
        let request = Sessions::new(8, 8).try_begin().unwrap();
        let id = request.id();
        unanswered.add(1, request, id, items, Duration::from_secs(10));
        unanswered
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test]
    async fn a_lost_stream_repeats_the_same_request() {
        let mut unanswered = one_request(vec![7]);
        let first: Vec<_> =
            unanswered.send_due(Instant::now(), |_| 1).map(|(tag, _, id)| (tag, *id)).collect();
        let lost = Error::transport(Outcome::Unknown, Reason::None, "reset");
        assert!(unanswered.lose::<()>(1, &lost, &settings()).is_empty());
        let second: Vec<_> = unanswered.send_due(later(), |_| 2).map(|(tag, _, id)| (tag, *id)).collect();
        assert_eq!(first, second);
        assert_eq!(unanswered.answer(1, Ok(vec![Ok(())]), &settings()), vec![(7, Ok(()))]);
        assert!(unanswered.is_empty());
    }

    #[tokio::test]
    async fn items_end_one_by_one() {
        let mut unanswered = one_request(vec![1, 2, 3]);
        assert_eq!(unanswered.send_due(Instant::now(), |_| 1).count(), 1);
        let full = Error::not_done(Reason::QueueFull, "");
        let busy = Error::not_done(Reason::Busy, "");
        let answer = Ok(vec![Ok(()), Err(full.clone()), Err(busy)]);
        assert_eq!(unanswered.answer(1, answer, &settings()), vec![(1, Ok(())), (2, Err(full.clone()))]);
        assert!(unanswered.has_due(later()));
        let answer = Ok(vec![Ok(()), Err(full), Ok(())]);
        assert_eq!(unanswered.answer(1, answer, &settings()), vec![(3, Ok(()))]);
    }

    #[tokio::test]
    async fn a_refusal_after_an_unknown_attempt_is_unknown() {
        let mut unanswered = one_request(vec![1]);
        assert_eq!(unanswered.send_due(Instant::now(), |_| 1).count(), 1);
        let lost = Error::transport(Outcome::Unknown, Reason::None, "reset");
        assert!(unanswered.lose::<()>(1, &lost, &settings()).is_empty());
        let full = Error::not_done(Reason::QueueFull, "");
        let finished = unanswered.answer::<()>(1, Ok(vec![Err(full)]), &settings());
        let error = finished[0].1.clone().unwrap_err();
        assert_eq!((error.outcome, error.reason), (Outcome::Unknown, Reason::QueueFull));
    }

    #[tokio::test]
    async fn time_over_says_whether_anything_can_have_happened() {
        let end = Instant::now() + Duration::from_secs(60);
        let mut never_sent = one_request(vec![1]);
        let error = never_sent.expire::<()>(end).remove(0).1.unwrap_err();
        assert_eq!(error.outcome, Outcome::NotDone);
        let mut sent = one_request(vec![1]);
        assert_eq!(sent.send_due(Instant::now(), |_| 1).count(), 1);
        let error = sent.expire::<()>(end).remove(0).1.unwrap_err();
        assert_eq!(error.outcome, Outcome::Unknown);
    }
}
