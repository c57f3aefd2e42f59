//! Makes requests, and tells apart why one has no answer.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout_at};

use crate::answer::{Answer, Failed};
use crate::request::Request;
use crate::settings::uri;
use crate::tls::Dialer;
use crate::{Form, Invalid, Kind, Secrets, Settings};

const AGENT: &str = concat!("leasehold-connect/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// A connection without requests is closed before endpoints close theirs, which many do after 5 s: a request that meets that is
/// of unknown outcome.
const IDLE_TIME_MAX: Duration = Duration::from_secs(4);
/// An answer has a few bytes for each message that failed.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// For the body of an answer that is no success: it is for people, and the status is known.
const TOLD_TIME_MAX: Duration = Duration::from_secs(1);

pub(crate) struct Endpoint {
    client: Client<Dialer, Full<Bytes>>,
    uri: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    secrets: Option<Secrets>,
    form: Form,
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
            form: settings.form,
            timeout: settings.timeout,
        })
    }

    /// The answer to a request, whatever it says; or why there is none.
    pub(crate) async fn ask(&self, request: Request) -> Result<Answer, Failed> {
        let until = Instant::now() + self.timeout;
        let late = || {
            let time = self.timeout.as_millis();
            Failed::new(Kind::TimedOut, format!("no answer came within {time} ms"))
        };
        let mut wire = http::Request::new(Full::new(request.body.clone()));
        *wire.method_mut() = Method::POST;
        *wire.uri_mut() = self.uri.clone();
        *wire.headers_mut() = self.headers_of(request);
        let answer = timeout_at(until, self.client.request(wire)).await.map_err(|_| late())?;
        let (head, body) = answer.map_err(|error| unanswered(&error))?.into_parts();
        let (is_bounded, is_success) = (is_bounded(&head), head.status.is_success());
        let mut answer =
            Answer { status: head.status, headers: head.headers, body: Bytes::new(), is_bounded };
        let read_until = if is_success { until } else { until.min(Instant::now() + TOLD_TIME_MAX) };
        answer.body = match timeout_at(read_until, Limited::new(body, ANSWER_BYTES_MAX).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            // What is no success says so by its status and headers.
            _ if !is_success => Bytes::new(),
            Ok(Err(error)) => return Err(Failed::new(Kind::Broken, with_causes(&*error))),
            Err(_) => return Err(late()),
        };
        let is_read = is_success && self.form == Form::Batch;
        if is_read && answer.body.is_empty() && answer.is_json() && !is_bounded {
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

fn unanswered(error: &hyper_util::client::legacy::Error) -> Failed {
    let kind = if error.is_connect() { Kind::Unreachable } else { Kind::Broken };
    Failed::new(kind, with_causes(error))
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

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::answer::{Rules, Verdict};

    const BODY: &[u8] = b"what is sent";
    /// Longer than anything takes that works.
    const TIME_MAX: Duration = Duration::from_secs(60);

    fn request() -> Request {
        Request {
            key: HeaderValue::from_static("key"),
            headers: HeaderMap::new(),
            body: Bytes::from_static(BODY),
        }
    }

    /// What a server does when it has answered.
    #[derive(PartialEq, Eq)]
    enum Then {
        Closes,
        Hangs,
    }

    /// What becomes of a request that gets these bytes.
    async fn ask(form: Form, bytes: &'static [u8], then: Then) -> Result<Answer, Failed> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let settings = Settings { form, timeout: TIME_MAX, ..Settings::new("q", url) };
        let endpoint = Endpoint::new(&settings).unwrap();
        let answering = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut came = Vec::new();
            while !came.ends_with(BODY) {
                assert!(stream.read_buf(&mut came).await.unwrap() > 0, "the request breaks off");
            }
            stream.write_all(bytes).await.unwrap();
            (then == Then::Hangs).then_some(stream)
        });
        let answer = endpoint.ask(request()).await;
        drop(answering.await.unwrap());
        answer
    }

    #[tokio::test]
    async fn a_status_is_heard_whatever_comes_of_its_body() {
        for bytes in [
            &b"HTTP/1.0 503 Busy\r\ncontent-type: application/json\r\n\r\n"[..],
            b"HTTP/1.0 429 Slow\r\ncontent-type: application/json\r\nleasehold-reject: no\r\n\r\n",
            b"HTTP/1.0 422 No\r\ncontent-type: application/json\r\n\r\n",
            b"HTTP/1.1 503 Busy\r\ncontent-length: 10\r\n\r\nbusy",
        ] {
            let answer = ask(Form::Batch, bytes, Then::Closes).await.unwrap();
            assert!(bytes[9..].starts_with(answer.status.as_str().as_bytes()), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_whose_body_never_ends_is_a_refusal() {
        let began = Instant::now();
        let bytes = b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 10\r\n\r\nbusy";
        let answer = ask(Form::Batch, bytes, Then::Hangs).await.unwrap();
        assert!(began.elapsed() < TIME_MAX / 2, "it was waited for");
        let rules = Rules { form: Form::Batch, reject_statuses: Vec::new() };
        let verdict = rules.judge(&["0:1".to_owned()], &answer);
        let Verdict::Refused(failed) = verdict else { panic!("{verdict:?}") };
        assert_eq!(failed.retry_after, Some(Duration::from_secs(7)));
    }

    #[tokio::test]
    async fn a_success_without_a_body_where_one_is_to_be_read_is_none() {
        let bytes = b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n";
        let failed = ask(Form::Batch, bytes, Then::Closes).await.unwrap_err();
        assert_eq!(failed.kind, Kind::Broken);
        assert_eq!(ask(Form::Raw, bytes, Then::Closes).await.unwrap().status, StatusCode::OK);
        let bytes = b"HTTP/1.0 200 OK\r\n\r\n{\"batchItemFailures\":[{\"ite";
        assert!(!ask(Form::Batch, bytes, Then::Closes).await.unwrap().is_bounded);
    }
}
