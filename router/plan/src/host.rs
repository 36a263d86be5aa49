//! Each host's share of a placement: its instances, the services it owns or uses, and their owners.

use std::collections::BTreeMap;

use marcato_api::{HostId, InstanceSpec, Peer, ServiceId, ServiceSpec};

use crate::inputs::{AppInput, HostPlan, Inputs, Placed, Placement, ServiceInput};

pub(crate) fn host_plans(inputs: &Inputs, placement: &Placement) -> BTreeMap<HostId, HostPlan> {
    let apps: BTreeMap<_, &AppInput> = inputs.apps.iter().map(|a| (&a.app.name, a)).collect();
    let mut plans: BTreeMap<HostId, HostPlan> =
        inputs.hosts.iter().map(|h| (h.id.clone(), HostPlan::default())).collect();
    for placed in &placement.instances {
        let spec = apps.get(&placed.app).and_then(|app| instance_spec(inputs, app, placed));
        if let (Some(plan), Some(spec)) = (plans.get_mut(&placed.host), spec) {
            plan.instances.push(spec);
        }
    }
    for (host, plan) in &mut plans {
        plan.services = services_of(inputs, host, plan);
        plan.peers = peers_of(inputs, host, plan);
    }
    plans
}

fn instance_spec(inputs: &Inputs, input: &AppInput, placed: &Placed) -> Option<InstanceSpec> {
    let revision = input.revisions.get(&placed.revision)?;
    let mut bindings = BTreeMap::new();
    for binding in &revision.config.bindings {
        if let Some(service) = inputs.services.iter().find(|s| !s.deleted && s.name == binding.service) {
            bindings.insert(binding.name.clone(), service.id.clone());
        }
    }
    Some(InstanceSpec {
        id: placed.id.clone(),
        app: placed.app.clone(),
        org: input.app.org.clone(),
        space: input.app.space.clone(),
        revision: placed.revision,
        digest: revision.digest.clone(),
        config: revision.config.clone(),
        bindings,
        state: placed.state,
        isolation: placed.provision.isolation.clone(),
        budget: placed.provision.budget,
    })
}

fn services_of(inputs: &Inputs, host: &HostId, plan: &HostPlan) -> Vec<ServiceSpec> {
    let uses = |id: &ServiceId| plan.instances.iter().any(|i| i.bindings.values().any(|b| b == id));
    let mut services: Vec<ServiceSpec> = inputs
        .services
        .iter()
        .filter(|s| s.owner == *host || (!s.deleted && uses(&s.id)))
        .map(|s: &ServiceInput| ServiceSpec {
            id: s.id.clone(),
            kind: s.kind,
            owner: s.owner.clone(),
            deleted: s.deleted,
        })
        .collect();
    services.sort_by(|a, b| a.id.cmp(&b.id));
    services
}

fn peers_of(inputs: &Inputs, host: &HostId, plan: &HostPlan) -> Vec<Peer> {
    inputs
        .hosts
        .iter()
        .filter(|h| h.id != *host && plan.services.iter().any(|s| s.owner == h.id))
        .map(|h| Peer { id: h.id.clone(), control: h.control.clone() })
        .collect()
}
