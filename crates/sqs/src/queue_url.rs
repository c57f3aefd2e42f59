//! Queue URLs: `http://host/account/name`, or `https` where the listener has TLS, with the host that the client used. What comes back
//! may also be a path or a bare name.

use crate::error::{Error, Kind};
use crate::limits::QUEUE_NAME_CHARACTERS_MAX;

const FIFO_SUFFIX: &str = ".fifo";

/// How queue URLs begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

pub fn text(scheme: Scheme, host: &str, account_id: &str, name: &str) -> String {
    let scheme = match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    format!("{scheme}://{host}/{account_id}/{name}")
}

/// The name of the queue in a URL, in a path or by itself.
///
/// # Errors
/// `InvalidAddress` when there is none, `QueueDoesNotExist` when it is of another account.
pub fn name_of<'a>(url: &'a str, account_id: &str) -> Result<&'a str, Error> {
    let path = match url.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => url,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut segments = path.rsplit('/').filter(|segment| !segment.is_empty());
    let Some(name) = segments.next().filter(|name| is_name(name)) else {
        return Err(Error::new(
            Kind::InvalidAddress,
            format!("The address {url} is not valid for this endpoint."),
        ));
    };
    let is_account = |text: &&str| text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    match segments.next().filter(is_account) {
        Some(account) if account != account_id => Err(does_not_exist()),
        _ => Ok(name),
    }
}

pub fn does_not_exist() -> Error {
    Error::new(Kind::QueueDoesNotExist, "The specified queue does not exist.")
}

/// A name that a client may give a new queue.
pub fn is_new_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let stem = name.strip_suffix(FIFO_SUFFIX).unwrap_or(name);
    (1..=QUEUE_NAME_CHARACTERS_MAX).contains(&name.len()) && !stem.is_empty() && stem.bytes().all(allowed)
}

pub fn is_fifo_name(name: &str) -> bool {
    name.ends_with(FIFO_SUFFIX)
}

/// A name that any interface may have given a queue.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=QUEUE_NAME_CHARACTERS_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "000000000000";

    #[test]
    fn every_style_of_url_names_its_queue() {
        for url in [
            "http://127.0.0.1:9324/000000000000/jobs",
            "https://sqs.us-east-1.amazonaws.com/000000000000/jobs",
            "http://localhost/queue/jobs",
            "http://localhost:9324/jobs",
            "/000000000000/jobs",
            "jobs",
            "http://localhost/000000000000/jobs/?x=1",
        ] {
            assert_eq!(name_of(url, ACCOUNT).unwrap(), "jobs", "{url}");
        }
        assert_eq!(name_of(&text(Scheme::Https, "h:1", ACCOUNT, "a.fifo"), ACCOUNT).unwrap(), "a.fifo");
    }

    #[test]
    fn what_names_none_is_refused() {
        for url in ["", "/", "http://localhost", "http://localhost/", "a b", "http://h/000000000000/ü"] {
            assert_eq!(name_of(url, ACCOUNT).unwrap_err().kind, Kind::InvalidAddress, "{url}");
        }
        assert_eq!(name_of("http://h/123456789012/jobs", ACCOUNT).unwrap_err().kind, Kind::QueueDoesNotExist);
    }

    #[test]
    fn names_of_new_queues() {
        for name in ["a", "A-b_9", "x.fifo", &"n".repeat(80)] {
            assert!(is_new_name(name), "{name}");
        }
        for name in ["", "a.b", ".fifo", "a b", "a.fifo.fifo", &"n".repeat(81), "ü"] {
            assert!(!is_new_name(name), "{name}");
        }
    }
}
