//! One app's step: which instances stay, come, drain and go, and what that says of its revisions.
//!
//! The rule of a roll-out: new instances start beside the old ones; an old one drains only once a ready
//! new one stands in for it; one that drains goes when it is empty, or after the bound. A restart and a changed policy
//! (another process, another budget) go the same way.

use marcato_api::{
    AppState, HostId, HostState, InstanceId, InstancePhase, InstanceState, InstanceStatus, Revision, RevisionNumber,
    RevisionPhase,
};

use crate::inputs::{AppInput, Endpoint, Inputs, PhaseChange, Placed, Plan};
use crate::place::Fleet;

pub(crate) fn plan_app<'a>(
    inputs: &'a Inputs,
    input: &'a AppInput,
    placed: Vec<Placed>,
    fleet: &mut Fleet<'a>,
    plan: &mut Plan,
) {
    let mut step = Step { inputs, input, fleet, plan, notes: Vec::new() };
    let kept = step.keep(placed);
    let target = step.target(&kept);
    step.overtake(target);
    let instances = step.roll(target, kept);
    if let Some(revision) = target {
        step.note_services(revision);
        step.settle(revision, &instances);
    }
    step.publish(&instances);
    let Step { notes, plan, .. } = step;
    plan.placement.instances.extend(instances);
    if !notes.is_empty() {
        plan.notes.insert(input.app.name.clone(), notes);
    }
}

struct Step<'s, 'a> {
    inputs: &'a Inputs,
    input: &'a AppInput,
    fleet: &'s mut Fleet<'a>,
    plan: &'s mut Plan,
    notes: Vec<String>,
}

impl<'a> Step<'_, 'a> {
    fn wanted(&self) -> usize {
        match self.input.app.state {
            AppState::Started => self.input.app.instances as usize,
            AppState::Stopped => 0,
        }
    }

    fn status(&self, placed: &Placed) -> Option<&'a InstanceStatus> {
        self.fleet.status(placed)
    }

    fn is_ready(&self, placed: &Placed) -> bool {
        self.fleet.host(&placed.host).is_some_and(|h| h.state == HostState::Up)
            && self.status(placed).is_some_and(|s| s.phase == InstancePhase::Ready)
    }

    fn has_failed(&self, placed: &Placed) -> bool {
        self.status(placed).is_some_and(|s| s.phase == InstancePhase::Failed)
    }

    fn is_fresh(&self, placed: &Placed, target: &Revision) -> bool {
        placed.revision == target.number
            && placed.restarts == self.input.app.restarts
            && placed.provision == self.input.provision
            && placed.state == InstanceState::Running
            && !self.is_leaving(&placed.host)
    }

    /// What is on this host is to be elsewhere: it drains, or was silent for too long.
    fn is_leaving(&self, host: &HostId) -> bool {
        self.fleet.is_leaving(host)
    }

    /// The revision to serve: the current one, or the stable one when the current one failed.
    fn target(&mut self, placed: &[Placed]) -> Option<&'a Revision> {
        let app = &self.input.app;
        let current = self.input.revisions.get(&app.current?)?;
        let failure = match current.phase {
            RevisionPhase::Failed => Some(current.failure.clone().unwrap_or_else(|| "it failed".into())),
            _ => self.failure(current, placed),
        };
        let Some(failure) = failure else { return Some(current) };
        if current.phase != RevisionPhase::Failed {
            self.plan.phases.push(PhaseChange {
                app: app.name.clone(),
                revision: current.number,
                phase: RevisionPhase::Failed,
                failure: Some(failure.clone()),
            });
        }
        let sound = |number| self.input.revisions.get(&number).filter(|r| r.phase != RevisionPhase::Failed);
        let other = |number: &RevisionNumber| *number != current.number;
        let stable = app.stable.filter(other).and_then(sound);
        // Before any revision served in full, one that may answer is better than none. Not only one that does: a
        // host that is silent for a moment must not cost its instances.
        let running = placed.iter().filter(|p| p.state == InstanceState::Running && !self.has_failed(p));
        let newest = || running.map(|p| p.revision).filter(other).filter_map(sound).max_by_key(|r| r.number);
        let stable = stable.or_else(newest);
        let goes_on = stable.map(|s| format!("; revision {} goes on serving", s.number)).unwrap_or_default();
        self.notes.push(format!("revision {} failed: {failure}{goes_on}", current.number));
        stable
    }

    /// Why a revision that does not serve in full yet cannot: a host says so, or it took too long.
    fn failure(&self, current: &Revision, placed: &[Placed]) -> Option<String> {
        // An older one that an operator went back to has to prove itself anew.
        let again = current.phase == RevisionPhase::Superseded && self.input.app.stable != Some(current.number);
        if current.phase != RevisionPhase::Rolling && !again {
            return None;
        }
        let bound = self.inputs.settings.start_max_ms;
        let late = |p: &Placed| self.age_ms(p) > bound;
        let fresh: Vec<&Placed> = placed.iter().filter(|p| self.is_fresh(p, current)).collect();
        // Those from before a restart count: the revision can start.
        let starts = placed.iter().any(|p| p.revision == current.number && self.is_ready(p));
        // Where one starts, the failure of another may be its host's own, which tries again: it gets the whole
        // bound. And with nothing to go back to, some instances are better than none.
        let failed = fresh
            .iter()
            .filter(|p| !starts || (late(p) && self.has_way_back(current)))
            .filter_map(|p| self.status(p))
            .find(|s| s.phase == InstancePhase::Failed);
        if let Some(status) = failed {
            return Some(status.reason.clone().unwrap_or_else(|| "an instance failed".into()));
        }
        let too_late = !starts && fresh.iter().any(|p| late(p));
        too_late.then(|| format!("no instance was ready within {} s", bound / 1000))
    }

    fn has_way_back(&self, current: &Revision) -> bool {
        let stable = self.input.app.stable.filter(|s| *s != current.number);
        stable.and_then(|s| self.input.revisions.get(&s)).is_some_and(|r| r.phase != RevisionPhase::Failed)
    }

    fn age_ms(&self, placed: &Placed) -> u64 {
        self.inputs.now_ms.saturating_sub(placed.since_ms)
    }

    /// Whether an instance that does not answer yet is about to, so that its host is worth asking often.
    fn is_coming(&self, placed: &Placed) -> bool {
        let Some(host) = self.fleet.host(&placed.host).filter(|h| h.state == HostState::Up) else { return false };
        let pending = self.status(placed).is_none_or(|s| s.phase == InstancePhase::Pending);
        // A host that was restarted starts its instances again, however long ago they were placed.
        let started_ms = host.inventory.as_ref().map_or(0, |i| i.started_at.as_millisecond());
        let since_ms = placed.since_ms.max(u64::try_from(started_ms).unwrap_or(0));
        pending && self.inputs.now_ms.saturating_sub(since_ms) <= self.inputs.settings.start_max_ms
    }

    /// A roll-out that another one overtook is over.
    fn overtake(&mut self, target: Option<&Revision>) {
        let rolling = |number: RevisionNumber| {
            Some(number) == self.input.app.current || target.is_some_and(|t| t.number == number)
        };
        let overtaken =
            self.input.revisions.values().filter(|r| r.phase == RevisionPhase::Rolling && !rolling(r.number));
        self.plan.phases.extend(overtaken.map(|r| PhaseChange {
            app: r.app.clone(),
            revision: r.number,
            phase: RevisionPhase::Superseded,
            failure: None,
        }));
    }

    /// Says which of the services that a revision binds it cannot have now.
    fn note_services(&mut self, target: &Revision) {
        for binding in &target.config.bindings {
            let Some(service) = self.fleet.service(&binding.service) else {
                self.notes.push(format!("binding {:?}: there is no service {}", binding.name, binding.service));
                continue;
            };
            if self.fleet.host(&service.owner).is_none_or(|h| h.state != HostState::Up) {
                let (name, owner) = (&service.name, &service.owner);
                self.notes.push(format!("service {name} is on host {owner}, which does not answer"));
            }
        }
    }

    /// Drops what has drained, what is on a host that was removed, and what has no revision any more. What is on a host that
    /// was given up goes once another stands in for it: its host may still come back.
    fn keep(&mut self, placed: Vec<Placed>) -> Vec<Placed> {
        placed.into_iter().filter(|p| self.stays(p)).collect()
    }

    fn stays(&self, placed: &Placed) -> bool {
        let Some(host) = self.fleet.host(&placed.host) else { return false };
        if !self.input.revisions.contains_key(&placed.revision) {
            return false;
        }
        if placed.state == InstanceState::Running {
            return true;
        }
        if self.fleet.is_dead(&host.id) {
            return false;
        }
        let (age, settings) = (self.age_ms(placed), self.inputs.settings);
        let busy = self.status(placed).is_some_and(|s| s.in_flight > 0 || s.queued > 0);
        age < settings.drain_min_ms || (busy && age < settings.drain_max_ms)
    }

    /// Places what is missing, drains what is too much.
    fn roll(&mut self, target: Option<&'a Revision>, mut instances: Vec<Placed>) -> Vec<Placed> {
        let wanted = if target.is_some() { self.wanted() } else { 0 };
        if let Some(target) = target {
            self.grow(target, wanted, &mut instances);
        }
        let fresh = |step: &Self, p: &Placed| target.is_some_and(|t| step.is_fresh(p, t));
        let ready_fresh = instances.iter().filter(|p| fresh(self, p) && self.is_ready(p)).count();
        let is_old = |step: &Self, p: &Placed| p.state == InstanceState::Running && !fresh(step, p);
        self.drain_beyond(wanted.saturating_sub(ready_fresh), &mut instances, is_old);
        self.drain_beyond(wanted, &mut instances, fresh);
        // Those on a host that was given up have nobody to wait for.
        let gone = |p: &Placed| p.state == InstanceState::Draining && self.fleet.is_dead(&p.host);
        instances.retain(|p| !gone(p));
        if instances.iter().any(|p| p.state == InstanceState::Draining) {
            self.plan.unsettled = true;
        }
        instances
    }

    fn grow(&mut self, target: &'a Revision, wanted: usize, instances: &mut Vec<Placed>) {
        let have = instances.iter().filter(|p| self.is_fresh(p, target)).count();
        let app = &self.input.app;
        for _ in have..wanted {
            let Some(host) = self.fleet.place(&app.name, target, instances) else {
                let missing = wanted - instances.iter().filter(|p| self.is_fresh(p, target)).count();
                let why = self.fleet.why_not(&app.name, target, instances);
                self.notes.push(format!("{missing} of {wanted} instances cannot be placed: {why}"));
                return;
            };
            let nonce = self.plan.placement.next_nonce;
            self.plan.placement.next_nonce += 1;
            instances.push(Placed {
                id: InstanceId::compose(&app.name, target.number, nonce),
                app: app.name.clone(),
                revision: target.number,
                restarts: app.restarts,
                host,
                state: InstanceState::Running,
                since_ms: self.inputs.now_ms,
                provision: self.input.provision.clone(),
            });
        }
    }

    /// Drains instances of a group until `allowed` are left: those that failed or do not answer first, then from the
    /// host with the most of them, the newest first.
    fn drain_beyond(&self, allowed: usize, instances: &mut [Placed], group: impl Fn(&Self, &Placed) -> bool) {
        loop {
            let members: Vec<usize> = (0..instances.len()).filter(|i| group(self, &instances[*i])).collect();
            if members.len() <= allowed {
                return;
            }
            let crowd = |i: usize| members.iter().filter(|j| instances[**j].host == instances[i].host).count();
            let victim = members.iter().copied().max_by_key(|i| {
                let placed = &instances[*i];
                (self.has_failed(placed), !self.is_ready(placed), crowd(*i), placed.since_ms, *i)
            });
            let Some(victim) = victim else { return };
            instances[victim].state = InstanceState::Draining;
            instances[victim].since_ms = self.inputs.now_ms;
        }
    }

    /// Says when the target serves in full, and what it superseded.
    fn settle(&mut self, target: &Revision, instances: &[Placed]) {
        let wanted = self.wanted();
        let fresh: Vec<&Placed> = instances.iter().filter(|p| self.is_fresh(p, target)).collect();
        let ready = fresh.iter().filter(|p| self.is_ready(p)).count();
        let failed: Vec<String> = fresh
            .iter()
            .filter_map(|p| self.status(p).map(|s| (p, s)))
            .filter(|(_, s)| s.phase == InstancePhase::Failed)
            .map(|(p, s)| {
                let reason = s.reason.as_deref().unwrap_or("no reason given");
                format!("instance {} on {} failed: {reason}", p.id, p.host)
            })
            .collect();
        self.notes.extend(failed);
        if wanted == 0 {
            return;
        }
        if ready < wanted {
            self.notes.push(format!("{ready} of {wanted} instances of revision {} are ready", target.number));
            // What nobody starts now (no room, a silent host, a failure) is no reason to ask every host all the time.
            self.plan.unsettled |= fresh.iter().any(|p| self.is_coming(p));
            return;
        }
        let app = &self.input.app;
        let mut change = |revision, phase| {
            let app = app.name.clone();
            self.plan.phases.push(PhaseChange { app, revision, phase, failure: None });
        };
        if target.phase != RevisionPhase::Serving || app.stable != Some(target.number) {
            change(target.number, RevisionPhase::Serving);
        }
        for other in self.input.revisions.values() {
            let replaced = other.phase == RevisionPhase::Serving && other.number != target.number;
            if replaced && app.current == Some(target.number) {
                change(other.number, RevisionPhase::Superseded);
            }
        }
    }

    /// Lists the instances that take requests. Those on a host that does not answer are set aside, unless
    /// there are no others.
    fn publish(&mut self, instances: &[Placed]) {
        let answers = |p: &&Placed| {
            p.state == InstanceState::Running && self.status(p).is_some_and(|s| s.phase == InstancePhase::Ready)
        };
        let known: Vec<&Placed> = instances.iter().filter(answers).collect();
        let up: Vec<&Placed> = known.iter().copied().filter(|p| self.is_ready(p)).collect();
        let endpoints = if up.is_empty() { known } else { up };
        let endpoints = endpoints
            .into_iter()
            .filter_map(|p| {
                Some(Endpoint {
                    instance: p.id.clone(),
                    host: p.host.clone(),
                    revision: p.revision,
                    concurrency: self.input.revisions.get(&p.revision)?.config.concurrency,
                })
            })
            .collect();
        self.plan.endpoints.insert(self.input.app.name.clone(), endpoints);
    }
}
