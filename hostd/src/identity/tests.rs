//! Joining against a small TLS server that signs as the control plane does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::Response;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use marcato_api::{HostAddress, ProblemKind};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::testing::TestCa;

struct Admin {
    url: String,
    joins: Arc<AtomicU32>,
    _task: AbortOnDropHandle<()>,
}

/// Answers the first join `busy` times with 503, then signs when the token is `good`.
async fn admin(ca: Arc<TestCa>, busy: u32) -> Admin {
    let leaf = ca.leaf(&[], "localhost");
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            tls::certificates(leaf.cert_pem.as_bytes(), "leaf").unwrap(),
            rustls::pki_types::pem::PemObject::from_pem_slice(leaf.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let joins = Arc::new(AtomicU32::new(0));
    let counter = joins.clone();
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let (ca, counter) = (ca.clone(), counter.clone());
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (ca, counter) = (ca.clone(), counter.clone());
                async move {
                    let attempt = counter.fetch_add(1, Ordering::SeqCst);
                    assert_eq!(request.uri().path(), admin_paths::HOST_JOIN);
                    let good = request.headers()["authorization"] == "Bearer good";
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let (status, json) = if attempt < busy {
                        (503, b"busy".to_vec())
                    } else if good {
                        let join: JoinRequest = serde_json::from_slice(&body).unwrap();
                        let certificate_pem = ca.sign(&join.csr_pem, join.id.as_str());
                        let answer = JoinResponse { certificate_pem, ca_pem: ca.pem() };
                        (200, serde_json::to_vec(&answer).unwrap())
                    } else {
                        let problem = Problem::new(ProblemKind::Unauthenticated, "the token is spent");
                        (401, serde_json::to_vec(&problem).unwrap())
                    };
                    let body = Full::new(bytes::Bytes::from(json));
                    Ok::<_, std::convert::Infallible>(Response::builder().status(status).body(body).unwrap())
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    });
    Admin { url, joins, _task: AbortOnDropHandle::new(task) }
}

fn wish(id: &str) -> JoinRequest {
    JoinRequest {
        id: HostId::new(id).unwrap(),
        csr_pem: String::new(),
        control: HostAddress::Unix("/c".into()),
        ingress: HostAddress::Unix("/i".into()),
        zone: String::new(),
        labels: Default::default(),
    }
}

fn settings(dir: &Path, url: &str, ca_pem: &str, token: &str) -> JoinSettings {
    fs::write(dir.join("join-ca.pem"), ca_pem).unwrap();
    fs::write(dir.join("token"), format!("{token}\n")).unwrap();
    JoinSettings { admin_url: url.to_owned(), ca_pem_file: dir.join("join-ca.pem"), token_file: dir.join("token") }
}

#[tokio::test]
async fn joins_once_and_never_again() {
    let ca = Arc::new(TestCa::new());
    let admin = admin(ca.clone(), 1).await;
    let dir = tempfile::tempdir().unwrap();
    let join = settings(dir.path(), &admin.url, &ca.pem(), "good");
    let first = ensure(dir.path(), wish("h1"), Some(&join)).await.unwrap();
    assert_eq!(admin.joins.load(Ordering::SeqCst), 2, "busy once, then answered");
    fs::remove_file(&join.token_file).unwrap();
    let second = ensure(dir.path(), wish("h1"), Some(&join)).await.unwrap();
    let third = ensure(dir.path(), wish("h1"), None).await.unwrap();
    assert!(first.cert_pem == second.cert_pem && second.cert_pem == third.cert_pem);
    assert_eq!(admin.joins.load(Ordering::SeqCst), 2);
    assert!(matches!(ensure(dir.path(), wish("h2"), None).await, Err(IdentityError::OtherHost(_))));
    for file in [KEY, CERT, CA] {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
}

#[tokio::test]
async fn a_spent_token_is_refused_with_the_reason() {
    let ca = Arc::new(TestCa::new());
    let admin = admin(ca.clone(), 0).await;
    let dir = tempfile::tempdir().unwrap();
    let join = settings(dir.path(), &admin.url, &ca.pem(), "spent");
    match ensure(dir.path(), wish("h1"), Some(&join)).await {
        Err(IdentityError::Refused(why)) => assert!(why.contains("the token is spent"), "{why}"),
        other => panic!("{:?}", other.map(|_| ())),
    }
    assert!(!dir.path().join(CERT).exists());
    let kept = fs::read(dir.path().join(KEY)).unwrap();
    let join = settings(dir.path(), &admin.url, &ca.pem(), "good");
    ensure(dir.path(), wish("h1"), Some(&join)).await.unwrap();
    assert_eq!(fs::read(dir.path().join(KEY)).unwrap(), kept, "the second attempt asks for the same key");
}

#[tokio::test]
async fn another_authority_is_never_given_the_token() {
    let ca = Arc::new(TestCa::new());
    let admin = admin(ca.clone(), 0).await;
    let dir = tempfile::tempdir().unwrap();
    let join = settings(dir.path(), &admin.url, &TestCa::new().pem(), "good");
    let joining = tokio::time::timeout(Duration::from_millis(700), ensure(dir.path(), wish("h1"), Some(&join)));
    assert!(joining.await.is_err(), "it goes on trying");
    assert_eq!(admin.joins.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn settings_that_cannot_work_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(ensure(dir.path(), wish("h1"), None).await, Err(IdentityError::NotJoined)));
    let ca = TestCa::new();
    let plain = settings(dir.path(), "http://localhost:1", &ca.pem(), "good");
    assert!(matches!(ensure(dir.path(), wish("h1"), Some(&plain)).await, Err(IdentityError::Ask(_))));
    let garbage = settings(dir.path(), "https://localhost:1", "no pem", "good");
    assert!(matches!(ensure(dir.path(), wish("h1"), Some(&garbage)).await, Err(IdentityError::Tls(_))));
    fs::write(dir.path().join(CERT), "garbage").unwrap();
    assert!(ensure(dir.path(), wish("h1"), None).await.is_err());
}
