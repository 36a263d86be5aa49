//! The admin API: HTTP on one side, the desired state on the other.
//!
//! Owns: who may do what ([`Session`]), validation, problem bodies, the OpenAPI document. Handlers are
//! thin: they take a request apart and call a session. Does not own storage (`state`) nor effects
//! (`tasks`). Flow: operator -> server -> routes -> session -> state.

mod apps;
mod body;
mod components;
mod debug;
mod extract;
mod hosts;
mod limits;
mod logs;
mod policies;
mod problem;
mod revisions;
mod routes;
mod server;
mod services;
mod session;
mod status;
#[cfg(test)]
mod tests;
mod tokens;
mod unread;
mod usage;

use std::sync::Arc;

use marcato_api::{Problem, ProblemKind};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::auth::Throttle;
use crate::blobs::Blobs;
use crate::ca::Authority;
use crate::hosts::HostClients;
use crate::observed::{Observed, ObservedCell};
use crate::state::{DebugSecret, State, StateError};
use crate::usage::UsageStore;

pub(crate) use routes::router;
pub(crate) use server::serve;
pub(crate) use session::Session;

/// Uploads and backups that are held in memory at once.
const BIG_BODIES: usize = 4;
/// Tries of a change that loses against others before it is given up.
const ATTEMPTS: usize = 30;

/// What every handler shares. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api(Arc<Shared>);

/// What every handler shares.
pub(crate) struct Shared {
    pub(crate) state: State,
    pub(crate) debug: DebugSecret,
    pub(crate) blobs: Blobs,
    pub(crate) observed: Arc<ObservedCell>,
    pub(crate) usage: UsageStore,
    pub(crate) authority: Arc<Authority>,
    pub(crate) hosts: HostClients,
    pub(crate) domain: String,
    pub(crate) http_port: Option<u16>,
    pub(crate) https_port: Option<u16>,
    pub(crate) version: String,
    pub(crate) throttle: Throttle,
    pub(crate) metrics: Metrics,
    pub(crate) registry: Arc<Registry>,
    pub(crate) big_bodies: Semaphore,
    pub(crate) shutdown: CancellationToken,
}

impl std::ops::Deref for Api {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Api {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl Shared {
    pub(crate) fn big_bodies() -> Semaphore {
        Semaphore::new(BIG_BODIES)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    route: String,
    method: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabels {
    host: String,
    class: &'static str,
    confinement: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MeasureLabels {
    host: String,
    measure: &'static str,
}

/// What the admin API counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    workers: Family<WorkerLabels, Gauge>,
    unconfined: Family<MeasureLabels, Gauge>,
    calls: Family<CallLabels, Counter>,
    refused: Counter,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("marcato_admin_requests", "Answered calls of the admin API", self.calls.clone());
        let help = "Worker processes of each host, by class and by whether they gave up all that they should";
        registry.register("marcato_host_workers", help, self.workers.clone());
        let help = "Worker processes of each host that go without a measure of confinement";
        registry.register("marcato_host_workers_without", help, self.unconfined.clone());
        registry.register("marcato_admin_unauthenticated", "Calls with a wrong token or none", self.refused.clone());
    }
}

impl Metrics {
    /// Takes over what hosts last said. Labels are bounded: hosts by classes, and hosts by measures.
    fn observe(&self, observed: &Observed) {
        self.workers.clear();
        self.unconfined.clear();
        for (host, seen) in &observed.hosts {
            for worker in seen.inventory.iter().flat_map(|i| &i.workers) {
                let confinement = if worker.confinement.is_full() { "full" } else { "partial" };
                let labels = WorkerLabels { host: host.to_string(), class: worker.class.as_str(), confinement };
                self.workers.get_or_create(&labels).inc();
                for missing in worker.confinement.missing() {
                    let labels = MeasureLabels { host: host.to_string(), measure: missing.measure.as_str() };
                    self.unconfined.get_or_create(&labels).inc();
                }
            }
        }
    }
}

impl From<StateError> for problem::ApiError {
    fn from(e: StateError) -> Self {
        problem::ApiError(state_problem(&e))
    }
}

/// A failure of the state as clients see it; the whole chain goes to the log.
pub(crate) fn state_problem(e: &StateError) -> Problem {
    let mut chain = e.to_string();
    let mut source = std::error::Error::source(e);
    while let Some(inner) = source {
        chain = format!("{chain}: {inner}");
        source = inner.source();
    }
    match e {
        StateError::Contended => Problem::new(ProblemKind::Unavailable, e.to_string()),
        _ if e.conflict().is_some() => {
            Problem::new(ProblemKind::Conflict, "someone else changed it at the same time; try again")
        }
        _ => {
            tracing::error!(error = %chain, "the state could not be read or written");
            Problem::new(ProblemKind::Internal, "the control plane could not read or write its state; see its log")
        }
    }
}
