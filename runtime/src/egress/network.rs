//! What outbound HTTP of every guest on this host shares: whose certificates are trusted, and who connects.
//! Made once, when the runtime starts; owns no connection.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::dial::Dialer;
use crate::error::RuntimeError;

/// The host's side of outbound HTTP. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

impl Network {
    /// Trusts the public authorities and those in `ca_pem`. Errors: it has none that can be used.
    pub(crate) fn new(dialer: Arc<dyn Dialer>, ca_pem: Option<&[u8]>) -> Result<Self, RuntimeError> {
        let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
        for certificate in ca_pem.map(authorities).transpose()?.unwrap_or_default() {
            roots.add(certificate).map_err(|e| RuntimeError::OutboundCa(e.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| RuntimeError::Link(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { dialer, tls: Arc::new(tls) })
    }
}

/// The authorities in a PEM text. Errors: it has none, or one that cannot be used.
fn authorities(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, RuntimeError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| RuntimeError::OutboundCa(e.to_string()))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in &all {
        roots.add(certificate.clone()).map_err(|e| RuntimeError::OutboundCa(e.to_string()))?;
    }
    if all.is_empty() { Err(RuntimeError::OutboundCa("no certificate is in it".into())) } else { Ok(all) }
}

/// Checks a PEM text of authorities as [`crate::Runtime::new`] will.
pub fn check_outbound_ca(pem: &[u8]) -> Result<(), RuntimeError> {
    authorities(pem).map(drop)
}
