//! Signature Version 4 ("Signature Version 4 signing process" in Amazon's documentation): in the header `Authorization`, or in the
//! parameters of a presigned URL.
//!
//! Everything that can be wrong before the key is looked at is told. A wrong signature is only called wrong: neither the canonical
//! request nor anything of the key is shown.

mod canonical;
mod date;
mod given;

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use hyper::http::request::Parts;
use leasehold_node::config::{AccessKey, Secret};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::error::{Error, Kind};
use crate::hex;
use crate::limits::{PRESIGNED_S_MAX, SIGNING_KEYS_MAX, SKEW_S_MAX};
use given::{Given, Validity};

pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "sqs";
const TERMINATOR: &str = "aws4_request";

type SigningKey = [u8; 32];

/// Who may ask, and the keys that their secrets gave for the days and regions that were seen.
pub struct Signatures {
    /// Empty when nobody is asked for a signature.
    secrets: HashMap<String, Secret>,
    derived: RwLock<HashMap<String, SigningKey>>,
}

/// What a signing key is derived for.
struct Scope<'a> {
    /// All of it, as the request says it.
    credential: &'a str,
    key_id: &'a str,
    day: &'a str,
    region: &'a str,
}

impl Signatures {
    pub fn new(access_keys: &[AccessKey]) -> Self {
        let secrets = access_keys.iter().map(|key| (key.id.clone(), key.secret.clone())).collect();
        Self { secrets, derived: RwLock::default() }
    }

    /// Checks that somebody who has a key signed this request, a moment ago.
    ///
    /// # Errors
    /// Says what is missing, or that the signature is not right.
    pub fn check(&self, parts: &Parts, body: &[u8]) -> Result<(), Error> {
        if self.secrets.is_empty() {
            return Ok(());
        }
        self.check_at(parts, body, now_s())
    }

    /// What [`Signatures::check`] finds before it needs the body: a large one is not read for somebody without a key.
    ///
    /// # Errors
    /// Those that the whole check would end with.
    pub fn check_head(&self, parts: &Parts) -> Result<(), Error> {
        if self.secrets.is_empty() {
            return Ok(());
        }
        let given = Given::read(parts)?;
        self.secret_of(&given, &given.scope()?, now_s())?;
        Ok(())
    }

    fn check_at(&self, parts: &Parts, body: &[u8], now_s: i64) -> Result<(), Error> {
        let given = Given::read(parts)?;
        let scope = given.scope()?;
        let secret = self.secret_of(&given, &scope, now_s)?;
        let request = hex::of_32(canonical::digest(parts, body, &given)?);
        let key = self.signing_key(&scope, secret);
        let to_sign = [
            ALGORITHM,
            "\n",
            given.date,
            "\n",
            scope.day,
            "/",
            scope.region,
            "/",
            SERVICE,
            "/",
            TERMINATOR,
            "\n",
            &*request,
        ];
        let expected = hex::of_32(mac(&key, &to_sign));
        if bool::from(expected.as_bytes().ct_eq(given.signature.as_bytes())) {
            return Ok(());
        }
        let message = "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key \
                       and signing method. Consult the service documentation for details.";
        Err(Error::new(Kind::SignatureDoesNotMatch, message))
    }

    /// The secret of who says to have signed, if this is the time for it.
    fn secret_of(&self, given: &Given<'_>, scope: &Scope<'_>, now_s: i64) -> Result<&Secret, Error> {
        let secret = self.secrets.get(scope.key_id).ok_or_else(|| {
            Error::new(Kind::UnknownKey, "The security token included in the request is invalid.")
        })?;
        check_time(given, now_s)?;
        Ok(secret)
    }

    fn signing_key(&self, scope: &Scope<'_>, secret: &Secret) -> SigningKey {
        let known =
            self.derived.read().unwrap_or_else(PoisonError::into_inner).get(scope.credential).copied();
        known.unwrap_or_else(|| {
            let key = derive(secret.expose(), scope.day, scope.region, SERVICE);
            let mut derived = self.derived.write().unwrap_or_else(PoisonError::into_inner);
            if derived.len() >= SIGNING_KEYS_MAX {
                derived.clear();
            }
            derived.insert(scope.credential.to_owned(), key);
            key
        })
    }
}

fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn check_time(given: &Given<'_>, now_s: i64) -> Result<(), Error> {
    let incomplete = |detail: &str| Error::new(Kind::IncompleteSignature, detail);
    let signed_s =
        date::seconds(given.date).ok_or_else(|| incomplete("The date must be like 20150830T123600Z."))?;
    let valid_s = match given.validity {
        Validity::Now => SKEW_S_MAX,
        Validity::Seconds(seconds) if (1..=PRESIGNED_S_MAX).contains(&seconds) => seconds,
        Validity::Seconds(_) => return Err(incomplete("X-Amz-Expires can be 1 to 604800 seconds.")),
    };
    if now_s < signed_s - SKEW_S_MAX || now_s > signed_s + valid_s {
        let message = format!(
            "The request was signed at {}, which is too long ago or yet to come: the node's clock says otherwise.",
            given.date
        );
        return Err(Error::new(Kind::RequestExpired, message));
    }
    Ok(())
}

fn derive(secret: &str, day: &str, region: &str, service: &str) -> SigningKey {
    let parts = [day, region, service, TERMINATOR];
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in parts {
        key = mac(&key, &[part]).to_vec();
    }
    let mut derived = SigningKey::default();
    derived.copy_from_slice(&key);
    derived
}

/// Of all parts, as if they were one text.
fn mac(key: &[u8], parts: &[&str]) -> SigningKey {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return SigningKey::default() };
    parts.iter().for_each(|part| mac.update(part.as_bytes()));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests;
