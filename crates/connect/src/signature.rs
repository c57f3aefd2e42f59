//! Signs requests as the specification "Standard Webhooks" says, so that endpoints check them with a library that is there already.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::Sha256;

use crate::Invalid;

const PREFIX: &str = "whsec_";
/// What the specification asks of a secret.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// An endpoint that is given a new secret knows the old one for a while.
const SECRETS_MAX: usize = 4;

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// What the connector and the endpoint both know. A request is signed with each of several, so that one can be replaced.
#[derive(Clone)]
pub struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    /// Reads secrets, one a line: `whsec_` and 24 to 64 bytes in base64.
    ///
    /// ```
    /// let text = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n";
    /// assert!(leasehold_connect::Secrets::parse(text).is_ok());
    /// assert!(leasehold_connect::Secrets::parse("hunter2").is_err());
    /// ```
    ///
    /// # Errors
    /// When there is none, there are more than 4, or one is of another form.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let secrets = lines.map(secret).collect::<Result<Vec<_>, _>>()?;
        if secrets.is_empty() || secrets.len() > SECRETS_MAX {
            let found = secrets.len();
            return Err(Invalid(format!(
                "there are {found} secrets: there can be 1 to {SECRETS_MAX}, one a line"
            )));
        }
        Ok(Self(secrets))
    }

    /// Adds the headers that say who sent a body, and when.
    pub(crate) fn sign(&self, headers: &mut HeaderMap, id: &HeaderValue, body: &[u8], now: SystemTime) {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let signatures = self.0.iter().map(|secret| format!("v1,{}", signature(secret, id, seconds, body)));
        let signatures = signatures.collect::<Vec<_>>().join(" ");
        headers.insert(ID, id.clone());
        headers.insert(TIMESTAMP, HeaderValue::from(seconds));
        headers.insert(SIGNATURE, HeaderValue::from_str(&signatures).expect("base64 is visible ASCII"));
    }
}

/// Secrets stay out of logs.
impl fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Secrets({})", self.0.len())
    }
}

fn secret(line: &str) -> Result<Vec<u8>, Invalid> {
    let decoded = line.strip_prefix(PREFIX).and_then(|rest| BASE64_STANDARD.decode(rest).ok());
    decoded.filter(|bytes| SECRET_BYTES.contains(&bytes.len())).ok_or_else(|| {
        Invalid(format!(
            "a secret is not of the form {PREFIX} and {} to {} random bytes in base64: make one with \
             `echo {PREFIX}$(head -c 32 /dev/urandom | base64)`",
            SECRET_BYTES.start(),
            SECRET_BYTES.end()
        ))
    })
}

fn signature(secret: &[u8], id: &HeaderValue, seconds: u64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length will do");
    mac.update(id.as_bytes());
    mac.update(format!(".{seconds}.").as_bytes());
    mac.update(body);
    BASE64_STANDARD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The example in the specification's own library tests.
    #[test]
    fn a_signature_is_that_of_the_specification() {
        let secrets = Secrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let mut headers = HeaderMap::new();
        let id = HeaderValue::from_static("msg_p5jXN8AQM9LWM0D4loKWxJek");
        let now = UNIX_EPOCH + Duration::from_secs(1_614_265_330);
        secrets.sign(&mut headers, &id, br#"{"test": 2432232314}"#, now);
        assert_eq!(headers["webhook-signature"], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(
            (&headers["webhook-id"], &headers["webhook-timestamp"]),
            (&id, &HeaderValue::from(1_614_265_330))
        );
    }

    #[test]
    fn several_secrets_make_several_signatures() {
        let one = format!("whsec_{}", BASE64_STANDARD.encode([1; 24]));
        let other = format!("whsec_{}", BASE64_STANDARD.encode([2; 64]));
        let secrets = Secrets::parse(&format!("{one}\n\n {other} \n")).unwrap();
        let mut headers = HeaderMap::new();
        secrets.sign(&mut headers, &HeaderValue::from_static("a"), b"", UNIX_EPOCH);
        let signatures = headers["webhook-signature"].to_str().unwrap().split(' ').collect::<Vec<_>>();
        assert_eq!(signatures.len(), 2);
        assert!(
            signatures[0] != signatures[1] && signatures.iter().all(|signature| signature.starts_with("v1,"))
        );
        assert_eq!(format!("{secrets:?}"), "Secrets(2)");
    }

    #[test]
    fn what_is_no_secret_is_refused_without_being_told() {
        let short = format!("whsec_{}", BASE64_STANDARD.encode([1; 23]));
        let many = format!("whsec_{}\n", BASE64_STANDARD.encode([1; 24])).repeat(SECRETS_MAX + 1);
        for wrong in ["", "\n", "hunter2", "whsec_!", &short, &many] {
            let refused = Secrets::parse(wrong).unwrap_err().to_string();
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }
}
