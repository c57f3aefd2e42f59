//! Nothing is lost and nothing comes from nowhere: every send that was answered as done is delivered and settled, and whatever is
//! delivered was sent.

use std::collections::{BTreeMap, BTreeSet};

use super::{Life, Violations};
use crate::history::{History, MessageId, Op, Outcome};

pub fn check(
    history: &History,
    lives: &BTreeMap<MessageId, Life<'_>>,
    counts: &mut BTreeMap<&'static str, u64>,
) -> Violations {
    let mut violations = Violations::new();
    let mut sent: BTreeMap<u64, (Outcome, Option<MessageId>)> = BTreeMap::new();
    let mut delivered: BTreeMap<u64, BTreeSet<MessageId>> = BTreeMap::new();
    let mut dead: BTreeSet<u64> = BTreeSet::new();
    for op in &history.ops {
        match op {
            Op::Send { row, outcome, message, .. } => {
                let (known, first) = sent.entry(*row).or_insert((*outcome, *message));
                *known = (*known).max(*outcome);
                match (first, message) {
                    // A row that is sent again under its deduplication id gets the same answer.
                    (Some(first), Some(again)) if first != again => {
                        violations.push(format!("row {row} was sent as {first:?}, and as {again:?}"));
                    }
                    (first, _) => *first = first.or(*message),
                }
            }
            Op::DeadLetter { row, .. } => drop(dead.insert(*row)),
            Op::Grant { row, message, .. } => drop(delivered.entry(*row).or_default().insert(*message)),
            // The counters of an empty queue are zero, also that of its bytes (I16).
            Op::Remaining { messages, bytes } if *messages > 0 || *bytes > 0 => {
                let what = format!("{messages} messages and {bytes} bytes");
                violations.push(format!("{what} are left in the healed and drained queue"));
            }
            _ => {}
        }
    }
    let is_acked = |message: &MessageId| lives.get(message).is_some_and(|life| life.acked_us().is_some());
    let (mut recovered, mut duplicated) = (0, 0);
    for (row, (outcome, message)) in &sent {
        let messages = delivered.get(row);
        match (outcome, messages) {
            (Outcome::Done, None) if !dead.contains(row) => {
                violations.push(format!("row {row} was sent as {message:?} and never delivered"))
            }
            (Outcome::NotDone, Some(messages)) => {
                violations.push(format!("row {row} was refused and delivered as {messages:?}"));
            }
            (Outcome::Unknown, Some(_)) => recovered += 1,
            _ => {}
        }
        if messages.is_some_and(|messages| messages.len() > 1) {
            // Within one request a retry is recognised: a row is one message.
            duplicated += 1;
            violations.push(format!("row {row} was sent once and is several messages: {messages:?}"));
        }
        if let (Outcome::Done, Some(message), Some(messages)) = (outcome, message, messages)
            && !messages.contains(message)
        {
            violations.push(format!("row {row} was sent as {message:?} and delivered as {messages:?}"));
        }
        let is_settled = messages.is_some_and(|messages| messages.iter().any(is_acked));
        if *outcome == Outcome::Done && messages.is_some() && !is_settled && !dead.contains(row) {
            violations.push(format!("row {row} was delivered, is gone, and nobody settled it"));
        }
    }
    for row in delivered.keys().chain(&dead).filter(|row| !sent.contains_key(row)) {
        violations.push(format!("row {row} was delivered and never sent"));
    }
    counts.insert("sent", sent.values().filter(|(outcome, _)| *outcome == Outcome::Done).count() as u64);
    counts.insert("delivered", delivered.len() as u64);
    counts.insert("recovered", recovered);
    counts.insert("duplicated", duplicated);
    violations
}

#[cfg(test)]
mod tests {
    use super::super::lives;
    use super::super::story::{ack, grant, history, send};
    use super::*;

    fn found(ops: Vec<Op>) -> usize {
        let history = history(ops);
        check(&history, &lives(&history), &mut BTreeMap::new()).len()
    }

    /// A grant of another message.
    fn grant_of(row: u64, message: MessageId, token: u64) -> Op {
        let mut granted = grant(row, token, 300);
        if let Op::Grant { message: of, .. } = &mut granted {
            *of = message;
        }
        granted
    }

    #[test]
    fn a_row_that_is_sent_delivered_and_settled_is_fine() {
        assert_eq!(found(vec![send(1, Outcome::Done), grant(1, 1, 100), ack(1, 200, Outcome::Done)]), 0);
        assert_eq!(found(vec![send(1, Outcome::Unknown)]), 0);
    }

    #[test]
    fn each_violation_is_found() {
        assert_eq!(found(vec![send(1, Outcome::Done)]), 1, "lost");
        assert_eq!(found(vec![grant(1, 1, 100)]), 1, "unexpected");
        assert_eq!(found(vec![send(1, Outcome::NotDone), grant(1, 1, 100)]), 1, "refused and delivered");
        assert_eq!(found(vec![send(1, Outcome::Done), grant(1, 1, 100)]), 1, "gone without a settlement");
        assert_eq!(found(vec![Op::Remaining { messages: 3, bytes: 9 }]), 1, "left");
        assert_eq!(found(vec![Op::Remaining { messages: 0, bytes: 9 }]), 1, "bytes of nothing");
        let second = grant_of(1, (0, 9), 2);
        let twice = vec![send(1, Outcome::Done), grant(1, 1, 100), second, ack(1, 200, Outcome::Done)];
        assert_eq!(found(twice), 1, "duplicated");
        // What was answered for one row is what another was delivered as.
        let other =
            Op::Ack { message: (0, 9), grant: 2, began_us: 400, ended_us: 410, outcome: Outcome::Done };
        let swapped = vec![send(1, Outcome::Done), grant_of(1, (0, 9), 2), other];
        assert_eq!(found(swapped), 1, "another id");
    }

    #[test]
    fn an_ack_without_an_answer_settles_until_the_message_is_granted_again() {
        let perhaps = || vec![send(1, Outcome::Done), grant(1, 1, 100), ack(1, 200, Outcome::Unknown)];
        assert_eq!(found(perhaps()), 0);
        let again = [perhaps(), vec![grant(1, 2, 300)]].concat();
        assert_eq!(found(again.clone()), 1);
        assert_eq!(found([again.clone(), vec![ack(2, 400, Outcome::Unknown)]].concat()), 0);
        assert_eq!(found([again, vec![ack(2, 400, Outcome::Done)]].concat()), 0);
    }
}
