//! Progress: when everything is healed, every partition takes messages again within a bound. That they are delivered too is seen
//! by the drain.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Violations;
use crate::history::{History, Op, Outcome};

/// Generous: a healthy cluster needs a second or two, and a busy machine several.
pub const BOUND: Duration = Duration::from_secs(30);

/// When each partition first answered a send that was asked at `since_us` or later.
pub fn served_since(ops: &[Op], since_us: u64) -> BTreeMap<u32, u64> {
    let mut first = BTreeMap::new();
    for op in ops {
        if let Op::Send { began_us, ended_us, outcome: Outcome::Done, message: Some((partition, _)), .. } = op
            && *began_us >= since_us
        {
            let at = first.entry(*partition).or_insert(*ended_us);
            *at = (*at).min(*ended_us);
        }
    }
    first
}

pub fn check(history: &History) -> Violations {
    let healed = history.ops.iter().filter_map(|op| match op {
        Op::Healed { at_us, partitions } => Some((*at_us, partitions)),
        _ => None,
    });
    let mut violations = Violations::new();
    for (at_us, partitions) in healed {
        let served = served_since(&history.ops, at_us);
        for partition in partitions {
            let story = match served.get(partition) {
                None => "took no message any more".to_owned(),
                Some(first) if Duration::from_micros(first - at_us) > BOUND => {
                    format!("took its first message {} ms later", (first - at_us) / 1_000)
                }
                Some(_) => continue,
            };
            violations
                .push(format!("everything was healed at {at_us} us, and partition {partition} {story}"));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::story::{history, send};
    use super::*;

    fn sent(began_us: u64, ended_us: u64) -> Op {
        let mut op = send(1, Outcome::Done);
        if let Op::Send { began_us: began, ended_us: ended, .. } = &mut op {
            (*began, *ended) = (began_us, ended_us);
        }
        op
    }

    fn found(sends: Vec<Op>) -> usize {
        let healed = Op::Healed { at_us: 1_000, partitions: vec![0] };
        check(&history(sends.into_iter().chain([healed]).collect())).len()
    }

    #[test]
    fn a_send_that_was_asked_after_healing_and_answered_in_time_is_progress() {
        assert_eq!(found(vec![sent(1_500, 2_000)]), 0);
        assert_eq!(check(&history(Vec::new())).len(), 0);
    }

    #[test]
    fn silence_late_answers_and_answers_to_earlier_sends_are_found() {
        assert_eq!(found(Vec::new()), 1);
        assert_eq!(found(vec![sent(500, 2_000)]), 1);
        assert_eq!(found(vec![sent(2_000, 40_000_000)]), 1);
    }
}
