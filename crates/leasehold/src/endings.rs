//! How leases ended that ended without an ack, as `queue describe` shows it.

use leasehold_client::v1::{DescribeQueueResponse, Endings};
use serde_json::{Value, json};

/// For programs.
pub fn object(described: &DescribeQueueResponse) -> Value {
    let Endings { failed, timed_out, lost, untouched, suspects, on_trial } =
        described.endings.unwrap_or_default();
    json!({
        "failed": failed, "timed_out": timed_out, "lost": lost, "untouched": untouched, "suspects": suspects,
        "on_trial": on_trial,
    })
}

/// For people; nothing where every lease ended with an ack.
pub fn lines(described: &DescribeQueueResponse) -> Vec<String> {
    let Endings { failed, timed_out, lost, untouched, suspects, on_trial } =
        described.endings.unwrap_or_default();
    let mut lines = Vec::new();
    if failed + timed_out + lost + untouched > 0 {
        lines.push(format!(
            "  without an ack: {failed} failed, {timed_out} timed out, {lost} lost their consumer, {untouched} untouched"
        ));
    }
    if suspects + on_trial > 0 {
        lines.push(format!("  suspected of killing consumers: {suspects} wait, {on_trial} are tried"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_shown_where_there_are_some() {
        let without = DescribeQueueResponse::default();
        assert!(lines(&without).is_empty());
        let endings = Endings { failed: 5, timed_out: 4, lost: 3, untouched: 2, suspects: 0, on_trial: 0 };
        let quiet = DescribeQueueResponse { endings: Some(endings), ..without.clone() };
        let first = "  without an ack: 5 failed, 4 timed out, 3 lost their consumer, 2 untouched";
        assert_eq!(lines(&quiet), [first]);
        let tried = Endings { suspects: 6, on_trial: 1, ..endings };
        let described = DescribeQueueResponse { endings: Some(tried), ..without };
        assert_eq!(lines(&described)[1], "  suspected of killing consumers: 6 wait, 1 are tried");
        assert_eq!(object(&described)["lost"], json!(3));
    }
}
