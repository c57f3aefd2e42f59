//! What the demo proves, from what its sender and its workers wrote down.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How far a worker's clock reading may lag behind the arrival of an answer, on a machine that is busy: only what differs from
/// a promise by more than this breaks it.
pub const MEASUREMENT_SLACK: Duration = Duration::from_millis(250);

/// How a delivery ended for the worker that had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Acked,
    /// The ack was refused: the lease was over.
    Stale,
    /// The ack was refused: the message is gone, since somebody else was faster.
    Gone,
    /// The answer to the ack was lost.
    AckUnknown,
    /// The ack could not be brought to a leader in time: nothing of it was done.
    NotAcked,
    /// The worker crashed before it acked.
    Crashed,
}

/// A row whose send was answered as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentRow {
    pub row: u64,
    /// Partition and sequence of the message.
    pub message: (u32, u64),
    /// Tries before it of which nobody knows whether they were done.
    pub unknown_tries: u32,
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
    /// As it was promised.
    pub lease_until: Instant,
    /// When the answer to the ack came, or the worker crashed.
    pub finished: Instant,
    /// The body is that of the row.
    pub is_intact: bool,
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
    pub fn name(self) -> &'static str {
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
    /// Rows whose message was sent and never processed and settled.
    pub lost: Vec<u64>,
    /// Rows that were delivered and never sent.
    pub invented: Vec<u64>,
    /// Deliveries with another body than their row.
    pub corrupted: u64,
    pub duplicates: BTreeMap<&'static str, u64>,
    pub redelivered: u64,
    /// Leases that another worker got, or that were refused, before their promised end.
    pub leases_shortened: u64,
    /// Of the leases that a worker left unsettled, how long after the promised end the next grant came, at the soonest.
    pub lease_margin_ms_min: Option<i64>,
    /// Deliveries although an ack of the message, of the same lease or an older one, was answered as done.
    pub redelivered_after_ack: u64,
    pub fencing_violations: u64,
    /// Acks that came too late, and were refused.
    pub late_acks_refused: u64,
    /// Messages left in the queue.
    pub remaining: u64,
}

impl Verdict {
    pub fn holds(&self) -> bool {
        self.lost.is_empty()
            && self.invented.is_empty()
            && self.corrupted == 0
            && self.acked == self.sent
            && self.leases_shortened == 0
            && self.redelivered_after_ack == 0
            && self.fencing_violations == 0
            && self.remaining == 0
            && !self.duplicates.contains_key(Cause::Unexplained.name())
    }

    pub fn to_json(&self) -> Value {
        json!({
            "holds": self.holds(), "sent": self.sent, "acked": self.acked, "lost": self.lost.len(),
            "invented": self.invented.len(), "corrupted": self.corrupted,
            "duplicates": self.duplicates.values().sum::<u64>(), "duplicates_by_cause": self.duplicates,
            "redelivered": self.redelivered, "redelivered_after_ack": self.redelivered_after_ack,
            "leases_shortened": self.leases_shortened, "lease_margin_ms_min": self.lease_margin_ms_min,
            "fencing_violations": self.fencing_violations, "late_acks_refused": self.late_acks_refused,
            "remaining": self.remaining, "measurement_slack_ms": MEASUREMENT_SLACK.as_millis() as u64,
        })
    }
}

/// Judges a run: nothing counts as done that was not answered so, and no fault excuses what it does not cause.
pub fn judge(sent: &[SentRow], records: &[Record], remaining: u64) -> Verdict {
    let mut by_row: HashMap<u64, Vec<&Record>> = HashMap::new();
    let mut by_message: HashMap<(u32, u64), Vec<&Record>> = HashMap::new();
    for record in records {
        by_row.entry(record.row).or_default().push(record);
        by_message.entry(record.message).or_default().push(record);
    }
    let mut verdict = Verdict { sent: sent.len() as u64, remaining, ..Verdict::default() };
    verdict.corrupted = records.iter().filter(|record| !record.is_intact).count() as u64;
    let is_refused = |record: &&Record| matches!(record.ending, Ending::Stale | Ending::Gone);
    verdict.late_acks_refused =
        records.iter().filter(is_refused).filter(|record| record.finished > record.lease_until).count()
            as u64;
    for sent in sent {
        // A try of unknown outcome may have brought the row through: that does not make up for the message that was done.
        let of_message = by_message.get(&sent.message).map(Vec::as_slice).unwrap_or_default();
        if of_message.iter().any(|record| record.row == sent.row && is_settled(record)) {
            verdict.acked += 1;
        } else {
            verdict.lost.push(sent.row);
        }
        let of_row = by_row.remove(&sent.row).unwrap_or_default();
        for cause in duplicate_causes(&of_row, sent.unknown_tries) {
            *verdict.duplicates.entry(cause.name()).or_default() += 1;
        }
    }
    verdict.invented = by_row.into_keys().collect();
    by_message.into_values().for_each(|of_message| judge_message(of_message, &mut verdict));
    verdict
}

/// The deliveries of one message: each lease keeps its promise, each token is above the one before.
fn judge_message(mut of_message: Vec<&Record>, verdict: &mut Verdict) {
    of_message.sort_by_key(|record| record.fencing_token);
    verdict.redelivered += of_message.len() as u64 - 1;
    for (at, record) in of_message.iter().enumerate() {
        let next = of_message.get(at + 1);
        let is_shortened = next.is_some_and(|next| is_early(record, next)) || is_refused_in_time(record);
        verdict.leases_shortened += u64::from(is_shortened);
        let Some(next) = next else { continue };
        verdict.redelivered_after_ack += u64::from(record.ending == Ending::Acked);
        verdict.fencing_violations += u64::from(!is_fenced(record, next));
        let margin = signed_ms(record.lease_until, next.received);
        verdict.lease_margin_ms_min = Some(verdict.lease_margin_ms_min.map_or(margin, |min| min.min(margin)));
    }
}

/// Leases of crashed workers that were open when a node was killed, on the partitions that it led.
pub fn leases_across(records: &[Record], killed: Instant, partitions: &[u32]) -> u64 {
    let is_open = |record: &&Record| {
        record.ending == Ending::Crashed
            && partitions.contains(&record.message.0)
            && (record.received..record.lease_until).contains(&killed)
    };
    records.iter().filter(is_open).count() as u64
}

fn signed_ms(from: Instant, to: Instant) -> i64 {
    let ms = |duration: Duration| duration.as_millis() as i64;
    if to >= from { ms(to - from) } else { -ms(from - to) }
}

/// The message left the queue because of this delivery, as far as its worker knows: after an unknown ack, the empty queue at
/// the end says that it was done.
fn is_settled(record: &Record) -> bool {
    record.is_processed && matches!(record.ending, Ending::Acked | Ending::AckUnknown)
}

/// The ack was answered clearly before the lease was to end.
fn is_in_time(record: &Record) -> bool {
    record.finished + MEASUREMENT_SLACK < record.lease_until
}

/// Nobody else can have had the message, and yet the worker was told so.
fn is_refused_in_time(record: &Record) -> bool {
    matches!(record.ending, Ending::Stale | Ending::Gone) && is_in_time(record)
}

/// The next worker had the message while the lease of the one before was promised to last.
fn is_early(before: &Record, next: &Record) -> bool {
    before.ending != Ending::Acked && next.received + MEASUREMENT_SLACK < before.lease_until
}

/// The later grant has the larger token; a lease that is granted while a larger token is out protects nothing.
fn is_fenced(before: &Record, next: &Record) -> bool {
    let grew = next.fencing_token > before.fencing_token && next.receive_count > before.receive_count;
    let is_live = before.lease_until > before.received + MEASUREMENT_SLACK;
    grew && !(is_live && before.received > next.received + MEASUREMENT_SLACK)
}

/// One cause for each time beyond the first that a row was processed.
fn duplicate_causes(of_row: &[&Record], unknown_tries: u32) -> Vec<Cause> {
    let mut causes = Vec::new();
    let messages = of_row.iter().map(|record| record.message).collect::<BTreeSet<_>>();
    let mut processed_messages = 0;
    for message in messages {
        let of_message = of_row.iter().filter(|record| record.message == message && record.is_processed);
        let mut of_message = of_message.copied().collect::<Vec<_>>();
        of_message.sort_by_key(|record| record.fencing_token);
        causes.extend(of_message.windows(2).map(|pair| cause(pair[0])));
        processed_messages += u32::from(!of_message.is_empty());
    }
    // Each try of unknown outcome can have made one message more, and nothing else can.
    for beyond in 1..processed_messages {
        causes.push(if beyond <= unknown_tries { Cause::SendRepeated } else { Cause::Unexplained });
    }
    causes
}

/// Why a message came again after this delivery.
fn cause(before: &Record) -> Cause {
    match before.ending {
        Ending::Crashed => Cause::ConsumerCrashed,
        Ending::Stale | Ending::Gone if !is_in_time(before) => Cause::ConsumerTooSlow,
        Ending::AckUnknown | Ending::NotAcked => Cause::AnswerLost,
        Ending::Stale | Ending::Gone | Ending::Acked => Cause::Unexplained,
    }
}
