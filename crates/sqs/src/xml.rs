//! Answers of the Query protocol: the JSON of an operation, turned into XML.

use serde_json::{Map, Value};

use crate::error::Error;

const NAMESPACE: &str = "http://queue.amazonaws.com/doc/2012-11-05/";

/// Lists, by the names that their items have in XML.
const LISTS: &[(&str, &str)] = &[
    ("QueueUrls", "QueueUrl"),
    ("queueUrls", "QueueUrl"),
    ("Messages", "Message"),
    ("Failed", "BatchResultErrorEntry"),
    ("Results", "ListMessageMoveTasksResultEntry"),
];

/// Maps, with the names of an item, its key and its value.
const MAPS: &[(&str, &str, &str)] = &[
    ("Attributes", "Attribute", "Name"),
    ("MessageAttributes", "MessageAttribute", "Name"),
    ("Tags", "Tag", "Key"),
];

/// The answer of an operation that was done; `answer` is its JSON.
pub fn answer(operation: &str, answer: &[u8], request_id: &str) -> String {
    let answer = serde_json::from_slice(answer).unwrap_or(Value::Null);
    let mut xml = head();
    open(&mut xml, &format!("{operation}Response xmlns=\"{NAMESPACE}\""));
    if let Value::Object(fields) = &answer
        && has_result(operation)
    {
        let result = format!("{operation}Result");
        open(&mut xml, &result);
        write_fields(&mut xml, operation, fields);
        close(&mut xml, &result);
    }
    open(&mut xml, "ResponseMetadata");
    element(&mut xml, "RequestId", request_id);
    close(&mut xml, "ResponseMetadata");
    close(&mut xml, &format!("{operation}Response"));
    xml
}

/// What an operation that was not done says.
pub fn failure(error: &Error, request_id: &str) -> String {
    let mut xml = head();
    open(&mut xml, &format!("ErrorResponse xmlns=\"{NAMESPACE}\""));
    open(&mut xml, "Error");
    element(&mut xml, "Type", error.fault());
    element(&mut xml, "Code", error.code());
    element(&mut xml, "Message", &error.message);
    xml.push_str("<Detail/>");
    close(&mut xml, "Error");
    element(&mut xml, "RequestId", request_id);
    close(&mut xml, "ErrorResponse");
    xml
}

/// Operations whose model has an output.
fn has_result(operation: &str) -> bool {
    !matches!(
        operation,
        "AddPermission"
            | "ChangeMessageVisibility"
            | "DeleteMessage"
            | "DeleteQueue"
            | "PurgeQueue"
            | "RemovePermission"
            | "SetQueueAttributes"
            | "TagQueue"
            | "UntagQueue"
    )
}

fn head() -> String {
    "<?xml version=\"1.0\"?>".to_owned()
}

fn write_fields(xml: &mut String, operation: &str, fields: &Map<String, Value>) {
    for (name, value) in fields {
        match value {
            Value::Array(items) => {
                let item_name = match LISTS.iter().find(|(list, _)| list == name) {
                    Some((_, item)) => (*item).to_owned(),
                    // `Successful` is named after its operation.
                    None => format!("{operation}ResultEntry"),
                };
                items.iter().for_each(|item| write(xml, operation, &item_name, item));
            }
            Value::Object(entries) => match MAPS.iter().find(|(map, ..)| map == name) {
                Some((_, item, key)) => write_map(xml, operation, item, key, entries),
                None => write(xml, operation, name, value),
            },
            value => write(xml, operation, name, value),
        }
    }
}

fn write_map(xml: &mut String, operation: &str, item: &str, key_name: &str, entries: &Map<String, Value>) {
    for (key, value) in entries {
        open(xml, item);
        element(xml, key_name, key);
        write(xml, operation, "Value", value);
        close(xml, item);
    }
}

fn write(xml: &mut String, operation: &str, name: &str, value: &Value) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            open(xml, name);
            write_fields(xml, operation, fields);
            close(xml, name);
        }
        Value::String(text) => element(xml, name, text),
        other => element(xml, name, &other.to_string()),
    }
}

fn element(xml: &mut String, name: &str, text: &str) {
    open(xml, name);
    escape(xml, text);
    close(xml, name);
}

fn open(xml: &mut String, name: &str) {
    xml.push('<');
    xml.push_str(name);
    xml.push('>');
}

fn close(xml: &mut String, name: &str) {
    xml.push_str("</");
    xml.push_str(name);
    xml.push('>');
}

/// A parser turns a bare carriage return into a line feed, which would change a body and its digest.
fn escape(xml: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '&' => xml.push_str("&amp;"),
            '"' => xml.push_str("&quot;"),
            '\r' => xml.push_str("&#xD;"),
            // No XML can hold them, and no text that is checked does.
            other if other < ' ' && other != '\n' && other != '\t' => xml.push('\u{FFFD}'),
            other => xml.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn result(operation: &str, json: &str) -> String {
        let xml = answer(operation, json.as_bytes(), "id");
        let from = xml.find(&format!("<{operation}Result>")).map(|at| at + operation.len() + 8);
        let to = xml.find(&format!("</{operation}Result>"));
        from.zip(to).map(|(from, to)| xml[from..to].to_owned()).unwrap_or_default()
    }

    #[test]
    fn messages_and_their_attributes_are_flat() {
        let json = r#"{"Messages":[{"Body":"<a>\r\n&","Attributes":{"SenderId":"1"},"MessageAttributes":{"n":{"DataType":"String","StringValue":"v"}}}]}"#;
        assert_eq!(
            result("ReceiveMessage", json),
            "<Message><Attribute><Name>SenderId</Name><Value>1</Value></Attribute><Body>&lt;a&gt;&#xD;\n&amp;</Body>\
             <MessageAttribute><Name>n</Name><Value><DataType>String</DataType><StringValue>v</StringValue></Value></MessageAttribute></Message>"
        );
    }

    #[test]
    fn batches_name_their_entries_after_the_operation() {
        let json = r#"{"Successful":[{"Id":"a"}],"Failed":[{"Id":"b","SenderFault":true}]}"#;
        assert_eq!(
            result("DeleteMessageBatch", json),
            "<BatchResultErrorEntry><Id>b</Id><SenderFault>true</SenderFault></BatchResultErrorEntry>\
             <DeleteMessageBatchResultEntry><Id>a</Id></DeleteMessageBatchResultEntry>"
        );
    }

    #[test]
    fn what_has_nothing_to_say_has_no_result() {
        let xml = answer("DeleteMessage", b"{}", "id");
        assert!(!xml.contains("Result") && xml.contains("<RequestId>id</RequestId>"), "{xml}");
        assert!(
            answer("ReceiveMessage", b"{}", "id").contains("<ReceiveMessageResult></ReceiveMessageResult>")
        );
    }

    #[test]
    fn an_error_has_its_type_and_code() {
        let xml = failure(&Error::new(Kind::QueueDoesNotExist, "a < b\0"), "id");
        assert!(
            xml.contains("<Type>Sender</Type><Code>AWS.SimpleQueueService.NonExistentQueue</Code>"),
            "{xml}"
        );
        assert!(xml.contains("a &lt; b\u{FFFD}"), "{xml}");
    }
}
