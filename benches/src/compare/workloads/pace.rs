//! An open loop: messages are sent when they are due, however the system is doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use crate::compare::bodies::{Stamp, stamped};
use crate::compare::system::{Failure, Sender};

/// Messages that became due together go in one batch.
const TICK: Duration = Duration::from_millis(1);
/// What became due while this program was held up goes in several.
const BATCH_MAX: u64 = 500;

/// A message and what became of its send.
pub type Answer = (Stamp, Result<Instant, Failure>);

#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub epoch: Instant,
    pub rate_per_s: u64,
    pub bytes: usize,
}

impl Schedule {
    pub fn stamp(&self, number: u64) -> Stamp {
        Stamp { number, due: Duration::from_micros(number * 1_000_000 / self.rate_per_s) }
    }

    /// How many messages are due after some time.
    fn due_after(&self, elapsed: Duration) -> u64 {
        (elapsed.as_micros() * u128::from(self.rate_per_s) / 1_000_000) as u64
    }
}

/// Sends until it is told to stop, and returns when each send has its answer, which went to `on_answers` before.
pub async fn pace(
    schedule: Schedule,
    senders: Vec<Arc<dyn Sender>>,
    stop: Arc<AtomicBool>,
    on_answers: impl Fn(Vec<Answer>) + Clone + Send + 'static,
) -> Result<(), JoinError> {
    let (mut next, mut under_way) = (0, JoinSet::new());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turns = senders.iter().cycle();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let due = schedule.due_after(schedule.epoch.elapsed());
        while next < due
            && let Some(sender) = turns.next()
        {
            let end = due.min(next + BATCH_MAX);
            let stamps = (next..end).map(|number| schedule.stamp(number)).collect::<Vec<_>>();
            under_way.spawn(send(Arc::clone(sender), schedule.bytes, stamps, on_answers.clone()));
            next = end;
        }
        while under_way.try_join_next().transpose()?.is_some() {}
    }
    while under_way.join_next().await.transpose()?.is_some() {}
    Ok(())
}

async fn send(sender: Arc<dyn Sender>, bytes: usize, stamps: Vec<Stamp>, on_answers: impl Fn(Vec<Answer>)) {
    let answers = sender.send(stamped(stamps.iter().copied(), bytes)).await;
    on_answers(stamps.into_iter().zip(answers).collect());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_due_at_the_rate() {
        let schedule = Schedule { epoch: Instant::now(), rate_per_s: 2_000, bytes: 16 };
        assert_eq!(schedule.due_after(Duration::from_millis(1)), 2);
        assert_eq!(schedule.due_after(Duration::from_micros(499)), 0);
        assert_eq!(schedule.due_after(Duration::from_secs(3_600)), 7_200_000);
        assert_eq!(schedule.stamp(3), Stamp { number: 3, due: Duration::from_micros(1_500) });
    }
}
