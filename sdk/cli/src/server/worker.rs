//! The hidden `worker`: a host daemon runs its apps' sandboxes in such processes.

use anyhow::{Context as _, Result};

use super::{logging, runtime};

/// How many threads carry requests; absent: one per core.
pub(crate) const THREADS_VAR: &str = "MARCATO_WORKER_THREADS";

/// Set: guests run as they come.
pub(crate) const NO_CPU_SHARES_VAR: &str = "MARCATO_WORKER_NO_CPU_SHARES";

pub(crate) fn run() -> Result<()> {
    let threads = match std::env::var(THREADS_VAR) {
        Ok(text) => Some(text.parse().with_context(|| format!("{THREADS_VAR}={text:?} is not a number"))?),
        Err(_) => None,
    };
    // Before any thread: what a process takes from itself, it takes from the thread that asks.
    let prepared = marcato_hostd::prepare_worker()?;
    let _log = logging::init("info");
    let threads = runtime::Workers::start("worker", threads)?;
    let cpu_shares = std::env::var_os(NO_CPU_SHARES_VAR).is_none();
    runtime::client()?.block_on(marcato_hostd::run_worker(prepared, threads.handles(), cpu_shares))?;
    Ok(())
}
