//! A lease lasts: nobody else holds the message before the end that was promised, unless the holder settled it (I5). What is given
//! back for later does not come earlier (I11).

use std::collections::BTreeMap;

use super::{Life, Violations};
use crate::history::{MessageId, Op, Outcome};

/// What a promise may lose to the whole milliseconds and the clocks that it is told by. Clients count a lease from before they asked
/// and a grant from when its answer came, so a busy machine only makes the one shorter and the other later.
const SLACK_US: u64 = 20_000;

pub fn check(lives: &BTreeMap<MessageId, Life<'_>>) -> Violations {
    let mut violations = Violations::new();
    for (message, life) in lives {
        for pair in life.grants.windows(2) {
            let (Op::Grant { grant, lease_until_us, .. }, Op::Grant { grant: next, ended_us, .. }) =
                (pair[0], pair[1])
            else {
                continue;
            };
            let until_us = promised_until_us(life, *grant, *lease_until_us, *ended_us);
            if ended_us + SLACK_US < until_us {
                let early_us = until_us - ended_us;
                violations.push(format!(
                    "{message:?}: grant {next} came {early_us} us before the lease of {grant} ended"
                ));
            }
        }
    }
    violations
}

/// Until when nobody else may have the message: the lease, as the holder changed it before `by_us`. What may or may not have been
/// done counts as what it allows.
pub fn promised_until_us(life: &Life<'_>, of: u64, lease_until_us: u64, by_us: u64) -> u64 {
    let mut until_us = lease_until_us;
    for op in &life.settlements {
        match op {
            Op::Release { grant, began_us, delay_us, outcome, .. } if *grant == of && *began_us <= by_us => {
                until_us = changed(until_us, began_us + delay_us, *outcome);
            }
            Op::Extend { grant, began_us, lease_us, outcome, .. } if *grant == of && *began_us <= by_us => {
                until_us = changed(until_us, began_us + lease_us, *outcome);
            }
            _ => {}
        }
    }
    until_us
}

fn changed(until_us: u64, asked_us: u64, outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Done => asked_us,
        Outcome::Unknown => until_us.min(asked_us),
        Outcome::NotDone => until_us,
    }
}

#[cfg(test)]
mod tests {
    use super::super::lives;
    use super::super::story::{extend, grant, history, release};
    use super::*;

    fn found(ops: Vec<Op>) -> usize {
        check(&lives(&history(ops))).len()
    }

    #[test]
    fn a_second_holder_comes_after_the_end_or_after_a_release() {
        assert_eq!(found(vec![grant(1, 1, 1_000), grant(1, 2, 1_600_000)]), 0);
        let released = release(1, 2_000, 0, Outcome::Done);
        assert_eq!(found(vec![grant(1, 1, 1_000), released, grant(1, 2, 4_000)]), 0);
        let perhaps = release(1, 2_000, 0, Outcome::Unknown);
        assert_eq!(found(vec![grant(1, 1, 1_000), perhaps, grant(1, 2, 4_000)]), 0);
    }

    #[test]
    fn a_second_holder_in_time_of_the_first_is_found() {
        assert_eq!(found(vec![grant(1, 1, 1_000), grant(1, 2, 900_000)]), 1);
        let refused = release(1, 2_000, 0, Outcome::NotDone);
        assert_eq!(found(vec![grant(1, 1, 1_000), refused, grant(1, 2, 4_000)]), 1);
    }

    #[test]
    fn an_extension_moves_the_end_and_may_bring_it_nearer() {
        let longer = extend(1, 1_000_000, 2_000_000, Outcome::Done);
        assert_eq!(found(vec![grant(1, 1, 1_000), longer.clone(), grant(1, 2, 1_600_000)]), 1);
        assert_eq!(found(vec![grant(1, 1, 1_000), longer, grant(1, 2, 3_000_000)]), 0);
        let shorter = extend(1, 100_000, 100_000, Outcome::Unknown);
        assert_eq!(found(vec![grant(1, 1, 1_000), shorter, grant(1, 2, 300_000)]), 0);
    }

    #[test]
    fn what_is_given_back_for_later_does_not_come_earlier() {
        let later = release(1, 2_000, 900_000, Outcome::Done);
        assert_eq!(found(vec![grant(1, 1, 1_000), later.clone(), grant(1, 2, 300_000)]), 1);
        assert_eq!(found(vec![grant(1, 1, 1_000), later, grant(1, 2, 950_000)]), 0);
    }
}
