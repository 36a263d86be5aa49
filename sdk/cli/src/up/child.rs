//! One supervised process: started with its sockets, started again when it dies, drained when asked.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context as _, Result};
use command_fds::{CommandFdExt, FdMapping};
use futures::future::BoxFuture;
use marcato_api::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::data::DataDir;
use super::fleet;
use super::listen::{Addresses, HostSockets, Named};
use crate::server::{logging, parent, runtime};

/// The first inherited socket (sd_listen_fds(3)).
const FIRST_FD: i32 = 3;

/// Arguments that are made anew for each start.
type Arguments = Box<dyn FnMut() -> BoxFuture<'static, Result<Vec<OsString>>> + Send>;

/// What to start.
pub(super) struct Spec {
    arguments: Arguments,
    sockets: Vec<Named>,
}

/// What readiness may know of a process.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) name: String,
    /// How often it died, and how the last time.
    deaths: Mutex<(u32, String)>,
}

impl Watched {
    pub(super) fn new(name: String) -> Self {
        Self { name, deaths: Mutex::new((0, String::new())) }
    }

    fn died(&self, how: String) {
        let mut deaths = self.deaths.lock().unwrap_or_else(PoisonError::into_inner);
        *deaths = (deaths.0.saturating_add(1), how);
    }

    pub(super) fn deaths(&self) -> (u32, String) {
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What guests may do on a host, and what must hold them.
pub(super) struct Guests {
    pub(super) require_confinement: bool,
    pub(super) cpu_shares: bool,
    pub(super) allow_private: bool,
    pub(super) ca: Option<PathBuf>,
}

fn flag(name: &str, value: impl Into<OsString>) -> [OsString; 2] {
    [name.into(), value.into()]
}

impl Spec {
    /// `marcato router` with the sockets that were bound for it.
    pub(super) fn router(
        data: &DataDir,
        addresses: &Addresses,
        domain: &str,
        names: &[String],
        sockets: Vec<Named>,
    ) -> Self {
        let mut arguments: Vec<OsString> = vec!["router".into()];
        arguments.extend(flag("--data", data.router()));
        arguments.extend(flag("--http", addresses.http.to_string()));
        arguments.extend(flag("--https", addresses.https.to_string()));
        arguments.extend(flag("--admin", addresses.admin.to_string()));
        arguments.extend(flag("--domain", domain));
        // It shares the machine with its hosts, whose guests compute: more threads would only take turns.
        arguments.extend(flag("--threads", (runtime::cores() / 2).max(1).to_string()));
        for name in names {
            arguments.extend(flag("--name", name));
        }
        let arguments: Arguments = Box::new(move || {
            let arguments = arguments.clone();
            Box::pin(async move { Ok(arguments) })
        });
        Self { arguments, sockets }
    }

    /// `marcato hostd` with its sockets; a host without a certificate gets a join token first.
    pub(super) fn host(data: &DataDir, admin_url: &str, memory: Bytes, guests: Guests, sockets: HostSockets) -> Self {
        let HostSockets { id, control, ingress, fds } = sockets;
        let mut fixed: Vec<OsString> = vec!["hostd".into()];
        fixed.extend(flag("--data", data.host(&id)));
        fixed.extend(flag("--id", id.as_str()));
        fixed.extend(flag("--control", control.to_string()));
        fixed.extend(flag("--ingress", ingress.to_string()));
        fixed.extend(flag("--memory", format!("{}B", memory.0)));
        if guests.require_confinement {
            fixed.push("--require-confinement".into());
        }
        if !guests.cpu_shares {
            fixed.push("--no-cpu-shares".into());
        }
        if guests.allow_private {
            fixed.push("--allow-private-egress".into());
        }
        if let Some(file) = guests.ca {
            fixed.extend(flag("--outbound-ca", file));
        }
        let join = fleet::Join::new(data, admin_url, &id);
        let arguments: Arguments = Box::new(move || {
            let (mut arguments, join) = (fixed.clone(), join.clone());
            Box::pin(async move {
                if !join.is_done() {
                    join.fetch_token().await?;
                    arguments.extend(flag("--join-url", &join.admin_url));
                    arguments.extend(flag("--ca", &join.ca));
                    arguments.extend(flag("--join-token-file", &join.token_file));
                }
                Ok(arguments)
            })
        });
        Self { arguments, sockets: fds }
    }

    fn spawn(&self, name: &str, arguments: Vec<OsString>) -> Result<Child> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let mut command = std::process::Command::new(live_program(program));
        let mut mappings = Vec::new();
        for (child_fd, (_, socket)) in (FIRST_FD..).zip(&self.sockets) {
            mappings.push(FdMapping { parent_fd: duplicate(socket)?, child_fd });
        }
        let names: Vec<&str> = self.sockets.iter().map(|(name, _)| *name).collect();
        command
            .args(arguments)
            // A terminal's Ctrl-C goes to the supervisor alone, which stops its children in order.
            .process_group(0)
            .env("LISTEN_FDS", self.sockets.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env_remove("LISTEN_PID")
            .env_remove("MARCATO_TOKEN")
            .env(parent::SUPERVISOR_VAR, std::process::id().to_string())
            .env(logging::NAME_VAR, name)
            // wasmtime makes an error for every sandbox that ends, and an error would look at the whole stack: a tenth of
            // a request. A panic still shows its own.
            .env("RUST_LIB_BACKTRACE", "0")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .fd_mappings(mappings)?;
        if std::env::var_os(logging::FILTER_VAR).is_none() {
            // A person at a terminal wants to see what went wrong, not each request.
            command.env(logging::FILTER_VAR, "warn");
        }
        let mut command = Command::from(command);
        // Only for what no code path ends in order, as a panic here.
        command.kill_on_drop(true);
        command.spawn().context("cannot start the process")
    }
}

/// The kernel marks a program that was replaced by a new build; the path then leads to the new one.
fn live_program(program: PathBuf) -> PathBuf {
    match program.to_str().and_then(|p| p.strip_suffix(" (deleted)")) {
        Some(path) => PathBuf::from(path),
        None => program,
    }
}

fn duplicate(socket: &OwnedFd) -> io::Result<OwnedFd> {
    socket.try_clone()
}

/// Keeps the process running until `stop`; then drains it within `drain_timeout`. `kill_now` ends
/// the wait.
pub(super) async fn supervise(
    mut spec: Spec,
    watched: std::sync::Arc<Watched>,
    stop: CancellationToken,
    kill_now: CancellationToken,
    drain_timeout: Duration,
) {
    let name = watched.name.clone();
    let mut backoff = Backoff::new();
    loop {
        let arguments = tokio::select! {
            arguments = (spec.arguments)() => arguments,
            () = stop.cancelled() => return,
        };
        let started = Instant::now();
        match arguments.and_then(|a| spec.spawn(&name, a)) {
            Ok(mut child) => {
                tokio::select! {
                    status = child.wait() => {
                        let how = words(status);
                        tracing::warn!(process = name, how, "ended; it is started again");
                        watched.died(how);
                    }
                    () = stop.cancelled() => return end(&name, child, spec, &kill_now, drain_timeout).await,
                }
            }
            Err(e) => {
                tracing::warn!(process = name, error = format!("{e:#}"), "cannot be started; tried again");
                watched.died(format!("{e:#}"));
            }
        }
        let pause = backoff.pause(started.elapsed());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn end(name: &str, mut child: Child, spec: Spec, kill_now: &CancellationToken, drain_timeout: Duration) {
    // From here on new connections are refused instead of kept waiting for nobody.
    drop(spec);
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // It may have ended in this moment; the wait below tells.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    tokio::select! {
        status = child.wait() => {
            if !status.as_ref().is_ok_and(ExitStatus::success) {
                tracing::warn!(process = name, how = words(status), "did not end well");
            }
            return;
        }
        () = tokio::time::sleep(drain_timeout) => tracing::warn!(process = name, "did not drain in time; killed"),
        () = kill_now.cancelled() => {}
    }
    if let Err(error) = child.kill().await {
        tracing::warn!(process = name, %error, "cannot be killed");
    }
}

fn words(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(e) => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebuilt_program_is_found_again() {
        assert_eq!(live_program("/a/marcato (deleted)".into()), PathBuf::from("/a/marcato"));
        assert_eq!(live_program("/a/marcato".into()), PathBuf::from("/a/marcato"));
    }

    #[tokio::test]
    async fn a_stop_before_the_start_starts_nothing() {
        let stop = CancellationToken::new();
        stop.cancel();
        let arguments: Arguments = Box::new(|| Box::pin(std::future::pending()));
        let watched = std::sync::Arc::new(Watched::new("x".into()));
        supervise(Spec { arguments, sockets: Vec::new() }, watched, stop, CancellationToken::new(), Duration::ZERO)
            .await;
    }
}
