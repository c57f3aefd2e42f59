//! What the retry budget of a queue does, as `queue describe` shows it.

use leasehold_client::v1::{DescribeQueueResponse, RetryBudget};
use serde_json::{Value, json};

/// For programs; null without a retry budget.
pub fn object(described: &DescribeQueueResponse) -> Value {
    let Some(budget) = &described.retry_budget else { return Value::Null };
    let RetryBudget {
        storm,
        since_wall_ms,
        held,
        allowed,
        failed,
        acked,
        repeated,
        held_total,
        spared_total,
    } = budget;
    json!({
        "storm": storm, "since_wall_ms": since_wall_ms, "held": held, "allowed": allowed, "failed": failed,
        "acked": acked, "repeated": repeated, "held_total": held_total, "spared_total": spared_total,
    })
}

/// For people; nothing without a retry budget.
pub fn lines(described: &DescribeQueueResponse) -> Vec<String> {
    let Some(budget) = &described.retry_budget else { return Vec::new() };
    let RetryBudget { held, allowed, failed, acked, held_total, spared_total, .. } = budget;
    let mood = if budget.storm { "storm: most messages fail" } else { "calm" };
    vec![
        format!("  retry budget: {mood}; {failed} failed and {acked} succeeded of the last handled"),
        format!("  {held} messages wait for it, {allowed} may come back now"),
        format!("  so far {held_total} had to wait, {spared_total} were spared the dead-letter queue"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_shown_and_none_is_not() {
        let without = DescribeQueueResponse::default();
        assert_eq!((object(&without), lines(&without)), (Value::Null, Vec::new()));
        let budget = RetryBudget {
            storm: true,
            since_wall_ms: 7,
            held: 1_200,
            allowed: 1,
            failed: 40,
            acked: 9,
            repeated: 3,
            held_total: 1_500,
            spared_total: 20,
        };
        let described = DescribeQueueResponse { retry_budget: Some(budget), ..without };
        assert_eq!(
            lines(&described),
            [
                "  retry budget: storm: most messages fail; 40 failed and 9 succeeded of the last handled",
                "  1200 messages wait for it, 1 may come back now",
                "  so far 1500 had to wait, 20 were spared the dead-letter queue",
            ]
        );
        assert_eq!(object(&described)["spared_total"], json!(20));
    }
}
