//! What outbound HTTP of every guest on this host shares: whose certificates are trusted, and whether
//! internal addresses may be reached. Made once, when the runtime starts; owns no connection.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::error::RuntimeError;

/// The host's side of outbound HTTP. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) allow_private: bool,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

impl Network {
    /// Trusts the public authorities and those in `ca_file` (PEM). Errors: the file has none that can be used.
    pub(crate) fn new(allow_private: bool, ca_file: Option<&Path>) -> Result<Self, RuntimeError> {
        let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
        if let Some(path) = ca_file {
            let fail = |reason: String| RuntimeError::OutboundCa { path: path.display().to_string(), reason };
            let mut added = 0;
            for certificate in CertificateDer::pem_file_iter(path).map_err(|e| fail(e.to_string()))? {
                let certificate = certificate.map_err(|e| fail(e.to_string()))?;
                roots.add(certificate).map_err(|e| fail(e.to_string()))?;
                added += 1;
            }
            if added == 0 {
                return Err(fail("no certificate is in it".into()));
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| RuntimeError::Link(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { allow_private, tls: Arc::new(tls) })
    }
}
