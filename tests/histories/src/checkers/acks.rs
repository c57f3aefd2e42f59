//! An ack is final (I3): once it was answered as done, nobody is given the message in answer to a later question, and its grant is the
//! last one whatever the times say: after a later one the ack would have been refused, and after the ack there is none.

use std::collections::BTreeMap;

use super::{Life, Violations};
use crate::history::{MessageId, Op, Outcome};

pub fn check(lives: &BTreeMap<MessageId, Life<'_>>) -> Violations {
    let mut violations = Violations::new();
    for (message, life) in lives {
        let done = life.settlements.iter().filter_map(|op| match op {
            Op::Ack { grant, ended_us, outcome: Outcome::Done, .. } => Some((*grant, *ended_us)),
            _ => None,
        });
        let done = done.collect::<Vec<_>>();
        for (acked, ended_us) in &done {
            for op in &life.grants {
                let Op::Grant { grant, began_us: asked_us, .. } = op else { continue };
                if grant > acked || asked_us > ended_us {
                    violations.push(format!(
                        "{message:?}: acked under grant {acked}, and given again as grant {grant}"
                    ));
                }
            }
        }
        if done.len() > 1 {
            violations.push(format!("{message:?}: {} acks were answered as done", done.len()));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::lives;
    use super::super::story::{ack, grant, history};
    use super::*;

    fn found(ops: Vec<Op>) -> usize {
        check(&lives(&history(ops))).len()
    }

    #[test]
    fn one_ack_ends_a_life() {
        assert_eq!(found(vec![grant(1, 1, 100), ack(1, 200, Outcome::Done)]), 0);
        assert_eq!(found(vec![grant(1, 1, 100), ack(1, 200, Outcome::NotDone), grant(1, 2, 300)]), 0);
        assert_eq!(found(vec![grant(1, 1, 100), ack(1, 200, Outcome::Unknown), grant(1, 2, 150)]), 0);
        assert_eq!(found(vec![grant(1, 1, 100), grant(1, 2, 150), ack(2, 200, Outcome::Done)]), 0);
    }

    #[test]
    fn each_violation_is_found() {
        assert_eq!(found(vec![grant(1, 1, 100), ack(1, 200, Outcome::Done), grant(1, 2, 300)]), 1);
        assert_eq!(found(vec![grant(1, 1, 100), ack(1, 200, Outcome::Done), grant(1, 2, 150)]), 1);
        let twice = vec![grant(1, 1, 100), ack(1, 200, Outcome::Done), ack(1, 300, Outcome::Done)];
        assert_eq!(found(twice), 1);
    }
}
