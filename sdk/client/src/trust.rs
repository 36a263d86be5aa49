//! Whom the admin client believes: one pinned certificate authority, never the system's.
//!
//! A private cloud has its own authority; believing hundreds of public ones as well would only add
//! ways to be lied to. Login shows the authority's fingerprint; see `unverified.rs` for how it is read.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

/// Why a file of certificates cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read.
    #[error("cannot read the authority's certificate {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not PEM.
    #[error("the authority's certificate is not PEM: {0}")]
    Pem(String),
    /// PEM without a certificate in it.
    #[error("no certificate in the PEM text")]
    Empty,
    /// A certificate that cannot be an authority.
    #[error("the certificate cannot be used as an authority")]
    Anchor(#[source] rustls::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// Not a fingerprint.
    #[error("fingerprint {0:?}: expected 64 hexadecimal digits, with or without colons and a sha256: in front")]
    Fingerprint(String),
}

/// SHA-256 over a certificate's DER bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a DER certificate.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = TrustError;
    fn from_str(s: &str) -> Result<Self, TrustError> {
        let wrong = || TrustError::Fingerprint(s.chars().take(120).collect());
        let lower = s.trim().to_ascii_lowercase();
        let digits: String = lower.strip_prefix("sha256:").unwrap_or(&lower).chars().filter(|c| *c != ':').collect();
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| wrong())?;
        Ok(Self(bytes))
    }
}

/// A pinned authority.
#[derive(Clone)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    fingerprint: Fingerprint,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Trust {
    /// Trusts every certificate in a PEM text, and nothing else. Errors: no PEM, no certificate.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TrustError> {
        let certs: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|e| TrustError::Pem(e.to_string()))?;
        Self::from_certs(&certs)
    }

    /// The same from a file.
    pub fn from_pem_file(path: &Path) -> Result<Self, TrustError> {
        let pem =
            std::fs::read(path).map_err(|source| TrustError::Read { path: path.display().to_string(), source })?;
        Self::from_pem(&pem)
    }

    fn from_certs(certs: &[CertificateDer<'_>]) -> Result<Self, TrustError> {
        let first = certs.first().ok_or(TrustError::Empty)?;
        let fingerprint = Fingerprint::of(first);
        let mut roots = RootCertStore::empty();
        for cert in certs {
            roots.add(cert.clone().into_owned()).map_err(TrustError::Anchor)?;
        }
        Ok(Self { roots: Arc::new(roots), fingerprint })
    }

    /// The fingerprint of the first authority.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// TLS settings that accept this authority only.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TrustError::Tls)?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}
