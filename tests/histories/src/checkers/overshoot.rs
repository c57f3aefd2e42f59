//! A lease that ended makes its message deliverable within a bound (I6), and none is held by nobody (I18). How late the latest came
//! is counted, outside of faults; the bound is for all.

use std::collections::BTreeMap;
use std::time::Duration;

use super::leases::promised_until_us;
use super::{Life, Violations};
use crate::history::{History, MessageId, Op, Outcome};

/// After the end of the lease, or of the last fault before the next grant. A healthy cluster needs its mark interval, a new leader
/// also what it adds to the leases that it inherits; the rest is for a busy machine.
pub const BOUND: Duration = Duration::from_secs(30);

pub fn check(
    history: &History,
    lives: &BTreeMap<MessageId, Life<'_>>,
    counts: &mut BTreeMap<&'static str, u64>,
) -> Violations {
    let faults = faults(history);
    let mut violations = Violations::new();
    let mut late_us_max = 0;
    for (message, life) in lives {
        for pair in life.grants.windows(2) {
            let (Op::Grant { grant, lease_until_us, .. }, Op::Grant { grant: next, ended_us, .. }) =
                (pair[0], pair[1])
            else {
                continue;
            };
            // Who gives it back may have done so at any time.
            if life.settlements.iter().any(|op| gives_back(op, *grant)) {
                continue;
            }
            let until_us = promised_until_us(life, *grant, *lease_until_us, *ended_us);
            let disturbed =
                faults.iter().filter(|(began_us, ended)| began_us < ended_us && *ended > until_us);
            let calm_us = disturbed.map(|(_, ended_us)| *ended_us).max();
            let late_us = ended_us.saturating_sub(calm_us.unwrap_or(until_us).max(until_us));
            if calm_us.is_none() {
                late_us_max = late_us_max.max(late_us);
            }
            if Duration::from_micros(late_us) > BOUND {
                violations.push(format!(
                    "{message:?}: the lease of grant {grant} ended at {until_us} us, and grant {next} came {} ms later",
                    late_us / 1_000
                ));
            }
        }
    }
    counts.insert("lease_overshoot_ms_max", late_us_max / 1_000);
    violations
}

fn gives_back(op: &Op, of: u64) -> bool {
    matches!(op, Op::Release { grant, outcome, .. } if *grant == of && *outcome != Outcome::NotDone)
}

/// Beginning and end of each.
pub fn faults(history: &History) -> Vec<(u64, u64)> {
    let mut begun = BTreeMap::new();
    let mut faults = Vec::new();
    for op in &history.ops {
        match op {
            Op::Fault { number, at_us, .. } => drop(begun.insert(*number, *at_us)),
            Op::FaultEnded { number, at_us } => {
                faults.extend(begun.remove(number).map(|began_us| (began_us, *at_us)));
            }
            _ => {}
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::super::lives;
    use super::super::story::{grant, history};
    use super::*;

    fn judged(ops: Vec<Op>) -> (usize, u64) {
        let history = history(ops);
        let mut counts = BTreeMap::new();
        let found = check(&history, &lives(&history), &mut counts).len();
        (found, counts["lease_overshoot_ms_max"])
    }

    fn fault(began_us: u64, ended_us: u64) -> [Op; 2] {
        let (fault, what) = ("kill".to_owned(), String::new());
        [Op::Fault { number: 0, at_us: began_us, fault, what }, Op::FaultEnded { number: 0, at_us: ended_us }]
    }

    #[test]
    fn how_late_the_next_grant_is_counts_from_the_end_of_the_lease() {
        assert_eq!(judged(vec![grant(1, 1, 1_000), grant(1, 2, 2_001_000)]), (0, 500));
        assert_eq!(judged(vec![grant(1, 1, 1_000), grant(1, 2, 40_000_000)]).0, 1);
    }

    #[test]
    fn a_fault_meanwhile_excuses_until_it_ends() {
        let late = [grant(1, 1, 1_000), grant(1, 2, 40_000_000)];
        let with = |fault: [Op; 2]| judged(late.iter().cloned().chain(fault).collect());
        assert_eq!(with(fault(1_000_000, 20_000_000)), (0, 0));
        assert_eq!(with(fault(1_000, 2_000)).0, 1);
    }
}
