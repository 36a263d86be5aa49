//! Certificates by name, for as long as the public one is ours.
//!
//! OpenSSL and browsers refuse a wildcard right below a top-level name, so `*.localhost` alone lets no client in
//! that checks. Owns: a short certificate for each name that leads somewhere, made at its first handshake and kept in a
//! bounded map. Does not own: the files (`tls`); once the operator puts a certificate of their own there, that one is shown
//! for every name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::AppName;
use marcato_balance::TableCell;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::ca::{Authority, CaError};
use crate::tls::ReloadingCert;

/// Names kept at once; when full, the map starts anew.
const KEPT: usize = 4_096;
/// How long a certificate is shown before another is made; it is good for much longer.
const SHOWN: Duration = Duration::from_secs(30 * 86_400);

/// A certificate, and until when it is shown.
struct Made {
    key: Arc<CertifiedKey>,
    until: Timestamp,
}

pub(crate) struct NamedCerts {
    files: Arc<ReloadingCert>,
    authority: Arc<Authority>,
    table: Arc<TableCell>,
    domain: String,
    made: Mutex<HashMap<String, Made>>,
}

impl std::fmt::Debug for NamedCerts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamedCerts").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl NamedCerts {
    pub(crate) fn new(
        files: Arc<ReloadingCert>,
        authority: Arc<Authority>,
        table: Arc<TableCell>,
        domain: &str,
    ) -> Self {
        Self { files, authority, table, domain: domain.to_owned(), made: Mutex::default() }
    }

    /// Names right below the cluster's domain, so that a client sees 404 and not a failed handshake, and other names
    /// that lead to an app. Nothing else: a client cannot have certificates made at will.
    fn serves(&self, name: &str) -> bool {
        let below = |domain: &str| {
            name.strip_suffix(domain).and_then(|n| n.strip_suffix('.')).is_some_and(|l| AppName::new(l).is_ok())
        };
        below(&self.domain) || below("localhost") || self.table.load().has_host(name)
    }

    fn for_name(&self, name: &str, now: Timestamp) -> Result<Arc<CertifiedKey>, CaError> {
        if let Some(found) = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(name)
            && now < found.until
        {
            return Ok(Arc::clone(&found.key));
        }
        let (chain, key) = self.authority.sign_public(name, now)?;
        let until = now.saturating_add(SHOWN).unwrap_or(now);
        let made = Arc::new(CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(CaError::Tls)?);
        let mut kept = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(name.to_owned(), Made { key: Arc::clone(&made), until });
        Ok(made)
    }
}

impl ResolvesServerCert for NamedCerts {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.files.current();
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let wanted = name.filter(|n| *n != self.domain && self.serves(n));
        let (Some(name), true) = (wanted, self.authority.issued(&current)) else { return Some(current) };
        match self.for_name(&name, Timestamp::now()) {
            Ok(made) => Some(made),
            Err(error) => {
                tracing::warn!(%error, name, "no certificate could be made for the name");
                Some(current)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use marcato_api::{Limits, Route};
    use marcato_balance::{AppSpec, DebugKey, RouteTable};

    use super::*;

    #[test]
    fn a_name_that_leads_somewhere_gets_its_own_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::ensure(dir.path()).unwrap());
        let leaf = authority.ensure_public(&dir.path().join("tls"), "localhost", &[], Timestamp::now()).unwrap();
        let files = Arc::new(ReloadingCert::load(leaf).unwrap());
        let table = Arc::new(TableCell::new());
        let app = AppSpec {
            app: AppName::new("shop").unwrap(),
            stopped: false,
            limits: Limits::default(),
            routes: vec![Route::parse("shop.example.org").unwrap()],
            endpoints: vec![],
            debug: DebugKey::derive(&[0; 32], &AppName::new("shop").unwrap(), 0),
        };
        table.store(RouteTable::build(1, vec![app], &RouteTable::empty()));
        let names = NamedCerts::new(Arc::clone(&files), Arc::clone(&authority), table, "cloud.test");
        assert!(names.serves("shop.example.org") && names.serves("none.cloud.test"));
        for other in ["example.org", "other.example.org", "a.b.cloud.test", "cloud.test", "-.cloud.test"] {
            assert!(!names.serves(other), "{other}");
        }
        let now = Timestamp::now();
        let made = names.for_name("shop.example.org", now).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&made.cert[0]).unwrap();
        let san = parsed.subject_alternative_name().unwrap().unwrap();
        assert!(format!("{:?}", san.value.general_names).contains("shop.example.org"));
        assert!(authority.issued(&made) && authority.issued(&files.current()));
        let again = |days: u32| names.for_name("shop.example.org", now + SHOWN / 30 * days).unwrap();
        assert!(Arc::ptr_eq(&made, &again(29)), "it is made once");
        assert!(!Arc::ptr_eq(&made, &again(31)), "and again long before it ends");
        let other = Authority::ensure(tempfile::tempdir().unwrap().path()).unwrap();
        assert!(!other.issued(&made), "an operator's certificate is told apart");
    }
}
