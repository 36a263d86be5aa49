//! What the hosts last said, as one snapshot: tasks write it, the admin API reads it.
//!
//! In memory only: after a start it fills as hosts answer. Flow: collect -> here -> plan, API.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use jiff::Timestamp;
use marcato_api::{AppName, HostId, HostState, Inventory};

/// A host as it was last seen.
#[derive(Debug, Clone)]
pub struct ObservedHost {
    /// How it stands.
    pub state: HostState,
    /// What it last said.
    pub inventory: Option<Arc<Inventory>>,
    /// When it last answered.
    pub last_seen: Option<Timestamp>,
    /// Why it did not answer the last time, when it did not.
    pub error: Option<String>,
}

/// One snapshot of all that was observed.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// By host.
    pub hosts: BTreeMap<HostId, ObservedHost>,
    /// Why an app is not as desired, in words; from the planner.
    pub notes: BTreeMap<AppName, Vec<String>>,
}

/// Where the latest snapshot is.
#[derive(Debug, Default)]
pub struct ObservedCell(ArcSwap<Observed>);

impl ObservedCell {
    /// Nothing observed yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The latest snapshot.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Observed>> {
        self.0.load()
    }

    /// The latest snapshot, to keep.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Observed> {
        self.0.load_full()
    }

    /// Publishes a snapshot.
    pub fn store(&self, observed: Observed) {
        self.0.store(Arc::new(observed));
    }

    /// Changes the snapshot. `change` may run more than once when several tasks write.
    pub fn update(&self, change: impl Fn(&mut Observed)) {
        self.0.rcu(|now| {
            let mut next = Observed::clone(now);
            change(&mut next);
            next
        });
    }
}
