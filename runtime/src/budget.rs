//! What the host spends on guests beside their linear memory, and what all instances of an app share.
//!
//! Owns: the accountant of host memory (a sandbox's part and its app's), charges that give themselves back, and
//! the registry of apps. Does not own: what a call costs (`metered`), nor linear memory (`limits`). Request flow.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use marcato_api::{AppBudget, AppName};

use crate::limits::{Limit, LimitCounters, MemoryTotal};
use crate::logs::{AppRate, RATE_PER_SECOND, SandboxLog};
use crate::share::Share;

/// What a sandbox costs the host before it does anything: its store, contexts and two unfinished lines of log.
pub(crate) const SANDBOX_COST: u64 = 48 << 10;

/// Outbound requests in flight of an app for which its operator set nothing.
pub(crate) const OUTBOUND_IN_FLIGHT: u32 = 256;

/// A sandbox takes from its app in steps of this, so that small charges touch no counter that is shared.
const STEP: u64 = 16 << 10;

/// What all instances of an app on this host share.
pub(crate) struct AppAccount {
    /// Linear memory of all its sandboxes.
    pub(crate) memory: MemoryTotal,
    /// Host memory of all its sandboxes.
    pub(crate) buffers: MemoryTotal,
    /// Outbound requests in flight.
    pub(crate) outbound: MemoryTotal,
    /// What its guests may log.
    pub(crate) log: Arc<AppRate>,
    /// Its part of the CPU.
    pub(crate) share: Arc<Share>,
    coarse_clocks: AtomicBool,
}

impl AppAccount {
    pub(crate) fn new(budget: &AppBudget) -> Self {
        let account = Self {
            memory: MemoryTotal::new(u64::MAX),
            buffers: MemoryTotal::new(u64::MAX),
            outbound: MemoryTotal::new(u64::MAX),
            log: Arc::default(),
            share: Arc::new(Share::new(budget)),
            coarse_clocks: AtomicBool::new(false),
        };
        account.set(budget);
        account
    }

    /// The operator's word, from the instance that started last. What is used already stays used.
    fn set(&self, budget: &AppBudget) {
        self.memory.set_limit(budget.app_memory_bytes.map_or(u64::MAX, |b| b.0));
        self.buffers.set_limit(budget.app_buffer_bytes.0);
        self.outbound.set_limit(budget.outbound_in_flight.unwrap_or(OUTBOUND_IN_FLIGHT).into());
        self.log.set(budget.log_bytes_per_s.map_or(RATE_PER_SECOND, |b| b.0));
        self.share.set(budget);
        self.coarse_clocks.store(budget.coarse_clocks, Ordering::Relaxed);
    }

    pub(crate) fn coarse_clocks(&self) -> bool {
        self.coarse_clocks.load(Ordering::Relaxed)
    }
}

/// The apps of this process.
#[derive(Default)]
pub(crate) struct Apps(Mutex<Known>);

#[derive(Default)]
struct Known {
    apps: HashMap<AppName, Weak<AppAccount>>,
    /// Entries without an app are removed once there are this many.
    sweep_at: usize,
}

impl Apps {
    /// The account of this app, with this budget from now on.
    pub(crate) fn account(&self, app: &AppName, budget: &AppBudget) -> Arc<AppAccount> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = known.apps.get(app).and_then(Weak::upgrade) {
            account.set(budget);
            return account;
        }
        if known.apps.len() >= known.sweep_at {
            known.apps.retain(|_, account| account.strong_count() > 0);
            known.sweep_at = (known.apps.len() * 2).max(64);
        }
        let account = Arc::new(AppAccount::new(budget));
        known.apps.insert(app.clone(), Arc::downgrade(&account));
        account
    }
}

/// The accountant refused: nothing was allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("limit {} reached", .0.name())]
pub(crate) struct OverBudget(pub(crate) Limit);

#[derive(Debug, Default)]
struct Held {
    used: u64,
    /// What of the app's total is reserved for this sandbox; at least `used`.
    reserved: u64,
    peak: u64,
}

/// The accountant of one sandbox. Charges may outlive the sandbox: a response that still goes out.
pub(crate) struct SandboxAccount {
    held: Mutex<Held>,
    limit: u64,
    app: Arc<AppAccount>,
    counters: Arc<LimitCounters>,
    log: Arc<SandboxLog>,
    /// The log has heard of the limit; once per request is enough.
    told: AtomicBool,
    /// Bytes that outbound bodies of the present requests may still have.
    outbound_bytes: AtomicU64,
    /// Outbound requests that the present requests may still make.
    outbound_requests: AtomicU64,
    /// Outbound requests in flight.
    pub(crate) outbound: MemoryTotal,
}

impl SandboxAccount {
    pub(crate) fn new(
        limit: u64,
        app: Arc<AppAccount>,
        counters: Arc<LimitCounters>,
        log: Arc<SandboxLog>,
        outbound: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::default(),
            limit,
            app,
            counters,
            log,
            told: AtomicBool::new(false),
            outbound_bytes: AtomicU64::new(0),
            outbound_requests: AtomicU64::new(0),
            outbound: MemoryTotal::new(outbound),
        })
    }

    pub(crate) fn app(&self) -> &Arc<AppAccount> {
        &self.app
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Three numbers: usable whatever panicked.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `bytes` in, unless that goes over the sandbox's or the app's limit.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), OverBudget> {
        let limit = {
            let mut held = self.held();
            match held.used.checked_add(bytes).filter(|used| *used <= self.limit) {
                None => Limit::BufferBytes,
                Some(used) if used <= held.reserved || self.reserve(&mut held, used) => {
                    held.used = used;
                    held.peak = held.peak.max(used);
                    return Ok(());
                }
                Some(_) => Limit::AppBufferBytes,
            }
        };
        Err(self.refused(limit))
    }

    fn reserve(&self, held: &mut Held, used: u64) -> bool {
        let (exact, step) = (used - held.reserved, used.next_multiple_of(STEP) - held.reserved);
        match [step, exact].into_iter().find(|bytes| self.app.buffers.take(*bytes)) {
            Some(bytes) => {
                held.reserved += bytes;
                true
            }
            None => false,
        }
    }

    /// Counts `bytes` in whatever the limits say: for what is there already and bounded by itself.
    pub(crate) fn force(&self, bytes: u64) {
        let mut held = self.held();
        held.used = held.used.saturating_add(bytes);
        held.peak = held.peak.max(held.used);
        if held.used > held.reserved {
            let more = held.used - held.reserved;
            self.app.buffers.force(more);
            held.reserved += more;
        }
    }

    pub(crate) fn release(&self, bytes: u64) {
        let mut held = self.held();
        held.used = held.used.saturating_sub(bytes);
        let keep = held.used.next_multiple_of(STEP);
        if held.reserved > keep + STEP {
            self.app.buffers.release(held.reserved - keep);
            held.reserved = keep;
        }
    }

    /// The limit that is exceeded by more than `slack`, as after [`Self::force`].
    pub(crate) fn over(&self, slack: u64) -> Option<Limit> {
        if self.held().used > self.limit.saturating_add(slack) {
            return Some(Limit::BufferBytes);
        }
        let app = &self.app.buffers;
        (app.used() > app.limit().saturating_add(slack)).then_some(Limit::AppBufferBytes)
    }

    /// Whether `bytes` more would be granted now.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let held = self.held();
        match held.used.checked_add(bytes) {
            Some(used) if used <= self.limit => {
                used <= held.reserved || self.app.buffers.has_room(used - held.reserved)
            }
            _ => false,
        }
    }

    /// A charge that gives itself back.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge, OverBudget> {
        self.take(bytes)?;
        Ok(Charge { account: Arc::clone(self), bytes })
    }

    /// Counts and tells that a limit fired.
    pub(crate) fn refused(&self, limit: Limit) -> OverBudget {
        self.counters.count(limit);
        if !self.told.swap(true, Ordering::Relaxed) {
            let of = match limit {
                Limit::AppBufferBytes => self.app.buffers.limit(),
                _ => self.limit,
            };
            let of = marcato_api::Bytes(of);
            self.log.platform(&format!("limit {} ({of}) reached: what the host holds for the guest", limit.name()));
        }
        OverBudget(limit)
    }

    /// Counts and tells that a limit of outbound HTTP fired.
    pub(crate) fn refused_outbound(&self, limit: Limit, of: &dyn std::fmt::Display) {
        self.counters.count(limit);
        self.log.platform(&format!("limit {} ({of}) reached: outbound request refused", limit.name()));
    }

    /// Grants what a request that begins may ask of others. `at_once` requests share the sandbox.
    pub(crate) fn grant(&self, requests: u32, bytes: u64, at_once: u32) {
        let add = |left: &AtomicU64, more: u64| {
            let most = more.saturating_mul(u64::from(at_once.max(1)));
            // With one request at a time nothing is left over from the one before.
            let next = |now: u64| Some(if at_once <= 1 { more } else { now.saturating_add(more).min(most) });
            let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        };
        self.told.store(false, Ordering::Relaxed);
        add(&self.outbound_requests, requests.into());
        add(&self.outbound_bytes, bytes);
    }

    /// One outbound request; false when there is none left.
    pub(crate) fn take_outbound_request(&self) -> bool {
        self.outbound_requests.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// Bytes of an outbound body; false when there are not so many left.
    pub(crate) fn take_outbound_bytes(&self, bytes: u64) -> bool {
        let take = |left: u64| left.checked_sub(bytes);
        self.outbound_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

impl Drop for SandboxAccount {
    fn drop(&mut self) {
        let held = self.held();
        self.app.buffers.release(held.reserved);
        self.counters.peak(Limit::BufferBytes, held.peak);
        self.counters.peak(Limit::OutboundConcurrent, self.outbound.peak());
    }
}

/// Host memory that is held for a guest, until dropped.
pub(crate) struct Charge {
    account: Arc<SandboxAccount>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.release(self.bytes);
    }
}

/// Bytes with their charge: it is given back with the last reference, wherever that is.
struct Charged {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Ties a charge to bytes.
pub(crate) fn charged(bytes: Bytes, charge: Charge) -> Bytes {
    if bytes.is_empty() { bytes } else { Bytes::from_owner(Charged { bytes, _charge: charge }) }
}

#[cfg(test)]
mod tests;
