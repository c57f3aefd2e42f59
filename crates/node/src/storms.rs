//! What the retry budget of a queue does, added up over its shards, and what to do about it in words.
//!
//! docs/storms.md lists the advice by code.

use leasehold_partition::{Mood, ShardView};
use leasehold_proto::v1::{Advice, RetryBudget, ShardDescription};

/// Failures of messages that had failed before, from which on a few messages are called bad.
const REPEATED_MIN: u64 = 10;
/// Failures of a bad message, at least.
const REPEATED_EACH_MIN: u64 = 3;

/// What a shard's budget does; nothing where there is none.
pub fn shown(shard: &ShardView) -> Option<RetryBudget> {
    let damping = shard.damping.filter(|damping| damping.budget.is_some() || damping.held > 0)?;
    Some(RetryBudget {
        storm: damping.mood == Mood::Storm,
        since_wall_ms: damping.since_wall_ms,
        held: damping.held,
        allowed: damping.allowed,
        failed: damping.failed.into(),
        acked: damping.acked.into(),
        repeated: damping.repeated.into(),
        held_total: shard.totals.held,
        spared_total: shard.totals.spared,
    })
}

/// The budgets of all shards as one: a storm on one of them is a storm.
pub fn sum(shards: &[ShardDescription]) -> Option<RetryBudget> {
    shards.iter().filter_map(|shard| shard.retry_budget).reduce(|left, right| RetryBudget {
        storm: left.storm || right.storm,
        since_wall_ms: match (left.storm, right.storm) {
            (true, false) => left.since_wall_ms,
            (false, true) => right.since_wall_ms,
            _ => left.since_wall_ms.max(right.since_wall_ms),
        },
        held: left.held + right.held,
        allowed: left.allowed + right.allowed,
        failed: left.failed + right.failed,
        acked: left.acked + right.acked,
        repeated: left.repeated + right.repeated,
        held_total: left.held_total + right.held_total,
        spared_total: left.spared_total + right.spared_total,
    })
}

/// Everything there is to say.
pub fn advice(budget: &RetryBudget) -> Vec<Advice> {
    let RetryBudget { failed, acked, held, repeated, .. } = budget;
    let (messages, waiting) = (count(*failed, "message"), count(*held, "message"));
    let storm = budget.storm.then(|| {
        let of = failed + acked;
        ("storm", format!(
            "{failed} of the last {of} messages failed: {waiting} wait, and none is dead for its receive count. Look at what \
             the handlers call; if it is the messages that are bad, take the budget away (retry_percent 0)"
        ))
    });
    let held = (!budget.storm && *held > 0).then(|| {
        ("held-redeliveries", format!(
            "more messages come back than the retry budget allows: {waiting} wait. Look at why they fail, or raise retry_percent"
        ))
    });
    let is_poison = !budget.storm && *repeated >= REPEATED_MIN && *repeated >= *failed * REPEATED_EACH_MIN;
    let poison = is_poison.then(|| {
        ("poison", format!(
            "{messages} failed {} lately, and others did not: look at those that are received again and again",
            count(failed + repeated, "time")
        ))
    });
    let said = [storm, held, poison].into_iter().flatten();
    said.map(|(code, text)| Advice { code: code.to_owned(), text }).collect()
}

fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(budget: &RetryBudget) -> Vec<String> {
        advice(budget).into_iter().map(|advice| advice.code).collect()
    }

    #[test]
    fn each_state_has_its_advice_and_calm_has_none() {
        let calm = RetryBudget { failed: 3, acked: 50, allowed: 9, ..RetryBudget::default() };
        assert!(codes(&calm).is_empty());
        let storm = RetryBudget { storm: true, failed: 40, acked: 9, held: 1_200, repeated: 500, ..calm };
        let [said] = &advice(&storm)[..] else { panic!("one advice") };
        assert_eq!(said.code, "storm");
        assert!(
            said.text.starts_with("40 of the last 49 messages failed: 1200 messages wait, and none is dead")
        );
        assert_eq!(codes(&RetryBudget { held: 1, ..calm }), ["held-redeliveries"]);
        let poison = RetryBudget { failed: 1, repeated: 10, ..calm };
        let [said] = &advice(&poison)[..] else { panic!("one advice") };
        let text = "1 message failed 11 times lately, and others did not: look at those that are received again and again";
        assert_eq!((said.code.as_str(), said.text.as_str()), ("poison", text));
        assert!(codes(&RetryBudget { repeated: 9, ..poison }).is_empty(), "too few to tell");
        assert!(codes(&RetryBudget { failed: 4, ..poison }).is_empty(), "many failed, each a few times");
    }

    #[test]
    fn a_storm_on_one_shard_is_one_of_the_queue() {
        let shard = |storm, since_wall_ms, held| {
            let budget =
                RetryBudget { storm, since_wall_ms, held, allowed: 2, failed: 1, ..RetryBudget::default() };
            ShardDescription { retry_budget: Some(budget), ..ShardDescription::default() }
        };
        let all =
            [shard(false, 90, 1), ShardDescription::default(), shard(true, 50, 30), shard(false, 10, 0)];
        let sum = sum(&all).unwrap();
        assert_eq!((sum.storm, sum.since_wall_ms, sum.held, sum.allowed, sum.failed), (true, 50, 31, 6, 3));
        assert_eq!(super::sum(&all[1..2]), None);
    }
}
