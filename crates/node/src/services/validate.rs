//! The limits of requests. Each refusal names the field, what it was, and what it can be.

use leasehold_partition::limits::{
    DELAY_MS_MAX, EXPIRY_MS_MAX, LEASE_MS_MAX, NAME_BYTES_MAX, REJECT_REASON_BYTES_MAX,
};
use leasehold_proto::v1::{Attribute, NewMessage, Reason};

use crate::failure::Failure;
use crate::limits::{CONSUMER_BYTES_MAX, SEND_BYTES_MAX, SEND_MESSAGES_MAX, SETTLE_ITEMS_MAX};
use crate::queue_info::QueueInfo;

const ATTRIBUTES_MAX: usize = 64;
const ATTRIBUTE_NAME_BYTES_MAX: usize = 256;
/// Attributes that the gateway for SQS clients adds to a message, and what they can have.
const OF_SQS: &[&str] = &["AWS.TraceHeader", "AWS.MessageDeduplicationId"];
const OF_SQS_BYTES_MAX: usize = 1_024;

pub fn invalid(detail: impl Into<String>) -> Failure {
    Failure::not_done(Reason::InvalidArgument, detail)
}

/// The batch as a whole.
pub fn send(messages: &[NewMessage]) -> Result<(), Failure> {
    let too_large = |detail: String| Failure::not_done(Reason::BatchTooLarge, detail);
    if messages.is_empty() || messages.len() > SEND_MESSAGES_MAX {
        return Err(too_large(format!(
            "a send has {} messages: it can have 1 to {SEND_MESSAGES_MAX}",
            messages.len()
        )));
    }
    let bytes = messages.iter().map(message_bytes).sum::<usize>();
    if bytes > SEND_BYTES_MAX {
        return Err(too_large(format!(
            "the messages of a send have {bytes} bytes: they can have {SEND_BYTES_MAX}"
        )));
    }
    Ok(())
}

/// Body and attributes: what the limit of a queue counts.
pub fn message_bytes(message: &NewMessage) -> usize {
    let counted = message.attributes.iter().filter(|attribute| !is_of_sqs(attribute));
    let of_attribute =
        |attribute: &Attribute| attribute.name.len() + attribute.r#type.len() + attribute.value.len();
    message.body.len() + counted.map(of_attribute).sum::<usize>()
}

/// Whether an attribute is of those that do not count with Amazon. A larger one is no gateway's, and counts.
fn is_of_sqs(attribute: &Attribute) -> bool {
    OF_SQS.contains(&attribute.name.as_str()) && attribute.value.len() <= OF_SQS_BYTES_MAX
}

/// One message of a batch.
pub fn message(queue: &QueueInfo, message: &NewMessage) -> Result<(), Failure> {
    let bytes = message_bytes(message);
    if bytes > queue.message_bytes_max() {
        let max = queue.message_bytes_max();
        return Err(Failure::not_done(
            Reason::MessageTooLarge,
            format!(
                "a message has {bytes} bytes with its attributes: {} takes {max} (message_bytes_max)",
                queue.name()
            ),
        ));
    }
    within("delay_ms", message.delay_ms, u64::from(DELAY_MS_MAX))?;
    within("expiry_ms", message.expiry_ms, EXPIRY_MS_MAX)?;
    name("group", message.group.as_deref())?;
    name("deduplication_id", message.deduplication_id.as_deref())?;
    if queue.is_fifo() && message.group.is_none() {
        let detail = format!("{} is a FIFO queue: each message needs a group", queue.name());
        return Err(Failure::not_done(Reason::GroupRequired, detail));
    }
    attributes(&message.attributes)
}

fn attributes(attributes: &[Attribute]) -> Result<(), Failure> {
    if attributes.len() > ATTRIBUTES_MAX {
        return Err(invalid(format!(
            "a message has {} attributes: it can have {ATTRIBUTES_MAX}",
            attributes.len()
        )));
    }
    for (at, attribute) in attributes.iter().enumerate() {
        let len = attribute.name.len();
        if len == 0 || len > ATTRIBUTE_NAME_BYTES_MAX {
            return Err(invalid(format!(
                "an attribute's name has {len} bytes: it can have 1 to {ATTRIBUTE_NAME_BYTES_MAX}"
            )));
        }
        if attributes[..at].iter().any(|other| other.name == attribute.name) {
            return Err(invalid(format!("a message has two attributes named {:?}", attribute.name)));
        }
    }
    Ok(())
}

fn name(field: &str, name: Option<&str>) -> Result<(), Failure> {
    match name.map(str::len) {
        Some(len) if len == 0 || len > NAME_BYTES_MAX => {
            Err(invalid(format!("{field} has {len} bytes: it can have 1 to {NAME_BYTES_MAX}")))
        }
        _ => Ok(()),
    }
}

fn within(field: &str, value: Option<u64>, max: u64) -> Result<(), Failure> {
    match value {
        Some(value) if value > max => Err(invalid(format!("{field} is {value}: it can be 0 to {max}"))),
        _ => Ok(()),
    }
}

/// A lease that a consumer asks for.
pub fn lease(lease_ms: u64) -> Result<u32, Failure> {
    u32::try_from(lease_ms).ok().filter(|lease_ms| *lease_ms <= LEASE_MS_MAX).ok_or_else(|| {
        let detail = format!("lease_ms is {lease_ms}: it can be 0 to {LEASE_MS_MAX} (12 h)");
        Failure::not_done(Reason::LeaseTooLong, detail)
    })
}

pub fn release_delay(delay_ms: u64) -> Result<u32, Failure> {
    let max = leasehold_partition::limits::RELEASE_DELAY_MS_MAX;
    u32::try_from(delay_ms)
        .ok()
        .filter(|delay_ms| *delay_ms <= max)
        .ok_or_else(|| invalid(format!("delay_ms is {delay_ms}: it can be 0 to {max}")))
}

/// Why a message is rejected. No time goes with it.
pub fn reject_reason(why: &str) -> Result<u32, Failure> {
    if why.len() > REJECT_REASON_BYTES_MAX {
        return Err(invalid(format!("why has {} bytes: it can have {REJECT_REASON_BYTES_MAX}", why.len())));
    }
    Ok(0)
}

pub fn consumer(consumer: &str) -> Result<(), Failure> {
    if consumer.len() > CONSUMER_BYTES_MAX {
        return Err(invalid(format!(
            "consumer has {} bytes: it can have {CONSUMER_BYTES_MAX}",
            consumer.len()
        )));
    }
    Ok(())
}

pub fn attempt(attempt: Option<&str>) -> Result<(), Failure> {
    name("attempt_id", attempt)
}

pub fn settle(items: usize) -> Result<(), Failure> {
    if items == 0 || items > SETTLE_ITEMS_MAX {
        let detail = format!("{items} receipts at once: there can be 1 to {SETTLE_ITEMS_MAX}");
        return Err(Failure::not_done(Reason::BatchTooLarge, detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sqs_adds_to_a_message_does_not_count() {
        let bytes = |name: &str, len: usize| {
            let value = vec![b'x'; len].into();
            let attribute = Attribute { name: name.to_owned(), r#type: "String".to_owned(), value };
            message_bytes(&NewMessage { attributes: vec![attribute], ..NewMessage::default() })
        };
        assert_eq!(bytes("AWS.Other", 10), 9 + 6 + 10);
        assert_eq!(bytes("AWS.TraceHeader", 1_024) + bytes("AWS.MessageDeduplicationId", 128), 0);
        assert_eq!(bytes("AWS.TraceHeader", 1_025), 15 + 6 + 1_025);
    }
}
