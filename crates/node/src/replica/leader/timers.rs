//! What a leader does because time has passed: ends leases and delays, drops what is too old, and keeps log time moving.

use std::time::Duration;

use leasehold_partition::limits::{STAMP_STEP_MS_MAX, WALL_CATCH_UP_MAX, WALL_STEP_MS_MAX};
use leasehold_partition::{Command, Deadline};
use tokio::time::Instant;

use super::{Leadership, Pending};
use crate::limits::{EXPIRE_ITEMS_MAX, MARK_INTERVAL_MS};
use crate::replica::log_clock::wall_ms;

/// How long something may wait that is never urgent: forgetting remembered ids.
const WINDOW_PATIENCE_MS: u64 = 5_000;
/// Pause between two marks while only remembered ids count. A longer silence is a step that log time does not take whole, and ids
/// would be remembered for longer than they shall.
const WINDOW_MARK_INTERVAL_MS: u64 = 9 * 60 * 1000;
const _: () = assert!(WINDOW_MARK_INTERVAL_MS < STAMP_STEP_MS_MAX);
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
        let interval = mark_interval(&self.deadline).filter(|_| self.batch.is_none());
        interval.map(|interval| self.stamped_at + interval)
    }

    /// When the next expiry entry is worth proposing; one is in flight at a time.
    fn expiry_due(&self, now: Instant) -> Option<Instant> {
        if self.is_expiring {
            return None;
        }
        let lease = self.deadline.lease_log_ms.map(|end| self.clock.instant_of(self.grace.due_ms(end)));
        let delay = self.deadline.delay_log_ms.map(|end| self.clock.instant_of(end));
        let wall = self.deadline.wall_ms.map(|end| self.wall_due(end, now));
        let garbage = self.deadline.garbage.then(|| self.stamped_at + Duration::from_millis(SWEEP_PAUSE_MS));
        [lease, delay, wall, garbage].into_iter().flatten().min()
    }

    /// When an entry may find what ends at `end_ms` of the wall clock. The partition's own wall time may be behind the clock.
    fn wall_due(&self, end_ms: u64, now: Instant) -> Instant {
        let left_ms = end_ms.saturating_sub(wall_ms());
        if left_ms > 0 {
            return now + Duration::from_millis(left_ms);
        }
        let reached_ms = self.shared.machine.read().wall_time_ms();
        self.stamped_at + catching_up(end_ms.saturating_sub(reached_ms))
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

/// How long log time may rest after a stamp.
fn mark_interval(deadline: &Deadline) -> Option<Duration> {
    let is_counting = deadline.lease_log_ms.is_some() || deadline.delay_log_ms.is_some();
    let window_ms = deadline.window_log_ms.map(|_| WINDOW_MARK_INTERVAL_MS);
    let interval_ms = if is_counting { Some(MARK_INTERVAL_MS) } else { window_ms };
    interval_ms.map(Duration::from_millis)
}

/// The pause after a stamp with which one entry moves the wall time of a partition that is so far behind as far as it may: entries
/// that come sooner do nothing.
fn catching_up(behind_ms: u64) -> Duration {
    let pause_ms_max = WALL_STEP_MS_MAX / WALL_CATCH_UP_MAX;
    Duration::from_millis(behind_ms.div_ceil(WALL_CATCH_UP_MAX).min(pause_ms_max))
}

#[cfg(test)]
mod tests {
    use leasehold_partition::{BatchBuilder, Content, History, NewMessage, Partition, QueueId, Settings};

    use super::*;
    use crate::replica::log_clock::LogClock;

    const QUEUE: QueueId = QueueId(1);

    fn apply(state: &mut Partition, now_ms: u64, wall_ms: u64, command: &Command<'_>) {
        let mut batch = BatchBuilder::new(now_ms, wall_ms);
        batch.push(command).unwrap();
        let index = state.applied_index() + 1;
        state.apply(index, &batch.finish(), History::Skip).unwrap();
    }

    #[test]
    fn log_time_keeps_moving_while_anything_counts() {
        let nothing = Deadline { wall_ms: Some(1), ..Deadline::default() };
        assert_eq!(mark_interval(&nothing), None);
        let window = Deadline { window_log_ms: Some(1), ..nothing };
        assert_eq!(mark_interval(&window), Some(Duration::from_millis(WINDOW_MARK_INTERVAL_MS)));
        let lease = Deadline { lease_log_ms: Some(1), ..window };
        assert_eq!(mark_interval(&lease), Some(Duration::from_millis(MARK_INTERVAL_MS)));
        let delay = Deadline { delay_log_ms: Some(1), ..window };
        assert_eq!(mark_interval(&delay), Some(Duration::from_millis(MARK_INTERVAL_MS)));
    }

    /// A day in which nothing happens is a day of log time.
    #[test]
    fn a_remembered_id_is_as_old_as_it_is_although_nothing_happens() {
        let window = Deadline { window_log_ms: Some(1), ..Deadline::default() };
        let pause = mark_interval(&window).unwrap();
        let (mut now, mut passed) = (Instant::now(), Duration::ZERO);
        let mut clock = LogClock::start(0, now);
        while passed < Duration::from_secs(24 * 60 * 60) {
            (now, passed) = (now + pause, passed + pause);
            assert_eq!(u128::from(clock.stamp(now)), passed.as_millis());
        }
    }

    /// Nothing happens for four days; then a message's retention ends, and few entries find that out.
    #[test]
    fn the_end_of_a_retention_after_a_quiet_time_takes_an_entry_for_each_hour() {
        let mut state = Partition::new();
        let settings = Settings::default();
        apply(&mut state, 1_000, 1_000_000, &Command::Configure { queue: QUEUE, settings, revision: 1 });
        let messages = vec![NewMessage { content: Content::of_body(b"x"), ..NewMessage::default() }];
        apply(&mut state, 1_000, 1_000_000, &Command::Send { queue: QUEUE, messages });
        let end_ms = state.next_deadline().and_then(|deadline| deadline.wall_ms).unwrap();
        let (mut now_ms, mut entries) = (1_000, 0);
        while state.shard(QUEUE).unwrap().counters.ready > 0 {
            let pause = catching_up(end_ms - state.wall_time_ms());
            now_ms += u64::try_from(pause.as_millis()).unwrap();
            apply(&mut state, now_ms, end_ms, &Command::Expire { leases_as_of_ms: now_ms, items_max: 10 });
            entries += 1;
        }
        assert_eq!(entries, settings.retention_ms / WALL_STEP_MS_MAX);
    }
}
