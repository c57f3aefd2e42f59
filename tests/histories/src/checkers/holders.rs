//! Who believes in a lease is alone with it: while a consumer of the client crate believes that it holds a message, nobody else is
//! given it, and nobody else works on a message of its group (I4, I5, I9).

use std::collections::BTreeMap;

use super::{Life, Violations};
use crate::history::{History, MessageId, Op};
use crate::workload::stream_group_of;

/// What a belief may lose to whole milliseconds and to clocks.
pub const SLACK_US: u64 = 20_000;

/// One message at a handler.
#[derive(Debug, Clone, Copy)]
pub struct Handling {
    pub row: u64,
    pub message: MessageId,
    pub grant: u64,
    pub consumer: u64,
    pub began_us: u64,
    pub held_us: u64,
    pub until_us: u64,
}

impl Handling {
    pub fn of(op: &Op) -> Option<Self> {
        let Op::Handled { row, message, grant, consumer, began_us, held_us, until_us } = *op else {
            return None;
        };
        Some(Self { row, message, grant, consumer, began_us, held_us, until_us })
    }
}

/// The handlings of each message group, in the order in which they began. Who began without a lease was told so.
pub fn by_group(history: &History) -> BTreeMap<u64, Vec<Handling>> {
    let mut groups: BTreeMap<u64, Vec<Handling>> = BTreeMap::new();
    let handlings = history.ops.iter().filter_map(Handling::of);
    for handling in handlings.filter(|handling| handling.held_us > handling.began_us) {
        if let Some(group) = stream_group_of(handling.row) {
            groups.entry(group).or_default().push(handling);
        }
    }
    for handlings in groups.values_mut() {
        handlings.sort_by_key(|handling| (handling.began_us, handling.grant));
    }
    groups
}

pub fn check(history: &History, lives: &BTreeMap<MessageId, Life<'_>>) -> Violations {
    let mut violations = Violations::new();
    for handling in history.ops.iter().filter_map(Handling::of) {
        let Handling { row, message, grant, held_us, .. } = handling;
        let later = lives.get(&message).into_iter().flat_map(|life| &life.grants).filter_map(|op| match op {
            Op::Grant { grant: next, ended_us, .. } if *next > grant => Some((*next, *ended_us)),
            _ => None,
        });
        for (next, ended_us) in later.filter(|(_, ended_us)| ended_us + SLACK_US < held_us) {
            let early_us = held_us - ended_us;
            violations.push(format!(
                "row {row}: grant {next} came {early_us} us before the end that the holder of grant {grant} believed in"
            ));
        }
    }
    for (group, handlings) in by_group(history) {
        violations.extend(second_holders(group, &handlings));
    }
    violations
}

fn second_holders(group: u64, handlings: &[Handling]) -> Violations {
    let mut violations = Violations::new();
    let mut holders: Vec<Handling> = Vec::new();
    for handling in handlings {
        holders.retain(|holder| holder.held_us > handling.began_us + SLACK_US);
        for holder in holders.iter().filter(|holder| holder.consumer != handling.consumer) {
            violations.push(format!(
                "group {group}: consumer {} began row {} while consumer {} held row {}",
                handling.consumer, handling.row, holder.consumer, holder.row
            ));
        }
        holders.push(*handling);
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::lives;
    use super::super::story::{MESSAGE, grant, history};
    use super::*;

    /// Of a row, which is the sequence of its message too, under a grant by a consumer: from when and until when it held it.
    fn handled(row: u64, grant: u64, consumer: u64, held_ms: (u64, u64)) -> Op {
        let (began_us, held_us) = (held_ms.0 * 1_000, held_ms.1 * 1_000);
        Op::Handled { row, message: (0, row), grant, consumer, began_us, held_us, until_us: held_us }
    }

    fn found(ops: Vec<Op>) -> usize {
        let history = history(ops);
        check(&history, &lives(&history)).len()
    }

    #[test]
    fn a_grant_after_the_end_that_was_believed_in_is_fine() {
        assert_eq!(MESSAGE, (0, 1), "row 1 is the message of the other stories");
        assert_eq!(found(vec![grant(1, 1, 1_000), handled(1, 1, 7, (1, 500)), grant(1, 2, 500_000)]), 0);
        // Of a standard queue others are handled meanwhile.
        let standard = 1 << 32;
        assert_eq!(found(vec![handled(standard, 1, 7, (1, 500)), handled(standard + 1, 2, 8, (2, 9))]), 0);
        assert_eq!(found(vec![handled(1, 1, 7, (1, 500)), handled(2, 2, 8, (500, 600))]), 0);
        assert_eq!(found(vec![handled(1, 1, 7, (1, 500)), handled(2, 2, 7, (100, 600))]), 0);
    }

    #[test]
    fn a_grant_while_another_believes_in_its_lease_is_found() {
        assert_eq!(found(vec![grant(1, 1, 1_000), handled(1, 1, 7, (1, 500)), grant(1, 2, 450_000)]), 1);
    }

    #[test]
    fn another_consumer_at_the_group_is_found() {
        assert_eq!(found(vec![handled(1, 1, 7, (1, 500)), handled(2, 2, 8, (400, 600))]), 1);
        assert_eq!(found(vec![handled(2, 2, 8, (400, 600)), handled(1, 1, 7, (1, 500))]), 1, "in any order");
    }
}
