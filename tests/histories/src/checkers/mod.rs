//! Judges a history. Each checker is linear in it, has a file, and is shown to fail on a history that violates its rule.

mod acks;
mod dead_letters;
mod delays;
mod extensions;
mod fencing;
mod fifo;
mod groups;
mod holders;
mod leases;
mod outages;
mod overshoot;
pub mod progress;
mod queue;
mod queues;
mod receipts;
mod rejections;
mod repeats;
mod replicas;
mod told;
mod whole;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::history::{History, MessageId, Op, Outcome};
use crate::workload::Workload;

/// What a checker found: a line a message, for people.
pub type Violations = Vec<String>;

/// The outcome of all checkers.
#[derive(Debug, Default)]
pub struct Verdict {
    pub counts: BTreeMap<&'static str, u64>,
    pub violations: BTreeMap<&'static str, Violations>,
    /// How long partitions stood still, by the name of the fault.
    pub outages: BTreeMap<String, outages::Outage>,
    pub seed: Option<u64>,
    pub faults: usize,
    /// Faults that were asked for and are not possible here.
    pub skipped: Vec<String>,
    pub history: Option<String>,
    pub replay: Option<String>,
    pub data: Option<String>,
}

impl Verdict {
    pub fn holds(&self) -> bool {
        self.violations.values().all(Vec::is_empty)
    }

    pub fn to_json(&self) -> Value {
        let violations = self.violations.iter().filter(|(_, stories)| !stories.is_empty());
        let violations = violations.map(|(checker, stories)| {
            let shown = stories.iter().take(told::STORIES_MAX).collect::<Vec<_>>();
            (*checker, json!({ "count": stories.len(), "stories": shown }))
        });
        json!({
            "holds": self.holds(), "counts": self.counts, "violations": violations.collect::<BTreeMap<_, _>>(),
            "outages": self.outages, "seed": self.seed, "faults": self.faults, "skipped": self.skipped, "history": self.history, "replay": self.replay, "data": self.data,
        })
    }
}

/// One message's grants and settlements, in the order of its grants.
#[derive(Debug, Default)]
pub struct Life<'a> {
    pub grants: Vec<&'a Op>,
    pub settlements: Vec<&'a Op>,
}

impl Life<'_> {
    /// When the first ack was asked for that ended it, or may have. One without an answer did not if the message was granted once
    /// more: under the older grant it was refused, or never came.
    pub fn acked_us(&self) -> Option<u64> {
        let last = self.grants.iter().filter_map(|op| token(op)).max();
        let acked = self.settlements.iter().filter_map(|op| match op {
            Op::Ack { began_us, outcome: Outcome::Done, .. } => Some(*began_us),
            Op::Ack { grant, began_us, outcome: Outcome::Unknown, .. } => {
                last.is_none_or(|last| last <= *grant).then_some(*began_us)
            }
            _ => None,
        });
        acked.min()
    }
}

fn token(op: &Op) -> Option<u64> {
    match op {
        Op::Grant { grant, .. } => Some(*grant),
        _ => None,
    }
}

/// The lives of all messages.
pub fn lives(history: &History) -> BTreeMap<MessageId, Life<'_>> {
    let mut lives: BTreeMap<MessageId, Life<'_>> = BTreeMap::new();
    for op in &history.ops {
        match op {
            Op::Grant { message, .. } => lives.entry(*message).or_default().grants.push(op),
            Op::Ack { message, .. }
            | Op::Release { message, .. }
            | Op::Reject { message, .. }
            | Op::Extend { message, .. } => lives.entry(*message).or_default().settlements.push(op),
            _ => {}
        }
    }
    for life in lives.values_mut() {
        life.grants.sort_by_key(|op| token(op));
    }
    lives
}

/// Judges a history.
pub fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    let lives = lives(history);
    verdict.violations.insert("not a whole history", whole::check(history));
    verdict.violations.insert("lost or unexpected", queue::check(history, &lives, &mut verdict.counts));
    verdict.violations.insert("lease shortened", leases::check(&lives));
    verdict.violations.insert("fencing", fencing::check(&lives));
    verdict.violations.insert("late receipt", receipts::check(&lives));
    verdict.violations.insert("acknowledged and delivered again", acks::check(&lives));
    verdict.violations.insert("no progress after healing", progress::check(history));
    verdict
        .violations
        .insert("another answer to the same request", repeats::check(history, &mut verdict.counts));
    verdict.violations.insert("replicas differ", replicas::check(history));
    match history.workload() {
        Workload::Fifo => drop(verdict.violations.insert("order of a group", fifo::check(history, &lives))),
        Workload::Delays => {
            let violations = delays::check(history, &mut verdict.counts);
            verdict.violations.insert("delay cut short", violations);
        }
        Workload::DeadLetter => {
            let violations = dead_letters::check(history, &mut verdict.counts);
            verdict.violations.insert("dead letters", violations);
        }
        Workload::Queues => {
            let violations = queues::check(history, &mut verdict.counts);
            verdict.violations.insert("queues", violations);
        }
        Workload::Leases => {
            let violations = overshoot::check(history, &lives, &mut verdict.counts);
            verdict.violations.insert("late end of a lease", violations);
        }
        Workload::Streams => check_streams(history, &lives, &mut verdict),
        Workload::Queue | Workload::Deduplication => {}
    }
    verdict.outages = outages::measure(history);
    let outcomes = |wanted: Outcome| {
        let of = |op: &&Op| match op {
            Op::Send { outcome, .. }
            | Op::Ack { outcome, .. }
            | Op::Release { outcome, .. }
            | Op::Reject { outcome, .. }
            | Op::Extend { outcome, .. }
            | Op::Queue { outcome, .. } => *outcome == wanted,
            _ => false,
        };
        history.ops.iter().filter(of).count() as u64
    };
    verdict.counts.insert("operations", history.ops.len() as u64);
    verdict.counts.insert("done", outcomes(Outcome::Done));
    verdict.counts.insert("not_done", outcomes(Outcome::NotDone));
    verdict.counts.insert("unknown", outcomes(Outcome::Unknown));
    verdict
}

fn check_streams(history: &History, lives: &BTreeMap<MessageId, Life<'_>>, verdict: &mut Verdict) {
    let holders = holders::check(history, lives);
    let groups = groups::check(history, lives);
    let rejections = rejections::check(history, &mut verdict.counts);
    let extensions = extensions::check(history, lives, &mut verdict.counts);
    let found = [
        ("a second holder", holders),
        ("order of a group", groups),
        ("rejections", rejections),
        ("leases not extended", extensions),
    ];
    verdict.violations.extend(found);
}

#[cfg(test)]
pub mod story {
    //! Histories by hand.

    use super::*;

    pub const MESSAGE: MessageId = (0, 1);

    pub fn send(row: u64, outcome: Outcome) -> Op {
        Op::Send { row, began_us: 0, ended_us: 10, outcome, message: Some(MESSAGE) }
    }

    pub fn grant(row: u64, grant: u64, ended_us: u64) -> Op {
        let (message, receive_count) = (MESSAGE, grant as u32);
        Op::Grant {
            row,
            message,
            grant,
            receive_count,
            began_us: ended_us - 5,
            ended_us,
            lease_until_us: ended_us + 1_500_000,
        }
    }

    pub fn ack(grant: u64, ended_us: u64, outcome: Outcome) -> Op {
        Op::Ack { message: MESSAGE, grant, began_us: ended_us - 5, ended_us, outcome }
    }

    pub fn release(grant: u64, began_us: u64, delay_us: u64, outcome: Outcome) -> Op {
        Op::Release { message: MESSAGE, grant, began_us, ended_us: began_us + 5, outcome, delay_us }
    }

    pub fn reject(grant: u64, began_us: u64, outcome: Outcome) -> Op {
        Op::Reject { message: MESSAGE, grant, began_us, ended_us: began_us + 5, outcome }
    }

    pub fn extend(grant: u64, began_us: u64, lease_us: u64, outcome: Outcome) -> Op {
        Op::Extend { message: MESSAGE, grant, began_us, ended_us: began_us + 5, outcome, lease_us }
    }

    pub fn history(ops: Vec<Op>) -> History {
        History { ops }
    }
}
