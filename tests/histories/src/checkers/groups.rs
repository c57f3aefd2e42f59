//! The order of a message group as the client crate keeps it: what a producer with one batch under way sends is in its order, and
//! consumers work on one message after the other, none before an earlier one is done (I9).

use std::collections::{BTreeMap, BTreeSet};

use super::holders::{Handling, SLACK_US, by_group};
use super::{Life, Violations};
use crate::history::{History, MessageId, Op, Outcome};
use crate::workload::{is_one_by_one, life_of, stream_group_of};

pub fn check(history: &History, lives: &BTreeMap<MessageId, Life<'_>>) -> Violations {
    let mut violations = order_of_sends(history);
    let finished_us = lives.iter().filter_map(|(message, life)| Some((*message, finished_us(life)?)));
    let finished_us = finished_us.collect::<BTreeMap<_, _>>();
    for (group, handlings) in by_group(history) {
        violations.extend(order_of_messages(group, &handlings, &finished_us));
        violations.extend(order_of_tokens(group, &handlings));
        violations.extend(one_after_the_other(group, &handlings));
    }
    violations
}

/// A send that was answered is before all later ones of its life and group, as they were under way after it or with it.
fn order_of_sends(history: &History) -> Violations {
    let given = history.ops.iter().filter_map(|op| match op {
        Op::Grant { row, message, .. } => Some((*row, *message)),
        _ => None,
    });
    let given = given.collect::<BTreeMap<_, _>>();
    // By life, group and row.
    let mut kept: BTreeMap<(u64, u64, u64), (MessageId, bool)> = BTreeMap::new();
    for op in &history.ops {
        let Op::Send { row, outcome, message, .. } = op else { continue };
        let life = life_of(*row);
        let Some(group) = stream_group_of(*row).filter(|_| is_one_by_one(life)) else { continue };
        let message = match outcome {
            Outcome::Done => *message,
            // It was kept when it was delivered.
            Outcome::Unknown => given.get(row).copied(),
            Outcome::NotDone => None,
        };
        if let Some(message) = message {
            kept.insert((life, group, *row), (message, *outcome == Outcome::Done));
        }
    }
    let mut violations = Violations::new();
    let mut last: Option<((u64, u64, u64), MessageId)> = None;
    for ((life, group, row), (message, is_answered)) in kept {
        let before = last.filter(|((of_life, of_group, _), _)| (*of_life, *of_group) == (life, group));
        if let Some(((.., earlier), before)) = before.filter(|(_, before)| *before > message) {
            violations.push(format!(
                "group {group}: row {row} was sent after row {earlier} and is {message:?}, before {before:?}"
            ));
        }
        last = if is_answered { Some(((life, group, row), message)) } else { before };
    }
    violations
}

/// When it was asked for the first time that the message does not come again, and may have been done.
fn finished_us(life: &Life<'_>) -> Option<u64> {
    let asked = life.settlements.iter().filter_map(|op| match op {
        Op::Ack { began_us, outcome, .. } | Op::Reject { began_us, outcome, .. } => {
            (*outcome != Outcome::NotDone).then_some(*began_us)
        }
        _ => None,
    });
    asked.min()
}

/// None is begun while one before it was begun and is not done, and each for the first time in the order of the queue.
fn order_of_messages(
    group: u64,
    handlings: &[Handling],
    finished_us: &BTreeMap<MessageId, u64>,
) -> Violations {
    let mut violations = Violations::new();
    let mut open: BTreeMap<MessageId, u64> = BTreeMap::new();
    let mut seen: BTreeSet<MessageId> = BTreeSet::new();
    for Handling { row, message, began_us, .. } in handlings {
        open.retain(|message, _| finished_us.get(message).is_none_or(|finished_us| finished_us > began_us));
        for earlier in open.range(..message).map(|(_, earlier)| earlier) {
            violations.push(format!(
                "group {group}: row {row} was begun while row {earlier} before it was not done"
            ));
        }
        if seen.insert(*message) && seen.last() > Some(message) {
            violations.push(format!(
                "group {group}: row {row} was begun for the first time when a later one had been"
            ));
        }
        open.insert(*message, *row);
    }
    violations
}

/// Who begins later has the greater token: strictly at one consumer, and at two when the times are far enough apart to be told.
fn order_of_tokens(group: u64, handlings: &[Handling]) -> Violations {
    let mut violations = Violations::new();
    let mut of_consumers: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut next, mut of_all) = (0, 0);
    for handling in handlings {
        while handlings[next].began_us + SLACK_US < handling.began_us {
            of_all = of_all.max(handlings[next].grant);
            next += 1;
        }
        let before = of_consumers.insert(handling.consumer, handling.grant).unwrap_or_default().max(of_all);
        if before >= handling.grant {
            violations.push(format!(
                "group {group}: row {} was begun under token {} after token {before}",
                handling.row, handling.grant
            ));
        }
    }
    violations
}

fn one_after_the_other(group: u64, handlings: &[Handling]) -> Violations {
    let mut violations = Violations::new();
    let mut last: BTreeMap<u64, Handling> = BTreeMap::new();
    for handling in handlings {
        let before = last.insert(handling.consumer, *handling);
        if let Some(before) = before.filter(|before| before.until_us > handling.began_us) {
            violations.push(format!(
                "group {group}: consumer {} began row {} while it worked on row {}",
                handling.consumer, handling.row, before.row
            ));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::lives;
    use super::super::story::history;
    use super::*;
    use crate::workload::{life_of_producer, row_of_stream};

    /// Under a grant, at a consumer, for 10 ms.
    fn handled(row: u64, grant: u64, consumer: u64, began_ms: u64) -> Op {
        let (began_us, until_us) = (began_ms * 1_000, (began_ms + 10) * 1_000);
        Op::Handled { row, message: (0, row), grant, consumer, began_us, held_us: until_us, until_us }
    }

    fn acked(row: u64, grant: u64, at_ms: u64, outcome: Outcome) -> Op {
        let began_us = at_ms * 1_000;
        Op::Ack { message: (0, row), grant, began_us, ended_us: began_us + 500, outcome }
    }

    fn done(row: u64, grant: u64, at_ms: u64) -> Op {
        acked(row, grant, at_ms, Outcome::Done)
    }

    fn found(ops: Vec<Op>) -> usize {
        let history = history(ops);
        check(&history, &lives(&history)).len()
    }

    #[test]
    fn the_rows_of_these_stories_are_of_one_group() {
        assert!([0, 1, 2].iter().all(|row| stream_group_of(*row) == Some(0)));
        assert!(stream_group_of(3) != Some(0));
    }

    #[test]
    fn one_after_the_other_is_fine_whoever_has_them() {
        assert_eq!(found(vec![handled(0, 1, 7, 10), done(0, 1, 20), handled(1, 2, 7, 21)]), 0);
        let again = vec![handled(0, 1, 7, 10), handled(0, 3, 8, 90), done(0, 3, 100), handled(1, 4, 8, 101)];
        assert_eq!(found(again), 0);
        let unknown = acked(0, 1, 20, Outcome::Unknown);
        assert_eq!(found(vec![handled(0, 1, 7, 10), unknown, handled(1, 2, 7, 21)]), 0);
        let reject = Op::Reject {
            message: (0, 0),
            grant: 1,
            began_us: 20_000,
            ended_us: 21_000,
            outcome: Outcome::Done,
        };
        assert_eq!(found(vec![handled(0, 1, 7, 10), reject, handled(1, 2, 7, 30)]), 0);
        // Other groups and standard queues have an order of their own.
        assert_eq!(found(vec![handled(3, 5, 7, 10), handled(0, 1, 8, 40)]), 0);
        let standard = row_of_stream(life_of_producer(1, 0), 0);
        assert_eq!(found(vec![handled(standard + 1, 5, 7, 10), handled(standard, 1, 7, 10)]), 0);
    }

    #[test]
    fn a_message_before_an_earlier_one_is_done_is_found() {
        assert_eq!(found(vec![handled(0, 1, 7, 10), handled(1, 2, 7, 21)]), 1);
        let refused = acked(0, 1, 20, Outcome::NotDone);
        assert_eq!(found(vec![handled(0, 1, 7, 10), refused, handled(1, 2, 7, 21)]), 1);
        let late = vec![handled(0, 1, 7, 10), handled(1, 2, 7, 21), done(0, 1, 25)];
        assert_eq!(found(late), 1);
    }

    #[test]
    fn a_first_time_after_a_later_one_is_found() {
        assert_eq!(found(vec![handled(1, 1, 7, 10), done(1, 1, 20), handled(0, 2, 7, 30)]), 1);
    }

    #[test]
    fn a_token_that_does_not_grow_is_found() {
        let with = |token, consumer, began_ms| {
            found(vec![handled(0, 5, 7, 10), done(0, 5, 20), handled(1, token, consumer, began_ms)])
        };
        assert_eq!(with(6, 8, 40), 0);
        assert_eq!(with(4, 8, 40), 1);
        assert_eq!(with(4, 7, 21), 1, "at one consumer");
        assert_eq!(with(4, 8, 21), 0, "who of two was first cannot be told");
    }

    #[test]
    fn two_at_a_time_at_one_consumer_are_found() {
        assert_eq!(found(vec![handled(0, 1, 7, 10), done(0, 1, 14), handled(1, 2, 7, 15)]), 1);
    }

    fn sent(row: u64, sequence: u64, outcome: Outcome) -> Op {
        let message = (outcome == Outcome::Done).then_some((0, sequence));
        Op::Send { row, began_us: 0, ended_us: 10, outcome, message }
    }

    fn given(row: u64, sequence: u64) -> Op {
        let (message, lease_until_us) = ((0, sequence), u64::MAX);
        Op::Grant { row, message, grant: 1, receive_count: 1, began_us: 20, ended_us: 30, lease_until_us }
    }

    #[test]
    fn sends_of_one_batch_at_a_time_are_in_their_order() {
        let done = |rows: [(u64, u64); 2]| found(rows.map(|(row, at)| sent(row, at, Outcome::Done)).to_vec());
        assert_eq!(done([(0, 1), (1, 2)]), 0);
        assert_eq!(done([(0, 2), (1, 1)]), 1);
        assert_eq!(done([(0, 2), (3, 1)]), 0, "of another group");
        let eight = row_of_stream(life_of_producer(2, 0), 0);
        assert_eq!(done([(eight, 2), (eight + 1, 1)]), 0, "several batches were under way");
        let next_life = row_of_stream(life_of_producer(0, 1), 0);
        assert_eq!(done([(0, 2), (next_life, 1)]), 0, "of another life");
    }

    #[test]
    fn a_send_without_an_answer_is_behind_those_that_were_answered() {
        let unknown = |row| sent(row, 0, Outcome::Unknown);
        assert_eq!(found(vec![sent(0, 2, Outcome::Done), unknown(1), given(1, 1)]), 1);
        assert_eq!(found(vec![sent(0, 2, Outcome::Done), unknown(1), given(1, 3)]), 0);
        assert_eq!(found(vec![sent(0, 2, Outcome::Done), unknown(1)]), 0);
        // Nobody knows when it came to its place.
        assert_eq!(found(vec![unknown(0), given(0, 5), sent(1, 2, Outcome::Done)]), 0);
        let between = vec![sent(0, 3, Outcome::Done), unknown(1), given(1, 4), sent(2, 2, Outcome::Done)];
        assert_eq!(found(between), 1);
    }
}
