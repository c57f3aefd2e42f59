//! ARNs of queues: `arn:aws:sqs:region:account:name`.

/// The name of the queue in an ARN of this account; the region may be any, since a cluster stands for all of them.
pub fn queue_of<'a>(arn: &'a str, account_id: &str) -> Option<&'a str> {
    let mut parts = arn.splitn(6, ':');
    let is_ours = parts.next()? == "arn"
        && parts.next()?.starts_with("aws")
        && parts.next()? == "sqs"
        && !parts.next()?.is_empty()
        && parts.next()? == account_id;
    parts.next().filter(|name| is_ours && !name.is_empty() && !name.contains(':'))
}

pub fn of_queue(region: &str, account_id: &str, name: &str) -> String {
    format!("arn:aws:sqs:{region}:{account_id}:{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_names_a_queue_of_its_account() {
        let arn = of_queue("eu-west-1", "000000000000", "jobs.fifo");
        assert_eq!(arn, "arn:aws:sqs:eu-west-1:000000000000:jobs.fifo");
        assert_eq!(queue_of(&arn, "000000000000"), Some("jobs.fifo"));
        assert_eq!(queue_of(&arn, "123456789012"), None);
        for wrong in [
            "",
            "jobs",
            "arn:aws:sns:x:000000000000:a",
            "arn:aws:sqs:x:000000000000:",
            "arn:aws:sqs:x:000000000000:a:b",
        ] {
            assert_eq!(queue_of(wrong, "000000000000"), None, "{wrong}");
        }
    }
}
