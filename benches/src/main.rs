//! `marcato-bench`: runs all subjects side by side in one run and writes the table, the plot and the
//! budgets. `cargo xtask bench` builds what it needs and starts it with `MARCATO_BIN` and `MARCATO_GUESTS`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use marcato_benches::{
    Marcato, Measured, Peers, Results, Shape, draw, health_session, measure, measure_fairness, measure_idle,
    measure_moments, render, update,
};

/// Measures Marcato beside its peers.
#[derive(Parser)]
struct Arguments {
    /// wasmtime's own command, of the same release as ours.
    #[arg(long)]
    wasmtime: PathBuf,
    /// The folder of guest components.
    #[arg(long)]
    guests: PathBuf,
    /// Where results and budgets are written.
    #[arg(long, default_value = "benches")]
    output: PathBuf,
    /// One short round: to see that it works, not to measure.
    #[arg(long)]
    quick: bool,
    /// One part alone; results and budgets are not written over.
    #[arg(long)]
    only: Option<Part>,
}

/// A part of the run.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Side by side with the peers.
    Peers,
    /// Starts, pushes, first requests.
    Moments,
    /// Apps at rest.
    Idle,
    /// An app beside hostile ones.
    Neighbours,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(bench(&arguments))
}

async fn bench(arguments: &Arguments) -> Result<()> {
    let shape = if arguments.quick {
        Shape { rounds: 1, time: Duration::from_millis(400) }
    } else {
        Shape { rounds: 5, time: Duration::from_secs(2) }
    };
    let hello = arguments.guests.join("hello.wasm");
    let mut notes = Vec::new();
    let measured = if arguments.wants(Part::Peers) {
        side_by_side(arguments, &hello, shape, &mut notes).await?
    } else {
        Vec::new()
    };
    let mut missing = |what: &str, error: anyhow::Error| notes.push(format!("{what} missing: {error:#}."));
    let mut moments = None;
    if arguments.wants(Part::Moments) {
        eprintln!("bench: moments");
        match measure_moments(&hello, if arguments.quick { 1 } else { 5 }).await {
            Ok(found) => moments = Some(found),
            Err(error) => missing("The moments are", error),
        }
    }
    let mut idle = None;
    if arguments.wants(Part::Idle) {
        eprintln!("bench: apps at rest");
        let large = [("JavaScript", "guest-javascript.wasm"), ("Python", "guest-python.wasm")]
            .map(|(name, file)| (name, arguments.guests.join(file)));
        match measure_idle(&hello, &large, arguments.quick).await {
            Ok(found) => idle = Some(found),
            Err(error) => missing("Apps at rest are", error),
        }
    }
    let mut fair = Vec::new();
    if arguments.wants(Part::Neighbours) {
        eprintln!("bench: neighbours");
        match measure_fairness(&arguments.guests, arguments.quick).await {
            Ok(found) => fair = found,
            Err(error) => missing("Neighbours are", error),
        }
    }
    notes.push("Spin is in no package registry that this run could use: no row.".into());
    let results = Results { measured: &measured, moments: moments.as_ref(), idle: idle.as_ref(), fair: &fair };
    write(&arguments.output, &results, &notes, arguments.quick || arguments.only.is_some())
}

async fn side_by_side(
    arguments: &Arguments,
    hello: &Path,
    shape: Shape,
    notes: &mut Vec<String>,
) -> Result<Vec<Measured>> {
    let nginx = ["/usr/sbin/nginx", "/usr/bin/nginx"].map(PathBuf::from).into_iter().find(|p| p.exists());
    let peers = Peers { wasmtime: arguments.wasmtime.clone(), nginx };
    let pooling = ["-O", "pooling-allocator=y"];
    let keep = [
        "-O",
        "pooling-allocator=y",
        "-O",
        "pooling-memory-keep-resident=2097152",
        "-O",
        "pooling-table-keep-resident=2097152",
    ];
    let fresh = peers.wasmtime(hello, &[]).await?;
    let fresh_pool = peers.wasmtime(hello, &pooling).await?;
    let fresh_keep = peers.wasmtime(hello, &keep).await?;
    let reuse_flag = ["--max-instance-reuse-count", "1000", "--idle-instance-timeout", "60s"];
    let reuse = peers.wasmtime(hello, &[&pooling[..], &reuse_flag[..]].concat()).await?;
    let reuse_keep = peers.wasmtime(hello, &[&keep[..], &reuse_flag[..]].concat()).await?;
    let proxied = peers.wasmtime(hello, &[&pooling[..], &reuse_flag[..]].concat()).await?;
    let nginx = peers.nginx(proxied.address).await?;
    let marcato = Marcato::start(hello).await?;

    let mut subjects = vec![
        fresh.subject("wasmtime serve, fresh, defaults", &[]),
        fresh_pool.subject("wasmtime serve, fresh, pooling", &[]),
        fresh_keep.subject("wasmtime serve, fresh, pooling, 2 MiB kept resident", &[]),
        marcato.direct("marcato, fresh, direct to a host", "fresh").await?,
        marcato.routed("marcato, fresh, through the router", "fresh")?,
        reuse.subject("wasmtime serve, reuse, pooling", &[]),
        reuse_keep.subject("wasmtime serve, reuse, pooling, 2 MiB kept resident", &[]),
        marcato.direct("marcato, reuse, direct to a host", "reused").await?,
        marcato.routed("marcato, reuse, through the router", "reused")?,
    ];
    match &nginx {
        Some(peer) => subjects.push(peer.subject("nginx before wasmtime serve, reuse", &proxied.processes())),
        None => notes.push("nginx is not installed: that row is missing.".into()),
    }
    match health_session(&marcato, Path::new("apps/health")).await {
        Ok(subject) => subjects.push(subject),
        Err(error) => notes.push(format!("The health page is missing: {error:#}.")),
    }
    measure(&subjects, &[1, 32], shape).await
}

fn write(output: &Path, found: &Results<'_>, notes: &[String], quick: bool) -> Result<()> {
    let when = command("date", &["-u", "+%Y-%m-%d %H:%M UTC"]);
    let machine = format!(
        "{when}, {} cores ({}), kernel {}, commit {}{}.",
        std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        processor(),
        command("uname", &["-r"]),
        command("git", &["rev-parse", "--short", "HEAD"]),
        if quick { "; a quick or partial run" } else { "" },
    );
    let text = render(&machine, found, notes);
    println!("{text}");
    let results = if quick { PathBuf::from("target/bench-quick") } else { output.join("results") };
    std::fs::create_dir_all(&results)?;
    std::fs::write(results.join("latest.md"), text)?;
    draw(&results.join("latest.svg"), found.measured)?;
    let file = output.join("BUDGETS.md");
    let old = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let new = update(&old, found, &when)?;
    std::fs::write(if quick { results.join("BUDGETS.md") } else { file }, new)?;
    println!("bench: wrote {}", results.display());
    Ok(())
}

fn command(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).output();
    out.map_or_else(|_| "unknown".into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|p| p.1.to_owned()));
    name.unwrap_or_else(|| "unknown processor".into())
}
