//! Turns a plan into the route table that the edge reads.

use std::collections::HashMap;

use marcato_api::{HostAddress, HostId, InstanceId};
use marcato_balance::{AppSpec, EndpointSpec, RouteTable};
use marcato_plan::{AppInput, Endpoint, Plan};

use super::Tasks;
use crate::observed::Observed;
use crate::state::{DebugSecret, HostRecord};

/// What a table is made from; compared, so that an unchanged one is not published again.
pub(crate) type Published = Vec<AppSpec>;

pub(crate) fn specs(
    apps: &[AppInput],
    hosts: &[HostRecord],
    observed: &Observed,
    plan: &Plan,
    debug: &DebugSecret,
) -> Published {
    // Each worker of a host has an ingress of its own; the host's is the one of the shared worker.
    let told = observed.hosts.values().filter_map(|h| h.inventory.as_ref()).flat_map(|i| &i.instances);
    let workers: HashMap<&InstanceId, &HostAddress> =
        told.filter_map(|i| i.ingress.as_ref().map(|address| (&i.id, address))).collect();
    let host = |id: &HostId| hosts.iter().find(|h| h.id == *id).map(|h| &h.ingress);
    let address = |e: &Endpoint| workers.get(&e.instance).copied().or_else(|| host(&e.host)).cloned();
    apps.iter()
        .map(|input| AppSpec {
            app: input.app.name.clone(),
            stopped: input.app.state == marcato_api::AppState::Stopped,
            limits: limits(input),
            routes: input.app.routes.clone(),
            endpoints: plan
                .endpoints
                .get(&input.app.name)
                .into_iter()
                .flatten()
                .filter_map(|e| address(e).map(|a| endpoint(e, a)))
                .collect(),
            debug: debug.key(&input.app),
        })
        .collect()
}

fn endpoint(endpoint: &Endpoint, address: HostAddress) -> EndpointSpec {
    EndpointSpec {
        instance: endpoint.instance.clone(),
        host: endpoint.host.clone(),
        address,
        revision: endpoint.revision,
        concurrency: endpoint.concurrency,
    }
}

/// The widest limits of the revisions that may serve: each host enforces the exact ones.
fn limits(input: &AppInput) -> marcato_api::Limits {
    let mut widest: Option<marcato_api::Limits> = None;
    for limits in input.revisions.values().map(|r| r.config.limits) {
        widest = Some(match widest {
            None => limits,
            Some(w) => marcato_api::Limits {
                memory_bytes: w.memory_bytes.max(limits.memory_bytes),
                instance_memory_bytes: w.instance_memory_bytes.max(limits.instance_memory_bytes),
                time_ms: w.time_ms.max(limits.time_ms),
                cpu_ms: w.cpu_ms.max(limits.cpu_ms),
                request_body_bytes: w.request_body_bytes.max(limits.request_body_bytes),
                response_body_bytes: w.response_body_bytes.max(limits.response_body_bytes),
                // The edge looks at none of the others.
                ..w
            },
        });
    }
    widest.unwrap_or_default()
}

/// Puts a table in place of the last one and tells the edge.
pub(crate) fn publish(tasks: &Tasks, specs: Published) {
    let previous = tasks.table.load_full();
    let version = previous.version() + 1;
    tasks.table.store(RouteTable::build(version, specs, &previous));
    tasks.changed.send_replace(version);
}
