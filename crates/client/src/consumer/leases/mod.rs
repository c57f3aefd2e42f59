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
    /// Those that nobody began to work on for as long as they are kept.
    unwanted: Vec<u64>,
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
    /// Nobody began to work on it, and its receipt went back. It is held on until its delivery is dropped: a consumer that takes nothing
    /// would ask for as many others otherwise, again and again.
    is_given_back: bool,
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
            unwanted: Vec::new(),
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
            is_given_back: false,
        };
        self.held.insert(key, held);
        let at = if self.keep_for.is_zero() { message.lease_until } else { now + lasts / 2 };
        self.look_again(key, at);
        (key, state)
    }

    /// Somebody begins to work on a message; returns the extension that starts its processing lease, if it needs one now.
    pub(super) fn begin(&mut self, key: u64, now: Instant) -> Option<Due> {
        let is_kept = !self.keep_for.is_zero();
        let held = self.held.get_mut(&key).filter(|held| !held.is_given_back)?;
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

    /// Whether it is held for its delivery only.
    pub(super) fn is_given_back(&self, key: u64) -> bool {
        self.held.get(&key).is_some_and(|held| held.is_given_back)
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

    /// Messages whose receipts are to be given back: nobody began to work on them for as long as they are kept.
    pub(super) fn take_unwanted(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.unwanted)
    }

    fn look(&mut self, key: u64, now: Instant) -> Option<Due> {
        let held = self.held.get_mut(&key)?;
        let until = held.state.until()?;
        if until <= now {
            held.state.lose();
            return None;
        }
        if now < held.keep_until && held.extending == 0 {
            return self.start_extension(key);
        }
        if now >= held.keep_until && held.began.is_none() && !self.keep_for.is_zero() {
            held.state.lose();
            held.is_given_back = true;
            self.unwanted.push(key);
            return None;
        }
        self.look_again(key, until);
        None
    }

    /// The holder asks for an extension; it comes back with [`Leases::extended`] as the hub's do. Where it does not, and the lease may
    /// be shorter than it was, it is lost in time.
    pub(super) fn holder_asks(&mut self, key: u64, reach: Duration) {
        let Some(held) = self.held.get_mut(&key) else { return };
        held.is_short |= held.extending > 0;
        held.ask(reach);
        if let Some(until) = held.state.until() {
            let at = held.look_at.map_or(until, |at| at.min(until));
            self.look_again(key, at);
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
            // From now on the lease cannot grow as far: by half of it, it may, once less than that is left. In the end it lasts as long as
            // it does.
            Err(error) if error.reason == Reason::LeaseTooLong => {
                held.reach = reach / 2;
                if held.reach < REACH_MIN {
                    held.keep_until = now;
                }
                until.checked_sub(held.reach / 2).map_or(now, |at| at.max(now))
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
mod tests;
