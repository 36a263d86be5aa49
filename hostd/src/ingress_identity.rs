//! What the ingress of this host's workers shows on TCP: a key of its own, good for serving requests and nothing else.
//!
//! The control plane drives it as it drives the host's own certificate (`renewal`): it fetches a request, signs it for a
//! day, and brings the certificate. Key and certificate live in memory and in the workers; a daemon that starts anew is
//! given new ones. A worker that guests have taken over has lost this key, and not the host's.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use marcato_api::{CertificateTerm, HostId};
use rcgen::KeyPair;
use zeroize::Zeroizing;

use crate::channel::IngressTls;
use crate::identity::{self, IdentityError};
use crate::pool::Pool;
use crate::renewal::RenewalError;
use crate::tls::{self, Certificate};

/// See the module.
pub(crate) struct IngressIdentity {
    host: HostId,
    ca_pem: String,
    pool: Pool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Option<(KeyPair, String)>,
    shown: Option<(String, CertificateTerm)>,
}

impl IngressIdentity {
    /// Without a certificate yet.
    pub(crate) fn new(host: HostId, ca_pem: String, pool: Pool) -> Self {
        Self { host, ca_pem, pool, state: Mutex::default() }
    }

    /// How long the certificate that is shown is good; `None` before the first.
    pub(crate) fn term(&self) -> Option<CertificateTerm> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).shown.as_ref().map(|(_, term)| *term)
    }

    /// A request for a certificate of a new key. The same one until its certificate was taken.
    pub(crate) fn request(&self) -> Result<String, RenewalError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, csr_pem)) = &state.waiting {
            return Ok(csr_pem.clone());
        }
        let key = KeyPair::generate().map_err(|e| RenewalError::Key(IdentityError::Key(e)))?;
        let csr_pem = identity::signing_request(&key).map_err(RenewalError::Key)?;
        state.waiting = Some((key, csr_pem.clone()));
        Ok(csr_pem)
    }

    /// Takes the certificate that was asked for: checks it as the edge would and has the workers show it. The one that
    /// is shown already is taken again, for a caller that did not see the answer.
    pub(crate) fn take(&self, certificate_pem: &str, now: Timestamp) -> Result<CertificateTerm, RenewalError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, term)) = state.shown.as_ref().filter(|(pem, _)| pem == certificate_pem) {
            return Ok(*term);
        }
        let Some((key, _)) = &state.waiting else { return Err(RenewalError::NotAsked) };
        let key_pem = Zeroizing::new(key.serialize_pem());
        let certificate = Certificate::from_pem(key_pem.as_bytes(), certificate_pem.as_bytes());
        let certificate = certificate.map_err(RenewalError::Unusable)?;
        // One that also speaks for a host or the router must not come near a guest.
        if certificate.caller().is_some() {
            return Err(RenewalError::TooMuch);
        }
        let name = tls::ingress_server_name(&self.host);
        tls::verify_server(&certificate, &name, self.ca_pem.as_bytes(), now).map_err(RenewalError::Unusable)?;
        let shown = IngressTls {
            key_pem: key_pem.to_string(),
            cert_pem: certificate_pem.to_owned(),
            ca_pem: self.ca_pem.clone(),
        };
        self.pool.set_tls(&shown);
        let term = certificate.term;
        state.shown = Some((certificate_pem.to_owned(), term));
        state.waiting = None;
        tracing::info!(until = %term.not_after, "the ingress has a new certificate");
        Ok(term)
    }
}
