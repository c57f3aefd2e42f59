//! Grants are ordered: with every later grant of a message the receive count grows, and no two have the same token.

use std::collections::BTreeMap;

use super::{Life, Violations};
use crate::history::{MessageId, Op};

pub fn check(lives: &BTreeMap<MessageId, Life<'_>>) -> Violations {
    let mut violations = Violations::new();
    for (message, life) in lives {
        for pair in life.grants.windows(2) {
            if let (
                Op::Grant { grant, receive_count, began_us, .. },
                Op::Grant { grant: next, receive_count: next_count, ended_us, .. },
            ) = (pair[0], pair[1])
            {
                if next <= grant || next_count <= receive_count {
                    violations.push(format!(
                        "{message:?}: grant {grant} counted {receive_count}, grant {next} counted {next_count}"
                    ));
                }
                if ended_us < began_us {
                    violations
                        .push(format!("{message:?}: grant {next} was answered before {grant} was asked for"));
                }
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::lives;
    use super::super::story::{grant, history};
    use super::*;

    #[test]
    fn growing_tokens_are_fine_and_others_are_found() {
        assert!(check(&lives(&history(vec![grant(1, 1, 100), grant(1, 4, 2_000_000)]))).is_empty());
        assert_eq!(check(&lives(&history(vec![grant(1, 2, 100), grant(1, 2, 2_000_000)]))).len(), 1);
        assert_eq!(check(&lives(&history(vec![grant(1, 2, 100), grant(1, 1, 2_000_000)]))).len(), 1);
    }
}
