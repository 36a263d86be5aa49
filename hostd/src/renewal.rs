//! The host's certificate while the daemon runs: a successor is asked for, taken, kept and shown.
//!
//! The control plane drives it (hosts are told, they do not ask): it fetches a request for a new key, signs it and
//! brings the certificate. Owns: the new key until then, the file `renewed.pem`, and what connections are shown. Does
//! not own how the first certificate came (`identity`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use marcato_api::{CertificateTerm, HostId};
use rcgen::KeyPair;
use zeroize::Zeroizing;

use crate::durable;
use crate::identity::{self, Identity, IdentityError};
use crate::tls::{self, Caller, Certificate, Shown, TlsError};

/// Why the certificate was not renewed. The present one goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenewalError {
    /// No request is open: it was answered, or the daemon started anew since.
    #[error("this host waits for no certificate; fetch its request first")]
    NotAsked,
    /// A key cannot be made.
    #[error("a new key cannot be made")]
    Key(#[source] IdentityError),
    /// It does not fit the key that waits, the authority did not sign it, or it is not good now.
    #[error("the certificate cannot be used")]
    Unusable(#[source] TlsError),
    /// It names another host, or none.
    #[error("the certificate is not this host's")]
    OtherHost,
    /// It speaks for a host or the router, which an ingress must not.
    #[error("a certificate of an ingress must not be one of a host or the router")]
    TooMuch,
    /// It cannot be kept.
    #[error("the certificate cannot be written")]
    Store(#[source] io::Error),
}

/// A key that waits for its certificate.
struct Waiting {
    key: KeyPair,
    csr_pem: String,
}

/// See the module.
pub(crate) struct Renewal {
    host: HostId,
    ca_pem: String,
    file: PathBuf,
    shown: Arc<Shown>,
    waiting: Mutex<Option<Waiting>>,
}

impl Renewal {
    /// Begins with the identity that the daemon started with; later ones go to `dir`.
    pub(crate) fn new(dir: &Path, host: HostId, identity: Identity) -> Result<Self, TlsError> {
        let shown = Shown::new(identity.certificate()?);
        let file = dir.join(identity::RENEWED);
        Ok(Self { host, ca_pem: identity.ca_pem, file, shown, waiting: Mutex::default() })
    }

    /// How long the certificate that is shown is good.
    pub(crate) fn term(&self) -> CertificateTerm {
        self.shown.current().term
    }

    /// The cluster's authority, as PEM.
    pub(crate) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// For this host's listeners; shows what is current at each handshake.
    pub(crate) fn server_config(&self) -> Result<rustls::ServerConfig, TlsError> {
        tls::server_config(Arc::clone(&self.shown), self.ca_pem.as_bytes())
    }

    /// For this host's calls to others; shows what is current at each handshake.
    pub(crate) fn peer_config(&self) -> Result<rustls::ClientConfig, TlsError> {
        tls::peer_config(Arc::clone(&self.shown), self.ca_pem.as_bytes())
    }

    /// A request for a certificate of a new key. The same one until its certificate was taken.
    pub(crate) fn request(&self) -> Result<String, RenewalError> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = &*waiting {
            return Ok(waiting.csr_pem.clone());
        }
        let key = KeyPair::generate().map_err(|e| RenewalError::Key(IdentityError::Key(e)))?;
        let csr_pem = identity::signing_request(&key).map_err(RenewalError::Key)?;
        *waiting = Some(Waiting { key, csr_pem: csr_pem.clone() });
        Ok(csr_pem)
    }

    /// Takes the certificate that was asked for: checks it as a client would, keeps it, shows it. The one that is
    /// shown already is taken again, for a caller that did not see the answer. Blocks on the disk.
    pub(crate) fn take(&self, certificate_pem: &str, now: Timestamp) -> Result<CertificateTerm, RenewalError> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let chain = tls::certificates(certificate_pem.as_bytes(), "the certificate").map_err(RenewalError::Unusable)?;
        let current = self.shown.current();
        if current.key.cert == chain {
            return Ok(current.term);
        }
        let Some(open) = &*waiting else { return Err(RenewalError::NotAsked) };
        let key_pem = Zeroizing::new(open.key.serialize_pem());
        let certificate = Certificate::from_pem(key_pem.as_bytes(), certificate_pem.as_bytes());
        let certificate = certificate.map_err(RenewalError::Unusable)?;
        if certificate.caller() != Some(Caller::Host(self.host.clone())) {
            return Err(RenewalError::OtherHost);
        }
        tls::verify_server(&certificate, &tls::host_server_name(&self.host), self.ca_pem.as_bytes(), now)
            .map_err(RenewalError::Unusable)?;
        let pair = Zeroizing::new(format!("{}{certificate_pem}", *key_pem));
        durable::write_private(&self.file, pair.as_bytes()).map_err(RenewalError::Store)?;
        let term = certificate.term;
        self.shown.replace(certificate);
        *waiting = None;
        tracing::info!(until = %term.not_after, "the host's certificate was renewed");
        Ok(term)
    }
}

#[cfg(test)]
mod tests;
