//! The order in which guests of the lane take turns: stride scheduling (Waldspurger and Weihl, 1995) over apps, first
//! come first served within one.
//!
//! Owns: places, and who gets the next. Does not own threads (`lane`). An app's pass grows with what it used, divided by
//! its weight; the app with the least goes first. One that comes back is no further behind than who was served last, so
//! nobody saves turns up.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures::task::AtomicWaker;

use super::Share;

/// Where an app stands. Changed under the lock of [`Turns`] alone.
#[derive(Debug, Default)]
pub(super) struct Pass(AtomicU64);

impl Pass {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, pass: u64) {
        self.0.store(pass, Ordering::Relaxed);
    }
}

/// Places, and those who wait for one.
pub(super) struct Turns(Mutex<Queues>);

struct Queues {
    free: usize,
    /// Pass of the app that was served last.
    clock: u64,
    apps: HashMap<usize, Queue>,
    /// Apps that wait, by pass.
    order: BTreeSet<(u64, usize)>,
}

struct Queue {
    share: Arc<Share>,
    waiting: VecDeque<Arc<Waiter>>,
}

/// One who waits.
#[derive(Default)]
struct Waiter {
    granted: AtomicBool,
    waker: AtomicWaker,
}

/// An app's address is its name here: it lives as long as its queue.
fn key(share: &Arc<Share>) -> usize {
    Arc::as_ptr(share).addr()
}

impl Turns {
    /// With so many places.
    pub(super) fn new(places: usize) -> Self {
        Self(Mutex::new(Queues { free: places, clock: 0, apps: HashMap::new(), order: BTreeSet::new() }))
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        // Each change is whole when it can panic no more.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets in line. The turn comes when [`Turn::is_granted`] says so; `waker` is told.
    pub(super) fn join(self: &Arc<Self>, share: &Arc<Share>, waker: &Waker) -> Turn {
        let waiter = Arc::new(Waiter::default());
        waiter.waker.register(waker);
        let mut queues = self.queues();
        let key = key(share);
        let clock = queues.clock;
        let queue =
            queues.apps.entry(key).or_insert_with(|| Queue { share: Arc::clone(share), waiting: VecDeque::new() });
        queue.waiting.push_back(Arc::clone(&waiter));
        if queue.waiting.len() == 1 {
            share.pass.set(share.pass.get().max(clock));
            queues.order.insert((share.pass.get(), key));
        }
        let granted = queues.grant();
        drop(queues);
        wake(granted);
        Turn { turns: Arc::clone(self), share: Arc::clone(share), waiter, over: false }
    }

    /// Gives free places to those whose app's cap is no longer reached.
    pub(super) fn grant(&self) {
        let granted = self.queues().grant();
        wake(granted);
    }
}

/// Whom a waker wakes may ask for a place at once: never call this with the lock held.
fn wake(granted: Vec<Arc<Waiter>>) {
    for waiter in granted {
        waiter.waker.wake();
    }
}

impl Queues {
    /// Gives free places away; who got one is to be woken.
    #[must_use]
    fn grant(&mut self) -> Vec<Arc<Waiter>> {
        let mut granted = Vec::new();
        while self.free > 0 {
            let Some(waiter) = self.next() else { break };
            self.free -= 1;
            waiter.granted.store(true, Ordering::Release);
            granted.push(waiter);
        }
        granted
    }

    /// The next in line.
    fn next(&mut self) -> Option<Arc<Waiter>> {
        let may_run = |key: &usize| self.apps.get(key).is_some_and(|queue| !queue.share.is_capped());
        let (pass, key) = self.order.iter().find(|(_, key)| may_run(key)).copied()?;
        let queue = self.apps.get_mut(&key)?;
        let waiter = queue.waiting.pop_front();
        if queue.waiting.is_empty() {
            self.order.remove(&(pass, key));
            self.apps.remove(&key);
        }
        self.clock = self.clock.max(pass);
        waiter
    }

    /// The app used so much.
    fn charge(&mut self, share: &Arc<Share>, ns: u64) {
        let (key, before) = (key(share), share.pass.get());
        // At least one, so that turns of no length take turns too.
        let step = ns.saturating_mul(100) / share.weight();
        let pass = before.saturating_add(step.max(1));
        share.pass.set(pass);
        if self.order.remove(&(before, key)) {
            self.order.insert((pass, key));
        }
    }

    fn leave(&mut self, share: &Arc<Share>, waiter: &Arc<Waiter>) {
        let key = key(share);
        let Some(queue) = self.apps.get_mut(&key) else { return };
        queue.waiting.retain(|w| !Arc::ptr_eq(w, waiter));
        if queue.waiting.is_empty() {
            self.apps.remove(&key);
            self.order.remove(&(share.pass.get(), key));
        }
    }
}

/// A place in line, or at work; given back when dropped.
pub(super) struct Turn {
    turns: Arc<Turns>,
    share: Arc<Share>,
    waiter: Arc<Waiter>,
    over: bool,
}

impl Turn {
    /// Whether it may run now; else `waker` is told once it may.
    pub(super) fn is_granted(&self, waker: &Waker) -> bool {
        if self.waiter.granted.load(Ordering::Acquire) {
            return true;
        }
        self.waiter.waker.register(waker);
        self.waiter.granted.load(Ordering::Acquire)
    }

    /// It ran for so long.
    pub(super) fn end(mut self, ns: u64) {
        self.give_back(ns);
    }

    fn give_back(&mut self, ns: u64) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let mut queues = self.turns.queues();
        // Granted under the lock, so it cannot be granted after this.
        if !self.waiter.granted.load(Ordering::Acquire) {
            return queues.leave(&self.share, &self.waiter);
        }
        queues.charge(&self.share, ns);
        queues.free += 1;
        let granted = queues.grant();
        drop(queues);
        wake(granted);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.give_back(0);
    }
}

#[cfg(test)]
mod tests {
    use marcato_api::AppBudget;

    use super::*;

    fn share(cpu_weight: u32) -> Arc<Share> {
        Arc::new(Share::new(&AppBudget { cpu_weight, ..AppBudget::default() }))
    }

    fn join(turns: &Arc<Turns>, share: &Arc<Share>) -> Turn {
        turns.join(share, Waker::noop())
    }

    /// Serves one at a time, each with a turn of 1 ms after which it is in line again; counts turns by app.
    fn serve(apps: &[(Arc<Share>, usize)], turns: usize) -> Vec<usize> {
        let all = Arc::new(Turns::new(1));
        let mut line: Vec<(usize, Turn)> = Vec::new();
        for (at, (share, guests)) in apps.iter().enumerate() {
            line.extend((0..*guests).map(|_| (at, join(&all, share))));
        }
        let mut served = vec![0; apps.len()];
        for _ in 0..turns {
            let next = line.iter().position(|(_, turn)| turn.is_granted(Waker::noop())).unwrap();
            let (at, turn) = line.remove(next);
            assert!(line.iter().all(|(_, other)| !other.is_granted(Waker::noop())), "one place");
            served[at] += 1;
            // It is in line again before its place is free, as a guest that yields.
            let again = join(&all, &apps[at].0);
            turn.end(1_000_000);
            line.push((at, again));
        }
        served
    }

    #[test]
    fn apps_take_turns_by_weight_however_many_guests_they_have() {
        let served = serve(&[(share(100), 50), (share(100), 1)], 200);
        assert!(served[0].abs_diff(served[1]) <= 2, "{served:?}");
        let served = serve(&[(share(300), 2), (share(100), 30)], 400);
        assert!(served[0].abs_diff(300) <= 3, "{served:?}");
    }

    #[test]
    fn who_comes_late_saved_nothing_up() {
        let turns = Arc::new(Turns::new(1));
        let (a, b) = (share(100), share(100));
        for _ in 0..1000 {
            join(&turns, &a).end(1_000_000);
        }
        let (mut line_a, mut line_b) = (join(&turns, &a), join(&turns, &b));
        let mut in_a_row = 0;
        for _ in 0..20 {
            if line_b.is_granted(Waker::noop()) {
                in_a_row += 1;
                let again = join(&turns, &b);
                std::mem::replace(&mut line_b, again).end(1_000_000);
            } else {
                assert!(line_a.is_granted(Waker::noop()));
                assert!(in_a_row <= 2, "{in_a_row}");
                in_a_row = 0;
                let again = join(&turns, &a);
                std::mem::replace(&mut line_a, again).end(1_000_000);
            }
        }
    }

    #[test]
    fn whoever_leaves_in_line_or_at_work_leaves_a_place() {
        let turns = Arc::new(Turns::new(1));
        let (a, b) = (share(100), share(100));
        let at_work = join(&turns, &a);
        let (gone, waits) = (join(&turns, &b), join(&turns, &b));
        drop(gone);
        assert!(at_work.is_granted(Waker::noop()) && !waits.is_granted(Waker::noop()));
        drop(at_work);
        assert!(waits.is_granted(Waker::noop()));
        drop(waits);
        let queues = turns.queues();
        assert!(queues.free == 1 && queues.apps.is_empty() && queues.order.is_empty());
    }

    #[test]
    fn a_capped_app_waits_and_holds_nobody_up() {
        let turns = Arc::new(Turns::new(1));
        let (a, b) = (share(100), share(100));
        a.capped.store(true, Ordering::Relaxed);
        let (first, second) = (join(&turns, &a), join(&turns, &b));
        assert!(!first.is_granted(Waker::noop()) && second.is_granted(Waker::noop()));
        second.end(1_000);
        assert!(!first.is_granted(Waker::noop()));
        a.capped.store(false, Ordering::Relaxed);
        turns.grant();
        assert!(first.is_granted(Waker::noop()));
    }
}
