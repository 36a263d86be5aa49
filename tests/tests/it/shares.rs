//! The CPU between apps: up to the cap that operators set. Weights are shown beside the lane, in `runtime/src/share`.

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use marcato_tests::{Cluster, Deploy, guest};

use crate::cluster;
use crate::usage::{settled, wide};

/// How long guests spin, by their own clock.
const SPIN_MS: u32 = 4_000;

/// An app whose guests spin, placed with what the operator says of it.
async fn spinner(cluster: &Cluster, app: &str, policy: &[&str]) -> Result<()> {
    let (admin, component) = (cluster.admin()?, guest("guest-hostile")?);
    admin.deploy(&component, &Deploy::new(app).with(wide)).await?;
    let set = cluster.cli(&[&["policy", "set", "--app", app], policy].concat()).await?;
    ensure!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    // Its next revision is placed with the policy, whatever became of the first.
    admin.deploy(&component, &Deploy::new(app).with(wide)).await?;
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
    spinner(&cluster, "capped", &["--cpu-cap-millis", "100"]).await?;
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
