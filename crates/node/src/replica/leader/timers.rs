//! What a leader does because time has passed: ends leases and delays, drops what is too old, and keeps log time moving.

use std::time::Duration;

use leasehold_partition::Command;
use tokio::time::Instant;

use super::{Leadership, Pending};
use crate::limits::{EXPIRE_ITEMS_MAX, MARK_INTERVAL_MS};
use crate::replica::log_clock::wall_ms;

/// How long something may wait that is never urgent: forgetting remembered ids.
const WINDOW_PATIENCE_MS: u64 = 5_000;
/// Pause between two entries that only sweep garbage.
const SWEEP_PAUSE_MS: u64 = 10;

impl Leadership {
    pub(super) fn next_timer(&self) -> Instant {
        let now = Instant::now();
        let far = now + Duration::from_secs(3600);
        let log = |log_ms: u64| self.clock.instant_of(log_ms);
        let due = [
            self.waiters.next_due(),
            self.expiry_due(now),
            self.mark_due(),
            self.deadline
                .window_log_ms
                .filter(|_| !self.is_expiring)
                .map(|end| log(end + WINDOW_PATIENCE_MS)),
        ];
        due.into_iter().flatten().min().unwrap_or(far)
    }

    /// When time must be moved in the log, since a new leader starts from the last stamp: unless a batch waits, which moves it.
    fn mark_due(&self) -> Option<Instant> {
        let is_counting = self.deadline.lease_log_ms.is_some() || self.deadline.delay_log_ms.is_some();
        let is_due = is_counting && self.batch.is_none();
        is_due.then(|| self.stamped_at + Duration::from_millis(MARK_INTERVAL_MS))
    }

    /// When the next expiry entry is worth proposing; one is in flight at a time. What is due by the wall clock is due `now`.
    fn expiry_due(&self, now: Instant) -> Option<Instant> {
        if self.is_expiring {
            return None;
        }
        let lease =
            self.deadline.lease_log_ms.map(|end| self.clock.instant_of(end + self.grace.slack_ms(end)));
        let delay = self.deadline.delay_log_ms.map(|end| self.clock.instant_of(end));
        let wall =
            self.deadline.wall_ms.map(|end| now + Duration::from_millis(end.saturating_sub(wall_ms())));
        let garbage = self.deadline.garbage.then(|| self.stamped_at + Duration::from_millis(SWEEP_PAUSE_MS));
        [lease, delay, wall, garbage].into_iter().flatten().min()
    }

    pub(super) fn on_timer(&mut self) {
        let now = Instant::now();
        self.waiters.end_waits(now);
        self.to_wake.extend(self.waiters.due_looks(now));
        let now_ms = self.clock.now_ms(now);
        let windows_due = self.deadline.window_log_ms.is_some_and(|end| end + WINDOW_PATIENCE_MS <= now_ms);
        let expiry_due =
            self.expiry_due(now).is_some_and(|due| due <= now) || (windows_due && !self.is_expiring);
        if expiry_due {
            let leases_as_of_ms = self.grace.leases_as_of_ms(now_ms);
            self.is_expiring = true;
            self.grace.ended_through(leases_as_of_ms);
            self.add(&Command::Expire { leases_as_of_ms, items_max: EXPIRE_ITEMS_MAX }, Pending::Expire);
        } else if self.mark_due().is_some_and(|due| due <= now) {
            self.add_own(&Command::Mark);
        }
    }
}
