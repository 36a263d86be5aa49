//! An app's owner learns why a request failed; a client learns that it did, and a guest learns nothing of either.

use std::time::Duration;

use anyhow::{Context as _, Result};
use http::Method;
use marcato_api::{Bytes, DebugToken, Millis, NewDebugToken, OwnerProblem, Problem, ProblemKind, admin_paths};
use marcato_tests::{Admin, Answer, Deploy, Target, empty, full, guest, until};

use crate::{Running, cluster};

const JSON: (&str, &str) = ("accept", "application/problem+json");

async fn token(admin: &Admin, app: &str, ttl_s: u64) -> Result<String> {
    let new = NewDebugToken { ttl_s: Some(ttl_s) };
    let made: DebugToken = admin.call(Method::POST, &admin_paths::debug_token(&app.parse()?), &new).await?;
    Ok(made.token)
}

/// An app under tight limits, and another one.
async fn with_apps() -> Result<Running> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    let component = guest("guest-behaviour")?;
    let shop = Deploy::new("shop").with(|c| {
        // Far enough apart that a busy machine does not turn one into the other.
        c.limits.cpu_ms = Millis(200);
        c.limits.first_byte_ms = Millis(4_000);
        c.limits.memory_bytes = Bytes::mib(32);
        c.limits.request_body_bytes = Bytes::kib(64);
    });
    admin.deploy(&component, &shop).await?;
    admin.deploy(&component, &Deploy::new("other")).await?;
    Ok(cluster)
}

async fn ask(app: &Target, path: &str, debug: &str, bytes: usize) -> Result<Answer> {
    let headers = [JSON, ("marcato-debug", debug)];
    let headers = if debug.is_empty() { &headers[..1] } else { &headers[..] };
    let method = if bytes > 0 { Method::POST } else { Method::GET };
    let body = if bytes > 0 { full(vec![7_u8; bytes]) } else { empty() };
    app.request(method, path, headers, body).await
}

fn problem(answer: &Answer) -> Result<OwnerProblem> {
    serde_json::from_slice(&answer.body).with_context(|| answer.text())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_sees_the_limit_and_a_client_the_status() -> Result<()> {
    let cluster = with_apps().await?;
    let (admin, shop) = (cluster.admin()?, cluster.app("shop")?);
    let owner = token(&admin, "shop", 600).await?;
    let stranger = token(&admin, "other", 600).await?;
    let mut ended = token(&admin, "shop", 1).await?;
    until("a token to end", Duration::from_secs(20), || async {
        Ok((ask(&shop, "/", &ended, 0).await?.header("marcato-debug") == "expired").then_some(()))
    })
    .await?;
    // It is not the end alone that is checked.
    ended.replace_range(10..11, if &ended[10..11] == "A" { "B" } else { "A" });
    let cases = [
        ("/loop", 0, ProblemKind::CpuExhausted, "cpu_ms", 200, None),
        ("/alloc?mb=64", 0, ProblemKind::GuestFailed, "memory_bytes", 32 << 20, None),
        ("/sink", 65 << 10, ProblemKind::TooLarge, "request_body_bytes", 64 << 10, Some(65 << 10)),
        ("/never", 0, ProblemKind::TimedOut, "first_byte_ms", 4_000, None),
    ];
    for (path, bytes, kind, limit, value, used) in cases {
        let answer = ask(&shop, path, &owner, bytes).await?;
        assert_eq!((answer.status, answer.header("marcato-debug")), (kind.status(), "valid"), "{}", answer.text());
        assert_eq!(answer.header("content-type"), Problem::CONTENT_TYPE);
        let told = problem(&answer)?;
        assert_eq!((told.problem.kind, told.problem.status), (kind, kind.status()), "{told:?}");
        assert_eq!((told.limit.as_deref(), told.limit_value, told.used), (Some(limit), Some(value), used), "{told:?}");
        assert!(told.problem.detail.contains(limit), "{told:?}");
        assert_eq!(told.app, Some("shop".parse()?));
        let (host, revision) = (told.host.context("host")?, told.revision.context("revision")?);
        assert_eq!((host.as_str(), revision.0), ("h1", 1));
        assert!(told.instance_id.context("instance_id")?.as_str().starts_with("shop-r1-"));
        let id = told.problem.request_id.context("request_id")?;
        assert_eq!(id, answer.header("x-request-id"));
        // The log has the same, under the same id.
        until("the line in the log", Duration::from_secs(20), || async {
            let lines = admin.logs("shop").await?;
            Ok(lines.iter().any(|l| l.request_id == id && l.text.contains(limit)).then_some(()))
        })
        .await?;

        for (debug, said) in [("", ""), (&stranger, "invalid"), (&ended, "invalid"), ("md_", "invalid")] {
            let answer = ask(&shop, path, debug, bytes).await?;
            assert_eq!((answer.status, answer.header("marcato-debug")), (kind.status(), said), "{}", answer.text());
            let told = problem(&answer)?;
            assert_eq!((told.problem.kind, told.problem.title.as_ref()), (kind, kind.title()));
            assert_eq!(told, OwnerProblem::from(told.problem.clone()), "status and title alone");
            assert!(!answer.text().contains("reached") && !answer.text().contains("h1"), "{}", answer.text());
            // What a body may have at most is told to everybody in general terms, so that a client can help itself.
            assert!(kind == ProblemKind::TooLarge || !answer.text().contains(limit), "{}", answer.text());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_is_explained_to_the_owner_line_by_line() -> Result<()> {
    let cluster = with_apps().await?;
    let (admin, shop) = (cluster.admin()?, cluster.app_secure("shop")?);
    let owner = token(&admin, "shop", 600).await?;
    let told = problem(&ask(&shop, "/trap", &owner, 0).await?)?;
    assert_eq!((told.problem.kind, &told.limit), (ProblemKind::GuestFailed, &None));
    assert!((1..=16).contains(&told.reason.len()), "{told:?}");
    assert!(told.reason.iter().any(|line| line.contains("unreachable")), "{told:?}");
    let id = told.problem.request_id.context("request_id")?;
    until("the same lines in the log", Duration::from_secs(20), || async {
        let lines = admin.logs("shop").await?;
        let found = |text: &String| lines.iter().any(|l| l.request_id == id && l.text == *text);
        Ok(told.reason.iter().all(found).then_some(()))
    })
    .await?;
    let client = ask(&shop, "/trap", "", 0).await?;
    assert_eq!(client.status, 500);
    assert!(!client.text().contains("unreachable") && problem(&client)?.reason.is_empty(), "{}", client.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_ends_at_the_edge_and_lives_as_long_as_its_app() -> Result<()> {
    let mut cluster = with_apps().await?;
    let (admin, shop) = (cluster.admin()?, cluster.app("shop")?);
    let owner = token(&admin, "shop", 3_600).await?;
    let headers = [("marcato-debug", owner.as_str()), ("x-marcato-explain", "1"), ("x-seen", "yes")];
    let seen = shop.request(Method::GET, "/headers", &headers, empty()).await?;
    assert_eq!((seen.status, seen.header("marcato-debug")), (200, "valid"));
    assert!(seen.text().contains("x-seen: yes"), "{}", seen.text());
    for hidden in ["marcato-debug", "x-marcato", &owner] {
        assert!(!seen.text().to_lowercase().contains(&hidden.to_lowercase()), "{hidden}: {}", seen.text());
    }
    assert_eq!(shop.get("/").await?.header("marcato-debug"), "", "who sends none hears nothing of it");

    // A stopped app, and a power cut, after which the token is as good as before.
    assert_eq!(admin.set_state("shop", marcato_api::AppState::Stopped).await?.status, 200);
    until("the owner to read that it is stopped", Duration::from_secs(20), || async {
        let told = ask(&shop, "/", &owner, 0).await?.text();
        Ok(told.contains("next: marcato start shop").then_some(()))
    })
    .await?;
    cluster.crash_and_restart().await?;
    let (admin, shop) = (cluster.admin()?, cluster.app("shop")?);
    until("the token to be known again", Duration::from_secs(20), || async {
        Ok((ask(&shop, "/", &owner, 0).await?.header("marcato-debug") == "valid").then_some(()))
    })
    .await?;
    assert!(!cluster.logs().contains(&owner), "no log has the token");

    let gone = admin.raw(Method::DELETE, &admin_paths::app(&"shop".parse()?), "", Vec::new()).await?;
    assert!(gone.status < 300, "{}", gone.text());
    admin.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    let answer = ask(&shop, "/trap", &owner, 0).await?;
    assert_eq!((answer.status, answer.header("marcato-debug")), (500, "invalid"), "{}", answer.text());
    assert!(problem(&answer)?.reason.is_empty(), "{}", answer.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_makes_a_token_that_curl_can_use() -> Result<()> {
    let cluster = with_apps().await?;
    let made = cluster.cli(&["app", "debug", "shop", "--for", "30m"]).await?;
    let (printed, note) = (String::from_utf8(made.stdout)?, String::from_utf8(made.stderr)?);
    assert!(made.status.success(), "{note}");
    let debug = printed.trim();
    assert!(debug.starts_with("md_") && debug.len() == 57, "{printed}");
    let ca = cluster.endpoints.ca.display();
    assert!(
        note.contains(&format!("curl -i --cacert {ca} -H 'Marcato-Debug: {debug}' https://shop.localhost:")),
        "{note}"
    );
    let told = problem(&ask(&cluster.app("shop")?, "/loop", debug, 0).await?)?;
    assert_eq!(told.limit.as_deref(), Some("cpu_ms"));
    let json = cluster.cli(&["app", "debug", "shop", "--json"]).await?;
    let json: DebugToken = serde_json::from_slice(&json.stdout)?;
    assert_eq!(json.app, "shop".parse()?);
    let long = cluster.cli(&["app", "debug", "shop", "--for", "25h"]).await?;
    assert_eq!(long.status.code(), Some(2), "{}", String::from_utf8_lossy(&long.stderr));
    assert!(String::from_utf8_lossy(&long.stderr).contains("ttl_s"), "{}", String::from_utf8_lossy(&long.stderr));
    Ok(())
}
