//! Moments that are not a load: start-up, push to first 200, the first request on a host that has the
//! code on disk, a worker that was killed, memory at rest.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::Method;
use marcato_tests::{Cluster, ClusterOptions, Pid, empty, kill_now, resident_bytes, tree, until};
use rand::Rng as _;

use crate::serving::Marcato;

/// Medians, in milliseconds and bytes.
#[derive(Debug, Clone)]
pub struct Moments {
    /// `marcato up` on an empty folder, until it says ready.
    pub start_fresh_ms: f64,
    /// The same on existing data, until the app there answers.
    pub start_again_ms: f64,
    /// `marcato push FILE` of a component never seen, until it answers 200.
    pub push_ms: f64,
    /// How large that component was, in bytes.
    pub push_size: u64,
    /// First request on a host that was killed and started again.
    pub first_request_ms: f64,
    /// From the death of a worker that stood long to the answer of the one that follows, at the host.
    pub worker_again_ms: f64,
    /// Resident memory of `marcato up` at rest, all its processes.
    pub idle_resident: u64,
    /// The same by proportional share: memory that processes share is counted once.
    pub idle_proportional: u64,
}

/// Takes each moment `times` times.
pub async fn measure(component: &Path, times: usize) -> Result<Moments> {
    let (mut fresh, mut again, mut push, mut first) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut worker = Vec::new();
    let folder = tempfile::Builder::new().prefix("marcato-bench-").tempdir()?;
    let mut idle = (0, 0);
    let mut push_size = 0;
    for round in 0..times {
        let data = folder.path().join(format!("{round}/data"));
        let begin = Instant::now();
        let cluster = Cluster::start_in(ClusterOptions::single(), &data).await?;
        fresh.push(milliseconds(begin));
        idle = at_rest(&cluster).await?;

        let (took, size) = push_new(&cluster, component, folder.path()).await?;
        push.push(took);
        push_size = size;
        drop(cluster);

        let begin = Instant::now();
        let cluster = Cluster::start_in(ClusterOptions::single(), &data).await?;
        let app = cluster.app("pushed")?;
        until("the app to answer after a restart", Duration::from_secs(30), || async {
            Ok((app.get("/").await?.status == 200).then_some(()))
        })
        .await?;
        again.push(milliseconds(begin));
        let marcato = Marcato { cluster };
        first.push(first_request(&marcato).await?);
        worker.push(worker_again(&marcato).await?);
    }
    Ok(Moments {
        start_fresh_ms: median(fresh),
        start_again_ms: median(again),
        push_ms: median(push),
        push_size,
        first_request_ms: median(first),
        worker_again_ms: median(worker),
        idle_resident: idle.0,
        idle_proportional: idle.1,
    })
}

fn milliseconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1000.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Memory once nothing is in motion: the least of some readings over two seconds.
async fn at_rest(cluster: &Cluster) -> Result<(u64, u64)> {
    let mut least = (u64::MAX, u64::MAX);
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let pids = tree(cluster.pid());
        let resident = pids.iter().map(|p| resident_bytes(*p)).sum::<Result<u64>>()?;
        let share = pids.iter().map(|p| proportional_bytes(*p)).sum::<Result<u64>>()?;
        least = (least.0.min(resident), least.1.min(share));
    }
    Ok(least)
}

pub(crate) fn proportional_bytes(pid: Pid) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).context("no Pss")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

/// A copy of the component that no cache has seen: a custom section with random bytes is added.
async fn push_new(cluster: &Cluster, component: &Path, folder: &Path) -> Result<(f64, u64)> {
    let mut bytes = std::fs::read(component)?;
    let salt: [u8; 16] = rand::rng().random();
    bytes.extend([0, 21, 4]);
    bytes.extend(b"salt");
    bytes.extend(salt);
    let file = folder.join("pushed.wasm");
    std::fs::write(&file, &bytes)?;
    let begin = Instant::now();
    let out = cluster.cli(&["push", file.to_str().context("path")?, "--name", "pushed", "--json"]).await?;
    if !out.status.success() {
        anyhow::bail!("push: {}", String::from_utf8_lossy(&out.stderr));
    }
    let app = cluster.app("pushed")?;
    until("the pushed app to answer", Duration::from_secs(30), || async {
        Ok((app.get("/").await?.status == 200).then_some(()))
    })
    .await?;
    Ok((milliseconds(begin), bytes.len() as u64))
}

/// Kills the host, waits for its successor to have read its ledger, then times one request.
async fn first_request(marcato: &Marcato) -> Result<f64> {
    let cluster = &marcato.cluster;
    let host = cluster.host(1)?;
    let before = cluster.admin()?.status("pushed").await?.instances.first().context("no instance")?.id.clone();
    kill_now(host)?;
    until("the host to be back", Duration::from_secs(30), || async { Ok((cluster.host(1)? != host).then_some(())) })
        .await?;
    cluster.admin()?.ready("pushed", 1).await?;
    let subject = marcato.direct("first", "pushed").await?;
    let headers: Vec<_> = subject.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    // An inventory may still be the old host's: a request to another app's name would be refused without
    // touching the code, and tells when the new daemon listens.
    until("the host's ingress to answer", Duration::from_secs(30), || async {
        let unknown = [(headers[0].0, "nobody"), headers[1]];
        Ok((subject.target.request(Method::GET, "/", &unknown, empty()).await?.status >= 400).then_some(()))
    })
    .await?;
    let mut connection = subject.target.connect().await?;
    let begin = Instant::now();
    let answer = connection.request(Method::GET, "/", &headers, empty()).await?;
    let took = milliseconds(begin);
    if answer.status != 200 {
        anyhow::bail!("first request to {before}: {} {}", answer.status, answer.text());
    }
    Ok(took)
}

/// The daemon starts a worker again without a pause when it lived so long.
const STOOD_LONG: Duration = Duration::from_secs(11);

/// Kills the shared worker and asks at once: the connection waits for the next one.
async fn worker_again(marcato: &Marcato) -> Result<f64> {
    let subject = marcato.direct("again", "pushed").await?;
    let headers: Vec<_> = subject.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    tokio::time::sleep(STOOD_LONG).await;
    let pid = shared_worker(&marcato.cluster).await?;
    kill_now(pid)?;
    let begin = Instant::now();
    // Until the kernel has taken the dead one apart, a connection may still go to it and end with it.
    while begin.elapsed() < Duration::from_secs(30) {
        let asked = subject.target.request(Method::GET, "/", &headers, empty()).await;
        if asked.is_ok_and(|answer| answer.status == 200) {
            return Ok(milliseconds(begin));
        }
    }
    anyhow::bail!("no worker answers after one was killed")
}

async fn shared_worker(cluster: &Cluster) -> Result<Pid> {
    let out = cluster.cli(&["hosts", "show", "h1", "--json"]).await?;
    let shown: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let workers = shown["worker_list"].as_array().context("no list of workers")?;
    let pid = workers.iter().find(|w| w["name"] == "shared").and_then(|w| w["pid"].as_i64());
    Ok(Pid::from_raw(i32::try_from(pid.context("no shared worker")?)?))
}
