//! A closed loop: N connections, each sends its next request when the last one is answered. Latency is
//! what a client sees; CPU time is what the servers used meanwhile, load generator excluded.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use http::Method;
use http_body_util::BodyExt as _;
use marcato_tests::{Pid, Target, cpu_micros, empty, resident_bytes};
use tokio::task::JoinSet;

/// What one round of one subject gave.
#[derive(Debug, Clone)]
pub struct Round {
    /// Requests answered with 200.
    pub requests: u64,
    /// Requests that were not.
    pub errors: u64,
    /// Requests per second of wall time.
    pub per_second: f64,
    /// CPU time of the servers per request, in microseconds.
    pub cpu_us: f64,
    /// Median latency, in microseconds.
    pub p50_us: u64,
    /// 99th percentile, in microseconds.
    pub p99_us: u64,
    /// Resident memory of the servers at the end, in bytes.
    pub resident: u64,
}

/// Loads `target` for `time` and reads what `servers` used.
pub async fn run(
    target: &Target,
    path: &str,
    headers: &[(String, String)],
    connections: usize,
    time: Duration,
    servers: &[Pid],
) -> Result<Round> {
    let mut workers = JoinSet::new();
    let before = total_cpu(servers)?;
    let begin = Instant::now();
    for _ in 0..connections {
        workers.spawn(worker(target.clone(), path.to_owned(), headers.to_vec(), begin + time));
    }
    let mut latency = Histogram::<u64>::new_with_max(120_000_000, 3)?;
    let mut errors = 0;
    while let Some(done) = workers.join_next().await {
        let (part, failed) = done.context("a worker panicked")??;
        latency.add(&part)?;
        errors += failed;
    }
    let elapsed = begin.elapsed().as_secs_f64();
    let cpu = total_cpu(servers)? - before;
    let requests = latency.len();
    Ok(Round {
        requests,
        errors,
        per_second: requests as f64 / elapsed,
        cpu_us: cpu as f64 / requests.max(1) as f64,
        p50_us: latency.value_at_quantile(0.5),
        p99_us: latency.value_at_quantile(0.99),
        resident: servers.iter().filter_map(|pid| resident_bytes(*pid).ok()).sum(),
    })
}

fn total_cpu(servers: &[Pid]) -> Result<u64> {
    servers.iter().map(|pid| cpu_micros(*pid)).sum()
}

async fn worker(
    target: Target,
    path: String,
    headers: Vec<(String, String)>,
    end: Instant,
) -> Result<(Histogram<u64>, u64)> {
    let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let mut latency = Histogram::new_with_max(120_000_000, 3)?;
    let mut errors = 0;
    let mut connection = target.connect().await?;
    while Instant::now() < end {
        let begin = Instant::now();
        if !connection.ready().await {
            connection = target.connect().await?;
        }
        let answered = async {
            let response = connection.open(Method::GET, &path, &headers, empty()).await?;
            let status = response.status().as_u16();
            response.into_body().collect().await?;
            anyhow::Ok(status)
        };
        match answered.await {
            Ok(200) => latency.saturating_record(u64::try_from(begin.elapsed().as_micros())?),
            Ok(_) => errors += 1,
            Err(_) => {
                errors += 1;
                connection = target.connect().await?;
            }
        }
        if errors > 1000 && latency.is_empty() {
            anyhow::bail!("{path}: {errors} errors and no answer");
        }
    }
    Ok((latency, errors))
}
