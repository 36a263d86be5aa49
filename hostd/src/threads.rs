//! The threads that serve connections, each with a runtime of its own.
//!
//! A connection stays on one thread, which saves the wake-ups and the stealing between threads that cost a short
//! request a fifth of its CPU time. A request that finds its thread at work while another has nothing to do runs
//! there instead, so that guests that compute use every core.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

struct Thread {
    runtime: Handle,
    connections: AtomicUsize,
    /// Requests that have no response head yet.
    requests: AtomicUsize,
}

/// All of them. Clones are the same threads.
#[derive(Clone)]
pub(crate) struct Threads(Arc<[Thread]>);

/// A place on one of the threads.
pub(crate) struct Place {
    threads: Threads,
    at: usize,
}

/// Counts one off when dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> (Self, usize) {
        let before = count.fetch_add(1, Ordering::Relaxed);
        (Self(count), before)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.thread().connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Threads {
    /// One for each runtime; without any, the present one.
    pub(crate) fn new(mut runtimes: Vec<Handle>) -> Self {
        if runtimes.is_empty() {
            runtimes.push(Handle::current());
        }
        let thread = |runtime| Thread { runtime, connections: AtomicUsize::new(0), requests: AtomicUsize::new(0) };
        Self(runtimes.into_iter().map(thread).collect())
    }

    /// Runs a connection on the thread that has the fewest.
    pub(crate) fn spawn<F>(&self, tasks: &TaskTracker, serve: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let connections = |at: &usize| self.0[*at].connections.load(Ordering::Relaxed);
        let at = (0..self.0.len()).min_by_key(connections).unwrap_or(0);
        self.0[at].connections.fetch_add(1, Ordering::Relaxed);
        tasks.spawn_on(serve(Place { threads: self.clone(), at }), &self.0[at].runtime);
    }
}

impl Place {
    fn thread(&self) -> &Thread {
        &self.threads.0[self.at]
    }

    /// Runs a request here, or on a thread that has none while this one has. Errors: it panicked there.
    pub(crate) async fn run<F>(&self, request: F) -> Result<F::Output, JoinError>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let (_here, before) = Counted::new(&self.thread().requests);
        let idle = || self.threads.0.iter().find(|w| w.requests.load(Ordering::Relaxed) == 0);
        match (before > 0).then(idle).flatten() {
            None => Ok(request.await),
            Some(other) => {
                let (_there, _) = Counted::new(&other.requests);
                AbortOnDropHandle::new(other.runtime.spawn(request)).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::runtime::Builder;
    use tokio::sync::oneshot;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Threads that end with the token.
    fn threads(count: usize, stop: &CancellationToken) -> Threads {
        let start = |_| {
            let (runtime, stop) = (Builder::new_current_thread().build().unwrap(), stop.clone());
            let handle = runtime.handle().clone();
            thread::spawn(move || runtime.block_on(stop.cancelled()));
            handle
        };
        Threads::new((0..count).map(start).collect())
    }

    #[tokio::test]
    async fn connections_are_spread_and_a_request_moves_to_an_idle_thread_only_when_its_own_is_at_work() {
        let stop = CancellationToken::new();
        let _end = stop.clone().drop_guard();
        let all = threads(2, &stop);
        let tasks = TaskTracker::new();
        let place = || async {
            let (send, receive) = oneshot::channel();
            all.spawn(&tasks, |place| async move { drop(send.send((place, thread::current().id()))) });
            receive.await.unwrap()
        };
        let (first, on_first) = place().await;
        let (second, on_second) = place().await;
        assert_ne!(on_first, on_second);
        let here = || async { thread::current().id() };
        let own = thread::current().id();
        assert_eq!(first.run(here()).await.unwrap(), own, "nothing else runs");
        let (release, held) = oneshot::channel::<()>();
        let mut busy = Box::pin(first.run(async move { drop(held.await) }));
        assert!(futures::poll!(&mut busy).is_pending());
        assert_eq!(first.run(here()).await.unwrap(), on_second);
        let (release_second, held) = oneshot::channel::<()>();
        let mut busy_too = Box::pin(second.run(async move { drop(held.await) }));
        assert!(futures::poll!(&mut busy_too).is_pending());
        assert_eq!(first.run(here()).await.unwrap(), own, "all are at work");
        drop((release, release_second));
        busy.await.unwrap();
        busy_too.await.unwrap();
        drop((first, second));
        assert!(all.0.iter().all(|w| w.connections.load(Ordering::Relaxed) == 0));
        assert!(all.0.iter().all(|w| w.requests.load(Ordering::Relaxed) == 0));
    }
}
