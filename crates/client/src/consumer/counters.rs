//! What became of the messages of a consumer, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts while handlers run; see [`crate::ConsumerBuilder::counters`].
///
/// ```
/// use leasehold_client::{Counters, Counts};
///
/// let counters = Counters::default(); // or those of a consumer: `consumer.counters()`
/// let Counts { acked, retried, rejected, .. } = counters.now();
/// assert_eq!((acked, retried, rejected), (0, 0, 0));
/// ```
#[derive(Debug, Default)]
pub struct Counters {
    started: AtomicU64,
    acked: AtomicU64,
    retried: AtomicU64,
    postponed: AtomicU64,
    rejected: AtomicU64,
    panicked: AtomicU64,
    timed_out: AtomicU64,
    returned: AtomicU64,
    unsettled: AtomicU64,
}

/// What [`Counters`] had counted at some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Handlers that were started.
    pub started: u64,
    /// Messages done: their acks were answered.
    pub acked: u64,
    /// Messages given back because a handler failed, panicked or timed out.
    pub retried: u64,
    /// Messages that handlers put off.
    pub postponed: u64,
    /// Messages that are in the dead-letter queue because a handler rejected them.
    pub rejected: u64,
    /// Handlers that panicked.
    pub panicked: u64,
    /// Handlers that were dropped because they took too long.
    pub timed_out: u64,
    /// Messages given back without having been handled: at a stop, or behind a message of their group that was given back.
    pub returned: u64,
    /// Messages whose ack, release or rejection was refused or not answered, mostly because the lease was lost.
    pub unsettled: u64,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    Started,
    Acked,
    Retried,
    Postponed,
    Rejected,
    Panicked,
    TimedOut,
    Returned,
    Unsettled,
}

impl Counters {
    pub(crate) fn add(&self, what: Count) {
        self.of(what).fetch_add(1, Ordering::Relaxed);
    }

    fn of(&self, what: Count) -> &AtomicU64 {
        match what {
            Count::Started => &self.started,
            Count::Acked => &self.acked,
            Count::Retried => &self.retried,
            Count::Postponed => &self.postponed,
            Count::Rejected => &self.rejected,
            Count::Panicked => &self.panicked,
            Count::TimedOut => &self.timed_out,
            Count::Returned => &self.returned,
            Count::Unsettled => &self.unsettled,
        }
    }

    /// What is counted so far.
    ///
    /// ```
    /// assert_eq!(leasehold_client::Counters::default().now().acked, 0);
    /// ```
    #[must_use]
    pub fn now(&self) -> Counts {
        let read = |what| self.of(what).load(Ordering::Relaxed);
        Counts {
            started: read(Count::Started),
            acked: read(Count::Acked),
            retried: read(Count::Retried),
            postponed: read(Count::Postponed),
            rejected: read(Count::Rejected),
            panicked: read(Count::Panicked),
            timed_out: read(Count::TimedOut),
            returned: read(Count::Returned),
            unsettled: read(Count::Unsettled),
        }
    }
}
