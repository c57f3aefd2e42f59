//! `leasehold peek` and `leasehold why`, and how messages are shown.

use std::time::UNIX_EPOCH;

use leasehold_client::{Attribute, Client, Message, MessageId};
use serde_json::{Value, json};

use crate::input::message_id;
use crate::output::{Failure, Output};

#[derive(clap::Args)]
pub struct Peek {
    queue: String,
    /// Messages to look at: up to 1000.
    #[arg(long, default_value_t = 10)]
    max: u32,
}

pub async fn peek(arguments: Peek, client: &Client, output: Output) -> Result<(), Failure> {
    for message in client.peek(&arguments.queue, arguments.max).await? {
        let state = message.state().as_str_name().to_lowercase();
        let id = id_text(message.id.unwrap_or_default());
        let body = String::from_utf8_lossy(&message.body);
        let text = format!("{id} {state:<8} received {} times: {body}", message.receive_count);
        let mut object = json!({ "id": id, "state": state, "receive_count": message.receive_count });
        add_body(&mut object, &message.body);
        output.line(text, &object)?;
    }
    Ok(())
}

#[derive(clap::Args)]
pub struct Why {
    queue: String,
    /// partition:sequence, as `send` and `receive --json` print it.
    #[arg(value_parser = message_id)]
    id: MessageId,
}

pub async fn why(arguments: Why, client: &Client, output: Output) -> Result<(), Failure> {
    let life = client.why(&arguments.queue, arguments.id).await?;
    for event in &life.events {
        let text = format!("{:>14} {:<12} {}", event.wall_ms, event.event, event.detail);
        let object = json!({
            "wall_ms": event.wall_ms, "log_time_ms": event.log_time_ms, "log_index": event.log_index,
            "event": event.event, "detail": event.detail, "fencing_token": event.fencing_token,
        });
        output.line(text, &object)?;
    }
    output.line(format!("now: {}", life.state), &json!({ "state": life.state }))
}

pub fn id_text(id: MessageId) -> String {
    format!("{}:{}", id.partition, id.sequence)
}

pub fn message_json(message: &Message) -> Value {
    let sent_ms = message.sent_at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let mut object = json!({
        "id": id_text(message.id), "receipt": hex(&message.receipt), "group": message.group,
        "receive_count": message.receive_count, "sent_wall_ms": sent_ms,
        "fencing_token": message.fencing_token,
    });
    add_attributes(&mut object, &message.attributes);
    add_body(&mut object, &message.body);
    object
}

/// Those that are text under `attributes`, the others under `attributes_hex`, if there are any.
fn add_attributes(object: &mut Value, attributes: &[Attribute]) {
    object["attributes"] = json!({});
    for Attribute { name, value, .. } in attributes {
        match std::str::from_utf8(value) {
            Ok(text) => object["attributes"][name] = Value::from(text),
            Err(_) => object["attributes_hex"][name] = Value::from(hex(value)),
        }
    }
}

/// `body` when it is text, `body_hex` when it is not: nothing of it may be lost before it is acknowledged.
fn add_body(object: &mut Value, body: &[u8]) {
    match std::str::from_utf8(body) {
        Ok(text) => object["body"] = Value::from(text),
        Err(_) => {
            object["body_hex"] = Value::from(hex(body));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_no_text_is_told_byte_by_byte() {
        let (mut text, mut bytes) = (json!({}), json!({}));
        add_body(&mut text, b"a\n");
        add_body(&mut bytes, b"\xff\x00");
        assert_eq!((text, bytes), (json!({ "body": "a\n" }), json!({ "body_hex": "ff00" })));
    }

    #[test]
    fn attributes_that_are_no_text_are_told_byte_by_byte() {
        let attribute = |name: &str, value: &'static [u8]| Attribute {
            name: name.to_owned(),
            r#type: String::new(),
            value: value.into(),
        };
        let told = |attributes: &[Attribute]| {
            let mut object = json!({});
            add_attributes(&mut object, attributes);
            object
        };
        assert_eq!(told(&[]), json!({ "attributes": {} }));
        let both = [attribute("text", b"a"), attribute("bytes", b"\xff")];
        let expected = json!({ "attributes": { "text": "a" }, "attributes_hex": { "bytes": "ff" } });
        assert_eq!(told(&both), expected);
    }
}
