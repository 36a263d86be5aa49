//! Components that trap, loop, allocate, never answer, flood: each meets its limit, the client gets the
//! right status, the log names the limit, and the neighbour does not notice.
//!
//! Here: an app under limits of its own. Below `hostile/`: one test per attack, each of which works first
//! where no limit stands against it, and then does not; see `arena`.

mod arena;
mod bodies;
mod budgets;
mod cache;
mod clocks;
mod components;
mod cpu;
mod egress;
mod encoder;
mod handles;
mod heads;
mod logs;
mod memory;
mod subtasks;
mod tenants;
mod traps;
mod waits;

use std::time::Duration;

use anyhow::Result;
use http::Method;
use marcato_api::{Bytes, LogStream, Millis};
use marcato_tests::{Answer, Deploy, Load, full, guest, until};

use crate::{Running, cluster};

fn hello(answer: &Answer) -> bool {
    answer.text() == "hello\n"
}

/// A cluster with a hostile app under tight limits and a neighbour under the defaults.
async fn with_neighbour() -> Result<Running> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    let component = guest("guest-behaviour")?;
    admin.deploy(&component, &Deploy::new("neighbour")).await?;
    let hostile = Deploy::new("hostile").with(|c| {
        c.concurrency = 4;
        c.queue = 2;
        c.queue_timeout_ms = Millis(300);
        c.limits.memory_bytes = Bytes::mib(32);
        c.limits.instance_memory_bytes = Bytes::mib(128);
        c.limits.time_ms = Millis(2_000);
        c.limits.cpu_ms = Millis(300);
        c.limits.request_body_bytes = Bytes::kib(64);
        c.limits.response_body_bytes = Bytes::mib(1);
    });
    admin.deploy(&component, &hostile).await?;
    Ok(cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_limit_gives_its_status_and_the_neighbour_goes_on() -> Result<()> {
    let cluster = with_neighbour().await?;
    let admin = cluster.admin()?;
    let load = Load::start(&cluster.app("neighbour")?, "/", 4, hello);
    let hostile = cluster.app("hostile")?;

    let trapped = hostile.get("/trap").await?;
    assert_eq!(trapped.status, 500, "{}", trapped.text());
    assert!(!trapped.text().contains("wasm backtrace"), "no insides to clients: {}", trapped.text());
    let panicked = hostile.get("/panic").await?;
    assert_eq!(panicked.status, 500, "{}", panicked.text());
    let spun = hostile.get("/loop").await?;
    assert_eq!(spun.status, 504, "{}", spun.text());
    let silent = hostile.get("/never").await?;
    assert_eq!(silent.status, 504, "{}", silent.text());
    let greedy = hostile.get("/alloc?mb=64").await?;
    assert_eq!(greedy.status, 500, "{}", greedy.text());
    let long = hostile.request(Method::POST, "/sink", &[], full(vec![7_u8; 65 << 10])).await?;
    assert_eq!(long.status, 413, "{}", long.text());

    for named in ["cpu", "time", "memory", "request_body_bytes"] {
        until(&format!("a platform line that names the {named} limit"), Duration::from_secs(10), || async {
            let lines = admin.logs("hostile").await?;
            let found = lines.iter().any(|l| l.stream == LogStream::Platform && l.text.to_lowercase().contains(named));
            if !found {
                anyhow::bail!("lines: {:?}", lines.iter().map(|l| &l.text).collect::<Vec<_>>());
            }
            Ok(Some(()))
        })
        .await?;
    }
    let panic = admin.logged("hostile", "the guest panics, as asked").await?;
    assert_eq!(panic.stream, LogStream::Stderr);
    assert!(!panic.request_id.is_empty(), "a line knows its request");

    // Only those sandboxes died.
    assert_eq!(hostile.get("/").await?.text(), "hello\n");
    load.answered(50).await?;
    let report = load.stop().await;
    assert!(report.failures.is_empty(), "the neighbour failed: {:?}", report.failures);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_past_concurrency_and_queue_get_503_with_retry_after() -> Result<()> {
    let cluster = with_neighbour().await?;
    let hostile = cluster.app("hostile")?;
    let calls = (0..16).map(|_| async { hostile.get("/sleep?ms=900").await });
    let answers = futures::future::try_join_all(calls).await?;
    let ok = answers.iter().filter(|a| a.status == 200).count();
    let refused: Vec<_> = answers.iter().filter(|a| a.status == 503).collect();
    assert!((4..=8).contains(&ok), "4 run at once, a few may follow from the queue: {ok}");
    assert_eq!(ok + refused.len(), 16, "{answers:?}");
    assert!(refused.iter().all(|a| !a.header("retry-after").is_empty()), "{refused:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_past_its_limit_is_cut_and_never_passes_as_whole() -> Result<()> {
    let cluster = with_neighbour().await?;
    let hostile = cluster.app("hostile")?;
    let whole = hostile.get("/big?bytes=1000000").await?;
    assert_eq!((whole.status, whole.body.len()), (200, 1_000_000));
    match hostile.get("/big?bytes=3000000").await {
        Ok(answer) => assert_ne!(answer.status, 200, "got {} bytes as if whole", answer.body.len()),
        Err(error) => assert!(format!("{error:#}").contains("cut short"), "{error:#}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_flood_is_cut_and_counted() -> Result<()> {
    let cluster = with_neighbour().await?;
    let admin = cluster.admin()?;
    let flood = cluster.app("neighbour")?.get("/flood?lines=50000").await?;
    assert!(flood.status == 200 || flood.status == 504, "{}", flood.status);
    // What was dropped is told from time to time, and when a request ends.
    let cut = until("a line that tells what was dropped", Duration::from_secs(20), || async {
        cluster.app("neighbour")?.get("/").await?;
        Ok(admin.logs("neighbour").await?.into_iter().find(|line| line.text.contains("dropped")))
    })
    .await?;
    assert_eq!(cut.stream, LogStream::Platform);
    assert!(cut.text.chars().any(|c| c.is_ascii_digit()), "it says how many: {}", cut.text);
    let lines = admin.logs("neighbour").await?;
    assert!(lines.len() <= 1000, "a tail is a tail: {}", lines.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_nothing_that_was_not_granted() -> Result<()> {
    let cluster = with_neighbour().await?;
    let neighbour = cluster.app("neighbour")?;
    for name in ["PATH", "HOME", "MARCATO_HOME", "MARCATO_TOKEN"] {
        assert_eq!(neighbour.get(&format!("/env?name={name}")).await?.text(), "unset", "{name}");
    }
    let port = cluster.endpoints.http.rsplit(':').next().unwrap_or_default().trim_end_matches('/').to_owned();
    for url in [format!("http://127.0.0.1:{port}/"), "http://169.254.169.254/".to_owned()] {
        let answer = neighbour.get(&format!("/outbound?url={url}")).await?;
        assert!(answer.text().contains("refused"), "{url}: {} {}", answer.status, answer.text());
    }
    Ok(())
}
