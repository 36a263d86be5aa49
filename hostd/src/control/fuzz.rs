//! Fuzz target: HostApi on a real daemon over real mutual TLS, by whoever has a router's certificate.

use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use marcato_api::{
    AccessRequest, Digest, Generation, HostConfig, HostId, KeyValueRequest, PageRequest, Permission, ServiceId,
    ServiceKind, ServiceSpec, SubjectKind,
};
use marcato_fuzz::{Input, JsonInput, PanicWatch, target};
use serde_json::{Value, json};

use crate::testing::{Leaf, TestCa, TestHost, json_request, problem_of};

const WORDS: &[&str] = &[
    "generation",
    "instances",
    "services",
    "peers",
    "id",
    "kind",
    "access",
    "keyvalue",
    "owner",
    "h1",
    "s1",
    "k1",
    "deleted",
    "unix",
    "tcp",
    "key",
    "value",
    "1001",
    "*",
    "page",
    "limit",
    "increment",
    "list_keys",
    "history",
];
const PATHS: &[&str] = &[
    "/",
    "..",
    "%2e%2e",
    "%00",
    "%",
    "?",
    "&",
    "=",
    "app=",
    "after=",
    "limit=0",
    "sha256:",
    "s1",
    "é",
    "//",
    "18446744073709551615",
];

/// How a body comes to be.
enum Body {
    None,
    Json(Vec<Value>),
    Bytes(Vec<u8>),
}

struct Route(&'static str, String, Body);

fn access_requests() -> Vec<Value> {
    let (actor, id) = ("dr-who".to_owned(), "1001".to_owned());
    let page = PageRequest { offset: 0, limit: 10 };
    let permission = Permission { read: true, write: false };
    let all = [
        AccessRequest::AddSubject {
            actor: actor.clone(),
            id: id.clone(),
            kind: SubjectKind::Doctor,
            name: "Name".into(),
            description: "text".into(),
            permission,
        },
        AccessRequest::UpdateSubject {
            actor: actor.clone(),
            id: id.clone(),
            kind: None,
            name: Some("Other".into()),
            description: None,
            permission: Some(permission),
            expected_version: Some(1),
        },
        AccessRequest::RemoveSubject { actor: actor.clone(), id: id.clone() },
        AccessRequest::ListSubjects { kind: Some(SubjectKind::Patient), search: Some("a%_".into()), page },
        AccessRequest::IssueKey { actor: actor.clone(), id: id.clone() },
        AccessRequest::VerifyKey { actor: actor.clone(), id: id.clone(), key: "mk_x".into() },
        AccessRequest::Grant { actor: actor.clone(), id: id.clone(), resource: "*".into(), permission },
        AccessRequest::Check { id: id.clone(), resource: "ward-3".into() },
        AccessRequest::History { subject: Some(id), page },
    ];
    all.iter().map(|r| serde_json::to_value(r).unwrap()).collect()
}

fn keyvalue_requests() -> Vec<Value> {
    let all = [
        KeyValueRequest::Set { key: "k".into(), value: vec![1, 2, 3] },
        KeyValueRequest::SetMany { entries: vec![("a".into(), vec![]), ("b".into(), vec![255])] },
        KeyValueRequest::GetMany { keys: vec!["a".into(), "b".into()] },
        KeyValueRequest::DeleteMany { keys: vec!["a".into()] },
        KeyValueRequest::ListKeys { after: Some(1) },
        KeyValueRequest::Increment { key: "n".into(), delta: u64::MAX },
    ];
    all.iter().map(|r| serde_json::to_value(r).unwrap()).collect()
}

/// The config that every case begins with: one service of each kind, and one to restore into.
fn base(generation: u64) -> HostConfig {
    let service = |id: &str, kind| ServiceSpec {
        id: ServiceId::new(id).unwrap(),
        kind,
        owner: HostId::new("h1").unwrap(),
        deleted: false,
        users: vec![HostId::new("h2").unwrap()],
    };
    HostConfig {
        generation: Generation(generation),
        instances: Vec::new(),
        services: vec![
            service("s1", ServiceKind::Access),
            service("k1", ServiceKind::Keyvalue),
            service("r1", ServiceKind::Keyvalue),
        ],
        peers: Vec::new(),
    }
}

fn config_bodies() -> Vec<Value> {
    let instance = json!({
        "id": "a-r1-0", "app": "a", "org": "acme", "space": "default", "revision": 1,
        "digest": Digest::of(b"never compiled"), "config": marcato_api::RevisionConfig::default(),
        "bindings": { "db": "s1" }, "state": "running",
    });
    let mut with = serde_json::to_value(base(2)).unwrap();
    with["instances"] = json!([instance]);
    with["peers"] = json!([{ "id": "h2", "control": { "unix": "/nowhere.sock" } }]);
    vec![serde_json::to_value(base(2)).unwrap(), with]
}

fn routes(ca: &TestCa, backup: &[u8]) -> Vec<Route> {
    let pem = || Body::Json(vec![json!({ "certificate_pem": ca.host("h1").cert_pem })]);
    let route = |method, path: &str, body| Route(method, path.to_owned(), body);
    vec![
        route("PUT", "/v1/config", Body::Json(config_bodies())),
        route("PUT", "/v1/config", Body::Json(config_bodies())),
        route("GET", "/v1/inventory", Body::None),
        route("PUT", &format!("/v1/components/{}", Digest::of(b"x")), Body::Bytes(b"xy".to_vec())),
        route("GET", "/v1/logs?app=a&after=0-0&limit=5", Body::None),
        route("GET", "/v1/usage?after=0000000000000000-0&limit=5", Body::None),
        route("POST", "/v1/services/s1/access", Body::Json(access_requests())),
        route("POST", "/v1/services/s1/access", Body::Json(access_requests())),
        route("POST", "/v1/services/k1/keyvalue", Body::Json(keyvalue_requests())),
        route("POST", "/v1/services/k1/access", Body::Json(access_requests())),
        route("GET", "/v1/services/k1/backup", Body::None),
        route("PUT", "/v1/services/r1/backup", Body::Bytes(backup.to_vec())),
        route("POST", "/v1/certificate-request", Body::None),
        route("PUT", "/v1/certificate", pem()),
        route("PUT", "/v1/ingress-certificate", pem()),
        route("GET", "/metrics", Body::None),
        route("GET", "/version", Body::None),
    ]
}

/// One request: which route, its path with changes, its body.
type Case = (u8, Option<Input>, JsonInput, Input);

struct Target {
    host: TestHost,
    router: Leaf,
    routes: Vec<Route>,
    held: Cell<u64>,
}

impl Target {
    async fn start() -> Self {
        let ca = Arc::new(TestCa::new());
        let host = TestHost::start("h1", Arc::clone(&ca)).await;
        assert_eq!(host.put_config(&base(1)).await.status(), 200);
        let backup = crate::testing::eventually(|| async {
            let copy = host.get("/v1/services/r1/backup").await.unwrap();
            (copy.status() == 200).then(|| copy.into_body())
        });
        let backup = backup.await;
        Self { router: ca.router(), routes: routes(&ca, &backup), host, held: Cell::new(1) }
    }

    fn request(&self, (which, path, json, raw): &Case) -> Request<Full<Bytes>> {
        let Route(method, good, body) = &self.routes[*which as usize % self.routes.len()];
        let body = match body {
            Body::None => Vec::new(),
            Body::Json(good) => self.bounded(json.bytes(good, WORDS)),
            Body::Bytes(good) => raw.bytes(&[good], &[]),
        };
        let path = path.as_ref().map_or_else(|| good.clone(), |edits| edits.text(&[good], PATHS));
        // What is no target of a request never gets onto the wire.
        let path = path.parse::<http::Uri>().ok().filter(|_| path.starts_with('/')).map_or(good.clone(), |_| path);
        // A wait that was asked for would be waited.
        let path = if path.contains("wait_ms") { good.clone() } else { path };
        json_request(method, &path, &body)
    }

    /// No generation so high that none comes after it.
    fn bounded(&self, body: Vec<u8>) -> Vec<u8> {
        match serde_json::from_slice::<Value>(&body) {
            Ok(mut config) if config["generation"].as_u64().is_some_and(|n| n > self.held.get() + 100) => {
                config["generation"] = json!(self.held.get() + 1);
                config.to_string().into_bytes()
            }
            _ => body,
        }
    }

    async fn call(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        let answer = self.host.call_as(&self.router, request);
        let answer = tokio::time::timeout(std::time::Duration::from_secs(20), answer).await;
        answer.expect("it answers in time").expect("it answers")
    }

    async fn generation(&self) -> u64 {
        let inventory = self.call(json_request("GET", "/v1/inventory", b"")).await;
        serde_json::from_slice::<marcato_api::Inventory>(inventory.body()).unwrap().generation.0
    }

    async fn check(&self, case: &Case) {
        let watch = PanicWatch::begin();
        let request = self.request(case);
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let sent = http_body_util::BodyExt::collect(request.body().clone()).await.unwrap().to_bytes();
        let response = self.call(request).await;
        let (status, said) = (response.status(), String::from_utf8_lossy(response.body()).into_owned());
        assert!(!status.is_server_error(), "{method} {uri}: {status} {said:.300}");
        if !status.is_success() {
            problem_of(&response);
        }
        let is_config = method == http::Method::PUT && uri.path() == "/v1/config" && status.is_success();
        let held = self.generation().await;
        assert!(held >= self.held.get(), "the generation went back");
        assert_eq!(held > self.held.get(), is_config && said != self.held.get().to_string(), "{method} {uri}: {said}");
        if is_config {
            let sent: HostConfig = serde_json::from_slice(&sent).expect("what was taken is a config");
            assert_eq!((sent.generation.0, said.as_str()), (held, held.to_string().as_str()));
            // The services back, for the next case.
            assert_eq!(self.host.put_config(&base(held + 1)).await.status(), 200);
        }
        self.held.set(if is_config { held + 1 } else { held });
        if let Some(digest) =
            uri.path().strip_prefix("/v1/components/").filter(|_| method == "PUT" && status.is_success())
        {
            assert_eq!(digest, Digest::of(&sent).to_string(), "a component is what its digest says");
        }
        if method == "PUT" && uri.path().ends_with("certificate") {
            assert!(!status.is_success(), "a certificate for another key was taken");
        }
        for broken in ["\"corrupt\"", "\"disk_full\"", "\"unavailable\""] {
            let is_call = uri.path().starts_with("/v1/services/s1") || uri.path().starts_with("/v1/services/k1");
            assert!(!is_call || !status.is_success() || method == "GET" || !said.contains(broken), "{said:.300}");
        }
        watch.end();
    }
}

/// Whatever comes: an answer, in time; a failure is a problem of the caller's that fits its status; a config is taken
/// whole or not at all and never an older one; a component is what its digest says; no certificate for another key is
/// taken; the services stay whole; nothing panics, also where somebody would catch it.
#[test]
fn fuzz_host_api() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let target = runtime.block_on(Target::start());
    target!(150, |case: &Case| runtime.block_on(target.check(case)));
    runtime.block_on(target.host.stop());
}
