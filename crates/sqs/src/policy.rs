//! The access policy of a queue, as far as AddPermission and RemovePermission change it. It is kept and shown, and decides nothing:
//! there is one account, and its keys may do everything.

use serde_json::{Value, json};

use crate::error::{Error, Kind};
use crate::limits::PERMISSION_ACTIONS_MAX;

const ACTIONS: &[&str] = &[
    "*",
    "SendMessage",
    "ReceiveMessage",
    "DeleteMessage",
    "ChangeMessageVisibility",
    "GetQueueAttributes",
    "GetQueueUrl",
    "ListDeadLetterSourceQueues",
    "PurgeQueue",
];

/// A statement that AddPermission adds.
pub struct Grant<'a> {
    pub label: &'a str,
    pub accounts: &'a [String],
    pub actions: &'a [String],
    /// ARN of the queue.
    pub resource: &'a str,
}

/// Whether a text is a policy at all.
pub fn is_policy(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|policy| policy.is_object())
}

/// The policy with a statement more.
///
/// # Errors
/// When the label is there already, an action or account is none, or there are too many actions.
pub fn with(policy: Option<&str>, grant: &Grant<'_>) -> Result<String, Error> {
    check(grant)?;
    let mut policy = read(policy, grant.resource);
    let statements = statements(&mut policy);
    if statements.iter().any(|statement| statement["Sid"] == grant.label) {
        return Err(Error::value("Label", grant.label, "Already exists."));
    }
    let accounts = grant.accounts.iter().map(|account| format!("arn:aws:iam::{account}:root"));
    let accounts = accounts.map(Value::from).collect::<Vec<_>>();
    let actions = grant.actions.iter().map(|action| Value::from(format!("SQS:{action}"))).collect::<Vec<_>>();
    statements.push(json!({
        "Sid": grant.label, "Effect": "Allow", "Principal": { "AWS": one_or_all(accounts) },
        "Action": one_or_all(actions), "Resource": grant.resource,
    }));
    Ok(policy.to_string())
}

/// The policy without the statement of a label; empty when it was the last.
///
/// # Errors
/// When there is no such statement.
pub fn without(policy: Option<&str>, label: &str) -> Result<String, Error> {
    let mut policy = read(policy, "");
    let statements = statements(&mut policy);
    let before = statements.len();
    statements.retain(|statement| statement["Sid"] != label);
    if statements.len() == before {
        return Err(Error::value("Label", label, "can't find label."));
    }
    Ok(if statements.is_empty() { String::new() } else { policy.to_string() })
}

fn check(grant: &Grant<'_>) -> Result<(), Error> {
    let is_label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if grant.label.is_empty() || grant.label.len() > 80 || !grant.label.bytes().all(is_label) {
        return Err(Error::value("Label", grant.label, "Must be 1 to 80 letters, digits, '-' and '_'."));
    }
    if grant.actions.len() > PERMISSION_ACTIONS_MAX {
        let message = format!(
            "{} Actions were found, maximum allowed is {PERMISSION_ACTIONS_MAX}.",
            grant.actions.len()
        );
        return Err(Error::new(Kind::OverLimit, message));
    }
    if grant.actions.is_empty() {
        return Err(Error::missing("Actions"));
    }
    if grant.accounts.is_empty() {
        return Err(Error::missing("AWSAccountIds"));
    }
    if let Some(action) = grant.actions.iter().find(|action| !ACTIONS.contains(&action.as_str())) {
        let reason = "Please refer to the appropriate WSDL for a list of valid actions.";
        return Err(Error::value("ActionName", action, reason));
    }
    let is_account =
        |account: &String| account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    match grant.accounts.iter().find(|account| !is_account(account)) {
        Some(account) => Err(Error::value("PrincipalId", account, "Unable to verify.")),
        None => Ok(()),
    }
}

fn read(policy: Option<&str>, resource: &str) -> Value {
    let kept = policy.and_then(|text| serde_json::from_str::<Value>(text).ok()).filter(Value::is_object);
    kept.unwrap_or_else(|| {
        json!({
            "Version": "2008-10-17", "Id": format!("{resource}/SQSDefaultPolicy"), "Statement": [],
        })
    })
}

/// A policy may have one statement where others have a list.
fn statements(policy: &mut Value) -> &mut Vec<Value> {
    let statements = &mut policy["Statement"];
    if !statements.is_array() {
        let only = statements.take();
        *statements = Value::Array(if only.is_null() { Vec::new() } else { vec![only] });
    }
    match statements {
        Value::Array(statements) => statements,
        _ => unreachable!("it was made a list"),
    }
}

fn one_or_all(mut values: Vec<Value>) -> Value {
    if values.len() == 1 { values.remove(0) } else { Value::Array(values) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant<'a>(label: &'a str, accounts: &'a [String], actions: &'a [String]) -> Grant<'a> {
        Grant { label, accounts, actions, resource: "arn:aws:sqs:r:000000000000:q" }
    }

    #[test]
    fn statements_come_and_go_by_their_labels() {
        let (accounts, actions) = (vec!["123456789012".to_owned()], vec!["SendMessage".to_owned()]);
        let one = with(None, &grant("one", &accounts, &actions)).unwrap();
        let two = with(Some(&one), &grant("two", &accounts, &["*".to_owned()])).unwrap();
        let read: Value = serde_json::from_str(&two).unwrap();
        assert_eq!(read["Statement"][0]["Action"], "SQS:SendMessage");
        assert_eq!(read["Statement"][1]["Principal"]["AWS"], "arn:aws:iam::123456789012:root");
        assert!(with(Some(&two), &grant("two", &accounts, &actions)).is_err());
        let left = without(Some(&two), "one").unwrap();
        assert!(without(Some(&left), "one").is_err());
        assert_eq!(without(Some(&left), "two").unwrap(), "");
        assert!(without(None, "one").is_err());
    }

    #[test]
    fn wrong_grants_are_refused() {
        let (accounts, actions) = (vec!["123456789012".to_owned()], vec!["SendMessage".to_owned()]);
        let many = vec!["SendMessage".to_owned(); 8];
        assert_eq!(with(None, &grant("a", &accounts, &many)).unwrap_err().kind, Kind::OverLimit);
        for wrong in [
            grant("", &accounts, &actions),
            grant("a b", &accounts, &actions),
            grant("a", &[], &actions),
            grant("a", &accounts, &[]),
            grant("a", &["1".to_owned()], &actions),
            grant("a", &accounts, &["Fly".to_owned()]),
        ] {
            assert!(with(None, &wrong).is_err());
        }
    }
}
