//! Policies, quotas, limits and usage over the admin API.

use http::Method;
use jiff::Timestamp;
use marcato_api::{
    AdminApi, AppUsageHour, Bytes, IsolationClass, Policy, PolicyScope, RevisionConfig, RevisionNumber, StoreRevision,
    UsageCursor, UsageDelta, UsagePeriod, UsageQuery,
};
use serde_json::{Value, json};

use super::cluster::{Answer, Cluster, component};
use super::problem;

fn scope(text: &str) -> PolicyScope {
    text.parse().unwrap()
}

async fn set(c: &Cluster, scope: &str, policy: Value) -> Answer {
    let answer = c.admin(Method::PUT, &format!("/v1/policies/{scope}"), Some(policy)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

async fn pushed(c: &Cluster, app: &str, config: Value) -> Answer {
    let (digest, bytes) = component(b"x");
    c.client().put_component(&digest, bytes).await.unwrap();
    c.admin(Method::PUT, &format!("/v1/apps/{app}"), Some(json!({"org": "clinic", "space": "wards"}))).await;
    let new = json!({"digest": digest.as_str(), "config": config});
    c.admin(Method::POST, &format!("/v1/apps/{app}/revisions"), Some(new)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_set_by_admins_read_by_those_concerned_and_versioned() {
    let c = Cluster::start().await;
    let client = c.client();
    let org_admin = c.token("olga", json!({"role": "admin", "org": "clinic"})).await;
    let viewer = c.token("vera", json!({"role": "viewer"})).await;
    let before = client.get_policy(&scope("org:clinic")).await.unwrap();
    assert_eq!((before.etag, before.value.policy), (StoreRevision(0), Policy::default()));
    for token in [&org_admin, &viewer] {
        let body = Some(json!({"cpu_weight": 1000}));
        problem(&c.call(Method::PUT, "/v1/policies/org:clinic", Some(token), body).await, 403, "forbidden");
        problem(&c.call(Method::DELETE, "/v1/policies/org:clinic", Some(token), None).await, 403, "forbidden");
    }
    set(&c, "cluster", json!({"isolation": "shared", "cpu_weight": 50})).await;
    let made = set(&c, "org:clinic", json!({"isolation": "process", "max_memory_bytes": 64 << 20})).await;
    set(&c, "org:other", json!({"coarse_clocks": true})).await;
    set(&c, "app:clinic:shop", json!({"max_instances": 3})).await;
    let seen = client.get_policy(&scope("app:clinic:shop")).await.unwrap().value;
    assert_eq!(seen.effective.policy.isolation, Some(IsolationClass::Process));
    assert_eq!(seen.effective.source("isolation"), Some(&scope("org:clinic")));
    assert_eq!((seen.effective.policy.cpu_weight, seen.policy.cpu_weight), (Some(50), None));
    assert_eq!(seen.updated_by.as_deref(), Some("admin"));
    let listed = c.call(Method::GET, "/v1/policies", Some(&org_admin), None).await.json();
    let scopes: Vec<_> = listed["items"].as_array().unwrap().iter().map(|p| p["scope"].as_str().unwrap()).collect();
    assert_eq!(scopes, ["app:clinic:shop", "cluster", "org:clinic"]);
    problem(&c.call(Method::GET, "/v1/policies/org:other", Some(&org_admin), None).await, 403, "forbidden");
    assert_eq!(c.call(Method::GET, "/v1/policies/cluster", Some(&org_admin), None).await.status, 200);
    assert_eq!(c.call(Method::GET, "/v1/policies/org:other", Some(&viewer), None).await.status, 200);
    // Versions.
    let etag = made.header("etag").to_owned();
    let headers = |etag: &str| {
        vec![("content-type".to_owned(), "application/json".to_owned()), ("if-match".into(), etag.to_owned())]
    };
    let put = async |etag: &str, body: &str| {
        let owned = headers(etag);
        let headers: Vec<_> = owned.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        c.raw(Method::PUT, "/v1/policies/org:clinic", &headers, body.as_bytes()).await
    };
    problem(&put("\"0\"", "{}").await, 412, "precondition-failed");
    let same = put(&etag, r#"{"isolation": "process", "max_memory_bytes": 67108864}"#).await;
    assert_eq!((same.status, same.header("etag")), (200, etag.as_str()), "no change, no new version");
    assert_eq!(put(&etag, "{}").await.status, 200);
    problem(&put(&etag, "{}").await, 412, "precondition-failed");
    // What cannot be.
    let bad = async |scope: &str, body: Value| c.admin(Method::PUT, &format!("/v1/policies/{scope}"), Some(body)).await;
    assert_eq!(problem(&bad("cluster", json!({"cpu_weight": 0})).await, 422, "invalid")["field"], "cpu_weight");
    assert_eq!(problem(&bad("cluster", json!({"group": "A b"})).await, 422, "invalid")["field"], "group");
    assert_eq!(problem(&bad("app:clinic:x", json!({"max_apps": 1})).await, 422, "invalid")["field"], "max_apps");
    problem(&bad("cluster", json!({"isolation": "vm"})).await, 400, "bad-request");
    problem(&bad("cluster", json!({"max_memory": 1})).await, 400, "bad-request");
    problem(&bad("everywhere", json!({})).await, 422, "invalid");
    client.delete_policy(&scope("org:clinic"), None).await.unwrap();
    client.delete_policy(&scope("org:clinic"), None).await.unwrap();
    assert_eq!(client.get_policy(&scope("org:clinic")).await.unwrap().etag, StoreRevision(0));
    let events = c.admin(Method::GET, "/v1/events?limit=1000", None).await.json();
    let told = |action: &str, outcome: &str, detail: &str| {
        let mut events = events["items"].as_array().unwrap().iter();
        events
            .any(|e| e["action"] == action && e["outcome"] == outcome && e["detail"].as_str().unwrap().contains(detail))
    };
    assert!(told("policy.set", "ok", "isolation unset -> \"process\"; max_memory_bytes unset -> 67108864"), "{events}");
    assert!(told("policy.set", "denied", "") && told("policy.set", "failed", "cpu_weight"), "{events}");
    assert!(told("policy.unset", "ok", "nothing changed"), "{events}");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_over_a_quota_is_refused_by_field_value_and_quota() {
    let c = Cluster::start().await;
    assert_eq!(pushed(&c, "shop", json!({})).await.status, 200);
    set(&c, "org:clinic", json!({"max_memory_bytes": 64 << 20, "max_instances": 2, "max_apps": 2})).await;
    // What runs goes on, and says so.
    let status = c.admin(Method::GET, "/v1/apps/shop/status", None).await.json();
    let notes = status["notes"].to_string();
    assert!(notes.contains("config.limits.memory_bytes: 128 MiB is more than the quota of 64 MiB"), "{notes}");
    assert!(notes.contains("org clinic") && notes.contains("what runs goes on"), "{notes}");
    // Any new revision is refused: push, env, bind.
    for new in [json!({"config": {"concurrency": 7}}), json!({"env": {"A": "b"}})] {
        let refused = problem(&c.admin(Method::POST, "/v1/apps/shop/revisions", Some(new)).await, 422, "invalid");
        assert_eq!(refused["field"], "config.limits.memory_bytes");
        let why = refused["detail"].as_str().unwrap();
        assert!(why.contains("128 MiB") && why.contains("64 MiB") && why.contains("max_memory_bytes"), "{why}");
        assert!(why.contains("the policy of org clinic") && why.contains("an admin"), "{why}");
    }
    let small = json!({"config": {"limits": {"memory_bytes": 32 << 20}}});
    assert_eq!(c.admin(Method::POST, "/v1/apps/shop/revisions", Some(small)).await.status, 200);
    let status = c.admin(Method::GET, "/v1/apps/shop/status", None).await.json();
    assert!(!status["notes"].to_string().contains("quota"), "{status}");
    // Back to a revision from before the quota is a way around it.
    let back = c.admin(Method::PATCH, "/v1/apps/shop", Some(json!({"current": 1}))).await;
    let refused = problem(&back, 422, "invalid");
    assert!(
        refused["field"] == "current" && refused["detail"].as_str().unwrap().contains("revision 1: 128 MiB"),
        "{refused}"
    );
    // Scale.
    let scaled = c.admin(Method::PATCH, "/v1/apps/shop", Some(json!({"instances": 3}))).await;
    let refused = problem(&scaled, 422, "invalid");
    assert!(
        refused["field"] == "instances"
            && refused["detail"].as_str().unwrap().contains("3 is more than the quota of 2")
    );
    assert_eq!(c.admin(Method::PATCH, "/v1/apps/shop", Some(json!({"instances": 2}))).await.status, 200);
    set(&c, "org:clinic", json!({"max_instances": 0, "max_apps": 2})).await;
    assert_eq!(
        c.admin(Method::PATCH, "/v1/apps/shop", Some(json!({"instances": 1}))).await.status,
        200,
        "fewer is fine"
    );
    // The nearest scope wins.
    set(&c, "app:clinic:shop", json!({"max_instances": 9})).await;
    assert_eq!(c.admin(Method::PATCH, "/v1/apps/shop", Some(json!({"instances": 5}))).await.status, 200);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_org_has_no_more_apps_than_it_may_however_many_are_made_at_once() {
    let c = Cluster::start().await;
    set(&c, "org:clinic", json!({"max_apps": 3})).await;
    let make = |n: usize| {
        let c = &c;
        async move { c.admin(Method::PUT, &format!("/v1/apps/a{n}"), Some(json!({"org": "clinic"}))).await }
    };
    let answers = futures::future::join_all((0..10).map(make)).await;
    let made = answers.iter().filter(|a| a.status == 200).count();
    assert_eq!(made, 3, "{:?}", answers.iter().map(|a| a.text()).collect::<Vec<_>>());
    let refused = answers.iter().find(|a| a.status == 422).unwrap();
    let body = problem(refused, 422, "invalid");
    assert!(body["detail"].as_str().unwrap().contains("4 is more than the quota of 3 (max_apps"), "{body}");
    // Another org has its own count; one that goes makes room.
    assert_eq!(c.admin(Method::PUT, "/v1/apps/other", Some(json!({}))).await.status, 200);
    let apps = c.client().list_apps(None, 100).await.unwrap().items;
    let gone = apps.iter().find(|a| a.app.org.as_str() == "clinic").unwrap().app.name.clone();
    c.client().delete_app(&gone, None).await.unwrap();
    assert_eq!(c.admin(Method::PUT, "/v1/apps/next", Some(json!({"org": "clinic"}))).await.status, 200);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_say_who_set_them() {
    let c = Cluster::start().await;
    set(&c, "space:clinic:wards", json!({"isolation": "process", "max_cpu_ms": 5000, "cpu_weight": 20})).await;
    assert_eq!(pushed(&c, "shop", json!({"limits": {"cpu_ms": 2000}})).await.status, 200);
    let limits = c.client().app_limits(&"shop".parse().unwrap()).await.unwrap();
    assert_eq!((limits.revision, limits.isolation.class), (Some(RevisionNumber(1)), IsolationClass::Process));
    assert_eq!(limits.isolation_set_by, Some(scope("space:clinic:wards")));
    let json = c.admin(Method::GET, "/v1/apps/shop/limits", None).await.json();
    let row = |name: &str| json["items"].as_array().unwrap().iter().find(|i| i["name"] == name).unwrap().clone();
    let cpu = row("cpu_ms");
    assert_eq!((&cpu["limit"], &cpu["set_by"], &cpu["quota"]), (&json!(2000), &json!("manifest"), &json!(5000)));
    assert_eq!((&row("cpu_weight")["set_by"], &row("time_ms")["set_by"]), (&json!("policy"), &json!("default")));
    let other = c.token("dan", json!({"role": "deployer", "org": "other"})).await;
    problem(&c.call(Method::GET, "/v1/apps/shop/limits", Some(&other), None).await, 403, "forbidden");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_reported_to_those_whose_it_is() {
    let c = Cluster::start().await;
    let hour = |app: &str, org: &str| AppUsageHour {
        app: app.parse().unwrap(),
        org: org.parse().unwrap(),
        hour: Timestamp::now(),
        total: UsageDelta { requests: 3, cpu_us: 7_000, memory_byte_ms: 5_000_000_000, bytes_in: 1, bytes_out: 2 },
    };
    let items = vec![hour("a", "clinic"), hour("b", "clinic"), hour("c", "other")];
    let next = UsageCursor { ledger: 5, change: 3 };
    c.control.usage().fold(&"h1".parse().unwrap(), items, next, Timestamp::now()).await.unwrap();
    let client = c.client();
    let all = client.usage(UsageQuery::default()).await.unwrap();
    assert_eq!(all.items.len(), 3);
    let a = &all.items[0];
    assert_eq!((a.requests, a.cpu_ms, a.memory_mb_s, a.bytes_in, a.bytes_out), (3, 7, 5, 1, 2));
    let first =
        client.usage(UsageQuery { limit: Some(2), by: UsagePeriod::Month, ..UsageQuery::default() }).await.unwrap();
    let rest = client
        .usage(UsageQuery { after: first.next.clone(), by: UsagePeriod::Month, ..UsageQuery::default() })
        .await
        .unwrap();
    assert_eq!((first.items.len(), rest.items.len(), rest.next), (2, 1, None));
    let clinic = c.token("olga", json!({"role": "viewer", "org": "clinic"})).await;
    let own = c.call(Method::GET, "/v1/usage?by=hour", Some(&clinic), None).await.json();
    let apps: Vec<_> = own["items"].as_array().unwrap().iter().map(|r| r["app"].as_str().unwrap()).collect();
    assert_eq!(apps, ["a", "b"]);
    let none = c.call(Method::GET, "/v1/usage?app=c", Some(&clinic), None).await.json();
    assert_eq!(none["items"], json!([]));
    problem(&c.call(Method::GET, "/v1/usage?org=other", Some(&clinic), None).await, 403, "forbidden");
    let only = c.admin(Method::GET, "/v1/usage?org=other&from=2020-01-01T00:00:00Z", None).await.json();
    assert_eq!(only["items"][0]["app"], "c");
    for bad in ["by=year", "from=yesterday", "limit=x", "hours=3"] {
        problem(&c.admin(Method::GET, &format!("/v1/usage?{bad}"), None).await, 400, "bad-request");
    }
    for bad in ["limit=0", "limit=1001", "after=1", "from=2026-01-01T00:00:00Z&to=2025-01-01T00:00:00Z"] {
        problem(&c.admin(Method::GET, &format!("/v1/usage?{bad}"), None).await, 422, "invalid");
    }
    let openapi = c.call(Method::GET, "/v1/openapi.json", None, None).await.json();
    for path in ["/v1/usage", "/v1/policies", "/v1/policies/{scope}", "/v1/apps/{app}/limits"] {
        assert!(openapi["paths"].get(path).is_some(), "{path}");
    }
    // It survives.
    let c = c.restart().await;
    assert_eq!(c.client().usage(UsageQuery::default()).await.unwrap().items.len(), 3);
    assert_eq!(RevisionConfig::default().limits.memory_bytes, Bytes::mib(128), "what the other tests count on");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_shows_its_workers_and_what_they_go_without() {
    use marcato_api::{ConfinementReport, Measure, WorkerStatus};
    let c = Cluster::start().await;
    super::hosts::host(&c, "h1").await;
    let worker = |name: &str, class, missing: Option<Measure>| {
        let mut confinement = ConfinementReport::default();
        for measure in Measure::ALL {
            confinement.had(measure, "");
        }
        if let Some(measure) = missing {
            confinement.not_had(measure, "EPERM");
        }
        WorkerStatus { name: name.into(), pid: Some(7), class, confinement, restarts: 1, resident_bytes: Bytes::mib(9) }
    };
    let mut inventory: marcato_api::Inventory = serde_json::from_value(json!({
        "host": "h1", "version": "0", "started_at": "2026-01-01T00:00:00Z", "generation": 1,
        "capacity": {"memory_bytes": 1, "cpu_millis": 1, "sandboxes": 1},
        "used": {"resident_bytes": 1, "sandbox_bytes": 1, "sandboxes": 1},
        "components": [], "instances": [], "services": [],
    }))
    .unwrap();
    inventory.workers = vec![
        worker("shared", IsolationClass::Shared, None),
        worker("app-shop", IsolationClass::Process, Some(Measure::SystemCallFilter)),
    ];
    let inventory = std::sync::Arc::new(inventory);
    c.control.observed().update(|o| {
        let seen = crate::ObservedHost {
            state: marcato_api::HostState::Up,
            inventory: Some(std::sync::Arc::clone(&inventory)),
            ..crate::ObservedHost::unknown()
        };
        o.hosts.insert("h1".parse().unwrap(), seen);
    });
    let detail = c.client().get_host(&"h1".parse().unwrap()).await.unwrap();
    let told: Vec<_> = detail.worker_list.iter().map(|w| (w.name.as_str(), w.confinement.is_full())).collect();
    assert_eq!(told, [("app-shop", false), ("shared", true)]);
    assert_eq!((detail.host.workers, detail.host.confined), (2, Some(false)));
    let org = c.token("olga", json!({"role": "admin", "org": "clinic"})).await;
    problem(&c.call(Method::GET, "/v1/hosts/h1", Some(&org), None).await, 403, "forbidden");
    problem(&c.admin(Method::GET, "/v1/hosts/h9", None).await, 404, "not-found");
    let metrics = c.admin(Method::GET, "/metrics", None).await.text();
    for line in [
        r#"marcato_host_workers{host="h1",class="shared",confinement="full"} 1"#,
        r#"marcato_host_workers{host="h1",class="process",confinement="partial"} 1"#,
        r#"marcato_host_workers_without{host="h1",measure="system_call_filter"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    c.stop().await;
}
