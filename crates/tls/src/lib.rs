//! Certificates from PEM, and the connections they secure: between nodes, from clients, and to endpoints.
//!
//! One provider of cryptography for all of them (ring), TLS 1.2 and 1.3, and no way to leave out a check.

mod dialer;
mod pem;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
pub use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

pub use dialer::Dialer;
pub use pem::{Authorities, Identity};

/// HTTP/2, as ALPN names it.
pub const HTTP2: &[u8] = b"h2";
/// HTTP/1.1, as ALPN names it.
pub const HTTP1: &[u8] = b"http/1.1";

/// Why certificates cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// For who connects: whom it trusts, what it shows when it is asked, and the protocols it speaks, the best first.
///
/// # Errors
/// When the key is not that of the certificate.
pub fn connector(
    authorities: &Authorities,
    identity: Option<&Identity>,
    protocols: &[&[u8]],
) -> Result<TlsConnector, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(authorities.roots());
    let mut config = match identity {
        Some(identity) => {
            config.with_client_auth_cert(identity.certificates(), identity.key()).map_err(mismatched)?
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// For who is connected to. With `clients`, nobody is served whose certificate is of none of these authorities.
///
/// # Errors
/// When the key is not that of the certificate.
pub fn acceptor(
    identity: &Identity,
    clients: Option<&Authorities>,
    protocols: &[&[u8]],
) -> Result<TlsAcceptor, TlsError> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let config = match clients {
        Some(clients) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(clients.roots(), provider()).build();
            config.with_client_cert_verifier(verifier.map_err(unusable)?)
        }
        None => config.with_no_client_auth(),
    };
    let mut config = config.with_single_cert(identity.certificates(), identity.key()).map_err(mismatched)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Secures a connection to this host, which the other side's certificate has to name: a DNS name, or an IP address with or without
/// the brackets of a URL.
///
/// # Errors
/// When the handshake fails, or the host is none that a certificate can name.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    connector: &TlsConnector,
    host: &str,
    stream: S,
) -> io::Result<TlsStream<S>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("{host}: {error}")))?;
    Ok(TlsStream::from(connector.connect(name, stream).await?))
}

/// The protocol that both sides agreed on.
pub fn protocol<S>(stream: &TlsStream<S>) -> Option<&[u8]> {
    stream.get_ref().1.alpn_protocol()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn unusable(error: impl std::fmt::Display) -> TlsError {
    TlsError(format!("TLS cannot be used: {error}"))
}

fn mismatched(error: impl std::fmt::Display) -> TlsError {
    TlsError(format!("the certificate and its key cannot be used together: {error}"))
}

#[cfg(test)]
mod tests;
