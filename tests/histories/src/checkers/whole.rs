//! A history is whole: it says what kind of run it is, and that the run came to its end. Of less than that nothing can be said.

use super::Violations;
use crate::history::{History, Op};

type IsEnd = fn(&Op) -> bool;

/// What every run that comes to its end writes.
const ENDS: [(&str, IsEnd); 3] = [
    ("that everything was healed", |op| matches!(op, Op::Healed { .. })),
    ("what remained in the queue", |op| matches!(op, Op::Remaining { .. })),
    ("how the replicas compare", |op| matches!(op, Op::Replicas { .. })),
];

pub fn check(history: &History) -> Violations {
    let mut violations = Violations::new();
    if !matches!(history.ops.first(), Some(Op::Began { .. })) {
        violations.push("the first line does not say what kind of run it is".to_owned());
    }
    let missing = ENDS.iter().filter(|(_, is_end)| !history.ops.iter().any(is_end));
    violations.extend(missing.map(|(what, _)| format!("it does not say {what}")));
    violations
}

#[cfg(test)]
mod tests {
    use super::super::story::{history, send};
    use super::*;
    use crate::history::Outcome;
    use crate::workload::Workload;

    fn run() -> Vec<Op> {
        vec![
            Op::Began { workload: Workload::Queue },
            Op::Healed { at_us: 5, partitions: vec![0] },
            send(1, Outcome::Unknown),
            Op::Remaining { messages: 0, bytes: 0 },
            Op::Replicas { equal: 3, busy: Vec::new(), diverged: Vec::new() },
        ]
    }

    #[test]
    fn a_run_from_its_beginning_to_its_end_is_whole() {
        assert_eq!(check(&history(run())), Violations::new());
    }

    #[test]
    fn whatever_is_missing_is_found() {
        assert_eq!(check(&history(Vec::new())).len(), 4);
        for missing in [0, 1, 3, 4] {
            let mut ops = run();
            ops.remove(missing);
            assert_eq!(check(&history(ops)).len(), 1, "{missing}");
        }
        let mut ops = run();
        ops.swap(0, 2);
        assert_eq!(check(&history(ops)).len(), 1, "it does not begin with its beginning");
        assert!(!super::super::check(&history(Vec::new())).holds());
    }
}
