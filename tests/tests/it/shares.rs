//! The CPU between apps: by the weights that operators set, and up to a cap.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use marcato_api::{Millis, RevisionConfig};
use marcato_tests::{Cluster, Deploy, Target, guest, until};
use tokio::task::JoinSet;

use crate::cluster;
use crate::usage::{settled, wide};

/// How long guests spin, by their own clock.
const SPIN_MS: u32 = 4_000;

/// An app placed with what the operator says of it.
async fn placed(
    cluster: &Cluster,
    app: &str,
    component: &str,
    limits: fn(&mut RevisionConfig),
    policy: &[&str],
) -> Result<()> {
    let (admin, component) = (cluster.admin()?, guest(component)?);
    let deploy = || Deploy::new(app).with(limits);
    admin.deploy(&component, &deploy()).await?;
    let set = cluster.cli(&[&["policy", "set", "--app", app], policy].concat()).await?;
    ensure!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    // Its next revision is placed with the policy, whatever became of the first.
    admin.deploy(&component, &deploy()).await?;
    Ok(())
}

/// Asks over so many connections, again and again, and counts requests that came to the end of their CPU time.
fn loops(clients: &mut JoinSet<()>, app: &Target, connections: usize) -> Arc<AtomicU64> {
    let ended = Arc::new(AtomicU64::new(0));
    for _ in 0..connections {
        let (app, ended) = (app.clone(), Arc::clone(&ended));
        clients.spawn(async move {
            while app.get("/loop").await.is_ok_and(|answer| answer.status == 504) {
                ended.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    ended
}

/// Each request takes the same CPU time, so requests are what an app got, whatever else the worker spends.
#[tokio::test(flavor = "multi_thread")]
async fn apps_that_want_all_there_is_get_it_by_their_weights() -> Result<()> {
    let cluster = cluster(1).await?;
    let limits = |c: &mut RevisionConfig| c.limits.cpu_ms = Millis(200);
    placed(&cluster, "light", "guest-behaviour", limits, &["--cpu-weight", "100"]).await?;
    placed(&cluster, "heavy", "guest-behaviour", limits, &["--cpu-weight", "300"]).await?;
    let mut clients = JoinSet::new();
    let light = loops(&mut clients, &cluster.app("light")?, 4);
    let heavy = loops(&mut clients, &cluster.app("heavy")?, 4);
    let got = |count: &AtomicU64| count.load(Ordering::Relaxed);
    // From when neither is alone.
    let bound = Duration::from_secs(120);
    until("both to be served", bound, || async { Ok((got(&light) > 0 && got(&heavy) > 0).then_some(())) }).await?;
    let before = (got(&light), got(&heavy));
    until("shares", bound, || async { Ok((got(&heavy) - before.1 >= 24).then_some(())) }).await?;
    let (light, heavy) = (got(&light) - before.0, got(&heavy) - before.1);
    clients.shutdown().await;
    // 8; the four in flight take turns, so they end together, just before or just after.
    assert!((3..=14).contains(&light), "{light} beside {heavy}");
    Ok(())
}

/// So many requests at once, each of which spins.
async fn spin(cluster: &Cluster, app: &str, requests: usize) -> Result<()> {
    let (target, path) = (cluster.app(app)?, format!("/spin?ms={SPIN_MS}"));
    let answers = try_join_all((0..requests).map(|_| target.get(&path))).await.context(app.to_owned())?;
    ensure!(answers.iter().all(|answer| answer.status == 200), "{app}: {answers:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_gets_no_more_than_its_cap_and_its_requests_are_answered() -> Result<()> {
    let cluster = cluster(1).await?;
    placed(&cluster, "capped", "guest-hostile", wide, &["--cpu-cap-millis", "100"]).await?;
    spin(&cluster, "capped", 3).await?;
    let used = settled(&cluster, &["capped"], 3).await?.cpu_ms;
    // A tenth of a core for as long as they spun; without a cap they use several times as much on any machine that
    // other tests leave a core. Beside it: a burst, the turns that were under way, the work around requests.
    assert!(used <= u64::from(SPIN_MS) / 10 + 500, "{used} ms");
    let limits = cluster.cli(&["app", "show", "capped", "--limits", "--json"]).await?;
    let shown: serde_json::Value = serde_json::from_slice(&limits.stdout)?;
    let rows = shown["limits"].as_array().or(shown["items"].as_array()).context("limits")?;
    let row = rows.iter().find(|row| row["name"] == "cpu_cap_millis").context("cpu_cap_millis")?;
    assert!(row["limit"] == 100 && row["fired"].as_u64() > Some(0), "{row}");
    Ok(())
}
