//! The frame of all reconcilers: a snapshot of the config in, a status out, again on every change.
//!
//! A reconciler acts on the state that it finds, never on the event that woke it. It cannot fail: what goes
//! wrong is part of its status, and the next pass tries again.

pub(crate) mod components;
pub(crate) mod instances;
pub(crate) mod services;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use marcato_api::HostConfig;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// One reconciler.
pub(crate) trait Reconciler: Send {
    /// What it reports.
    type Status: PartialEq + Send + Sync;
    /// Its name in the log.
    const NAME: &'static str;
    /// A pass happens at least this often.
    const PERIOD: Duration;

    /// One pass: makes the host as the config says, removals before additions.
    fn reconcile(&mut self, config: &HostConfig) -> impl Future<Output = Self::Status> + Send;
}

/// Drives a reconciler until the shutdown: a pass at the start, on a new config, when woken, and on time.
/// Wakes the reconcilers that depend on it when its status changed.
pub(crate) async fn drive<R: Reconciler>(
    mut reconciler: R,
    mut config: watch::Receiver<Arc<HostConfig>>,
    wake: Arc<Notify>,
    dependents: Vec<Arc<Notify>>,
    status: watch::Sender<R::Status>,
    shutdown: CancellationToken,
) {
    loop {
        let snapshot = config.borrow_and_update().clone();
        tracing::debug!(reconciler = R::NAME, generation = %snapshot.generation, "pass");
        let new = tokio::select! {
            () = shutdown.cancelled() => return,
            new = reconciler.reconcile(&snapshot) => new,
        };
        let changed = status.send_if_modified(|old| {
            let differs = *old != new;
            *old = new;
            differs
        });
        if changed {
            dependents.iter().for_each(|d| d.notify_one());
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            gone = config.changed() => if gone.is_err() { return },
            () = wake.notified() => {}
            () = tokio::time::sleep(R::PERIOD) => {}
        }
    }
}

/// How long to wait after the n-th failure (from 1): doubles from one second to `most`.
pub(crate) fn back_off(failures: u32, most: Duration) -> Duration {
    Duration::from_secs(1).saturating_mul(1 << failures.saturating_sub(1).min(16)).min(most)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod frame_tests {
    use super::*;
    use marcato_api::Generation;

    struct Counting(u64);

    impl Reconciler for Counting {
        type Status = (u64, Generation);
        const NAME: &'static str = "counting";
        const PERIOD: Duration = Duration::from_millis(500);

        async fn reconcile(&mut self, config: &HostConfig) -> (u64, Generation) {
            self.0 += 1;
            (self.0, config.generation)
        }
    }

    fn config(generation: u64) -> Arc<HostConfig> {
        Arc::new(HostConfig {
            generation: Generation(generation),
            instances: Vec::new(),
            services: Vec::new(),
            peers: Vec::new(),
        })
    }

    #[tokio::test]
    async fn passes_on_change_wake_and_time() {
        let configs = watch::Sender::new(config(1));
        let (wake, dependent) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let status = watch::Sender::new((0, Generation(0)));
        let mut seen = status.subscribe();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(drive(
            Counting(0),
            configs.subscribe(),
            wake.clone(),
            vec![dependent.clone()],
            status,
            shutdown.clone(),
        ));
        seen.wait_for(|s| *s == (1, Generation(1))).await.unwrap();
        dependent.notified().await;
        configs.send_replace(config(2));
        seen.wait_for(|s| *s == (2, Generation(2))).await.unwrap();
        wake.notify_one();
        seen.wait_for(|s| *s == (3, Generation(2))).await.unwrap();
        seen.wait_for(|s| *s == (4, Generation(2))).await.unwrap();
        shutdown.cancel();
        task.await.unwrap();
    }

    #[test]
    fn back_off_doubles_to_its_bound() {
        let most = Duration::from_secs(60);
        let waits: Vec<_> = [1, 2, 3, 7, u32::MAX].map(|n| back_off(n, most).as_secs()).into();
        assert_eq!(waits, [1, 2, 4, 60, 60]);
    }
}
