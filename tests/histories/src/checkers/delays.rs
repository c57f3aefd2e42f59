//! A delay is never cut short (I11). How late the latest came is counted: under faults there is no bound to judge it by.

use std::collections::BTreeMap;

use super::Violations;
use crate::history::{History, Op};
use crate::workload::delay_of;

/// A delay is counted in whole milliseconds.
const ROUNDING_US: u64 = 1_000;

pub fn check(history: &History, counts: &mut BTreeMap<&'static str, u64>) -> Violations {
    let mut sent_us: BTreeMap<u64, u64> = BTreeMap::new();
    let mut given_us: BTreeMap<u64, u64> = BTreeMap::new();
    for op in &history.ops {
        let (times, row, at_us) = match op {
            Op::Send { row, began_us, .. } => (&mut sent_us, row, began_us),
            Op::Grant { row, ended_us, .. } => (&mut given_us, row, ended_us),
            _ => continue,
        };
        let first_us = times.entry(*row).or_insert(*at_us);
        *first_us = (*first_us).min(*at_us);
    }
    let mut violations = Violations::new();
    let mut late_us_max = 0;
    for (row, given_us) in given_us {
        let delay_us = delay_of(row).as_micros() as u64;
        let Some(sent_us) = sent_us.get(&row).filter(|_| delay_us > 0) else { continue };
        let due_us = sent_us + delay_us;
        if given_us + ROUNDING_US < due_us {
            violations.push(format!(
                "row {row} was delayed by {delay_us} us and came {} us early",
                due_us - given_us
            ));
        }
        late_us_max = late_us_max.max(given_us.saturating_sub(due_us));
    }
    counts.insert("delay_late_ms_max", late_us_max / 1_000);
    violations
}

#[cfg(test)]
mod tests {
    use super::super::story::{grant, history, send};
    use super::*;
    use crate::history::Outcome;

    const ROW: u64 = 3;

    fn found(ended_us: u64) -> usize {
        check(&history(vec![send(ROW, Outcome::Done), grant(ROW, 1, ended_us)]), &mut BTreeMap::new()).len()
    }

    #[test]
    fn a_message_before_its_time_is_found() {
        let delay_us = delay_of(ROW).as_micros() as u64;
        assert!(delay_us > 2_000);
        assert_eq!(found(delay_us), 0);
        assert_eq!(found(delay_us - 2_000), 1);
    }
}
