//! An endpoint for tests, on loopback: it answers as it is told, and remembers what it was asked.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use leasehold_tls::{HTTP1, Identity, TlsAcceptor, acceptor};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::tls::Stream;

/// A request that came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// As they came.
    pub headers: HeaderMap,
    /// As it came.
    pub body: Bytes,
}

impl Asked {
    /// The messages of a batch.
    #[must_use]
    pub fn messages(&self) -> Vec<Value> {
        let told: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(told["version"], 1, "{told}");
        told["messages"].as_array().unwrap().clone()
    }

    /// The bodies of the messages of a batch, which are text.
    #[must_use]
    pub fn bodies(&self) -> Vec<String> {
        self.messages().iter().map(|message| message["body"].as_str().unwrap().to_owned()).collect()
    }

    /// A header that is there and is text.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("{name} is missing")).to_str().unwrap()
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    after: Duration,
}

impl Reply {
    /// That status, and nothing else.
    #[must_use]
    pub fn status(status: u16) -> Self {
        let status = StatusCode::from_u16(status).unwrap();
        Self { status, headers: HeaderMap::new(), body: Bytes::new(), after: Duration::ZERO }
    }

    /// Success but for some messages, each an item of `batchItemFailures`.
    #[must_use]
    pub fn failures(items: Vec<Value>) -> Self {
        let body = json!({ "batchItemFailures": items }).to_string().into();
        Self { body, ..Self::status(200) }.header(CONTENT_TYPE.as_str(), "application/json")
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = name.parse::<HeaderName>().unwrap();
        self.headers.insert(name, value.parse::<HeaderValue>().unwrap());
        self
    }

    /// Not at once.
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.after = time;
        self
    }
}

/// Who vouches for the endpoint of [`Endpoint::start_secured`].
pub const AUTHORITY: &str = include_str!("authority.pem");
/// Who does not.
pub const OTHER_AUTHORITY: &str = include_str!("other_authority.pem");
const CERTIFICATE: &str = include_str!("endpoint.pem");
const KEY: &str = include_str!("endpoint.key");

type Answers = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A server; it ends, with its connections, when this is dropped.
pub struct Endpoint {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    answers: Box<Answers>,
    asked: Mutex<Vec<Asked>>,
    under_way: AtomicUsize,
    under_way_max: AtomicUsize,
}

impl Endpoint {
    /// A server on a port of its own.
    pub async fn start(answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), answers).await
    }

    /// A server where another was.
    pub async fn start_at(
        address: SocketAddr,
        answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(address, None, answers).await
    }

    /// A server that speaks TLS, with a certificate for 127.0.0.1 of [`AUTHORITY`].
    pub async fn start_secured(answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let identity = Identity::from_pem(CERTIFICATE.as_bytes(), KEY.as_bytes()).unwrap();
        let acceptor = acceptor(&identity, None, &[HTTP1]).unwrap();
        Self::listen(SocketAddr::from(([127, 0, 0, 1], 0)), Some(acceptor), answers).await
    }

    async fn listen(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let shared = Arc::new(Shared {
            answers: Box::new(answers),
            asked: Mutex::default(),
            under_way: AtomicUsize::new(0),
            under_way_max: AtomicUsize::new(0),
        });
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let scheme = if tls.is_some() { "https" } else { "http" };
        tasks.spawn(accept(listener, tls, Arc::clone(&shared)));
        Self { address, scheme, shared, tasks }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where requests go.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}/messages", self.scheme, self.address)
    }

    /// What came so far, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests were under way together, at most.
    #[must_use]
    pub fn under_way_max(&self) -> usize {
        self.shared.under_way_max.load(Ordering::SeqCst)
    }

    /// Ends it: nobody listens there when this returns.
    pub async fn stop(mut self) -> SocketAddr {
        self.tasks.shutdown().await;
        self.address
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            // A client that does not trust it, or goes away, is no failure of the endpoint.
            match tls {
                None => serve(stream, shared).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, shared).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: impl Stream + 'static, shared: Arc<Shared>) {
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.answer(request).await) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Counts a request for as long as it is under way.
struct UnderWay<'a>(&'a Shared);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    async fn answer(&self, request: http::Request<Incoming>) -> Response<Full<Bytes>> {
        let together = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        let _under_way = UnderWay(self);
        self.under_way_max.fetch_max(together, Ordering::SeqCst);
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let asked = Asked { headers: head.headers, body };
        let reply = (self.answers)(&asked);
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        tokio::time::sleep(reply.after).await;
        let mut response = Response::new(Full::new(reply.body));
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers;
        response
    }
}
