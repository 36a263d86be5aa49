//! What operators set and what they see: quotas refuse, an isolation class rolls without a lost request, and usage is
//! counted once whatever is killed.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use marcato_tests::{Answer, Cluster, Deploy, Load, guest, kill_now, until};
use serde_json::Value;

use crate::cluster;

const BOUND: Duration = Duration::from_secs(30);

fn hello(answer: &Answer) -> bool {
    answer.text() == "hello\n"
}

fn told(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stderr), String::from_utf8_lossy(&out.stdout))
}

async fn json(cluster: &Cluster, line: &str) -> Result<Value> {
    let arguments: Vec<&str> = line.split(' ').chain(["--json"]).collect();
    let out = cluster.cli(&arguments).await?;
    if !out.status.success() {
        bail!("{line}: {}", told(&out));
    }
    serde_json::from_slice(&out.stdout).with_context(|| told(&out))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_refuses_what_is_new_and_lets_what_runs_go_on() -> Result<()> {
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    let set = json(&cluster, "policy set --app shop --max-memory 64MiB --max-instances 2 --cpu-weight 50").await?;
    assert_eq!((&set["scope"], &set["policy"]["max_memory_bytes"]), (&"app:default:shop".into(), &(64 << 20).into()));
    let refused = cluster.cli(&["env", "set", "shop", "A"]).await?;
    let why = told(&refused);
    assert!(!refused.status.success() && why.contains("128 MiB is more than the quota of 64 MiB"), "{why}");
    assert!(why.contains("the policy of app shop"), "{why}");
    let refused = cluster.cli(&["scale", "shop", "3"]).await?;
    assert!(told(&refused).contains("3 is more than the quota of 2"), "{}", told(&refused));
    assert!(hello(&cluster.app("shop")?.get("/").await?), "what runs goes on");
    let status = json(&cluster, "app show shop").await?;
    assert!(status["notes"].to_string().contains("what runs goes on"), "{status}");

    let limits = json(&cluster, "app show shop --limits").await?;
    let row = |name: &str| limits["items"].as_array().and_then(|i| i.iter().find(|l| l["name"] == name)).cloned();
    let memory = row("memory_bytes").context("memory_bytes")?;
    assert_eq!((&memory["limit"], &memory["quota"]), (&(128 << 20).into(), &(64 << 20).into()), "{memory}");
    assert_eq!(row("cpu_weight").context("cpu_weight")?["set_by"], "policy");
    let table = cluster.cli(&["app", "show", "shop", "--limits"]).await?;
    assert!(told(&table).contains("memory_bytes") && told(&table).contains("app:default:shop"), "{}", told(&table));

    json(&cluster, "policy unset --app shop max-memory").await?;
    let left = json(&cluster, "policy show --app shop").await?;
    assert_eq!((&left["policy"]["max_memory_bytes"], &left["policy"]["cpu_weight"]), (&Value::Null, &50.into()));
    assert!(cluster.cli(&["policy", "unset", "--app", "shop", "--yes"]).await?.status.success());
    json(&cluster, "scale shop 3").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_isolation_class_rolls_the_app_and_loses_no_request() -> Result<()> {
    let cluster = cluster(2).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("shop").instances(2)).await?;
    let instances = async || -> Result<Vec<String>> {
        let status = cluster.admin()?.status("shop").await?;
        Ok(status.instances.iter().map(|i| i.id.to_string()).collect())
    };
    let load = Load::start(&cluster.app("shop")?, "/", 4, hello);
    load.answered(50).await?;
    let steps = [
        ("--isolation process", "app-shop"),
        ("--isolation shared --group wards", "shared-wards"),
        ("--cpu-weight 10", "shared-wards"),
    ];
    for (policy, worker) in steps {
        let before = instances().await?;
        json(&cluster, &format!("policy set --org default {policy}")).await?;
        until(&format!("other instances after {policy}"), BOUND, || async {
            let now = instances().await?;
            Ok((now.len() == 2 && now.iter().all(|i| !before.contains(i))).then_some(()))
        })
        .await?;
        cluster.admin()?.ready("shop", 2).await?;
        load.answered(50).await?;
        for host in ["h1", "h2"] {
            let shown = json(&cluster, &format!("hosts show {host}")).await?;
            let workers = shown["worker_list"].as_array().context("workers")?;
            assert!(workers.iter().any(|w| w["name"] == worker && w["pid"].is_u64()), "{policy}: {shown}");
        }
    }
    let report = load.stop().await;
    assert!(report.failures.is_empty(), "{} ok, failed: {:#?}", report.ok, report.failures);
    let limits = json(&cluster, "app show shop --limits").await?;
    assert_eq!((&limits["isolation"]["group"], &limits["isolation_set_by"]), (&"wards".into(), &"org:default".into()));
    Ok(())
}

/// Requests and CPU of an app, over all rows of the report.
async fn used(cluster: &Cluster, app: &str) -> Result<(u64, u64)> {
    let report = json(cluster, &format!("usage --app {app} --by hour")).await?;
    let rows = report["items"].as_array().context("items")?;
    let sum = |field: &str| rows.iter().filter_map(|r| r[field].as_u64()).sum();
    Ok((sum("requests"), sum("cpu_ms")))
}

async fn counted(cluster: &Cluster, app: &str, requests: u64) -> Result<()> {
    until(&format!("{requests} requests of {app} to be counted"), BOUND, || async {
        Ok((used(cluster, app).await?.0 >= requests).then_some(()))
    })
    .await?;
    assert_eq!(used(cluster, app).await?.0, requests);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_counted_once_whatever_is_killed() -> Result<()> {
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    let ask = async |times: usize| -> Result<()> {
        let app = cluster.app("shop")?;
        for _ in 0..times {
            until("an answer", BOUND, || async { Ok(app.get("/").await.ok().filter(hello).map(drop)) }).await?;
        }
        Ok(())
    };
    ask(30).await?;
    counted(&cluster, "shop", 30).await?;
    let host = cluster.host(1)?;
    kill_now(host)?;
    until("another host daemon", BOUND, || async {
        let pid = cluster.host(1)?;
        Ok((pid != host).then_some(()))
    })
    .await?;
    ask(20).await?;
    counted(&cluster, "shop", 50).await?;
    let router = cluster.router()?;
    kill_now(router)?;
    until("another router", BOUND, || async {
        let pid = cluster.router()?;
        Ok((pid != router).then_some(()))
    })
    .await?;
    ask(10).await?;
    counted(&cluster, "shop", 60).await?;
    assert!(used(&cluster, "shop").await?.1 > 0, "CPU is measured");
    let csv = cluster.cli(&["usage", "--csv", "--by", "month"]).await?;
    let lines: Vec<String> = String::from_utf8_lossy(&csv.stdout).lines().map(str::to_owned).collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with("start,org,app,requests") && lines[1].contains(",shop,60,"),
        "{lines:?}"
    );
    Ok(())
}
