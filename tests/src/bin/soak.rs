//! `marcato-soak`: a million mixed requests with hostile ones among them against a cluster of its own, and a
//! table of what its processes held after each tenth. `cargo xtask soak` builds what it needs and starts it.

use std::io::Write as _;

use anyhow::{Result, bail};
use clap::Parser;
use marcato_tests::{Cluster, ClusterOptions, soak};

/// Looks for what leaks a little at each request.
#[derive(Parser)]
struct Arguments {
    /// How many requests.
    #[arg(long, default_value_t = 1_000_000)]
    requests: u64,
    /// One in so many is hostile.
    #[arg(long, default_value_t = 10)]
    hostile_in: u64,
    /// Connections at once.
    #[arg(long, default_value_t = 24)]
    workers: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut out = std::io::stdout();
    let cluster = Cluster::start(ClusterOptions::single()).await?;
    let report = soak(&cluster, arguments.requests, arguments.hostile_in, arguments.workers, |sample| {
        // Progress; the table at the end is the result.
        let _ = writeln!(std::io::stderr(), "{sample:?}");
    })
    .await?;
    writeln!(out, "{}", report.table())?;
    writeln!(out, "good: {}, failed: {}", report.good, report.failed.len())?;
    writeln!(out, "hostile, by what the client got: {:?}", report.hostile)?;
    writeln!(out, "took {} s", report.took.as_secs())?;
    if !report.failed.is_empty() {
        bail!("good requests failed: {:#?}", report.failed);
    }
    Ok(())
}
