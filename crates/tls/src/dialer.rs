//! Secured connections for HTTP clients that ask for a connection by a URI.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};
use tower_service::Service;

use crate::connect;

/// Connects to the host and port of a URI, whatever its scheme, and secures the connection.
#[derive(Clone)]
pub struct Dialer {
    tcp: HttpConnector,
    connector: TlsConnector,
    time_max: Duration,
}

impl Dialer {
    /// The connection and the handshake may take this time each.
    pub fn new(connector: TlsConnector, time_max: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(time_max));
        Self { tcp, connector, time_max }
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(context).map_err(Self::Error::from)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, connector, time_max) =
            (self.tcp.call(uri.clone()), self.connector.clone(), self.time_max);
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            let securing = connect(&connector, uri.host().unwrap_or_default(), stream);
            let secured = timeout(time_max, securing)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake takes too long"))??;
            Ok(TokioIo::new(secured))
        })
    }
}
