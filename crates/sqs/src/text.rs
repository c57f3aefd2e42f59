//! Texts of a request, which are parts of its bytes unless JSON escapes a character of them.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};

/// A text that is copied only where it has to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    /// Its bytes, shared with those of the `request` that it was read from.
    ///
    /// # Panics
    /// When it was read from anything else.
    pub fn into_bytes(self, request: &Bytes) -> Bytes {
        match self.0 {
            Cow::Borrowed(text) => request.slice_ref(text.as_bytes()),
            Cow::Owned(text) => text.into(),
        }
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_text_is_a_part_of_the_request_and_one_with_escapes_is_its_own() {
        let request = Bytes::from_static(br#"["plain", "\u00fc\n"]"#);
        let [plain, escaped] = serde_json::from_slice::<[Text<'_>; 2]>(&request).unwrap();
        assert_eq!((&*plain, &*escaped), ("plain", "ü\n"));
        let plain = plain.into_bytes(&request);
        assert_eq!(plain.as_ptr(), request[2..].as_ptr());
        assert_eq!((&plain[..], &escaped.into_bytes(&request)[..]), (&b"plain"[..], "ü\n".as_bytes()));
    }
}
