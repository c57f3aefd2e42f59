//! Connections to endpoints, with TLS where the URL says `https`.
//!
//! A certificate must name the host of the URL, and an authority that the system trusts, or one of those that were given instead.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
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
        let tls = is_tls.then(|| Ok(TlsConnector::from(Arc::new(config(roots(authorities)?)?))));
        Ok(Self { tcp, tls: tls.transpose()?, time_max })
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
            let secured = tls.connect(server_name(&uri)?, tcp).await?;
            Ok(TokioIo::new(Box::new(secured) as Box<dyn Stream>))
        };
        let time_max = self.time_max;
        Box::pin(async move { timeout(time_max, dialing).await? })
    }
}

/// What the certificate has to name. The brackets of an address belong to the URL.
fn server_name(uri: &Uri) -> Result<ServerName<'static>, Failure> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    Ok(ServerName::try_from(host.to_owned())?)
}

fn roots(authorities: Option<&[u8]>) -> Result<RootCertStore, Invalid> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = authorities else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(Invalid(format!(
                "the system has no certificate authorities (package ca-certificates){}: install them, or give a file",
                found.errors.first().map(|error| format!(": {error}")).unwrap_or_default()
            )));
        }
        return Ok(roots);
    };
    let wrong = |why: String| Invalid(format!("the certificate authorities are not readable as PEM: {why}"));
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() { Err(wrong("there is none".to_owned())) } else { Ok(roots) }
}

fn config(roots: RootCertStore) -> Result<ClientConfig, Invalid> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Invalid(format!("TLS cannot be used: {error}")))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
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

    #[test]
    fn a_certificate_has_to_name_the_host_of_the_url() {
        let name = |url: &str| format!("{:?}", server_name(&url.parse().unwrap()).unwrap());
        assert!(name("https://example.org:8443/a").contains("example.org"));
        assert!(
            name("https://127.0.0.1/").contains("IpAddress")
                && name("https://[::1]:1/").contains("IpAddress")
        );
    }
}
