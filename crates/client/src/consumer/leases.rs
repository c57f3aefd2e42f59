//! Keeps the leases of held messages alive, until a stated maximum.
//!
//! A message that waits for a handler has a short lease, extended at half time: when this process dies, the others have it
//! within seconds. Its processing lease starts when somebody begins to work on it:
//!
//! ```text
//!   arrives        half time         begins              half time
//!   ├── waiting ──┬── waiting ── … ──┬── processing ────┬── processing ── …
//!   short lease   short again        the queue's lease  again
//! ```
//!
//! Where handling is known to be over long before half of what is left (by its measured p99), the beginning costs no extension.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use leasehold_proto::v1::{Outcome, Reason};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::delivery::LeaseState;
use super::groups::GroupGrant;
use super::timings::Timings;
use crate::{Error, Message};

/// How long the lease of a message that waits reaches at most: how soon the others have it when this process dies.
pub(crate) const WAITING_LEASE_MAX: Duration = Duration::from_secs(5);
/// The shortest reach of an extension, for messages that arrive with less than that.
const REACH_MIN: Duration = Duration::from_secs(1);
/// Leases that are due within this time are extended together.
const TOGETHER: Duration = Duration::from_millis(20);
/// How many times the p99 has to fit into half of what is left of a lease, for its extension to wait.
const MARGIN: u32 = 2;

/// The leases that deliveries of this consumer hold.
#[derive(Debug)]
pub(super) struct Leases {
    held: HashMap<u64, Held>,
    /// (when to look at it again, key); every key is in `held`.
    due: BTreeSet<(Instant, u64)>,
    next_key: u64,
    reaches: Reaches,
    keep_for: Duration,
    timings: Timings,
    /// The parent of the tokens that fire when a lease is lost.
    lost: CancellationToken,
}

/// How far extensions reach; as far as the lease with which a message arrived where unknown.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reaches {
    pub(super) waiting: Option<Duration>,
    pub(super) processing: Option<Duration>,
}

#[derive(Debug)]
struct Held {
    receipt: Bytes,
    lane: u64,
    state: Arc<LeaseState>,
    /// When somebody began to work on it.
    began: Option<Instant>,
    reach: Duration,
    keep_until: Instant,
    /// Its entry in `due`; none when the lease is lost.
    look_at: Option<Instant>,
    /// Extensions under way. The hub asks for one at a time, and for none beside the holder's: of two that overtook each other, the
    /// shorter might be the last.
    extending: u32,
    /// It began, or its holder asked, while another extension was under way: it needs one more when all are answered.
    is_short: bool,
}

/// Who asked for an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AskedBy {
    Hub,
    /// Whoever works on the message.
    Holder,
}

/// An extension that was asked for at `at`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extension {
    pub(super) by: AskedBy,
    pub(super) at: Instant,
    pub(super) reach: Duration,
}

/// A lease to extend.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) key: u64,
    pub(super) reach: Duration,
}

impl Held {
    /// An extension that shortens the lease counts from when it is asked for, since its answer may be lost. Until the next one, a
    /// lease whose extension was refused is believed to be as short.
    fn ask(&mut self, reach: Duration) {
        self.extending += 1;
        if let Some(until) = self.state.until() {
            self.state.set_until(until.min(Instant::now() + reach));
        }
    }
}

impl Leases {
    pub(super) fn new(keep_for: Duration, lost: CancellationToken) -> Self {
        Self {
            held: HashMap::new(),
            due: BTreeSet::new(),
            next_key: 1,
            reaches: Reaches::default(),
            keep_for,
            timings: Timings::new(),
            lost,
        }
    }

    /// For messages that arrive, or begin, from now on, and for those that began before the lease of the queue was known.
    pub(super) fn set_reaches(&mut self, reaches: Reaches) {
        if let (None, Some(processing)) = (self.reaches.processing, reaches.processing) {
            for held in self.held.values_mut().filter(|held| held.began.is_some()) {
                held.reach = held.reach.max(processing);
            }
        }
        self.reaches = reaches;
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Holds the lease of a message that arrived.
    pub(super) fn hold(
        &mut self,
        message: &Message,
        lane: u64,
        group_grant: Option<Arc<GroupGrant>>,
    ) -> (u64, Arc<LeaseState>) {
        let (now, key) = (Instant::now(), self.next_key);
        self.next_key += 1;
        let lasts = message.lease_until.saturating_duration_since(now);
        let state = LeaseState::new(message.lease_until, self.lost.child_token(), group_grant);
        let held = Held {
            receipt: message.receipt.clone(),
            lane,
            state: Arc::clone(&state),
            began: None,
            reach: self.reaches.waiting.unwrap_or(lasts.max(REACH_MIN)),
            keep_until: now + self.keep_for,
            look_at: None,
            extending: 0,
            is_short: false,
        };
        self.held.insert(key, held);
        let at = if self.keep_for.is_zero() { message.lease_until } else { now + lasts / 2 };
        self.look_again(key, at);
        (key, state)
    }

    /// Somebody begins to work on a message; returns the extension that starts its processing lease, if it needs one now.
    pub(super) fn begin(&mut self, key: u64, now: Instant) -> Option<Due> {
        let is_kept = !self.keep_for.is_zero();
        let held = self.held.get_mut(&key)?;
        held.began = Some(now);
        held.keep_until = now + self.keep_for;
        held.reach = self.reaches.processing.unwrap_or(held.reach);
        let until = held.state.until().filter(|_| is_kept)?;
        let half = until.saturating_duration_since(now) / 2;
        let is_short_work = self.timings.p99().is_some_and(|p99| p99 * MARGIN <= half);
        if held.extending > 0 {
            held.is_short |= !is_short_work;
            return None;
        }
        if is_short_work {
            self.look_again(key, now + half);
            return None;
        }
        self.start_extension(key)
    }

    fn start_extension(&mut self, key: u64) -> Option<Due> {
        let held = self.held.get_mut(&key)?;
        let reach = held.reach;
        held.ask(reach);
        let until = held.state.until()?;
        self.look_again(key, until);
        Some(Due { key, reach })
    }

    /// The receipt and lane of a held message, and what it came with of its group.
    pub(super) fn receipt(&self, key: u64) -> Option<(Bytes, u64, Option<Arc<GroupGrant>>)> {
        self.held.get(&key).map(|held| (held.receipt.clone(), held.lane, held.state.group_grant.clone()))
    }

    /// The message is settled.
    pub(super) fn forget(&mut self, key: u64) {
        let Some(held) = self.held.remove(&key) else { return };
        if let Some(at) = held.look_at {
            self.due.remove(&(at, key));
        }
        if let Some(began) = held.began {
            self.timings.record(began.elapsed());
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The leases to extend now; each comes back with [`Leases::extended`]. Those that are over are lost.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Due> {
        if self.next_deadline().is_none_or(|first| first > now) {
            return Vec::new();
        }
        let mut taken = Vec::new();
        while let Some((at, key)) = self.due.first().copied()
            && at <= now + TOGETHER
        {
            self.due.pop_first();
            if let Some(held) = self.held.get_mut(&key) {
                held.look_at = None;
                taken.push(key);
            }
        }
        taken.into_iter().filter_map(|key| self.look(key, now)).collect()
    }

    fn look(&mut self, key: u64, now: Instant) -> Option<Due> {
        let held = self.held.get(&key)?;
        let until = held.state.until()?;
        if until <= now {
            held.state.lose();
            return None;
        }
        if now < held.keep_until && held.extending == 0 {
            return self.start_extension(key);
        }
        self.look_again(key, until);
        None
    }

    /// The holder asks for an extension; it comes back with [`Leases::extended`] as the hub's do.
    pub(super) fn holder_asks(&mut self, key: u64, reach: Duration) {
        if let Some(held) = self.held.get_mut(&key) {
            held.is_short |= held.extending > 0;
            held.ask(reach);
        }
    }

    /// What became of an extension. The holder's reach is that of later ones too, unless it was refused.
    pub(super) fn extended(&mut self, key: u64, asked: Extension, result: &Result<(), Error>) {
        let Extension { by, at, reach } = asked;
        let Some(held) = self.held.get_mut(&key) else { return };
        held.extending = held.extending.saturating_sub(1);
        let is_last = held.extending == 0;
        let (now, was_short) = (Instant::now(), is_last && std::mem::take(&mut held.is_short));
        let Some(until) = held.state.until() else { return };
        let half_of_the_rest = now + until.saturating_duration_since(now) / 2;
        let next = match result {
            Ok(()) => {
                held.state.set_until(at + reach);
                if by == AskedBy::Holder {
                    held.reach = reach;
                }
                if was_short { now } else { (at + reach / 2).max(now + TOGETHER) }
            }
            Err(error) if is_lost(error) => return held.state.lose(),
            // It may be shorter than it was, if the answer was lost.
            Err(error) if by == AskedBy::Holder && error.outcome == Outcome::Unknown => now,
            // It stays as it was.
            Err(_) if by == AskedBy::Holder => half_of_the_rest,
            // The lease cannot grow any more; it lasts as long as it did.
            Err(error) if error.reason == Reason::LeaseTooLong => {
                held.keep_until = now;
                until
            }
            Err(_) => (now + (held.reach / 10).clamp(TOGETHER, REACH_MIN)).min(until),
        };
        self.look_again(key, next);
    }

    fn look_again(&mut self, key: u64, at: Instant) {
        let Some(held) = self.held.get_mut(&key) else { return };
        if let Some(before) = held.look_at.replace(at) {
            self.due.remove(&(before, key));
        }
        self.due.insert((at, key));
    }
}

fn is_lost(error: &Error) -> bool {
    matches!(error.reason, Reason::ReceiptStale | Reason::MessageGone | Reason::ReceiptForged)
}

#[cfg(test)]
mod tests {
    use leasehold_proto::v1;
    use tokio::time::advance;

    use super::*;

    const LEASE: Duration = Duration::from_secs(30);
    const WAITING: Duration = Duration::from_secs(5);

    fn held(keep_for: Duration) -> (Leases, u64, Arc<LeaseState>) {
        let mut leases = Leases::new(keep_for, CancellationToken::new());
        leases.set_reaches(Reaches { waiting: Some(WAITING), processing: Some(LEASE) });
        let (key, state) = hold(&mut leases);
        (leases, key, state)
    }

    fn by_hub(at: Instant, reach: Duration) -> Extension {
        Extension { by: AskedBy::Hub, at, reach }
    }

    fn by_holder(at: Instant, reach: Duration) -> Extension {
        Extension { by: AskedBy::Holder, at, reach }
    }

    fn hold(leases: &mut Leases) -> (u64, Arc<LeaseState>) {
        let wire = v1::Delivery { lease_ms: 5_000, ..Default::default() };
        leases.hold(&Message::from_wire(wire, Instant::now()), 1, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_lease_is_short_and_extended_at_half_time_again_and_again() {
        let (mut leases, key, state) = held(LEASE * 10);
        for _ in 0..5 {
            assert!(leases.take_due(Instant::now()).is_empty());
            advance(WAITING / 2).await;
            let now = Instant::now();
            assert_eq!(leases.take_due(now), vec![Due { key, reach: WAITING }]);
            leases.extended(key, by_hub(now, WAITING), &Ok(()));
            assert_eq!(state.until(), Some(now + WAITING));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_processing_lease_starts_with_the_work() {
        let (mut leases, key, state) = held(LEASE * 10);
        advance(WAITING / 4).await;
        let now = Instant::now();
        assert_eq!(leases.begin(key, now), Some(Due { key, reach: LEASE }));
        leases.extended(key, by_hub(now, LEASE), &Ok(()));
        assert_eq!(state.until(), Some(now + LEASE));
        advance(LEASE / 2).await;
        assert_eq!(leases.take_due(Instant::now()), vec![Due { key, reach: LEASE }]);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_begins_during_an_extension_is_extended_after_it() {
        let (mut leases, key, state) = held(LEASE * 10);
        advance(WAITING / 2).await;
        let asked = Instant::now();
        assert_eq!(leases.take_due(asked).len(), 1);
        assert_eq!(leases.begin(key, asked), None);
        leases.extended(key, by_hub(asked, WAITING), &Ok(()));
        assert_eq!(leases.take_due(asked), vec![Due { key, reach: LEASE }]);
        leases.extended(key, by_hub(asked, LEASE), &Ok(()));
        assert_eq!(state.until(), Some(asked + LEASE));
    }

    #[tokio::test(start_paused = true)]
    async fn short_work_needs_no_extension() {
        let (mut leases, key, _) = held(LEASE * 10);
        leases.forget(key);
        for _ in 0..100 {
            let (key, _) = hold(&mut leases);
            leases.begin(key, Instant::now());
            advance(Duration::from_millis(100)).await;
            leases.forget(key);
        }
        let (key, _) = hold(&mut leases);
        assert_eq!(leases.begin(key, Instant::now()), None);
        // This one takes long after all.
        advance(WAITING / 2).await;
        assert_eq!(leases.take_due(Instant::now()), vec![Due { key, reach: LEASE }]);
        // Too little is left of a lease that has waited.
        let (key, _) = hold(&mut leases);
        advance(WAITING - Duration::from_millis(300)).await;
        assert_eq!(leases.begin(key, Instant::now()), Some(Due { key, reach: LEASE }));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_not_extended_beyond_the_maximum_and_lost_when_it_ends() {
        let (mut leases, _, state) = held(WAITING / 4);
        advance(WAITING / 2).await;
        assert!(leases.take_due(Instant::now()).is_empty());
        assert!(state.until().is_some());
        advance(WAITING / 2).await;
        assert!(leases.take_due(Instant::now()).is_empty());
        assert!(state.until().is_none());
        let (mut leases, key, _) = held(LEASE);
        leases.forget(key);
        assert_eq!(leases.next_deadline(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_extension_without_an_answer_ends_with_the_lease() {
        let (mut leases, key, state) = held(LEASE * 10);
        advance(WAITING / 2).await;
        assert_eq!(leases.take_due(Instant::now()).len(), 1);
        advance(WAITING / 2).await;
        assert!(leases.take_due(Instant::now()).is_empty());
        assert!(state.until().is_none());
        leases.extended(key, by_hub(Instant::now(), WAITING), &Ok(()));
        assert!(state.until().is_none(), "what was said to be lost stays lost");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_loses_it_and_a_failure_is_tried_again() {
        let (mut leases, key, state) = held(LEASE * 10);
        advance(WAITING / 2).await;
        assert_eq!(leases.take_due(Instant::now()).len(), 1);
        leases.extended(key, by_hub(Instant::now(), WAITING), &Err(Error::timed_out("")));
        assert!(leases.next_deadline().is_some_and(|next| next < state.until().unwrap()));
        let stale = Error::not_done(Reason::ReceiptStale, "");
        leases.extended(key, by_hub(Instant::now(), WAITING), &Err(stale));
        assert_eq!(state.until(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_holder_asks_for_is_the_reach_from_then_on_unless_it_is_refused() {
        let (mut leases, key, state) = held(LEASE * 10);
        let began = Instant::now();
        assert!(leases.begin(key, began).is_some());
        leases.extended(key, by_hub(began, LEASE), &Ok(()));
        advance(LEASE / 4).await;
        leases.holder_asks(key, LEASE * 1_440);
        let too_long = Error::not_done(Reason::LeaseTooLong, "");
        leases.extended(key, by_holder(Instant::now(), LEASE * 1_440), &Err(too_long));
        assert_eq!(state.until(), Some(began + LEASE), "it stays as it was");
        advance(LEASE / 2).await;
        assert_eq!(leases.take_due(Instant::now()), vec![Due { key, reach: LEASE }], "and is extended on");
        leases.extended(key, by_hub(Instant::now(), LEASE), &Ok(()));
        leases.holder_asks(key, LEASE * 2);
        leases.extended(key, by_holder(Instant::now(), LEASE * 2), &Ok(()));
        advance(LEASE).await;
        assert_eq!(leases.take_due(Instant::now()), vec![Due { key, reach: LEASE * 2 }]);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_began_before_the_lease_of_the_queue_was_known_gets_it() {
        let mut leases = Leases::new(LEASE * 10, CancellationToken::new());
        leases.set_reaches(Reaches { waiting: Some(WAITING), processing: None });
        let (key, _) = hold(&mut leases);
        assert_eq!(leases.begin(key, Instant::now()), Some(Due { key, reach: WAITING }));
        leases.extended(key, by_hub(Instant::now(), WAITING), &Ok(()));
        leases.set_reaches(Reaches { waiting: Some(WAITING), processing: Some(LEASE) });
        advance(WAITING / 2).await;
        assert_eq!(leases.take_due(Instant::now()), vec![Due { key, reach: LEASE }]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_become_shorter_is_believed_to_be() {
        let (mut leases, key, state) = held(LEASE * 10);
        let began = Instant::now();
        assert!(leases.begin(key, began).is_some());
        leases.extended(key, by_hub(began, LEASE), &Ok(()));
        leases.holder_asks(key, WAITING);
        assert_eq!(state.until(), Some(began + WAITING), "before the answer");
        leases.extended(key, by_holder(began, WAITING), &Err(Error::timed_out("")));
        assert_eq!(state.until(), Some(began + WAITING), "without one");
        assert_eq!(leases.take_due(began), vec![Due { key, reach: LEASE }]);
        leases.extended(key, by_hub(began, LEASE), &Ok(()));
        assert_eq!(state.until(), Some(began + LEASE));
    }

    /// Either may be the last that the node did.
    #[tokio::test(start_paused = true)]
    async fn after_two_extensions_at_once_comes_another() {
        let (mut leases, key, _) = held(LEASE * 10);
        leases.begin(key, Instant::now());
        leases.holder_asks(key, LEASE * 2);
        let asked = Instant::now();
        leases.extended(key, by_hub(asked, LEASE), &Ok(()));
        assert!(leases.take_due(asked).is_empty(), "none goes beside the holder's");
        leases.extended(key, by_holder(asked, LEASE * 2), &Ok(()));
        assert_eq!(leases.take_due(asked), vec![Due { key, reach: LEASE * 2 }]);
        leases.extended(key, by_hub(asked, LEASE * 2), &Ok(()));
        assert!(leases.take_due(asked).is_empty());
    }
}
