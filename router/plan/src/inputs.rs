//! What a plan is made from, and what it is. Types only.

use std::collections::BTreeMap;
use std::sync::Arc;

use marcato_api::{
    App, AppBudget, AppName, HostAddress, HostId, HostState, InstanceId, InstanceSpec, InstanceState, InstanceStatus,
    Inventory, Isolation, Peer, Revision, RevisionNumber, RevisionPhase, ServiceId, ServiceKind, ServiceName,
    ServiceSpec,
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
    /// Whether a host has been silent for so long that its instances are placed elsewhere. One that was not
    /// heard at all yet (the router has just started) is not given up.
    #[must_use]
    pub fn is_dead(&self, host: &HostInput) -> bool {
        let silent_ms = host.last_seen_ms.map(|seen| self.now_ms.saturating_sub(seen));
        host.state != HostState::Up
            && self.settings.dead_after_ms.zip(silent_ms).is_some_and(|(bound, silent)| silent > bound)
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
}

impl Settings {
    /// What the router uses: 500 ms, 30 s, 120 s (a compilation may take 60 s), and instances wait for their host.
    #[must_use]
    pub const fn standard() -> Self {
        Self { drain_min_ms: 500, drain_max_ms: 30_000, start_max_ms: 120_000, dead_after_ms: None }
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
    /// How it stands.
    pub state: HostState,
    /// Where its HostApi listens, for peers.
    pub control: HostAddress,
    /// What it last said.
    pub inventory: Option<Arc<Inventory>>,
    /// When it last answered; `None`: not since this router started.
    pub last_seen_ms: Option<u64>,
}

impl HostInput {
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
