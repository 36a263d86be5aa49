//! Hosts that come, go and fall silent: cordon, drain, remove, labels, and a host that is given up and comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use marcato_api::{AppUpdate, HostDuty, HostId, HostView, InstancePhase, PageOf};
use marcato_tests::{Answer, Cluster, Deploy, Load, guest, stop_and_continue, until};

use crate::cluster;

const BOUND: Duration = Duration::from_secs(60);

fn hello(answer: &Answer) -> bool {
    answer.text() == "hello\n"
}

/// Where the app's instances are that answer, in order.
async fn at(cluster: &Cluster, app: &str) -> Result<Vec<String>> {
    let status = cluster.admin()?.status(app).await?;
    let ready = status.instances.iter().filter(|i| i.phase == InstancePhase::Ready);
    let mut at: Vec<_> = ready.map(|i| i.host.to_string()).collect();
    at.sort();
    Ok(at)
}

async fn come_to(cluster: &Cluster, app: &str, hosts: &[&str]) -> Result<()> {
    until(&format!("{app} to be at {hosts:?}"), BOUND, || async {
        Ok((at(cluster, app).await? == hosts).then_some(()))
    })
    .await
}

async fn hosts(cluster: &Cluster) -> Result<BTreeMap<HostId, HostView>> {
    let page: PageOf<HostView> = cluster.admin()?.get("/v1/hosts").await?;
    Ok(page.items.into_iter().map(|h| (h.id.clone(), h)).collect())
}

/// What a verb says, and whether it succeeded.
async fn say(cluster: &Cluster, arguments: &[&str]) -> Result<(bool, String)> {
    let out = cluster.cli(arguments).await?;
    let text = [out.stdout, out.stderr].concat();
    Ok((out.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_drained_and_removed_and_no_request_fails() -> Result<()> {
    let cluster = cluster(2).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("shop").instances(2)).await?;
    come_to(&cluster, "shop", &["h1", "h2"]).await?;
    let load = Load::start(&cluster.app("shop")?, "/", 6, hello);
    load.answered(50).await?;
    let (done, said) = say(&cluster, &["hosts", "remove", "h1"]).await?;
    assert!(!done && said.contains("marcato hosts drain h1"), "{said}");
    let (done, said) = say(&cluster, &["hosts", "drain", "h1"]).await?;
    assert!(done && said.contains("h1 is empty"), "{said}");
    assert_eq!(at(&cluster, "shop").await?, ["h2", "h2"]);
    let (_, said) = say(&cluster, &["hosts"]).await?;
    assert!(said.contains("up, draining"), "{said}");
    let (done, said) = say(&cluster, &["hosts", "remove", "h1"]).await?;
    assert!(done, "{said}");
    cluster.admin()?.scale("shop", 3).await?;
    come_to(&cluster, "shop", &["h2", "h2", "h2"]).await?;
    assert_eq!(hosts(&cluster).await?.keys().map(HostId::as_str).collect::<Vec<_>>(), ["h2"]);
    load.answered(50).await?;
    let report = load.stop().await;
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    for (arguments, wanted) in [
        (&["hosts", "drain", "h1"][..], "there is no host h1"),
        (&["hosts", "cordon", "H1"], "invalid value"),
        (&["hosts", "label", "h2", "disk"], "NAME=VALUE"),
    ] {
        let (done, said) = say(&cluster, arguments).await?;
        assert!(!done && said.contains(wanted), "{arguments:?}: {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_services_data_is_removed_by_force_only() -> Result<()> {
    let cluster = cluster(2).await?;
    let (done, said) = say(&cluster, &["services", "create", "cart", "--kind", "keyvalue"]).await?;
    assert!(done, "{said}");
    let (mut refused, mut removed) = (0, 0);
    for host in ["h1", "h2"] {
        let (done, said) = say(&cluster, &["hosts", "remove", host]).await?;
        if done {
            removed += 1;
        } else {
            assert!(said.contains("has the data of cart"), "{said}");
            refused += 1;
            let (done, said) = say(&cluster, &["hosts", "remove", host, "--force"]).await?;
            assert!(done, "{said}");
        }
    }
    assert_eq!((refused, removed), (1, 1), "one of them owns it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_go_where_their_labels_say_and_cordoned_hosts_get_nothing() -> Result<()> {
    let cluster = cluster(2).await?;
    let (done, said) = say(&cluster, &["hosts", "label", "h2", "disk=ssd", "rack=b"]).await?;
    assert!(done && said.contains("disk=ssd rack=b"), "{said}");
    let ssd = |c: &mut marcato_api::RevisionConfig| {
        c.placement.require.insert("disk".into(), "ssd".into());
    };
    let admin = cluster.admin()?;
    admin.deploy(&guest("guest-behaviour")?, &Deploy::new("shop").instances(2).with(ssd)).await?;
    assert_eq!(at(&cluster, "shop").await?, ["h2", "h2"]);
    let (done, said) = say(&cluster, &["hosts", "cordon", "h2"]).await?;
    assert!(done && said.contains("2 instances stay"), "{said}");
    assert_eq!(hosts(&cluster).await?[&HostId::new("h2")?].duty, HostDuty::Cordoned);
    let more = AppUpdate { instances: Some(3), ..AppUpdate::default() };
    assert_eq!(admin.update("shop", &more).await?.status, 200);
    until("it to be said why there are not three", BOUND, || async {
        let notes = admin.status("shop").await?.notes.join("; ");
        let why = ["1 of 2 hosts: takes nothing new", "1 of 2 hosts: has not the labels that it requires (disk=ssd)"];
        Ok(why.iter().all(|w| notes.contains(w)).then_some(()))
    })
    .await?;
    let (done, said) = say(&cluster, &["hosts", "uncordon", "h2"]).await?;
    assert!(done, "{said}");
    come_to(&cluster, "shop", &["h2", "h2", "h2"]).await
}

/// Its worker goes on; what is gone is the daemon, so nobody can say what is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_host_is_given_up_and_reconciled_when_it_comes_back() -> Result<()> {
    let cluster = cluster(3).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("shop").instances(2)).await?;
    let first = at(&cluster, "shop").await?;
    assert_eq!(first.len(), 2);
    let number = first[0].trim_start_matches('h').parse()?;
    let load = Load::start(&cluster.app("shop")?, "/", 4, hello);
    load.answered(50).await?;
    let stopped = stop_and_continue(cluster.host(number)?)?;
    let others: Vec<&str> = ["h1", "h2", "h3"].into_iter().filter(|h| *h != first[0]).collect();
    come_to(&cluster, "shop", &others).await?;
    load.answered(50).await?;
    drop(stopped);
    let id = HostId::new(&first[0])?;
    until("the host to be back and empty", BOUND, || async {
        let host = hosts(&cluster).await?.remove(&id).context("it did not leave")?;
        Ok((host.state == marcato_api::HostState::Up && host.instances == 0).then_some(()))
    })
    .await?;
    assert_eq!(at(&cluster, "shop").await?, others, "and nothing moved again");
    let report = load.stop().await;
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    Ok(())
}
