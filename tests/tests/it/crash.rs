//! kill -9 of the router, of a host, of both and of everything, under load. Allowed to fail: what was in
//! flight on the process that was killed, which is at most one request per worker of the load.

use std::time::Duration;

use anyhow::{Context, Result};
use http::Method;
use marcato_api::{Inventory, headers};
use marcato_tests::{
    Answer, Cluster, Deploy, Load, LoadReport, Pid, Target, empty, guest, kill_now, stop_and_continue, until,
};

use crate::{Running, cluster};

const WORKERS: usize = 8;

fn hello(answer: &Answer) -> bool {
    answer.text() == "hello\n"
}

async fn deployed(hosts: u32, instances: u32) -> Result<Running> {
    let cluster = cluster(hosts).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("shop").instances(instances)).await?;
    Ok(cluster)
}

/// Waits until another process has taken the place of the one that was killed.
async fn replaced(cluster: &Cluster, verb: &str, mark: &str, old: Pid) -> Result<Pid> {
    until(&format!("a new `{verb} {mark}` process"), Duration::from_secs(30), || async {
        let pid = cluster.process(verb, mark)?;
        Ok((pid != old).then_some(pid))
    })
    .await
}

fn assert_only_in_flight(report: &LoadReport, kills: usize) {
    assert!(
        report.failures.len() <= WORKERS * kills,
        "{} failures, at most {} were in flight; {} ok: {:#?}",
        report.failures.len(),
        WORKERS * kills,
        report.ok,
        report.failures
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_router_fails_only_what_was_in_flight() -> Result<()> {
    let cluster = deployed(1, 1).await?;
    let load = Load::start(&cluster.app("shop")?, "/", WORKERS, hello);
    load.answered(100).await?;
    let router = cluster.router()?;
    kill_now(router)?;
    replaced(&cluster, "router", "", router).await?;
    load.answered(200).await?;
    let report = load.stop().await;
    assert_only_in_flight(&report, 1);
    // What was acknowledged is there, and the admin API goes on.
    cluster.admin()?.scale("shop", 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_a_host_fails_only_what_was_in_flight() -> Result<()> {
    let cluster = deployed(2, 2).await?;
    let load = Load::start(&cluster.app("shop")?, "/", WORKERS, hello);
    load.answered(100).await?;
    let host = cluster.host(1)?;
    kill_now(host)?;
    replaced(&cluster, "hostd", "h1", host).await?;
    load.answered(200).await?;
    assert_only_in_flight(&load.stop().await, 1);
    cluster.admin()?.ready("shop", 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_only_host_fails_only_what_was_in_flight() -> Result<()> {
    let cluster = deployed(1, 1).await?;
    let load = Load::start(&cluster.app("shop")?, "/", WORKERS, hello);
    load.answered(100).await?;
    let host = cluster.host(1)?;
    kill_now(host)?;
    replaced(&cluster, "hostd", "h1", host).await?;
    load.answered(200).await?;
    assert_only_in_flight(&load.stop().await, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_router_and_host_fails_only_what_was_in_flight() -> Result<()> {
    let cluster = deployed(1, 1).await?;
    let load = Load::start(&cluster.app("shop")?, "/", WORKERS, hello);
    load.answered(100).await?;
    let (router, host) = (cluster.router()?, cluster.host(1)?);
    kill_now(host)?;
    kill_now(router)?;
    replaced(&cluster, "router", "", router).await?;
    replaced(&cluster, "hostd", "h1", host).await?;
    load.answered(200).await?;
    assert_only_in_flight(&load.stop().await, 2);
    cluster.admin()?.scale("shop", 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_everything_acknowledged_is_there() -> Result<()> {
    let mut cluster = deployed(2, 3).await?;
    let admin = cluster.admin()?;
    admin.scale("shop", 4).await?;
    let events = admin.raw(Method::GET, "/v1/events", "", Vec::new()).await?.text();
    assert!(events.contains("app.") || events.contains("revision."), "{events}");

    cluster.crash_and_restart().await?;
    let shop = cluster.app("shop")?;
    until("the app to answer after the restart", Duration::from_secs(20), || async {
        Ok((shop.get("/").await?.status == 200).then_some(()))
    })
    .await?;
    let admin = cluster.admin()?;
    admin.ready("shop", 4).await?;
    let status = admin.status("shop").await?;
    assert_eq!(status.app.current.map(|n| n.0), Some(1));
    Ok(())
}

/// Invariant 4: a host serves its last config with no router in reach.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_restarts_serves_its_ledger_without_a_router() -> Result<()> {
    let cluster = deployed(1, 1).await?;
    let instance = cluster.admin()?.status("shop").await?.instances[0].id.clone();
    let host = cluster.host(1)?;
    let ingress = ingress_socket(&cluster, host)?;
    let frozen = stop_and_continue(cluster.router()?)?;
    kill_now(host)?;
    replaced(&cluster, "hostd", "h1", host).await?;
    let target = Target::unix(ingress, "shop.localhost");
    let sent = [(headers::INSTANCE, instance.as_str()), (headers::REQUEST_ID, "test-ledger")];
    until("the host to serve its ledger", Duration::from_secs(10), || async {
        let answer = target.request(Method::GET, "/", &sent, empty()).await?;
        Ok((answer.status == 200 && answer.text() == "hello\n").then_some(()))
    })
    .await?;
    drop(frozen);
    let shop = cluster.app("shop")?;
    until("the router to go on", Duration::from_secs(20), || async {
        Ok((shop.get("/").await?.status == 200).then_some(()))
    })
    .await
}

/// The path after `--ingress unix:` in the host's arguments.
fn ingress_socket(cluster: &Cluster, host: Pid) -> Result<String> {
    let (_, words) =
        marcato_tests::children(cluster.pid()).into_iter().find(|(pid, _)| *pid == host).context("host")?;
    let at = words.iter().position(|w| w == "--ingress").context("--ingress")?;
    Ok(words[at + 1].strip_prefix("unix:").context("unix ingress")?.to_owned())
}

/// The inventory's type is part of the wire contract; this keeps the import honest.
#[test]
fn an_inventory_without_its_fields_is_refused() {
    assert!(serde_json::from_str::<Inventory>("{\"host\":\"h1\"}").is_err());
}
