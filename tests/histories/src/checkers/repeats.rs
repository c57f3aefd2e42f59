//! The same request id gives the same result (I20).

use std::collections::BTreeMap;

use super::Violations;
use crate::history::{History, Op};

pub fn check(history: &History, counts: &mut BTreeMap<&'static str, u64>) -> Violations {
    let repeats = history.ops.iter().filter(|op| matches!(op, Op::Repeat { .. })).count();
    counts.insert("repeated", repeats as u64);
    let differs = |op: &Op| match op {
        Op::Repeat { request, first, again } if first != again => {
            Some(format!("{request} was answered with {first:?}, and the same again with {again:?}"))
        }
        _ => None,
    };
    history.ops.iter().filter_map(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::super::story::history;
    use super::*;

    fn repeat(again: &str) -> Op {
        let request = "send 7".to_owned();
        Op::Repeat { request, first: vec!["0-1".to_owned()], again: vec![again.to_owned()] }
    }

    #[test]
    fn the_same_answer_is_fine_and_another_is_found() {
        let found = |again| check(&history(vec![repeat(again)]), &mut BTreeMap::new()).len();
        assert_eq!(found("0-1"), 0);
        assert_eq!(found("0-2"), 1);
    }
}
