//! Who this host is: its key, its certificate, the cluster's authority, and how it got them.
//!
//! A host joins once. The key is made and stored first, so that a second attempt after a crash asks for the
//! same key; `cert.pem` is stored last, so that its presence means "joined". After that the join token is
//! not looked at again. `renewed.pem`, a later key and its certificate in one file, goes before both; what puts
//! it there is in `renewal`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use marcato_api::{CertificateTerm, HostId, JoinRequest, JoinResponse, Problem, admin_paths};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use zeroize::Zeroizing;

use crate::config::JoinSettings;
use crate::tls::{self, Caller, Certificate, Shown, TlsError};
use crate::{client, durable};

const KEY: &str = "key.pem";
const CERT: &str = "cert.pem";
const CA: &str = "ca.pem";
/// Key and certificate in one file, so that a crash leaves the old pair or the new one.
pub(crate) const RENEWED: &str = "renewed.pem";
/// Longest answer to a join.
const ANSWER_BYTES: usize = 1 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why the host has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{} cannot be used", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host has no certificate and was not told how to join.
    #[error("this host has not joined a cluster: give it an admin URL, the authority's file and a join token file")]
    NotJoined,
    /// The key cannot be made or used.
    #[error("the host's key cannot be used")]
    Key(#[source] rcgen::Error),
    /// Key, certificate and authority do not fit.
    #[error("the host's key and certificate cannot be used")]
    Tls(#[from] TlsError),
    /// The certificate is another host's.
    #[error("the certificate is not that of host {0}")]
    OtherHost(HostId),
    /// The control plane refuses the host.
    #[error("the control plane refuses the host: {0}")]
    Refused(String),
    /// The control plane cannot be asked.
    #[error("cannot ask the control plane: {0}")]
    Ask(String),
    /// The control plane's answer is not one.
    #[error("the control plane's answer cannot be read")]
    Answer(#[source] serde_json::Error),
}

/// A host's key, certificate and authority, as PEM.
pub(crate) struct Identity {
    pub(crate) key_pem: Zeroizing<String>,
    /// May hold the key as well.
    pub(crate) cert_pem: Zeroizing<String>,
    pub(crate) ca_pem: String,
}

fn read(path: PathBuf) -> Result<String, IdentityError> {
    fs::read_to_string(&path).map_err(|source| IdentityError::File { path, source })
}

fn write(path: PathBuf, text: &str) -> Result<(), IdentityError> {
    durable::write_private(&path, text.as_bytes()).map_err(|source| IdentityError::File { path, source })
}

/// The identity in `dir`; joins when there is none. Waits for a control plane that is not there yet, so the
/// caller bounds it by its shutdown token. `wish` says how the host introduces itself (its `csr_pem` is filled
/// in here).
pub(crate) async fn ensure(
    dir: &Path,
    wish: JoinRequest,
    join: Option<&JoinSettings>,
) -> Result<Identity, IdentityError> {
    if dir.join(CERT).exists() {
        let renewed = dir.join(RENEWED);
        let (key, cert) = if renewed.exists() { (renewed.clone(), renewed) } else { (dir.join(KEY), dir.join(CERT)) };
        let identity = Identity {
            key_pem: Zeroizing::new(read(key)?),
            cert_pem: Zeroizing::new(read(cert)?),
            ca_pem: read(dir.join(CA))?,
        };
        let term = identity.check(&wish.id)?;
        if term.not_after <= Timestamp::now() {
            // It goes on with its ledger: on a Unix socket the edge needs no certificate of it.
            tracing::error!(ended = %term.not_after, "this host's certificate has ended, so the control plane cannot reach it; remove identity/cert.pem and start it with a new join token");
        }
        return Ok(identity);
    }
    let settings = join.ok_or(IdentityError::NotJoined)?;
    let key = ensure_key(&dir.join(KEY))?;
    let id = wish.id.clone();
    let request = JoinRequest { csr_pem: signing_request(&key)?, ..wish };
    let answer = ask(settings, &request).await?;
    let identity = Identity {
        key_pem: Zeroizing::new(key.serialize_pem()),
        cert_pem: Zeroizing::new(answer.certificate_pem),
        ca_pem: answer.ca_pem,
    };
    identity.check(&id)?;
    // Of an identity that was taken away by hand.
    durable::ensure_removed(&dir.join(RENEWED))
        .map_err(|source| IdentityError::File { path: dir.join(RENEWED), source })?;
    write(dir.join(CA), &identity.ca_pem)?;
    write(dir.join(CERT), &identity.cert_pem)?;
    tracing::info!(host = %id, "joined the cluster");
    Ok(identity)
}

impl Identity {
    /// Whether key, certificate and authority fit together and the certificate is this host's.
    fn check(&self, id: &HostId) -> Result<CertificateTerm, IdentityError> {
        let certificate = self.certificate()?;
        let (caller, term) = (certificate.caller(), certificate.term);
        tls::server_config(Shown::new(certificate), self.ca_pem.as_bytes())?;
        if caller == Some(Caller::Host(id.clone())) { Ok(term) } else { Err(IdentityError::OtherHost(id.clone())) }
    }

    /// Key and certificate, ready to be shown.
    pub(crate) fn certificate(&self) -> Result<Certificate, TlsError> {
        Certificate::from_pem(self.key_pem.as_bytes(), self.cert_pem.as_bytes())
    }
}

fn ensure_key(path: &Path) -> Result<KeyPair, IdentityError> {
    if path.exists() {
        return KeyPair::from_pem(&Zeroizing::new(read(path.to_owned())?)).map_err(IdentityError::Key);
    }
    let key = KeyPair::generate().map_err(IdentityError::Key)?;
    write(path.to_owned(), &Zeroizing::new(key.serialize_pem()))?;
    Ok(key)
}

/// A request that says nothing but the key: names are the control plane's to give.
pub(crate) fn signing_request(key: &KeyPair) -> Result<String, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).and_then(|csr| csr.pem()).map_err(IdentityError::Key)
}

async fn ask(settings: &JoinSettings, request: &JoinRequest) -> Result<JoinResponse, IdentityError> {
    let body = serde_json::to_vec(request).map_err(|e| IdentityError::Ask(e.to_string()))?;
    let mut pause = FIRST_PAUSE;
    loop {
        // Read at every attempt: a token that ran out can be replaced while the host waits.
        let ca_pem = read(settings.ca_pem_file.clone())?;
        let token = Zeroizing::new(read(settings.token_file.clone())?);
        let tls = tls::join_config(ca_pem.as_bytes())?;
        let path = admin_paths::HOST_JOIN;
        let call =
            client::post_with_bearer(tls, &settings.admin_url, path, token.trim(), body.clone().into(), ANSWER_BYTES);
        let why = match Box::pin(call).await {
            Ok(answer) if answer.status() == StatusCode::OK || answer.status() == StatusCode::CREATED => {
                return serde_json::from_slice(answer.body()).map_err(IdentityError::Answer);
            }
            Ok(answer) if !client::is_passing(answer.status()) => {
                let told = serde_json::from_slice::<Problem>(answer.body())
                    .map_or_else(|_| format!("status {}", answer.status()), |p| p.to_string());
                return Err(IdentityError::Refused(told));
            }
            Ok(answer) => format!("status {}", answer.status()),
            Err(e @ (client::CallError::Url(_) | client::CallError::Form(_))) => {
                return Err(IdentityError::Ask(e.to_string()));
            }
            Err(e) => e.to_string(),
        };
        tracing::warn!(admin = %settings.admin_url, %why, "cannot join yet; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests;
