//! A message is received at most as often as its queue allows (I7), and then it is dead: in the dead-letter queue, once, and not
//! done as well (I8).

use std::collections::{BTreeMap, BTreeSet};

use super::Violations;
use crate::history::{History, MessageId, Op, Outcome};
use crate::workload::RECEIVES_MAX;

pub fn check(history: &History, counts: &mut BTreeMap<&'static str, u64>) -> Violations {
    let mut violations = Violations::new();
    let mut dead: BTreeMap<u64, BTreeSet<MessageId>> = BTreeMap::new();
    let mut rows: BTreeMap<MessageId, u64> = BTreeMap::new();
    let mut done: BTreeSet<MessageId> = BTreeSet::new();
    for op in &history.ops {
        match op {
            Op::Grant { row, message, receive_count, .. } => {
                rows.insert(*message, *row);
                if *receive_count > RECEIVES_MAX {
                    violations.push(format!("row {row} was received {receive_count} times"));
                }
            }
            Op::Ack { message, outcome: Outcome::Done, .. } => drop(done.insert(*message)),
            Op::DeadLetter { row, message } => drop(dead.entry(*row).or_default().insert(*message)),
            _ => {}
        }
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

    fn dead(sequence: u64) -> Op {
        Op::DeadLetter { row: 1, message: (9, sequence) }
    }

    fn found(ops: Vec<Op>) -> usize {
        check(&history(ops), &mut BTreeMap::new()).len()
    }

    #[test]
    fn three_receives_and_one_dead_letter_are_fine() {
        assert_eq!(found(vec![grant(1, 1, 10), grant(1, 2, 20), grant(1, 3, 30), dead(1), dead(1)]), 0);
        assert_eq!(found(vec![grant(1, 3, 10), ack(3, 20, Outcome::Done)]), 0);
    }

    #[test]
    fn each_violation_is_found() {
        assert_eq!(found(vec![grant(1, RECEIVES_MAX as u64 + 1, 10)]), 1);
        assert_eq!(found(vec![dead(1), dead(2)]), 1);
        assert_eq!(found(vec![grant(1, 3, 10), ack(3, 20, Outcome::Done), dead(1)]), 1);
    }
}
