//! A certificate per app name, for domains of one label such as `localhost`.
//!
//! A wildcard directly under a top-level domain (`*.localhost`) is refused by OpenSSL, rustls and browsers
//! alike, so that curl would not take `https://hello.localhost`. The authority signs a leaf for the name
//! that a client asks for instead, with one key, kept in a bounded table. An operator's own certificate is
//! shown for every name, as it is. Owns that table; does not own files (`tls`) nor what an app is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::ca::{Authority, CaError};
use crate::tls::ReloadingCert;

/// Names kept; past it the table starts anew. Signing one takes less than the handshake that asks for it.
const MOST: usize = 1024;
/// A leaf older than this is signed anew, long before it ends.
const RENEW: Duration = Duration::from_secs(30 * 86_400);

/// Shows the public certificate, or one of the name's own where a wildcard would be refused.
pub(crate) struct NamedCerts {
    public: Arc<ReloadingCert>,
    authority: Arc<Authority>,
    key: KeyPair,
    domain: String,
    made: Mutex<HashMap<String, (Instant, Arc<CertifiedKey>)>>,
}

impl std::fmt::Debug for NamedCerts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamedCerts").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl NamedCerts {
    /// For the listeners of this domain.
    pub(crate) fn new(public: Arc<ReloadingCert>, authority: Arc<Authority>, domain: &str) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Make)?;
        Ok(Self { public, authority, key, domain: domain.to_owned(), made: Mutex::default() })
    }

    /// Whether `name` is one label under a domain of one label.
    fn needs_own(&self, name: &str) -> bool {
        let Some((label, domain)) = name.split_once('.') else { return false };
        let ours = domain == "localhost" || domain == self.domain;
        ours && !domain.contains('.') && marcato_api::AppName::new(label).is_ok()
    }

    /// The name's certificate, signed now or before.
    fn own(&self, name: &str) -> Result<Arc<CertifiedKey>, CaError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, key)) = made.get(name)
            && at.elapsed() < RENEW
        {
            return Ok(Arc::clone(key));
        }
        let chain = self.authority.sign_name(name, &self.key)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(CaError::Tls)?;
        let certified = Arc::new(certified);
        if made.len() >= MOST {
            made.clear();
        }
        made.insert(name.to_owned(), (Instant::now(), Arc::clone(&certified)));
        Ok(certified)
    }

    fn choose(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let current = self.public.current();
        let Some(name) = name.filter(|n| self.needs_own(n)) else { return current };
        // The operator's certificate is not of our authority: it is theirs to fit the names.
        if !current.cert.iter().any(|c| self.authority.is_own_certificate(c)) {
            return current;
        }
        self.own(name).unwrap_or_else(|error| {
            tracing::warn!(%name, %error, "no certificate of its own could be made for a name");
            current
        })
    }
}

impl ResolvesServerCert for NamedCerts {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.choose(hello.server_name()))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::CertificateParams;
    use x509_parser::extensions::GeneralName;

    use super::*;

    fn names(key: &CertifiedKey) -> Vec<String> {
        let (_, cert) = x509_parser::parse_x509_certificate(&key.cert[0]).unwrap();
        let san = cert.subject_alternative_name().unwrap().unwrap();
        let dns = san.value.general_names.iter().filter_map(|n| match n {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        dns.collect()
    }

    #[test]
    fn a_name_under_a_single_label_gets_its_own_leaf() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::ensure(dir.path()).unwrap());
        let leaf = authority.ensure_public(&dir.path().join("tls"), "localhost").unwrap();
        let public = Arc::new(ReloadingCert::load(leaf.clone()).unwrap());
        let certs = NamedCerts::new(Arc::clone(&public), Arc::clone(&authority), "localhost").unwrap();

        let shop = certs.choose(Some("shop.localhost"));
        assert_eq!(names(&shop), ["shop.localhost"]);
        assert_eq!(shop.cert.len(), 2, "the authority goes along");
        assert!(Arc::ptr_eq(&shop, &certs.choose(Some("shop.localhost"))), "signed once");
        let shown = [None, Some("localhost"), Some("a.b.localhost"), Some("-x.localhost"), Some("shop.example.org")];
        for name in shown {
            assert!(names(&certs.choose(name)).contains(&"*.localhost".to_owned()), "{name:?}");
        }
        for n in 0..2 * MOST {
            certs.choose(Some(&format!("n{n}.localhost")));
        }
        assert!(certs.made.lock().unwrap().len() <= MOST);

        let key = KeyPair::generate().unwrap();
        let theirs = CertificateParams::new(vec!["x.test".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        std::fs::write(&leaf.key, key.serialize_pem()).unwrap();
        std::fs::write(&leaf.cert, theirs).unwrap();
        assert!(public.reload_if_changed());
        assert_eq!(names(&certs.choose(Some("shop.localhost"))), ["x.test"], "the operator's own");
    }
}
