//! CPU shares: which app's guests run first where apps want more than there is.
//!
//! Owns: how far each app is ahead of its share (`balance`), the order in which guests take turns (`turns`), and the
//! threads on which they do (`lane`). Does not own: what one request may use in all (`limits`). Request flow.
//!
//! A request begins on the thread of its connection. Two things send a guest to the lane, whose threads have a lower
//! priority than those of connections: a turn that lasted, and an app that is ahead of its share or over its cap. There
//! guests take turns by their apps' weights. So a neighbour's short request never waits behind more than one turn, and an
//! app that wants all there is gets all that others leave.

mod balance;
mod lane;
mod turns;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use marcato_api::AppBudget;
use tokio::runtime::Handle;

use self::balance::{Account, Seen};
use self::lane::Lane;
pub(crate) use self::lane::{Lost, Payer, Task};
use self::turns::{Pass, Turns};
use crate::error::RuntimeError;

/// `cap_millis` of an app without a cap.
const NO_CAP: u32 = u32::MAX;

/// Threads of connections are asked once in so many looks how long tasks wait there.
const LOOKS_PER_DELAY: u64 = 5;

/// An app that used no CPU time for so long wants none.
const FORGET_AFTER: Duration = Duration::from_secs(1);

/// One app's part of the CPU.
#[derive(Debug)]
pub(crate) struct Share {
    weight: AtomicU32,
    cap_millis: AtomicU32,
    /// CPU time of all its guests, ever.
    used_ns: AtomicU64,
    /// Turns that took it.
    turns: AtomicU64,
    /// Those of them that were long.
    long_turns: AtomicU64,
    /// It is among those that are looked at.
    listed: AtomicBool,
    /// Its guests run in the lane.
    behind: AtomicBool,
    /// Its cap is reached: its guests wait.
    capped: AtomicBool,
    /// How often it was.
    times_capped: AtomicU64,
    /// Where it stands in the lane's order.
    pass: Pass,
}

impl Share {
    pub(crate) fn new(budget: &AppBudget) -> Self {
        let share = Self {
            weight: AtomicU32::new(AppBudget::DEFAULT_WEIGHT),
            cap_millis: AtomicU32::new(NO_CAP),
            used_ns: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            long_turns: AtomicU64::new(0),
            listed: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            capped: AtomicBool::new(false),
            times_capped: AtomicU64::new(0),
            pass: Pass::default(),
        };
        share.set(budget);
        share
    }

    /// The operator's word.
    pub(crate) fn set(&self, budget: &AppBudget) {
        self.weight.store(budget.cpu_weight.max(1), Ordering::Relaxed);
        self.cap_millis.store(budget.cpu_cap_millis.unwrap_or(NO_CAP), Ordering::Relaxed);
    }

    fn weight(&self) -> u64 {
        self.weight.load(Ordering::Relaxed).into()
    }

    /// Thousandths of a core that it may use; nothing when it may use all.
    pub(crate) fn cap_millis(&self) -> Option<u32> {
        Some(self.cap_millis.load(Ordering::Relaxed)).filter(|cap| *cap != NO_CAP)
    }

    /// How often its cap made its guests wait.
    pub(crate) fn times_capped(&self) -> u64 {
        self.times_capped.load(Ordering::Relaxed)
    }

    fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    fn is_capped(&self) -> bool {
        self.capped.load(Ordering::Relaxed)
    }

    fn seen(&self) -> Seen {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Seen { used_ns: read(&self.used_ns), turns: read(&self.turns), long_turns: read(&self.long_turns) }
    }
}

/// The shares of all apps of a process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Shares(Arc<Inner>);

struct Inner {
    lane: Lane,
    turns: Arc<Turns>,
    /// The threads of connections, and how long what becomes ready there waits.
    front: Vec<Handle>,
    delay_us: Arc<AtomicU64>,
    /// How often shares were looked at.
    looks: AtomicU64,
    /// Off: nobody goes to the lane.
    on: bool,
    active: Mutex<Vec<Active>>,
}

/// An app that used CPU time lately.
struct Active {
    share: Arc<Share>,
    account: Account,
}

impl Shares {
    /// With a lane of as many threads as there are threads of connections (`front`).
    pub(crate) fn new(front: Vec<Handle>, on: bool) -> Result<Self, RuntimeError> {
        let turns = Arc::new(Turns::new(front.len().max(1)));
        let lane = Lane::start(front.len().max(1))?;
        Ok(Self(Arc::new(Inner {
            lane,
            turns,
            front,
            delay_us: Arc::default(),
            looks: AtomicU64::new(0),
            on,
            active: Mutex::default(),
        })))
    }

    /// A guest had a turn.
    fn spent(&self, share: &Arc<Share>, ns: u64) {
        share.used_ns.fetch_add(ns, Ordering::Relaxed);
        share.turns.fetch_add(1, Ordering::Relaxed);
        if ns >= balance::LONG_NS {
            share.long_turns.fetch_add(1, Ordering::Relaxed);
        }
        if !share.listed.load(Ordering::Relaxed) && !share.listed.swap(true, Ordering::Relaxed) {
            // What it used just now counts: it is looked at from before this turn.
            let seen = share.seen();
            let before = Seen { used_ns: seen.used_ns.saturating_sub(ns), turns: seen.turns.saturating_sub(1), ..seen };
            self.active().push(Active { share: Arc::clone(share), account: Account::new(before) });
        }
    }

    fn active(&self) -> MutexGuard<'_, Vec<Active>> {
        // A list of whole entries: usable whatever panicked.
        self.0.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at who used what since the last time, `elapsed` ago, and says who goes to the lane. Called by the ticker.
    /// True: an app waits for the next time.
    pub(crate) fn balance(&self, elapsed: Duration) -> bool {
        let crowded = self.0.delay_us.swap(0, Ordering::Relaxed) >= balance::CROWDED_US;
        let mut active = self.active();
        let seen: Vec<_> = active.iter().map(|a| (a.share.seen(), a.share.weight(), a.share.cap_millis())).collect();
        let verdicts = balance::judge(active.iter_mut().map(|a| &mut a.account), &seen, elapsed, crowded);
        let (mut freed, mut waits) = (false, false);
        for (app, verdict) in active.iter().zip(&verdicts) {
            app.share.behind.store(verdict.behind && self.0.on, Ordering::Relaxed);
            let was = app.share.capped.swap(verdict.capped, Ordering::Relaxed);
            if verdict.capped && !was {
                app.share.times_capped.fetch_add(1, Ordering::Relaxed);
            }
            freed |= was && !verdict.capped;
            waits |= verdict.capped;
        }
        active.retain(|app| {
            let keep = app.account.idle < FORGET_AFTER || app.share.is_capped();
            if !keep {
                app.share.behind.store(false, Ordering::Relaxed);
                app.share.listed.store(false, Ordering::Relaxed);
            }
            keep
        });
        let alone = active.len() < 2;
        drop(active);
        if freed {
            self.0.turns.grant();
        }
        if !alone && self.0.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOKS_PER_DELAY) {
            self.measure_delay();
        }
        waits
    }

    /// A guest waited so long for its turn in the lane.
    fn waited_in_lane(&self, waited: Duration) {
        if waited >= balance::LANE_CROWDED {
            self.0.delay_us.fetch_max(balance::CROWDED_US, Ordering::Relaxed);
        }
    }

    /// Has each thread of connections say how long a task waits there. Only where apps may be in each other's way.
    fn measure_delay(&self) {
        for thread in &self.0.front {
            let (begin, delay) = (std::time::Instant::now(), Arc::clone(&self.0.delay_us));
            drop(thread.spawn(async move {
                let waited = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
                delay.fetch_max(waited, Ordering::Relaxed);
            }));
        }
    }
}

#[cfg(test)]
mod tests;
