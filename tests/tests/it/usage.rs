//! What apps are charged for, against what others say of it: the kernel of the CPU, the client of requests and bytes, the
//! clock on the wall of memory; and all of that while processes are killed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use http::Method;
use marcato_api::{AppName, Millis, OrgName, PolicyScope, RevisionConfig, UsageReport, admin_paths};
use marcato_tests::{Cluster, Deploy, Load, Pid, Target, cpu_micros, empty, full, guest, kill_now, until};
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster;

const BOUND: Duration = Duration::from_secs(60);
/// The host writes each second and the router asks every two: what did not change for so long will not.
const STEADY: Duration = Duration::from_secs(5);
/// A worker is asked each second, and what it says is written a second later at most; twice that on a busy machine.
const WRITTEN_WITHIN: Duration = Duration::from_secs(4);

/// What apps used, in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Used {
    requests: u64,
    pub(crate) cpu_ms: u64,
    memory_mb_s: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl Used {
    fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            cpu_ms: self.cpu_ms - before.cpu_ms,
            memory_mb_s: self.memory_mb_s - before.memory_mb_s,
            bytes_in: self.bytes_in - before.bytes_in,
            bytes_out: self.bytes_out - before.bytes_out,
        }
    }
}

/// As `marcato usage` has it, of these apps.
async fn used(cluster: &Cluster, apps: &[&str]) -> Result<Used> {
    let out = cluster.cli(&["usage", "--by", "hour", "--json"]).await?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let report: UsageReport = serde_json::from_slice(&out.stdout)?;
    let mut sum = Used::default();
    for row in report.items.iter().filter(|r| r.app.as_ref().is_some_and(|a| apps.contains(&a.as_str()))) {
        sum.requests += row.requests;
        sum.cpu_ms += row.cpu_ms;
        sum.memory_mb_s += row.memory_mb_s;
        sum.bytes_in += row.bytes_in;
        sum.bytes_out += row.bytes_out;
    }
    Ok(sum)
}

/// The same, once so many requests were counted and nothing changes any more.
pub(crate) async fn settled(cluster: &Cluster, apps: &[&str], requests: u64) -> Result<Used> {
    let last = std::sync::Mutex::new((Instant::now(), Used::default()));
    until(&format!("{requests} requests of {apps:?} to be counted"), BOUND, || async {
        let now = used(cluster, apps).await?;
        let mut last = last.lock().expect("not poisoned");
        if last.1 != now {
            *last = (Instant::now(), now);
        }
        ensure!(now.requests >= requests, "{now:?}");
        Ok((last.0.elapsed() > STEADY).then_some(now))
    })
    .await
}

/// The worker process of this name.
async fn worker(cluster: &Cluster, name: &str) -> Result<Pid> {
    let out = cluster.cli(&["hosts", "show", "h1", "--json"]).await?;
    let shown: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let workers = shown["worker_list"].as_array().context("workers")?;
    let pid = workers.iter().find(|w| w["name"] == name).and_then(|w| w["pid"].as_i64());
    Ok(Pid::from_raw(i32::try_from(pid.with_context(|| format!("no {name} in {shown}"))?)?))
}

/// The CPU time of a process, in microseconds, once it rests: what clients that left had asked for may go on for a moment.
async fn rested(pid: Pid) -> Result<u64> {
    const NOTHING_US: u64 = 3_000;
    let last = std::sync::Mutex::new((Instant::now(), 0));
    until(&format!("{pid} to rest"), BOUND, || async {
        let now = cpu_micros(pid)?;
        let mut last = last.lock().expect("not poisoned");
        if now - last.1 > NOTHING_US {
            *last = (Instant::now(), now);
        }
        Ok((last.0.elapsed() > Duration::from_millis(400)).then_some(now))
    })
    .await
}

/// Limits that no good request meets.
pub(crate) fn wide(c: &mut RevisionConfig) {
    c.limits.cpu_ms = Millis::secs(600);
    c.limits.time_ms = Millis::secs(600);
}

/// A command of WASI 0.1 that computes for a while and answers.
fn command() -> Result<Vec<u8>> {
    let text = r#"(module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "\10\00\00\00\20\00\00\00")
      (data (i32.const 16) "Content-Type: text/plain\n\nhello\n")
      (func (export "_start") (local $n i32)
        (local.set $n (i32.const 30000000))
        (loop $again (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;
    Ok(wat::parse_str(text)?)
}

/// Clients that leave: each sends a request, reads nothing of the answer but `wait` bytes, and is gone.
async fn leave(target: &Target, path: &str, wait: usize) -> Result<()> {
    let marcato_tests::Socket::Tcp(address) = target.socket else { anyhow::bail!("the edge listens on TCP") };
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", target.host).as_bytes()).await?;
    let mut seen = vec![0; wait];
    stream.read_exact(&mut seen).await?;
    Ok(())
}

async fn in_flight(cluster: &Cluster, app: &str, requests: u32) -> Result<()> {
    let admin = cluster.admin()?;
    until(&format!("{requests} in flight in {app}"), BOUND, || async {
        let now: u32 = admin.status(app).await?.instances.iter().map(|i| i.in_flight).sum();
        Ok((now == requests).then_some(()))
    })
    .await
}

/// Sends `count` requests, eight at a time, all of which must be answered with 200.
async fn ask(target: &Target, path: &str, count: usize) -> Result<()> {
    try_join_all((0..8).map(|lane| async move {
        let mut connection = target.connect().await?;
        for _ in (lane..count).step_by(8) {
            let answer = connection.request(Method::GET, path, &[], empty()).await?;
            ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
        }
        Ok(())
    }))
    .await
    .map(drop)
}

const APPS: &[&str] = &["fresh", "reused", "together", "command"];

/// Apps of one trust group, so that they have a worker, and nobody else in it.
async fn group() -> Result<crate::Running> {
    let cluster = cluster(1).await?;
    let policy = "policy set --org default --isolation shared --group metered";
    let out = cluster.cli(&policy.split(' ').collect::<Vec<_>>()).await?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let admin = cluster.admin()?;
    let reuse = |c: &mut RevisionConfig| {
        wide(c);
        c.reuse.max_requests = 50;
    };
    let together = |c: &mut RevisionConfig| {
        reuse(c);
        c.reuse.concurrent = 8;
    };
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("command.wasm");
    std::fs::write(&file, command()?)?;
    admin.deploy(&guest("guest-hostile")?, &Deploy::new("fresh").with(wide)).await?;
    admin.deploy(&guest("guest-hostile")?, &Deploy::new("reused").with(reuse)).await?;
    admin.deploy(&guest("guest-swarm")?, &Deploy::new("together").with(together)).await?;
    admin.deploy(&file, &Deploy::new("command").with(wide)).await?;
    Ok(cluster)
}

/// The sum over a worker's apps is what the kernel says that it cost: whatever they run, and however little of it is spent
/// in guests.
#[tokio::test(flavor = "multi_thread")]
async fn the_cpu_time_of_a_worker_is_charged_to_its_apps_within_one_percent() -> Result<()> {
    let cluster = group().await?;
    let [fresh, reused, together, command] =
        [cluster.app("fresh")?, cluster.app("reused")?, cluster.app("together")?, cluster.app("command")?];
    // All code is mapped and all is warm.
    for app in [&fresh, &reused, &together, &command] {
        ask(app, "/", 8).await?;
    }
    let pid = worker(&cluster, "shared-metered").await?;
    let mut before = settled(&cluster, APPS, 32).await?;
    for (name, tiny) in [("guests that compute", false), ("requests that cost next to nothing", true)] {
        let kernel = cpu_micros(pid)?;
        let mut sent = 0;
        if tiny {
            let count = 4_000;
            try_join_all([&fresh, &reused, &together].map(|app| ask(app, "/", count))).await?;
            sent += 3 * count as u64;
        } else {
            tokio::try_join!(
                ask(&fresh, "/spin?ms=25", 60),
                ask(&reused, "/spin?ms=25", 60),
                ask(&together, "/probe?n=3000000", 60),
                ask(&command, "/", 24),
                ask(&fresh, "/body?bytes=4000000", 8),
            )?;
            sent += 60 * 3 + 24 + 8;
            try_join_all((0..4).map(|_| leave(&fresh, "/endless", 500_000))).await?;
            try_join_all((0..4).map(|_| leave(&reused, "/drip?bytes=1000&ms=20", 200))).await?;
            let spin = async { tokio::time::timeout(Duration::from_millis(800), fresh.get("/spin?ms=60000")).await };
            ensure!(spin.await.is_err(), "its client left before it was done");
            sent += 9;
        }
        for app in APPS {
            in_flight(&cluster, app, 0).await?;
        }
        let kernel = (rested(pid).await? - kernel) as f64 / 1e3;
        let after = settled(&cluster, APPS, before.requests + sent).await?;
        let metered = after.since(before);
        println!("{name}: {sent} requests, kernel {kernel:.0} ms, metered {} ms", metered.cpu_ms);
        ensure!(metered.requests == sent, "{name}: each once: {metered:?}, {sent} were sent");
        ensure!(kernel > 1_000.0, "{name}: enough to tell a percent: {kernel} ms");
        let off = (metered.cpu_ms as f64 - kernel).abs() / kernel;
        ensure!(off < 0.01, "{name}: metered {} ms, the kernel says {kernel:.1} ms", metered.cpu_ms);
        before = after;
    }
    Ok(())
}

/// Requests and bytes are what a client counts; memory is its size times the time that it was held.
#[tokio::test(flavor = "multi_thread")]
async fn requests_and_bytes_are_exact_and_memory_is_its_size_times_its_time() -> Result<()> {
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&guest("guest-hostile")?, &Deploy::new("shop").with(wide)).await?;
    let shop = cluster.app("shop")?;
    let mut sum = settled(&cluster, &["shop"], 0).await?;
    // What a phase used; it sends `sent` requests.
    let phase = async |sum: &mut Used, sent: u64| -> Result<Used> {
        let now = settled(&cluster, &["shop"], sum.requests + sent).await?;
        let used = now.since(*sum);
        ensure!(used.requests == sent, "{used:?}, {sent} were sent");
        *sum = now;
        Ok(used)
    };
    // Two phases with heads of the same length: their difference is that of the bodies.
    ask(&shop, "/body?bytes=10000", 16).await?;
    let small = phase(&mut sum, 16).await?;
    ask(&shop, "/body?bytes=90000", 16).await?;
    let large = phase(&mut sum, 16).await?;
    assert_eq!(large.bytes_out - small.bytes_out, 16 * 80_000, "bodies of responses");
    assert_eq!(large.bytes_in, small.bytes_in, "the same heads");
    let head = small.bytes_in / 16;
    assert!(small.bytes_in.is_multiple_of(16) && (60..1_000).contains(&head), "a head of {head} bytes");
    let post = async |size: usize| -> Result<()> {
        for _ in 0..10 {
            let answer = shop.request(Method::POST, "/sink", &[], full(vec![7; size])).await?;
            ensure!(answer.text() == format!("{size}\n"), "{}", answer.text());
        }
        Ok(())
    };
    post(10_000).await?;
    let small = phase(&mut sum, 10).await?;
    post(90_000).await?;
    let large = phase(&mut sum, 10).await?;
    assert_eq!(large.bytes_in - small.bytes_in, 10 * 80_000, "bodies of requests");
    assert_eq!(large.bytes_out, small.bytes_out, "the same answers");

    // Requests that fail, before and while they answer, and those whose client leaves, are requests, each once.
    for path in ["/unreachable", "/trap?when=in-body", "/unfinished", "/silent"] {
        drop(shop.get(path).await);
    }
    leave(&shop, "/endless", 100_000).await?;
    for path in ["/sleep?ms=300000", "/spin?ms=300000"] {
        let gone = tokio::time::timeout(Duration::from_millis(500), shop.get(path)).await;
        ensure!(gone.is_err(), "{path}: its client left");
    }
    in_flight(&cluster, "shop", 0).await?;
    phase(&mut sum, 7).await?;

    // 96 MiB for two seconds, beside what a sandbox has anyway.
    let hold = async |mb: u32| -> Result<f64> {
        let times = (0..4).map(|_| async {
            let begin = Instant::now();
            let answer = shop.get(&format!("/grow?mb={mb}&ms=2000")).await?;
            ensure!(answer.text() == format!("grew {mb}\n"), "{}", answer.text());
            Ok(begin.elapsed().as_secs_f64())
        });
        Ok(try_join_all(times).await?.iter().sum())
    };
    hold(0).await?;
    let bare = phase(&mut sum, 4).await?;
    let longest = hold(96).await?;
    let full = phase(&mut sum, 4).await?;
    let mb = f64::from(96 << 20) / 1e6;
    let held = full.memory_mb_s as f64 - bare.memory_mb_s as f64;
    println!("memory: {held} MB·s beyond {}; {:.0} to {:.0}", bare.memory_mb_s, mb * 8.0, mb * longest);
    assert!(bare.memory_mb_s > 0, "a sandbox has some memory anyway");
    assert!(held > mb * 8.0 * 0.99 && held < mb * longest * 1.01, "{held} of {} to {}", mb * 8.0, mb * longest);
    Ok(())
}

/// Whoever is killed, and whenever: what was told once stays told, nothing is counted twice, and no more is lost than the
/// last moments before each kill.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_reported_survives_kills_at_any_moment() -> Result<()> {
    let cluster = cluster(1).await?;
    let scope = PolicyScope::App(OrgName::default_org(), AppName::new("shop")?);
    let policy = serde_json::json!({ "isolation": "process" });
    let set = cluster.admin()?.send(Method::PUT, &admin_paths::policy(&scope), &policy).await?;
    ensure!(set.status < 300, "{} {}", set.status, set.text());
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    let load = Load::start(&cluster.app("shop")?, "/", 2, |answer| answer.text() == "hello\n");
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut told = Used::default();
    let (mut slack, begin) = (0, Instant::now());
    for round in 0..6 {
        load.answered(40).await?;
        let wait = Duration::from_millis(random.random_range(0..2_500));
        let until_then = Instant::now() + wait;
        while Instant::now() < until_then {
            let now = used(&cluster, &["shop"]).await?;
            ensure!(
                now.requests >= told.requests && now.cpu_ms >= told.cpu_ms,
                "round {round}: {told:?}, then {now:?}"
            );
            told = now;
        }
        let whom = if round % 2 == 0 { worker(&cluster, "app-shop").await } else { cluster.host(1) };
        // Both at once, at the end.
        let both = if round == 5 { worker(&cluster, "app-shop").await.ok() } else { None };
        for pid in whom.into_iter().chain(both) {
            // It may have ended since: a worker ends with its daemon, which was killed a moment ago.
            drop(kill_now(pid));
        }
        slack += 1;
        load.answered(10).await?;
        let now = used(&cluster, &["shop"]).await?;
        ensure!(now.requests >= told.requests && now.cpu_ms >= told.cpu_ms, "round {round}: {told:?}, then {now:?}");
        told = now;
    }
    let report = load.stop().await;
    let sent = report.ok + report.failures.len() as u64;
    let rate = sent as f64 / begin.elapsed().as_secs_f64();
    let last = settled(&cluster, &["shop"], told.requests).await?;
    let lost = report.ok.saturating_sub(last.requests);
    println!(
        "{} answered, {} failed, {} counted, {lost} lost in {slack} kills",
        report.ok,
        report.failures.len(),
        last.requests
    );
    ensure!(last.requests <= sent, "{} counted of {sent} that were sent", last.requests);
    ensure!(last.requests >= told.requests, "{told:?}, then {last:?}");
    ensure!(
        (lost as f64) <= rate * WRITTEN_WITHIN.as_secs_f64() * f64::from(slack),
        "{lost} lost, at {rate:.0} requests a second"
    );
    ensure!(last.bytes_out >= last.requests * 6, "{last:?}");
    Ok(())
}
