//! At most one receipt of a message is valid (I4): what is done under a grant is not done any more once a later grant was given.

use std::collections::BTreeMap;

use super::{Life, Violations};
use crate::history::{MessageId, Op, Outcome};

pub fn check(lives: &BTreeMap<MessageId, Life<'_>>) -> Violations {
    let mut violations = Violations::new();
    for (message, life) in lives {
        for op in &life.settlements {
            let Some((what, under, began_us)) = done(op) else { continue };
            let later = life.grants.iter().find_map(|op| match op {
                Op::Grant { grant, ended_us, .. } if *grant > under && *ended_us < began_us => Some(grant),
                _ => None,
            });
            if let Some(later) = later {
                violations.push(format!(
                    "{message:?}: the {what} under grant {under} was done after grant {later} was given"
                ));
            }
        }
    }
    violations
}

fn done(op: &Op) -> Option<(&'static str, u64, u64)> {
    match op {
        Op::Ack { grant, began_us, outcome: Outcome::Done, .. } => Some(("ack", *grant, *began_us)),
        Op::Release { grant, began_us, outcome: Outcome::Done, .. } => Some(("release", *grant, *began_us)),
        Op::Reject { grant, began_us, outcome: Outcome::Done, .. } => Some(("rejection", *grant, *began_us)),
        Op::Extend { grant, began_us, outcome: Outcome::Done, .. } => Some(("extension", *grant, *began_us)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::lives;
    use super::super::story::{ack, extend, grant, history, reject, release};
    use super::*;

    fn found(late: Op) -> usize {
        check(&lives(&history(vec![grant(1, 1, 100), grant(1, 2, 300), late]))).len()
    }

    #[test]
    fn a_late_receipt_that_is_refused_is_fine() {
        assert_eq!(found(ack(1, 400, Outcome::NotDone)), 0);
        assert_eq!(found(extend(1, 400, 1_000, Outcome::NotDone)), 0);
        assert_eq!(found(ack(2, 400, Outcome::Done)), 0);
    }

    #[test]
    fn whatever_a_late_receipt_does_is_found() {
        assert_eq!(found(ack(1, 400, Outcome::Done)), 1);
        assert_eq!(found(release(1, 400, 0, Outcome::Done)), 1);
        assert_eq!(found(reject(1, 400, Outcome::Done)), 1);
        assert_eq!(found(extend(1, 400, 1_000, Outcome::Done)), 1);
    }
}
