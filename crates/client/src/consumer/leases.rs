//! Keeps the leases of held messages alive: extends each when half of it is over, until a stated maximum.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use leasehold_proto::v1::Reason;
use tokio::time::Instant;

use super::delivery::LeaseState;
use crate::{Error, Message};

/// The shortest reach of an extension, for messages that arrive with less than that.
const REACH_MIN: Duration = Duration::from_secs(1);
/// Leases that are due within this time are extended together.
const TOGETHER: Duration = Duration::from_millis(20);

/// The leases that deliveries of this consumer hold.
#[derive(Debug)]
pub(super) struct Leases {
    held: HashMap<u64, Held>,
    /// (when to extend, key); every key is in `held`.
    due: BTreeSet<(Instant, u64)>,
    next_key: u64,
    reach: Option<Duration>,
    keep_for: Duration,
}

#[derive(Debug)]
struct Held {
    receipt: Bytes,
    lane: u64,
    state: Arc<LeaseState>,
    reach: Duration,
    keep_until: Instant,
    /// Its entry in `due`.
    extend_at: Option<Instant>,
}

/// A lease to extend.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) key: u64,
    pub(super) reach: Duration,
}

impl Leases {
    /// `reach` is how far extensions go, that of the arriving leases when absent.
    pub(super) fn new(reach: Option<Duration>, keep_for: Duration) -> Self {
        Self { held: HashMap::new(), due: BTreeSet::new(), next_key: 1, reach, keep_for }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Holds the lease of a message that arrived.
    pub(super) fn hold(&mut self, message: &Message, lane: u64) -> (u64, Arc<LeaseState>) {
        let (now, key) = (Instant::now(), self.next_key);
        self.next_key += 1;
        let lasts = message.lease_until.saturating_duration_since(now);
        let state = LeaseState::new(message.lease_until);
        let held = Held {
            receipt: message.receipt.clone(),
            lane,
            state: Arc::clone(&state),
            reach: self.reach.unwrap_or(lasts.max(REACH_MIN)),
            keep_until: now + self.keep_for,
            extend_at: None,
        };
        self.held.insert(key, held);
        self.schedule(key, now + lasts / 2);
        (key, state)
    }

    /// The receipt and lane of a held message.
    pub(super) fn receipt(&self, key: u64) -> Option<(Bytes, u64)> {
        self.held.get(&key).map(|held| (held.receipt.clone(), held.lane))
    }

    pub(super) fn is_lost(&self, key: u64) -> bool {
        self.held.get(&key).is_none_or(|held| held.state.until().is_none())
    }

    /// The message is settled.
    pub(super) fn forget(&mut self, key: u64) {
        if let Some(held) = self.held.remove(&key)
            && let Some(at) = held.extend_at
        {
            self.due.remove(&(at, key));
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The leases to extend now; each comes back with [`Leases::extended`].
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Due> {
        let mut taken = Vec::new();
        if self.next_deadline().is_none_or(|first| first > now) {
            return taken;
        }
        while let Some((at, key)) = self.due.first().copied()
            && at <= now + TOGETHER
        {
            self.due.pop_first();
            let Some(held) = self.held.get_mut(&key) else { continue };
            held.extend_at = None;
            if now < held.keep_until && held.state.until().is_some() {
                taken.push(Due { key, reach: held.reach });
            }
        }
        taken
    }

    /// What became of an extension that was asked for at `asked`.
    pub(super) fn extended(&mut self, key: u64, asked: Instant, reach: Duration, result: &Result<(), Error>) {
        let Some(held) = self.held.get_mut(&key) else { return };
        let now = Instant::now();
        match result {
            Ok(()) => {
                held.state.set_until(asked + reach);
                held.reach = reach;
                self.schedule(key, (asked + reach / 2).max(now + TOGETHER));
            }
            Err(error) if is_lost(error) => held.state.lose(),
            // The lease cannot grow any more; it lasts as long as it did.
            Err(error) if error.reason == Reason::LeaseTooLong => {}
            Err(_) => {
                let again = now + (held.reach / 10).clamp(TOGETHER, REACH_MIN);
                if held.state.until().is_some_and(|until| again < until) {
                    self.schedule(key, again);
                }
            }
        }
    }

    fn schedule(&mut self, key: u64, at: Instant) {
        let Some(held) = self.held.get_mut(&key) else { return };
        if let Some(before) = held.extend_at.replace(at) {
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

    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn held(keep_for: Duration) -> (Leases, u64, Arc<LeaseState>) {
        let mut leases = Leases::new(None, keep_for);
        let message =
            Message::from_wire(v1::Delivery { lease_ms: 30_000, ..Default::default() }, Instant::now());
        let (key, state) = leases.hold(&message, 1);
        (leases, key, state)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_extended_at_half_time_again_and_again() {
        let (mut leases, key, state) = held(LEASE * 10);
        for _ in 0..5 {
            assert!(leases.take_due(Instant::now()).is_empty());
            tokio::time::advance(LEASE / 2).await;
            let now = Instant::now();
            assert_eq!(leases.take_due(now), vec![Due { key, reach: LEASE }]);
            leases.extended(key, now, LEASE, &Ok(()));
            assert_eq!(state.until(), Some(now + LEASE));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_not_extended_beyond_the_maximum_or_when_settled() {
        let (mut leases, _, _) = held(LEASE / 4);
        tokio::time::advance(LEASE).await;
        assert!(leases.take_due(Instant::now()).is_empty());
        let (mut leases, key, _) = held(LEASE);
        leases.forget(key);
        assert_eq!(leases.next_deadline(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_loses_it_and_a_failure_is_tried_again() {
        let (mut leases, key, state) = held(LEASE * 10);
        tokio::time::advance(LEASE / 2).await;
        assert_eq!(leases.take_due(Instant::now()).len(), 1);
        leases.extended(key, Instant::now(), LEASE, &Err(Error::timed_out("")));
        assert!(leases.next_deadline().is_some());
        let stale = Error::not_done(Reason::ReceiptStale, "");
        leases.extended(key, Instant::now(), LEASE, &Err(stale));
        assert_eq!(state.until(), None);
    }
}
