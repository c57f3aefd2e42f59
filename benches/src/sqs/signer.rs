//! Signature Version 4, as a client makes it.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use sha2::{Digest as _, Sha256};

pub const KEY: &str = "AKBENCH";
pub const SECRET: &str = "secret-of-the-bench";
const REGION: &str = "us-east-1";

/// The key of one day, and the scope that it is for.
pub struct Signer {
    host: String,
    date: String,
    /// Holds the key already.
    signature: Hmac<Sha256>,
}

impl Signer {
    /// Signs with the time of its making: a run is far shorter than the clocks of nodes may be off.
    pub fn new(host: &str) -> Self {
        let date = now();
        let mut key = format!("AWS4{SECRET}").into_bytes();
        for part in [&date[..8], REGION, "sqs", "aws4_request"] {
            key = mac(&key, part.as_bytes());
        }
        Self { host: host.to_owned(), date, signature: keyed(&key) }
    }

    /// The head of a signed request.
    pub fn head(&self, operation: &str, body: &[u8]) -> String {
        let (host, date) = (&self.host, &self.date);
        let signed = "content-type;host;x-amz-date;x-amz-target";
        let canonical = format!(
            "POST\n/\n\ncontent-type:application/x-amz-json-1.0\nhost:{host}\nx-amz-date:{date}\nx-amz-target:AmazonSQS.{operation}\n\n\
             {signed}\n{}",
            hex(&Sha256::digest(body))
        );
        let scope = format!("{}/{REGION}/sqs/aws4_request", &date[..8]);
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
        let signature = hex(&finish(self.signature.clone(), to_sign.as_bytes()));
        format!(
            "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/x-amz-json-1.0\r\nx-amz-date: {date}\r\n\
             x-amz-target: AmazonSQS.{operation}\r\nauthorization: AWS4-HMAC-SHA256 Credential={KEY}/{scope}, \
             SignedHeaders={signed}, Signature={signature}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).unwrap_or_else(|error| panic!("{error}"))
}

fn mac(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    finish(keyed(key), bytes)
}

fn finish(mut mac: Hmac<Sha256>, bytes: &[u8]) -> Vec<u8> {
    mac.update(bytes);
    mac.finalize().into_bytes().to_vec()
}

/// Two digits a byte; clients share the processors with what they measure, so it is not left to a formatter.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    bytes.iter().flat_map(digits).map(char::from).collect()
}

/// Like `20150830T123600Z`.
fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, of_day) = ((seconds / 86_400) as i64 + 719_468, seconds % 86_400);
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", of_day / 3_600, of_day / 60 % 60, of_day % 60)
}
