//! The threads that carry requests. Each has a runtime, and connections to hosts, of its own.
//!
//! A connection stays on the thread that it was given to: what a request wakes is on the same thread, nothing is
//! stolen between queues, and a control plane that is busy elsewhere takes no turn from traffic.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::edge::Shared;

/// One thread's share of the edge.
struct Worker {
    runtime: Handle,
    shared: Arc<Shared>,
    /// Client connections on it.
    open: AtomicUsize,
}

/// All of them. Clones are the same threads.
#[derive(Clone)]
pub(crate) struct Workers(Arc<[Arc<Worker>]>);

/// Counts a connection out of its thread.
struct Open(Arc<Worker>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// One worker for each runtime.
    pub(crate) fn new(runtimes: Vec<Handle>, shared: impl Fn() -> Shared) -> Self {
        let worker = |runtime| Arc::new(Worker { runtime, shared: Arc::new(shared()), open: AtomicUsize::new(0) });
        Self(runtimes.into_iter().map(worker).collect())
    }

    /// What each thread's requests share.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &Arc<Shared>> {
        self.0.iter().map(|w| &w.shared)
    }

    /// Serves a connection on the thread that has the fewest.
    pub(crate) fn spawn<F>(
        &self,
        tasks: &TaskTracker,
        stream: TcpStream,
        serve: impl FnOnce(Arc<Shared>, TcpStream) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(worker) = self.0.iter().min_by_key(|w| w.open.load(Ordering::Relaxed)) else { return };
        worker.open.fetch_add(1, Ordering::Relaxed);
        let (open, shared) = (Open(Arc::clone(worker)), Arc::clone(&worker.shared));
        // Taken from the accepting thread's reactor and given to the worker's.
        let moved = stream.into_std();
        tasks.spawn_on(
            async move {
                match moved.and_then(TcpStream::from_std) {
                    Ok(stream) => serve(shared, stream).await,
                    Err(error) => tracing::warn!(%error, "an accepted connection cannot be used"),
                }
                drop(open);
            },
            &worker.runtime,
        );
    }
}
