//! What a plan is made from, and what it is. Types only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use marcato_api::{
    App, AppBudget, AppName, HostAddress, HostDuty, HostId, HostState, InstanceId, InstanceSpec, InstanceState,
    InstanceStatus, Inventory, Isolation, Peer, Revision, RevisionNumber, RevisionPhase, ServiceId, ServiceKind,
    ServiceName, ServiceSpec,
};
use serde::{Deserialize, Serialize};

/// Everything that a plan is made from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The apps, sorted by name.
    pub apps: Vec<AppInput>,
    /// The hosts that joined, sorted by id.
    pub hosts: Vec<HostInput>,
    /// The services.
    pub services: Vec<ServiceInput>,
    /// What the last plan placed.
    pub placement: Placement,
    /// Milliseconds since 1970; only differences matter.
    pub now_ms: u64,
    /// Bounds.
    pub settings: Settings,
}

impl Inputs {
    /// The hosts that have been silent for so long that their instances are placed elsewhere. Not one that was never
    /// heard (the router has just started), and no more than a share of all: where many fall silent, it is rather the router
    /// that is cut off. Those that have been silent for longest, first.
    #[must_use]
    pub fn dead(&self) -> BTreeSet<&HostId> {
        let Some(bound) = self.settings.dead_after_ms else { return BTreeSet::new() };
        let silent = |h: &&HostInput| {
            h.state != HostState::Up && h.last_seen_ms.is_some_and(|seen| self.now_ms.saturating_sub(seen) > bound)
        };
        let mut silent: Vec<&HostInput> = self.hosts.iter().filter(silent).collect();
        silent.sort_by_key(|h| (h.last_seen_ms, &h.id));
        let most = self.hosts.len() * self.settings.dead_percent_max as usize / 100;
        silent.into_iter().take(most.max(1)).map(|h| &h.id).collect()
    }
}

/// Bounds of a roll-out.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// An instance that drains is kept at least this long, so that every edge has stopped sending.
    pub drain_min_ms: u64,
    /// And at most this long, whatever still runs in it.
    pub drain_max_ms: u64,
    /// A new revision none of whose instances is ready by then has failed.
    pub start_max_ms: u64,
    /// The instances of a host that was silent for longer than this are placed elsewhere. `None`: they wait for it.
    pub dead_after_ms: Option<u64>,
    /// At most so many of a hundred hosts are given up at once, and at least one.
    pub dead_percent_max: u32,
}

impl Settings {
    /// What the router uses where nothing is set: 500 ms, 30 s, 120 s (a compilation may take 60 s), 10 s, a third.
    #[must_use]
    pub const fn standard() -> Self {
        let (drain_min_ms, drain_max_ms, start_max_ms) = (500, 30_000, 120_000);
        Self { drain_min_ms, drain_max_ms, start_max_ms, dead_after_ms: Some(10_000), dead_percent_max: 33 }
    }
}

/// An app and the revisions that matter.
#[derive(Debug, Clone)]
pub struct AppInput {
    /// The app.
    pub app: App,
    /// Current, stable and still placed revisions, env opened.
    pub revisions: BTreeMap<RevisionNumber, Revision>,
    /// What the policies that hold for it give its instances.
    pub provision: Provision,
}

/// What policies give an instance. It stays as it was when the instance was placed: another provision is another instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provision {
    /// Which worker process.
    pub isolation: Isolation,
    /// What it has on its host, beside the limits of its revision.
    pub budget: AppBudget,
}

/// A host as it was last seen.
#[derive(Debug, Clone)]
pub struct HostInput {
    /// Which.
    pub id: HostId,
    /// Its failure domain.
    pub zone: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How it stands.
    pub state: HostState,
    /// What the operator lets it do.
    pub duty: HostDuty,
    /// It fell silent again and again: others first, until it has been steady for a while.
    pub held: bool,
    /// Where its HostApi listens, for peers.
    pub control: HostAddress,
    /// What it last said.
    pub inventory: Option<Arc<Inventory>>,
    /// When it last answered; `None`: not since this router started.
    pub last_seen_ms: Option<u64>,
}

impl HostInput {
    /// Whether new instances may come here.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == HostState::Up && self.duty == HostDuty::Active
    }

    /// What the host said of an instance.
    #[must_use]
    pub fn instance(&self, id: &InstanceId) -> Option<&InstanceStatus> {
        self.inventory.as_ref()?.instances.iter().find(|i| i.id == *id)
    }
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceInput {
    /// Its identity.
    pub id: ServiceId,
    /// Its name, by which revisions bind it.
    pub name: ServiceName,
    /// Its kind.
    pub kind: ServiceKind,
    /// The host that has its database.
    pub owner: HostId,
    /// Deleted: the owner should remove the database.
    pub deleted: bool,
}

/// The planner's own memory: which instance is where. Holds no secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Grows with each instance placed; part of its id.
    pub next_nonce: u64,
    /// The instances, sorted by id.
    pub instances: Vec<Placed>,
}

/// One placed instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Its id.
    pub id: InstanceId,
    /// Its app.
    pub app: AppName,
    /// Its revision.
    pub revision: RevisionNumber,
    /// The app's restart count when it was placed.
    pub restarts: u64,
    /// Where.
    pub host: HostId,
    /// Serve or drain.
    pub state: InstanceState,
    /// Since when it has this state.
    pub since_ms: u64,
    /// What policies gave it when it was placed.
    #[serde(default)]
    pub provision: Provision,
}

/// What should be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The new placement.
    pub placement: Placement,
    /// What each host should run.
    pub hosts: BTreeMap<HostId, HostPlan>,
    /// Phases of revisions that change.
    pub phases: Vec<PhaseChange>,
    /// Where requests of each app may go.
    pub endpoints: BTreeMap<AppName, Vec<Endpoint>>,
    /// Why an app is not as desired, in words.
    pub notes: BTreeMap<AppName, Vec<String>>,
    /// Something starts or drains: ask the hosts often, and plan again soon even when nothing changes.
    pub unsettled: bool,
}

/// What a host should run; its config but for the generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostPlan {
    /// Instances, sorted by id.
    pub instances: Vec<InstanceSpec>,
    /// Services that it owns or uses, sorted by id.
    pub services: Vec<ServiceSpec>,
    /// Owners of services that it uses, sorted by id.
    pub peers: Vec<Peer>,
}

/// A revision's phase that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseChange {
    /// Its app.
    pub app: AppName,
    /// Which revision.
    pub revision: RevisionNumber,
    /// To what. `Serving` also makes it the app's stable revision.
    pub phase: RevisionPhase,
    /// Why, for `Failed`.
    pub failure: Option<String>,
}

/// An instance that takes requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Which.
    pub instance: InstanceId,
    /// Where.
    pub host: HostId,
    /// Which revision.
    pub revision: RevisionNumber,
    /// Requests at once.
    pub concurrency: u32,
}
