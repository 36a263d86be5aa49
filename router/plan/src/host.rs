//! Each host's share of a placement: its instances, the services it owns or uses, and their owners.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use marcato_api::{HostId, InstanceSpec, Peer, ServiceId, ServiceName, ServiceSpec};

use crate::inputs::{AppInput, HostPlan, Inputs, Placed, Placement, ServiceInput};

pub(crate) fn host_plans(inputs: &Inputs, placement: &Placement) -> BTreeMap<HostId, HostPlan> {
    let apps: HashMap<_, &AppInput> = inputs.apps.iter().map(|a| (&a.app.name, a)).collect();
    let services: Services<'_> = inputs.services.iter().filter(|s| !s.deleted).map(|s| (&s.name, s)).collect();
    let mut plans: BTreeMap<HostId, HostPlan> =
        inputs.hosts.iter().map(|h| (h.id.clone(), HostPlan::default())).collect();
    for placed in &placement.instances {
        let spec = apps.get(&placed.app).and_then(|app| instance_spec(&services, app, placed));
        if let (Some(plan), Some(spec)) = (plans.get_mut(&placed.host), spec) {
            plan.instances.push(spec);
        }
    }
    let users = users_of(&plans);
    for (host, plan) in &mut plans {
        plan.services = services_of(inputs, host, plan, &users);
        plan.peers = peers_of(inputs, host, plan);
    }
    plans
}

/// The services that are not deleted, by name.
type Services<'a> = HashMap<&'a ServiceName, &'a ServiceInput>;

/// Which hosts have instances that are bound to a service: nobody else may ask its owner for it.
fn users_of(plans: &BTreeMap<HostId, HostPlan>) -> HashMap<ServiceId, BTreeSet<HostId>> {
    let mut users: HashMap<ServiceId, BTreeSet<HostId>> = HashMap::new();
    for (host, plan) in plans {
        for service in plan.instances.iter().flat_map(|i| i.bindings.values()) {
            users.entry(service.clone()).or_default().insert(host.clone());
        }
    }
    users
}

fn instance_spec(services: &Services<'_>, input: &AppInput, placed: &Placed) -> Option<InstanceSpec> {
    let revision = input.revisions.get(&placed.revision)?;
    let mut bindings = BTreeMap::new();
    for binding in &revision.config.bindings {
        if let Some(service) = services.get(&binding.service) {
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

fn services_of(
    inputs: &Inputs,
    host: &HostId,
    plan: &HostPlan,
    users: &HashMap<ServiceId, BTreeSet<HostId>>,
) -> Vec<ServiceSpec> {
    let used: HashSet<&ServiceId> = plan.instances.iter().flat_map(|i| i.bindings.values()).collect();
    let uses = |id: &ServiceId| used.contains(id);
    // Only the owner has to know who else may ask.
    let others = |s: &ServiceInput| {
        let all = users.get(&s.id).into_iter().flatten();
        if s.owner == *host && !s.deleted {
            all.filter(|user| **user != s.owner).cloned().collect()
        } else {
            Vec::new()
        }
    };
    let mut services: Vec<ServiceSpec> = inputs
        .services
        .iter()
        .filter(|s| s.owner == *host || (!s.deleted && uses(&s.id)))
        .map(|s: &ServiceInput| ServiceSpec {
            id: s.id.clone(),
            kind: s.kind,
            owner: s.owner.clone(),
            deleted: s.deleted,
            users: others(s),
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
