//! The instances of a worker: started and drained as the daemon says; requests find them through one swap cell.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use marcato_api::InstanceId;
use marcato_runtime::{Instance, InstanceSetup, Runtime};

use super::host::{self, HostLogs, HostPeer};
use super::lease::WorkerLease;
use crate::channel::{IngressNumbers, InstanceReport, LeaseOrder, NotStarted, Report, StartOrder};
use crate::error::chain;

/// Instances that take requests, by id. The request path reads nothing else.
pub(super) type InstanceMap = ArcSwap<HashMap<Arc<str>, Instance>>;

/// What the ingress counts.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// By the first digit of the status, from 1 to 5.
    responses: [AtomicU64; 5],
    platform_errors: AtomicU64,
}

impl Numbers {
    /// The ingress answered.
    pub(super) fn answered(&self, status: http::StatusCode, by_platform: bool) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5);
        self.responses[class - 1].fetch_add(1, Ordering::Relaxed);
        if by_platform {
            self.platform_errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn now(&self) -> IngressNumbers {
        IngressNumbers {
            responses: std::array::from_fn(|n| self.responses[n].load(Ordering::Relaxed)),
            platform_errors: self.platform_errors.load(Ordering::Relaxed),
        }
    }
}

/// See the module.
pub(super) struct Instances {
    runtime: Runtime,
    peer: HostPeer,
    logs: HostLogs,
    lease: Arc<WorkerLease>,
    map: Arc<InstanceMap>,
    numbers: Arc<Numbers>,
    /// Also those that drain, until they are idle: what they do is still reported.
    live: Mutex<HashMap<InstanceId, Live>>,
}

struct Live {
    id: InstanceId,
    instance: Instance,
    removed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps of whole entries: usable whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Instances {
    pub(super) fn new(runtime: Runtime, peer: HostPeer, logs: HostLogs, lease: Arc<WorkerLease>) -> Self {
        let (map, numbers, live) = (Arc::default(), Arc::default(), Mutex::default());
        Self { runtime, peer, logs, lease, map, numbers, live }
    }

    /// Keeps to another lease.
    pub(super) fn keep_to(&self, lease: LeaseOrder) {
        if self.lease.take(lease) {
            // Others need it more than a request that may come.
            lock(&self.live).values().for_each(|live| live.instance.end_idle());
        }
    }

    pub(super) fn map(&self) -> Arc<InstanceMap> {
        Arc::clone(&self.map)
    }

    pub(super) fn numbers(&self) -> Arc<Numbers> {
        Arc::clone(&self.numbers)
    }

    /// Starts instances; one of the same id is drained and replaced.
    pub(super) fn start(&self, orders: Vec<StartOrder>) -> Vec<Result<(), NotStarted>> {
        let mut started = Vec::new();
        let mut results = Vec::with_capacity(orders.len());
        for order in orders {
            results.push(match self.start_one(order) {
                Ok(one) => {
                    started.push(one);
                    Ok(())
                }
                Err(why) => Err(why),
            });
        }
        self.put(started);
        results
    }

    fn start_one(&self, order: StartOrder) -> Result<Live, NotStarted> {
        let StartOrder { id, app, revision, config, budget, bindings, digest, .. } = order;
        let setup = InstanceSetup {
            services: host::services(&self.peer, &id, bindings),
            logs: self.logs.sink(id.clone()),
            id: id.clone(),
            app,
            revision,
            config,
            budget,
        };
        let instance = self.runtime.start(setup, &digest).map_err(|e| NotStarted::Reason(chain(&e)))?;
        Ok(Live { id, instance, removed: false })
    }

    fn put(&self, started: Vec<Live>) {
        let mut live = lock(&self.live);
        let mut map = HashMap::clone(&self.map.load());
        for one in started {
            map.insert(Arc::from(one.id.as_str()), one.instance.clone());
            if let Some(before) = live.insert(one.id.clone(), one) {
                before.instance.drain();
            }
        }
        self.map.store(Arc::new(map));
    }

    /// Takes no more requests; those that it has are finished.
    pub(super) fn drain(&self, id: &InstanceId) {
        if let Some(live) = lock(&self.live).get(id) {
            live.instance.drain();
        }
    }

    /// Drains it and finds it no more.
    pub(super) fn remove(&self, id: &InstanceId) {
        let mut live = lock(&self.live);
        let Some(entry) = live.get_mut(id) else { return };
        entry.removed = true;
        // Requests in flight hold it and finish.
        entry.instance.drain();
        let mut map = HashMap::clone(&self.map.load());
        map.remove(id.as_str());
        self.map.store(Arc::new(map));
    }

    /// How things stand. Instances that were removed and are idle are in it a last time.
    pub(super) fn report(&self) -> Report {
        let mut live = lock(&self.live);
        let instances = live.iter().map(|(id, l)| report(id, &l.instance)).collect();
        live.retain(|_, l| !l.removed || l.instance.in_flight() > 0 || l.instance.queued() > 0);
        Report {
            usage: self.runtime.usage(),
            holding: self.lease.holding(),
            ingress: self.numbers.now(),
            instances,
            log_lines_lost: self.logs.lost(),
        }
    }
}

fn report(id: &InstanceId, instance: &Instance) -> InstanceReport {
    InstanceReport {
        id: id.clone(),
        in_flight: instance.in_flight(),
        queued: instance.queued(),
        counters: instance.counters(),
        limits: instance.limits_used(),
    }
}
