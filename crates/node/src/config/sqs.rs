//! The listener for clients of Amazon SQS: where it is, whose account it stands for, and who may ask.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;

use super::error::ConfigError;

const KEY_BYTES_MAX: usize = 128;
const REGION_BYTES_MAX: usize = 32;
const FILE_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sqs {
    pub listen: SocketAddr,
    /// In queue URLs and ARNs.
    pub account_id: String,
    /// In ARNs.
    pub region: String,
    /// Who may ask; none means that nobody is asked who they are.
    pub access_keys: Vec<AccessKey>,
    /// Of standard queues that SQS clients make.
    pub shards: u32,
    pub pacing: Pacing,
}

/// Whether clients keep the pauses that SQS asks of them: a minute between purges, and before a deleted name is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pacing {
    On,
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessKey {
    pub id: String,
    pub secret: Secret,
}

/// Text that no log, error or debug output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

impl AccessKey {
    /// Reads `id:secret`.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (id, secret) = text.split_once(':')?;
        let is_id = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let fits = |part: &str| (1..=KEY_BYTES_MAX).contains(&part.len());
        let is_one = fits(id)
            && fits(secret)
            && id.bytes().all(is_id)
            && secret.bytes().all(|byte| byte.is_ascii_graphic());
        is_one.then(|| Self { id: id.to_owned(), secret: Secret::new(secret) })
    }
}

pub(super) fn is_account_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

pub(super) fn is_region(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=REGION_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// Reads a file with one `id:secret` a line; empty lines and those that begin with `#` say nothing.
pub(super) fn read_file(path: &Path) -> Result<Vec<AccessKey>, ConfigError> {
    let failed = |detail: String| ConfigError::AccessKeys { path: path.to_owned(), detail };
    let mut text = String::new();
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    let lines = text.lines().map(str::trim).enumerate();
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(at, line)| AccessKey::read(line).ok_or_else(|| failed(format!("line {} is not one", at + 1))))
        .collect()
}
