//! The listener: connections within their limits, HTTP/1.1 and HTTP/2 on one port, and an end in good order.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use leasehold_node::Service;
use leasehold_node::config::Sqs;
use leasehold_node::connection::{Connection, Greeted, prepare};
use leasehold_node::tls::{HTTP2, Listener, Tls};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::answer::Answer;
use crate::deadlines::Deadlines;
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::limits::{
    ACCEPT_PAUSE_MS, DRAIN_MS_MAX, HEAD_BYTES_MAX, IDLE_MS_MAX, PREFACE_MS_MAX, STREAMS_MAX,
};
use crate::patient::Patient;
use crate::queue_url::Scheme;
use crate::signature::Signatures;

/// What a client that speaks HTTP/2 from the start sends first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Between two looks at a preface that comes in pieces: at first, and at most.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(500);
const HTTP2_ALIVE: Duration = Duration::from_secs(20);

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for SQS clients: {error}")]
pub struct StartError {
    address: SocketAddr,
    error: io::Error,
}

/// A gateway that serves.
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens and serves, with at most `connections_max` connections at a time; further ones wait in the listener's queue. With
    /// `tls` it speaks nothing else.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(
        config: &Sqs,
        connections_max: usize,
        tls: Option<Arc<Tls>>,
        service: Service,
    ) -> Result<Self, StartError> {
        let failed = |error| StartError { address: config.listen, error };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = watch::channel(false);
        let scheme = if tls.is_some() { Scheme::Https } else { Scheme::Http };
        let gateway = Gateway::new(service, config, scheme, stopped.clone());
        let exchange = Arc::new(Exchange::new(gateway, Signatures::new(&config.access_keys)));
        tracing::info!(%address, "serves SQS clients");
        let task = tokio::spawn(serve(listener, tls, exchange, connections_max, stopped));
        Ok(Self { address, stop, task })
    }

    /// Where clients reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets go who waits for messages, answers what is under way, and ends.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        // A task that panicked has said so.
        let _ = self.task.await;
    }
}

async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    exchange: Arc<Exchange>,
    connections_max: usize,
    stop: watch::Receiver<bool>,
) {
    let mut stopped = stop.clone();
    let room = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => break,
            (stream, permit) = accept(&listener, &room) => {
                connections.spawn(connection(stream, tls.clone(), exchange.clone(), permit, stop.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let finish = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_millis(DRAIN_MS_MAX), finish).await.is_err() {
        tracing::debug!("some SQS clients stayed connected until the end");
        connections.shutdown().await;
    }
}

/// The next connection, once there is room for it. Nothing is lost when it is dropped half-way.
async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let Ok(permit) = Arc::clone(room).acquire_owned().await else {
        // The semaphore is never closed.
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                tracing::warn!(%error, "an SQS client cannot be accepted");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    exchange: Arc<Exchange>,
    permit: OwnedSemaphorePermit,
    mut stop: watch::Receiver<bool>,
) {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%error, "a connection stays slow for small answers, or without signs of life");
    }
    let begun = tokio::select! {
        begun = begin(stream, tls.as_deref()) => begun,
        _ = stop.wait_for(|stop| *stop) => return,
    };
    let (connection, version) = match begun {
        Ok(begun) => begun,
        Err(error) => return tracing::debug!(%error, "an SQS connection cannot be secured"),
    };
    let deadlines = Arc::new(Deadlines::default());
    let of_answers = Arc::clone(&deadlines);
    let answer = move |request: Request<Incoming>| {
        let (exchange, deadlines) = (exchange.clone(), of_answers.clone());
        async move { exchange.answer(request, &deadlines).await }
    };
    converse(connection, version, answer, &deadlines, stop).await;
    drop(permit);
}

/// Speaks with a client until one of both has enough, the client does not take in time what it asked for, or the node stops.
async fn converse<C, F>(
    connection: C,
    version: Version,
    answer: impl Fn(Request<Incoming>) -> F + Send + 'static,
    deadlines: &Deadlines,
    mut stop: watch::Receiver<bool>,
) where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Response<Answer>> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answering = answer(request);
        async move { Ok::<_, Infallible>(answering.await) }
    });
    let connection = Patient::new(connection);
    let stopped = async { drop(stop.wait_for(|stop| *stop).await) };
    let serving = async move {
        if version == Version::HTTP_2 {
            let stream = TokioIo::new(Greeted::new(connection));
            let mut connection = pin!(http2_builder().serve_connection(stream, service));
            tokio::select! {
                served = connection.as_mut() => served,
                () = stopped => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        } else {
            let stream = TokioIo::new(connection);
            let mut connection = pin!(http1_builder().serve_connection(stream, service));
            tokio::select! {
                served = connection.as_mut() => served,
                () = stopped => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    tokio::select! {
        // What goes wrong here is the client's: it has gone, was too slow, or spoke no HTTP and has been told.
        served = serving => if let Err(error) = served {
            tracing::debug!(%error, "an SQS connection failed");
        },
        () = deadlines.passed() => tracing::debug!("an SQS client did not take its answers in time"),
    }
}

/// A connection that its client closes drops the request that it waits for: a receive then leaves no lease behind.
fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .half_close(false)
        .header_read_timeout(Duration::from_millis(IDLE_MS_MAX))
        .max_buf_size(HEAD_BYTES_MAX);
    builder
}

fn http2_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(HTTP2_ALIVE)
        .keep_alive_timeout(HTTP2_ALIVE);
    builder
}

/// A connection, and what is spoken on it: the handshake tells, or what the client says first.
async fn begin(stream: TcpStream, tls: Option<&Tls>) -> io::Result<(Connection, Version)> {
    let version_of = |is_http2: bool| if is_http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    if let Some(tls) = tls {
        let connection = tls.accept(Listener::Sqs, stream).await?;
        let is_http2 = connection.protocol() == Some(HTTP2);
        return Ok((connection, version_of(is_http2)));
    }
    let looking = tokio::time::timeout(Duration::from_millis(IDLE_MS_MAX), begins_as_http2(&stream)).await;
    let is_http2 = matches!(looking, Ok(Ok(true)));
    Ok((Connection::Plain(stream), version_of(is_http2)))
}

/// Looks at the first bytes without taking them. A preface that does not become whole in time is none.
async fn begins_as_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut begin = [0; PREFACE.len()];
    let mut begun = None;
    let mut pause = LOOK_AGAIN;
    loop {
        let len = stream.peek(&mut begin).await?;
        if len == 0 || begin[..len] != PREFACE[..len] {
            return Ok(false);
        }
        if len == PREFACE.len() {
            return Ok(true);
        }
        if begun.get_or_insert_with(Instant::now).elapsed() >= Duration::from_millis(PREFACE_MS_MAX) {
            return Ok(false);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_AGAIN_MAX);
    }
}

#[cfg(test)]
mod tests;
