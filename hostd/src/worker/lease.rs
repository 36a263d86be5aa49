//! A worker's lease: takes what the daemon grants, says what it uses of it, and asks for more before it is needed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use marcato_api::Bytes;
use marcato_runtime::{Lease, Runtime};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::host::HostPeer;
use crate::channel::{Ask, Holding, LeaseOrder};

/// How often it is looked whether what was over the lease has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between two statements: what more is wanted meanwhile is said with the next.
const PACE: Duration = Duration::from_millis(5);

/// What was wanted stays so for this long, and up to twice as long: the next request may want it again, and growth
/// cannot wait for it.
const REMEMBER: Duration = Duration::from_secs(3);

/// The most that was used or wanted in the last seconds.
#[derive(Debug)]
struct Recent {
    since: Instant,
    now: (u64, u32),
    before: (u64, u32),
}

impl Recent {
    fn new() -> Self {
        Self { since: Instant::now(), now: (0, 0), before: (0, 0) }
    }

    /// Takes down what is used or wanted; gives the most.
    fn most(&mut self, memory: u64, sandboxes: u32) -> (u64, u32) {
        let passed = self.since.elapsed();
        if passed >= REMEMBER {
            let old = std::mem::take(&mut self.now);
            self.before = if passed < REMEMBER * 2 { old } else { (0, 0) };
            self.since = Instant::now();
        }
        self.now = (self.now.0.max(memory), self.now.1.max(sandboxes));
        (self.now.0.max(self.before.0), self.now.1.max(self.before.1))
    }
}

/// The lease that this worker keeps to.
pub(super) struct WorkerLease {
    runtime: Runtime,
    /// Number of the last one.
    number: Mutex<u64>,
    recent: Mutex<Recent>,
    taken: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole numbers: usable whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkerLease {
    /// Keeps to `first` from now on.
    pub(super) fn new(runtime: Runtime, first: LeaseOrder) -> Self {
        let lease = Self { runtime, number: Mutex::new(0), recent: Mutex::new(Recent::new()), taken: Notify::new() };
        lease.take(first);
        lease
    }

    /// Keeps to another one, unless it is older. Whether more is used than it says.
    pub(super) fn take(&self, order: LeaseOrder) -> bool {
        {
            let mut number = lock(&self.number);
            if order.number <= *number {
                return false;
            }
            let LeaseOrder { memory, sandboxes, more, .. } = order;
            self.runtime.set_lease(Lease { memory, sandboxes, more });
            *number = order.number;
        }
        self.taken.notify_one();
        self.runtime.lease_used().over
    }

    /// What it uses now, under the last lease, and what it wanted lately.
    pub(super) fn holding(&self) -> Holding {
        self.holding_with(Bytes(0), false)
    }

    fn holding_with(&self, wanted: Bytes, one_more: bool) -> Holding {
        // In this order: what is used was so after the lease was taken.
        let number = *lock(&self.number);
        let used = self.runtime.lease_used();
        let sandboxes = used.sandboxes.saturating_add(one_more.into());
        let most = lock(&self.recent).most(wanted.0.max(used.memory.0), sandboxes);
        Holding {
            number,
            memory: used.memory,
            sandboxes: used.sandboxes,
            wants_memory: Bytes(most.0 - used.memory.0),
            wants_sandboxes: most.1 - used.sandboxes,
        }
    }

    /// Tells the daemon, whenever there is something to tell, until the channel ends.
    pub(super) async fn tell(&self, peer: &HostPeer) {
        let mut wanted = None;
        loop {
            let holding = self.holding_with(wanted.unwrap_or(Bytes(0)), wanted.is_some());
            if peer.tell(&Ask::Holding(holding)).await.is_err() {
                return;
            }
            tokio::time::sleep(PACE).await;
            wanted = tokio::select! {
                () = self.taken.notified() => None,
                memory = self.runtime.lease_wanted() => Some(memory),
                () = self.ends(holding.memory, holding.sandboxes), if self.runtime.lease_used().over => None,
            };
        }
    }

    /// Waits until less is used than this.
    async fn ends(&self, memory: Bytes, sandboxes: u32) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.runtime.lease_used();
            if now.memory < memory || now.sandboxes < sandboxes {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_wanted_is_remembered_for_a_while() {
        let mut recent = Recent::new();
        assert_eq!(recent.most(60, 1), (60, 1));
        assert_eq!(recent.most(10, 5), (60, 5));
        tokio::time::advance(REMEMBER).await;
        assert_eq!(recent.most(20, 2), (60, 5));
        tokio::time::advance(REMEMBER).await;
        assert_eq!(recent.most(0, 0), (20, 2));
        tokio::time::advance(REMEMBER * 2).await;
        assert_eq!(recent.most(0, 0), (0, 0), "nobody asked for long");
    }
}
