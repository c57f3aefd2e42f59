//! A message is dead by a rejection and by nothing else, where it takes more receives than come: then it is in the dead-letter queue,
//! once, comes to nobody any more, and was not done (I8).

use std::collections::{BTreeMap, BTreeSet};

use super::Violations;
use crate::history::{History, MessageId, Op, Outcome};

pub fn check(history: &History, counts: &mut BTreeMap<&'static str, u64>) -> Violations {
    let mut rows: BTreeMap<MessageId, u64> = BTreeMap::new();
    let mut last: BTreeMap<MessageId, u64> = BTreeMap::new();
    let mut dead: BTreeMap<u64, BTreeSet<MessageId>> = BTreeMap::new();
    let (mut acked, mut rejected, mut perhaps) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
    for op in &history.ops {
        match op {
            Op::Grant { row, message, grant, .. } => {
                rows.insert(*message, *row);
                let last = last.entry(*message).or_default();
                *last = (*last).max(*grant);
            }
            Op::Ack { message, outcome: Outcome::Done, .. } => drop(acked.insert(*message)),
            Op::Reject { message, grant, outcome, .. } if *outcome != Outcome::NotDone => {
                perhaps.insert(*message);
                if *outcome == Outcome::Done {
                    rejected.insert(*message, *grant);
                }
            }
            Op::DeadLetter { row, message, .. } => drop(dead.entry(*row).or_default().insert(*message)),
            _ => {}
        }
    }
    let rows_of = |messages: &BTreeSet<MessageId>| {
        messages.iter().filter_map(|message| rows.get(message).copied()).collect::<BTreeSet<_>>()
    };
    let (acked, perhaps) = (rows_of(&acked), rows_of(&perhaps));
    let mut violations = Violations::new();
    for (row, messages) in &dead {
        if messages.len() > 1 {
            violations.push(format!("row {row} died once and is several dead letters: {messages:?}"));
        }
        if !perhaps.contains(row) {
            violations.push(format!("row {row} is dead, and nobody rejected it"));
        }
        if acked.contains(row) {
            violations.push(format!("row {row} was acknowledged, and is dead"));
        }
    }
    for (message, grant) in &rejected {
        let Some(row) = rows.get(message) else { continue };
        if !dead.contains_key(row) {
            violations.push(format!("row {row} was rejected, and is not dead"));
        }
        if let Some(later) = last.get(message).filter(|last| *last > grant) {
            violations.push(format!("row {row} was rejected under grant {grant}, and came under {later}"));
        }
    }
    counts.insert("dead", dead.len() as u64);
    counts.insert("rejected", rejected.len() as u64);
    violations
}

#[cfg(test)]
mod tests {
    use super::super::story::{ack, grant, history, reject};
    use super::*;

    fn dead(sequence: u64) -> Op {
        Op::DeadLetter { row: 1, message: (9, sequence), receive_count: Some(1) }
    }

    fn rejected(outcome: Outcome) -> Op {
        reject(1, 200, outcome)
    }

    fn found(ops: Vec<Op>) -> usize {
        check(&history(ops), &mut BTreeMap::new()).len()
    }

    #[test]
    fn a_rejected_message_that_is_dead_is_fine() {
        assert_eq!(found(vec![grant(1, 1, 100), rejected(Outcome::Done), dead(1), dead(1)]), 0);
        assert_eq!(found(vec![grant(1, 1, 100), rejected(Outcome::Unknown), dead(1)]), 0);
        assert_eq!(found(vec![grant(1, 1, 100), rejected(Outcome::Unknown), grant(1, 2, 300)]), 0);
        let refused = vec![grant(1, 1, 100), rejected(Outcome::NotDone), ack(2, 400, Outcome::Done)];
        assert_eq!(found(refused), 0);
    }

    #[test]
    fn each_violation_is_found() {
        assert_eq!(found(vec![grant(1, 1, 100), dead(1)]), 1, "of nothing");
        assert_eq!(found(vec![grant(1, 1, 100), rejected(Outcome::NotDone), dead(1)]), 1, "of a refusal");
        assert_eq!(found(vec![grant(1, 1, 100), rejected(Outcome::Done)]), 1, "lost");
        assert_eq!(found(vec![grant(1, 1, 100), rejected(Outcome::Done), dead(1), dead(2)]), 1, "twice");
        let done = vec![grant(1, 1, 100), ack(1, 150, Outcome::Done), rejected(Outcome::Unknown), dead(1)];
        assert_eq!(found(done), 1, "done too");
        let again = vec![grant(1, 1, 100), rejected(Outcome::Done), dead(1), grant(1, 2, 300)];
        assert_eq!(found(again), 1, "given again");
    }
}
