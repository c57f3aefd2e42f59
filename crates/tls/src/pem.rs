//! What is read from PEM: whom one trusts, and who one is.

use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;

use crate::{TlsError, provider};

/// Whose certificates are believed.
#[derive(Debug, Clone)]
pub struct Authorities(Arc<RootCertStore>);

impl Authorities {
    /// Those that the system trusts.
    ///
    /// # Errors
    /// When it trusts none.
    pub fn of_system() -> Result<Self, TlsError> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let why = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
            return Err(TlsError(format!(
                "the system has no certificate authorities (package ca-certificates){why}: install them, or give a file"
            )));
        }
        Ok(Self(Arc::new(roots)))
    }

    /// The certificates of a PEM file.
    ///
    /// # Errors
    /// When there is none, or one cannot be an authority's.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        let wrong =
            |why: String| TlsError(format!("the certificate authorities are not readable as PEM: {why}"));
        let certificates = certificates(pem).map_err(wrong)?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        Ok(Self(Arc::new(roots)))
    }

    /// Whether one of them is in both: an authority is its name and its key, whatever certificates it has.
    pub fn shares_one_with(&self, other: &Self) -> bool {
        let is_same = |one: &TrustAnchor<'_>, other: &TrustAnchor<'_>| {
            one.subject == other.subject && one.subject_public_key_info == other.subject_public_key_info
        };
        self.0.roots.iter().any(|one| other.0.roots.iter().any(|other| is_same(one, other)))
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        self.0.clone()
    }
}

/// Who one is: a certificate, those between it and its authority, and its key.
pub struct Identity {
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// From two PEM files, the certificate itself first in its own.
    ///
    /// # Errors
    /// When a certificate or an unencrypted key is missing or damaged.
    pub fn from_pem(certificates_pem: &[u8], key_pem: &[u8]) -> Result<Self, TlsError> {
        let certificates = certificates(certificates_pem)
            .map_err(|why| TlsError(format!("the certificate is not readable as PEM: {why}")))?;
        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| {
            TlsError(format!("the key is not readable as PEM, or it is encrypted: {error}"))
        })?;
        Ok(Self { certificates, key })
    }

    /// Whether a server that asks for certificates of these authorities would take this one now.
    ///
    /// # Errors
    /// Says why it would not.
    pub fn check_as_client(&self, authorities: &Authorities) -> Result<(), TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(authorities.roots(), provider());
        let verifier = verifier.build().map_err(|error| TlsError(error.to_string()))?;
        let Some((own, between)) = self.certificates.split_first() else {
            return Err(TlsError("there is no certificate".to_owned()));
        };
        let checked = verifier.verify_client_cert(own, between, UnixTime::now());
        checked.map(drop).map_err(|error| TlsError(format!("the certificate would not be believed: {error}")))
    }

    pub(crate) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.certificates.clone()
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Identity")
            .field("certificates", &self.certificates.len())
            .finish_non_exhaustive()
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = read.map_err(|error| error.to_string())?;
    if certificates.is_empty() { Err("there is none".to_owned()) } else { Ok(certificates) }
}
