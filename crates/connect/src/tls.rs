//! Connections to endpoints, with TLS where the URL says `https`.
//!
//! A certificate must name the host of the URL, and an authority that the system trusts, or one of those that were given instead.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use leasehold_tls::{Authorities, HTTP1, TlsConnector, connect, connector};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tower_service::Service;

use crate::Invalid;

/// All that HTTP/1.1 needs of a connection, whatever it is made of.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Connection for Box<dyn Stream> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Connects to the host of a URL.
#[derive(Clone)]
pub(crate) struct Dialer {
    tcp: HttpConnector,
    /// Where the URL is `https`.
    tls: Option<TlsConnector>,
    /// For all of it: the name, the connection, and the handshake.
    time_max: Duration,
}

impl Dialer {
    /// For a URL; `authorities` are those that are trusted instead of the system's, as PEM.
    pub(crate) fn new(uri: &Uri, authorities: Option<&[u8]>, time_max: Duration) -> Result<Self, Invalid> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(time_max));
        tcp.enforce_http(false);
        let is_tls = uri.scheme() == Some(&Scheme::HTTPS);
        let tls = is_tls.then(|| {
            let authorities = authorities.map_or_else(Authorities::of_system, Authorities::from_pem);
            connector(&authorities?, None, &[HTTP1])
        });
        let tls = tls.transpose().map_err(|error| Invalid(error.to_string()))?;
        Ok(Self { tcp, tls, time_max })
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Self::Response, Failure>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.tcp.poll_ready(context).map_err(Failure::from)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, tls) = (self.tcp.call(uri.clone()), self.tls.clone());
        let dialing = async move {
            let tcp = connecting.await?.into_inner();
            let Some(tls) = tls else { return Ok(TokioIo::new(Box::new(tcp) as Box<dyn Stream>)) };
            let secured = connect(&tls, uri.host().unwrap_or_default(), tcp).await?;
            Ok(TokioIo::new(Box::new(secured) as Box<dyn Stream>))
        };
        let time_max = self.time_max;
        Box::pin(async move { timeout(time_max, dialing).await? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::AUTHORITY;

    fn dialer(url: &str, authorities: Option<&[u8]>) -> Result<Dialer, Invalid> {
        Dialer::new(&url.parse().unwrap(), authorities, Duration::from_secs(1))
    }

    #[test]
    fn authorities_are_read_only_where_they_are_needed() {
        assert!(dialer("http://a/", Some(b"no certificate")).is_ok());
        assert!(dialer("https://a/", Some(AUTHORITY.as_bytes())).is_ok());
        let broken = AUTHORITY.replace('M', "!");
        for wrong in ["", "no certificate", &broken] {
            let refused = dialer("https://a/", Some(wrong.as_bytes())).err().unwrap().to_string();
            assert!(refused.contains("not readable as PEM"), "{refused}");
        }
    }
}
