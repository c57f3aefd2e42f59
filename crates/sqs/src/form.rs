//! Requests of the Query protocol: forms, turned into the JSON that the operations read.
//!
//! ```text
//!   Attribute.1.Name=DelaySeconds&Attribute.1.Value=5     "Attributes": { "DelaySeconds": "5" }
//!   AttributeName.1=All                                   "AttributeNames": ["All"]
//!   SendMessageBatchRequestEntry.1.Id=a&...               "Entries": [{ "Id": "a", ... }]
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;

use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use percent_encoding::percent_decode;
use serde_json::{Map, Value};

use crate::error::{Error, Kind};
use crate::limits::{PARAMETER_DEPTH_MAX, PARAMETERS_MAX};

/// What a request says that sends a form.
const FORM: &str = "application/x-www-form-urlencoded";

/// Parameters that are lists, by the names that they have in JSON.
const LISTS: &[(&str, &str)] = &[
    ("AttributeName", "AttributeNames"),
    ("MessageAttributeName", "MessageAttributeNames"),
    ("MessageSystemAttributeName", "MessageSystemAttributeNames"),
    ("TagKey", "TagKeys"),
    ("AWSAccountId", "AWSAccountIds"),
    ("ActionName", "Actions"),
    ("SendMessageBatchRequestEntry", "Entries"),
    ("DeleteMessageBatchRequestEntry", "Entries"),
    ("ChangeMessageVisibilityBatchRequestEntry", "Entries"),
];

/// Parameters that are maps, with the names of key and value.
const MAPS: &[(&str, &str, &str, &str)] = &[
    ("Attribute", "Attributes", "Name", "Value"),
    ("MessageAttribute", "MessageAttributes", "Name", "Value"),
    ("MessageSystemAttribute", "MessageSystemAttributes", "Name", "Value"),
    ("Tag", "Tags", "Key", "Value"),
];

/// Lists and maps by either name: one without items comes as an empty value.
fn is_collection(name: &str) -> bool {
    LISTS.iter().any(|(form, json)| *form == name || *json == name)
        || MAPS.iter().any(|(form, json, ..)| *form == name || *json == name)
}

/// A parameter: a value, or others under it.
#[derive(Debug, Default)]
struct Node {
    value: Option<String>,
    under: BTreeMap<String, Node>,
}

/// Whether a request says that its body is a form.
pub fn is_announced(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with(FORM))
}

/// The pairs of a form or of a query, decoded, in order.
pub fn pairs(text: &[u8]) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    let parts = text.split(|byte| *byte == b'&').filter(|part| !part.is_empty());
    parts.map(|part| {
        let at = part.iter().position(|byte| *byte == b'=').unwrap_or(part.len());
        (decoded(&part[..at]), decoded(part.get(at + 1..).unwrap_or_default()))
    })
}

fn decoded(text: &[u8]) -> Cow<'_, str> {
    if text.contains(&b'+') {
        let spaced = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect::<Vec<_>>();
        return Cow::Owned(percent_decode(&spaced).decode_utf8_lossy().into_owned());
    }
    percent_decode(text).decode_utf8_lossy()
}

/// A request: what it asks for, and its parameters as JSON.
pub struct Form {
    pub action: Option<String>,
    pub request: Vec<u8>,
}

impl Form {
    /// Reads the pairs of the URL and of the body.
    ///
    /// # Errors
    /// `MalformedInput` when there are too many parameters, or too deep ones.
    pub fn read(query: &[u8], body: &[u8]) -> Result<Self, Error> {
        let malformed = |detail: String| Error::new(Kind::Malformed, detail);
        let mut root = Node::default();
        for (at, (name, value)) in pairs(query).chain(pairs(body)).enumerate() {
            if at >= PARAMETERS_MAX {
                return Err(malformed(format!("a request has at most {PARAMETERS_MAX} parameters")));
            }
            if name.split('.').count() > PARAMETER_DEPTH_MAX {
                return Err(malformed(format!("the parameter {name} has too many parts")));
            }
            let node =
                name.split('.').fold(&mut root, |node, part| node.under.entry(part.to_owned()).or_default());
            node.value = Some(value.into_owned());
        }
        let action = root.under.remove("Action").and_then(|node| node.value);
        let parameters = if root.under.is_empty() { Value::Object(Map::new()) } else { root.json() };
        let request = serde_json::to_vec(&parameters);
        Ok(Self { action, request: request.map_err(|error| malformed(error.to_string()))? })
    }
}

impl Node {
    fn json(self) -> Value {
        if self.under.is_empty() {
            return Value::String(self.value.unwrap_or_default());
        }
        let mut object = Map::new();
        for (name, node) in self.under {
            if node.is_empty() && is_collection(&name) {
                continue;
            }
            if let Some((_, list)) = LISTS.iter().find(|(form, _)| *form == name) {
                object.insert((*list).to_owned(), node.list());
            } else if let Some((_, map, key, value)) = MAPS.iter().find(|(form, ..)| *form == name) {
                object.insert((*map).to_owned(), node.map(key, value));
            } else {
                object.insert(name, node.json());
            }
        }
        Value::Object(object)
    }

    fn is_empty(&self) -> bool {
        self.under.is_empty() && self.value.as_ref().is_none_or(String::is_empty)
    }

    /// The items by their numbers. Clients leave the number away where there is one item.
    fn items(self) -> Vec<Self> {
        let is_number = |name: &String| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
        if !self.under.is_empty() && self.under.keys().all(is_number) {
            let mut items = self.under.into_iter().collect::<Vec<_>>();
            items.sort_by_key(|(number, _)| (number.len(), number.clone()));
            return items.into_iter().map(|(_, item)| item).collect();
        }
        vec![self]
    }

    fn list(self) -> Value {
        self.items().into_iter().map(Self::json).collect()
    }

    fn map(self, key: &str, value: &str) -> Value {
        let pairs = self.items().into_iter().map(|mut item| {
            let key = item.under.remove(key).and_then(|node| node.value).unwrap_or_default();
            (key, item.under.remove(value).unwrap_or_default().json())
        });
        Value::Object(pairs.collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(form: &str) -> (Option<String>, Value) {
        let form = Form::read(b"", form.as_bytes()).unwrap();
        (form.action, serde_json::from_slice(&form.request).unwrap())
    }

    #[test]
    fn lists_maps_and_entries_become_json() {
        let (action, request) = read(
            "Action=SendMessageBatch&Version=2012-11-05&SendMessageBatchRequestEntry.1.Id=a&\
             SendMessageBatchRequestEntry.1.MessageBody=x+y%26z&SendMessageBatchRequestEntry.2.Id=b&\
             SendMessageBatchRequestEntry.2.MessageAttribute.1.Name=n&\
             SendMessageBatchRequestEntry.2.MessageAttribute.1.Value.DataType=String&\
             SendMessageBatchRequestEntry.2.MessageAttribute.1.Value.StringValue=%C3%BC",
        );
        assert_eq!(action.as_deref(), Some("SendMessageBatch"));
        let attribute = json!({ "n": { "DataType": "String", "StringValue": "ü" } });
        assert_eq!(
            request["Entries"],
            json!([{ "Id": "a", "MessageBody": "x y&z" }, { "Id": "b", "MessageAttributes": attribute }])
        );
        let (_, request) = read(
            "AttributeName.1=A&AttributeName.2=B&AttributeName.10=C&TagKey.1=k&Tag.1.Key=t&Tag.1.Value=",
        );
        assert_eq!(request["AttributeNames"], json!(["A", "B", "C"]));
        assert_eq!((&request["TagKeys"], &request["Tags"]), (&json!(["k"]), &json!({ "t": "" })));
    }

    #[test]
    fn a_single_item_needs_no_number() {
        let (_, request) = read("Attribute.Name=DelaySeconds&Attribute.Value=5&AttributeName=All");
        assert_eq!(request["Attributes"], json!({ "DelaySeconds": "5" }));
        assert_eq!(request["AttributeNames"], json!(["All"]));
    }

    #[test]
    fn a_list_without_items_comes_as_an_empty_value() {
        assert_eq!(read("Action=UntagQueue&TagKeys=&Entries=&Tag=").1, json!({}));
        assert_eq!(read("MessageBody=").1, json!({ "MessageBody": "" }));
    }

    #[test]
    fn forms_without_end_are_refused() {
        let many = "a=1&".repeat(PARAMETERS_MAX + 1);
        assert!(Form::read(b"", many.as_bytes()).is_err());
        let deep = "a.".repeat(PARAMETER_DEPTH_MAX + 1);
        assert!(Form::read(b"", deep.as_bytes()).is_err());
        assert_eq!(read("Action=ListQueues").1, json!({}));
    }
}
