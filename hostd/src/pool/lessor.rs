//! Who gives leases: keeps the book (`leases`), tells workers what changed, and says which of them must end.
//!
//! Owns no process: whoever runs one keeps its [`Tenancy`] until the process is gone, and its lease is free then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use marcato_api::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::leases::{Amount, Granted, Holder, Leases, Statement};
use crate::channel::{Holding, LeaseOrder};

/// Beyond what the requests in a worker may take, for it to give back what it was told to.
const GIVE_BACK_WITHIN: Duration = Duration::from_secs(10);

struct Told {
    orders: watch::Sender<LeaseOrder>,
    /// Since when it holds more than it was told to.
    over: Option<Instant>,
}

struct State {
    leases: Leases,
    told: BTreeMap<Holder, Told>,
}

/// See the module.
pub(super) struct Lessor {
    state: Mutex<State>,
    next: AtomicU64,
}

/// A worker's process among those that share the host, until it is gone.
pub(super) struct Tenancy {
    lessor: Arc<Lessor>,
    holder: Holder,
    orders: watch::Receiver<LeaseOrder>,
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        let mut state = self.lessor.state();
        state.told.remove(&self.holder);
        state.leases.leave(self.holder);
        state.settle();
    }
}

impl Tenancy {
    pub(super) fn holder(&self) -> Holder {
        self.holder
    }

    /// Its lease, now and whenever there is another.
    pub(super) fn orders(&self) -> watch::Receiver<LeaseOrder> {
        self.orders.clone()
    }
}

fn order(granted: Granted) -> LeaseOrder {
    LeaseOrder {
        number: granted.number,
        memory: Bytes(granted.amount.memory),
        sandboxes: u32::try_from(granted.amount.sandboxes).unwrap_or(u32::MAX),
        more: granted.more,
    }
}

impl State {
    fn settle(&mut self) {
        for (holder, granted) in self.leases.settle() {
            if let Some(told) = self.told.get(&holder) {
                told.orders.send_replace(order(granted));
            }
        }
    }
}

impl Lessor {
    pub(super) fn new(memory: Bytes, sandboxes: u32) -> Arc<Self> {
        let leases = Leases::new(Amount { memory: memory.0, sandboxes: sandboxes.into() });
        Arc::new(Self { state: Mutex::new(State { leases, told: BTreeMap::new() }), next: AtomicU64::new(1) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole entries and numbers: usable whatever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process begins. It has a lease at once: what is free, or what is set aside for it.
    pub(super) fn join(self: &Arc<Self>, weight: Amount) -> Tenancy {
        let holder = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, orders) = watch::channel(LeaseOrder::default());
        let mut state = self.state();
        state.told.insert(holder, Told { orders: sender, over: None });
        state.leases.join(holder, weight);
        state.settle();
        Tenancy { lessor: Arc::clone(self), holder, orders }
    }

    /// What a worker says, between reports.
    pub(super) fn hear(&self, holder: Holder, said: &Holding) {
        let mut state = self.state();
        state.leases.hear(holder, &statement(said));
        state.settle();
    }

    /// What a worker is weighed by from now on.
    pub(super) fn weigh(&self, holder: Holder, weight: Amount) {
        let mut state = self.state();
        state.leases.weigh(holder, weight);
        state.settle();
    }

    /// What a worker reports, and what it is weighed by. [`Self::settle`] comes once after all.
    pub(super) fn note(&self, holder: Holder, said: &Holding, weight: Amount) {
        let mut state = self.state();
        state.leases.hear(holder, &statement(said));
        state.leases.weigh(holder, weight);
    }

    /// Divides anew after reports.
    pub(super) fn settle(&self) {
        self.state().settle();
    }

    /// The most memory that this process may use now.
    pub(super) fn held(&self, holder: Holder) -> Bytes {
        Bytes(self.state().leases.held_memory(holder))
    }

    /// Whether it had long enough to give back what it was told to. While it is over its lease nothing in it grows and
    /// nothing is added, so that all it has ends with the requests in it; `requests` is what they may take at most.
    pub(super) fn is_overdue(&self, holder: Holder, requests: Duration) -> bool {
        let mut state = self.state();
        let over = state.leases.is_over(holder);
        let Some(told) = state.told.get_mut(&holder) else { return false };
        told.over = over.then(|| told.over.unwrap_or_else(Instant::now));
        told.over.is_some_and(|since| since.elapsed() > requests + GIVE_BACK_WITHIN)
    }
}

fn statement(said: &Holding) -> Statement {
    Statement {
        number: said.number,
        used: Amount { memory: said.memory.0, sandboxes: said.sandboxes.into() },
        wants: Amount { memory: said.wants_memory.0, sandboxes: said.wants_sandboxes.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Amount = Amount { memory: 1, sandboxes: 1 };

    #[test]
    fn a_process_has_its_lease_at_once_and_frees_it_with_its_end() {
        let lessor = Lessor::new(Bytes::mib(1024), 100);
        let first = lessor.join(ONE);
        let order = *first.orders().borrow();
        assert_eq!((order.memory, order.sandboxes, order.more), (Bytes::mib(960), 94, false));
        let second = lessor.join(ONE);
        let beginning = *second.orders().borrow();
        assert_eq!((beginning.memory, beginning.sandboxes), (Bytes::mib(16), 1));
        // Told to give half of it up; that counts once it says so.
        let told = *first.orders().borrow();
        assert!(told.memory < Bytes::mib(600) && told.number > order.number, "{told:?}");
        assert_eq!(lessor.held(first.holder()), order.memory);
        lessor.hear(first.holder(), &Holding { number: told.number, ..Holding::default() });
        assert_eq!(lessor.held(first.holder()), told.memory);
        assert!(second.orders().borrow().memory > Bytes::mib(400));
        drop(first);
        assert_eq!(*second.orders().borrow(), LeaseOrder { number: second.orders().borrow().number, ..order });
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_nothing_back_is_overdue_after_its_requests_must_have_ended() {
        let lessor = Lessor::new(Bytes::mib(1024), 100);
        let first = lessor.join(ONE);
        let requests = Duration::from_secs(60);
        assert!(!lessor.is_overdue(first.holder(), requests));
        let _second = lessor.join(ONE);
        assert!(!lessor.is_overdue(first.holder(), requests));
        tokio::time::advance(requests + GIVE_BACK_WITHIN).await;
        assert!(!lessor.is_overdue(first.holder(), requests));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(lessor.is_overdue(first.holder(), requests));
        // With its first word, which says that it needs nothing, more is asked of it.
        for _ in 0..2 {
            let number = first.orders().borrow().number;
            lessor.hear(first.holder(), &Holding { number, ..Holding::default() });
        }
        assert!(!lessor.is_overdue(first.holder(), requests), "it has: {:?}", lessor.state().leases);
    }
}
