//! The clients against a small real TLS server, on TCP and on a Unix socket.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, head, post, put};
use bytes::Bytes;
use futures::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use marcato_api::{
    AdminApi, AppName, AppUpdate, Digest, Generation, HostAddress, HostApi, HostConfig, HostId, KeyValueError,
    KeyValueRequest, LogCursor, LogLine, LogPage, LogQuery, LogStream, Millis, NewToken, Problem, ProblemKind, Role,
    ServiceId, StoreRevision,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, UnixListener};

use crate::{AdminClient, Fingerprint, HostClient, Trust, fetch_ca};

struct Pki {
    ca_pem: String,
    ca: CertificateDer<'static>,
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
}

/// A fresh authority with a server certificate for localhost and host h1. With `mutual`, clients need one too.
fn pki(mutual: bool) -> Pki {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_cert = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let leaf = |names: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.subject_alt_names.push(SanType::IpAddress("127.0.0.1".parse().unwrap()));
        let cert = params.signed_by(&key, &issuer).unwrap();
        (cert.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    };
    let ca = ca_cert.der().clone();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let roots = Arc::new(roots);

    let (cert, key) = leaf(&["localhost", "h1.host.marcato.internal"]);
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let server = if mutual {
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        server.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        server.with_no_client_auth()
    };
    let server = Arc::new(server.with_single_cert(vec![cert, ca.clone()], key).unwrap());
    let (cert, key) = leaf(&["router.marcato.internal"]);
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert], key)
        .unwrap();
    Pki { ca_pem: ca_cert.pem(), ca, server, client: Arc::new(client) }
}

/// Serves `app` on one accepted stream after another.
macro_rules! serve {
    ($listener:expr, $pki:expr, $app:expr) => {{
        let (listener, acceptor, app) =
            ($listener, tokio_rustls::TlsAcceptor::from(Arc::clone(&$pki.server)), $app.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, app) = (acceptor.clone(), app.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(stream).await else { return };
                    let service = hyper_util::service::TowerToHyperService::new(app);
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(tls), service)
                        .await;
                });
            }
        })
    }};
}

async fn admin(app: Router) -> (String, Pki) {
    let pki = pki(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let _server = serve!(listener, pki, app);
    (url, pki)
}

fn app_name() -> AppName {
    AppName::new("hello").unwrap()
}

fn problem(kind: ProblemKind) -> axum::response::Response {
    let status = StatusCode::from_u16(kind.status()).unwrap();
    let body = serde_json::to_vec(&Problem::new(kind, "because").with_field("instances")).unwrap();
    (status, [("content-type", Problem::CONTENT_TYPE)], body).into_response()
}

const APP: &str = r#"{"name":"hello","org":"default","space":"default","state":"started","instances":2,"current":null,
    "stable":null,"restarts":0,"routes":[],"created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"}"#;

#[tokio::test]
async fn an_object_comes_with_its_version_and_a_write_demands_one() {
    let seen = Arc::new(std::sync::Mutex::new(HeaderMap::new()));
    let store = Arc::clone(&seen);
    let router = Router::new().route(
        "/v1/apps/hello",
        get(|| async { ([("etag", "\"41\"")], APP) }).patch(move |headers: HeaderMap| async move {
            *store.lock().unwrap() = headers;
            ([("etag", "\"42\"")], APP)
        }),
    );
    let (url, pki) = admin(router).await;
    let trust = Trust::from_pem(pki.ca_pem.as_bytes()).unwrap();
    let client = AdminClient::new(&url, &trust, Some("mt_secret")).unwrap();
    let app = client.get_app(&app_name()).await.unwrap();
    assert_eq!((app.etag, app.value.instances), (StoreRevision(41), 2));
    let new = client.update_app(&app_name(), AppUpdate::default(), Some(app.etag)).await.unwrap();
    assert_eq!(new.etag, StoreRevision(42));
    let headers = seen.lock().unwrap();
    assert_eq!(headers["if-match"], "\"41\"");
    assert_eq!(headers["authorization"], "Bearer mt_secret");
    assert!(!format!("{client:?}").contains("mt_secret"));
}

#[tokio::test]
async fn problems_pass_through_and_other_errors_get_a_kind() {
    let router = Router::new()
        .route("/v1/apps/hello", get(|| async { problem(ProblemKind::Conflict) }))
        .route("/v1/whoami", get(|| async { (StatusCode::UNAUTHORIZED, "who?\x1b[31m") }))
        .route("/v1/hosts", get(|| async { "{\"items\": 7}" }))
        .route("/v1/services", get(|| async { StatusCode::IM_A_TEAPOT }))
        .route("/v1/components/{digest}", head(|| async { StatusCode::NOT_FOUND }));
    let (url, pki) = admin(router).await;
    let client = AdminClient::new(&url, &Trust::from_pem(pki.ca_pem.as_bytes()).unwrap(), None).unwrap();
    let conflict = client.get_app(&app_name()).await.unwrap_err();
    assert_eq!((conflict.kind, conflict.field.as_deref()), (ProblemKind::Conflict, Some("instances")));
    let who = client.whoami().await.unwrap_err();
    assert_eq!((who.kind, who.detail.as_str()), (ProblemKind::Unauthenticated, "who?[31m"));
    assert_eq!(client.list_hosts().await.unwrap_err().kind, ProblemKind::Internal);
    let teapot = client.list_services().await.unwrap_err();
    assert_eq!((teapot.kind, teapot.status), (ProblemKind::BadRequest, 418));
    assert!(!client.has_component(&Digest::of(b"x")).await.unwrap());
}

#[tokio::test]
async fn an_upload_reports_progress_and_arrives_whole() {
    let router = Router::new().route(
        "/v1/components/{digest}",
        put(|Path(digest): Path<String>, body: Bytes| async move {
            if Digest::of(&body).as_str() == digest { StatusCode::NO_CONTENT } else { StatusCode::BAD_REQUEST }
        })
        .layer(axum::extract::DefaultBodyLimit::disable()),
    );
    let (url, pki) = admin(router).await;
    let client = AdminClient::new(&url, &Trust::from_pem(pki.ca_pem.as_bytes()).unwrap(), None).unwrap();
    let bytes = vec![7_u8; 300_000];
    let last = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let seen = Arc::clone(&last);
    let progress = move |n| seen.store(n, std::sync::atomic::Ordering::Relaxed);
    client.put_component_with_progress(&Digest::of(&bytes), bytes, progress).await.unwrap();
    assert_eq!(last.load(std::sync::atomic::Ordering::Relaxed), 300_000);
}

fn line(text: &str) -> String {
    let line = LogLine {
        at: jiff::Timestamp::UNIX_EPOCH,
        app: app_name(),
        revision: marcato_api::RevisionNumber(1),
        instance: marcato_api::InstanceId::new("hello-r1-0").unwrap(),
        request_id: String::new(),
        stream: LogStream::Stdout,
        text: text.to_owned(),
    };
    serde_json::to_string(&line).unwrap()
}

#[tokio::test]
async fn log_lines_are_put_together_from_any_chunks() {
    let all = format!("{}\n\n{}\n{}", line("one"), line("zwö"), line("three"));
    let router = Router::new().route(
        "/v1/apps/hello/logs",
        get(move |RawQuery(query): RawQuery| async move {
            assert_eq!(query.as_deref(), Some("follow=true&tail=5"));
            let chunks: Vec<_> =
                all.as_bytes().chunks(3).map(|c| Ok::<_, std::io::Error>(Bytes::copy_from_slice(c))).collect();
            axum::body::Body::from_stream(futures::stream::iter(chunks))
        }),
    );
    let (url, pki) = admin(router).await;
    let client = AdminClient::new(&url, &Trust::from_pem(pki.ca_pem.as_bytes()).unwrap(), None).unwrap();
    let lines: Vec<_> = client.logs(&app_name(), true, 5).await.unwrap().collect().await;
    let texts: Vec<_> = lines.into_iter().map(|l| l.unwrap().text).collect();
    assert_eq!(texts, ["one", "zwö", "three"]);
}

#[tokio::test]
async fn a_broken_log_line_ends_the_stream_with_an_error() {
    for garbage in ["{", "null", "[1]", "{\"at\":1}", "\u{0}", "<html>"] {
        let body = format!("{}\n{garbage}\n{}", line("one"), line("never"));
        let router = Router::new().route("/v1/apps/hello/logs", get(move || async move { body }));
        let (url, pki) = admin(router).await;
        let client = AdminClient::new(&url, &Trust::from_pem(pki.ca_pem.as_bytes()).unwrap(), None).unwrap();
        let lines: Vec<_> = client.logs(&app_name(), false, 5).await.unwrap().collect().await;
        assert_eq!(lines.len(), 2, "{garbage}");
        assert!(lines[0].is_ok() && lines[1].is_err(), "{garbage}");
    }
}

#[tokio::test]
async fn another_authority_is_refused_and_nobody_at_home_is_unavailable() {
    let (url, _) = admin(Router::new()).await;
    let other = Trust::from_pem(pki(false).ca_pem.as_bytes()).unwrap();
    let refused = AdminClient::new(&url, &other, Some("mt_x")).unwrap().whoami().await.unwrap_err();
    assert_eq!(refused.kind, ProblemKind::Unavailable);
    assert!(refused.detail.contains(&url) && refused.detail.contains("certificate"), "{}", refused.detail);

    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let nobody = AdminClient::new(&format!("https://localhost:{free}"), &other, None).unwrap();
    let problem = nobody.health().await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Unavailable);
    assert!(problem.detail.contains("refused"), "{}", problem.detail);
}

#[tokio::test]
async fn the_authority_is_read_without_a_request_being_sent() {
    let requests = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = Arc::clone(&requests);
    let fallback = move || async move {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    };
    let (url, pki) = admin(Router::new().fallback(fallback)).await;
    let (pem, fingerprint) = fetch_ca(&url).await.unwrap();
    assert_eq!(fingerprint, Fingerprint::of(&pki.ca));
    let trust = Trust::from_pem(pem.as_bytes()).unwrap();
    assert_eq!(trust.fingerprint(), fingerprint);
    assert_eq!(requests.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(fetch_ca("https://127.0.0.1:1").await.unwrap_err().kind, ProblemKind::Unavailable);
}

#[test]
fn fingerprints_and_urls_from_people() {
    let print = Fingerprint::of(b"x");
    let hex = print.to_string();
    let colons: Vec<String> =
        hex.as_bytes()["sha256:".len()..].chunks(2).map(|c| String::from_utf8_lossy(c).to_uppercase()).collect();
    assert_eq!(hex.parse::<Fingerprint>().unwrap(), print);
    assert_eq!(format!(" {}\n", colons.join(":")).parse::<Fingerprint>().unwrap(), print);
    for bad in ["", "sha256:", "zz", &hex[..70], "sha256:ä"] {
        assert!(bad.parse::<Fingerprint>().is_err(), "{bad:?}");
    }
    let trust = Trust::from_pem(pki(false).ca_pem.as_bytes()).unwrap();
    for bad in [
        "",
        "localhost:1",
        "http://localhost:1",
        "https://",
        "https://a b",
        "https://u:p@h",
        "https://h/x",
        "https://h?x",
        "ftp://h",
    ] {
        assert_eq!(AdminClient::new(bad, &trust, None).unwrap_err().kind, ProblemKind::Invalid, "{bad:?}");
    }
    for good in ["https://localhost:1", "https://127.0.0.1:1/", "https://[::1]:8444", "https://a.example"] {
        assert!(AdminClient::new(good, &trust, None).is_ok(), "{good}");
    }
    assert!(AdminClient::new("https://h", &trust, Some("a\nb")).is_err());
    for bad in [&b""[..], b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff\xfe"] {
        assert!(Trust::from_pem(bad).is_err());
    }
}

fn host_router() -> Router {
    Router::new()
        .route("/v1/config", put(|| async { "7" }))
        .route("/v1/inventory", get(|| async { problem(ProblemKind::StaleGeneration) }))
        .route(
            "/v1/logs",
            get(|RawQuery(query): RawQuery| async move {
                assert_eq!(query.as_deref(), Some("app=hello&after=3-4&wait_ms=5&limit=6"));
                axum::Json(LogPage { lines: Vec::new(), next: LogCursor { boot: 3, sequence: 9 } })
            }),
        )
        .route("/v1/services/s1/keyvalue", post(|| async { r#"{"Err":"not_a_number"}"# }))
}

async fn host_calls(client: HostClient) {
    let config = HostConfig { generation: Generation(7), instances: vec![], services: vec![], peers: vec![] };
    assert_eq!(client.put_config(config).await.unwrap(), Generation(7));
    assert_eq!(client.inventory().await.unwrap_err().kind, ProblemKind::StaleGeneration);
    let query = LogQuery { app: app_name(), after: LogCursor { boot: 3, sequence: 4 }, wait_ms: Millis(5), limit: 6 };
    assert_eq!(client.logs(query).await.unwrap().next.sequence, 9);
    let call = KeyValueRequest::Increment { key: "k".into(), delta: 1 };
    let answer = client.keyvalue(&ServiceId::new("s1").unwrap(), call).await.unwrap();
    assert_eq!(answer, Err(KeyValueError::NotANumber));
}

#[tokio::test]
async fn a_host_is_called_over_tcp_and_unix_with_mutual_tls() {
    let pki = pki(true);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = HostAddress::Tcp(tcp.local_addr().unwrap());
    let unix = UnixListener::bind(&socket).unwrap();
    let router = host_router();
    let _servers = (serve!(tcp, pki, router), serve!(unix, pki, router));
    let id = |s| HostId::new(s).unwrap();
    host_calls(HostClient::new(address.clone(), id("h1"), Arc::clone(&pki.client))).await;
    host_calls(HostClient::new(HostAddress::Unix(socket.clone()), id("h1"), Arc::clone(&pki.client))).await;

    // The name in the certificate is what counts, not the address.
    let wrong = HostClient::new(HostAddress::Unix(socket.clone()), id("h2"), Arc::clone(&pki.client));
    let problem = wrong.inventory().await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Unavailable);
    assert!(problem.detail.contains("h2") && problem.detail.contains("control.sock"), "{}", problem.detail);

    // Without a client certificate the host does not answer.
    let anonymous = Trust::from_pem(pki.ca_pem.as_bytes()).unwrap().client_config().unwrap();
    let refused = HostClient::new(address, id("h1"), anonymous).metrics().await.unwrap_err();
    assert_eq!(refused.kind, ProblemKind::Unavailable);

    let gone = HostClient::new(HostAddress::Unix(dir.path().join("none")), id("h1"), Arc::clone(&pki.client));
    assert_eq!(gone.metrics().await.unwrap_err().kind, ProblemKind::Unavailable);
}

#[tokio::test]
async fn names_are_escaped_in_paths() {
    let router = Router::new()
        .route("/v1/tokens/{name}", put(|Path(name): Path<String>| async move { (StatusCode::CONFLICT, name) }));
    let (url, pki) = admin(router).await;
    let client = AdminClient::new(&url, &Trust::from_pem(pki.ca_pem.as_bytes()).unwrap(), None).unwrap();
    let new = NewToken { role: Role::Viewer, org: None, ttl_s: None };
    for name in ["a/b?c", "../x", "ü ä", "%2f"] {
        let problem = client.create_token(name, new.clone()).await.unwrap_err();
        assert_eq!((problem.kind, problem.detail.as_str()), (ProblemKind::Conflict, name));
    }
}
