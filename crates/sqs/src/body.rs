//! Bodies and texts: what SQS lets through, and how bytes that are none of that are shown.
//!
//! A body may have the characters of XML 1.0: tab, line feed, carriage return, and everything from space on but surrogates, U+FFFE and
//! U+FFFF. Messages that came by gRPC may hold any bytes; those that are no such text are shown in base64, and say so.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Serialize, Serializer};

/// Whether SQS takes the text.
pub fn is_allowed(text: &str) -> bool {
    let is_plain = |byte: &u8| (0x20..0x7f).contains(byte);
    if text.as_bytes().iter().all(is_plain) {
        return true;
    }
    text.chars().all(|character| match character {
        '\t' | '\n' | '\r' => true,
        '\u{FFFE}' | '\u{FFFF}' => false,
        other => other >= ' ',
    })
}

/// How a body is shown.
#[derive(Debug)]
pub enum Shown {
    /// It is a text.
    AsItIs(Bytes),
    InBase64(String),
}

impl Shown {
    pub fn of(body: Bytes) -> Self {
        match std::str::from_utf8(&body) {
            Ok(text) if is_allowed(text) => Self::AsItIs(body),
            _ => Self::InBase64(STANDARD.encode(&body)),
        }
    }

    pub fn text(&self) -> &str {
        match self {
            Self::AsItIs(body) => std::str::from_utf8(body).unwrap_or_default(),
            Self::InBase64(text) => text,
        }
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_characters_of_xml_are_let_through() {
        for text in ["", "plain", "a\tb\r\nc", "ü€😀", "\u{7f}", "\u{FFFD}"] {
            assert!(is_allowed(text), "{text:?}");
        }
        for text in ["\0", "a\u{1}", "\u{b}", "ü\u{FFFE}", "\u{FFFF}"] {
            assert!(!is_allowed(text), "{text:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_in_base64() {
        assert_eq!(Shown::of(Bytes::from_static(b"ok")).text(), "ok");
        assert_eq!(Shown::of(Bytes::from_static(&[0xff, 0])).text(), "/wA=");
        assert_eq!(Shown::of(Bytes::from_static(b"\0")).text(), "AA==");
    }
}
