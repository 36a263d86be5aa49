//! The cluster's authority and the certificates it gives: to this router, to hosts, and for the public
//! listeners as long as the operator has none of their own.
//!
//! Owns: the authority's key (mode 0600) and what may stand in a certificate. A host's request gives
//! only its public key: names in it are ignored, ours are put in. Does not own who may ask (`auth`).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use marcato_api::{CertificateTerm, HostId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::files::{self, FileError};

const DAY: Duration = Duration::from_secs(86_400);
/// The authority outlives any machine; replacing it means joining every host anew.
const AUTHORITY_DAYS: u32 = 20 * 365;
/// Everything that the authority signs; a successor is made after two thirds of it.
const LEAF_DAYS: u32 = 365;
/// How long the certificate of a host's ingress is good: workers, which run guests, hold its key.
const INGRESS_DAYS: u32 = 1;
/// Clocks of two machines differ.
const SKEW: Duration = Duration::from_secs(3_600);
/// The identity of every router.
const ROUTER_URI: &str = "marcato://router";
const ROUTER_NAME: &str = "router.marcato.internal";

/// Why the authority cannot do it.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("a certificate file cannot be had")]
    File(#[from] FileError),
    /// A file is not what it should be.
    #[error("{path} cannot be used: {reason}")]
    Damaged {
        /// Which file.
        path: String,
        /// Why.
        reason: String,
    },
    /// A certificate could not be made.
    #[error("a certificate cannot be made")]
    Make(#[source] rcgen::Error),
    /// The request is not PKCS#10 in PEM, or its signature is wrong.
    #[error("the certificate request cannot be used")]
    Request(#[source] rcgen::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// The cluster's authority.
pub struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// Reads `ca.pem` and `ca.key` in `dir`, or makes both. One without the other is an error: making a
    /// new authority would cut off every host.
    pub fn ensure(dir: &Path) -> Result<Self, CaError> {
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let damaged = |path: &Path, reason: String| CaError::Damaged { path: path.display().to_string(), reason };
        let (pem, key) = match (files::read(&cert_path)?, files::read(&key_path)?) {
            (Some(cert), Some(key)) => {
                let text = |path, bytes| String::from_utf8(bytes).map_err(|_| damaged(path, "not text".into()));
                let key = KeyPair::from_pem(&text(&key_path, key)?).map_err(|e| damaged(&key_path, e.to_string()))?;
                (text(&cert_path, cert)?, key)
            }
            // The key is written first: a crash in between leaves a key that no certificate was seen for.
            (None, _) => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Make)?;
                let pem = authority_params(Timestamp::now())?.self_signed(&key).map_err(CaError::Make)?.pem();
                files::write_secret(&key_path, key.serialize_pem().as_bytes())?;
                files::write_public(&cert_path, pem.as_bytes())?;
                (pem, key)
            }
            (Some(_), None) => return Err(damaged(&key_path, "it is missing while ca.pem is there".into())),
        };
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(&cert_path, e.to_string()))?;
        let parsed = x509_parser::parse_x509_certificate(&der);
        let matches = parsed.is_ok_and(|(_, c)| *c.public_key().subject_public_key.data == *key.public_key_raw());
        if !matches {
            return Err(damaged(&key_path, "it does not belong to ca.pem".into()));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| damaged(&cert_path, e.to_string()))?;
        Ok(Self { pem, der, issuer })
    }

    /// Its certificate, to be trusted by hosts and clients.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Believes this authority and no other.
    pub fn roots(&self) -> Result<Arc<RootCertStore>, CaError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).map_err(CaError::Tls)?;
        Ok(Arc::new(roots))
    }

    /// A host's certificate chain for the public key of its request, good from `now`.
    pub fn sign_host(&self, csr_pem: &str, host: &HostId, now: Timestamp) -> Result<String, CaError> {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(CaError::Request)?;
        let sans = vec![
            dns(&format!("{host}.host.marcato.internal")).map_err(CaError::Make)?,
            uri(&format!("marcato://host/{host}")).map_err(CaError::Make)?,
        ];
        let params = leaf_params(&format!("host {host}"), sans, LEAF_DAYS, now)?;
        let cert = params.signed_by(&csr.public_key, &self.issuer).map_err(CaError::Make)?;
        Ok(format!("{}{}", cert.pem(), self.pem))
    }

    /// The certificate chain of a host's ingress for the public key of its request, good for a day from `now`: it
    /// serves, and speaks for nobody.
    pub fn sign_ingress(&self, csr_pem: &str, host: &HostId, now: Timestamp) -> Result<String, CaError> {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(CaError::Request)?;
        let sans = vec![dns(&format!("{host}.ingress.marcato.internal")).map_err(CaError::Make)?];
        let mut params = leaf_params(&format!("ingress of {host}"), sans, INGRESS_DAYS, now)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let cert = params.signed_by(&csr.public_key, &self.issuer).map_err(CaError::Make)?;
        Ok(format!("{}{}", cert.pem(), self.pem))
    }

    /// This router's identity in `dir/{cert,key}.pem`, made anew once it is due at `now`.
    pub fn ensure_router(&self, dir: &Path, now: Timestamp) -> Result<Leaf, CaError> {
        let sans = vec![dns(ROUTER_NAME), uri(ROUTER_URI)].into_iter().collect::<Result<_, _>>();
        self.ensure_leaf(dir, "router", sans.map_err(CaError::Make)?, true, now)
    }

    /// The public listeners' certificate in `dir/{cert,key}.pem`, for this machine's loopback, the domain and the
    /// names and addresses in `also`; made anew once it is due at `now` or the names differ. A file that another
    /// authority signed is the operator's and is left alone.
    pub fn ensure_public(&self, dir: &Path, domain: &str, also: &[String], now: Timestamp) -> Result<Leaf, CaError> {
        let mut names = vec!["localhost".to_owned(), "*.localhost".to_owned()];
        if domain != "localhost" {
            names.extend([domain.to_owned(), format!("*.{domain}")]);
        }
        let (mut ips, mut more) = (vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)], Vec::new());
        for name in also {
            match name.parse() {
                Ok(ip) => ips.push(ip),
                Err(_) => more.push(name.to_ascii_lowercase()),
            }
        }
        names.extend(more);
        let mut seen = BTreeSet::new();
        names.retain(|n| seen.insert(n.clone()));
        ips.sort();
        ips.dedup();
        let mut sans: Vec<SanType> = names.iter().map(|n| dns(n)).collect::<Result<_, _>>().map_err(CaError::Make)?;
        sans.extend(ips.into_iter().map(SanType::IpAddress));
        self.ensure_leaf(dir, domain, sans, false, now)
    }

    /// A certificate for one public name, with a key of its own, in memory only, good from `now`.
    pub fn sign_public(
        &self,
        name: &str,
        now: Timestamp,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Make)?;
        let params = leaf_params(name, vec![dns(name).map_err(CaError::Make)?], LEAF_DAYS, now)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(CaError::Make)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|e| CaError::Tls(rustls::Error::General(e.to_owned())))?;
        Ok((vec![cert.der().clone(), self.der.clone()], key))
    }

    /// Whether this authority issued the certificate that a listener shows.
    #[must_use]
    pub fn issued(&self, shown: &rustls::sign::CertifiedKey) -> bool {
        let parsed = shown.cert.first().and_then(|c| x509_parser::parse_x509_certificate(c).ok());
        let authority = x509_parser::parse_x509_certificate(&self.der);
        parsed.zip(authority.ok()).is_some_and(|((_, c), (_, a))| c.issuer().as_raw() == a.subject().as_raw())
    }

    fn ensure_leaf(
        &self,
        dir: &Path,
        name: &str,
        sans: Vec<SanType>,
        ours: bool,
        now: Timestamp,
    ) -> Result<Leaf, CaError> {
        files::private_dir(dir)?;
        let leaf = Leaf { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
        if let (Some(cert), Some(key)) = (files::read(&leaf.cert)?, files::read(&leaf.key)?) {
            let stands = match self.standing(&cert, &sans, now) {
                // A crash between the two files leaves a key that does not belong to its certificate.
                Some(Standing::Fresh) => belong_together(&cert, &key),
                Some(Standing::Foreign) | None => !ours,
                Some(Standing::Stale) => false,
            };
            if stands {
                return Ok(leaf);
            }
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Make)?;
        let cert = leaf_params(name, sans, LEAF_DAYS, now)?.signed_by(&key, &self.issuer).map_err(CaError::Make)?;
        files::write_secret(&leaf.key, key.serialize_pem().as_bytes())?;
        // The authority goes along, so that `marcato login` can show its fingerprint.
        files::write_public(&leaf.cert, format!("{}{}", cert.pem(), self.pem).as_bytes())?;
        tracing::info!(cert = %leaf.cert.display(), "a certificate was made");
        Ok(leaf)
    }

    /// `None`: not a certificate at all.
    fn standing(&self, pem: &[u8], wanted: &[SanType], now: Timestamp) -> Option<Standing> {
        let der = CertificateDer::from_pem_slice(pem).ok()?;
        let (_, cert) = x509_parser::parse_x509_certificate(&der).ok()?;
        let (_, authority) = x509_parser::parse_x509_certificate(&self.der).ok()?;
        if cert.issuer().as_raw() != authority.subject().as_raw() {
            return Some(Standing::Foreign);
        }
        let names = cert.subject_alternative_name().ok()?.map_or(0, |san| san.value.general_names.len());
        let same_names = names == wanted.len()
            && wanted.iter().all(|san| match san {
                SanType::DnsName(name) => has_dns(&cert, name.as_str()),
                SanType::IpAddress(ip) => has_ip(&cert, *ip),
                _ => true,
            });
        let due = term_of(&cert).is_none_or(|t| t.renewal_due_at() <= now);
        Some(if !due && same_names { Standing::Fresh } else { Standing::Stale })
    }
}

fn has_dns(cert: &x509_parser::certificate::X509Certificate<'_>, name: &str) -> bool {
    use x509_parser::extensions::GeneralName;
    cert.subject_alternative_name().ok().flatten().is_some_and(|san| {
        san.value.general_names.iter().any(|n| matches!(n, GeneralName::DNSName(found) if *found == name))
    })
}

fn has_ip(cert: &x509_parser::certificate::X509Certificate<'_>, ip: IpAddr) -> bool {
    use x509_parser::extensions::GeneralName;
    let bytes = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    cert.subject_alternative_name().ok().flatten().is_some_and(|san| {
        san.value.general_names.iter().any(|n| matches!(n, GeneralName::IPAddress(found) if *found == bytes))
    })
}

/// From when to when a certificate is good.
fn term_of(cert: &x509_parser::certificate::X509Certificate<'_>) -> Option<CertificateTerm> {
    let time = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).ok();
    Some(CertificateTerm { not_before: time(cert.validity().not_before)?, not_after: time(cert.validity().not_after)? })
}

fn belong_together(cert: &[u8], key: &[u8]) -> bool {
    let key = std::str::from_utf8(key).ok().and_then(|k| KeyPair::from_pem(k).ok());
    let (Some(key), Ok(der)) = (key, CertificateDer::from_pem_slice(cert)) else { return false };
    let parsed = x509_parser::parse_x509_certificate(&der);
    parsed.is_ok_and(|(_, c)| *c.public_key().subject_public_key.data == *key.public_key_raw())
}

enum Standing {
    Fresh,
    Stale,
    Foreign,
}

/// Where a certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The chain.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Leaf {
    /// Reads both. Errors: not PEM, no certificate, no key.
    pub fn load(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let damaged = |path: &Path, reason: String| CaError::Damaged { path: path.display().to_string(), reason };
        let cert = files::read(&self.cert)?.ok_or_else(|| damaged(&self.cert, "it is missing".into()))?;
        let key = files::read(&self.key)?.ok_or_else(|| damaged(&self.key, "it is missing".into()))?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&cert)
            .map(|c| c.map(CertificateDer::into_owned))
            .collect::<Result<_, _>>()
            .map_err(|e| damaged(&self.cert, e.to_string()))?;
        if chain.is_empty() {
            return Err(damaged(&self.cert, "no certificate in it".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| damaged(&self.key, e.to_string()))?;
        Ok((chain, key))
    }
}

fn authority_params(now: Timestamp) -> Result<CertificateParams, CaError> {
    let mut params = base_params(&format!("Marcato authority {:08x}", rand::random::<u32>()), AUTHORITY_DAYS, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn leaf_params(name: &str, sans: Vec<SanType>, days: u32, now: Timestamp) -> Result<CertificateParams, CaError> {
    let mut params = base_params(name, days, now)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = sans;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn base_params(name: &str, days: u32, now: Timestamp) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Marcato");
    params.distinguished_name.push(DnType::CommonName, name);
    let ends = |_| CaError::Tls(rustls::Error::General("the clock is near the end of time".to_owned()));
    params.not_before = SystemTime::from(now.checked_sub(SKEW).map_err(ends)?).into();
    params.not_after = SystemTime::from(now.checked_add(DAY * days).map_err(ends)?).into();
    Ok(params)
}

fn dns(name: &str) -> Result<SanType, rcgen::Error> {
    Ok(SanType::DnsName(name.try_into()?))
}

fn uri(name: &str) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(name.try_into()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_authority_stays_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::ensure(dir.path()).unwrap();
        assert_eq!(Authority::ensure(dir.path()).unwrap().pem(), first.pem());
        let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(Authority::ensure(dir.path()).is_err(), "never a second authority under one name");
        std::fs::write(dir.path().join("ca.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert!(Authority::ensure(dir.path()).is_err(), "a key of another authority");
    }

    #[test]
    fn a_host_gets_the_names_we_give_whatever_it_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::ensure(dir.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut wish = CertificateParams::new(vec!["router.marcato.internal".to_owned()]).unwrap();
        wish.subject_alt_names.push(uri(ROUTER_URI).unwrap());
        let csr = wish.serialize_request(&key).unwrap().pem().unwrap();
        let chain = authority.sign_host(&csr, &"h1".parse().unwrap(), Timestamp::now()).unwrap();
        let der = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
        let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
        let names = format!("{:?}", cert.subject_alternative_name().unwrap().unwrap().value.general_names);
        assert!(names.contains("h1.host.marcato.internal") && names.contains("marcato://host/h1"), "{names}");
        assert!(!names.contains("router"), "{names}");
        assert!(!cert.is_ca());
        for garbage in ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----", "x"] {
            assert!(authority.sign_host(garbage, &"h1".parse().unwrap(), Timestamp::now()).is_err());
        }
    }

    #[test]
    fn own_leafs_are_renewed_and_the_operators_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (authority, now) = (Authority::ensure(dir.path()).unwrap(), Timestamp::now());
        let tls = dir.path().join("tls");
        let leaf = authority.ensure_public(&tls, "localhost", &[], now).unwrap();
        let first = std::fs::read(&leaf.cert).unwrap();
        authority.ensure_public(&tls, "localhost", &[], now).unwrap();
        assert_eq!(std::fs::read(&leaf.cert).unwrap(), first, "fresh: kept");
        authority.ensure_public(&tls, "cloud.test", &[], now).unwrap();
        assert_ne!(std::fs::read(&leaf.cert).unwrap(), first, "another domain: made anew");
        let made = std::fs::read(&leaf.cert).unwrap();
        let after = |days: u32| now + DAY * days;
        authority.ensure_public(&tls, "cloud.test", &[], after(LEAF_DAYS * 2 / 3 - 2)).unwrap();
        assert_eq!(std::fs::read(&leaf.cert).unwrap(), made, "not yet due");
        authority.ensure_public(&tls, "cloud.test", &[], after(LEAF_DAYS * 2 / 3 + 1)).unwrap();
        assert_ne!(std::fs::read(&leaf.cert).unwrap(), made, "due");
        let identity = authority.ensure_router(&dir.path().join("identity"), now).unwrap();
        let made = std::fs::read(&identity.cert).unwrap();
        authority.ensure_router(&dir.path().join("identity"), after(10)).unwrap();
        assert_eq!(std::fs::read(&identity.cert).unwrap(), made);
        authority.ensure_router(&dir.path().join("identity"), after(LEAF_DAYS + 1)).unwrap();
        assert_ne!(std::fs::read(&identity.cert).unwrap(), made, "even after its end");
        let also = ["10.0.0.5", "2001:db8::5", "cloud.example.org", "127.0.0.1"].map(str::to_owned);
        authority.ensure_public(&tls, "cloud.test", &also, now).unwrap();
        let made = std::fs::read(&leaf.cert).unwrap();
        let der = CertificateDer::from_pem_slice(&made).unwrap();
        let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(has_ip(&cert, "10.0.0.5".parse().unwrap()) && has_ip(&cert, "2001:db8::5".parse().unwrap()));
        assert!(has_ip(&cert, "127.0.0.1".parse().unwrap()) && has_dns(&cert, "cloud.example.org"));
        authority.ensure_public(&tls, "cloud.test", &also, now).unwrap();
        assert_eq!(std::fs::read(&leaf.cert).unwrap(), made, "the same names: kept");
        authority.ensure_public(&tls, "cloud.test", &["10.0.0.6".to_owned()], now).unwrap();
        assert_ne!(std::fs::read(&leaf.cert).unwrap(), made, "another address: made anew");
        assert!(authority.ensure_public(&tls, "cloud.test", &["n\u{f6}t a name".to_owned()], now).is_err());
        let key = KeyPair::generate().unwrap();
        let theirs = CertificateParams::new(vec!["x.test".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        std::fs::write(&leaf.cert, &theirs).unwrap();
        authority.ensure_public(&tls, "localhost", &[], now).unwrap();
        assert_eq!(std::fs::read_to_string(&leaf.cert).unwrap(), theirs);
        assert_eq!(leaf.load().unwrap().0.len(), 1);
    }
}
