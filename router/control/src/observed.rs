//! What the hosts last said, as one snapshot: tasks write it, the admin API reads it.
//!
//! In memory only: after a start it fills as hosts answer. Flow: collect -> here -> plan, API.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use jiff::{SignedDuration, Timestamp};
use marcato_api::{AppName, HostId, HostState, InstanceId, Inventory};

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
    /// How often it fell silent lately.
    pub steadiness: Steadiness,
}

impl Observed {
    /// How many instances the planner has on a host.
    #[must_use]
    pub fn placed_on(&self, host: &HostId) -> u32 {
        self.placed.get(host).map_or(0, |placed| u32::try_from(placed.len()).unwrap_or(u32::MAX))
    }
}

impl ObservedHost {
    /// A host that was not reached yet.
    #[must_use]
    pub fn unknown() -> Self {
        let steadiness = Steadiness::default();
        Self { state: HostState::Unknown, inventory: None, last_seen: None, error: None, steadiness }
    }
}

/// How often a host fell silent and came back. Once is a restart; one that does it again and again gets new instances
/// last, for longer each time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Steadiness {
    returns: u32,
    last: Option<Timestamp>,
    held_until: Option<Timestamp>,
}

impl Steadiness {
    /// After so long without falling silent nothing is held against it.
    const FORGET_AFTER: Duration = Duration::from_secs(1_800);
    const FIRST_HOLD: Duration = Duration::from_secs(10);
    const LONGEST_HOLD: Duration = Duration::from_secs(600);

    /// It answers again after it was suspected.
    #[must_use]
    pub fn returned(self, now: Timestamp) -> Self {
        let steady = self.last.is_none_or(|last| now.duration_since(last) > signed(Self::FORGET_AFTER));
        let returns = if steady { 1 } else { self.returns.saturating_add(1) };
        let hold = returns.checked_sub(2).map(|times| {
            Self::FIRST_HOLD.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(Self::LONGEST_HOLD)
        });
        Self { returns, last: Some(now), held_until: hold.map(|hold| now + hold) }
    }

    /// Until when it is the last choice, when it is.
    #[must_use]
    pub fn held_until(self, now: Timestamp) -> Option<Timestamp> {
        self.held_until.filter(|until| *until > now)
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// One snapshot of all that was observed.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// By host.
    pub hosts: BTreeMap<HostId, ObservedHost>,
    /// Why an app is not as desired, in words; from the planner.
    pub notes: BTreeMap<AppName, Vec<String>>,
    /// The instances that the planner has on each host.
    pub placed: BTreeMap<HostId, BTreeSet<InstanceId>>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_falls_silent_again_and_again_is_held_longer_each_time_up_to_a_bound() {
        let mut now = Timestamp::UNIX_EPOCH;
        let mut steadiness = Steadiness::default();
        let mut holds = Vec::new();
        for _ in 0..10 {
            now += Duration::from_secs(60);
            steadiness = steadiness.returned(now);
            holds.push(steadiness.held_until(now).map_or(0, |until| until.duration_since(now).as_secs()));
        }
        assert_eq!(holds, [0, 10, 20, 40, 80, 160, 320, 600, 600, 600]);
        assert!(steadiness.held_until(now + Duration::from_secs(600)).is_none());
        let later = now + Duration::from_secs(1_801);
        assert!(steadiness.returned(later).held_until(later).is_none(), "a restart after a quiet half hour");
    }
}
