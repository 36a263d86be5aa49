//! Push, serve, scale, roll, roll back, stop, start, delete: what a developer does all day, and no request
//! fails while they do it.

use std::time::Duration;

use anyhow::Result;
use http::Method;
use marcato_api::{
    App, AppName, AppState, AppUpdate, NewRevision, PageOf, ProblemKind, Revision, RevisionPhase, admin_paths,
};
use marcato_tests::{Answer, Deploy, Load, guest, until};

use crate::cluster;

fn is_text(_: &Answer) -> bool {
    true
}

fn labelled(app: &str, label: &str) -> Deploy {
    Deploy::new(app).with(|c| {
        c.env.insert("REVISION".into(), label.into());
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_component_answers_on_both_listeners() -> Result<()> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    let revision = admin.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    assert_eq!(revision.number.0, 1);

    let plain = cluster.app("shop")?.get("/").await?;
    assert_eq!((plain.status, plain.text().as_str()), (200, "hello\n"));
    let secure = cluster.app_secure("shop")?.get("/").await?;
    assert_eq!((secure.status, secure.text().as_str()), (200, "hello\n"));

    let status = admin.status("shop").await?;
    assert!(status.urls.iter().any(|u| u.starts_with("https://shop.localhost")), "{:?}", status.urls);
    assert!(status.notes.is_empty(), "{:?}", status.notes);

    let unknown = cluster.app("nobody")?.get("/").await?;
    assert_eq!(unknown.status, ProblemKind::NoRoute.status());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_guest_sees_of_a_request_is_the_clients_and_nothing_internal() -> Result<()> {
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    let shop = cluster.app("shop")?;
    let sent = [
        ("x-marcato-instance", "another"),
        ("x-marcato-error", "no"),
        ("x-forwarded-for", "203.0.113.9"),
        ("x-mine", "kept"),
    ];
    let answer = shop.request(Method::GET, "/headers", &sent, marcato_tests::empty()).await?;
    let seen = answer.text().to_lowercase();
    assert!(seen.contains("x-mine: kept"), "{seen}");
    assert!(!seen.contains("x-marcato-"), "{seen}");
    assert!(seen.contains("x-request-id: "), "{seen}");
    assert!(seen.contains("x-forwarded-for: "), "{seen}");
    assert!(seen.contains("x-forwarded-proto: http"), "{seen}");
    assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("x-marcato-")), "{:?}", answer.headers);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_under_load_fails_no_request() -> Result<()> {
    let cluster = cluster(2).await?;
    let admin = cluster.admin()?;
    admin.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    let load = Load::start(&cluster.app("shop")?, "/", 8, is_text);
    load.answered(50).await?;
    admin.scale("shop", 4).await?;
    let hosts: std::collections::BTreeSet<_> =
        admin.status("shop").await?.instances.into_iter().map(|i| i.host).collect();
    assert_eq!(hosts.len(), 2, "four instances are spread over both hosts");
    load.answered(50).await?;
    admin.scale("shop", 1).await?;
    load.answered(50).await?;
    let report = load.stop().await;
    assert!(report.failures.is_empty(), "{:?} of {}", report.failures, report.ok);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_push_and_a_rollback_fail_no_request() -> Result<()> {
    let cluster = cluster(2).await?;
    let admin = cluster.admin()?;
    let component = guest("guest-behaviour")?;
    admin.deploy(&component, &labelled("shop", "one").instances(2)).await?;
    let shop = cluster.app("shop")?;
    let load = Load::start(&shop, "/sleep?ms=30", 8, is_text);
    load.answered(30).await?;

    let second = admin.deploy(&component, &labelled("shop", "two").instances(2)).await?;
    assert_eq!(second.number.0, 2);
    until("only the second revision to answer", Duration::from_secs(10), || async {
        Ok((shop.get("/id").await?.text() == "two").then_some(()))
    })
    .await?;

    let back = AppUpdate { current: Some(marcato_api::RevisionNumber(1)), ..Default::default() };
    assert_eq!(admin.update("shop", &back).await?.status, 200);
    until("the first revision to answer again", Duration::from_secs(30), || async {
        Ok((shop.get("/id").await?.text() == "one").then_some(()))
    })
    .await?;
    load.answered(30).await?;
    let report = load.stop().await;
    assert!(report.failures.is_empty(), "{:?} of {}", report.failures, report.ok);

    let app: App = admin.get(&admin_paths::app(&AppName::new("shop")?)).await?;
    assert_eq!(app.current.map(|n| n.0), Some(1));
    let page: PageOf<Revision> = admin.get(&admin_paths::revisions(&AppName::new("shop")?)).await?;
    assert_eq!(page.items.iter().map(|r| r.number.0).collect::<Vec<_>>(), [2, 1], "newest first");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_cannot_start_leaves_the_stable_one_serving() -> Result<()> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    admin.deploy(&guest("guest-behaviour")?, &labelled("shop", "good")).await?;
    // A component all right, but one without an HTTP handler.
    let empty = b"\0asm\x0d\0\x01\0".to_vec();
    let digest = marcato_api::Digest::of(&empty);
    let uploaded = admin.raw(Method::PUT, &admin_paths::component(&digest), "application/wasm", empty).await?;
    let new = NewRevision {
        digest: Some(digest),
        config: None,
        env: Default::default(),
        bind: Vec::new(),
        unbind: Vec::new(),
        reason: "test".into(),
    };
    if uploaded.status < 300 {
        let path = admin_paths::revisions(&AppName::new("shop")?);
        let answer = admin.send(Method::POST, &path, &new).await?;
        if answer.status < 300 {
            let revision: Revision = serde_json::from_slice(&answer.body)?;
            let error = admin.rolled("shop", revision.number).await.expect_err("it has no handler");
            assert!(error.to_string().contains("Failed"), "{error:#}");
            let failed: Revision = admin.get(&admin_paths::revision(&AppName::new("shop")?, revision.number)).await?;
            assert_eq!(failed.phase, RevisionPhase::Failed);
            assert!(failed.failure.is_some_and(|f| !f.is_empty()), "a failure has a reason");
        } else {
            assert_eq!(answer.status, 422, "{}", answer.text());
        }
    } else {
        assert_eq!(uploaded.status, 422, "{}", uploaded.text());
    }
    let answer = cluster.app("shop")?.get("/id").await?;
    assert_eq!((answer.status, answer.text().as_str()), (200, "good"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_start_restart_and_delete() -> Result<()> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    admin.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    let shop = cluster.app("shop")?;

    assert_eq!(admin.set_state("shop", AppState::Stopped).await?.status, 200);
    let refused = until("a stopped app to answer 503", Duration::from_secs(20), || async {
        let answer = shop.get("/").await?;
        Ok((answer.status == 503).then_some(answer))
    })
    .await?;
    assert!(refused.text().contains("stopped"), "{}", refused.text());

    assert_eq!(admin.set_state("shop", AppState::Started).await?.status, 200);
    admin.ready("shop", 1).await?;
    until("a started app to answer", Duration::from_secs(10), || async {
        Ok((shop.get("/").await?.status == 200).then_some(()))
    })
    .await?;

    let before = admin.status("shop").await?.instances[0].id.clone();
    let load = Load::start(&shop, "/", 4, is_text);
    load.answered(10).await?;
    assert_eq!(admin.update("shop", &AppUpdate { restart: Some(true), ..Default::default() }).await?.status, 200);
    until("the instance to be replaced", Duration::from_secs(30), || async {
        let instances = admin.status("shop").await?.instances;
        Ok((instances.len() == 1 && instances[0].id != before).then_some(()))
    })
    .await?;
    load.answered(10).await?;
    let report = load.stop().await;
    assert!(report.failures.is_empty(), "a restart fails no request: {:?}", report.failures);

    let path = admin_paths::app(&AppName::new("shop")?);
    let deleted = admin.raw(Method::DELETE, &path, "", Vec::new()).await?;
    assert!(deleted.status < 300, "{} {}", deleted.status, deleted.text());
    until("a deleted app's route to be gone", Duration::from_secs(10), || async {
        Ok((shop.get("/").await?.status == 404).then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_update_is_refused() -> Result<()> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    admin.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    let path = admin_paths::app(&AppName::new("shop")?);
    let read = admin.raw(Method::GET, &path, "", Vec::new()).await?;
    let etag = read.header("etag").to_owned();
    assert!(!etag.is_empty(), "an app carries its version");
    admin.scale("shop", 2).await?;
    let stale = admin
        .send_if_match(Method::PATCH, &path, &etag, &AppUpdate { instances: Some(3), ..Default::default() })
        .await?;
    assert_eq!(stale.status, 412, "{}", stale.text());
    assert_eq!(admin.status("shop").await?.app.instances, 2);
    Ok(())
}
