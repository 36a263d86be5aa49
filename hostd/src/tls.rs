//! Mutual TLS of the cluster: the server and client settings of a host, and who a certificate belongs to.
//!
//! Roles come from the URI in a certificate's subject alternative names: `marcato://router` or
//! `marcato://host/{id}`. The chain was verified against the cluster's authority before a role is read.

use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use marcato_api::{CertificateTerm, HostId};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

const ROUTER_URI: &str = "marcato://router";
const HOST_URI_PREFIX: &str = "marcato://host/";

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The control plane or the edge.
    Router,
    /// Another host.
    Host(HostId),
}

/// Why key, certificate or authority do not make a TLS setting.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text does not hold what it should.
    #[error("{what} is not valid PEM")]
    Pem {
        /// Which text.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A PEM text holds no certificate.
    #[error("{0} holds no certificate")]
    Empty(&'static str),
    /// The library refuses key, chain or authority.
    #[error("key, certificate and authority do not fit together")]
    Rustls(#[from] rustls::Error),
    /// The authority cannot verify others.
    #[error("the authority cannot be used to verify others")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// The library reads the certificate, we do not.
    #[error("the certificate cannot be read")]
    Unreadable,
}

/// A certificate with its key, and how long it is good.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) term: CertificateTerm,
}

impl Certificate {
    /// From PEM. Errors: either cannot be used, or they do not belong together.
    pub(crate) fn from_pem(key_pem: &[u8], cert_pem: &[u8]) -> Result<Self, TlsError> {
        let chain = certificates(cert_pem, "the host's certificate")?;
        let term = term_of(&chain[0]).ok_or(TlsError::Unreadable)?;
        let key = CertifiedKey::from_der(chain, private_key(key_pem)?, &provider())?;
        Ok(Self { key: Arc::new(key), term })
    }

    /// Whose it is; see [`caller_of`].
    pub(crate) fn caller(&self) -> Option<Caller> {
        self.key.cert.first().and_then(caller_of)
    }
}

/// What this host shows, to those who call it and to those it calls; replaced while connections run. A connection
/// keeps what it was made with.
#[derive(Debug)]
pub(crate) struct Shown(ArcSwap<Certificate>);

impl Shown {
    pub(crate) fn new(certificate: Certificate) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(certificate)))
    }

    pub(crate) fn current(&self) -> Arc<Certificate> {
        self.0.load_full()
    }

    pub(crate) fn replace(&self, certificate: Certificate) {
        self.0.store(Arc::new(certificate));
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().key))
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn term_of(certificate: &CertificateDer<'_>) -> Option<CertificateTerm> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let time = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).ok();
    Some(CertificateTerm {
        not_before: time(parsed.validity().not_before)?,
        not_after: time(parsed.validity().not_after)?,
    })
}

/// Whether a client that believes this authority and wants this name would take the certificate at `now`.
pub(crate) fn verify_server(
    certificate: &Certificate,
    name: &str,
    ca_pem: &[u8],
    now: Timestamp,
) -> Result<(), TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(ca_pem)?, provider()).build()?;
    let name = ServerName::try_from(name).map_err(|e| rustls::Error::General(e.to_string()))?;
    let since_1970 = std::time::Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    let chain = &certificate.key.cert;
    let first = chain.first().ok_or(TlsError::Unreadable)?;
    verifier.verify_server_cert(first, &chain[1..], &name, &[], UnixTime::since_unix_epoch(since_1970))?;
    Ok(())
}

/// The name that a host's certificate has for its clients.
pub(crate) fn host_server_name(id: &HostId) -> String {
    format!("{id}.host.marcato.internal")
}

/// The name that the certificate of its ingress has for the edge.
pub(crate) fn ingress_server_name(id: &HostId) -> String {
    format!("{id}.ingress.marcato.internal")
}

/// The certificates of a PEM text. Errors when there is none.
pub(crate) fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if all.is_empty() { Err(TlsError::Empty(what)) } else { Ok(all) }
}

fn roots(ca_pem: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(ca_pem, "the authority's file")? {
        store.add(certificate)?;
    }
    Ok(Arc::new(store))
}

fn private_key(key_pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(key_pem).map_err(|source| TlsError::Pem { what: "the private key", source })
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// For a listener: shows the host's certificate and demands one of the cluster.
pub(crate) fn server_config(shown: Arc<Shown>, ca_pem: &[u8]) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca_pem)?, provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// For calls to other hosts: shows the host's certificate, speaks HTTP/2.
pub(crate) fn peer_config(shown: Arc<Shown>, ca_pem: &[u8]) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_cert_resolver(shown);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// For the one call that needs no certificate: joining.
pub(crate) fn join_config(ca_pem: &[u8]) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_pem)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Whose certificate this is. `None` when it names no role, several, or one that is not known.
pub(crate) fn caller_of(certificate: &CertificateDer<'_>) -> Option<Caller> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut callers = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(caller_of_uri(uri)),
        _ => None,
    });
    let caller = callers.next()??;
    // Two roles in one certificate would let its holder choose.
    if callers.next().is_some() { None } else { Some(caller) }
}

fn caller_of_uri(uri: &str) -> Option<Caller> {
    if uri == ROUTER_URI {
        return Some(Caller::Router);
    }
    HostId::new(uri.strip_prefix(HOST_URI_PREFIX)?).ok().map(Caller::Host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestCa;

    #[test]
    fn roles_come_from_the_uri() {
        let ca = TestCa::new();
        let cert = |uris: &[&str]| certificates(ca.leaf_with_uris(uris).cert_pem.as_bytes(), "leaf").unwrap().remove(0);
        assert_eq!(caller_of(&cert(&["marcato://router"])), Some(Caller::Router));
        assert_eq!(caller_of(&cert(&["marcato://host/h1"])), Some(Caller::Host(HostId::new("h1").unwrap())));
        for bad in
            ["marcato://router/", "marcato://host/", "marcato://host/../x", "marcato://host/H1", "https://router"]
        {
            assert_eq!(caller_of(&cert(&[bad])), None, "{bad}");
        }
        assert_eq!(caller_of(&cert(&["marcato://host/h1", "marcato://router"])), None);
        assert_eq!(caller_of(&cert(&[])), None);
        assert_eq!(caller_of(&CertificateDer::from(vec![0x30, 0x82, 0xff])), None);
    }

    #[test]
    fn garbage_pem_is_an_error() {
        let ca = TestCa::new();
        let leaf = ca.leaf_with_uris(&["marcato://host/h1"]);
        let (key, cert, authority) = (leaf.key_pem.as_bytes(), leaf.cert_pem.as_bytes(), ca.pem());
        let shown = || Shown::new(Certificate::from_pem(key, cert).unwrap());
        assert!(server_config(shown(), authority.as_bytes()).is_ok());
        assert!(Certificate::from_pem(b"x", cert).is_err());
        assert!(Certificate::from_pem(key, b"").is_err());
        let garbage = b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        assert!(Certificate::from_pem(key, garbage).is_err());
        assert!(server_config(shown(), garbage).is_err());
        assert!(peer_config(shown(), garbage).is_err());
        let other = ca.leaf_with_uris(&["marcato://host/h2"]);
        assert!(Certificate::from_pem(other.key_pem.as_bytes(), cert).is_err(), "another key");
    }
}
