//! Message attributes between SQS and the node: the same name, type and value, one to one.
//!
//! Names that begin with `AWS.` are not for users; under two of them the node carries what SQS knows beside attributes: the trace
//! header, and the deduplication id where the queue's scope is the message group.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use leasehold_proto::v1::Attribute;
use serde::{Deserialize, Serialize};

use crate::body;
use crate::digest::{self, Field};
use crate::error::{Error, Kind};
use crate::hex::Digits;
use crate::limits::{
    ATTRIBUTE_NAME_CHARACTERS_MAX, MESSAGE_ATTRIBUTES_MAX, NUMBER_DIGITS_MAX, TRACE_HEADER_BYTES_MAX,
};

/// The system attribute, as clients name it.
pub const SYSTEM_TRACE_HEADER: &str = "AWSTraceHeader";
pub const TRACE_HEADER: &str = "AWS.TraceHeader";
pub const DEDUPLICATION_ID: &str = "AWS.MessageDeduplicationId";
/// On a message whose body is no text.
pub const BODY_ENCODING: &str = "Leasehold.BodyEncoding";

/// An attribute as clients send and get it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AttributeValue {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub string_value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary_value: Option<String>,
    pub data_type: Option<String>,
}

pub type AttributeMap = BTreeMap<String, AttributeValue>;

fn is_binary(kind: &str) -> bool {
    kind == "Binary" || kind.starts_with("Binary.")
}

fn invalid(message: String) -> Error {
    Error::new(Kind::InvalidParameterValue, message)
}

/// The attributes of a new message in the node's words.
///
/// # Errors
/// `InvalidParameterValue` with the attribute's name.
pub fn read(attributes: &AttributeMap) -> Result<Vec<Attribute>, Error> {
    if attributes.len() > MESSAGE_ATTRIBUTES_MAX {
        return Err(invalid(format!(
            "Number of message attributes [{}] exceeds the allowed maximum [{MESSAGE_ATTRIBUTES_MAX}].",
            attributes.len()
        )));
    }
    attributes.iter().map(|(name, value)| read_one(name, value)).collect()
}

fn read_one(name: &str, value: &AttributeValue) -> Result<Attribute, Error> {
    check_name(name)?;
    let kind = value.data_type.as_deref().unwrap_or_default();
    let is_kind = ["String", "Number", "Binary"]
        .iter()
        .any(|base| kind.strip_prefix(base).is_some_and(|label| label.is_empty() || label.starts_with('.')));
    if kind.is_empty() {
        return Err(invalid(format!(
            "The message attribute '{name}' must contain a non-empty message attribute type."
        )));
    }
    if !is_kind || kind.len() > ATTRIBUTE_NAME_CHARACTERS_MAX {
        return Err(invalid(format!(
            "The message attribute '{name}' has an invalid message attribute type, the set of supported type prefixes is Binary, Number, and String."
        )));
    }
    let empty = || {
        invalid(format!(
            "The message attribute '{name}' must contain a non-empty message attribute value for message attribute type '{kind}'."
        ))
    };
    let bytes = if is_binary(kind) {
        let text = value.binary_value.as_deref().filter(|text| !text.is_empty()).ok_or_else(empty)?;
        let decoded = STANDARD.decode(text);
        decoded.map_err(|_| invalid(format!("The message attribute '{name}' is not in base64.")))?
    } else {
        let text = value.string_value.as_deref().filter(|text| !text.is_empty()).ok_or_else(empty)?;
        if !body::is_allowed(text) {
            return Err(invalid(format!(
                "The message attribute '{name}' has characters that are not allowed."
            )));
        }
        if kind.starts_with("Number") && !is_number(text) {
            return Err(invalid(format!(
                "Can't cast the value of message (user) attribute '{name}' to a number."
            )));
        }
        text.as_bytes().to_vec()
    };
    Ok(Attribute { name: name.to_owned(), r#type: kind.to_owned(), value: bytes.into() })
}

fn check_name(name: &str) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let fits = (1..=ATTRIBUTE_NAME_CHARACTERS_MAX).contains(&name.len()) && name.bytes().all(allowed);
    let dots_well = !name.starts_with('.') && !name.ends_with('.') && !name.contains("..");
    let lower = name.to_ascii_lowercase();
    if fits && dots_well && !lower.starts_with("aws.") && !lower.starts_with("amazon.") {
        return Ok(());
    }
    Err(invalid(format!(
        "The message attribute name '{name}' is invalid: it can have 1 to {ATTRIBUTE_NAME_CHARACTERS_MAX} letters, digits, '_', '-' and '.', \
         does not begin or end with a dot or with AWS. or Amazon., and has no two dots in a row."
    )))
}

/// A decimal number of up to 38 digits, perhaps with an exponent.
fn is_number(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let is_part = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E');
    digits <= NUMBER_DIGITS_MAX && text.bytes().all(is_part) && text.parse::<f64>().is_ok_and(f64::is_finite)
}

/// The trace header, the only system attribute that a sender may give.
///
/// # Errors
/// `InvalidParameterValue` for any other, or one that is no text or too long.
pub fn read_system(attributes: &AttributeMap) -> Result<Option<Attribute>, Error> {
    if let Some(name) = attributes.keys().find(|name| *name != SYSTEM_TRACE_HEADER) {
        return Err(invalid(format!("Message system attribute name '{name}' is invalid.")));
    }
    let Some(value) = attributes.get(SYSTEM_TRACE_HEADER) else { return Ok(None) };
    let text = value.string_value.as_deref().filter(|text| !text.is_empty() && body::is_allowed(text));
    let (Some(text), Some("String")) = (text, value.data_type.as_deref()) else {
        let message = "The message system attribute 'AWSTraceHeader' must be a non-empty String.";
        return Err(invalid(message.to_owned()));
    };
    if text.len() > TRACE_HEADER_BYTES_MAX {
        return Err(invalid(format!(
            "The message system attribute 'AWSTraceHeader' has {} bytes: it can have {TRACE_HEADER_BYTES_MAX}.",
            text.len()
        )));
    }
    let value = text.as_bytes().to_vec().into();
    Ok(Some(Attribute { name: TRACE_HEADER.to_owned(), r#type: "String".to_owned(), value }))
}

/// The digest of the trace header under the name that clients know it by.
pub fn digest_of_system(header: &Attribute) -> Option<Digits<32>> {
    digest_of([&Attribute { name: SYSTEM_TRACE_HEADER.to_owned(), ..header.clone() }])
}

/// A value as SDKs see it: text, unless its type says that it is none, or it is not.
enum Seen<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

fn seen(attribute: &Attribute) -> (&str, Seen<'_>) {
    let kind = attribute.r#type.as_str();
    match std::str::from_utf8(&attribute.value) {
        Ok(text) if !is_binary(kind) && body::is_allowed(text) => {
            (if kind.is_empty() { "String" } else { kind }, Seen::Text(text))
        }
        _ => (if is_binary(kind) { kind } else { "Binary" }, Seen::Bytes(&attribute.value)),
    }
}

/// The digest that an SDK computes of the same attributes.
pub fn digest_of<'a>(attributes: impl IntoIterator<Item = &'a Attribute>) -> Option<Digits<32>> {
    let fields = attributes.into_iter().map(|attribute| {
        let (kind, value) = seen(attribute);
        let value = match value {
            Seen::Text(text) => digest::Value::Text(text),
            Seen::Bytes(bytes) => digest::Value::Bytes(bytes),
        };
        Field { name: &attribute.name, kind, value }
    });
    digest::of_attributes(fields.collect())
}

/// An attribute as clients get it.
pub fn shown(attribute: &Attribute) -> AttributeValue {
    let (kind, value) = seen(attribute);
    let (string_value, binary_value) = match value {
        Seen::Text(text) => (Some(text.to_owned()), None),
        Seen::Bytes(bytes) => (None, Some(STANDARD.encode(bytes))),
    };
    AttributeValue { string_value, binary_value, data_type: Some(kind.to_owned()) }
}

/// Whether a name is the gateway's own.
pub fn is_reserved(name: &str) -> bool {
    name == TRACE_HEADER || name == DEDUPLICATION_ID
}

/// Which attributes a receive asks for: names, `prefix.*`, `.*` or `All`.
pub struct Filter<'a>(&'a [String]);

impl<'a> Filter<'a> {
    pub fn new(names: &'a [String]) -> Self {
        Self(names)
    }

    pub fn takes(&self, name: &str) -> bool {
        self.0.iter().any(|wanted| match wanted.strip_suffix(".*") {
            Some("") => true,
            // `foo.*` asks for names that begin with `foo`, as Amazon has it.
            Some(prefix) => name.starts_with(prefix),
            None => wanted == "All" || wanted == name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: &str, value: &str) -> AttributeValue {
        AttributeValue {
            string_value: Some(value.to_owned()),
            data_type: Some(kind.to_owned()),
            ..AttributeValue::default()
        }
    }

    fn one(name: &str, value: AttributeValue) -> Result<Vec<Attribute>, Error> {
        read(&AttributeMap::from([(name.to_owned(), value)]))
    }

    #[test]
    fn what_is_read_is_shown_again() {
        for value in [text("String", "ü"), text("Number.int", "-1.5e3"), text("String.json", "{}")] {
            let read = one("a.b-c_1", value.clone()).unwrap();
            assert_eq!(shown(&read[0]), value);
        }
        let binary = AttributeValue {
            binary_value: Some("AP8=".to_owned()),
            data_type: Some("Binary.png".to_owned()),
            ..AttributeValue::default()
        };
        let read = one("b", binary.clone()).unwrap();
        assert_eq!((&read[0].value[..], shown(&read[0])), (&[0, 255][..], binary));
    }

    #[test]
    fn wrong_attributes_are_named() {
        for (name, value) in [
            ("", text("String", "x")),
            (".a", text("String", "x")),
            ("a..b", text("String", "x")),
            ("AWS.x", text("String", "x")),
            ("amazon.x", text("String", "x")),
            ("ü", text("String", "x")),
            ("a", text("", "x")),
            ("a", text("Text", "x")),
            ("a", text("Strings", "x")),
            ("a", text("String", "")),
            ("a", text("String", "\u{1}")),
            ("a", text("Number", "one")),
            ("a", text("Number", &"1".repeat(39))),
            ("a", text("Number", "inf")),
            ("a", text("Number", "-1e999")),
            ("a", text("Binary", "AAAA")),
            (
                "a",
                AttributeValue {
                    binary_value: Some("?".into()),
                    data_type: Some("Binary".into()),
                    ..AttributeValue::default()
                },
            ),
        ] {
            assert_eq!(
                one(name, value.clone()).unwrap_err().kind,
                Kind::InvalidParameterValue,
                "{name} {value:?}"
            );
        }
        let many = (0..11).map(|number| (format!("n{number}"), text("String", "x"))).collect();
        assert!(read(&many).unwrap_err().message.contains("[11]"));
    }

    #[test]
    fn bytes_that_a_type_calls_text_are_shown_as_binary() {
        let attribute = |kind: &str, value: &'static [u8]| Attribute {
            name: "n".to_owned(),
            r#type: kind.to_owned(),
            value: value.into(),
        };
        assert_eq!(shown(&attribute("String", &[0xff])).data_type.as_deref(), Some("Binary"));
        assert_eq!(shown(&attribute("", b"x")), text("String", "x"));
    }

    #[test]
    fn filters_take_names_prefixes_and_all() {
        let filter = |names: &[&str], name: &str| {
            let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            Filter::new(&names).takes(name)
        };
        assert!(filter(&["All"], "x") && filter(&[".*"], "x") && filter(&["x"], "x"));
        assert!(filter(&["fo.*"], "foo") && filter(&["foo.*"], "foo.bar"));
        assert!(!filter(&[], "x") && !filter(&["X"], "x") && !filter(&["bar.*"], "foo"));
    }

    #[test]
    fn only_the_trace_header_is_a_system_attribute() {
        let system = |name: &str, value| read_system(&AttributeMap::from([(name.to_owned(), value)]));
        let header = system("AWSTraceHeader", text("String", "Root=1-5759")).unwrap().unwrap();
        assert_eq!((header.name.as_str(), &header.value[..]), (TRACE_HEADER, &b"Root=1-5759"[..]));
        assert!(system("SenderId", text("String", "x")).is_err());
        assert!(system("AWSTraceHeader", text("Number", "1")).is_err());
        assert!(system("AWSTraceHeader", text("String", &"x".repeat(1_024))).is_ok());
        let error = system("AWSTraceHeader", text("String", &"x".repeat(1_025))).unwrap_err();
        assert!(error.message.contains("has 1025 bytes"), "{error}");
        assert_eq!(read_system(&AttributeMap::new()), Ok(None));
    }
}
