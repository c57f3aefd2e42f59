//! Keeps count of messages by their numbers: which came, which came again, and how long nothing came.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::numbers::Numbers;
use crate::compare::bodies::Stamp;
use crate::compare::latency::Latencies;

/// The longest time in which something that happens again and again did not.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    pub last: Instant,
    pub longest: Duration,
}

impl Gap {
    pub fn from(now: Instant) -> Self {
        Self { last: now, longest: Duration::ZERO }
    }

    /// Instants may come in any order.
    pub fn note(&mut self, at: Instant) {
        self.longest = self.longest.max(at.saturating_duration_since(self.last));
        self.last = self.last.max(at);
    }
}

/// What receivers saw of the messages of one epoch.
#[derive(Debug)]
pub struct Arrivals {
    epoch: Instant,
    seen: Numbers,
    pub duplicates: u64,
    pub latencies: Latencies,
    pub gap: Gap,
}

impl Arrivals {
    pub fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            seen: Numbers::default(),
            duplicates: 0,
            latencies: Latencies::default(),
            gap: Gap::from(epoch),
        }
    }

    /// A body without a stamp was sent before the clock began.
    pub fn take(&mut self, bodies: &[Bytes], now: Instant) {
        for stamp in bodies.iter().filter_map(|body| Stamp::of(body)) {
            if self.seen.insert(stamp.number) {
                self.latencies.add(stamp.latency(self.epoch, now));
            } else {
                self.duplicates += 1;
            }
            self.gap.note(now);
        }
    }

    pub fn count(&self) -> u64 {
        self.seen.count()
    }

    /// The numbers of those below `end` that did not come.
    pub fn missing_below(&self, end: u64) -> impl Iterator<Item = u64> {
        (0..end).filter(|number| !self.seen.has(*number))
    }

    /// The numbers of those that were sent and did not come.
    pub fn missing<'a>(&'a self, sent: &'a Numbers) -> impl Iterator<Item = u64> + 'a {
        self.seen.missing_of(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::bodies::stamped;

    fn stamp(number: u64) -> Stamp {
        Stamp { number, due: Duration::ZERO }
    }

    #[test]
    fn the_longest_gap_stays_and_late_news_opens_none() {
        let epoch = Instant::now();
        let mut gap = Gap::from(epoch);
        for ms in [10, 60, 30, 70] {
            gap.note(epoch + Duration::from_millis(ms));
        }
        assert_eq!(gap.longest, Duration::from_millis(50));
        assert_eq!(gap.last, epoch + Duration::from_millis(70));
    }

    #[test]
    fn what_comes_twice_and_what_does_not_come_is_counted() {
        let epoch = Instant::now();
        let mut arrivals = Arrivals::new(epoch);
        let mut bodies = stamped([stamp(0), stamp(1), stamp(1)].into_iter(), 32);
        bodies.push(Bytes::from_static(b"warm"));
        arrivals.take(&bodies, epoch);
        assert_eq!((arrivals.count(), arrivals.duplicates), (2, 1));
        let mut sent = Numbers::default();
        (0..3).for_each(|number| assert!(sent.insert(number)));
        assert_eq!(arrivals.missing(&sent).collect::<Vec<_>>(), [2]);
        assert_eq!(arrivals.missing_below(4).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(arrivals.missing_below(2).count(), 0);
    }
}
