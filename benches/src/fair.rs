//! What neighbours cost: the latency of an app beside tenants that take all they can get, with CPU shares and without.
//!
//! The neighbour gets requests at a steady pace, whether the last one was answered or not, and latency is counted from when
//! a request was due: a server that stands still cannot hide it. Three tenants: none; one with 1,000 connections whose guests
//! spin until their CPU limit ends them; one with 1,000 connections whose guests allocate and free. Each beside two clusters
//! in turn, one with shares and one without. "A quiet host of the same share" is the first cluster, quiet, on half of the
//! machine's cores: two apps of the same weight have half each.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use http::Method;
use marcato_api::Millis;
use marcato_tests::{Cluster, ClusterOptions, Deploy, Target, empty, keep_to_cores, tree};

/// Requests per second of the neighbour, and the connections that they take turns on.
const PACE: u32 = 200;
const CONNECTIONS: u32 = 8;
/// Connections of the hostile tenant.
const HOSTILE: usize = 1_000;
/// The CPU limit of one of its requests.
const CPU_MS: u64 = 1_000;

/// A neighbour beside one kind of tenant.
#[derive(Debug, Clone)]
pub struct Beside {
    /// Which.
    pub name: &'static str,
    /// Requests that were not answered with 200.
    pub errors: u64,
    /// Latency in microseconds.
    pub p50_us: u64,
    /// Latency in microseconds.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
    /// What the tenant got, whatever the status.
    pub hostile_answers: u64,
}

#[derive(Clone, Copy)]
enum Tenant {
    None,
    Spins,
    Allocates,
}

impl Tenant {
    const fn path(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Spins => "/spin?ms=100000",
            Self::Allocates => "/fill?mb=32",
        }
    }
}

struct Side {
    cluster: Cluster,
    neighbour: Target,
    hostile: Target,
}

impl Side {
    async fn start(guests: &Path, arguments: &[&str]) -> Result<Self> {
        let mut options = ClusterOptions::single();
        options.arguments.extend(arguments.iter().map(|a| (*a).to_owned()));
        let cluster = Cluster::start(options).await?;
        let admin = cluster.admin()?;
        admin.deploy(&guests.join("hello.wasm"), &Deploy::new("neighbour")).await?;
        let hostile = Deploy::new("hostile").with(|c| c.limits.cpu_ms = Millis(CPU_MS));
        admin.deploy(&guests.join("guest-hostile.wasm"), &hostile).await?;
        let (neighbour, hostile) = (cluster.app("neighbour")?, cluster.app("hostile")?);
        Ok(Self { cluster, neighbour, hostile })
    }

    async fn beside(&self, name: &'static str, tenant: Tenant, time: Duration) -> Result<Beside> {
        let attack = match tenant {
            Tenant::None => None,
            _ => Some(Attack::start(self.hostile.clone(), tenant.path().to_owned())?),
        };
        if attack.is_some() {
            // Until it is in full swing.
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let (latency, errors) = paced(&self.neighbour, time).await?;
        let hostile_answers = attack.map_or(Ok(0), Attack::stop)?;
        Ok(Beside {
            name,
            errors,
            p50_us: latency.value_at_quantile(0.5),
            p99_us: latency.value_at_quantile(0.99),
            max_us: latency.max(),
            hostile_answers,
        })
    }
}

/// The tenant's clients, on a thread of their own.
struct Attack {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Attack {
    fn start(target: Target, path: String) -> Result<Self> {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&answers));
        let thread = std::thread::Builder::new().name("hostile".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut clients = tokio::task::JoinSet::new();
                for _ in 0..HOSTILE {
                    let (target, path) = (target.clone(), path.clone());
                    let (stop, answers) = (Arc::clone(&stopped), Arc::clone(&counted));
                    clients.spawn(async move {
                        while !stop.load(Ordering::Relaxed) {
                            let Ok(mut connection) = target.connect().await else { continue };
                            while !stop.load(Ordering::Relaxed)
                                && connection.request(Method::GET, &path, &[], empty()).await.is_ok()
                            {
                                answers.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    });
                }
                while !stopped.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                clients.shutdown().await;
            });
            Ok(())
        })?;
        Ok(Self { stop, answers, thread })
    }

    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the hostile clients panicked")??;
        Ok(self.answers.load(Ordering::Relaxed))
    }
}

/// Asks at a steady pace for so long.
async fn paced(target: &Target, time: Duration) -> Result<(Histogram<u64>, u64)> {
    let step = Duration::from_secs(1) / PACE;
    let begin = Instant::now() + step;
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CONNECTIONS {
        let target = target.clone();
        clients.spawn(async move {
            let mut latency = Histogram::<u64>::new_with_max(120_000_000, 3)?;
            let (mut errors, mut due) = (0_u64, begin + step * number);
            let mut connection = target.connect().await?;
            while due < begin + time {
                tokio::time::sleep_until(due.into()).await;
                match connection.request(Method::GET, "/", &[], empty()).await {
                    Ok(answer) if answer.status == 200 => {}
                    Ok(_) => errors += 1,
                    Err(_) => {
                        errors += 1;
                        connection = target.connect().await?;
                    }
                }
                latency.saturating_record(u64::try_from(due.elapsed().as_micros())?);
                due += step * CONNECTIONS;
            }
            anyhow::Ok((latency, errors))
        });
    }
    let (mut all, mut errors) = (Histogram::new_with_max(120_000_000, 3)?, 0);
    while let Some(done) = clients.join_next().await {
        let (latency, failed) = done.context("a client panicked")??;
        all.add(&latency)?;
        errors += failed;
    }
    ensure!(!all.is_empty(), "no request was due");
    Ok((all, errors))
}

/// Measures all of it, round by round; each number is the median over the rounds.
pub async fn measure(guests: &Path, quick: bool) -> Result<Vec<Beside>> {
    let (rounds, time) = if quick { (1, Duration::from_secs(1)) } else { (3, Duration::from_secs(6)) };
    let with = Side::start(guests, &[]).await?;
    let without = Side::start(guests, &["--no-cpu-shares"]).await?;
    let cores = std::thread::available_parallelism()?.get();
    let mut runs: Vec<Vec<Beside>> = Vec::new();
    for round in 0..rounds {
        let servers = tree(with.cluster.pid());
        keep_to_cores(&servers, cores.div_ceil(2))?;
        let half = with.beside("nobody, on half of the cores", Tenant::None, time).await;
        keep_to_cores(&servers, cores)?;
        runs.push(vec![
            half?,
            with.beside("nobody", Tenant::None, time).await?,
            with.beside("spinning, with shares", Tenant::Spins, time).await?,
            without.beside("spinning, without shares", Tenant::Spins, time).await?,
            with.beside("allocating, with shares", Tenant::Allocates, time).await?,
            without.beside("allocating, without shares", Tenant::Allocates, time).await?,
        ]);
        eprintln!("bench: neighbours: round {} of {rounds} done", round + 1);
    }
    Ok(medians(&runs))
}

fn medians(runs: &[Vec<Beside>]) -> Vec<Beside> {
    let Some(first) = runs.first() else { return Vec::new() };
    (0..first.len())
        .map(|at| {
            let median = |of: fn(&Beside) -> u64| {
                let mut values: Vec<u64> = runs.iter().map(|run| of(&run[at])).collect();
                values.sort_unstable();
                values[values.len() / 2]
            };
            Beside {
                name: first[at].name,
                errors: runs.iter().map(|run| run[at].errors).sum(),
                p50_us: median(|b| b.p50_us),
                p99_us: median(|b| b.p99_us),
                max_us: median(|b| b.max_us),
                hostile_answers: median(|b| b.hostile_answers),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_the_median_of_its_rounds_and_errors_add_up() {
        let run =
            |p99_us, errors| vec![Beside { name: "nobody", errors, p50_us: 1, p99_us, max_us: 9, hostile_answers: 0 }];
        let all = medians(&[run(30, 1), run(10, 0), run(20, 2)]);
        assert_eq!((all[0].p99_us, all[0].errors, all[0].p50_us), (20, 3, 1));
        assert!(medians(&[]).is_empty());
    }
}
