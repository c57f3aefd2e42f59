//! The administration listener: what Prometheus and an orchestrator ask over HTTP.
//!
//! | path       | answer                                                                                     |
//! |------------|--------------------------------------------------------------------------------------------|
//! | `/metrics` | all metrics, as text                                                                        |
//! | `/healthz` | 200 while the process answers at all: nothing but a restart helps when it does not          |
//! | `/readyz`  | 200 when the node can serve; else 503 and the reason as JSON, for it will pass by itself     |
//!
//! Only GET and HEAD, and no request body is read. A connection carries one request and lives `CONNECTION_MS_MAX` at most,
//! so that slow or idle callers cannot hold the few that there are.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::connection::Connection;
use crate::telemetry::Metrics;
use crate::tls::{Listener, Tls};

/// Connections at one time; further ones wait in the listener's queue.
const CONNECTIONS_MAX: usize = 32;
/// From the accept to the last byte of the answer.
const CONNECTION_MS_MAX: u64 = 10_000;
/// For the whole head of a request.
const HEAD_MS_MAX: u64 = 5_000;
/// The head of a request. The least that the HTTP implementation takes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;
/// What the last answers may take after the shutdown was asked for.
const SHUTDOWN_MS_MAX: u64 = 1_000;
/// After a failed accept, most likely for want of file descriptors.
const ACCEPT_PAUSE_MS: u64 = 100;

const _: () = assert!(HEAD_MS_MAX < CONNECTION_MS_MAX);

/// Asked at each request for `/readyz`, so it must be quick.
pub trait Readiness: Send + Sync + 'static {
    fn readiness(&self) -> Result<(), NotReady>;
}

impl<F> Readiness for F
where
    F: Fn() -> Result<(), NotReady> + Send + Sync + 'static,
{
    fn readiness(&self) -> Result<(), NotReady> {
        self()
    }
}

/// Why a node cannot serve now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// For programs: the name of a reason of the protocol, such as `NOT_INITIALISED`.
    pub reason: &'static str,
    /// For people.
    pub detail: String,
}

/// What the listener answers from.
#[derive(Clone)]
pub struct AdminState {
    pub metrics: &'static Metrics,
    pub readiness: Arc<dyn Readiness>,
}

/// Serves until `shutdown` completes, then lets the answers under way finish, within `SHUTDOWN_MS_MAX`.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    state: AdminState,
    shutdown: impl Future<Output = ()>,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            (stream, permit) = accept(&listener, &permits) => {
                connections.spawn(connection(stream, tls.clone(), state.clone(), permit));
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let finish = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_millis(SHUTDOWN_MS_MAX), finish).await.is_err() {
        connections.shutdown().await;
    }
}

/// The next connection, once there is room for it. Nothing is lost when it is dropped half-way.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                if !is_of_one_connection(&error) {
                    tracing::warn!(%error, "the administration listener cannot accept connections");
                    tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                }
            }
        }
    }
}

/// Whether the caller was gone before it was accepted, which says nothing about the next.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    state: AdminState,
    permit: OwnedSemaphorePermit,
) {
    let serve = async {
        let connection = match tls {
            Some(tls) => tls.accept(Listener::Administration, stream).await?,
            None => Connection::Plain(stream),
        };
        exchange(connection, state).await
    };
    // What goes wrong here is the caller's: it has gone, was too slow, or spoke no HTTP and has been told.
    match tokio::time::timeout(Duration::from_millis(CONNECTION_MS_MAX), serve).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an administration request failed"),
        Err(_) => tracing::debug!("an administration request took too long"),
    }
    drop(permit);
}

async fn exchange(connection: Connection, state: AdminState) -> io::Result<()> {
    let service = service_fn(move |request| {
        let response = respond(&state, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let serve = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(Duration::from_millis(HEAD_MS_MAX))
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(connection), service);
    serve.await.map_err(io::Error::other)
}

fn respond<B>(state: &AdminState, request: &Request<B>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served here\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => {
            answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", state.metrics.render())
        }
        "/healthz" => text(StatusCode::OK, "alive\n"),
        "/readyz" => match state.readiness.readiness() {
            Ok(()) => json(StatusCode::OK, &serde_json::json!({ "ready": true })),
            Err(NotReady { reason, detail }) => {
                let body = serde_json::json!({ "ready": false, "reason": reason, "detail": detail });
                json(StatusCode::SERVICE_UNAVAILABLE, &body)
            }
        },
        _ => text(StatusCode::NOT_FOUND, "only /metrics, /healthz and /readyz are served here\n"),
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", body)
}

fn json(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    answer(status, "application/json", format!("{body}\n"))
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    use super::*;
    use crate::telemetry;

    struct Server {
        address: SocketAddr,
        ready: Arc<AtomicBool>,
        stop: oneshot::Sender<()>,
        task: JoinHandle<()>,
    }

    async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ready = Arc::new(AtomicBool::new(true));
        let is_ready = Arc::clone(&ready);
        let readiness = move || match is_ready.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(NotReady { reason: "NOT_INITIALISED", detail: "run \"cluster init\"".into() }),
        };
        let state = AdminState { metrics: telemetry::metrics().unwrap(), readiness: Arc::new(readiness) };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, None, state, async {
            stopped.await.ok();
        }));
        Server { address, ready, stop, task }
    }

    /// Sends the bytes and returns what comes until the server closes the connection.
    async fn exchange(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The server may answer and close before it has read everything.
        stream.write_all(request).await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        String::from_utf8(answer).unwrap()
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        exchange(address, format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await
    }

    #[tokio::test]
    async fn metrics_health_and_readiness_are_served() {
        let server = start().await;
        metrics::gauge!(telemetry::names::LEADERS, telemetry::names::NODE => "admin-test").set(5);
        let metrics = get(server.address, "/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
        assert!(metrics.contains("leasehold_leaders{node=\"admin-test\"} 5\n"));
        assert!(get(server.address, "/healthz").await.ends_with("\r\n\r\nalive\n"));

        assert!(get(server.address, "/readyz").await.starts_with("HTTP/1.1 200 OK\r\n"));
        server.ready.store(false, Ordering::Relaxed);
        let answer = get(server.address, "/readyz?verbose").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let body: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"ready": false, "reason": "NOT_INITIALISED", "detail": "run \"cluster init\""})
        );
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_refused() {
        let server = start().await;
        assert!(get(server.address, "/").await.starts_with("HTTP/1.1 404 "));
        let post =
            exchange(server.address, b"POST /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc")
                .await;
        assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET, HEAD"), "{post}");
        let head = exchange(server.address, b"HEAD /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[tokio::test]
    async fn what_is_too_large_or_no_http_is_refused() {
        let server = start().await;
        let long = format!("GET /healthz HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
        let answer = exchange(server.address, long.as_bytes()).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        let many = format!("GET /healthz HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: 1\r\n".repeat(HEADERS_MAX));
        assert!(exchange(server.address, many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
        assert!(!exchange(server.address, b"\x16\x03\x01\x00\xff\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        assert!(get(server.address, "/healthz").await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_say_nothing_are_let_go_and_the_next_are_served() {
        let server = start().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(server.address).await.unwrap());
        }
        let started = Instant::now();
        assert!(get(server.address, "/healthz").await.starts_with("HTTP/1.1 200 "));
        assert!(started.elapsed() <= Duration::from_millis(CONNECTION_MS_MAX));
    }

    #[tokio::test]
    async fn the_shutdown_does_not_wait_for_silent_callers() {
        let server = start().await;
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        silent.write_all(b"GET /healthz").await.unwrap();
        assert!(get(server.address, "/healthz").await.starts_with("HTTP/1.1 200 "));
        server.stop.send(()).unwrap();
        // Before a silent caller would be let go for what it has not said.
        let patience = Duration::from_millis(HEAD_MS_MAX - SHUTDOWN_MS_MAX);
        tokio::time::timeout(patience, server.task).await.unwrap().unwrap();
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}
