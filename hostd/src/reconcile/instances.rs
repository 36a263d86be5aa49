//! Instances: those of the config run, drain or are gone; requests find them through one swap cell.
//!
//! An instance starts from code in the cache alone, so a restarted host serves its ledger without a
//! compiler. A spec that changed under the same id is a removal and an addition; `state` alone is not.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use marcato_api::{
    ComponentState, ComponentStatus, Digest, HostConfig, HostId, InstanceId, InstancePhase, InstanceSpec,
    InstanceState, ServiceKind, ServiceSpec,
};
use marcato_runtime::{CodeCache, Instance, InstanceSetup, Runtime, Services};
use tokio::sync::watch;
use tokio::time::Instant;

use super::components::chain;
use super::services::ServicesStatus;
use super::{Reconciler, back_off};
use crate::logs::Logs;
use crate::remote::ServiceCalls;

/// Longest pause before a start is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Instances that take requests, by id. The request path reads nothing else.
pub(crate) type InstanceMap = ArcSwap<HashMap<Arc<str>, Instance>>;

/// How one instance of the config stands.
#[derive(Clone)]
pub(crate) struct InstanceEntry {
    /// What was told.
    pub(crate) spec: Arc<InstanceSpec>,
    /// How it stands.
    pub(crate) phase: InstancePhase,
    /// Why it failed.
    pub(crate) reason: Option<String>,
    /// The instance, for live numbers.
    pub(crate) instance: Option<Instance>,
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
    Running(Instance),
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

/// What [`Instances`] works with.
pub(crate) struct InstancesSetup {
    pub(crate) own: HostId,
    pub(crate) runtime: Runtime,
    pub(crate) cache: CodeCache,
    pub(crate) map: Arc<InstanceMap>,
    pub(crate) calls: Arc<ServiceCalls>,
    pub(crate) logs: Logs,
    pub(crate) components: watch::Receiver<Vec<ComponentStatus>>,
    pub(crate) services: watch::Receiver<ServicesStatus>,
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

impl Instances {
    /// A reconciler that has placed nothing yet.
    pub(crate) fn new(with: InstancesSetup) -> Self {
        Self { with, placed: HashMap::new() }
    }

    /// Makes the swap cell hold exactly the running instances.
    fn publish(&self) {
        let map = self
            .placed
            .values()
            .filter_map(|p| match &p.standing {
                Standing::Running(instance) => Some((Arc::from(p.spec.id.as_str()), instance.clone())),
                _ => None,
            })
            .collect();
        self.with.map.store(Arc::new(map));
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
        if !removed.is_empty() {
            self.publish();
        }
        for placed in removed {
            tracing::info!(instance = %placed.spec.id, "instance removed");
            if let Standing::Running(instance) = placed.standing {
                // Requests in flight hold it and finish.
                instance.drain();
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

    async fn start(&mut self, spec: &InstanceSpec, bound: &[ServiceSpec]) -> Result<Standing, String> {
        // Code in the cache was linked once; it is mapped by the first request.
        if !self.with.cache.is_compiled(&spec.digest) {
            return Ok(self.compile_failure(&spec.digest).map_or(Standing::Waiting, Standing::NotCompilable));
        }
        let Some(services) = self.services_of(spec, bound)? else { return Ok(Standing::Waiting) };
        let setup = InstanceSetup {
            id: spec.id.clone(),
            app: spec.app.clone(),
            revision: spec.revision,
            config: spec.config.clone(),
            services,
            logs: self.with.logs.sink(&spec.app, spec.revision, &spec.id),
        };
        let instance = self.with.runtime.start(setup, &spec.digest).map_err(|e| chain(&e))?;
        tracing::info!(instance = %spec.id, "instance ready");
        Ok(Standing::Running(instance))
    }

    /// Additions, and another try for what failed.
    async fn add(&mut self, config: &HostConfig) {
        let mut published = Instant::now();
        for spec in &config.instances {
            let failures = match self.placed.get(&spec.id).map(|p| &p.standing) {
                Some(Standing::Running(_)) => continue,
                Some(Standing::Failed { retry_at, .. }) if *retry_at > Instant::now() => continue,
                Some(Standing::Failed { count, .. }) => *count,
                Some(Standing::Waiting | Standing::NotCompilable(_)) | None => 0,
            };
            let services = bound_services(config, spec);
            let standing = if spec.state == InstanceState::Draining {
                // It has nothing in flight to finish, so there is no reason to start it.
                Standing::Waiting
            } else {
                Box::pin(self.start(spec, &services)).await.unwrap_or_else(|reason| {
                    tracing::warn!(instance = %spec.id, %reason, "an instance cannot run");
                    let count = failures.saturating_add(1);
                    Standing::Failed { reason, count, retry_at: Instant::now() + back_off(count, LONGEST_PAUSE) }
                })
            };
            self.placed.insert(spec.id.clone(), Placed { spec: Arc::new(spec.clone()), services, standing });
            // The first of many should not wait for the last, nor every one copy the map.
            if published.elapsed() > Duration::from_millis(10) {
                self.publish();
                published = Instant::now();
            }
        }
        self.publish();
    }

    fn status(&self, config: &HostConfig) -> InstancesStatus {
        let mut settled = true;
        let mut entries = Vec::with_capacity(config.instances.len());
        for placed in config.instances.iter().filter_map(|s| self.placed.get(&s.id)) {
            let draining = placed.spec.state == InstanceState::Draining;
            let (phase, reason, instance) = match &placed.standing {
                Standing::Running(i) if draining => (InstancePhase::Draining, None, Some(i.clone())),
                Standing::Running(i) => (InstancePhase::Ready, None, Some(i.clone())),
                Standing::Failed { reason, .. } | Standing::NotCompilable(reason) => {
                    (InstancePhase::Failed, Some(reason.clone()), None)
                }
                Standing::Waiting if draining => (InstancePhase::Draining, None, None),
                Standing::Waiting => (InstancePhase::Pending, None, None),
            };
            settled &= phase != InstancePhase::Pending || !self.with.cache.is_compiled(&placed.spec.digest);
            entries.push(InstanceEntry { spec: placed.spec.clone(), phase, reason, instance });
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
        let apps: BTreeSet<_> = config.instances.iter().map(|i| i.app.clone()).collect();
        self.with.logs.retain(&apps);
        self.status(config)
    }
}
