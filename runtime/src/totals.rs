//! What all sandboxes of this process use together, and how much of the host's memory and sandboxes it may use: its
//! lease. Request flow. Does not own: who gets how much (`hostd/src/pool`), nor what one sandbox may have (`limits`).
//!
//! Growth of a memory cannot wait, so who gives leases is told ahead, when little room is left. A new sandbox can wait,
//! and does for a moment, where others may give some of theirs up.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use marcato_api::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::limits::MemoryTotal;

/// How long a new sandbox waits for room that others may give up.
const ROOM_WITHIN: Duration = Duration::from_millis(100);

/// More is asked for when this much memory, or a quarter of the lease, is left.
const LOW_MEMORY: u64 = 32 << 20;
/// The same of sandboxes.
const LOW_SANDBOXES: u32 = 8;

/// What of a host this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Linear memory of all its sandboxes.
    pub memory: Bytes,
    /// Live sandboxes.
    pub sandboxes: u32,
    /// Whether more can be had by asking for it. Without, what is not there is refused at once.
    pub more: bool,
}

/// What is used of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseUsed {
    /// Linear memory of all live sandboxes.
    pub memory: Bytes,
    /// Live sandboxes.
    pub sandboxes: u32,
    /// Whether that is more than the lease says.
    pub over: bool,
}

/// Sandboxes and their memory in this process, now.
#[derive(Debug)]
pub(crate) struct HostTotals {
    pub(crate) sandboxes: AtomicU32,
    most_sandboxes: AtomicU32,
    pub(crate) memory: MemoryTotal,
    low_sandboxes: AtomicU32,
    low_memory: AtomicU64,
    more: AtomicBool,
    /// As much memory as would have been used in all, had there been room; until it is asked for.
    wanted: AtomicU64,
    /// Somebody was told to ask, and did not yet.
    asking: AtomicBool,
    ask: Notify,
    changed: Notify,
}

impl HostTotals {
    pub(crate) fn new(sandboxes: u32, memory: Bytes) -> Self {
        Self {
            sandboxes: AtomicU32::new(0),
            most_sandboxes: AtomicU32::new(sandboxes),
            memory: MemoryTotal::new(memory.0),
            low_sandboxes: AtomicU32::new(sandboxes),
            low_memory: AtomicU64::new(memory.0),
            more: AtomicBool::new(false),
            wanted: AtomicU64::new(0),
            asking: AtomicBool::new(false),
            ask: Notify::new(),
            changed: Notify::new(),
        }
    }

    /// Another lease from now on. What is used stays used, and what is over it ends by itself.
    pub(crate) fn set_lease(&self, lease: Lease) {
        self.memory.set_limit(lease.memory.0);
        self.most_sandboxes.store(lease.sandboxes, Ordering::SeqCst);
        self.low_memory.store(lease.memory.0 - LOW_MEMORY.min(lease.memory.0 / 4), Ordering::Relaxed);
        self.low_sandboxes.store(lease.sandboxes - LOW_SANDBOXES.min(lease.sandboxes / 4), Ordering::Relaxed);
        self.more.store(lease.more, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Counts a sandbox in, unless there are as many as there may be.
    pub(crate) fn enter(&self) -> bool {
        // The limit is read after: a limit that falls meanwhile either refuses this one, or has it counted.
        let before = self.sandboxes.fetch_add(1, Ordering::SeqCst);
        let entered = before < self.most_sandboxes.load(Ordering::SeqCst);
        if !entered {
            self.leave();
        }
        if self.more() && before >= self.low_sandboxes.load(Ordering::Relaxed) {
            self.want(self.memory.used());
        }
        entered
    }

    pub(crate) fn leave(&self) {
        self.sandboxes.fetch_sub(1, Ordering::SeqCst);
    }

    /// Counts memory in, unless that goes over the lease.
    pub(crate) fn take_memory(&self, bytes: u64) -> bool {
        let taken = self.memory.take(bytes);
        if self.more() {
            // At this moment: a guest that was refused may be gone with all it had in the next.
            let wanted = self.memory.used().saturating_add(if taken { 0 } else { bytes });
            if wanted > self.low_memory.load(Ordering::Relaxed) {
                self.want(wanted);
            }
        }
        taken
    }

    /// Waits a moment for room for a sandbox that will need about so much memory, where others may give it up. Then it
    /// is tried anyway: what it needs in the end is known only to itself.
    pub(crate) async fn room(&self, memory: u64) {
        if self.has_room(memory) || !self.more() {
            return;
        }
        let until = Instant::now() + ROOM_WITHIN;
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.has_room(memory) || !self.more() {
                return;
            }
            self.want(self.memory.used().saturating_add(memory));
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return;
            }
        }
    }

    /// More is used than may be: what ends is not to be kept for reuse.
    pub(crate) fn is_over(&self) -> bool {
        !self.memory.has_room(0) || self.sandboxes.load(Ordering::SeqCst) > self.most_sandboxes.load(Ordering::Relaxed)
    }

    pub(crate) fn used(&self) -> LeaseUsed {
        let (memory, sandboxes) = (Bytes(self.memory.used()), self.sandboxes.load(Ordering::SeqCst));
        LeaseUsed { memory, sandboxes, over: self.is_over() }
    }

    /// Waits until more room is wanted; gives the memory that would be used in all, were there room.
    pub(crate) async fn wanted(&self) -> u64 {
        self.ask.notified().await;
        self.asking.store(false, Ordering::SeqCst);
        self.wanted.swap(0, Ordering::SeqCst)
    }

    fn more(&self) -> bool {
        self.more.load(Ordering::Relaxed)
    }

    fn has_room(&self, memory: u64) -> bool {
        self.memory.has_room(memory)
            && self.sandboxes.load(Ordering::SeqCst) < self.most_sandboxes.load(Ordering::Relaxed)
    }

    fn want(&self, memory: u64) {
        self.wanted.fetch_max(memory, Ordering::SeqCst);
        // Once: the others are waited for with it.
        if !self.asking.swap(true, Ordering::SeqCst) {
            self.ask.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn lease(memory: u64, sandboxes: u32, more: bool) -> Lease {
        Lease { memory: Bytes(memory), sandboxes, more }
    }

    #[tokio::test(start_paused = true)]
    async fn more_is_asked_for_before_there_is_none_left() {
        let totals = HostTotals::new(100, Bytes(1000));
        assert!(totals.take_memory(1000) && !totals.take_memory(1));
        assert!(futures::poll!(pin!(totals.wanted())).is_pending(), "nobody to ask");
        totals.memory.release(1000);
        totals.set_lease(lease(1000, 4, true));
        assert!(totals.take_memory(750));
        assert!(futures::poll!(pin!(totals.wanted())).is_pending(), "a quarter is left");
        assert!(totals.take_memory(100));
        assert_eq!(totals.wanted().await, 850);
        assert!(!totals.take_memory(500) && !totals.take_memory(200));
        totals.memory.release(850);
        assert_eq!(totals.wanted().await, 1350, "the most that was wanted, once, whatever is used by now");
        assert!((0..3).all(|_| totals.enter()));
        assert!(futures::poll!(pin!(totals.wanted())).is_pending(), "three of four");
        assert!(totals.enter() && !totals.enter());
        assert_eq!(totals.wanted().await, 0);
        assert_eq!(totals.sandboxes.load(Ordering::SeqCst), 4, "the one that was refused is not counted");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_waits_a_moment_for_room_that_others_give_up() {
        let totals = Arc::new(HostTotals::new(10, Bytes(100)));
        // Nothing to wait for.
        totals.room(101).await;
        totals.set_lease(lease(100, 10, true));
        let begun = Instant::now();
        totals.room(101).await;
        assert_eq!(begun.elapsed(), ROOM_WITHIN, "nobody gave any");
        let waiting = tokio::spawn({
            let totals = Arc::clone(&totals);
            async move { totals.room(101).await }
        });
        assert_eq!(totals.wanted().await, 101);
        let begun = Instant::now();
        totals.set_lease(lease(100, 10, true));
        totals.set_lease(lease(101, 10, true));
        waiting.await.expect("no panic");
        assert_eq!(begun.elapsed(), Duration::ZERO);
        // None left to be had: it is not waited for.
        totals.set_lease(lease(50, 10, false));
        totals.room(101).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[test]
    fn a_lease_that_falls_is_kept_by_what_comes_next() {
        let totals = HostTotals::new(2, Bytes(100));
        assert!(totals.take_memory(80) && totals.enter() && totals.enter());
        assert!(!totals.is_over());
        totals.set_lease(lease(50, 1, false));
        assert!(totals.is_over() && !totals.take_memory(1) && !totals.enter());
        totals.memory.release(40);
        assert!(totals.is_over(), "two sandboxes of one");
        totals.leave();
        assert!(!totals.is_over() && totals.take_memory(10) && !totals.take_memory(1));
    }

    /// Whoever lowers a limit and then looks at what is used has seen all that there will be.
    #[test]
    fn what_is_used_after_a_limit_fell_does_not_grow() {
        let totals = Arc::new(HostTotals::new(u32::MAX, Bytes(u64::MAX)));
        for round in 0..200 {
            totals.set_lease(lease(u64::MAX, u32::MAX, false));
            let start = Arc::new(std::sync::Barrier::new(3));
            let takers: Vec<_> = (0..2)
                .map(|_| {
                    let (totals, start) = (Arc::clone(&totals), Arc::clone(&start));
                    std::thread::spawn(move || {
                        start.wait();
                        let taken = (0..50).filter(|_| totals.take_memory(1)).count() as u64;
                        (taken, (0..50).filter(|_| totals.enter()).count() as u32)
                    })
                })
                .collect();
            start.wait();
            totals.set_lease(lease(0, 0, false));
            let (memory, sandboxes) = (totals.memory.used(), totals.sandboxes.load(Ordering::SeqCst));
            let taken: Vec<_> = takers.into_iter().map(|t| t.join().expect("no panic")).collect();
            let (later, entered) = (totals.memory.used(), totals.sandboxes.load(Ordering::SeqCst));
            assert!(later <= memory && entered <= sandboxes, "round {round}: {memory} {later}, {sandboxes} {entered}");
            assert_eq!(taken.iter().map(|t| t.0).sum::<u64>(), later);
            assert_eq!(taken.iter().map(|t| t.1).sum::<u32>(), entered);
            totals.memory.release(later);
            (0..entered).for_each(|_| totals.leave());
        }
    }
}
