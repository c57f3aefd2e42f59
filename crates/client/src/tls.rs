//! How a client and nodes that have TLS believe each other.

use std::fmt;

use leasehold_proto::v1::Reason;
use leasehold_tls::{Authorities, Dialer, HTTP2, Identity, connector};

use crate::Error;
use crate::channels::CONNECT_TIMEOUT;

/// Whom a client believes, and what it shows to nodes that ask who it is.
///
/// ```no_run
/// use leasehold_client::{Client, Tls};
///
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let tls = Tls::new()
///     .authorities(std::fs::read("nodes.pem")?)
///     .identity(std::fs::read("client.pem")?, std::fs::read("client.key")?);
/// let client = Client::builder(["https://a.internal:7400", "https://b.internal:7400"]).tls(tls).build()?;
/// # let _ = client;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Tls {
    authorities: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Believes nodes whose certificates the system's authorities have signed, and shows none itself.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Believes these authorities, as PEM, in place of the system's.
    #[must_use]
    pub fn authorities(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities = Some(pem.into());
        self
    }

    /// Shows this certificate, with those between it and its authority behind it, to nodes that ask for one; and its key, both as
    /// PEM.
    #[must_use]
    pub fn identity(mut self, certificates_pem: impl Into<Vec<u8>>, key_pem: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((certificates_pem.into(), key_pem.into()));
        self
    }

    pub(crate) fn dialer(&self) -> Result<Dialer, Error> {
        let authorities = match &self.authorities {
            Some(pem) => Authorities::from_pem(pem),
            None => Authorities::of_system(),
        };
        let identity = self
            .identity
            .as_ref()
            .map(|(certificates, key)| Identity::from_pem(certificates, key))
            .transpose();
        let made = authorities.and_then(|authorities| connector(&authorities, identity?.as_ref(), &[HTTP2]));
        made.map(|connector| Dialer::new(connector, CONNECT_TIMEOUT))
            .map_err(|error| Error::not_done(Reason::InvalidArgument, error.to_string()))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tls")
            .field("authorities", &self.authorities.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}
