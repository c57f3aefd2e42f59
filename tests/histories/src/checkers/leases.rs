//! A lease lasts: nobody else holds the message before the end that was promised, unless the holder settled it.

use std::collections::BTreeMap;

use super::{Life, Violations};
use crate::history::{MessageId, Op, Outcome};

/// A client's clock reading lags behind the arrival of an answer by less than this on a busy machine.
const SLACK_US: u64 = 250_000;

pub fn check(lives: &BTreeMap<MessageId, Life<'_>>) -> Violations {
    let mut violations = Violations::new();
    for (message, life) in lives {
        for pair in life.grants.windows(2) {
            let (Op::Grant { grant, lease_until_us, .. }, Op::Grant { grant: next, ended_us, .. }) =
                (pair[0], pair[1])
            else {
                continue;
            };
            if ended_us + SLACK_US < *lease_until_us && !was_given_up(life, *grant, *ended_us) {
                let early_us = lease_until_us - ended_us;
                violations.push(format!(
                    "{message:?}: grant {next} came {early_us} us before the lease of {grant} ended"
                ));
            }
        }
    }
    violations
}

/// The holder asked for the end of its lease before the next one had the message.
fn was_given_up(life: &Life<'_>, of: u64, by_us: u64) -> bool {
    life.settlements.iter().any(|op| match op {
        Op::Release { grant, began_us, outcome, .. } => {
            *grant == of && *began_us <= by_us && *outcome != Outcome::NotDone
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::lives;
    use super::super::story::{MESSAGE, grant, history};
    use super::*;

    #[test]
    fn a_second_holder_comes_after_the_end_or_after_a_release() {
        let late = history(vec![grant(1, 1, 1_000), grant(1, 2, 1_600_000)]);
        assert!(check(&lives(&late)).is_empty());
        let release = Op::Release {
            message: MESSAGE,
            grant: 1,
            began_us: 2_000,
            ended_us: 3_000,
            outcome: Outcome::Done,
        };
        let released = history(vec![grant(1, 1, 1_000), release, grant(1, 2, 4_000)]);
        assert!(check(&lives(&released)).is_empty());
    }

    #[test]
    fn a_second_holder_in_time_of_the_first_is_found() {
        let early = history(vec![grant(1, 1, 1_000), grant(1, 2, 900_000)]);
        assert_eq!(check(&lives(&early)).len(), 1);
    }
}
