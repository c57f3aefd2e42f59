//! ReceiveMessage.

use std::collections::BTreeMap;

use leasehold_node::QueueInfo;
use leasehold_proto::v1::{Attribute, Delivery, ReceiveRequest, ReceiveResponse};
use serde::{Deserialize, Serialize};

use super::send::{sequence_number, token};
use crate::absent::names;
use crate::body::Shown;
use crate::digest;
use crate::error::{Error, Kind};
use crate::gateway::Call;
use crate::hex::Digits;
use crate::limits::{RECEIVE_MESSAGES_MAX, VISIBILITY_S_MAX, WAIT_S_MAX};
use crate::message_attributes::{
    self, AttributeMap, BODY_ENCODING, DEDUPLICATION_ID, Filter, SYSTEM_TRACE_HEADER, TRACE_HEADER,
};
use crate::numbers::{Int, within};
use crate::receipt_handle::Handle;
use crate::text::Text;

/// Who receives, for `leasehold why`.
const CONSUMER: &str = "sqs";
const SYSTEM_NAMES: &[&str] = &[
    "All",
    "SenderId",
    "SentTimestamp",
    "ApproximateReceiveCount",
    "ApproximateFirstReceiveTimestamp",
    "SequenceNumber",
    "MessageDeduplicationId",
    "MessageGroupId",
    SYSTEM_TRACE_HEADER,
    "DeadLetterQueueSourceArn",
];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Receive<'a> {
    #[serde(borrow)]
    queue_url: Option<Text<'a>>,
    /// The old name of the next.
    #[serde(default, deserialize_with = "names")]
    attribute_names: Vec<String>,
    #[serde(default, deserialize_with = "names")]
    message_system_attribute_names: Vec<String>,
    #[serde(default, deserialize_with = "names")]
    message_attribute_names: Vec<String>,
    max_number_of_messages: Option<Int>,
    visibility_timeout: Option<Int>,
    wait_time_seconds: Option<Int>,
    receive_request_attempt_id: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Received {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    messages: Vec<Message>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Message {
    message_id: Digits<36>,
    receipt_handle: Handle,
    #[serde(rename = "MD5OfBody")]
    md5_of_body: Digits<32>,
    body: Shown,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    attributes: BTreeMap<&'static str, String>,
    #[serde(rename = "MD5OfMessageAttributes", skip_serializing_if = "Option::is_none")]
    md5_of_attributes: Option<Digits<32>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    message_attributes: AttributeMap,
}

/// What a receive asks to be told of each message.
struct Asked<'a> {
    call: Call<'a>,
    queue: &'a QueueInfo,
    system: Vec<&'a str>,
    user: Filter<'a>,
}

pub async fn receive(call: Call<'_>, request: Receive<'_>) -> Result<Received, Error> {
    let queue = call.queue(request.queue_url.as_deref()).await?;
    let messages_max =
        within("MaxNumberOfMessages", request.max_number_of_messages, 1, RECEIVE_MESSAGES_MAX)?;
    let lease_s = within("VisibilityTimeout", request.visibility_timeout, 0, VISIBILITY_S_MAX)?;
    let wait_s = within("WaitTimeSeconds", request.wait_time_seconds, 0, WAIT_S_MAX)?;
    let attempt = token("ReceiveRequestAttemptId", request.receive_request_attempt_id)?;
    let names = request.message_system_attribute_names.iter().chain(&request.attribute_names);
    let system = names.map(String::as_str).collect::<Vec<_>>();
    if let Some(name) = system.iter().find(|name| !SYSTEM_NAMES.contains(name)) {
        return Err(Error::new(Kind::InvalidAttributeName, format!("Unknown Attribute {name}.")));
    }
    let wanted = ReceiveRequest {
        queue: queue.name().to_owned(),
        messages_max: messages_max.unwrap_or(1) as u32,
        lease_ms: lease_s.map(|seconds| seconds * 1_000),
        wait_ms: wait_s.map_or(queue.wait_ms(), |seconds| seconds * 1_000),
        consumer: CONSUMER.to_owned(),
        // On a standard queue SQS knows no attempts.
        attempt_id: attempt.filter(|_| queue.is_fifo()),
        ..ReceiveRequest::default()
    };
    let received = wait(call, &wanted).await?;
    let user = Filter::new(&request.message_attribute_names);
    let asked = Asked { call, queue: &queue, system, user };
    Ok(Received {
        messages: received.deliveries.into_iter().map(|delivery| asked.message(delivery)).collect(),
    })
}

/// Receives; a node that stops lets those go who wait, with nothing.
async fn wait(call: Call<'_>, wanted: &ReceiveRequest) -> Result<ReceiveResponse, Error> {
    if wanted.wait_ms == 0 {
        return Ok(call.service().receive(wanted).await?);
    }
    tokio::select! {
        biased;
        received = call.service().receive(wanted) => Ok(received?),
        () = call.gateway.stopped() => Ok(ReceiveResponse::default()),
    }
}

impl Asked<'_> {
    fn message(&self, delivery: Delivery) -> Message {
        let id = delivery.id.unwrap_or_default();
        // A dead message keeps the id that it had.
        let first_id =
            delivery.origin.as_ref().filter(|_| self.is_dead(&delivery)).and_then(|origin| origin.id);
        let attributes = self.system(&delivery, id.sequence);
        let body = Shown::of(delivery.body);
        let encoding = matches!(body, Shown::InBase64(_)).then(|| Attribute {
            name: BODY_ENCODING.to_owned(),
            r#type: "String".to_owned(),
            value: "base64".into(),
        });
        let of_user = |attribute: &&Attribute| {
            !message_attributes::is_reserved(&attribute.name) && self.user.takes(&attribute.name)
        };
        let chosen = delivery.attributes.iter().filter(of_user).chain(&encoding).collect::<Vec<_>>();
        Message {
            message_id: self.call.message_id(&first_id.unwrap_or(id)),
            receipt_handle: Handle(delivery.receipt),
            md5_of_body: digest::of_body(body.text().as_bytes()),
            body,
            attributes,
            md5_of_attributes: message_attributes::digest_of(chosen.iter().copied()),
            message_attributes: chosen
                .into_iter()
                .map(|attribute| (attribute.name.clone(), message_attributes::shown(attribute)))
                .collect(),
        }
    }

    fn is_dead(&self, delivery: &Delivery) -> bool {
        delivery.origin.as_ref().is_some_and(|origin| origin.queue != self.queue.name())
    }

    fn system(&self, delivery: &Delivery, sequence: u64) -> BTreeMap<&'static str, String> {
        let mut attributes = BTreeMap::new();
        if self.system.is_empty() {
            return attributes;
        }
        let mut put = |name: &'static str, value: Option<String>| {
            if let Some(value) =
                value.filter(|_| self.system.iter().any(|asked| *asked == name || *asked == "All"))
            {
                attributes.insert(name, value);
            }
        };
        let reserved = |name: &str| {
            let found = delivery.attributes.iter().find(|attribute| attribute.name == name)?;
            String::from_utf8(found.value.to_vec()).ok()
        };
        put("SenderId", Some(self.call.gateway.account_id.clone()));
        put("SentTimestamp", Some(delivery.sent_wall_ms.to_string()));
        put("ApproximateReceiveCount", Some(delivery.receive_count.to_string()));
        put("ApproximateFirstReceiveTimestamp", Some(delivery.first_received_wall_ms.to_string()));
        put(SYSTEM_TRACE_HEADER, reserved(TRACE_HEADER));
        put("MessageGroupId", delivery.group.clone());
        if self.queue.is_fifo() {
            put("SequenceNumber", Some(sequence_number(sequence)));
            let id = reserved(DEDUPLICATION_ID).or_else(|| delivery.deduplication_id.clone());
            put("MessageDeduplicationId", id);
        }
        // One that is deleted has no name any more.
        let source = delivery.origin.as_ref();
        let source = source.filter(|origin| self.is_dead(delivery) && !origin.queue.is_empty());
        put("DeadLetterQueueSourceArn", source.map(|origin| self.call.arn(&origin.queue)));
        attributes
    }
}
