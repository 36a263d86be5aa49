//! Renewal on a real daemon over real mutual TLS, and what a wrong certificate does to it.

use bytes::Bytes;
use http::Response;
use marcato_api::{CertificateRequest, NewCertificate, ProblemKind, host_paths};

use super::*;
use crate::testing::{TestCa, TestHost, call_tls, ensure_joined, json_request, problem_of};

async fn request(host: &TestHost) -> CertificateRequest {
    let answer = host.call(json_request("POST", host_paths::CERTIFICATE_REQUEST, b"")).await.unwrap();
    assert_eq!(answer.status(), 200);
    serde_json::from_slice(answer.body()).unwrap()
}

async fn put(host: &TestHost, certificate_pem: String) -> Response<Bytes> {
    let body = serde_json::to_vec(&NewCertificate { certificate_pem }).unwrap();
    host.call(json_request("PUT", host_paths::CERTIFICATE, &body)).await.unwrap()
}

/// The first certificate that the host shows on a new connection.
async fn shown(host: &TestHost) -> Vec<u8> {
    let marcato_api::HostAddress::Unix(path) = &host.control else { unreachable!() };
    let config = tls::peer_config(host.ca.router().shown(), host.ca.pem().as_bytes()).unwrap();
    let name = rustls::pki_types::ServerName::try_from(format!("{}.host.marcato.internal", host.id)).unwrap();
    let io = tokio::net::UnixStream::connect(path).await.unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, io).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_running_host_takes_a_new_certificate_and_keeps_it_over_a_restart() {
    let ca = Arc::new(TestCa::new());
    let host = TestHost::start("h1", ca.clone()).await;
    let first = shown(&host).await;
    let before = host.inventory().await.certificate.unwrap();
    let asked = request(&host).await;
    assert_eq!(request(&host).await, asked, "the same request until its certificate comes");
    let signed = ca.sign(&asked.csr_pem, "h1");
    let answer = put(&host, signed.clone()).await;
    assert_eq!(answer.status(), 200);
    let second = shown(&host).await;
    assert_ne!(second, first);
    assert!(host.inventory().await.certificate.unwrap().not_after >= before.not_after);
    assert_eq!(put(&host, signed).await.status(), 200, "sent again: the answer may have been lost");
    assert_ne!(request(&host).await, asked, "the next one is for another key");
    let file = host.dir.path().join("identity/renewed.pem");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let dir = host.kill().await;
    let host = TestHost::start_in("h1", ca, dir).await;
    assert_eq!(shown(&host).await, second);
    host.stop().await;
}

#[tokio::test]
async fn only_the_router_renews_and_only_a_fitting_certificate_is_taken() {
    let ca = Arc::new(TestCa::new());
    let host = TestHost::start("h1", ca.clone()).await;
    let first = shown(&host).await;
    let stray = ca.host("h1").cert_pem;
    let refused = put(&host, stray.clone()).await;
    assert_eq!(problem_of(&refused).kind, ProblemKind::Conflict, "it asked for none");
    let csr = request(&host).await.csr_pem;
    let of_another_authority = TestCa::new().sign(&csr, "h1");
    for (what, pem) in [
        ("another key", stray),
        ("another host", ca.sign(&csr, "h2")),
        ("another authority", of_another_authority),
        ("garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned()),
        ("nothing", String::new()),
    ] {
        assert_eq!(problem_of(&put(&host, pem).await).kind, ProblemKind::Invalid, "{what}");
    }
    assert_eq!(shown(&host).await, first);
    assert!(!host.dir.path().join("identity/renewed.pem").exists());
    let name = "h1.host.marcato.internal";
    let call = json_request("POST", host_paths::CERTIFICATE_REQUEST, b"");
    let answer = call_tls(&host.control, name, &ca.host("h2"), &ca.pem(), call).await.unwrap();
    assert_eq!(answer.status(), 403, "a host asks no other for requests");
    assert_eq!(put(&host, ca.sign(&csr, "h1")).await.status(), 200, "and the right one still goes in");
    host.stop().await;
}

#[tokio::test]
async fn a_certificate_that_is_not_good_now_is_refused() {
    let (ca, dir) = (TestCa::new(), tempfile::tempdir().unwrap());
    ensure_joined("h1", &ca, dir.path());
    let id = HostId::new("h1").unwrap();
    let identity = dir.path().join("identity");
    let leaf = ca.host("h1");
    let loaded =
        Identity { key_pem: Zeroizing::new(leaf.key_pem), cert_pem: Zeroizing::new(leaf.cert_pem), ca_pem: ca.pem() };
    let renewal = Renewal::new(&identity, id, loaded).unwrap();
    let signed = ca.sign(&renewal.request().unwrap(), "h1");
    let term = Certificate::from_pem(leaf_key(&renewal).as_bytes(), signed.as_bytes()).unwrap().term;
    let late = term.not_after + std::time::Duration::from_secs(60);
    assert!(matches!(renewal.take(&signed, late), Err(RenewalError::Unusable(_))));
    assert_eq!(renewal.take(&signed, Timestamp::now()).unwrap(), term);
}

fn leaf_key(renewal: &Renewal) -> String {
    renewal.waiting.lock().unwrap().as_ref().unwrap().key.serialize_pem()
}
