//! The admin API over real TLS: who is let in, what is refused and how, and what is left in the log.

mod cluster;
mod debug;
mod fuzz;
mod hosts;
mod policies;

use http::{Method, StatusCode};
use marcato_api::{AdminApi, Digest};
use serde_json::{Value, json};

use cluster::{Cluster, component};

/// Asserts a problem's status and kind, and gives its body.
#[track_caller]
fn problem(answer: &cluster::Answer, status: u16, kind: &str) -> Value {
    assert_eq!(answer.status, status, "{:?}", answer.body);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let body = answer.json();
    assert_eq!(body["type"], format!("urn:marcato:problem:{kind}"), "{body}");
    assert_eq!(body["status"], status);
    assert_eq!(body["request_id"], answer.header("x-request-id"), "{body}");
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_known_tokens_with_the_right_role_and_org_get_in() {
    let c = Cluster::start().await;
    problem(&c.call(Method::GET, "/v1/apps", None, None).await, 401, "unauthenticated");
    let wrong = format!("mt_{}", "A".repeat(43));
    let refused = c.call(Method::GET, "/v1/apps", Some(&wrong), None).await;
    problem(&refused, 401, "unauthenticated");
    assert!(refused.header("www-authenticate").starts_with("Bearer"));
    let viewer = c.token("vera", json!({"role": "viewer"})).await;
    let deployer = c.token("dan", json!({"role": "deployer", "org": "clinic"})).await;
    assert_eq!(c.call(Method::GET, "/v1/apps", Some(&viewer), None).await.status, 200);
    problem(&c.call(Method::PUT, "/v1/apps/x", Some(&viewer), Some(json!({}))).await, 403, "forbidden");
    problem(&c.call(Method::POST, "/v1/hosts/tokens", Some(&deployer), None).await, 403, "forbidden");
    problem(
        &c.call(Method::PUT, "/v1/tokens/evil", Some(&deployer), Some(json!({"role": "admin"}))).await,
        403,
        "forbidden",
    );
    // Another org: neither make, nor see, nor change.
    problem(&c.call(Method::PUT, "/v1/apps/x", Some(&deployer), Some(json!({}))).await, 403, "forbidden");
    assert_eq!(c.admin(Method::PUT, "/v1/apps/x", Some(json!({}))).await.status, 200);
    assert_eq!(c.call(Method::PUT, "/v1/apps/y", Some(&deployer), Some(json!({"org": "clinic"}))).await.status, 200);
    problem(&c.call(Method::GET, "/v1/apps/x", Some(&deployer), None).await, 403, "forbidden");
    problem(&c.call(Method::DELETE, "/v1/apps/x", Some(&deployer), None).await, 403, "forbidden");
    let seen = c.call(Method::GET, "/v1/apps", Some(&deployer), None).await.json();
    assert_eq!(seen["items"].as_array().unwrap().iter().map(|a| &a["name"]).collect::<Vec<_>>(), ["y"]);
    // All of it is in the audit log, with the actor.
    let events = c.admin(Method::GET, "/v1/events?limit=1000", None).await.json();
    let denied = |actor: &str, action: &str| {
        let mut events = events["items"].as_array().unwrap().iter();
        events.any(|e| e["actor"] == actor && e["action"] == action && e["outcome"] == "denied")
    };
    assert!(denied("vera", "app.create") && denied("dan", "join-token.create") && denied("dan", "app.delete"));
    assert!(denied("unknown", "token.refuse") && denied("dan", "token.create"));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_end_and_the_last_admin_stays() {
    let c = Cluster::start().await;
    let made = c.admin(Method::PUT, "/v1/tokens/short", Some(json!({"role": "viewer", "ttl_s": 1}))).await.json();
    let secret = made["secret"].as_str().unwrap().to_owned();
    assert_eq!(c.call(Method::GET, "/v1/whoami", Some(&secret), None).await.json()["name"], "short");
    let again = json!({"role": "viewer"});
    problem(&c.admin(Method::PUT, "/v1/tokens/short", Some(again.clone())).await, 409, "conflict");
    problem(&c.admin(Method::PUT, "/v1/tokens/Bad%20Name", Some(again.clone())).await, 422, "invalid");
    problem(&c.admin(Method::PUT, "/v1/tokens/system", Some(again)).await, 422, "invalid");
    cluster::until("the token ends", async || {
        c.call(Method::GET, "/v1/whoami", Some(&secret), None).await.status == 401
    })
    .await;
    problem(&c.admin(Method::DELETE, "/v1/tokens/admin", None).await, 409, "conflict");
    let listed = c.admin(Method::GET, "/v1/tokens", None).await;
    assert!(!listed.text().contains("sha256") && !listed.text().contains("mt_"), "{}", listed.text());
    assert_eq!(c.admin(Method::DELETE, "/v1/tokens/short", None).await.status, 204);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_is_slowed_down() {
    let c = Cluster::start().await;
    let wrong = format!("mt_{}", "A".repeat(43));
    for _ in 0..20 {
        assert_eq!(c.call(Method::GET, "/v1/apps", Some(&wrong), None).await.status, 401);
    }
    let refused = c.call(Method::GET, "/v1/apps", Some(&wrong), None).await;
    problem(&refused, 429, "rate-limited");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() <= 61);
    assert_eq!(c.call(Method::GET, "/healthz", None, None).await.status, 200);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_problems_that_name_the_field() {
    let c = Cluster::start().await;
    let put = async |body: &[u8], kind: &str| c.raw(Method::PUT, "/v1/apps/x", &[("content-type", kind)], body).await;
    let json_type = "application/json";
    problem(&put(b"{\"instances\": ", json_type).await, 400, "bad-request");
    let wrong = problem(&put(b"{\"instances\": \"two\"}", json_type).await, 400, "bad-request");
    assert_eq!(wrong["field"], "instances");
    let unknown = problem(&put(b"{\"instanzes\": 2}", json_type).await, 400, "bad-request");
    assert_eq!(unknown["field"], "instanzes");
    problem(&put(b"{}", "text/plain").await, 415, "unsupported-media-type");
    problem(&put(&vec![b' '; (1 << 20) + 1], json_type).await, 413, "too-large");
    let range = problem(&put(b"{\"instances\": 101}", json_type).await, 422, "invalid");
    assert_eq!(range["field"], "instances");
    let route = problem(&put(br#"{"routes": [{"host": "UPPER"}]}"#, json_type).await, 422, "invalid");
    assert_eq!(route["field"], "routes[0]");
    problem(&c.admin(Method::GET, "/v1/nothing", None).await, 404, "not-found");
    problem(&c.admin(Method::POST, "/v1/apps", None).await, 405, "method-not-allowed");
    problem(&c.admin(Method::GET, "/v1/apps/UPPER", None).await, 422, "invalid");
    problem(&c.admin(Method::GET, "/v1/apps?limit=0", None).await, 422, "invalid");
    problem(&c.admin(Method::GET, "/v1/apps?limit=x", None).await, 400, "bad-request");
    problem(&c.admin(Method::GET, "/v1/apps?limit=5&page=2", None).await, 400, "bad-request");
    problem(&c.admin(Method::GET, "/v1/apps/none", None).await, 404, "not-found");
    let patch = [("content-type", json_type), ("if-match", "W/\"1\"")];
    problem(&c.raw(Method::PATCH, "/v1/apps/none", &patch, b"{}").await, 400, "bad-request");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_update_is_refused_and_puts_are_idempotent() {
    let c = Cluster::start().await;
    let made = c.admin(Method::PUT, "/v1/apps/x", Some(json!({"instances": 2}))).await;
    assert_eq!(made.json()["routes"], json!([{"host": "x.cloud.test", "path": "/"}]));
    let etag = made.header("etag").to_owned();
    let again = c.admin(Method::PUT, "/v1/apps/x", Some(json!({"instances": 5}))).await;
    assert_eq!((again.status, again.header("etag"), &again.json()["instances"]), (200, &*etag, &json!(2)));
    problem(&c.admin(Method::PUT, "/v1/apps/x", Some(json!({"org": "other"}))).await, 409, "conflict");
    let patch = async |etag: &str, n: u32| {
        let headers = [("content-type", "application/json"), ("if-match", etag)];
        c.raw(Method::PATCH, "/v1/apps/x", &headers, json!({"instances": n}).to_string().as_bytes()).await
    };
    let first = patch(&etag, 3).await;
    assert_eq!(first.status, 200);
    assert_ne!(first.header("etag"), etag);
    problem(&patch(&etag, 4).await, 412, "precondition-failed");
    assert_eq!(c.admin(Method::GET, "/v1/apps/x", None).await.json()["instances"], 3);
    let same = patch(first.header("etag"), 3).await;
    assert_eq!(same.header("etag"), first.header("etag"), "no change, no new version");
    assert_eq!(c.admin(Method::PATCH, "/v1/apps/x", Some(json!({"restart": true}))).await.json()["restarts"], 1);
    problem(&c.admin(Method::PATCH, "/v1/apps/x", Some(json!({"current": 7}))).await, 422, "invalid");
    let headers = [("if-match", &*etag)];
    problem(&c.raw(Method::DELETE, "/v1/apps/x", &headers, b"").await, 412, "precondition-failed");
    assert_eq!(c.admin(Method::DELETE, "/v1/apps/x", None).await.status, 204);
    problem(&c.admin(Method::GET, "/v1/apps/x", None).await, 404, "not-found");
    let failed = c.admin(Method::GET, "/v1/events", None).await.json();
    assert!(failed["items"].as_array().unwrap().iter().any(|e| e["action"] == "app.scale" && e["outcome"] == "failed"));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_route_names_the_app_that_has_it() {
    let c = Cluster::start().await;
    let routes = json!({"routes": [{"host": "shop.test"}]});
    assert_eq!(c.admin(Method::PUT, "/v1/apps/one", Some(routes.clone())).await.status, 200);
    let taken = problem(&c.admin(Method::PUT, "/v1/apps/two", Some(routes.clone())).await, 409, "conflict");
    assert!(taken["detail"].as_str().unwrap().contains("the app one"), "{taken}");
    assert_eq!(c.admin(Method::PUT, "/v1/apps/two", Some(json!({}))).await.status, 200);
    problem(&c.admin(Method::PATCH, "/v1/apps/two", Some(routes.clone())).await, 409, "conflict");
    assert_eq!(c.admin(Method::DELETE, "/v1/apps/one", None).await.status, 204);
    assert_eq!(c.admin(Method::PATCH, "/v1/apps/two", Some(routes)).await.status, 200);
    let status = c.admin(Method::GET, "/v1/apps/two/status", None).await.json();
    assert_eq!(status["urls"], json!(["https://shop.test:8443/", "http://shop.test/"]));
    assert_eq!(status["notes"], json!(["nothing was pushed yet"]));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_come_in_pages() {
    let c = Cluster::start().await;
    for n in 0..7 {
        assert_eq!(c.admin(Method::PUT, &format!("/v1/apps/a{n}"), Some(json!({}))).await.status, 200);
    }
    for listing in ["apps", "events"] {
        let mut seen = Vec::new();
        let mut after = String::new();
        loop {
            let page = c.admin(Method::GET, &format!("/v1/{listing}?limit=3{after}"), None).await.json();
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= 3);
            seen.extend(items.iter().map(|i| i.get("sequence").unwrap_or(&i["name"]).to_string()));
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count, "{listing}: none twice");
        assert!(count >= 7, "{listing}");
    }
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_checks_the_bytes_hides_secrets_and_is_idempotent() {
    let c = Cluster::start().await;
    let client = c.client();
    let (digest, bytes) = component(b"one");
    c.admin(Method::PUT, "/v1/apps/x", Some(json!({}))).await;
    let revision = json!({"digest": digest.as_str(), "config": {"env": {"KEY": "hunter2-config"}}, "env": {"MORE": "hunter2-env"}});
    let early = problem(&c.admin(Method::POST, "/v1/apps/x/revisions", Some(revision.clone())).await, 422, "invalid");
    assert_eq!(early["field"], "digest");
    assert!(early["detail"].as_str().unwrap().contains("upload"), "{early}");
    assert!(!client.has_component(&digest).await.unwrap());
    let path = format!("/v1/components/{digest}");
    problem(&c.raw(Method::PUT, &path, &[], b"other bytes").await, 422, "digest-mismatch");
    let module = b"\0asm\x01\0\0\0";
    let core = format!("/v1/components/{}", Digest::of(module));
    problem(&c.raw(Method::PUT, &core, &[], module).await, 422, "bad-component");
    client.put_component(&digest, bytes.clone()).await.unwrap();
    client.put_component(&digest, bytes).await.unwrap();
    assert!(client.has_component(&digest).await.unwrap());
    let made = c.admin(Method::POST, "/v1/apps/x/revisions", Some(revision.clone())).await;
    assert_eq!((made.status, &made.json()["number"]), (200, &json!(1)), "{}", made.text());
    let again = c.admin(Method::POST, "/v1/apps/x/revisions", Some(revision)).await.json();
    assert_eq!(again["number"], 1, "the same bytes and config are the same revision");
    // Env on top: one more, one gone, the hidden one kept.
    let change =
        json!({"config": {"env": {"KEY": "***"}}, "env": {"NEW": "hunter2-new", "MORE": null}, "reason": "env"});
    assert_eq!(c.admin(Method::POST, "/v1/apps/x/revisions", Some(change)).await.json()["number"], 2);
    let app = "x".parse().unwrap();
    let stored = c.control.state().revision(&app, marcato_api::RevisionNumber(2)).await.unwrap().unwrap();
    let env: Vec<_> = stored.config.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(env, [("KEY", "hunter2-config"), ("NEW", "hunter2-new")]);
    for path in ["/v1/apps/x/revisions", "/v1/apps/x/revisions/2", "/v1/apps/x/status", "/v1/events"] {
        let answer = c.admin(Method::GET, path, None).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(!answer.text().contains("hunter2"), "{path} shows a secret");
    }
    let limits = json!({"config": {"limits": {"memory_bytes": 1}}});
    let range = problem(&c.admin(Method::POST, "/v1/apps/x/revisions", Some(limits)).await, 422, "invalid");
    assert_eq!(range["field"], "config.limits.memory_bytes");
    let unbound = json!({"bind": [{"name": "db", "service": "none"}]});
    problem(&c.admin(Method::POST, "/v1/apps/x/revisions", Some(unbound)).await, 422, "invalid");
    assert_eq!(c.admin(Method::PATCH, "/v1/apps/x", Some(json!({"current": 1}))).await.json()["current"], 1);
    let token = c.admin_token.clone();
    let dir = c.stop().await;
    // Neither env values nor the token's secret are in the database's bytes, log included.
    for file in std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()) {
        if file.file_name().unwrap().to_string_lossy().starts_with("state.sqlite") {
            let bytes = std::fs::read(&file).unwrap();
            for secret in ["hunter2", token.as_str()] {
                assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{}", file.display());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_and_token_survive_a_restart() {
    let c = Cluster::start().await;
    c.admin(Method::PUT, "/v1/apps/x", Some(json!({}))).await;
    let before = std::fs::read(c.dir.path().join("ca.pem")).unwrap();
    let c = c.restart().await;
    assert_eq!(c.admin(Method::GET, "/v1/apps/x", None).await.status, 200);
    assert_eq!(std::fs::read(c.dir.path().join("ca.pem")).unwrap(), before);
    use std::os::unix::fs::PermissionsExt as _;
    for file in ["admin.token", "ca.key", "seal.key", "tls/key.pem", "identity/key.pem"] {
        let mode = std::fs::metadata(c.dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_describes_every_path_and_metrics_count() {
    let c = Cluster::start().await;
    let document = c.call(Method::GET, "/v1/openapi.json", None, None).await.json();
    let paths = document["paths"].as_object().unwrap();
    for path in ["/v1/apps/{app}", "/v1/apps/{app}/logs", "/v1/hosts/join", "/v1/services/{name}/backup", "/metrics"] {
        assert!(paths.contains_key(path), "{path}");
    }
    assert!(document["components"]["schemas"]["Problem"].is_object());
    assert!(document["components"]["securitySchemes"]["bearer"].is_object());
    let version = c.call(Method::GET, "/version", None, None).await.json();
    assert_eq!((&version["version"], &version["cluster_domain"]), (&json!("0.0.test"), &json!("cloud.test")));
    assert_eq!(c.call(Method::GET, "/healthz", None, None).await.status, StatusCode::OK);
    problem(&c.call(Method::GET, "/metrics", None, None).await, 401, "unauthenticated");
    let metrics = c.admin(Method::GET, "/metrics", None).await.text();
    assert!(
        metrics.contains("marcato_admin_requests_total{route=\"/v1/openapi.json\",method=\"GET\",status=\"200\"} 1"),
        "{metrics}"
    );
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn going_back_to_a_trimmed_revision_says_so() {
    let c = Cluster::start().await;
    let (digest, bytes) = component(b"one");
    c.admin(Method::PUT, "/v1/apps/x", Some(json!({}))).await;
    c.client().put_component(&digest, bytes).await.unwrap();
    for n in 0..4 {
        let revision = json!({"digest": digest.as_str(), "env": {"N": n.to_string()}});
        assert_eq!(c.admin(Method::POST, "/v1/apps/x/revisions", Some(revision)).await.status, 200);
    }
    assert_eq!(c.control.state().trim_revisions(2, &Default::default()).await.unwrap(), 2);
    let back = problem(&c.admin(Method::PATCH, "/v1/apps/x", Some(json!({"current": 1}))).await, 422, "invalid");
    assert_eq!(back["field"], "current");
    assert!(back["detail"].as_str().unwrap().contains("trimmed"), "{back}");
    let gone = problem(&c.admin(Method::GET, "/v1/apps/x/revisions/2", None).await, 404, "not-found");
    assert!(gone["detail"].as_str().unwrap().contains("trimmed"), "{gone}");
    let never = problem(&c.admin(Method::GET, "/v1/apps/x/revisions/9", None).await, 404, "not-found");
    assert!(!never["detail"].as_str().unwrap().contains("trimmed"), "{never}");
    assert_eq!(c.admin(Method::PATCH, "/v1/apps/x", Some(json!({"current": 3}))).await.json()["current"], 3);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_upload_over_http_1_is_answered_and_not_reset() {
    let c = Cluster::start().await;
    let viewer = c.token("vera", json!({"role": "viewer"})).await;
    let path = format!("/v1/components/{}", Digest::of(b"x"));
    // More than any buffer on the way holds.
    let long = json!({"pad": "x".repeat(20 << 20)});
    for _ in 0..3 {
        problem(&c.call(Method::PUT, &path, None, Some(long.clone())).await, 401, "unauthenticated");
        problem(&c.call(Method::PUT, &path, Some(&viewer), Some(long.clone())).await, 403, "forbidden");
        problem(&c.call(Method::PUT, "/v1/none", None, Some(long.clone())).await, 404, "not-found");
    }
    c.stop().await;
}
