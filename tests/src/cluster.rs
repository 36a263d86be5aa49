//! A cluster of the real binaries: `marcato up` on free ports with its data in a temporary folder.
//!
//! Owns: where the binary and the guests are, starting, stopping, who is who among the processes, and
//! showing the logs when a test fails. Signals go only to processes that this cluster started.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tempfile::TempDir;

use crate::admin::Admin;
use crate::client::{Target, tls_config};
use crate::process::{self, Pid};

const READY_BOUND: Duration = Duration::from_secs(60);
const DRAIN_BOUND: Duration = Duration::from_secs(15);

/// What a cluster is started with.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many hosts.
    pub hosts: u32,
    /// More arguments for `marcato up`.
    pub arguments: Vec<String>,
}

impl ClusterOptions {
    /// One host.
    pub fn single() -> Self {
        Self { hosts: 1, arguments: Vec::new() }
    }

    /// So many hosts.
    pub fn hosts(hosts: u32) -> Self {
        Self { hosts, arguments: Vec::new() }
    }
}

/// What `marcato up --json` prints.
#[derive(Debug, Clone, Deserialize)]
pub struct Endpoints {
    /// Base URL of the plain listener.
    pub http: String,
    /// Base URL of the TLS listener.
    pub https: String,
    /// Base URL of the admin API.
    pub admin: String,
    /// The cluster's authority.
    pub ca: PathBuf,
    /// The first admin token.
    pub token_file: PathBuf,
}

/// A running cluster. Dropping it ends it.
pub struct Cluster {
    /// Where it answers.
    pub endpoints: Endpoints,
    options: ClusterOptions,
    child: Child,
    /// `None` for data that belongs to the caller.
    folder: Option<TempDir>,
    data: PathBuf,
}

/// The `marcato` binary: `MARCATO_BIN`, else the one that Cargo built beside this test.
pub fn marcato() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MARCATO_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let beside = own.ancestors().take(3).map(|dir| dir.join("marcato")).find(|path| path.is_file());
    beside.context("no `marcato` binary beside this test: cargo xtask test builds it, or set MARCATO_BIN")
}

/// A guest component that `cargo xtask guests` built.
pub fn guest(name: &str) -> Result<PathBuf> {
    let path = guests_folder().join(format!("{name}.wasm"));
    if path.is_file() { Ok(path) } else { bail!("{} is not there: run cargo xtask guests", path.display()) }
}

/// A guest that some machines cannot build; the error is the reason, to be printed as a skip.
pub fn guest_if_built(name: &str) -> Result<PathBuf, String> {
    guest(name).map_err(|error| {
        fs::read_to_string(guests_folder().join(format!("{name}.skipped"))).unwrap_or_else(|_| format!("{error:#}"))
    })
}

fn guests_folder() -> PathBuf {
    std::env::var_os("MARCATO_GUESTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests"), PathBuf::from)
}

impl Cluster {
    /// Starts one and waits until it serves.
    pub async fn start(options: ClusterOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("marcato-test-").tempdir()?;
        let data = folder.path().join("data");
        let (child, endpoints) = spawn(&options, &data).await?;
        Ok(Self { endpoints, options, child, folder: Some(folder), data })
    }

    /// Starts one on a folder that outlives it.
    pub async fn start_in(options: ClusterOptions, data: &Path) -> Result<Self> {
        let (child, endpoints) = spawn(&options, data).await?;
        Ok(Self { endpoints, options, child, folder: None, data: data.to_path_buf() })
    }

    /// Its data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The supervisor.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The process that runs now as `router`, or as the `hostd` whose arguments hold `mark`.
    pub fn process(&self, verb: &str, mark: &str) -> Result<Pid> {
        let found = process::children(self.pid()).into_iter().find(|(_, words)| {
            words.get(1).is_some_and(|w| w == verb) && (mark.is_empty() || words.iter().any(|w| w == mark))
        });
        Ok(found.with_context(|| format!("no process `{verb} {mark}` under {}", self.pid()))?.0)
    }

    /// The router process.
    pub fn router(&self) -> Result<Pid> {
        self.process("router", "")
    }

    /// The `n`-th host's process (from 1).
    pub fn host(&self, n: u32) -> Result<Pid> {
        self.process("hostd", &format!("h{n}"))
    }

    /// The admin API with the first admin token.
    pub fn admin(&self) -> Result<Admin> {
        let token = fs::read_to_string(&self.endpoints.token_file).context("token file")?;
        self.admin_as(token.trim())
    }

    /// The admin API with another token.
    pub fn admin_as(&self, token: &str) -> Result<Admin> {
        let address = address_of(&self.endpoints.admin)?;
        let tls = tls_config(&self.endpoints.ca, None)?;
        Ok(Admin::new(Target::secure(address, format!("localhost:{}", address.port()), tls), token))
    }

    /// The app over the plain listener.
    pub fn app(&self, app: &str) -> Result<Target> {
        let address = address_of(&self.endpoints.http)?;
        Ok(Target::plain(address, format!("{app}.localhost:{}", address.port())))
    }

    /// The app over the TLS listener, trusting the cluster's authority.
    pub fn app_secure(&self, app: &str) -> Result<Target> {
        let address = address_of(&self.endpoints.https)?;
        Ok(Target::secure(
            address,
            format!("{app}.localhost:{}", address.port()),
            tls_config(&self.endpoints.ca, None)?,
        ))
    }

    /// Runs a client verb of the command against this cluster, with a home folder of its own.
    pub async fn cli(&self, arguments: &[&str]) -> Result<Output> {
        let token = fs::read_to_string(&self.endpoints.token_file)?;
        let mut command = tokio::process::Command::new(marcato()?);
        command
            .args(arguments)
            .env("MARCATO_HOME", self.data.with_file_name("cli-home"))
            .env("MARCATO_ADMIN", &self.endpoints.admin)
            .env("MARCATO_CA", &self.endpoints.ca)
            .env("MARCATO_TOKEN", token.trim())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        tokio::time::timeout(Duration::from_secs(120), command.output())
            .await
            .context("the command hung")?
            .context("marcato")
    }

    /// Kills all of it at once, as a power cut would, and starts it again on the same data.
    pub async fn crash_and_restart(&mut self) -> Result<()> {
        let all = process::tree(self.pid());
        for pid in &all {
            process::kill_now(*pid)?;
        }
        self.child.wait()?;
        crate::until("the killed processes to be gone", DRAIN_BOUND, || async {
            Ok(all.iter().all(|pid| !process::is_alive(*pid)).then_some(()))
        })
        .await?;
        let (child, endpoints) = spawn(&self.options, &self.data).await?;
        self.child = child;
        self.endpoints = endpoints;
        Ok(())
    }

    /// All that the processes logged, newest last.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        collect_logs(&self.data, &mut text);
        collect_logs(&log_folder(&self.data), &mut text);
        text
    }
}

impl Cluster {
    /// Writes the logs where they outlive the folder, and shows their end. The test runner keeps what a
    /// passing test printed to itself.
    fn keep_logs(&self) {
        let logs = self.logs();
        let lines: Vec<_> = logs.lines().collect();
        eprintln!("---- end of the cluster's logs\n{}\n----", lines[lines.len().saturating_sub(60)..].join("\n"));
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-logs");
        let name = std::thread::current().name().unwrap_or("main").replace("::", ".");
        if fs::create_dir_all(&folder).is_ok() {
            drop(fs::write(folder.join(format!("{name}.log")), logs));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        process::end(self.pid(), DRAIN_BOUND);
        drop(self.child.wait());
        self.keep_logs();
        drop(self.folder.take());
    }
}

fn log_folder(data: &Path) -> PathBuf {
    data.with_file_name("test-logs")
}

fn collect_logs(folder: &Path, text: &mut String) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(|e| Some(e.ok()?.path())) {
        if path.is_dir() {
            collect_logs(&path, text);
        } else if path.extension().is_some_and(|e| e == "log") {
            text.push_str(&format!("== {}\n", path.display()));
            text.push_str(&String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()));
        }
    }
}

fn address_of(url: &str) -> Result<SocketAddr> {
    let rest = url.split_once("://").with_context(|| format!("not a URL: {url}"))?.1.trim_end_matches('/');
    let port: u16 = rest.rsplit_once(':').with_context(|| format!("no port: {url}"))?.1.parse()?;
    Ok(SocketAddr::from(([127, 0, 0, 1], port)))
}

async fn spawn(options: &ClusterOptions, data: &Path) -> Result<(Child, Endpoints)> {
    let logs = log_folder(data);
    fs::create_dir_all(&logs)?;
    let log = logs.join("up.log");
    let mut child = Command::new(marcato()?)
        .args(["up", "--json", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(["--hosts", &options.hosts.to_string(), "--data"])
        .arg(data)
        .args(&options.arguments)
        .env("MARCATO_HOME", data)
        .env("MARCATO_LOG", std::env::var("MARCATO_LOG").unwrap_or_else(|_| "info".into()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::options().create(true).append(true).open(&log)?)
        .process_group(0)
        .spawn()
        .context("cannot start marcato")?;
    let stdout = child.stdout.take().context("stdout")?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        drop(sender.send(lines.next()));
        // Goes on reading, so that the supervisor never meets a closed pipe.
        lines.for_each(drop);
    });
    let line = tokio::time::timeout(READY_BOUND, receiver).await;
    match line {
        Ok(Ok(Some(line))) => {
            let endpoints =
                serde_json::from_str(&line).with_context(|| format!("`marcato up --json` printed {line:?}"))?;
            Ok((child, endpoints))
        }
        other => {
            process::end(Pid::from_raw(child.id().cast_signed()), DRAIN_BOUND);
            drop(child.wait());
            bail!("marcato up was not ready ({other:?}):\n{}", fs::read_to_string(&log).unwrap_or_default())
        }
    }
}
