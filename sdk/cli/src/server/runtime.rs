//! The async runtimes, made by hand: one thread for verbs and the supervisor; for servers one thread per core that
//! carries requests, each with a runtime of its own, beside the runtime of everything else.

use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

/// For client verbs and `up`. The supervisor needs it: a child's death signal follows the thread
/// that started it, so that thread must live as long as the process.
pub(crate) fn client() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("the async runtime cannot be made")
}

/// For what the router and the host daemon do beside requests.
pub(crate) fn server(name: &'static str) -> Result<Runtime> {
    Builder::new_multi_thread().enable_all().thread_name(name).build().context("the async runtime cannot be made")
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The threads that carry requests. They end when this is dropped; drop it after the server.
pub(crate) struct Workers {
    stop: CancellationToken,
    threads: Vec<(Handle, JoinHandle<()>)>,
}

impl Workers {
    /// So many threads, or one for each core.
    pub(crate) fn start(name: &str, threads: Option<u16>) -> Result<Self> {
        let threads = threads.map_or_else(cores, usize::from);
        let mut workers = Self { stop: CancellationToken::new(), threads: Vec::new() };
        for number in 0..threads {
            let runtime = client()?;
            let (handle, stop) = (runtime.handle().clone(), workers.stop.clone());
            let thread = std::thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || runtime.block_on(stop.cancelled()))
                .context("a thread cannot be started")?;
            workers.threads.push((handle, thread));
        }
        Ok(workers)
    }

    /// Their runtimes.
    pub(crate) fn handles(&self) -> Vec<Handle> {
        self.threads.iter().map(|(handle, _)| handle.clone()).collect()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
        for (_, thread) in self.threads.drain(..) {
            // A panic of a task stays within its task; the thread itself only waits.
            let _ = thread.join();
        }
    }
}
