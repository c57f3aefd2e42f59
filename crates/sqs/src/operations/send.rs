//! SendMessage and SendMessageBatch.

use leasehold_node::QueueInfo;
use leasehold_proto::v1::{Attribute, NewMessage, Outcome as NodeOutcome, SendOutcome, SendRequest};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::batch::{self, Outcome};
use super::required;
use crate::absent::{Batch, or_default, pairs};
use crate::body;
use crate::digest;
use crate::error::{Error, Kind, of_node};
use crate::gateway::Call;
use crate::hex::{self, Digits};
use crate::limits::{BATCH_BYTES_MAX, DELAY_S_MAX, TOKEN_CHARACTERS_MAX};
use crate::message_attributes::{self, AttributeMap, DEDUPLICATION_ID};
use crate::numbers::{Int, within};
use crate::queue_attributes::{SCOPE_LABEL, SCOPE_OF_GROUP};
use crate::text::Text;

/// A FIFO message's number: 20 digits, whatever the sequence.
const SEQUENCE_NUMBER_MIN: u64 = 10_000_000_000_000_000_000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SendBatch<'a> {
    #[serde(borrow)]
    queue_url: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "or_default")]
    entries: Batch<Message<'a>>,
}

/// A request by itself, with the queue, or an entry of a batch, with an id.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Message<'a> {
    #[serde(borrow)]
    queue_url: Option<Text<'a>>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    message_body: Option<Text<'a>>,
    delay_seconds: Option<Int>,
    #[serde(default, deserialize_with = "pairs")]
    message_attributes: AttributeMap,
    #[serde(default, deserialize_with = "pairs")]
    message_system_attributes: AttributeMap,
    message_deduplication_id: Option<String>,
    message_group_id: Option<String>,
}

/// What SDKs compare and keep.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Sent<'a> {
    /// Of an entry of a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Text<'a>>,
    message_id: Digits<36>,
    #[serde(rename = "MD5OfMessageBody")]
    md5_of_body: Digits<32>,
    #[serde(rename = "MD5OfMessageAttributes", skip_serializing_if = "Option::is_none")]
    md5_of_attributes: Option<Digits<32>>,
    #[serde(rename = "MD5OfMessageSystemAttributes", skip_serializing_if = "Option::is_none")]
    md5_of_system_attributes: Option<Digits<32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence_number: Option<String>,
}

/// A message in the node's words, with its digests.
struct Prepared {
    message: NewMessage,
    md5_of_body: Digits<32>,
    md5_of_attributes: Option<Digits<32>>,
    md5_of_system_attributes: Option<Digits<32>>,
}

pub async fn send<'a>(call: Call<'_>, request: Message<'a>) -> Result<Sent<'a>, Error> {
    let queue = call.queue(request.queue_url.as_deref()).await?;
    let prepared = prepare(call, &queue, request)?;
    let mut sent = send_all(call, &queue, vec![prepared]).await?;
    sent.pop().unwrap_or_else(|| Err(Error::new(Kind::InternalFailure, "no outcome came")))
}

pub async fn send_batch<'a>(call: Call<'_>, request: SendBatch<'a>) -> Result<Outcome<'a, Sent<'a>>, Error> {
    let entries = batch::checked(request.entries, |entry| entry.id.as_deref())?;
    let queue = call.queue(request.queue_url.as_deref()).await?;
    let bytes = entries.iter().map(Message::bytes).sum::<usize>();
    if bytes > BATCH_BYTES_MAX {
        let message = format!(
            "Batch requests cannot be longer than {BATCH_BYTES_MAX} bytes. You have sent {bytes} bytes."
        );
        return Err(Error::new(Kind::BatchRequestTooLong, message));
    }
    let mut outcome = Outcome::of(entries.len());
    let mut ready = Vec::with_capacity(entries.len());
    let mut ids = Vec::with_capacity(entries.len());
    let with_id = |id, sent: Sent<'a>| Sent { id: Some(id), ..sent };
    for mut entry in entries {
        let id = entry.id.take().unwrap_or_default();
        match prepare(call, &queue, entry) {
            Ok(prepared) => {
                ready.push(prepared);
                ids.push(id);
            }
            Err(error) => outcome.add(id, Err(error), with_id),
        }
    }
    if !ready.is_empty() {
        for (id, sent) in ids.into_iter().zip(send_all(call, &queue, ready).await?) {
            outcome.add(id, sent, with_id);
        }
    }
    Ok(outcome)
}

impl Message<'_> {
    /// As SQS counts them against its limits.
    fn bytes(&self) -> usize {
        let of_attribute = |(name, value): (&String, &message_attributes::AttributeValue)| {
            let len = |text: &Option<String>| text.as_ref().map_or(0, String::len);
            // Base64 has four characters for three bytes, and fills up with others.
            let binary =
                value.binary_value.as_deref().unwrap_or_default().trim_end_matches('=').len() * 3 / 4;
            name.len() + len(&value.data_type) + len(&value.string_value) + binary
        };
        let body = self.message_body.as_ref().map_or(0, |body| body.len());
        body + self.message_attributes.iter().map(of_attribute).sum::<usize>()
    }
}

/// Checks a message against what SQS lets through.
fn prepare(call: Call<'_>, queue: &QueueInfo, message: Message<'_>) -> Result<Prepared, Error> {
    let body = required(message.message_body, "MessageBody")?;
    if body.is_empty() {
        return Err(Error::missing("MessageBody"));
    }
    if !body::is_allowed(&body) {
        let message = "Invalid binary character was found in the message body, the set of allowed characters is #x9 | #xA | #xD | \
                       #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF.";
        return Err(Error::new(Kind::InvalidMessageContents, message));
    }
    let mut attributes = message_attributes::read(&message.message_attributes)?;
    let md5_of_attributes = message_attributes::digest_of(&attributes);
    let bytes = body.len() + attributes.iter().map(bytes_of).sum::<usize>();
    if bytes > queue.message_bytes_max() {
        let max = queue.message_bytes_max();
        let message =
            format!("One or more parameters are invalid. Reason: Message must be shorter than {max} bytes.");
        return Err(Error::new(Kind::InvalidParameterValue, message));
    }
    let header = message_attributes::read_system(&message.message_system_attributes)?;
    let md5_of_system_attributes = header.as_ref().and_then(message_attributes::digest_of_system);
    attributes.extend(header);
    let group = token("MessageGroupId", message.message_group_id)?;
    let id = token("MessageDeduplicationId", message.message_deduplication_id)?;
    let delay_s = within("DelaySeconds", message.delay_seconds, 0, DELAY_S_MAX)?;
    let deduplication_id = match queue.is_fifo() {
        true => fifo_id(queue, &body, group.as_deref(), id, delay_s, &mut attributes)?,
        false if id.is_some() => return Err(not_for_this_kind("MessageDeduplicationId")),
        false => None,
    };
    Ok(Prepared {
        md5_of_body: digest::of_body(body.as_bytes()),
        md5_of_attributes,
        md5_of_system_attributes,
        message: NewMessage {
            body: body.into_bytes(call.request),
            attributes,
            // A FIFO queue has a delay, and its messages have none of their own.
            delay_ms: delay_s.filter(|_| !queue.is_fifo()).map(|seconds| seconds * 1_000),
            expiry_ms: None,
            group,
            deduplication_id,
        },
    })
}

fn bytes_of(attribute: &Attribute) -> usize {
    attribute.name.len() + attribute.r#type.len() + attribute.value.len()
}

/// The deduplication id of a message of a FIFO queue. Where the scope is the message group, the queue knows a digest of group and
/// id, and the message carries its own id.
fn fifo_id(
    queue: &QueueInfo,
    body: &str,
    group: Option<&str>,
    id: Option<String>,
    delay_s: Option<u64>,
    attributes: &mut Vec<Attribute>,
) -> Result<Option<String>, Error> {
    let group = group.ok_or_else(|| Error::missing("MessageGroupId"))?;
    if delay_s.is_some_and(|seconds| seconds > 0) {
        return Err(not_for_this_kind("DelaySeconds"));
    }
    if id.is_none() && !queue.content_deduplication() {
        let message = "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly";
        return Err(Error::new(Kind::InvalidParameterValue, message));
    }
    if queue.label(SCOPE_LABEL) != Some(SCOPE_OF_GROUP) {
        return Ok(id);
    }
    let id = id.unwrap_or_else(|| hex::of_32(Sha256::digest(body).into()).to_string());
    let mut both = Sha256::new();
    both.update((group.len() as u64).to_le_bytes());
    both.update(group);
    both.update(&id);
    let value = id.into_bytes().into();
    attributes.push(Attribute { name: DEDUPLICATION_ID.to_owned(), r#type: "String".to_owned(), value });
    Ok(Some(hex::of_32(both.finalize().into()).to_string()))
}

fn not_for_this_kind(parameter: &str) -> Error {
    let message = format!("The request include parameter {parameter} that is not valid for this queue type");
    Error::new(Kind::InvalidParameterValue, message)
}

/// A message group, deduplication id or attempt id.
pub fn token(parameter: &str, text: Option<String>) -> Result<Option<String>, Error> {
    let fits = |text: &String| {
        (1..=TOKEN_CHARACTERS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match text {
        Some(text) if !fits(&text) => {
            let reason = format!(
                "{parameter} can only include alphanumeric and punctuation characters. 1 to 128 in length."
            );
            Err(Error::value(parameter, text, &reason))
        }
        text => Ok(text),
    }
}

async fn send_all<'a>(
    call: Call<'_>,
    queue: &QueueInfo,
    prepared: Vec<Prepared>,
) -> Result<Vec<Result<Sent<'a>, Error>>, Error> {
    let session = call.gateway.sessions.take();
    let mut messages = Vec::with_capacity(prepared.len());
    let mut told = Vec::with_capacity(prepared.len());
    for Prepared { message, md5_of_body, md5_of_attributes, md5_of_system_attributes } in prepared {
        messages.push(message);
        told.push((md5_of_body, md5_of_attributes, md5_of_system_attributes));
    }
    let request = SendRequest { queue: queue.name().to_owned(), messages, request: session.request() };
    let outcomes = call.service().send(&request).await?;
    let sent = told.into_iter().zip(outcomes).map(|((md5_of_body, of_attributes, of_system), outcome)| {
        let (message_id, sequence_number) = told_of(call, queue, outcome)?;
        Ok(Sent {
            id: None,
            message_id,
            md5_of_body,
            md5_of_attributes: of_attributes,
            md5_of_system_attributes: of_system,
            sequence_number,
        })
    });
    Ok(sent.collect())
}

fn told_of(
    call: Call<'_>,
    queue: &QueueInfo,
    outcome: SendOutcome,
) -> Result<(Digits<36>, Option<String>), Error> {
    match (outcome.outcome(), outcome.id) {
        (NodeOutcome::Done, Some(id)) => {
            let sequence_number = queue.is_fifo().then(|| sequence_number(id.sequence));
            Ok((call.message_id(&id), sequence_number))
        }
        (failed, _) => Err(of_node(failed, outcome.reason(), outcome.detail)),
    }
}

pub fn sequence_number(sequence: u64) -> String {
    SEQUENCE_NUMBER_MIN.saturating_add(sequence).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_have_twenty_digits_and_grow() {
        let numbers = [0, 1, 9, 10, u64::MAX / 2].map(sequence_number);
        assert!(numbers.iter().all(|number| number.len() == 20), "{numbers:?}");
        assert!(numbers.is_sorted());
    }

    #[test]
    fn tokens_are_printable_and_short() {
        let token = |text: &str| token("T", Some(text.to_owned()));
        assert!(token("a!\"#~").is_ok() && token(&"a".repeat(128)).is_ok());
        for wrong in ["", "a b", "ü", "a\n", &"a".repeat(129)] {
            assert!(token(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_counts_against_a_batch() {
        for (binary, bytes) in [("AAAA", 3), ("AAA=", 2), ("AA==", 1), ("AAAAAA==", 4)] {
            let text = format!(
                r#"{{"Id":"1","MessageBody":"ab","MessageAttributes":{{"n":{{"DataType":"Binary","BinaryValue":"{binary}"}}}}}}"#
            );
            let message = serde_json::from_str::<Message<'_>>(&text).unwrap();
            assert_eq!(message.bytes(), 2 + 1 + 6 + bytes, "{binary}");
        }
    }
}
