//! TLS settings: the swapped certificate of the public listeners, and how we call hosts.
//!
//! Owns: reading certificate files again when they change. A file that cannot be used never takes a
//! working certificate away: it is logged and the old one goes on. Does not own when a certificate of ours is made
//! anew (`ca`, asked by `control`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use crate::ca::{Authority, CaError, Leaf};

/// How often certificate files are looked at.
const POLL: Duration = Duration::from_secs(2);

/// Time and size of both files.
type Stamp = [Option<(SystemTime, u64)>; 2];

/// The certificate of a listener or of this router as a client, swapped when its files change.
pub struct ReloadingCert {
    leaf: Leaf,
    current: ArcSwap<CertifiedKey>,
    seen: Mutex<Stamp>,
}

impl std::fmt::Debug for ReloadingCert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReloadingCert").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

impl ReloadingCert {
    /// Loads the files. Errors: they cannot be used, or key and certificate do not belong together.
    pub fn load(leaf: Leaf) -> Result<Self, CaError> {
        let seen = Mutex::new(stamp(&leaf));
        let current = ArcSwap::from_pointee(certified(&leaf)?);
        Ok(Self { leaf, current, seen })
    }

    /// What is shown now.
    #[must_use]
    pub fn current(&self) -> Arc<CertifiedKey> {
        self.current.load_full()
    }

    /// Loads the files again when they changed since the last look. Answers whether they did and could
    /// be used.
    pub fn reload_if_changed(&self) -> bool {
        let now = stamp(&self.leaf);
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::replace(&mut *seen, now) == now {
                return false;
            }
        }
        self.load_anew()
    }

    /// Loads the files again, changed or not: somebody asked. Answers whether they could be used.
    pub fn reload(&self) -> bool {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = stamp(&self.leaf);
        self.load_anew()
    }

    fn load_anew(&self) -> bool {
        match certified(&self.leaf) {
            Ok(key) => {
                self.current.store(Arc::new(key));
                tracing::info!(cert = %self.leaf.cert.display(), "the certificate was loaded anew");
                true
            }
            Err(e) => {
                let cause = std::error::Error::source(&e).map(ToString::to_string);
                tracing::warn!(cert = %self.leaf.cert.display(), error = %e, cause, "the new certificate cannot be used; the old one goes on");
                false
            }
        }
    }

    /// Looks at the files until shutdown.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(POLL);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let this = Arc::clone(&self);
            if let Err(e) = tokio::task::spawn_blocking(move || this.reload_if_changed()).await {
                tracing::warn!(error = %e, "the certificate files could not be looked at");
            }
        }
    }
}

impl ResolvesServerCert for ReloadingCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl ResolvesClientCert for ReloadingCert {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn stamp(leaf: &Leaf) -> Stamp {
    [&leaf.cert, &leaf.key].map(|path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    })
}

fn certified(leaf: &Leaf) -> Result<CertifiedKey, CaError> {
    let (chain, key) = leaf.load()?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(CaError::Tls)
}

/// How this router calls hosts: it shows its identity, as it is at each handshake, and believes the cluster's
/// authority only.
pub(crate) fn upstream(
    authority: &Authority,
    router: Arc<ReloadingCert>,
) -> Result<Arc<rustls::ClientConfig>, CaError> {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(CaError::Tls)?
        .with_root_certificates(authority.roots()?)
        .with_client_cert_resolver(router);
    Ok(Arc::new(config))
}

/// The admin listener: HTTP/2 and HTTP/1.1, no client certificates (bearer tokens tell callers apart).
pub(crate) fn listener(cert: Arc<ReloadingCert>) -> Result<Arc<rustls::ServerConfig>, CaError> {
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(CaError::Tls)?
        .with_no_client_auth()
        .with_cert_resolver(cert);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_file_keeps_the_old_certificate_and_a_good_one_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::ensure(dir.path()).unwrap();
        let leaf = authority.ensure_public(&dir.path().join("tls"), "localhost", &[], jiff::Timestamp::now()).unwrap();
        let cert = ReloadingCert::load(leaf.clone()).unwrap();
        let first = cert.current.load_full().cert[0].clone();
        assert!(!cert.reload_if_changed());
        std::fs::write(&leaf.cert, "not a certificate").unwrap();
        assert!(!cert.reload_if_changed());
        assert_eq!(cert.current.load_full().cert[0], first);
        // Of another key: a half-done replacement.
        let other =
            authority.ensure_public(&dir.path().join("other"), "cloud.test", &[], jiff::Timestamp::now()).unwrap();
        std::fs::copy(&other.cert, &leaf.cert).unwrap();
        assert!(!cert.reload_if_changed());
        assert_eq!(cert.current.load_full().cert[0], first);
        std::fs::copy(&other.key, &leaf.key).unwrap();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&leaf.key)
            .unwrap()
            .set_modified(SystemTime::now() + Duration::from_secs(5))
            .unwrap();
        assert!(cert.reload_if_changed());
        assert!(!cert.reload_if_changed() && cert.reload(), "who asks is heard, changed or not");
        assert_ne!(cert.current.load_full().cert[0], first);
    }
}
