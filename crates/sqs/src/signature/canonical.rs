//! The canonical form of a request, over which it is signed.

use std::fmt::Write as _;

use hyper::http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

use super::given::{Given, Validity};
use crate::error::{Error, Kind};
use crate::form;
use crate::hex;

/// All but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const ENCODED_IN_PATH: &AsciiSet = &ENCODED.remove(b'/');
/// The host is signed under the name that HTTP/1.1 has for it, or under that of HTTP/2.
const HOST_NAMES: [&str; 2] = ["host", ":authority"];

/// # Errors
/// When a header that has to be signed is not, or one that is signed is not there.
pub fn request(parts: &Parts, body: &[u8], given: &Given<'_>) -> Result<String, Error> {
    check_signed(parts, given)?;
    let mut text = String::with_capacity(512);
    text.push_str(parts.method.as_str());
    text.push('\n');
    // As it came it is encoded once; for all services but one it is encoded twice.
    let _ = writeln!(text, "{}", utf8_percent_encode(parts.uri.path(), ENCODED_IN_PATH));
    query(&mut text, parts.uri.query().unwrap_or_default(), given.validity);
    text.push('\n');
    for name in given.signed_headers() {
        header(&mut text, parts, name)?;
    }
    let mut before = '\n';
    for name in given.signed_headers() {
        text.push(before);
        text.push_str(name);
        before = ';';
    }
    text.push('\n');
    text.push_str(&hex::text(&Sha256::digest(body)));
    Ok(text)
}

/// What says what is asked, and of whom, must be signed.
fn check_signed(parts: &Parts, given: &Given<'_>) -> Result<(), Error> {
    let is_signed = |name: &str| given.signed_headers().any(|signed| signed == name);
    let missing = |name: &str| {
        let message = format!("The header {name} must be among the signed headers.");
        Err(Error::new(Kind::SignatureDoesNotMatch, message))
    };
    if !HOST_NAMES.iter().any(|name| is_signed(name)) {
        return missing("host");
    }
    let mut amz = parts.headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with("x-amz-"));
    match amz.find(|name| !is_signed(name)) {
        Some(name) => missing(name),
        None => Ok(()),
    }
}

fn query(text: &mut String, query: &str, validity: Validity) {
    let presigned = validity != Validity::Now;
    let encode = |part: &str| utf8_percent_encode(part, ENCODED).to_string();
    let mut pairs = form_pairs(query)
        .filter(|(name, _)| !(presigned && name == "X-Amz-Signature"))
        .map(|(name, value)| (encode(&name), encode(&value)))
        .collect::<Vec<_>>();
    pairs.sort_unstable();
    for (at, (name, value)) in pairs.iter().enumerate() {
        let _ = write!(text, "{}{name}={value}", if at == 0 { "" } else { "&" });
    }
}

fn form_pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    form::pairs(query.as_bytes()).map(|(name, value)| (name.into_owned(), value.into_owned()))
}

fn header(text: &mut String, parts: &Parts, name: &str) -> Result<(), Error> {
    let absent =
        || Error::new(Kind::SignatureDoesNotMatch, format!("The signed header {name} is not there."));
    text.push_str(name);
    text.push(':');
    let mut values = parts.headers.get_all(name).iter().peekable();
    if values.peek().is_none() {
        // HTTP/2 has the host in the URI.
        let authority = parts.uri.authority().filter(|_| HOST_NAMES.contains(&name)).ok_or_else(absent)?;
        text.push_str(authority.as_str());
    }
    for (at, value) in values.enumerate() {
        let value = value.to_str().map_err(|_| absent())?;
        text.push_str(if at == 0 { "" } else { "," });
        for (at, word) in value.split_ascii_whitespace().enumerate() {
            text.push_str(if at == 0 { "" } else { " " });
            text.push_str(word);
        }
    }
    text.push('\n');
    Ok(())
}
