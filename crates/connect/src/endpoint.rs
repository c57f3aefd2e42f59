//! Makes requests, and tells apart why one has no answer.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::USER_AGENT;
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
/// A connection without requests is closed before most endpoints close theirs.
const IDLE_TIME_MAX: Duration = Duration::from_secs(20);
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
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| Failed::new(Kind::Broken, with_causes(&*error)))?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
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
