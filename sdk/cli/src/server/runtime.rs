//! The async runtimes, made by hand: one thread for verbs and the supervisor, one per core for servers.

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Runtime};

/// For client verbs and `up`. The supervisor needs it: a child's death signal follows the thread
/// that started it, so that thread must live as long as the process.
pub(crate) fn client() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("the async runtime cannot be made")
}

/// For the router and the host daemon.
pub(crate) fn server(name: &'static str) -> Result<Runtime> {
    Builder::new_multi_thread().enable_all().thread_name(name).build().context("the async runtime cannot be made")
}
