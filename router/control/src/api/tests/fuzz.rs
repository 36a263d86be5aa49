//! Fuzz target: bodies and paths of the admin API, by whoever has an admin's token.

use marcato_api::RevisionConfig;
use marcato_fuzz::{Input, JsonInput, target};

use super::*;

const WORDS: &[&str] = &[
    "instances",
    "routes",
    "org",
    "space",
    "host",
    "path",
    "state",
    "stopped",
    "current",
    "restart",
    "digest",
    "config",
    "env",
    "bind",
    "kind",
    "access",
    "keyvalue",
    "role",
    "deployer",
    "viewer",
    "ttl_s",
    "default",
    "x.cloud.test",
    "limits",
    "isolation",
    "process",
];
const PATHS: &[&str] = &[
    "/",
    "..",
    "%2e%2e",
    "%00",
    "%ff",
    "%",
    "?",
    "&",
    "=",
    "limit=0",
    "after=",
    "é",
    "//",
    "x",
    ":",
    "18446744073709551616",
];

fn routes(digest: &Digest) -> Vec<(Method, &'static str, Vec<Value>)> {
    let revision = json!({
        "digest": digest, "config": RevisionConfig::default(),
        "env": {"A": "b", "C": null}, "bind": [{"name": "db", "service": "s"}], "unbind": ["old"], "reason": "push",
    });
    let csr = "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n";
    let join = json!({
        "id": "h9", "csr_pem": csr, "control": {"tcp": "127.0.0.1:1"}, "ingress": {"unix": "/nowhere"}, "zone": "z", "labels": {"a": "b"},
    });
    let app = json!({"org": "default", "space": "default", "instances": 2, "routes": [{"host": "x.cloud.test", "path": "/a"}]});
    let update = json!({"state": "stopped", "instances": 3, "routes": [{"host": "y.cloud.test"}], "current": 1, "restart": true});
    let policy = json!({"isolation": "process", "quota": {"memory_bytes": 1 << 27, "instances": 9}, "cpu_weight": 50});
    vec![
        (Method::PUT, "/v1/apps/x", vec![app.clone(), json!({})]),
        (Method::PUT, "/v1/apps/new", vec![app]),
        (Method::PATCH, "/v1/apps/x", vec![update, json!({"instances": 1})]),
        (Method::POST, "/v1/apps/x/revisions", vec![revision, json!({"env": {"A": "c"}})]),
        (Method::PUT, "/v1/services/s", vec![json!({"kind": "access", "org": "default", "space": "default"})]),
        (Method::PUT, "/v1/tokens/t", vec![json!({"role": "deployer", "org": "default", "ttl_s": 3600})]),
        (Method::PUT, "/v1/policies/org:default", vec![policy.clone()]),
        (Method::PUT, "/v1/policies/app:x", vec![policy]),
        (Method::POST, "/v1/hosts/join", vec![join]),
        (Method::GET, "/v1/apps?limit=3&after=x", vec![]),
        (Method::GET, "/v1/events?limit=3", vec![]),
        (Method::GET, "/v1/usage?from=2026-01-01T00:00:00Z&by=app", vec![]),
        (Method::GET, "/v1/apps/x/limits", vec![]),
        (Method::GET, "/v1/apps/x/status", vec![]),
    ]
}

/// Whatever comes: an answer, and no failure of the platform's own; a refusal is a problem with its request's id; and what the store holds
/// afterwards is still read, and within its ranges.
#[test]
fn fuzz_admin_api() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (digest, bytes) = component(b"one");
    let routes = routes(&digest);
    let cluster = runtime.block_on(async {
        let cluster = Cluster::start().await;
        assert_eq!(cluster.admin(Method::PUT, "/v1/apps/x", Some(json!({}))).await.status, 200);
        cluster.client().put_component(&digest, bytes).await.unwrap();
        cluster
    });
    target!(120, |case: &(u8, Option<Input>, JsonInput)| {
        let (which, path, body) = case;
        let (method, good, bodies) = &routes[*which as usize % routes.len()];
        let body = if bodies.is_empty() { Vec::new() } else { body.bytes(bodies, WORDS) };
        let path = path.as_ref().map_or_else(|| (*good).to_owned(), |edits| edits.text(&[good], PATHS));
        // What is no target of a request never gets onto the wire.
        let path =
            path.parse::<http::Uri>().ok().filter(|_| path.starts_with('/')).map_or((*good).to_owned(), |_| path);
        runtime.block_on(check(&cluster, method.clone(), &path, &body));
    });
    runtime.block_on(cluster.stop());
}

async fn check(c: &Cluster, method: Method, path: &str, body: &[u8]) {
    let answer = c.raw(method.clone(), path, &[("content-type", "application/json")], body).await;
    // 503: no host has joined.
    assert!(answer.status < 500 || answer.status == 503, "{method} {path}: {} {:.300}", answer.status, answer.text());
    if answer.status >= 400 {
        let said = answer.json();
        let kind = said["type"].as_str().and_then(|t| t.strip_prefix("urn:marcato:problem:")).expect("a problem");
        problem(&answer, answer.status, kind);
    }
    let listed = c.admin(Method::GET, "/v1/apps?limit=1000", None).await;
    let listed = listed.json();
    let apps = listed["items"].as_array().expect("a page");
    assert!(apps.iter().any(|a| a["name"] == "x"), "{apps:?}");
    for app in apps {
        assert!(app["instances"].as_u64().is_none_or(|n| n <= 100), "{app}");
    }
}
