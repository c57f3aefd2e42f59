//! Replicas at the same applied index have the same state (I12), as they say when everything is quiet.

use super::Violations;
use crate::history::{History, Op};

pub fn check(history: &History) -> Violations {
    let of = |op: &Op| match op {
        Op::Replicas { equal, busy, diverged } => {
            let mut found = diverged.clone();
            // Who compared nothing has shown nothing.
            if *equal == 0 || !busy.is_empty() {
                found.push(format!("{equal} were compared, and {busy:?} could not be"));
            }
            found
        }
        _ => Violations::new(),
    };
    history.ops.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::super::story::history;
    use super::*;

    fn found(equal: u64, busy: &[&str], diverged: &[&str]) -> usize {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        check(&history(vec![Op::Replicas { equal, busy: owned(busy), diverged: owned(diverged) }])).len()
    }

    #[test]
    fn equal_replicas_are_fine_and_others_are_found() {
        assert_eq!(found(5, &[], &[]), 0);
        assert_eq!(found(4, &[], &["partition 1"]), 1);
        assert_eq!(found(4, &["partition 1"], &[]), 1);
        assert_eq!(found(0, &[], &[]), 1);
    }
}
