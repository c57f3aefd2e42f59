//! A message is received at most as often as its queue allows (I7), and then it is dead: in the dead-letter queue, once, not sooner,
//! and not done as well (I8).

use std::collections::{BTreeMap, BTreeSet};

use super::Violations;
use crate::history::{History, MessageId, Op, Outcome};
use crate::workload::RECEIVES_MAX;

pub fn check(history: &History, counts: &mut BTreeMap<&'static str, u64>) -> Violations {
    let mut violations = Violations::new();
    let mut dead: BTreeMap<u64, BTreeSet<MessageId>> = BTreeMap::new();
    let mut rows: BTreeMap<MessageId, u64> = BTreeMap::new();
    let mut done: BTreeSet<MessageId> = BTreeSet::new();
    let mut received: BTreeMap<MessageId, BTreeSet<u64>> = BTreeMap::new();
    for op in &history.ops {
        match op {
            Op::Grant { row, message, grant, .. } => {
                rows.insert(*message, *row);
                // Its receive count may be higher: of a receive that nobody got it tells, and the limit does not.
                received.entry(*message).or_default().insert(*grant);
            }
            Op::Ack { message, outcome: Outcome::Done, .. } => drop(done.insert(*message)),
            Op::DeadLetter { row, message, receive_count } => {
                dead.entry(*row).or_default().insert(*message);
                // A receive that was given back untouched is counted and does not bring it nearer to its death.
                if let Some(count) = receive_count.filter(|count| *count < RECEIVES_MAX) {
                    violations.push(format!("row {row} died after {count} receives"));
                }
            }
            _ => {}
        }
    }
    for (message, grants) in received.iter().filter(|(_, grants)| grants.len() > RECEIVES_MAX as usize) {
        let (row, times) = (rows[message], grants.len());
        violations.push(format!("row {row} was received {times} times"));
    }
    let done = done.iter().filter_map(|message| rows.get(message)).collect::<BTreeSet<_>>();
    for (row, messages) in &dead {
        if messages.len() > 1 {
            violations
                .push(format!("row {row} died once and is {} dead letters: {messages:?}", messages.len()));
        }
        if done.contains(row) {
            violations.push(format!("row {row} was acknowledged, and is dead: {messages:?}"));
        }
    }
    counts.insert("dead", dead.len() as u64);
    violations
}

#[cfg(test)]
mod tests {
    use super::super::story::{ack, grant, history};
    use super::*;

    fn dead_after(receive_count: Option<u32>) -> Op {
        Op::DeadLetter { row: 1, message: (9, 1), receive_count }
    }

    fn dead(sequence: u64) -> Op {
        Op::DeadLetter { row: 1, message: (9, sequence), receive_count: Some(RECEIVES_MAX) }
    }

    fn found(ops: Vec<Op>) -> usize {
        check(&history(ops), &mut BTreeMap::new()).len()
    }

    #[test]
    fn three_receives_and_one_dead_letter_are_fine() {
        assert_eq!(found(vec![grant(1, 1, 10), grant(1, 2, 20), grant(1, 3, 30), dead(1), dead(1)]), 0);
        assert_eq!(found(vec![grant(1, 3, 10), ack(3, 20, Outcome::Done)]), 0);
        assert_eq!(found(vec![dead_after(Some(RECEIVES_MAX + 1))]), 0);
        assert_eq!(found(vec![dead_after(None)]), 0);
        assert_eq!(found(vec![grant(1, u64::from(RECEIVES_MAX) + 1, 10)]), 0);
    }

    #[test]
    fn each_violation_is_found() {
        let often = (1..=u64::from(RECEIVES_MAX) + 1).map(|at| grant(1, at, at * 10));
        assert_eq!(found(often.collect()), 1);
        assert_eq!(found(vec![dead(1), dead(2)]), 1);
        assert_eq!(found(vec![dead_after(Some(RECEIVES_MAX - 1))]), 1);
        assert_eq!(found(vec![dead_after(Some(0))]), 1);
        assert_eq!(found(vec![grant(1, 3, 10), ack(3, 20, Outcome::Done), dead(1)]), 1);
    }
}
