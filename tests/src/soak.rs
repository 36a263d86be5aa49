//! A long run of mixed requests with hostile ones among them, and what the processes hold before and after:
//! memory, descriptors, threads, files. What leaks a little at each request shows here and nowhere else.
//!
//! Owns: the mix, the samples and their table. Does not own the verdict: who runs it says what is flat.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::Method;
use http_body_util::BodyExt as _;
use marcato_api::{Bytes, Millis, RevisionConfig};
use tokio::task::JoinSet;

use crate::admin::Deploy;
use crate::client::{Connection, Target, empty, full};
use crate::cluster::{Cluster, guest};
use crate::process;

/// How long the cluster is left alone before a sample: idle sandboxes and connections end meanwhile.
const SETTLE: Duration = Duration::from_secs(4);
/// A request that takes longer is given up; the client leaves, which is one more thing to survive.
const BOUND: Duration = Duration::from_secs(20);

/// What one process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Resident memory that is not a file's, in bytes.
    pub private_bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

/// All processes of a cluster by name, and the files of its data, at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Requests so far.
    pub requests: u64,
    /// By process: `router`, `hostd h1`, `worker shared`.
    pub processes: BTreeMap<String, Held>,
    /// Files in the data folder.
    pub files: u64,
}

/// What came of a soak.
#[derive(Debug)]
pub struct SoakReport {
    /// After the first tenth of the requests, and after every further one.
    pub samples: Vec<Sample>,
    /// Good requests that were answered as they should be.
    pub good: u64,
    /// Good requests that were not, with why; at most 20 are kept.
    pub failed: Vec<String>,
    /// Hostile requests, by what the client got.
    pub hostile: BTreeMap<String, u64>,
    /// How long it took.
    pub took: Duration,
}

/// Good requests: app, path, whether with a body, and how the answer begins.
const GOOD: &[(&str, &str, bool, &str)] = &[
    ("good", "/", false, "hello\n"),
    ("good", "/id", false, "none"),
    ("good", "/echo", true, "xxxx"),
    ("reused", "/", false, "hello\n"),
    ("third", "/", false, "hello from WASI 0.3\n"),
    ("third", "/echo", true, "xxxx"),
];

/// Hostile ones: app, path, and whether the client leaves as soon as it has the head.
const HOSTILE: &[(&str, &str, bool)] = &[
    ("hostile", "/unreachable", false),
    ("hostile", "/oob", false),
    ("hostile", "/recurse?depth=100000000", false),
    ("hostile", "/spin?ms=10000", false),
    ("hostile", "/grow?mb=500", false),
    ("hostile", "/fill?mb=4", false),
    ("hostile", "/handles?kind=fields&n=20000", false),
    ("hostile", "/handles?kind=pollable&n=20000", false),
    ("hostile", "/fields?n=9000&size=10000", false),
    ("hostile", "/log?kind=rate&n=50", false),
    ("hostile", "/log?kind=binary&n=2", false),
    ("hostile", "/endless", false),
    ("hostile", "/endless", true),
    ("hostile", "/unfinished", false),
    ("hostile", "/silent", false),
    ("hostile", "/hold", true),
    ("hostile", "/length?announced=10&sent=5", false),
    ("hostile", "/many-headers?count=500", false),
    ("hostile", "/inject?name=x-a&value=b%0d%0ac", false),
    ("hostile", "/status?code=103", false),
    ("hostile", "/trap?when=after-body", false),
    ("hostile", "/trap?when=in-body", true),
    ("hostile", "/out?authority=127.0.0.1:1", false),
    ("hostile", "/keyvalue?store=none", false),
    ("hostile", "/sleep?ms=100000", false),
    ("swarm", "/fork?n=200", false),
    ("swarm", "/fork?n=20000", false),
    ("swarm", "/orphans?n=50", false),
    ("swarm", "/streams?n=20000", false),
    ("swarm", "/trap-in-subtask", false),
    ("swarm", "/endless", true),
];

fn narrow(c: &mut RevisionConfig) {
    c.concurrency = 16;
    c.limits.memory_bytes = Bytes::mib(16);
    c.limits.instance_memory_bytes = Bytes::mib(256);
    c.limits.time_ms = Millis(400);
    c.limits.cpu_ms = Millis(20);
    c.limits.response_body_bytes = Bytes::kib(256);
}

/// Runs `requests` requests, one in `hostile_in` of them hostile, on `workers` connections.
pub async fn soak(
    cluster: &Cluster,
    requests: u64,
    hostile_in: u64,
    workers: u64,
    said: impl Fn(&Sample),
) -> Result<SoakReport> {
    let admin = cluster.admin()?;
    let reused = Deploy::new("reused").with(|c| c.reuse.max_requests = 100);
    admin.deploy(&guest("guest-behaviour")?, &Deploy::new("good")).await?;
    admin.deploy(&guest("guest-behaviour")?, &reused).await?;
    admin.deploy(&guest("guest-async")?, &Deploy::new("third")).await?;
    admin.deploy(&guest("guest-hostile")?, &Deploy::new("hostile").with(narrow)).await?;
    admin.deploy(&guest("guest-swarm")?, &Deploy::new("swarm").with(narrow)).await?;
    let targets: BTreeMap<&str, Target> = ["good", "reused", "third", "hostile", "swarm"]
        .into_iter()
        .map(|app| Ok((app, cluster.app(app)?)))
        .collect::<Result<_>>()?;
    let shared = Arc::new(Shared { targets, next: AtomicU64::new(0), hostile_in });
    let begin = Instant::now();
    let mut report = SoakReport {
        samples: Vec::new(),
        good: 0,
        failed: Vec::new(),
        hostile: BTreeMap::new(),
        took: begin.elapsed(),
    };
    for tenth in 1..=10 {
        let until = requests * tenth / 10;
        let mut set = JoinSet::new();
        for _ in 0..workers {
            set.spawn(work(Arc::clone(&shared), until));
        }
        while let Some(part) = set.join_next().await {
            report.add(part?);
        }
        shared.next.store(until, Ordering::Relaxed);
        tokio::time::sleep(SETTLE).await;
        let sample = sample(cluster, until)?;
        said(&sample);
        report.samples.push(sample);
    }
    report.took = begin.elapsed();
    Ok(report)
}

struct Shared {
    targets: BTreeMap<&'static str, Target>,
    next: AtomicU64,
    hostile_in: u64,
}

#[derive(Default)]
struct Part {
    good: u64,
    failed: Vec<String>,
    hostile: BTreeMap<String, u64>,
}

impl SoakReport {
    fn add(&mut self, part: Part) {
        self.good += part.good;
        self.failed.extend(part.failed);
        self.failed.truncate(20);
        for (what, n) in part.hostile {
            *self.hostile.entry(what).or_default() += n;
        }
    }

    /// From the first sample to the last one: the settled state, and the end.
    pub fn ends(&self) -> Option<(&Sample, &Sample)> {
        Some((self.samples.first()?, self.samples.last()?))
    }

    /// Memory and counts by process over all samples, as text.
    pub fn table(&self) -> String {
        let mut text = String::from("| process | what |");
        for sample in &self.samples {
            let _ = write!(text, " {} |", sample.requests);
        }
        text.push_str("\n|---|---|");
        text.push_str(&"--:|".repeat(self.samples.len()));
        let names = self.samples.last().map(|s| s.processes.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        for name in names {
            for (what, of) in [
                ("resident KiB", (|h: &Held| h.resident_bytes >> 10) as fn(&Held) -> u64),
                ("of it not files KiB", |h| h.private_bytes >> 10),
                ("descriptors", |h| h.descriptors),
                ("threads", |h| h.threads),
            ] {
                let _ = write!(text, "\n| {name} | {what} |");
                for sample in &self.samples {
                    let held = sample.processes.get(&name).map_or_else(|| "-".to_owned(), |h| of(h).to_string());
                    let _ = write!(text, " {held} |");
                }
            }
        }
        text.push_str("\n| data folder | files |");
        for sample in &self.samples {
            let _ = write!(text, " {} |", sample.files);
        }
        text.push('\n');
        text
    }
}

async fn work(shared: Arc<Shared>, until: u64) -> Part {
    let mut part = Part::default();
    let mut open: BTreeMap<&'static str, Connection> = BTreeMap::new();
    loop {
        let n = shared.next.fetch_add(1, Ordering::Relaxed);
        if n >= until {
            return part;
        }
        let (turn, hostile) = (n / shared.hostile_in, n.is_multiple_of(shared.hostile_in));
        if hostile {
            let at = usize::try_from(turn).unwrap_or(0) % HOSTILE.len();
            let got = attack(&shared, HOSTILE[at]).await;
            *part.hostile.entry(got).or_default() += 1;
            continue;
        }
        let ask = GOOD[usize::try_from(n).unwrap_or(0) % GOOD.len()];
        match tokio::time::timeout(BOUND, good(&shared, ask, &mut open)).await {
            Ok(Ok(())) => part.good += 1,
            Ok(Err(why)) => {
                open.remove(ask.0);
                part.failed.push(format!("{} {}: {why:#}", ask.0, ask.1));
            }
            Err(_) => {
                open.remove(ask.0);
                part.failed.push(format!("{} {}: no answer", ask.0, ask.1));
            }
        }
    }
}

async fn good(
    shared: &Shared,
    (app, path, body, expect): (&'static str, &str, bool, &str),
    open: &mut BTreeMap<&'static str, Connection>,
) -> Result<()> {
    let usable = match open.get_mut(app) {
        Some(connection) => connection.ready().await,
        None => false,
    };
    if !usable {
        open.insert(app, shared.targets.get(app).context("a target")?.connect().await?);
    }
    let connection = open.get_mut(app).context("connected above")?;
    let (method, body) = if body { (Method::POST, full(vec![b'x'; 2000])) } else { (Method::GET, empty()) };
    let answer = connection.request(method, path, &[], body).await?;
    anyhow::ensure!(
        answer.status == 200 && answer.text().starts_with(expect),
        "{} {:.100}",
        answer.status,
        answer.text()
    );
    Ok(())
}

/// What the client got, in a word.
async fn attack(shared: &Shared, (app, path, leave): (&'static str, &str, bool)) -> String {
    let Some(target) = shared.targets.get(app) else { return "no target".into() };
    let asked = tokio::time::timeout(BOUND, async {
        let mut connection = target.connect().await?;
        let response = connection.open(Method::GET, path, &[], empty()).await?;
        let status = response.status().as_u16();
        if leave {
            return Ok(format!("{status}, left"));
        }
        let whole = response.into_body().collect().await.is_ok();
        anyhow::Ok(if whole { status.to_string() } else { format!("{status}, cut") })
    });
    match asked.await {
        Ok(Ok(got)) => got,
        Ok(Err(_)) => "closed".into(),
        Err(_) => "no answer".into(),
    }
}

/// What the cluster holds now.
fn sample(cluster: &Cluster, requests: u64) -> Result<Sample> {
    let mut processes = BTreeMap::new();
    for pid in process::tree(cluster.pid()) {
        // A process may end while it is looked at.
        let (Ok(name), Ok(held)) = (process::name(pid), process::held(pid)) else { continue };
        processes.insert(name, held);
    }
    Ok(Sample { requests, processes, files: files(cluster.data()) })
}

fn files(folder: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.filter_map(Result::ok).map(|e| if e.path().is_dir() { files(&e.path()) } else { 1 }).sum()
}
