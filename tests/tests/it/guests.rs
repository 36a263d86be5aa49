//! Components of other toolchains and of both ABIs run unchanged; a sandbox is fresh unless reuse was
//! asked for.

use anyhow::Result;
use http::Method;
use marcato_tests::{Deploy, full, guest, guest_if_built};

use crate::cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_wasi_0_3_component_serves_and_echoes() -> Result<()> {
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&guest("guest-async")?, &Deploy::new("third")).await?;
    let third = cluster.app("third")?;
    assert_eq!(third.get("/").await?.text(), "hello from WASI 0.3\n");
    let body = vec![42_u8; 3 << 20];
    let echoed = third.request(Method::POST, "/echo", &[], full(body.clone())).await?;
    assert_eq!(echoed.status, 200);
    assert!(echoed.body == body, "{} of {} bytes came back", echoed.body.len(), body.len());
    assert_eq!(third.get("/trap").await?.status, 500);
    assert_eq!(third.get("/counter").await?.text(), "1\n", "a fresh sandbox each");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_is_fresh_unless_reuse_was_asked_for() -> Result<()> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    let component = guest("guest-behaviour")?;
    admin.deploy(&component, &Deploy::new("fresh")).await?;
    let fresh = cluster.app("fresh")?;
    for _ in 0..5 {
        assert_eq!(fresh.get("/counter").await?.text(), "1\n");
    }
    let reused = Deploy::new("reused").with(|c| {
        c.concurrency = 1;
        c.reuse.max_requests = 3;
        c.reuse.idle_ms = marcato_api::Millis::secs(60);
    });
    admin.deploy(&component, &reused).await?;
    let reused = cluster.app("reused")?;
    let mut seen = Vec::new();
    for _ in 0..7 {
        seen.push(reused.get("/counter").await?.text().trim().to_owned());
    }
    assert!(seen.contains(&"3".to_owned()), "it is reused: {seen:?}");
    assert!(!seen.contains(&"4".to_owned()), "but not more often than allowed: {seen:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wasi_0_3_sandbox_is_reused_when_asked_for() -> Result<()> {
    let cluster = cluster(1).await?;
    let deploy = Deploy::new("many").with(|c| {
        c.concurrency = 1;
        c.reuse.max_requests = 1000;
        c.reuse.idle_ms = marcato_api::Millis::secs(60);
    });
    cluster.admin()?.deploy(&guest("guest-async")?, &deploy).await?;
    let many = cluster.app("many")?;
    for _ in 0..4 {
        assert_eq!(many.get("/sleep").await?.status, 200);
    }
    assert_eq!(many.get("/counter").await?.text(), "5\n");
    Ok(())
}

/// Each request sleeps in the guest; the count that it answers is that of its sandbox, so a count above one
/// means that requests met in one.
#[tokio::test(flavor = "multi_thread")]
async fn requests_meet_in_one_wasi_0_3_sandbox_when_asked_for() -> Result<()> {
    let cluster = cluster(1).await?;
    let deploy = |name: &str, concurrent: u32| {
        Deploy::new(name).with(|c| {
            c.concurrency = 8;
            c.reuse.max_requests = 1000;
            c.reuse.concurrent = concurrent;
            c.reuse.idle_ms = marcato_api::Millis::secs(60);
        })
    };
    let admin = cluster.admin()?;
    for (name, concurrent) in [("shared", 8), ("alone", 1)] {
        admin.deploy(&guest("guest-async")?, &deploy(name, concurrent)).await?;
        let app = cluster.app(name)?;
        let together = futures::future::join_all((0..8).map(|_| app.get("/sleep"))).await;
        let mut counts = Vec::new();
        for answer in together {
            counts.push(answer?.text().trim().parse::<u32>()?);
        }
        let most = counts.iter().max().copied().unwrap_or(0);
        if concurrent > 1 {
            assert!(most > 1, "they met in one sandbox: {counts:?}");
        } else {
            assert_eq!(most, 1, "each had a sandbox to itself: {counts:?}");
        }
    }
    Ok(())
}

/// 13 MB, SpiderMonkey inside: compiled at push in its child process, not on the request path.
#[tokio::test(flavor = "multi_thread")]
async fn a_javascript_component_runs_unchanged() -> Result<()> {
    let component = match guest_if_built("guest-javascript") {
        Ok(path) => path,
        Err(reason) => {
            println!("SKIPPED: no JavaScript component: {reason}");
            return Ok(());
        }
    };
    let size = std::fs::metadata(&component)?.len();
    assert!(size > 10_000_000, "it is a real one: {size} bytes");
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&component, &Deploy::new("script")).await?;
    let script = cluster.app("script")?;
    assert_eq!(script.get("/").await?.text(), "hello from JavaScript\n");
    let json: serde_json::Value = serde_json::from_slice(&script.get("/json?a=1").await?.body)?;
    assert_eq!(json["query"]["a"], "1");
    let echoed = script.request(Method::POST, "/echo", &[], full("zurück")).await?;
    assert_eq!(echoed.text(), "zurück");
    assert_eq!(script.get("/throw").await?.status, 500);
    Ok(())
}

/// 19 MB, CPython inside: a fresh one for every request, and one that serves on when reuse was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_python_component_runs_unchanged() -> Result<()> {
    let component = match guest_if_built("guest-python") {
        Ok(path) => path,
        Err(reason) => {
            println!("SKIPPED: no Python component: {reason}");
            return Ok(());
        }
    };
    let size = std::fs::metadata(&component)?.len();
    assert!(size > 10_000_000, "it is a real one: {size} bytes");
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    admin.deploy(&component, &Deploy::new("snake")).await?;
    let snake = cluster.app("snake")?;
    assert_eq!(snake.get("/").await?.text(), "hello from Python\n");
    let json: serde_json::Value = serde_json::from_slice(&snake.get("/json?a=1&b=%C3%BC").await?.body)?;
    assert_eq!((json["query"]["a"].as_str(), json["query"]["b"].as_str()), (Some("1"), Some("ü")));
    // More than one read and more than one write in the guest.
    let body: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let echoed = snake.request(Method::POST, "/echo", &[], full(body.clone())).await?;
    assert!(echoed.status == 200 && echoed.body == body, "{}: {} bytes came back", echoed.status, echoed.body.len());
    assert_eq!(snake.get("/nowhere").await?.status, 404);
    assert_eq!(snake.get("/throw").await?.status, 500);
    admin.logged("snake", "thrown, as asked").await?;
    for _ in 0..3 {
        assert_eq!(snake.get("/counter").await?.text(), "1\n", "a fresh sandbox each");
    }

    let reused = Deploy::new("pet").with(|c| {
        c.concurrency = 1;
        c.reuse.max_requests = 100;
        c.reuse.idle_ms = marcato_api::Millis::secs(60);
    });
    admin.deploy(&component, &reused).await?;
    let pet = cluster.app("pet")?;
    let mut most = 0;
    for _ in 0..5 {
        let body = full(b"again".to_vec());
        assert_eq!(pet.request(Method::POST, "/echo", &[], body).await?.text(), "again");
        most = most.max(pet.get("/counter").await?.text().trim().parse::<u32>()?);
    }
    assert!(most > 1, "a sandbox serves on: {most}");
    Ok(())
}
