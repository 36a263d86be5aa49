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

/// The process of a worker of the first host.
async fn worker(cluster: &Cluster, name: &str) -> Result<Pid> {
    until(&format!("the worker {name}"), Duration::from_secs(30), || async {
        let out = cluster.cli(&["hosts", "show", "h1", "--json"]).await?;
        let shown: serde_json::Value = serde_json::from_slice(&out.stdout)?;
        let workers = shown["worker_list"].as_array().context("workers")?;
        let pid = workers.iter().find(|w| w["name"] == name).and_then(|w| w["pid"].as_i64());
        Ok(pid.and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw))
    })
    .await
}

/// Two apps, of which `shop` has a worker of its own.
async fn apart() -> Result<Running> {
    let cluster = cluster(1).await?;
    let set = cluster.cli(&["policy", "set", "--org", "default", "--app", "shop", "--isolation", "process"]).await?;
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    for app in ["shop", "other"] {
        cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new(app)).await?;
    }
    Ok(cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_a_worker_fails_only_what_was_in_flight_in_it() -> Result<()> {
    let cluster = apart().await?;
    let [shop, other] = ["shop", "other"].map(|app| cluster.app(app));
    let (load, neighbour) = (Load::start(&shop?, "/", WORKERS, hello), Load::start(&other?, "/", WORKERS, hello));
    load.answered(100).await?;
    neighbour.answered(100).await?;
    let shared = worker(&cluster, "shared").await?;
    let first = worker(&cluster, "app-shop").await?;
    let mut own = first;
    for _ in 0..2 {
        kill_now(own)?;
        load.answered(200).await?;
        neighbour.answered(100).await?;
        // The router's picture of the host is a moment old.
        own = until("another process of the worker", Duration::from_secs(30), || async {
            let now = worker(&cluster, "app-shop").await?;
            Ok((now != own).then_some(now))
        })
        .await?;
    }
    let (report, neighbours) = (load.stop().await, neighbour.stop().await);
    assert_only_in_flight(&report, 2);
    assert!(neighbours.failures.is_empty(), "{} ok, failed: {:#?}", neighbours.ok, neighbours.failures);
    assert_eq!(worker(&cluster, "shared").await?, shared, "the other app's worker is the one that it was");
    assert_ne!(first, shared);
    Ok(())
}

/// The daemon holds the listening socket: what arrives while there is no worker is served by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn connections_wait_while_their_worker_is_dead() -> Result<()> {
    let cluster = apart().await?;
    let shop = cluster.app("shop")?;
    // Each has its code by now: another process of it is the only thing that needs the daemon.
    for app in [&shop, &cluster.app("other")?] {
        assert!(hello(&app.get("/").await?));
    }
    let killed = worker(&cluster, "app-shop").await?;
    let socket = ingress_of(&cluster, "shop").await?;
    // No daemon starts another one for as long as this is held.
    let frozen = stop_and_continue(cluster.host(1)?)?;
    kill_now(killed)?;
    until("the worker to be gone", Duration::from_secs(10), || async {
        Ok((!marcato_tests::is_alive(killed)).then_some(()))
    })
    .await?;
    let instance = cluster.admin()?.status("shop").await?.instances[0].id.clone();
    let waiting: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (target, instance) = (Target::unix(socket.clone(), "shop.localhost"), instance.clone());
            tokio::spawn(async move {
                let sent = [(headers::INSTANCE, instance.as_str()), (headers::REQUEST_ID, "test-waiting")];
                target.request(Method::GET, "/", &sent, empty()).await
            })
        })
        .collect();
    // Each has connected: they are in the socket's queue.
    until("connections to wait", Duration::from_secs(10), || async {
        Ok((waiting_at(&socket)? >= WORKERS).then_some(()))
    })
    .await?;
    assert!(waiting.iter().all(|w| !w.is_finished()), "there is nobody to answer");
    assert!(hello(&cluster.app("other")?.get("/").await?), "another worker serves without its daemon");
    drop(frozen);
    for answer in waiting {
        let answer = answer.await??;
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello\n"));
    }
    assert!(hello(&shop.get("/").await?));
    Ok(())
}

/// The socket of the worker that has this app's instance.
async fn ingress_of(cluster: &Cluster, app: &str) -> Result<String> {
    let host = cluster.host(1)?;
    let shared = ingress_socket(cluster, host)?;
    let folder = std::path::Path::new(&shared).parent().context("a folder")?;
    let mut found = std::fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    // Of the workers beside the shared one there is this app's alone.
    let own = found.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("w-")));
    Ok(own.with_context(|| format!("no socket of a worker for {app}"))?.to_string_lossy().into_owned())
}

/// Connections to a Unix socket that nobody accepted: the kernel lists the ends that wait under the socket's own path, in
/// state 02 (proc(5), /proc/net/unix; `SS_CONNECTING`).
fn waiting_at(socket: &str) -> Result<usize> {
    let list = std::fs::read_to_string("/proc/net/unix")?;
    Ok(list.lines().filter(|l| l.ends_with(socket)).filter(|l| l.split_whitespace().nth(5) == Some("02")).count())
}
