//! What the demo proves, from what its workers wrote down.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How far a worker's clock reading may lag behind the arrival of an answer, on a machine that is busy: a lease counts as
/// shortened when it ended earlier than this before its promised end.
pub const MEASUREMENT_SLACK: Duration = Duration::from_millis(250);

/// How a delivery ended for the worker that had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Acked,
    /// The ack was refused: the lease was over.
    Stale,
    /// The ack was refused: the message is gone. Somebody else was faster, or an earlier try was done and its answer lost.
    Gone,
    /// The answer to the ack was lost.
    AckUnknown,
    /// The ack could not be brought to a leader in time: nothing of it was done.
    NotAcked,
    /// The worker crashed before it acked.
    Crashed,
    /// Given back on purpose.
    Released,
}

/// One delivery, as a worker saw it.
#[derive(Debug, Clone)]
pub struct Record {
    /// Number of the row.
    pub row: u64,
    /// Partition and sequence of the message.
    pub message: (u32, u64),
    pub fencing_token: u64,
    pub receive_count: u32,
    pub received: Instant,
    pub lease_until: Instant,
    pub finished: Instant,
    /// The worker's side effect happened.
    pub is_processed: bool,
    pub ending: Ending,
}

/// Why a row was processed more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    ConsumerCrashed,
    ConsumerTooSlow,
    AnswerLost,
    SendRepeated,
    Unexplained,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Self::ConsumerCrashed => "consumer_crashed",
            Self::ConsumerTooSlow => "consumer_too_slow",
            Self::AnswerLost => "answer_lost",
            Self::SendRepeated => "send_repeated",
            Self::Unexplained => "unexplained",
        }
    }
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    pub sent: u64,
    pub acked: u64,
    /// Rows that were sent and never processed and settled.
    pub lost: Vec<u64>,
    /// Rows that were processed and never sent.
    pub invented: Vec<u64>,
    pub duplicates: BTreeMap<&'static str, u64>,
    pub redelivered: u64,
    pub leases_shortened: u64,
    pub fencing_violations: u64,
    /// Messages left in the queue.
    pub remaining: u64,
}

impl Verdict {
    pub fn holds(&self) -> bool {
        self.lost.is_empty()
            && self.invented.is_empty()
            && self.acked == self.sent
            && self.leases_shortened == 0
            && self.fencing_violations == 0
            && self.remaining == 0
            && !self.duplicates.contains_key(Cause::Unexplained.name())
    }

    pub fn to_json(&self) -> Value {
        json!({
            "holds": self.holds(), "sent": self.sent, "acked": self.acked, "lost": self.lost.len(),
            "invented": self.invented.len(), "duplicates": self.duplicates.values().sum::<u64>(),
            "duplicates_by_cause": self.duplicates, "redelivered": self.redelivered,
            "leases_shortened": self.leases_shortened, "fencing_violations": self.fencing_violations,
            "remaining": self.remaining, "measurement_slack_ms": MEASUREMENT_SLACK.as_millis() as u64,
        })
    }
}

/// Judges a run: `sent` are the rows whose sends were answered as done.
pub fn judge(sent: &[u64], records: &[Record], remaining: u64) -> Verdict {
    let mut by_row: HashMap<u64, Vec<&Record>> = HashMap::new();
    let mut by_message: HashMap<(u32, u64), Vec<&Record>> = HashMap::new();
    for record in records {
        by_row.entry(record.row).or_default().push(record);
        by_message.entry(record.message).or_default().push(record);
    }
    let mut verdict = Verdict { sent: sent.len() as u64, remaining, ..Verdict::default() };
    for row in sent {
        let of_row = by_row.get(row).map(Vec::as_slice).unwrap_or_default();
        if of_row.iter().any(|record| is_settled(record)) {
            verdict.acked += 1;
        } else {
            verdict.lost.push(*row);
        }
    }
    let known = sent.iter().collect::<std::collections::HashSet<_>>();
    verdict.invented = by_row.keys().filter(|row| !known.contains(row)).copied().collect();
    for of_row in by_row.values() {
        for cause in duplicate_causes(of_row) {
            *verdict.duplicates.entry(cause.name()).or_default() += 1;
        }
    }
    for of_message in by_message.values_mut() {
        of_message.sort_by_key(|record| record.fencing_token);
        verdict.redelivered += of_message.len() as u64 - 1;
        for pair in of_message.windows(2) {
            verdict.leases_shortened += u64::from(is_shortened(pair[0], pair[1]));
            let grew = pair[1].fencing_token > pair[0].fencing_token
                && pair[1].receive_count > pair[0].receive_count;
            verdict.fencing_violations += u64::from(!grew);
        }
    }
    verdict
}

/// The message left the queue because of this delivery, as far as its worker knows.
fn is_settled(record: &Record) -> bool {
    let by_this = match record.ending {
        Ending::Acked | Ending::AckUnknown => true,
        Ending::Gone => !is_late(record),
        Ending::Stale | Ending::NotAcked | Ending::Crashed | Ending::Released => false,
    };
    record.is_processed && by_this
}

/// The worker held the message for longer than its lease.
fn is_late(record: &Record) -> bool {
    record.finished > record.lease_until
}

/// One cause for each time beyond the first that a row was processed.
fn duplicate_causes(of_row: &[&Record]) -> Vec<Cause> {
    let mut processed = of_row.iter().filter(|record| record.is_processed).collect::<Vec<_>>();
    processed.sort_by_key(|record| record.received);
    let cause = |pair: &[&&Record]| {
        if pair[0].message != pair[1].message {
            return Cause::SendRepeated;
        }
        match pair[0].ending {
            Ending::Crashed => Cause::ConsumerCrashed,
            Ending::Stale => Cause::ConsumerTooSlow,
            Ending::Gone if is_late(pair[0]) => Cause::ConsumerTooSlow,
            Ending::AckUnknown | Ending::NotAcked | Ending::Gone => Cause::AnswerLost,
            Ending::Acked | Ending::Released => Cause::Unexplained,
        }
    };
    processed.windows(2).map(cause).collect()
}

/// Whether the next worker had the message while the lease of the one before was promised to last, and had not been given up.
fn is_shortened(before: &Record, next: &Record) -> bool {
    let was_given_up = before.ending == Ending::Released && before.finished <= next.received;
    !was_given_up && next.received + MEASUREMENT_SLACK < before.lease_until
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    struct Story(Instant);

    impl Story {
        /// A delivery `at` ms into the story.
        fn record(&self, row: u64, grant: u64, at_ms: u64, ending: Ending) -> Record {
            let received = self.0 + Duration::from_millis(at_ms);
            Record {
                row,
                message: (0, row),
                fencing_token: grant,
                receive_count: grant as u32,
                received,
                lease_until: received + LEASE,
                finished: received + Duration::from_millis(10),
                is_processed: ending != Ending::Released,
                ending,
            }
        }
    }

    fn story() -> Story {
        Story(Instant::now())
    }

    #[test]
    fn a_run_without_faults_holds() {
        let story = story();
        let records = [story.record(1, 1, 0, Ending::Acked), story.record(2, 1, 5, Ending::Acked)];
        let verdict = judge(&[1, 2], &records, 0);
        assert!(verdict.holds() && verdict.acked == 2 && verdict.duplicates.is_empty(), "{verdict:?}");
    }

    #[test]
    fn a_row_that_nobody_acked_is_lost() {
        let story = story();
        assert_eq!(judge(&[1], &[], 0).lost, [1]);
        assert!(!judge(&[1], &[story.record(1, 1, 0, Ending::Crashed)], 0).holds());
    }

    #[test]
    fn a_row_that_nobody_sent_is_invented() {
        assert!(!judge(&[], &[story().record(9, 1, 0, Ending::Acked)], 0).holds());
    }

    #[test]
    fn what_is_left_in_the_queue_breaks_the_proof() {
        assert!(!judge(&[1], &[story().record(1, 1, 0, Ending::Acked)], 1).holds());
    }

    #[test]
    fn each_duplicate_has_its_cause() {
        let story = story();
        let causes = [
            (Ending::Crashed, "consumer_crashed", true),
            (Ending::Stale, "consumer_too_slow", true),
            (Ending::AckUnknown, "answer_lost", true),
            (Ending::NotAcked, "answer_lost", true),
            (Ending::Acked, "unexplained", false),
        ];
        for (ending, cause, holds) in causes {
            let records = [story.record(1, 1, 0, ending), story.record(1, 2, 3_500, Ending::Acked)];
            let verdict = judge(&[1], &records, 0);
            assert_eq!(verdict.duplicates, BTreeMap::from([(cause, 1)]));
            assert_eq!(verdict.holds(), holds, "{verdict:?}");
        }
        let mut second = story.record(1, 1, 100, Ending::Acked);
        second.message = (0, 77);
        let verdict = judge(&[1], &[story.record(1, 1, 0, Ending::Acked), second], 0);
        assert_eq!(verdict.duplicates, BTreeMap::from([("send_repeated", 1)]));
    }

    #[test]
    fn a_worker_that_came_too_late_settled_nothing() {
        let story = story();
        let mut late = story.record(1, 1, 0, Ending::Gone);
        late.finished = late.lease_until + Duration::from_secs(1);
        assert_eq!(judge(&[1], std::slice::from_ref(&late), 0).lost, [1]);
        let verdict = judge(&[1], &[late, story.record(1, 2, 3_500, Ending::Acked)], 0);
        assert_eq!(verdict.duplicates, BTreeMap::from([("consumer_too_slow", 1)]));
    }

    #[test]
    fn a_lease_that_ended_early_is_noticed_unless_it_was_given_up() {
        let story = story();
        let early = |ending| [story.record(1, 1, 0, ending), story.record(1, 2, 2_000, Ending::Acked)];
        assert_eq!(judge(&[1], &early(Ending::Crashed), 0).leases_shortened, 1);
        assert_eq!(judge(&[1], &early(Ending::Released), 0).leases_shortened, 0);
        let late = [story.record(1, 1, 0, Ending::Crashed), story.record(1, 2, 2_900, Ending::Acked)];
        assert_eq!(judge(&[1], &late, 0).leases_shortened, 0);
    }

    #[test]
    fn a_token_that_does_not_grow_breaks_the_proof() {
        let story = story();
        let records = [story.record(1, 2, 0, Ending::Crashed), story.record(1, 2, 3_500, Ending::Acked)];
        assert!(!judge(&[1], &records, 0).holds());
    }
}
