//! The attributes of queues: from SQS to the settings of the node and back.
//!
//! What means something to a queue is one of its settings. What only SQS clients look at is a label with the attribute's name behind
//! `sqs.`: it is kept and shown.

use std::collections::BTreeMap;

use leasehold_proto::v1::{DescribeQueueResponse, QueueKind, QueueSettings, RedriveAllow, RedriveRule};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::arn;
use crate::error::{Error, Kind};
use crate::gateway::{Call, Gateway};
use crate::limits::QUEUE_ATTRIBUTE_BYTES_MAX;
use crate::numbers::Int;
use crate::policy;

pub type Attributes = BTreeMap<String, String>;

/// Kept as labels.
const LABELLED: &[(&str, &str)] = &[
    ("Policy", "sqs.Policy"),
    ("KmsMasterKeyId", "sqs.KmsMasterKeyId"),
    ("KmsDataKeyReusePeriodSeconds", "sqs.KmsDataKeyReusePeriodSeconds"),
    ("SqsManagedSseEnabled", "sqs.SqsManagedSseEnabled"),
    ("DeduplicationScope", SCOPE_LABEL),
    ("FifoThroughputLimit", LIMIT_LABEL),
];
pub const SCOPE_LABEL: &str = "sqs.DeduplicationScope";
pub const SCOPE_OF_GROUP: &str = "messageGroup";
const LIMIT_LABEL: &str = "sqs.FifoThroughputLimit";
const LIMIT_OF_GROUP: &str = "perMessageGroupId";
/// Of FIFO queues only.
const OF_FIFO: &[&str] =
    &["FifoQueue", "ContentBasedDeduplication", "DeduplicationScope", "FifoThroughputLimit"];
const COUNTS: &[&str] = &[
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
];
const OTHERS: &[&str] = &[
    "All",
    "VisibilityTimeout",
    "MaximumMessageSize",
    "MessageRetentionPeriod",
    "CreatedTimestamp",
    "LastModifiedTimestamp",
    "QueueArn",
    "DelaySeconds",
    "ReceiveMessageWaitTimeSeconds",
    "RedrivePolicy",
    "RedriveAllowPolicy",
];

/// Whether the queue is to be made or is there, with these settings.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    New(QueueKind),
    Existing(&'a QueueSettings),
}

impl<'a> Target<'a> {
    fn is_fifo(self) -> bool {
        let kind = match self {
            Self::New(kind) => kind,
            Self::Existing(settings) => settings.kind(),
        };
        kind == QueueKind::Fifo
    }

    fn label(self, name: &str) -> Option<&'a str> {
        match self {
            Self::New(_) => None,
            Self::Existing(settings) => settings.labels.get(name).map(String::as_str),
        }
    }
}

pub fn unknown(name: &str) -> Error {
    Error::new(Kind::InvalidAttributeName, format!("Unknown Attribute {name}."))
}

fn wrong(name: &str) -> Error {
    Error::new(Kind::InvalidAttributeValue, format!("Invalid value for the parameter {name}."))
}

/// Attributes that a client sets, as settings.
///
/// # Errors
/// `InvalidAttributeName`, `InvalidAttributeValue`, or `InvalidParameterValue` for policies.
pub fn read(gateway: &Gateway, attributes: &Attributes, target: Target<'_>) -> Result<QueueSettings, Error> {
    let mut settings = QueueSettings::default();
    for (name, value) in attributes {
        if OF_FIFO.contains(&name.as_str()) && !target.is_fifo() {
            return Err(unknown(name));
        }
        // JSON of any length would be a hundred times that when it is read.
        if value.len() > QUEUE_ATTRIBUTE_BYTES_MAX {
            return Err(wrong(name));
        }
        read_one(gateway, &mut settings, name, value, target)?;
    }
    check_limit(&settings, target)?;
    Ok(settings)
}

/// A limit for each message group needs ids for each: where a change touches one of both, the queue must have both or neither then.
fn check_limit(change: &QueueSettings, target: Target<'_>) -> Result<(), Error> {
    let changed = |name: &str| change.labels.get(name).map(String::as_str);
    if changed(SCOPE_LABEL).or(changed(LIMIT_LABEL)).is_none() {
        return Ok(());
    }
    let is = |name: &str, value: &str| changed(name).or(target.label(name)) == Some(value);
    if is(LIMIT_LABEL, LIMIT_OF_GROUP) && !is(SCOPE_LABEL, SCOPE_OF_GROUP) {
        return Err(wrong("FifoThroughputLimit"));
    }
    Ok(())
}

fn read_one(
    gateway: &Gateway,
    settings: &mut QueueSettings,
    name: &str,
    value: &str,
    target: Target<'_>,
) -> Result<(), Error> {
    let number = |min: u64, max: u64| {
        value.parse::<u64>().ok().filter(|number| (min..=max).contains(number)).ok_or_else(|| wrong(name))
    };
    let milliseconds = |min: u64, max: u64| number(min, max).map(|seconds| Some(seconds * 1_000));
    let one_of = |allowed: &[&str]| if allowed.contains(&value) { Ok(()) } else { Err(wrong(name)) };
    match name {
        "VisibilityTimeout" => settings.lease_ms = milliseconds(0, 43_200)?,
        "DelaySeconds" => settings.delay_ms = milliseconds(0, 900)?,
        "MessageRetentionPeriod" => settings.retention_ms = milliseconds(60, 1_209_600)?,
        "ReceiveMessageWaitTimeSeconds" => settings.wait_ms = milliseconds(0, 20)?,
        "MaximumMessageSize" => settings.message_bytes_max = Some(number(1_024, 1_048_576)?),
        "ContentBasedDeduplication" => {
            one_of(&["true", "false"])?;
            settings.content_deduplication = Some(value == "true");
        }
        "FifoQueue" => match target {
            Target::New(_) => one_of(&["true"])?,
            Target::Existing(_) if value == "true" => {}
            Target::Existing(_) => return Err(wrong(name)),
        },
        "RedrivePolicy" => redrive_policy(gateway, settings, value)?,
        "RedriveAllowPolicy" => settings.redrive_allow = Some(redrive_allow(gateway, value)?),
        "Policy" if !value.is_empty() && !policy::is_policy(value) => return Err(wrong(name)),
        "KmsDataKeyReusePeriodSeconds" => drop(number(60, 86_400)?),
        "SqsManagedSseEnabled" => one_of(&["true", "false"])?,
        "DeduplicationScope" => one_of(&["queue", SCOPE_OF_GROUP])?,
        "FifoThroughputLimit" => one_of(&["perQueue", LIMIT_OF_GROUP])?,
        "Policy" | "KmsMasterKeyId" => {}
        _ => return Err(unknown(name)),
    }
    if let Some((_, label)) = LABELLED.iter().find(|(labelled, _)| *labelled == name) {
        settings.labels.insert((*label).to_owned(), value.to_owned());
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RedrivePolicy {
    dead_letter_target_arn: String,
    max_receive_count: Int,
}

fn redrive_policy(gateway: &Gateway, settings: &mut QueueSettings, value: &str) -> Result<(), Error> {
    if value.is_empty() {
        settings.dead_letter_queue = Some(String::new());
        return Ok(());
    }
    let invalid = |reason: &str| Error::value("RedrivePolicy", value, reason);
    let policy = serde_json::from_str::<RedrivePolicy>(value).map_err(|_| {
        invalid(
            "Redrive policy does not contain mandatory attribute: deadLetterTargetArn and maxReceiveCount.",
        )
    })?;
    let receives_max =
        u32::try_from(policy.max_receive_count.0).ok().filter(|count| (1..=1_000).contains(count));
    let receives_max =
        receives_max.ok_or_else(|| invalid("Invalid value for maxReceiveCount: it can be 1 to 1000."))?;
    let name = arn::queue_of(&policy.dead_letter_target_arn, &gateway.account_id);
    let name =
        name.ok_or_else(|| invalid("Dead letter target must be the ARN of a queue of this account."))?;
    settings.dead_letter_queue = Some(name.to_owned());
    settings.receives_max = Some(receives_max);
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RedriveAllowPolicy {
    redrive_permission: String,
    #[serde(default)]
    source_queue_arns: Vec<String>,
}

fn redrive_allow(gateway: &Gateway, value: &str) -> Result<RedriveAllow, Error> {
    let invalid = |reason: &str| Error::value("RedriveAllowPolicy", value, reason);
    if value.is_empty() {
        return Ok(RedriveAllow::default());
    }
    let policy = serde_json::from_str::<RedriveAllowPolicy>(value)
        .map_err(|_| invalid("It must be JSON with redrivePermission, and sourceQueueArns for byQueue."))?;
    let rule = match policy.redrive_permission.as_str() {
        "allowAll" => RedriveRule::AnyQueue,
        "denyAll" => RedriveRule::NoQueue,
        "byQueue" => RedriveRule::NamedQueues,
        _ => return Err(invalid("redrivePermission must be allowAll, denyAll or byQueue.")),
    };
    let arns = policy.source_queue_arns.iter();
    let queues = arns.map(|arn| arn::queue_of(arn, &gateway.account_id).map(str::to_owned));
    let queues = queues.collect::<Option<Vec<_>>>();
    let queues = queues.ok_or_else(|| invalid("sourceQueueArns must be ARNs of queues of this account."))?;
    let fits =
        if rule == RedriveRule::NamedQueues { (1..=10).contains(&queues.len()) } else { queues.is_empty() };
    if !fits {
        return Err(invalid("sourceQueueArns goes with byQueue, and has 1 to 10 ARNs."));
    }
    Ok(RedriveAllow { rule: rule as i32, queues })
}

/// Which attributes a client asks for.
pub struct Wanted<'a>(&'a [String]);

impl<'a> Wanted<'a> {
    /// # Errors
    /// `InvalidAttributeName` for a name that is none.
    pub fn new(names: &'a [String]) -> Result<Self, Error> {
        let is_known = |name: &str| {
            [OTHERS, COUNTS, OF_FIFO].iter().any(|known| known.contains(&name))
                || LABELLED.iter().any(|(labelled, _)| *labelled == name)
        };
        match names.iter().find(|name| !is_known(name)) {
            Some(name) => Err(unknown(name)),
            None => Ok(Self(names)),
        }
    }

    fn takes(&self, name: &str) -> bool {
        self.0.iter().any(|wanted| wanted == "All" || wanted == name)
    }

    /// Whether the shards have to be asked.
    pub fn has_counts(&self) -> bool {
        COUNTS.iter().any(|name| self.takes(name))
    }
}

/// The attributes of a queue, all of them.
pub fn of_queue(call: &Call<'_>, described: &DescribeQueueResponse) -> Attributes {
    let empty = QueueSettings::default();
    let settings = described.settings.as_ref().unwrap_or(&empty);
    let seconds = |milliseconds: Option<u64>| (milliseconds.unwrap_or_default() / 1_000).to_string();
    let counters = described.counters.unwrap_or_default();
    let mut attributes = Attributes::new();
    let mut put = |name: &str, value: String| drop(attributes.insert(name.to_owned(), value));
    put("VisibilityTimeout", seconds(settings.lease_ms));
    put("DelaySeconds", seconds(settings.delay_ms));
    put("MessageRetentionPeriod", seconds(settings.retention_ms));
    put("ReceiveMessageWaitTimeSeconds", seconds(settings.wait_ms));
    put("MaximumMessageSize", settings.message_bytes_max.unwrap_or_default().to_string());
    put("CreatedTimestamp", seconds(Some(described.created_wall_ms)));
    put("LastModifiedTimestamp", seconds(Some(described.modified_wall_ms)));
    put("QueueArn", call.arn(&described.queue));
    put("ApproximateNumberOfMessages", counters.ready.to_string());
    put("ApproximateNumberOfMessagesNotVisible", counters.leased.to_string());
    put("ApproximateNumberOfMessagesDelayed", counters.delayed.to_string());
    // Nothing is encrypted on disk, and nothing says that it is unless somebody said so.
    put("SqsManagedSseEnabled", "false".to_owned());
    if settings.kind() == QueueKind::Fifo {
        put("FifoQueue", "true".to_owned());
        put("ContentBasedDeduplication", settings.content_deduplication.unwrap_or_default().to_string());
        put("DeduplicationScope", "queue".to_owned());
        put("FifoThroughputLimit", "perQueue".to_owned());
    }
    for (name, label) in LABELLED {
        if let Some(value) = settings.labels.get(*label) {
            put(name, value.clone());
        }
    }
    if let Some(target) = settings.dead_letter_queue.as_deref().filter(|target| !target.is_empty()) {
        let policy = json!({
            "deadLetterTargetArn": call.arn(target), "maxReceiveCount": settings.receives_max.unwrap_or_default(),
        });
        put("RedrivePolicy", policy.to_string());
    }
    if let Some(allow) = &settings.redrive_allow {
        put("RedriveAllowPolicy", allow_policy(call, allow));
    }
    attributes
}

fn allow_policy(call: &Call<'_>, allow: &RedriveAllow) -> String {
    let arns = allow.queues.iter().map(|queue| call.arn(queue)).collect::<Vec<_>>();
    let policy = match allow.rule() {
        RedriveRule::AnyQueue => json!({ "redrivePermission": "allowAll" }),
        RedriveRule::NoQueue => json!({ "redrivePermission": "denyAll" }),
        RedriveRule::NamedQueues => json!({ "redrivePermission": "byQueue", "sourceQueueArns": arns }),
    };
    policy.to_string()
}

/// Leaves those that a client asked for.
pub fn only(mut attributes: Attributes, wanted: &Wanted<'_>) -> Attributes {
    attributes.retain(|name, _| wanted.takes(name));
    attributes
}

/// The first of the given attributes that the queue has otherwise. Policies are the same when they say the same.
pub fn first_difference<'a>(given: &'a Attributes, has: &Attributes) -> Option<&'a str> {
    let differs = |name: &str, value: &str| {
        let has = has.get(name).map_or("", String::as_str);
        has != value && !same_json(has, value)
    };
    given.iter().find(|(name, value)| differs(name, value)).map(|(name, _)| name.as_str())
}

fn same_json(left: &str, right: &str) -> bool {
    let read =
        |text: &str| serde_json::from_str::<Value>(text).ok().filter(Value::is_object).map(numbers_as_text);
    read(left).is_some_and(|left| Some(left) == read(right))
}

/// Clients give `maxReceiveCount` as a number or as text.
fn numbers_as_text(mut value: Value) -> Value {
    if let Some(count) = value.get_mut("maxReceiveCount").filter(|count| count.is_number()) {
        *count = Value::String(count.to_string());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> Attributes {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn policies_that_say_the_same_are_no_difference() {
        let has = attributes(&[
            ("RedrivePolicy", r#"{"deadLetterTargetArn":"arn:x","maxReceiveCount":3}"#),
            ("DelaySeconds", "0"),
        ]);
        let same = attributes(&[
            ("RedrivePolicy", r#"{ "maxReceiveCount": "3", "deadLetterTargetArn": "arn:x" }"#),
            ("DelaySeconds", "0"),
            ("Policy", ""),
        ]);
        assert_eq!(first_difference(&same, &has), None);
        assert_eq!(first_difference(&attributes(&[("DelaySeconds", "1")]), &has), Some("DelaySeconds"));
        let other =
            attributes(&[("RedrivePolicy", r#"{"deadLetterTargetArn":"arn:x","maxReceiveCount":4}"#)]);
        assert_eq!(first_difference(&other, &has), Some("RedrivePolicy"));
    }

    #[test]
    fn a_limit_for_each_group_needs_ids_for_each() {
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        let labelled =
            |pairs: &[(&str, &str)]| QueueSettings { labels: attributes(pairs), ..QueueSettings::default() };
        let (scope, limit) = ((SCOPE_LABEL, SCOPE_OF_GROUP), (LIMIT_LABEL, LIMIT_OF_GROUP));
        let of_queue = (SCOPE_LABEL, "queue");
        let cases: [(Pairs<'_>, Pairs<'_>, bool); 9] = [
            (&[], &[scope, limit], true),
            (&[], &[limit], false),
            (&[], &[scope], true),
            (&[], &[of_queue, limit], false),
            (&[scope], &[limit], true),
            (&[of_queue], &[limit], false),
            (&[scope, limit], &[of_queue], false),
            (&[scope, limit], &[of_queue, (LIMIT_LABEL, "perQueue")], true),
            (&[limit], &[("sqs.Policy", "{}")], true),
        ];
        for (has, change, fits) in cases {
            let (has, change) = (labelled(has), labelled(change));
            assert_eq!(check_limit(&change, Target::Existing(&has)).is_ok(), fits, "{has:?} {change:?}");
        }
        let new = Target::New(QueueKind::Fifo);
        assert!(check_limit(&labelled(&[limit]), new).is_err());
        assert!(check_limit(&labelled(&[scope, limit]), new).is_ok());
    }

    #[test]
    fn names_that_are_none_are_refused() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(Wanted::new(&names(&["All"])).unwrap().has_counts());
        assert!(!Wanted::new(&names(&["QueueArn", "Policy"])).unwrap().has_counts());
        assert_eq!(
            Wanted::new(&names(&["Colour"])).err().map(|error| error.kind),
            Some(Kind::InvalidAttributeName)
        );
    }
}
