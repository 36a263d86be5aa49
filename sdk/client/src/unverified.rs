//! Reading a server's certificate chain before anything is trusted, for `marcato login` only.
//!
//! This is the one place that skips verification. Its verifier keeps the chain and then refuses it,
//! so the handshake ends there: no request, no token and no other byte of ours crosses that connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use marcato_api::{ApiResult, Problem, ProblemKind};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::call::Origin;
use crate::trust::Fingerprint;

/// How long the server may take to show its chain.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Keeps the chain it is shown and refuses it.
#[derive(Debug)]
struct Witness {
    schemes: Vec<SignatureScheme>,
    chain: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(end_entity).chain(intermediates).map(|c| c.clone().into_owned()).collect();
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = chain;
        Err(rustls::Error::General("the chain was read; nothing is sent here".into()))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("unverified connections end before this".into()))
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("unverified connections end before this".into()))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

/// Reads the chain of the server at `base_url` without believing it, and gives the last certificate
/// (the authority) as PEM with its fingerprint. The caller shows it to a person or compares it with a
/// known one before it trusts it.
///
/// Errors: `Unavailable` when nobody answers; `Invalid` when the URL is not `https://…` or the server
/// sends only its own certificate.
pub async fn fetch_ca(base_url: &str) -> ApiResult<(String, Fingerprint)> {
    let origin = Origin::parse(base_url)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let witness = Arc::new(Witness {
        schemes: provider.signature_verification_algorithms.supported_schemes(),
        chain: Mutex::new(Vec::new()),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Problem::new(ProblemKind::Internal, e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let unavailable = |why: String| Problem::new(ProblemKind::Unavailable, format!("cannot reach {base_url}: {why}"));

    let handshake = async {
        let tcp = tokio::net::TcpStream::connect((origin.host.as_str(), origin.port)).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        // Always an error: the witness refuses every chain.
        connector.connect(origin.server_name.clone(), tcp).await.map(drop)
    };
    let outcome = tokio::time::timeout(TIMEOUT, handshake).await;
    let chain = std::mem::take(&mut *witness.chain.lock().unwrap_or_else(PoisonError::into_inner));
    match (chain.as_slice(), outcome) {
        ([_, .., ca], _) => Ok((pem(ca), Fingerprint::of(ca))),
        ([_], _) => Err(Problem::new(
            ProblemKind::Invalid,
            format!("{base_url} does not send its authority's certificate; pass the file with --ca FILE"),
        )),
        ([], Ok(Err(e))) => Err(unavailable(e.to_string())),
        ([], Ok(Ok(()))) => Err(unavailable("it showed no certificate".into())),
        ([], Err(_)) => Err(unavailable(format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

fn pem(der: &CertificateDer<'_>) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|b| char::from(*b)));
        out.push('\n');
    }
    out + "-----END CERTIFICATE-----\n"
}
