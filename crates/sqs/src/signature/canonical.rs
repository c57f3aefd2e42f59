//! The canonical form of a request, over which it is signed. It is never written down: its digest takes it part by part.

use hyper::header::CONTENT_TYPE;
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
pub fn digest(parts: &Parts, body: &[u8], given: &Given<'_>) -> Result<[u8; 32], Error> {
    check_signed(parts, given)?;
    let mut digest = Sha256::new();
    digest.update(parts.method.as_str());
    digest.update("\n");
    // As it came it is encoded once; for all services but one it is encoded twice.
    utf8_percent_encode(parts.uri.path(), ENCODED_IN_PATH).for_each(|part| digest.update(part));
    digest.update("\n");
    query(&mut digest, parts.uri.query().unwrap_or_default(), given.validity);
    digest.update("\n");
    for name in given.signed_headers() {
        header(&mut digest, parts, name)?;
    }
    let mut before = "\n";
    for name in given.signed_headers() {
        digest.update(before);
        digest.update(name);
        before = ";";
    }
    digest.update("\n");
    digest.update(&*hex::of_32(Sha256::digest(body).into()));
    Ok(digest.finalize().into())
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
    // Beside a target it decides which of both says what is asked: whoever changes it would turn signed JSON into a form.
    let decides = parts.headers.contains_key("x-amz-target") && form::is_announced(&parts.headers);
    if decides && !is_signed(CONTENT_TYPE.as_str()) {
        return missing(CONTENT_TYPE.as_str());
    }
    let mut amz = parts.headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with("x-amz-"));
    match amz.find(|name| !is_signed(name)) {
        Some(name) => missing(name),
        None => Ok(()),
    }
}

fn query(digest: &mut Sha256, query: &str, validity: Validity) {
    let presigned = validity != Validity::Now;
    let encode = |part: &str| utf8_percent_encode(part, ENCODED).to_string();
    let mut pairs = form_pairs(query)
        .filter(|(name, _)| !(presigned && name == "X-Amz-Signature"))
        .map(|(name, value)| (encode(&name), encode(&value)))
        .collect::<Vec<_>>();
    pairs.sort_unstable();
    for (at, (name, value)) in pairs.iter().enumerate() {
        let before = if at == 0 { "" } else { "&" };
        [before, name.as_str(), "=", value.as_str()].iter().for_each(|part| digest.update(part));
    }
}

fn form_pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    form::pairs(query.as_bytes()).map(|(name, value)| (name.into_owned(), value.into_owned()))
}

fn header(digest: &mut Sha256, parts: &Parts, name: &str) -> Result<(), Error> {
    let absent =
        || Error::new(Kind::SignatureDoesNotMatch, format!("The signed header {name} is not there."));
    digest.update(name);
    digest.update(":");
    let mut values = parts.headers.get_all(name).iter().peekable();
    if values.peek().is_none() {
        // HTTP/2 has the host in the URI.
        let authority = parts.uri.authority().filter(|_| HOST_NAMES.contains(&name)).ok_or_else(absent)?;
        digest.update(authority.as_str());
    }
    for (at, value) in values.enumerate() {
        let value = value.to_str().map_err(|_| absent())?;
        digest.update(if at == 0 { "" } else { "," });
        for (at, word) in value.split_ascii_whitespace().enumerate() {
            digest.update(if at == 0 { "" } else { " " });
            digest.update(word);
        }
    }
    digest.update("\n");
    Ok(())
}
