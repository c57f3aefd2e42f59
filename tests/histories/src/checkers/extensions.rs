//! Leases are extended while somebody works: of handlings that outlast the lease with which they began, some keep it when no fault is
//! in force. How many is counted; under faults there is no number to judge it by.

use std::collections::BTreeMap;

use super::holders::Handling;
use super::overshoot::faults;
use super::{Life, Violations};
use crate::history::{History, MessageId, Op};
use crate::workload::LEASE;

/// After the end of a fault its consequences still are: new leaders, and clients that wait before they try again.
const CALM_AFTER_US: u64 = 3_000_000;
/// As few say nothing: a busy machine may have kept each of them from its answer.
const CALM_MIN: usize = 8;

pub fn check(
    history: &History,
    lives: &BTreeMap<MessageId, Life<'_>>,
    counts: &mut BTreeMap<&'static str, u64>,
) -> Violations {
    let faults = faults(history);
    let is_calm = |handling: &&Handling| {
        let Handling { began_us, until_us, .. } = **handling;
        faults.iter().all(|(begin_us, end_us)| *begin_us > until_us || end_us + CALM_AFTER_US < began_us)
    };
    let handlings = history.ops.iter().filter_map(Handling::of).collect::<Vec<_>>();
    let lease_us = LEASE.as_micros() as u64;
    let outlived =
        handlings.iter().filter(|handling| handling.until_us.saturating_sub(handling.began_us) > lease_us);
    let outlived = outlived.collect::<Vec<_>>();
    let is_kept = |handling: &&Handling| handling.held_us >= handling.until_us;
    let is_overtaken = |handling: &&Handling| {
        lives.get(&handling.message).into_iter().flat_map(|life| &life.grants).any(|op| {
            matches!(op, Op::Grant { grant, ended_us, .. }
                if *grant > handling.grant && *ended_us <= handling.until_us)
        })
    };
    let calm = outlived.iter().copied().filter(is_calm).collect::<Vec<_>>();
    counts.insert("handled", handlings.len() as u64);
    counts.insert("outlived_lease", outlived.len() as u64);
    counts.insert("kept_by_extension", outlived.iter().copied().filter(is_kept).count() as u64);
    counts.insert("overtaken", handlings.iter().filter(is_overtaken).count() as u64);
    if calm.len() < CALM_MIN || calm.iter().copied().any(|handling| is_kept(&handling)) {
        return Violations::new();
    }
    vec![format!("{} handlings outlasted a lease while no fault was in force, and none kept it", calm.len())]
}

#[cfg(test)]
mod tests {
    use super::super::lives;
    use super::super::story::{grant, history};
    use super::*;

    /// For two leases from a second of the run on, and held until then or for half of it.
    fn handled(second: u64, is_kept: bool) -> Op {
        let (began_us, lease_us) = (second * 1_000_000, LEASE.as_micros() as u64);
        let until_us = began_us + 2 * lease_us;
        let held_us = if is_kept { until_us } else { began_us + lease_us };
        Op::Handled { row: 1, message: (0, 1), grant: 1, consumer: 7, began_us, held_us, until_us }
    }

    fn judged(ops: Vec<Op>) -> (usize, BTreeMap<&'static str, u64>) {
        let history = history(ops);
        let mut counts = BTreeMap::new();
        let found = check(&history, &lives(&history), &mut counts).len();
        (found, counts)
    }

    fn lost() -> Vec<Op> {
        (10..10 + CALM_MIN as u64).map(|second| handled(second, false)).collect()
    }

    #[test]
    fn leases_that_are_kept_are_counted() {
        let (found, counts) = judged([lost(), vec![handled(30, true)]].concat());
        assert_eq!(found, 0);
        let of = |what: &str| counts[what];
        let all = CALM_MIN as u64 + 1;
        assert_eq!((of("handled"), of("outlived_lease"), of("kept_by_extension")), (all, all, 1));
    }

    #[test]
    fn that_none_was_kept_is_found_unless_there_was_a_fault_or_there_were_few() {
        assert_eq!(judged(lost()).0, 1);
        assert_eq!(judged(lost()[1..].to_vec()).0, 0);
        let fault = Op::Fault { number: 0, at_us: 8_000_000, fault: "kill".to_owned(), what: String::new() };
        let ended = |second: u64| Op::FaultEnded { number: 0, at_us: second * 1_000_000 };
        let disturbed = [lost(), vec![fault, ended(9)]].concat();
        assert_eq!(judged(disturbed.clone()).0, 0);
        let later = (20..30).map(|second| handled(second, false));
        assert_eq!(judged(disturbed.into_iter().chain(later).collect()).0, 1);
    }

    #[test]
    fn who_is_overtaken_is_counted() {
        let overtaken = |second: u64| {
            let ops = vec![handled(1, false), grant(1, 2, second * 1_000_000)];
            judged(ops).1["overtaken"]
        };
        assert_eq!((overtaken(3), overtaken(5)), (1, 0));
    }
}
