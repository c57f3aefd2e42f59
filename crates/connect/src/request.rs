//! What an endpoint is sent: messages as JSON, or one as it is.
//!
//! Both forms are told in docs/connect.md, field by field. A change that a reader could stumble over gets another version.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use leasehold_client::{Attribute, Message, MessageId};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Of the JSON form.
const VERSION: u32 = 1;
/// Bytes of the digest that names a batch.
const BATCH_KEY_BYTES: usize = 16;

/// What cannot stand in the value of a header as it is.
const IN_VALUES: &AsciiSet = &CONTROLS.add(b' ').add(b'%');
/// What cannot stand in the name of a header.
const IN_NAMES: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'%')
    .add(b'(')
    .add(b')')
    .add(b',')
    .add(b'/')
    .add(b':')
    .add(b';')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'@')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'{')
    .add(b'}');

/// Attributes that are headers of their own in the raw form, where their values can be.
const OWN_HEADERS: [&str; 3] = ["content-type", "traceparent", "tracestate"];

/// How a request carries messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Several as JSON.
    Batch,
    /// One: its body as it is, the rest in headers.
    Raw,
}

/// Where messages come from, which makes their names the only ones in the world.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) cluster: String,
    pub(crate) queue: String,
}

/// A request but for its URL.
pub(crate) struct Request {
    /// The same whenever the same messages are sent together.
    pub(crate) key: HeaderValue,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Names a message in an answer.
pub(crate) fn id_text(id: MessageId) -> String {
    format!("{}:{}", id.partition, id.sequence)
}

impl Source {
    /// The same at each delivery of a message, and of no other.
    fn key(&self, message: &Message) -> String {
        format!("{}-{}-{}", self.cluster, message.id.partition, message.id.sequence)
    }

    /// A request with messages; of the raw form with the only one.
    pub(crate) fn request(&self, form: Form, messages: &[&Message]) -> Request {
        match (form, messages) {
            (Form::Raw, [message]) => self.raw(message),
            _ => self.batch(messages),
        }
    }

    fn batch(&self, messages: &[&Message]) -> Request {
        let told = messages.iter().map(|message| Told::new(message, self.key(message)));
        let batch = Batch { version: VERSION, queue: &self.queue, messages: told.collect() };
        let body = serde_json::to_vec(&batch).expect("a batch has nothing that JSON has not");
        let key = value(batch_key(&batch.messages).as_bytes());
        let mut headers = self.headers(&key);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Request { key, headers, body: body.into() }
    }

    fn raw(&self, message: &Message) -> Request {
        let key = value(self.key(message).as_bytes());
        let mut headers = self.headers(&key);
        let mut add = |name: &'static str, text: String| headers.insert(name, value(text.as_bytes()));
        add("leasehold-message-id", id_text(message.id));
        add("leasehold-receive-count", message.receive_count.to_string());
        add("leasehold-fencing-token", message.fencing_token.to_string());
        add("leasehold-sent-at-ms", millis(message.sent_at).to_string());
        message.group.clone().map(|group| add("leasehold-group", group));
        message.deduplication_id.clone().map(|id| add("leasehold-deduplication-id", id));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        for attribute in &message.attributes {
            add_attribute(&mut headers, attribute);
        }
        Request { key, headers, body: message.body.clone() }
    }

    fn headers(&self, key: &HeaderValue) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("leasehold-queue", value(self.queue.as_bytes()));
        headers.insert("idempotency-key", key.clone());
        headers
    }
}

fn add_attribute(headers: &mut HeaderMap, attribute: &Attribute) {
    let own = OWN_HEADERS.iter().find(|own| attribute.name.eq_ignore_ascii_case(own));
    if let Some((own, value)) = own.zip(HeaderValue::from_bytes(&attribute.value).ok()) {
        headers.insert(*own, value);
        return;
    }
    let name = percent_encode(attribute.name.as_bytes(), IN_NAMES);
    if let Ok(name) = format!("leasehold-attribute-{name}").parse::<HeaderName>() {
        headers.append(name, value(&attribute.value));
    }
}

/// Bytes as the value of a header; what is not visible there is percent-encoded.
fn value(bytes: &[u8]) -> HeaderValue {
    let text = percent_encode(bytes, IN_VALUES).to_string();
    HeaderValue::from_str(&text).expect("what is encoded is visible ASCII")
}

/// Names messages that are sent together, in their order.
fn batch_key(messages: &[Told<'_>]) -> String {
    let mut digest = Sha256::new();
    for message in messages {
        digest.update(message.idempotency_key.as_bytes());
        digest.update(b"\n");
    }
    let hex =
        digest.finalize().iter().take(BATCH_KEY_BYTES).map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("batch-{hex}")
}

#[derive(Serialize)]
struct Batch<'a> {
    version: u32,
    queue: &'a str,
    messages: Vec<Told<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    id: String,
    idempotency_key: String,
    receive_count: u32,
    fencing_token: u64,
    sent_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deduplication_id: Option<&'a str>,
    attributes: serde_json::Map<String, serde_json::Value>,
    #[serde(flatten)]
    body: Content<'a>,
}

/// Text as it is, other bytes in base64.
#[derive(Serialize)]
enum Content<'a> {
    #[serde(rename = "body")]
    Text(&'a str),
    #[serde(rename = "bodyBase64")]
    Base64(String),
}

impl<'a> Told<'a> {
    fn new(message: &'a Message, idempotency_key: String) -> Self {
        let body = match std::str::from_utf8(&message.body) {
            Ok(text) => Content::Text(text),
            Err(_) => Content::Base64(BASE64_STANDARD.encode(&message.body)),
        };
        let attributes = message.attributes.iter();
        Self {
            id: id_text(message.id),
            idempotency_key,
            receive_count: message.receive_count,
            fencing_token: message.fencing_token,
            sent_at_ms: millis(message.sent_at),
            group: message.group.as_deref(),
            deduplication_id: message.deduplication_id.as_deref(),
            attributes: attributes
                .map(|attribute| (attribute.name.clone(), told_attribute(attribute)))
                .collect(),
            body,
        }
    }
}

fn told_attribute(attribute: &Attribute) -> serde_json::Value {
    match std::str::from_utf8(&attribute.value) {
        Ok(text) => serde_json::json!({ "type": attribute.r#type, "value": text }),
        Err(_) => {
            let encoded = BASE64_STANDARD.encode(&attribute.value);
            serde_json::json!({ "type": attribute.r#type, "valueBase64": encoded })
        }
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use leasehold_client::v1::Delivery;
    use serde_json::{Value, json};

    use super::*;

    fn source() -> Source {
        Source { cluster: "c0ffee".to_owned(), queue: "q".to_owned() }
    }

    fn attribute(name: &str, value: &[u8]) -> Attribute {
        Attribute { name: name.to_owned(), r#type: "String".to_owned(), value: Bytes::copy_from_slice(value) }
    }

    fn message(sequence: u64, body: &'static [u8]) -> Message {
        Message::from(Delivery {
            id: Some(MessageId { partition: 2, sequence }),
            body: Bytes::from_static(body),
            receive_count: 3,
            fencing_token: 99,
            sent_wall_ms: 1_700_000_000_000,
            attributes: vec![attribute("kind", b"test"), attribute("raw", b"\xff")],
            group: Some("a b/ü".to_owned()),
            ..Delivery::default()
        })
    }

    #[test]
    fn a_batch_says_everything_of_each_message() {
        let (text, bytes) = (message(17, b"cat.jpg"), message(18, b"\xff\x00"));
        let request = source().request(Form::Batch, &[&text, &bytes]);
        assert_eq!(request.headers["content-type"], "application/json");
        assert_eq!(request.headers["leasehold-queue"], "q");
        assert_eq!(request.headers["idempotency-key"], request.key);
        let told: Value = serde_json::from_slice(&request.body).unwrap();
        let first = json!({
            "id": "2:17", "idempotencyKey": "c0ffee-2-17", "receiveCount": 3, "fencingToken": 99,
            "sentAtMs": 1_700_000_000_000_u64, "group": "a b/ü", "body": "cat.jpg", "attributes": {
                "kind": { "type": "String", "value": "test" }, "raw": { "type": "String", "valueBase64": "/w==" },
            },
        });
        assert_eq!(told, json!({ "version": 1, "queue": "q", "messages": [first, told["messages"][1]] }));
        assert_eq!(told["messages"][1]["bodyBase64"], "/wA=");
        assert_eq!(told["messages"][1].get("body"), None);
    }

    #[test]
    fn a_batch_has_the_same_key_again_and_another_with_other_messages() {
        let (one, two) = (message(1, b"a"), message(2, b"b"));
        let key = |messages: &[&Message]| source().request(Form::Batch, messages).key;
        assert_eq!(key(&[&one, &two]), key(&[&one, &two]));
        assert!(key(&[&one, &two]) != key(&[&one]) && key(&[&one]) != key(&[&two]));
    }

    #[test]
    fn a_raw_request_has_the_body_as_it_is_and_the_rest_in_headers() {
        let mut message = message(17, b"\xff\x00");
        let more = [
            ("content-type", "image/png"),
            ("Traceparent", "00-1-2-01"),
            ("odd name:", "1\n2"),
            ("content-type", "a\nb"),
        ];
        message.attributes.extend(more.iter().map(|(name, value)| attribute(name, value.as_bytes())));
        let request = source().request(Form::Raw, &[&message]);
        assert_eq!(request.body, &b"\xff\x00"[..]);
        for (name, expected) in [
            ("idempotency-key", "c0ffee-2-17"),
            ("leasehold-queue", "q"),
            ("leasehold-message-id", "2:17"),
            ("leasehold-receive-count", "3"),
            ("leasehold-fencing-token", "99"),
            ("leasehold-sent-at-ms", "1700000000000"),
            ("leasehold-group", "a%20b/%C3%BC"),
            ("leasehold-attribute-kind", "test"),
            ("leasehold-attribute-raw", "%FF"),
            ("leasehold-attribute-odd%20name%3a", "1%0A2"),
            ("leasehold-attribute-content-type", "a%0Ab"),
            ("content-type", "image/png"),
            ("traceparent", "00-1-2-01"),
        ] {
            assert_eq!(request.headers[name], expected, "{name}");
        }
    }

    #[test]
    fn a_raw_request_without_a_type_is_bytes() {
        let request = source().request(Form::Raw, &[&message(1, b"")]);
        assert_eq!(request.headers["content-type"], "application/octet-stream");
    }
}
