//! What a connector is told, and the limits of it.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, Uri};
use leasehold_client::RetryPolicy;

use crate::{Form, Secrets};

/// Messages of one request.
pub const BATCH_MESSAGES_MAX: usize = 1_000;
/// Bodies of one request, in bytes, before they are written as JSON. A message larger than the limit goes alone.
pub const BATCH_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a batch may wait to be full.
pub const WINDOW_MAX: Duration = Duration::from_secs(5 * 60);
/// Requests at a time.
pub const CONCURRENCY_MAX: u32 = 1_000;
/// How long an endpoint may take for an answer.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(15 * 60);
/// How long a message may be in hand: no lease is longer.
pub const KEEP_MAX: Duration = Duration::from_secs(12 * 60 * 60);
/// Messages that one connector has in its hands: requests at a time, times the messages of each.
pub const HELD_MESSAGES_MAX: usize = 20_000;
/// Of what a message may be in hand, this is left for settling it.
const MARGIN_MAX: Duration = Duration::from_secs(60);

/// What is wrong with a setting, and what it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub(crate) String);

/// How messages are brought to an endpoint. It cannot be printed whole: headers may hold what is nobody's business.
///
/// ```
/// use leasehold_connect::Settings;
///
/// let settings = Settings { batch_messages: 100, ..Settings::new("thumbnails", "http://127.0.0.1:8080/messages") };
/// assert!(settings.check().is_ok());
/// let error = Settings::new("thumbnails", "127.0.0.1:8080").check().unwrap_err();
/// assert!(error.to_string().contains("http://"));
/// ```
#[derive(Clone)]
pub struct Settings {
    /// Whose messages.
    pub queue: String,
    /// Where they go: `http://host:port/path`, or `https`.
    pub url: String,
    /// How a request carries them.
    pub form: Form,
    /// Messages of a request at most; 10. Of [`Form::Raw`] one, whatever this says.
    pub batch_messages: usize,
    /// Bytes of their bodies at most; 6 MiB.
    pub batch_bytes: usize,
    /// How long a request may wait for more messages, from its first on; none. At most half of what `keep_for` leaves beside a request.
    pub batch_window: Duration,
    /// Requests at a time at the start; 4.
    pub concurrency: u32,
    /// Requests at a time when the endpoint keeps up; 16.
    pub concurrency_max: u32,
    /// For the whole of a request and its answer; 30 s.
    pub timeout: Duration,
    /// When a message comes again that failed.
    pub retry: RetryPolicy,
    /// Answers that say of a single message that it can never be handled; none.
    pub reject_statuses: Vec<u16>,
    /// Headers that every request has.
    pub headers: Vec<(String, String)>,
    /// The certificate authorities that are trusted instead of the system's, as PEM; for `https`.
    pub authorities: Option<Vec<u8>>,
    /// What requests are signed with.
    pub secrets: Option<Secrets>,
    /// How far leases reach; the queue's own when absent.
    pub lease: Option<Duration>,
    /// How long a message may be in hand, whatever the endpoint does; 1 h. Its lease is kept as long; what has not been asked about when a
    /// request might take longer than that goes back to the queue.
    pub keep_for: Duration,
    /// Who receives, for `why`.
    pub name: String,
    /// How long requests may still take when it stops; 30 s.
    pub stop_within: Duration,
}

impl Settings {
    /// Everything but the names as told beside the fields.
    #[must_use]
    pub fn new(queue: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            queue: queue.into(),
            url: url.into(),
            form: Form::Batch,
            batch_messages: 10,
            batch_bytes: 6 * 1024 * 1024,
            batch_window: Duration::ZERO,
            concurrency: 4,
            concurrency_max: 16,
            timeout: Duration::from_secs(30),
            retry: RetryPolicy::default(),
            reject_statuses: Vec::new(),
            headers: Vec::new(),
            authorities: None,
            secrets: None,
            lease: None,
            keep_for: Duration::from_secs(60 * 60),
            name: "leasehold-connect".to_owned(),
            stop_within: Duration::from_secs(30),
        }
    }

    /// Checks every setting against its limits.
    ///
    /// # Errors
    /// Of the first that is wrong: what it is and what it can be.
    pub fn check(&self) -> Result<(), Invalid> {
        uri(&self.url)?;
        self.headers()?;
        within("the batch size", self.batch_messages, BATCH_MESSAGES_MAX)?;
        within("the bytes of a batch", self.batch_bytes, BATCH_BYTES_MAX)?;
        within("the concurrency", self.concurrency as usize, CONCURRENCY_MAX as usize)?;
        within("the largest concurrency", self.concurrency_max as usize, CONCURRENCY_MAX as usize)?;
        if self.concurrency > self.concurrency_max {
            let (most, first) = (self.concurrency_max, self.concurrency);
            return Err(Invalid(format!("the largest concurrency is {most}: it can be {first} or more")));
        }
        if self.held_max() > HELD_MESSAGES_MAX {
            let held = self.held_max();
            return Err(Invalid(format!(
                "batch size times largest concurrency is {held}: it can be {HELD_MESSAGES_MAX} at most"
            )));
        }
        no_longer("the batch window", self.batch_window, WINDOW_MAX)?;
        no_longer("the time-out", self.timeout, TIMEOUT_MAX)?;
        if self.timeout.is_zero() {
            return Err(Invalid("the time-out is 0: an endpoint needs some time to answer".to_owned()));
        }
        no_longer("the time to keep a message", self.keep_for, KEEP_MAX)?;
        no_longer("the lease", self.lease.unwrap_or_default(), KEEP_MAX)?;
        if self.keep_for < self.timeout * 2 {
            let keep_for_ms = self.keep_for.as_millis();
            return Err(Invalid(format!(
                "the time to keep a message is {keep_for_ms} ms: it can be twice the time-out or more"
            )));
        }
        let window_max = self.wait_max() / 2;
        if self.batch_window > window_max {
            let (window_ms, most_ms) = (self.batch_window.as_millis(), window_max.as_millis());
            return Err(Invalid(format!(
                "the batch window is {window_ms} ms: it can be {most_ms} ms at most, half of what the time to keep a message leaves beside a request"
            )));
        }
        for status in &self.reject_statuses {
            rejecting(*status)?;
        }
        Ok(())
    }

    /// What is left for settling a message after the last request with it.
    pub(crate) fn margin(&self) -> Duration {
        MARGIN_MAX.min(self.keep_for / 10)
    }

    /// How long a message may wait for its request to start, so that this is over while its lease is kept.
    pub(crate) fn wait_max(&self) -> Duration {
        self.keep_for.saturating_sub(self.timeout).saturating_sub(self.margin())
    }

    /// Messages of a request at most.
    pub(crate) fn batch(&self) -> usize {
        match self.form {
            Form::Batch => self.batch_messages,
            Form::Raw => 1,
        }
    }

    fn held_max(&self) -> usize {
        self.batch() * self.concurrency_max as usize
    }

    pub(crate) fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, Invalid> {
        let parse = |(name, value): &(String, String)| {
            let wrong = || Invalid(format!("{name:?} with its value is no header"));
            let name = name.parse::<HeaderName>().map_err(|_| wrong())?;
            Ok((name, HeaderValue::from_str(value).map_err(|_| wrong())?))
        };
        self.headers.iter().map(parse).collect()
    }
}

/// Reads a URL that requests can be sent to.
pub(crate) fn uri(url: &str) -> Result<Uri, Invalid> {
    // What is before an @ may be secret.
    let shown = if url.contains('@') { "the URL".to_owned() } else { format!("{url:?}") };
    let wrong = |why: &str| Err(Invalid(format!("{shown} {why}: give http://host:port/path")));
    let Ok(uri) = url.parse::<Uri>() else { return wrong("is no URL") };
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(authority)) if authority.as_str().contains('@') => {
            wrong("names a user, which is not sent (use a header)")
        }
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => wrong("does not begin with http:// or https://"),
    }
}

/// What says of a message that it can never be handled cannot say that all is well, or that it is too early.
fn rejecting(status: u16) -> Result<(), Invalid> {
    let is_right = StatusCode::from_u16(status).is_ok_and(|status| {
        (status.is_client_error() || status.is_server_error()) && !crate::answer::is_refusal(status)
    });
    if is_right {
        return Ok(());
    }
    Err(Invalid(format!(
        "status {status} cannot reject a message: it can be 400 to 599, but not 429 and 503"
    )))
}

fn within(what: &str, value: usize, most: usize) -> Result<(), Invalid> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Invalid(format!("{what} is {value}: it can be 1 to {most}")))
}

fn no_longer(what: &str, value: Duration, most: Duration) -> Result<(), Invalid> {
    if value <= most {
        return Ok(());
    }
    Err(Invalid(format!("{what} is {} s: it can be {} s at most", value.as_secs(), most.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Settings), expected: &str) {
        let mut settings = Settings::new("q", "http://127.0.0.1:1/");
        assert_eq!(settings.check(), Ok(()));
        change(&mut settings);
        let refused = settings.check().unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }

    #[test]
    fn a_setting_out_of_its_limits_is_named_with_them() {
        refused(|settings| settings.batch_messages = 0, "batch size is 0: it can be 1 to 1000");
        refused(|settings| settings.batch_bytes = usize::MAX, "bytes of a batch");
        refused(|settings| settings.concurrency = 0, "concurrency is 0");
        refused(|settings| settings.concurrency_max = 3, "it can be 4 or more");
        refused(|settings| settings.concurrency_max = 1_001, "1 to 1000");
        refused(
            |settings| (settings.batch_messages, settings.concurrency_max) = (1_000, 21),
            "20000 at most",
        );
        refused(|settings| settings.batch_window = WINDOW_MAX * 2, "batch window is 600 s");
        refused(|settings| settings.timeout = TIMEOUT_MAX * 2, "time-out is 1800 s");
        refused(|settings| settings.timeout = Duration::ZERO, "time-out is 0");
        refused(|settings| settings.keep_for = KEEP_MAX * 2, "keep a message is 86400 s");
        refused(|settings| settings.keep_for = settings.timeout, "twice the time-out or more");
        // Messages that wait for longer than they are kept are never sent.
        refused(
            |settings| {
                settings.keep_for = Duration::from_secs(120);
                settings.batch_window = Duration::from_secs(60);
            },
            "batch window is 60000 ms: it can be 39000 ms at most",
        );
        refused(|settings| settings.lease = Some(KEEP_MAX * 2), "lease is 86400 s");
        for status in [0, 200, 302, 429, 503, 600] {
            refused(
                |settings| settings.reject_statuses = vec![422, status],
                &format!("status {status} cannot"),
            );
        }
        refused(|settings| settings.headers = vec![("a b".to_owned(), "c".to_owned())], "\"a b\"");
    }

    #[test]
    fn a_url_that_no_request_can_go_to_says_what_to_give() {
        for (url, expected) in [
            ("", "is no URL"),
            ("127.0.0.1:80", "http://"),
            ("/path", "http://"),
            ("ftp://host/", "http://"),
            ("http://user:secret@host/", "the URL names a user"),
            ("user:secret@host", "the URL"),
        ] {
            let refused = uri(url).unwrap_err().to_string();
            assert!(!refused.contains("secret"), "{refused}");
            assert!(refused.contains(expected), "{refused}");
        }
        assert!(uri("http://host").is_ok() && uri("https://[::1]:80/a?b=c").is_ok());
    }
}
