//! The checker: what must hold for every plan, stated apart from how the planner gets there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use marcato_api::{
    AppName, AppState, HostDuty, HostId, HostState, InstanceId, InstancePhase, InstanceSpec, InstanceState, Revision,
    RevisionPhase, ServiceId,
};

use crate::inputs::{AppInput, HostInput, Inputs, Placed, Placement, Plan};

/// Something that a plan must not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Two instances have one id.
    DuplicateId(InstanceId),
    /// An instance is on a host that did not join.
    UnknownHost(InstanceId, HostId),
    /// A new instance is on a host that does not answer, or takes nothing new.
    PlacedOnClosedHost(InstanceId, HostId),
    /// A new instance is on a host without the labels that it requires.
    WithoutLabels(InstanceId, HostId),
    /// A new instance is beside one that it, or that, keeps away from.
    NotApart(InstanceId, HostId),
    /// More CPU is set aside than the host has.
    OverCpu(HostId),
    /// An instance's revision does not exist.
    UnknownRevision(InstanceId),
    /// An endpoint drains, is not placed, or its host never said that it is ready.
    BadEndpoint(InstanceId),
    /// Fewer instances answer than before, and fewer than are wanted.
    LostCapacity {
        /// Which app.
        app: AppName,
        /// Ready and running before.
        before: usize,
        /// Of those, still running after.
        after: usize,
    },
    /// More run than are wanted and twice that for a roll-out.
    TooMany(AppName),
    /// An instance moved to another host.
    Moved(InstanceId),
    /// A host's share does not match the placement.
    HostMismatch(HostId),
    /// A host uses a service whose owner it is not told.
    UnreachableService(HostId),
    /// A new instance has not what the policies give its app, one that was there has something else than it was made
    /// with, or its host is told something else.
    WrongProvision(InstanceId),
    /// More memory is promised than the host has.
    OverCapacity(HostId),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Everything that is wrong with a plan; empty when nothing is.
#[must_use]
pub fn check(inputs: &Inputs, plan: &Plan) -> Vec<Violation> {
    let mut found = Vec::new();
    instances(inputs, plan, &mut found);
    endpoints(inputs, plan, &mut found);
    capacity(inputs, plan, &mut found);
    hosts(inputs, plan, &mut found);
    found
}

fn instances(inputs: &Inputs, plan: &Plan, found: &mut Vec<Violation>) {
    let mut seen = BTreeSet::new();
    let before: BTreeMap<&InstanceId, &Placed> = inputs.placement.instances.iter().map(|p| (&p.id, p)).collect();
    for placed in &plan.placement.instances {
        if !seen.insert(&placed.id) {
            found.push(Violation::DuplicateId(placed.id.clone()));
        }
        let host = inputs.hosts.iter().find(|h| h.id == placed.host);
        match (host, before.get(&placed.id)) {
            (None, _) => found.push(Violation::UnknownHost(placed.id.clone(), placed.host.clone())),
            (Some(h), None) => new_instance(inputs, plan, placed, h, found),
            (_, Some(old)) if old.host != placed.host => found.push(Violation::Moved(placed.id.clone())),
            _ => {}
        }
        let app = inputs.apps.iter().find(|a| a.app.name == placed.app);
        if !app.is_some_and(|a| a.revisions.contains_key(&placed.revision)) {
            found.push(Violation::UnknownRevision(placed.id.clone()));
        }
        let given = before.get(&placed.id).map(|old| &old.provision).or(app.map(|a| &a.provision));
        let told = plan.hosts.get(&placed.host).and_then(|h| h.instances.iter().find(|i| i.id == placed.id));
        let as_told =
            told.is_none_or(|t| t.isolation == placed.provision.isolation && t.budget == placed.provision.budget);
        if given != Some(&placed.provision) || !as_told {
            found.push(Violation::WrongProvision(placed.id.clone()));
        }
    }
}

fn new_instance(inputs: &Inputs, plan: &Plan, placed: &Placed, host: &HostInput, found: &mut Vec<Violation>) {
    if host.state != HostState::Up || host.duty != HostDuty::Active {
        found.push(Violation::PlacedOnClosedHost(placed.id.clone(), host.id.clone()));
    }
    let rules = |p: &Placed| {
        let app = inputs.apps.iter().find(|a| a.app.name == p.app)?;
        Some(&app.revisions.get(&p.revision)?.config.placement)
    };
    let Some(own) = rules(placed) else { return };
    if own.require.iter().any(|(name, value)| host.labels.get(name) != Some(value)) {
        found.push(Violation::WithoutLabels(placed.id.clone(), host.id.clone()));
    }
    let running = |p: &&Placed| p.state == InstanceState::Running && p.host == placed.host && p.id != placed.id;
    let mut beside = plan.placement.instances.iter().filter(running);
    let clash = beside.any(|p| {
        let twin = own.one_per_host && p.app == placed.app && p.revision == placed.revision;
        // What the other wants is what its app wants now.
        let current = inputs.apps.iter().find(|a| a.app.name == p.app).and_then(|a| a.revisions.get(&a.app.current?));
        let kept_away = current.is_some_and(|r| r.config.placement.apart_from.contains(&placed.app));
        twin || (p.app != placed.app && (own.apart_from.contains(&p.app) || kept_away))
    });
    if clash {
        found.push(Violation::NotApart(placed.id.clone(), host.id.clone()));
    }
}

/// Whether an instance of this placement takes requests now.
fn answers(inputs: &Inputs, placement: &Placement, id: &InstanceId) -> bool {
    let Some(placed) = placement.instances.iter().find(|p| p.id == *id) else { return false };
    let Some(host) = inputs.hosts.iter().find(|h| h.id == placed.host) else { return false };
    placed.state == InstanceState::Running && host.instance(id).is_some_and(|s| s.phase == InstancePhase::Ready)
}

fn endpoints(inputs: &Inputs, plan: &Plan, found: &mut Vec<Violation>) {
    for endpoint in plan.endpoints.values().flatten() {
        if !answers(inputs, &plan.placement, &endpoint.instance) {
            found.push(Violation::BadEndpoint(endpoint.instance.clone()));
        }
    }
}

fn capacity(inputs: &Inputs, plan: &Plan, found: &mut Vec<Violation>) {
    for input in &inputs.apps {
        let app = &input.app;
        let wanted = if app.state == AppState::Started { app.instances as usize } else { 0 };
        let up = |p: &&Placed| {
            inputs.hosts.iter().any(|h| h.id == p.host && h.state == HostState::Up)
                && input.revisions.contains_key(&p.revision)
        };
        let ready = |placement: &Placement| {
            let of_app = placement.instances.iter().filter(|p| p.app == app.name).filter(up);
            of_app.filter(|p| answers(inputs, placement, &p.id)).count()
        };
        let (before, after) = (ready(&inputs.placement), ready(&plan.placement));
        if after < before.min(wanted) && may_serve(input, inputs, plan) {
            found.push(Violation::LostCapacity { app: app.name.clone(), before, after });
        }
        let running = |placement: &Placement| {
            let of_app = placement.instances.iter().filter(|p| p.app == app.name);
            of_app.filter(|p| p.state == InstanceState::Running).count()
        };
        if running(&plan.placement) > (2 * wanted).max(running(&inputs.placement) + wanted) {
            found.push(Violation::TooMany(app.name.clone()));
        }
    }
}

/// Whether any revision of an app may serve: where all have failed, nothing is kept. What answered before the plan
/// counts, whatever the plan did to it: a plan that drains the last sound instance is not excused by having done so.
fn may_serve(input: &AppInput, inputs: &Inputs, plan: &Plan) -> bool {
    let failed = |revision: &Revision| {
        let now = plan.phases.iter().find(|c| c.app == revision.app && c.revision == revision.number);
        now.map_or(revision.phase, |c| c.phase) == RevisionPhase::Failed
    };
    let placed = inputs.placement.instances.iter().filter(|p| p.app == input.app.name);
    let answered = placed.filter(|p| answers(inputs, &inputs.placement, &p.id)).map(|p| p.revision);
    let candidates = answered.chain(input.app.current).chain(input.app.stable);
    candidates.filter_map(|number| input.revisions.get(&number)).any(|r| !failed(r))
}

fn hosts(inputs: &Inputs, plan: &Plan, found: &mut Vec<Violation>) {
    let had: BTreeSet<&InstanceId> = inputs.placement.instances.iter().map(|p| &p.id).collect();
    for host in &inputs.hosts {
        let Some(share) = plan.hosts.get(&host.id) else {
            found.push(Violation::HostMismatch(host.id.clone()));
            continue;
        };
        let mut placed: Vec<_> =
            plan.placement.instances.iter().filter(|p| p.host == host.id).map(|p| (&p.id, p.state)).collect();
        placed.sort_by(|a, b| a.0.cmp(b.0));
        let told: Vec<_> = share.instances.iter().map(|i| (&i.id, i.state)).collect();
        if placed != told {
            found.push(Violation::HostMismatch(host.id.clone()));
        }
        let known = |id: &ServiceId| share.services.iter().find(|s| s.id == *id);
        let reachable = share.instances.iter().flat_map(|i| i.bindings.values()).all(|id| {
            let at = |owner: &HostId| {
                *owner == host.id
                    || share.peers.iter().any(|p| p.id == *owner)
                    || inputs.hosts.iter().all(|h| h.id != *owner)
            };
            known(id).is_some_and(|s| at(&s.owner))
        });
        let owned = inputs.services.iter().filter(|s| s.owner == host.id).all(|s| known(&s.id).is_some());
        if !reachable || !owned {
            found.push(Violation::UnreachableService(host.id.clone()));
        }
        let promised: u64 = share.instances.iter().map(|i| i.config.limits.memory_bytes.0).sum();
        let room = host.inventory.as_ref().map_or(0, |i| i.capacity.memory_bytes.0);
        if promised > room && share.instances.iter().any(|i| !had.contains(&i.id)) {
            found.push(Violation::OverCapacity(host.id.clone()));
        }
        let aside: u64 = share.instances.iter().map(|i| u64::from(i.config.placement.cpu_millis)).sum();
        let cores = host.inventory.as_ref().map_or(0, |i| i.capacity.cpu_millis);
        let new = |i: &&InstanceSpec| i.config.placement.cpu_millis > 0 && !had.contains(&i.id);
        if aside > cores && share.instances.iter().any(|i| new(&i)) {
            found.push(Violation::OverCpu(host.id.clone()));
        }
    }
}
