//! Joining, services and logs, with a host that answers as hostd does, over mutual TLS.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::Query;
use axum::routing::get;
use axum::{Json, Router};
use futures::StreamExt;
use http::Method;
use hyper_util::rt::{TokioExecutor, TokioIo};
use marcato_api::{
    AdminApi, AppName, HostState, InstanceId, JoinRequest, LogCursor, LogLine, LogPage, LogStream, RevisionNumber,
    ServiceKind,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tower::ServiceExt as _;

use super::cluster::{Cluster, component};
use super::problem;

fn request(id: &str, control: std::net::SocketAddr) -> (rcgen::KeyPair, JoinRequest) {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let request = JoinRequest {
        id: id.parse().unwrap(),
        csr_pem: csr,
        control: marcato_api::HostAddress::Tcp(control),
        ingress: marcato_api::HostAddress::Tcp(control),
        zone: "z1".into(),
        labels: BTreeMap::new(),
    };
    (key, request)
}

/// Joins a host and serves its API with the certificate that it got.
pub(super) async fn host(c: &Cluster, id: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (key, wish) = request(id, listener.local_addr().unwrap());
    let token = c.admin(Method::POST, "/v1/hosts/tokens", None).await.json()["token"].as_str().unwrap().to_owned();
    let body = Some(serde_json::to_value(&wish).unwrap());
    let joined = c.call(Method::POST, "/v1/hosts/join", Some(&token), body).await;
    assert_eq!(joined.status, 200, "{}", joined.text());
    let chain = joined.json()["certificate_pem"].as_str().unwrap().to_owned();
    let ca = joined.json()["ca_pem"].as_str().unwrap().to_owned();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(|c| c.unwrap().into_owned()).collect();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.unwrap())
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let router = host_api(id.to_owned());
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let service = hyper::service::service_fn(move |r: hyper::Request<hyper::body::Incoming>| {
                    router.clone().oneshot(r.map(axum::body::Body::new))
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                drop(builder.serve_connection(TokioIo::new(tls), service).await);
            });
        }
    });
}

/// Two old lines, then one new line per question; a backup that says whose it is.
fn host_api(id: String) -> Router {
    let (metrics, logs, backup) = (id.clone(), id.clone(), id);
    Router::new()
        .route("/metrics", get(async move || format!("host_up{{id=\"{metrics}\"}} 1\n")))
        .route("/v1/services/{id}/backup", get(async move || format!("backup of {backup}")).put(async || ()))
        .route(
            "/v1/logs",
            get(async move |Query(q): Query<BTreeMap<String, String>>| {
                let from: u64 = q["after"].rsplit('-').next().unwrap().parse().unwrap();
                let count = if from == 0 { 2 } else { u64::from(q["wait_ms"] != "0") };
                let lines = (from..from + count).map(|n| line(&q["app"], &logs, n)).collect();
                Json(LogPage { lines, next: LogCursor { boot: 1, sequence: from + count } })
            }),
        )
}

fn line(app: &str, host: &str, n: u64) -> LogLine {
    LogLine {
        at: jiff::Timestamp::from_second(1_700_000_000 + n as i64).unwrap(),
        app: app.parse().unwrap(),
        revision: RevisionNumber(1),
        instance: InstanceId::new(format!("{host}-i")).unwrap(),
        request_id: String::new(),
        stream: LogStream::Stdout,
        text: format!("{host} line {n}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_lets_one_host_in_once() {
    let c = Cluster::start().await;
    let token = c.admin(Method::POST, "/v1/hosts/tokens", None).await.json()["token"].as_str().unwrap().to_owned();
    let address = "127.0.0.1:1".parse().unwrap();
    let body = |id: &str| Some(serde_json::to_value(request(id, address).1).unwrap());
    let mut bad = body("h1").unwrap();
    bad["csr_pem"] = "garbage".into();
    let refused = problem(&c.call(Method::POST, "/v1/hosts/join", Some(&token), Some(bad)).await, 422, "invalid");
    assert_eq!(refused["field"], "csr_pem");
    let admin = Some(c.admin_token.as_str());
    problem(&c.call(Method::POST, "/v1/hosts/join", admin, body("h1")).await, 401, "unauthenticated");
    problem(&c.call(Method::GET, "/v1/apps", Some(&token), None).await, 401, "unauthenticated");
    assert_eq!(c.call(Method::POST, "/v1/hosts/join", Some(&token), body("h1")).await.status, 200);
    let replay =
        problem(&c.call(Method::POST, "/v1/hosts/join", Some(&token), body("h2")).await, 401, "unauthenticated");
    assert!(replay["detail"].as_str().unwrap().contains("used before"), "{replay}");
    let unknown = format!("mj_{}", "A".repeat(43));
    problem(&c.call(Method::POST, "/v1/hosts/join", Some(&unknown), body("h2")).await, 401, "unauthenticated");
    let hosts = c.client().list_hosts().await.unwrap().items;
    assert_eq!(hosts.len(), 1);
    assert_eq!((hosts[0].id.as_str(), hosts[0].state, hosts[0].zone.as_str()), ("h1", HostState::Unknown, "z1"));
    let events = c.admin(Method::GET, "/v1/events", None).await;
    let items = events.json()["items"].as_array().unwrap().clone();
    assert!(items.iter().any(|e| e["action"] == "host.join" && e["outcome"] == "ok" && e["actor"] == "host:h1"));
    assert!(items.iter().any(|e| e["action"] == "host.join" && e["outcome"] == "denied"));
    assert!(!events.text().contains(&token), "the token is in no event");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_spread_over_hosts_and_stay_while_bound() {
    let c = Cluster::start().await;
    let client = c.client();
    let early = c.admin(Method::PUT, "/v1/services/reg", Some(json!({"kind": "access"}))).await;
    assert!(problem(&early, 503, "unavailable")["detail"].as_str().unwrap().contains("no host"));
    host(&c, "h1").await;
    host(&c, "h2").await;
    let kind = json!({"kind": "access"});
    let first = c.admin(Method::PUT, "/v1/services/reg", Some(kind.clone())).await.json();
    let second = c.admin(Method::PUT, "/v1/services/other", Some(json!({"kind": "keyvalue"}))).await.json();
    assert_eq!((&first["owner"], &second["owner"]), (&json!("h1"), &json!("h2")));
    assert_eq!(c.admin(Method::PUT, "/v1/services/reg", Some(kind)).await.json()["id"], first["id"]);
    let other = json!({"kind": "keyvalue"});
    problem(&c.admin(Method::PUT, "/v1/services/reg", Some(other)).await, 409, "conflict");
    let (digest, bytes) = component(b"x");
    client.put_component(&digest, bytes).await.unwrap();
    c.admin(Method::PUT, "/v1/apps/x", Some(json!({}))).await;
    let bind = json!({"digest": digest.as_str(), "bind": [{"name": "db", "service": "reg"}]});
    assert_eq!(c.admin(Method::POST, "/v1/apps/x/revisions", Some(bind)).await.status, 200);
    let listed = client.list_services().await.unwrap().items;
    let reg = listed.iter().find(|s| s.name.as_str() == "reg").unwrap();
    assert_eq!((reg.kind, reg.bound_by.len()), (ServiceKind::Access, 1));
    let bound = problem(&c.admin(Method::DELETE, "/v1/services/reg", None).await, 409, "conflict");
    assert!(bound["detail"].as_str().unwrap().contains("bound by x"), "{bound}");
    assert_eq!(client.backup_service(&reg.name).await.unwrap(), b"backup of h1");
    client.restore_service(&reg.name, b"bytes".to_vec()).await.unwrap();
    assert!(client.host_metrics(&"h2".parse().unwrap()).await.unwrap().contains("id=\"h2\""));
    // Another org may not bind it.
    c.admin(Method::PUT, "/v1/apps/y", Some(json!({"org": "clinic"}))).await;
    let bind = json!({"digest": digest.as_str(), "bind": [{"name": "db", "service": "reg"}]});
    problem(&c.admin(Method::POST, "/v1/apps/y/revisions", Some(bind)).await, 422, "invalid");
    assert_eq!(c.admin(Method::POST, "/v1/apps/x/revisions", Some(json!({"unbind": ["db"]}))).await.status, 200);
    assert_eq!(c.admin(Method::DELETE, "/v1/services/reg", None).await.status, 204);
    let desired = c.control.state().desired(&[]).await.unwrap();
    assert_eq!(desired.deleted_services.len(), 1, "its owner is told to remove the database");
    c.control.state().forget_deleted_service(&desired.deleted_services[0].id).await.unwrap();
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_of_all_hosts_come_as_one_stream_until_the_client_goes() {
    let c = Cluster::start().await;
    host(&c, "h1").await;
    host(&c, "h2").await;
    c.admin(Method::PUT, "/v1/apps/x", Some(json!({}))).await;
    let app: AppName = "x".parse().unwrap();
    let client = c.client();
    let past: Vec<_> = client.logs(&app, false, 3).await.unwrap().map(|l| l.unwrap()).collect().await;
    assert_eq!(past.len(), 3, "the last three of four");
    assert!(past.is_sorted_by_key(|l| l.at));
    assert!(past.iter().any(|l| l.text.starts_with("h1")) && past.iter().any(|l| l.text.starts_with("h2")));
    let mut followed = Box::pin(client.logs(&app, true, 0).await.unwrap());
    let mut seen = [0, 0];
    while seen.iter().any(|n| *n < 3) {
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), followed.next()).await.expect("in time");
        seen[usize::from(next.unwrap().unwrap().text.starts_with("h2"))] += 1;
    }
    problem(&c.admin(Method::GET, "/v1/apps/x/logs?tail=10001", None).await, 422, "invalid");
    problem(&c.admin(Method::GET, "/v1/apps/none/logs", None).await, 404, "not-found");
    // The stream is still open: stopping ends it.
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_of_a_kind_that_the_component_does_not_use_is_refused() {
    let c = Cluster::start().await;
    host(&c, "h1").await;
    c.admin(Method::PUT, "/v1/services/register", Some(json!({"kind": "access"}))).await;
    c.admin(Method::PUT, "/v1/services/notes", Some(json!({"kind": "keyvalue"}))).await;
    let bytes = wat::parse_str(r#"(component (import "wasi:keyvalue/store@0.2.0-draft" (instance)))"#).unwrap();
    let digest = marcato_api::Digest::of(&bytes);
    c.client().put_component(&digest, bytes).await.unwrap();
    c.admin(Method::PUT, "/v1/apps/x", Some(json!({}))).await;
    let notes = json!({"name": "a", "service": "notes"});
    let wrong = json!({"digest": digest.as_str(), "bind": [notes, {"name": "b", "service": "register"}]});
    let refused = problem(&c.admin(Method::POST, "/v1/apps/x/revisions", Some(wrong)).await, 422, "invalid");
    assert_eq!(refused["field"], "config.bindings[1].service");
    let why = refused["detail"].as_str().unwrap();
    assert!(why.contains("register is a service of kind access") && why.contains("kind keyvalue only"), "{why}");
    let right = json!({"digest": digest.as_str(), "bind": [notes]});
    assert_eq!(c.admin(Method::POST, "/v1/apps/x/revisions", Some(right)).await.status, 200);
    // Later, by itself.
    let bind = json!({"bind": [{"name": "b", "service": "register"}]});
    problem(&c.admin(Method::POST, "/v1/apps/x/revisions", Some(bind)).await, 422, "invalid");
    c.stop().await;
}
