//! The order of a message group: sends that follow each other are kept in their order, first deliveries come in it, and nothing is
//! given while an earlier message is with somebody else (I9).

use std::collections::{BTreeMap, BTreeSet};

use super::{Life, Violations};
use crate::history::{History, MessageId, Op, Outcome};
use crate::workload::group_of;

pub fn check(history: &History, lives: &BTreeMap<MessageId, Life<'_>>) -> Violations {
    let mut violations = order_of_sends(history);
    violations.extend(order_of_grants(history, lives));
    violations
}

struct Kept {
    row: u64,
    message: MessageId,
    began_us: u64,
    ended_us: u64,
    is_answered: bool,
}

/// What was sent and kept, by its group. A send without an answer was kept when its row was delivered, which names its message.
fn kept(history: &History) -> BTreeMap<u64, Vec<Kept>> {
    let given = history.ops.iter().filter_map(|op| match op {
        Op::Grant { row, message, .. } => Some((*row, *message)),
        _ => None,
    });
    let given = given.collect::<BTreeMap<_, _>>();
    let mut groups: BTreeMap<u64, Vec<Kept>> = BTreeMap::new();
    for op in &history.ops {
        let Op::Send { row, began_us, ended_us, outcome, message } = op else { continue };
        let is_answered = *outcome == Outcome::Done;
        let message = match outcome {
            Outcome::Done => *message,
            Outcome::Unknown => given.get(row).copied(),
            Outcome::NotDone => None,
        };
        if let Some(message) = message {
            let kept = Kept { row: *row, message, began_us: *began_us, ended_us: *ended_us, is_answered };
            groups.entry(group_of(*row)).or_default().push(kept);
        }
    }
    groups
}

/// A send that began after another one had been answered is behind it; so are the later ones of a batch.
fn order_of_sends(history: &History) -> Violations {
    let mut violations = Violations::new();
    for (group, mut sends) in kept(history) {
        sends.sort_by_key(|sent| (sent.began_us, sent.row));
        let mut by_end = (0..sends.len()).filter(|at| sends[*at].is_answered).collect::<Vec<_>>();
        by_end.sort_by_key(|at| sends[*at].ended_us);
        let mut answered = by_end.into_iter().peekable();
        let mut last_answered: Option<&Kept> = None;
        for (at, sent) in sends.iter().enumerate() {
            while let Some(earlier) = answered.next_if(|earlier| sends[*earlier].ended_us < sent.began_us) {
                let earlier = &sends[earlier];
                if last_answered.is_none_or(|last| last.message < earlier.message) {
                    last_answered = Some(earlier);
                }
            }
            let in_batch = at.checked_sub(1).map(|before| &sends[before]);
            let in_batch = in_batch.filter(|before| {
                before.is_answered && before.began_us == sent.began_us && before.ended_us == sent.ended_us
            });
            for before in last_answered.into_iter().chain(in_batch) {
                if before.message > sent.message {
                    violations.push(format!(
                        "group {group}: row {} was sent after row {} and is {:?}, before {:?}",
                        sent.row, before.row, sent.message, before.message
                    ));
                }
            }
        }
    }
    violations
}

struct Given {
    row: u64,
    message: MessageId,
    grant: u64,
    /// Beginning and end of the receive.
    asked_us: (u64, u64),
}

/// What a receive brings of a group is in order, and nothing of the group that was given before it and is not done is left behind.
fn order_of_grants(history: &History, lives: &BTreeMap<MessageId, Life<'_>>) -> Violations {
    let mut groups: BTreeMap<u64, Vec<Given>> = BTreeMap::new();
    for op in &history.ops {
        if let Op::Grant { row, message, grant, began_us, ended_us, .. } = op {
            let asked_us = (*began_us, *ended_us);
            let given = Given { row: *row, message: *message, grant: *grant, asked_us };
            groups.entry(group_of(*row)).or_default().push(given);
        }
    }
    let acked_us = lives.iter().filter_map(|(message, life)| Some((*message, life.acked_us()?)));
    let acked_us = acked_us.collect::<BTreeMap<_, _>>();
    let mut violations = Violations::new();
    for (group, mut grants) in groups {
        grants.sort_by_key(|given| given.grant);
        let mut in_flight: BTreeMap<MessageId, u64> = BTreeMap::new();
        let mut seen: BTreeSet<MessageId> = BTreeSet::new();
        for receive in grants.chunk_by(|one, next| one.asked_us == next.asked_us) {
            let ended_us = receive[0].asked_us.1;
            in_flight.retain(|message, _| acked_us.get(message).is_none_or(|acked_us| *acked_us > ended_us));
            let given = receive.iter().map(|given| given.message).collect::<BTreeSet<_>>();
            let left_behind = in_flight.range(..given.last().copied().unwrap_or_default());
            for (_, row) in left_behind.filter(|(message, _)| !given.contains(message)) {
                let last = &receive[receive.len() - 1];
                violations.push(format!(
                    "group {group}: row {} was given while row {row} before it was not done",
                    last.row
                ));
            }
            for given in receive {
                let is_first = seen.insert(given.message);
                if is_first && seen.last() > Some(&given.message) {
                    violations.push(format!(
                        "group {group}: row {} was given for the first time when a later one had been",
                        given.row
                    ));
                }
            }
            in_flight.extend(receive.iter().map(|given| (given.message, given.row)));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::lives;
    use super::super::story::history;
    use super::*;

    /// Rows of one group.
    const ROWS: [u64; 3] = [0, 1, 192];

    fn send(at: usize, sequence: u64, began_us: u64) -> Op {
        let (outcome, message) = (Outcome::Done, Some((0, sequence)));
        Op::Send { row: ROWS[at], began_us, ended_us: began_us + 10, outcome, message }
    }

    fn send_in_vain(at: usize, outcome: Outcome, began_us: u64) -> Op {
        Op::Send { row: ROWS[at], began_us, ended_us: began_us + 10, outcome, message: None }
    }

    /// A message of the receive that began then.
    fn given_in(at: usize, grant: u64, began_us: u64) -> Op {
        Op::Grant {
            row: ROWS[at],
            message: (0, at as u64),
            grant,
            receive_count: 1,
            began_us,
            ended_us: began_us + 10,
            lease_until_us: u64::MAX,
        }
    }

    fn given(at: usize, grant: u64) -> Op {
        given_in(at, grant, grant * 100)
    }

    fn acked(at: usize, began_us: u64) -> Op {
        let message = (0, at as u64);
        Op::Ack { message, grant: 0, began_us, ended_us: began_us + 5, outcome: Outcome::Done }
    }

    /// Without an answer.
    fn perhaps_acked(at: usize, grant: u64, began_us: u64) -> Op {
        let message = (0, at as u64);
        Op::Ack { message, grant, began_us, ended_us: began_us + 5, outcome: Outcome::Unknown }
    }

    fn found(ops: Vec<Op>) -> usize {
        let history = history(ops);
        check(&history, &lives(&history)).len()
    }

    #[test]
    fn the_rows_of_these_stories_are_of_one_group() {
        assert!(ROWS.iter().all(|row| group_of(*row) == group_of(ROWS[0])));
    }

    #[test]
    fn an_ordered_group_is_fine() {
        assert_eq!(found(vec![send(0, 1, 0), send(1, 2, 20), send(2, 3, 40)]), 0);
        // Both were on their way at the same time.
        assert_eq!(found(vec![send(0, 2, 0), send(1, 1, 5)]), 0);
        assert_eq!(found(vec![given(0, 1), given(0, 2), acked(0, 250), given(1, 3)]), 0);
        // A receive may bring several, and again what came back of them.
        let batch = [given_in(0, 1, 100), given_in(1, 2, 100), given_in(0, 3, 300), given_in(1, 4, 300)];
        assert_eq!(found(batch.to_vec()), 0);
        assert_eq!(found(vec![given_in(0, 1, 100), given_in(1, 2, 100), given(0, 3)]), 0);
    }

    #[test]
    fn each_violation_is_found() {
        assert_eq!(found(vec![send(0, 2, 0), send(1, 1, 20)]), 1);
        assert_eq!(found(vec![send(0, 2, 0), send(1, 1, 0)]), 1);
        assert_eq!(found(vec![given(0, 1), given(1, 2)]), 1);
        assert_eq!(found(vec![given_in(0, 1, 100), given_in(1, 2, 100), given(1, 3)]), 1);
        assert_eq!(found(vec![given_in(1, 1, 100), given_in(0, 2, 100)]), 1);
        assert_eq!(found(vec![given(1, 1), acked(1, 150), given(0, 2)]), 1);
    }

    #[test]
    fn a_send_without_an_answer_is_behind_those_before_it_when_it_is_delivered() {
        // Both are acked, so that nothing but their places is judged.
        let delivered = |sends: [Op; 2]| {
            let grants = [given(0, 1), acked(0, 150), given(1, 2), acked(1, 250)];
            found(sends.into_iter().chain(grants).collect())
        };
        assert_eq!(delivered([send(0, 0, 0), send_in_vain(1, Outcome::Unknown, 20)]), 0);
        assert_eq!(delivered([send(0, 2, 0), send_in_vain(1, Outcome::Unknown, 20)]), 1);
        assert_eq!(delivered([send(0, 2, 0), send_in_vain(1, Outcome::Unknown, 0)]), 1, "of one batch");
        assert_eq!(delivered([send(0, 2, 0), send_in_vain(1, Outcome::Unknown, 5)]), 0);
        assert_eq!(delivered([send(0, 2, 0), send_in_vain(1, Outcome::NotDone, 20)]), 0);
        // Nobody knows when the first one came to its place.
        assert_eq!(delivered([send_in_vain(1, Outcome::Unknown, 0), send(0, 0, 20)]), 0);
        assert_eq!(found(vec![send(0, 2, 0), send_in_vain(1, Outcome::Unknown, 20)]), 0);
    }

    #[test]
    fn an_ack_without_an_answer_lets_the_next_one_go_until_the_message_is_given_again() {
        let perhaps = || vec![given(0, 1), perhaps_acked(0, 1, 150), given(1, 2)];
        assert_eq!(found(perhaps()), 0);
        assert_eq!(found([perhaps(), vec![given(0, 3)]].concat()), 1);
    }
}
