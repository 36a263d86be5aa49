//! The inventory: all that the host has, put together from the reconcilers' last status and live numbers.

use std::collections::BTreeMap;

use jiff::Timestamp;
use marcato_api::{
    CertificateTerm, ComponentStatus, Generation, HostCapacity, HostId, HostUsage, InstanceStatus, Inventory,
    ServiceId, ServiceStatus, WorkerStatus,
};

use crate::pool::Placed;
use crate::reconcile::instances::{InstanceEntry, InstancesStatus};
use crate::reconcile::services::ServicesStatus;

/// Everything that goes into an inventory.
pub(crate) struct Sources {
    pub(crate) host: HostId,
    pub(crate) started_at: Timestamp,
    pub(crate) generation: Generation,
    pub(crate) capacity: HostCapacity,
    pub(crate) used: HostUsage,
    pub(crate) components: Vec<ComponentStatus>,
    pub(crate) instances: InstancesStatus,
    pub(crate) services: ServicesStatus,
    /// As the databases themselves report it.
    pub(crate) databases: Vec<ServiceStatus>,
    pub(crate) certificate: CertificateTerm,
    pub(crate) ingress_tls: bool,
    pub(crate) ingress_certificate: Option<CertificateTerm>,
    pub(crate) workers: Vec<WorkerStatus>,
}

/// Puts an inventory together.
pub(crate) fn inventory(sources: Sources) -> Inventory {
    let Sources { host, started_at, generation, capacity, used, components, instances, services, databases, .. } =
        sources;
    Inventory {
        host,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at,
        generation,
        capacity,
        used,
        components,
        instances: instances.entries.iter().map(instance_status).collect(),
        services: service_statuses(databases, services.failures),
        certificate: Some(sources.certificate),
        ingress_tls: sources.ingress_tls,
        ingress_certificate: sources.ingress_certificate,
        workers: sources.workers,
    }
}

fn instance_status(entry: &InstanceEntry) -> InstanceStatus {
    let live = entry.placed.as_ref().map(Placed::state).unwrap_or_default();
    InstanceStatus {
        id: entry.spec.id.clone(),
        app: entry.spec.app.clone(),
        revision: entry.spec.revision,
        phase: entry.phase,
        in_flight: live.in_flight,
        queued: live.queued,
        counters: live.counters,
        limits: live.limits,
        ingress: entry.placed.as_ref().map(|p| p.worker.address().clone()),
        reason: entry.reason.clone(),
    }
}

/// Databases as they report themselves, and those that could not even be opened.
fn service_statuses(databases: Vec<ServiceStatus>, failures: BTreeMap<ServiceId, String>) -> Vec<ServiceStatus> {
    let mut all: BTreeMap<ServiceId, ServiceStatus> = databases.into_iter().map(|s| (s.id.clone(), s)).collect();
    for (id, reason) in failures {
        let known = all.entry(id.clone()).or_insert_with(|| ServiceStatus {
            id,
            ready: false,
            bytes: marcato_api::Bytes(0),
            reason: None,
        });
        // The database's own word is newer than the last pass.
        if !known.ready && known.reason.is_none() {
            known.reason = Some(reason);
        }
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_does_not_open_is_reported() {
        let id = |s: &str| ServiceId::new(s).unwrap();
        let status = |s: &str, ready| ServiceStatus { id: id(s), ready, bytes: marcato_api::Bytes(1), reason: None };
        let failures = ["a", "b", "c"].map(|s| (id(s), "damaged".to_owned())).into();
        let all = service_statuses(vec![status("a", true), status("b", false), status("d", true)], failures);
        let told: Vec<_> = all.iter().map(|s| (s.id.as_str(), s.ready, s.reason.as_deref())).collect();
        assert_eq!(
            told,
            [("a", true, None), ("b", false, Some("damaged")), ("c", false, Some("damaged")), ("d", true, None)]
        );
    }
}
