//! Makes requests, and tells apart why one has no answer.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use crate::answer::{Answer, Failed};
use crate::request::Request;
use crate::settings::uri;
use crate::tls::Dialer;
use crate::{Invalid, Kind, Secrets, Settings};

const AGENT: &str = concat!("leasehold-connect/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// A connection without requests is closed before endpoints close theirs, which many do after 5 s: a request that meets that is
/// of unknown outcome.
const IDLE_TIME_MAX: Duration = Duration::from_secs(4);
/// An answer has a few bytes for each message that failed.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

pub(crate) struct Endpoint {
    client: Client<Dialer, Full<Bytes>>,
    uri: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    secrets: Option<Secrets>,
    timeout: Duration,
}

impl Endpoint {
    pub(crate) fn new(settings: &Settings) -> Result<Self, Invalid> {
        let uri = uri(&settings.url)?;
        // What takes all of the time would be told as slow, and not as away.
        let time_max = CONNECT_TIME_MAX.min(settings.timeout / 2);
        let dialer = Dialer::new(&uri, settings.authorities.as_deref(), time_max)?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME_MAX)
            .build(dialer);
        Ok(Self {
            client,
            uri,
            headers: settings.headers()?,
            secrets: settings.secrets.clone(),
            timeout: settings.timeout,
        })
    }

    /// The answer to a request, whatever it says; or why there is none.
    pub(crate) async fn ask(&self, request: Request) -> Result<Answer, Failed> {
        let late = || {
            let time = self.timeout.as_millis();
            Failed::new(Kind::TimedOut, format!("no answer came within {time} ms"))
        };
        timeout(self.timeout, self.exchange(request)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn exchange(&self, request: Request) -> Result<Answer, Failed> {
        let mut wire = http::Request::new(Full::new(request.body.clone()));
        *wire.method_mut() = Method::POST;
        *wire.uri_mut() = self.uri.clone();
        *wire.headers_mut() = self.headers_of(request);
        let answer = self.client.request(wire).await.map_err(|error| {
            let kind = if error.is_connect() { Kind::Unreachable } else { Kind::Broken };
            Failed::new(kind, with_causes(&error))
        })?;
        let (head, body) = answer.into_parts();
        let is_bounded = is_bounded(&head);
        let mut answer = Answer { status: head.status, headers: head.headers, body: Bytes::new() };
        answer.body = match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            // What is no success says so by its status and headers: the rest is for people.
            Err(_) if !answer.status.is_success() => Bytes::new(),
            Err(error) => return Err(Failed::new(Kind::Broken, with_causes(&*error))),
        };
        if answer.body.is_empty() && answer.is_json() && !is_bounded {
            return Err(Failed::new(Kind::Broken, "the connection ended before the body of its answer"));
        }
        Ok(answer)
    }

    /// Those of the request stand over those that the user gave.
    fn headers_of(&self, request: Request) -> HeaderMap {
        let mut headers = self.headers.iter().cloned().collect::<HeaderMap>();
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
        let mut own = request.headers;
        if let Some(secrets) = &self.secrets {
            secrets.sign(&mut own, &request.key, &request.body, SystemTime::now());
        }
        headers.extend(own);
        headers
    }
}

/// Whether a body that breaks off can be told from one that is over.
fn is_bounded(head: &http::response::Parts) -> bool {
    head.version >= http::Version::HTTP_2
        || head.status == http::StatusCode::NO_CONTENT
        || head.headers.contains_key(CONTENT_LENGTH)
        || head.headers.contains_key(TRANSFER_ENCODING)
}

/// An error with what is behind it: the first alone says only that something failed.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
