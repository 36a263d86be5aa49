//! HostApi on a real daemon over real mutual TLS: who gets in, and what garbage gets.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use marcato_api::{
    Digest, Generation, HostAddress, HostConfig, HostId, LogPage, ProblemKind, ServiceId, ServiceKind, ServiceSpec,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::testing::{TestCa, TestHost, call_tls, eventually, json_request, problem_of};

fn config(generation: u64) -> HostConfig {
    HostConfig { generation: Generation(generation), instances: Vec::new(), services: Vec::new(), peers: Vec::new() }
}

async fn host() -> TestHost {
    TestHost::start("h1", Arc::new(TestCa::new())).await
}

fn kind(response: &Response<Bytes>) -> ProblemKind {
    problem_of(response).kind
}

#[tokio::test]
async fn only_certificates_of_the_cluster_get_in() {
    let host = host().await;
    let stranger = TestCa::new();
    let get = || Request::builder().uri("/healthz").body(Full::default()).unwrap();
    assert!(host.call_as(&stranger.router(), get()).await.is_err(), "another authority");
    assert!(host.call_as(&host.ca.leaf_with_uris(&[]), get()).await.is_err(), "no role");
    assert!(host.call_as(&host.ca.leaf_with_uris(&["marcato://admin"]), get()).await.is_err(), "unknown role");
    let other_name =
        call_tls(&host.control, "h2.host.marcato.internal", &host.ca.router(), &host.ca.pem(), get()).await;
    assert!(other_name.is_err(), "a client that wants another host does not talk to this one");
    let HostAddress::Unix(path) = &host.control else { unreachable!() };
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0; 600], b"\x16\x03\x01\xff\xff\x01"] {
        let mut stream = tokio::net::UnixStream::connect(path).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // It may answer with a TLS alert, or just close.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "plain HTTP is not spoken");
    }
    assert_eq!(host.get("/healthz").await.unwrap().body().as_ref(), b"ok\n", "and it still serves");
}

#[tokio::test]
async fn a_host_may_call_services_and_nothing_else() {
    let host = host().await;
    let peer = host.ca.host("h2");
    let body = serde_json::to_vec(&config(1)).unwrap();
    let component = format!("/v1/components/{}", Digest::of(b"x"));
    for (method, path) in [
        ("PUT", "/v1/config"),
        ("GET", "/v1/inventory"),
        ("PUT", component.as_str()),
        ("GET", "/v1/logs?app=a&limit=1"),
        ("GET", "/metrics"),
        ("GET", "/v1/services/s1/backup"),
        ("PUT", "/v1/services/s1/backup"),
        ("POST", "/v1/services/s1/backup"),
        ("POST", "/v1/config"),
        ("DELETE", "/v1/services/s1/access"),
    ] {
        let refused = host.call_as(&peer, json_request(method, path, &body)).await.unwrap();
        assert_eq!(kind(&refused), ProblemKind::Forbidden, "{method} {path}");
    }
    assert_eq!(host.inventory().await.generation, Generation(0));
    let call = async |id: &str| {
        let get = br#"{"get_subject":{"id":"1001"}}"#;
        host.call_as(&peer, json_request("POST", &format!("/v1/services/{id}/access"), get)).await.unwrap()
    };
    assert_eq!(kind(&call("s1").await), ProblemKind::Forbidden, "the router let nobody use it");
    let service = |users: &[&str]| ServiceSpec {
        id: ServiceId::new("s1").unwrap(),
        kind: ServiceKind::Access,
        owner: HostId::new("h1").unwrap(),
        deleted: false,
        users: users.iter().map(|id| HostId::new(*id).unwrap()).collect(),
    };
    for (generation, users, status) in [(1, &["h2", "h3"][..], 200), (2, &["h3"], 403), (3, &[], 403)] {
        let wanted = HostConfig { services: vec![service(users)], ..config(generation) };
        assert_eq!(host.put_config(&wanted).await.status(), 200);
        eventually(|| async { host.inventory().await.services.iter().any(|s| s.ready).then_some(()) }).await;
        assert_eq!(call("s1").await.status(), status, "{users:?}");
        assert_eq!(kind(&call("s2").await), ProblemKind::Forbidden);
    }
    let health = Request::builder().uri("/version").body(Full::default()).unwrap();
    assert_eq!(host.call_as(&peer, health).await.unwrap().status(), 200);
}

#[tokio::test]
async fn configs_are_held_in_order() {
    let host = host().await;
    assert_eq!(host.put_config(&config(5)).await.body().as_ref(), b"5");
    assert_eq!(host.put_config(&config(5)).await.body().as_ref(), b"5");
    assert_eq!(kind(&host.put_config(&config(4)).await), ProblemKind::StaleGeneration);
    assert_eq!(host.inventory().await.generation, Generation(5));
    let dir = host.ca.clone();
    let kept = TestHost::start_in("h1", dir, host.kill().await).await;
    assert_eq!(kept.inventory().await.generation, Generation(5));
    assert_eq!(kind(&kept.put_config(&config(4)).await), ProblemKind::StaleGeneration);
}

#[tokio::test]
async fn garbage_gets_a_problem_that_says_what_is_wrong() {
    let host = host().await;
    let cases: &[(&str, &str, &[u8], ProblemKind)] = &[
        ("PUT", "/v1/config", b"", ProblemKind::BadRequest),
        ("PUT", "/v1/config", b"{", ProblemKind::BadRequest),
        ("PUT", "/v1/config", b"\xff\xfe\x00", ProblemKind::BadRequest),
        ("PUT", "/v1/config", b"[]", ProblemKind::Invalid),
        ("PUT", "/v1/config", br#"{"generation":-1}"#, ProblemKind::Invalid),
        ("POST", "/v1/services/s1/access", b"{\"nothing\":1}", ProblemKind::Invalid),
        ("POST", "/v1/services/S1/access", b"{}", ProblemKind::Invalid),
        ("POST", "/v1/services/..%2fx/keyvalue", b"{}", ProblemKind::Invalid),
        ("PUT", "/v1/components/sha256:00", b"", ProblemKind::Invalid),
        ("PUT", "/v1/components/..%2f..%2fetc", b"", ProblemKind::Invalid),
        ("PUT", "/v1/services/s1/backup", b"not a database", ProblemKind::NotFound),
        ("GET", "/v1/logs", b"", ProblemKind::Invalid),
        ("GET", "/v1/logs?app=A", b"", ProblemKind::Invalid),
        ("GET", "/v1/logs?app=a&limit=0", b"", ProblemKind::Invalid),
        ("GET", "/v1/logs?app=a&after=yesterday", b"", ProblemKind::Invalid),
        ("GET", "/v1/logs?app=a&wait_ms=soon", b"", ProblemKind::Invalid),
        ("GET", "/", b"", ProblemKind::NotFound),
        ("GET", "/v1/config/", b"", ProblemKind::NotFound),
        ("POST", "/v1/inventory", b"", ProblemKind::MethodNotAllowed),
        ("DELETE", "/v1/config", b"", ProblemKind::MethodNotAllowed),
    ];
    for (method, path, body, expected) in cases {
        let response = host.call(json_request(method, path, body)).await.unwrap();
        assert_eq!(kind(&response), *expected, "{method} {path}");
    }
    let plain = Request::builder().method("PUT").uri("/v1/config").body(Full::from("{}")).unwrap();
    assert_eq!(kind(&host.call(plain).await.unwrap()), ProblemKind::UnsupportedMediaType);
    let digest = Digest::of(b"one thing");
    let other = json_request("PUT", &format!("/v1/components/{digest}"), b"another");
    assert_eq!(kind(&host.call(other).await.unwrap()), ProblemKind::DigestMismatch);
    assert!(host.inventory().await.components.is_empty());
    let spec = serde_json::json!({"id": "s1", "kind": "access", "owner": "h1"});
    let twice = serde_json::json!({"generation": 1, "instances": [], "services": [spec, spec], "peers": []});
    let twice = host.call(json_request("PUT", "/v1/config", twice.to_string().as_bytes())).await.unwrap();
    assert_eq!(kind(&twice), ProblemKind::Invalid);
}

#[tokio::test]
async fn it_tells_about_itself() {
    let host = host().await;
    let inventory = host.inventory().await;
    assert_eq!((inventory.host.as_str(), inventory.capacity.sandboxes), ("h1", 8));
    assert!(inventory.capacity.cpu_millis >= 1000);
    let metrics = host.get("/metrics").await.unwrap();
    let text = std::str::from_utf8(metrics.body()).unwrap();
    assert_eq!(metrics.headers()["content-type"], crate::metrics::CONTENT_TYPE);
    for name in ["marcato_host_build_info{", "marcato_host_generation 0", "marcato_host_compile_seconds_count 0"] {
        assert!(text.contains(name), "{name} in {text}");
    }
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    let version: serde_json::Value = serde_json::from_slice(host.get("/version").await.unwrap().body()).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    let page: LogPage =
        serde_json::from_slice(host.get("/v1/logs?app=a&after=0-0&wait_ms=0&limit=5").await.unwrap().body()).unwrap();
    assert!(page.lines.is_empty() && page.next.boot > 0);
}
