//! Debug tokens: who gets one, for how long, what the audit log says, and which apps honour it.

use http::Method;
use jiff::Timestamp;
use marcato_api::{AdminApi, NewDebugToken};
use marcato_balance::DebugVerdict;
use serde_json::json;

use super::cluster::Cluster;
use super::problem;

const PATH: &str = "/v1/apps/shop/debug-token";

/// What the edge would make of a token now.
async fn verdict(c: &Cluster, app: &str, token: &str) -> DebugVerdict {
    let name = app.parse().unwrap();
    let (app, _) = c.control.state().app(&name).await.unwrap().unwrap();
    let now = Timestamp::now().as_second().unsigned_abs();
    c.control.debug_secret().key(&app).check(&name, token.as_bytes(), now)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debug_token_is_for_who_may_read_the_log_and_is_an_event() {
    let c = Cluster::start().await;
    c.admin(Method::PUT, "/v1/apps/shop", Some(json!({"org": "clinic"}))).await;
    c.admin(Method::PUT, "/v1/apps/other", Some(json!({"org": "clinic"}))).await;
    let viewer = c.token("vera", json!({"role": "viewer", "org": "clinic"})).await;
    let stranger = c.token("dan", json!({"role": "deployer", "org": "garage"})).await;
    problem(&c.call(Method::POST, PATH, None, Some(json!({}))).await, 401, "unauthenticated");
    problem(&c.call(Method::POST, PATH, Some(&stranger), Some(json!({}))).await, 403, "forbidden");
    problem(&c.admin(Method::POST, "/v1/apps/none/debug-token", Some(json!({}))).await, 404, "not-found");
    for ttl in [0, 86_401, u64::MAX] {
        let refused = c.admin(Method::POST, PATH, Some(json!({"ttl_s": ttl}))).await;
        assert_eq!(problem(&refused, 422, "invalid")["field"], "ttl_s");
    }
    let unknown = c.admin(Method::POST, PATH, Some(json!({"ttl": 1}))).await;
    assert_eq!(problem(&unknown, 400, "bad-request")["field"], "ttl");

    let before = Timestamp::now().as_second();
    let made = c.call(Method::POST, PATH, Some(&viewer), Some(json!({}))).await;
    assert_eq!(made.status, 200, "{}", made.text());
    let token = made.json()["token"].as_str().unwrap().to_owned();
    let ends: Timestamp = made.json()["expires_at"].as_str().unwrap().parse().unwrap();
    assert!((before + 3_600..=before + 3_660).contains(&ends.as_second()), "an hour: {ends}");
    assert_eq!(verdict(&c, "shop", &token).await, DebugVerdict::Valid);
    assert_eq!(verdict(&c, "other", &token).await, DebugVerdict::Invalid);
    let (shop, new) = ("shop".parse().unwrap(), NewDebugToken { ttl_s: Some(86_400) });
    let whole_day = c.client().create_debug_token(&shop, new).await.unwrap();
    assert_eq!(verdict(&c, "shop", &whole_day.token).await, DebugVerdict::Valid);

    let events = c.admin(Method::GET, "/v1/events?limit=1000", None).await;
    let told = |actor: &str, outcome: &str| {
        let value = events.json();
        let mut items = value["items"].as_array().unwrap().iter().filter(|e| e["action"] == "app.debug");
        items.any(|e| e["actor"] == actor && e["outcome"] == outcome && e["target"] == "app/shop")
    };
    assert!(told("vera", "ok") && told("dan", "denied") && told("admin", "failed"), "{}", events.text());
    assert!(!events.text().contains(&token), "the token is in no event");

    // After a restart it is as good as before; nothing of it, nor of what it hangs on, lies in the store.
    let c = c.restart().await;
    assert_eq!(verdict(&c, "shop", &token).await, DebugVerdict::Valid);
    let dir = c.stop().await;
    let body = token.strip_prefix("md_").unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()) {
        if file.file_name().unwrap().to_string_lossy().starts_with("state.sqlite") {
            let bytes = std::fs::read(&file).unwrap();
            assert!(!bytes.windows(body.len()).any(|w| w == body.as_bytes()), "{}", file.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_of_the_same_name_does_not_honour_old_tokens() {
    let c = Cluster::start().await;
    c.admin(Method::PUT, "/v1/apps/shop", Some(json!({}))).await;
    let made = c.admin(Method::POST, PATH, Some(json!({"ttl_s": 60}))).await.json();
    let token = made["token"].as_str().unwrap();
    // What changes an app does not change who owns it.
    assert_eq!(c.admin(Method::PATCH, "/v1/apps/shop", Some(json!({"restart": true}))).await.status, 200);
    assert_eq!(verdict(&c, "shop", token).await, DebugVerdict::Valid);
    assert_eq!(c.admin(Method::DELETE, "/v1/apps/shop", None).await.status, 204);
    c.admin(Method::PUT, "/v1/apps/shop", Some(json!({"org": "clinic"}))).await;
    assert_eq!(verdict(&c, "shop", token).await, DebugVerdict::Invalid);
    c.stop().await;
}
