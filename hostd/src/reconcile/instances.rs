//! Instances: those of the config run in a worker, drain or are gone.
//!
//! An instance starts from code in the cache alone, so a restarted host serves its ledger without a
//! compiler. A spec that changed under the same id is a removal and an addition; `state` alone is not.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use marcato_api::{
    ComponentState, ComponentStatus, Digest, HostConfig, HostId, InstanceId, InstancePhase, InstanceSpec,
    InstanceState, ServiceKind, ServiceSpec,
};
use marcato_runtime::{CodeCache, Services};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::services::ServicesStatus;
use super::{Reconciler, back_off};
use crate::channel::{NotStarted, StartOrder};
use crate::logs::Logs;
use crate::pool::{Placed as InWorker, Placement, Pool};
use crate::remote::ServiceCalls;

/// Longest pause before a start is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Instances that a worker is given at once: the first of many should not wait for the last.
const BATCH: usize = 256;

/// How one instance of the config stands.
#[derive(Clone)]
pub(crate) struct InstanceEntry {
    /// What was told.
    pub(crate) spec: Arc<InstanceSpec>,
    /// How it stands.
    pub(crate) phase: InstancePhase,
    /// Why it failed.
    pub(crate) reason: Option<String>,
    /// Where it runs, for live numbers.
    pub(crate) placed: Option<InWorker>,
}

impl PartialEq for InstanceEntry {
    fn eq(&self, other: &Self) -> bool {
        self.spec.id == other.spec.id && self.phase == other.phase && self.reason == other.reason
    }
}

/// How the instances stand.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct InstancesStatus {
    /// A pass was made, and nothing that could run already waits.
    pub(crate) settled: bool,
    /// All instances of the config.
    pub(crate) entries: Vec<InstanceEntry>,
}

enum Standing {
    /// Its code or its services are not there yet.
    Waiting,
    /// Its component does not compile; the component reconciler tries again, not this one.
    NotCompilable(String),
    Running(InWorker),
    Failed {
        reason: String,
        count: u32,
        retry_at: Instant,
    },
}

struct Placed {
    spec: Arc<InstanceSpec>,
    /// What its bindings lead to; another owner or kind is another instance.
    services: Vec<ServiceSpec>,
    standing: Standing,
}

/// See the module.
pub(crate) struct Instances {
    with: InstancesSetup,
    placed: HashMap<InstanceId, Placed>,
}

/// An instance to place, with the services that it is bound to.
type Batched<'a> = (&'a InstanceSpec, Vec<ServiceSpec>, Placement);

/// What [`Instances`] works with.
pub(crate) struct InstancesSetup {
    pub(crate) own: HostId,
    pub(crate) pool: Pool,
    pub(crate) cache: CodeCache,
    pub(crate) calls: Arc<ServiceCalls>,
    pub(crate) logs: Logs,
    pub(crate) components: watch::Receiver<Vec<ComponentStatus>>,
    pub(crate) services: watch::Receiver<ServicesStatus>,
    /// Asks for a compilation when cached code turns out unusable.
    pub(crate) wake_components: Arc<Notify>,
}

fn differs(placed: &Placed, spec: &InstanceSpec, services: &[ServiceSpec]) -> bool {
    let same = InstanceSpec { state: placed.spec.state, ..spec.clone() } == *placed.spec;
    // Draining is one way: an instance that should run again starts anew.
    let revived = placed.spec.state == InstanceState::Draining && spec.state == InstanceState::Running;
    !same || revived || placed.services != services
}

fn bound_services(config: &HostConfig, spec: &InstanceSpec) -> Vec<ServiceSpec> {
    spec.bindings.values().filter_map(|id| config.services.iter().find(|s| s.id == *id)).cloned().collect()
}

/// What the worker is told of bound services: their kinds by name.
fn bindings(services: &Services) -> BTreeMap<String, ServiceKind> {
    let access = services.access.keys().map(|name| (name.clone(), ServiceKind::Access));
    access.chain(services.keyvalue.keys().map(|name| (name.clone(), ServiceKind::Keyvalue))).collect()
}

impl Instances {
    /// A reconciler that has placed nothing yet.
    pub(crate) fn new(with: InstancesSetup) -> Self {
        Self { with, placed: HashMap::new() }
    }

    /// Removals and drains.
    fn take_away(&mut self, config: &HostConfig) {
        let wanted: HashMap<&InstanceId, &InstanceSpec> = config.instances.iter().map(|i| (&i.id, i)).collect();
        let gone: Vec<InstanceId> = self
            .placed
            .iter()
            .filter(|(id, p)| wanted.get(id).is_none_or(|s| differs(p, s, &bound_services(config, s))))
            .map(|(id, _)| id.clone())
            .collect();
        let removed: Vec<Placed> = gone.iter().filter_map(|id| self.placed.remove(id)).collect();
        for placed in removed {
            tracing::info!(instance = %placed.spec.id, "instance removed");
            if let Standing::Running(instance) = placed.standing {
                instance.remove();
            }
        }
        for placed in self.placed.values_mut() {
            let Some(spec) = wanted.get(&placed.spec.id) else { continue };
            if spec.state == InstanceState::Draining && placed.spec.state == InstanceState::Running {
                tracing::info!(instance = %spec.id, "instance drains");
                placed.spec = Arc::new((*spec).clone());
                if let Standing::Running(instance) = &placed.standing {
                    instance.drain();
                }
            }
        }
    }

    /// The services of an instance. `Ok(None)`: one of this host's own is not opened yet.
    fn services_of(&self, spec: &InstanceSpec, bound: &[ServiceSpec]) -> Result<Option<Services>, String> {
        let mut services = Services::default();
        for (name, id) in &spec.bindings {
            let service = bound
                .iter()
                .find(|s| s.id == *id && !s.deleted)
                .ok_or_else(|| format!("binding {name:?}: its service {id} does not exist"))?;
            if service.owner == self.with.own && !self.with.services.borrow().attempted.contains(id) {
                return Ok(None);
            }
            match service.kind {
                ServiceKind::Access => {
                    services.access.insert(name.clone(), self.with.calls.access(service));
                }
                ServiceKind::Keyvalue => {
                    services.keyvalue.insert(name.clone(), self.with.calls.keyvalue(service));
                }
            }
        }
        Ok(Some(services))
    }

    fn compile_failure(&self, digest: &Digest) -> Option<String> {
        let all = self.with.components.borrow();
        let status = all.iter().find(|c| c.digest == *digest && c.state == ComponentState::Failed)?;
        Some(status.reason.clone().unwrap_or_else(|| "the component does not compile".into()))
    }

    /// What a worker needs to start it; or why it does not start now.
    fn placement(&self, spec: &InstanceSpec, bound: &[ServiceSpec]) -> Result<Placement, Standing> {
        if spec.state == InstanceState::Draining {
            // It has nothing in flight to finish, so there is no reason to start it.
            return Err(Standing::Waiting);
        }
        if !self.with.cache.is_compiled(&spec.digest) {
            return Err(self.not_compiled(&spec.digest));
        }
        let services = match self.services_of(spec, bound) {
            Ok(Some(services)) => services,
            Ok(None) => return Err(Standing::Waiting),
            Err(reason) => return Err(self.failed(&spec.id, reason)),
        };
        let bindings = bindings(&services);
        let order = StartOrder {
            id: spec.id.clone(),
            app: spec.app.clone(),
            revision: spec.revision,
            digest: spec.digest.clone(),
            config: spec.config.clone(),
            budget: spec.budget,
            bindings,
        };
        Ok(Placement {
            order,
            org: spec.org.clone(),
            services,
            logs: self.with.logs.sink(&spec.app, spec.revision, &spec.id),
        })
    }

    fn not_compiled(&self, digest: &Digest) -> Standing {
        self.compile_failure(digest).map_or(Standing::Waiting, Standing::NotCompilable)
    }

    fn failed(&self, id: &InstanceId, reason: String) -> Standing {
        tracing::warn!(instance = %id, %reason, "an instance cannot run");
        let before = match self.placed.get(id).map(|p| &p.standing) {
            Some(Standing::Failed { count, .. }) => *count,
            _ => 0,
        };
        let count = before.saturating_add(1);
        Standing::Failed { reason, count, retry_at: Instant::now() + back_off(count, LONGEST_PAUSE) }
    }

    /// Whether nothing is to be done for it in this pass.
    fn stands(&self, id: &InstanceId) -> bool {
        match self.placed.get(id).map(|p| &p.standing) {
            // Its worker was started anew, and it was not.
            Some(Standing::Running(placed)) => placed.state().failed.is_none(),
            Some(Standing::Failed { retry_at, .. }) => *retry_at > Instant::now(),
            Some(Standing::Waiting | Standing::NotCompilable(_)) | None => false,
        }
    }

    /// Additions, and another try for what failed.
    async fn add(&mut self, config: &HostConfig) {
        let mut batches: BTreeMap<String, Vec<Batched<'_>>> = BTreeMap::new();
        for spec in &config.instances {
            if self.stands(&spec.id) {
                continue;
            }
            let services = bound_services(config, spec);
            match self.placement(spec, &services) {
                Ok(placement) => {
                    batches.entry(spec.isolation.worker(&spec.app)).or_default().push((spec, services, placement));
                }
                Err(standing) => self.put(spec, services, standing),
            }
        }
        // One worker that is slow to start holds no other up.
        let pool = &self.with.pool;
        let starts = batches.into_iter().map(|(worker, all)| async move {
            let mut done = Vec::with_capacity(all.len());
            let mut all = all.into_iter().peekable();
            while all.peek().is_some() {
                let (mut batch, mut told) = (Vec::new(), Vec::new());
                for (spec, services, placement) in all.by_ref().take(BATCH) {
                    told.push((spec, services));
                    batch.push(placement);
                }
                let class = told.first().map(|(spec, _)| spec.isolation.class).unwrap_or_default();
                let results = pool.place(&worker, class, batch).await;
                done.extend(told.into_iter().zip(results));
            }
            done
        });
        for ((spec, services), result) in futures::future::join_all(starts).await.into_iter().flatten() {
            let standing = match result {
                Ok(worker) => {
                    tracing::info!(instance = %spec.id, worker = worker.name(), "instance ready");
                    Standing::Running(InWorker { worker, id: spec.id.clone() })
                }
                Err(NotStarted::Code) => {
                    self.with.pool.forget(&spec.digest);
                    if let Err(error) = self.with.cache.forget(&spec.digest) {
                        tracing::warn!(digest = %spec.digest, %error, "unusable code cannot be removed");
                    }
                    self.with.wake_components.notify_one();
                    Standing::Waiting
                }
                Err(NotStarted::Reason(reason)) => self.failed(&spec.id, reason),
            };
            self.put(spec, services, standing);
        }
    }

    fn put(&mut self, spec: &InstanceSpec, services: Vec<ServiceSpec>, standing: Standing) {
        self.placed.insert(spec.id.clone(), Placed { spec: Arc::new(spec.clone()), services, standing });
    }

    fn status(&self, config: &HostConfig) -> InstancesStatus {
        let mut settled = true;
        let mut entries = Vec::with_capacity(config.instances.len());
        for placed in config.instances.iter().filter_map(|s| self.placed.get(&s.id)) {
            let draining = placed.spec.state == InstanceState::Draining;
            let (phase, reason, placed_in) = match &placed.standing {
                Standing::Running(i) if draining => (InstancePhase::Draining, None, Some(i.clone())),
                Standing::Running(i) => (InstancePhase::Ready, None, Some(i.clone())),
                Standing::Failed { reason, .. } | Standing::NotCompilable(reason) => {
                    (InstancePhase::Failed, Some(reason.clone()), None)
                }
                Standing::Waiting if draining => (InstancePhase::Draining, None, None),
                Standing::Waiting => (InstancePhase::Pending, None, None),
            };
            settled &= phase != InstancePhase::Pending || !self.with.cache.is_compiled(&placed.spec.digest);
            entries.push(InstanceEntry { spec: placed.spec.clone(), phase, reason, placed: placed_in });
        }
        InstancesStatus { settled, entries }
    }
}

impl Reconciler for Instances {
    type Status = InstancesStatus;
    const NAME: &'static str = "instances";
    const PERIOD: Duration = Duration::from_secs(5);

    async fn reconcile(&mut self, config: &HostConfig) -> InstancesStatus {
        self.take_away(config);
        Box::pin(self.add(config)).await;
        self.with.pool.sweep();
        let apps: BTreeSet<_> = config.instances.iter().map(|i| i.app.clone()).collect();
        self.with.logs.retain(&apps);
        self.status(config)
    }
}
