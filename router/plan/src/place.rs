//! Where a new instance goes. What must hold: an open host with the labels and the room that it asks for, and nothing on it
//! that it keeps away from. Then: hosts that are steady, spread over zones, then hosts; of those, labels that it prefers, the data,
//! the code, the emptier one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;

use marcato_api::{
    AppName, Bytes, ComponentState, Digest, HostDuty, HostId, HostState, InstanceId, InstanceState, InstanceStatus,
    PlacementRules, Revision, ServiceName,
};

use crate::inputs::{AppInput, HostInput, Inputs, Placed, ServiceInput};

/// The hosts and how full they are, while a plan is being made.
pub(crate) struct Fleet<'a> {
    inputs: &'a Inputs,
    /// In the order of the inputs.
    seats: Vec<Seat<'a>>,
    by_id: HashMap<&'a HostId, usize>,
    services: HashMap<&'a ServiceName, &'a ServiceInput>,
    apps: HashMap<&'a AppName, &'a AppInput>,
    /// Hosts whose instances are to be elsewhere: they drain, or are dead.
    leaving: HashSet<&'a HostId>,
    zones: usize,
    /// Which apps keep away from an app.
    shunned: HashMap<&'a AppName, Vec<&'a AppName>>,
}

/// One host.
struct Seat<'a> {
    host: &'a HostInput,
    /// Zones have numbers here.
    zone: usize,
    dead: bool,
    statuses: HashMap<&'a InstanceId, &'a InstanceStatus>,
    /// Components whose code is there.
    code: HashSet<&'a Digest>,
    /// Instances, the memory that one sandbox of each may take, and the CPU that is set aside for them.
    instances: u32,
    memory: u64,
    cpu_millis: u64,
    /// The apps that have instances here.
    apps: HashSet<&'a AppName>,
}

/// What is in the way of an instance on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    Silent,
    Closed,
    Labels,
    Apart,
    Memory,
    Cpu,
}

impl Obstacle {
    const fn words(self) -> &'static str {
        match self {
            Self::Silent => "does not answer",
            Self::Closed => "takes nothing new (cordoned or draining)",
            Self::Labels => "has not the labels that it requires",
            Self::Apart => "has an instance that it keeps away from",
            Self::Memory => "has not enough memory left",
            Self::Cpu => "has not enough CPU left",
        }
    }
}

impl<'a> Fleet<'a> {
    pub(crate) fn new(inputs: &'a Inputs) -> Self {
        let dead = inputs.dead();
        let mut zones: HashMap<&str, usize> = HashMap::new();
        let mut seats = Vec::with_capacity(inputs.hosts.len());
        for host in &inputs.hosts {
            let next = zones.len();
            let zone = *zones.entry(&host.zone).or_insert(next);
            seats.push(Seat::new(host, zone, dead.contains(&host.id)));
        }
        let leaves = |seat: &&Seat<'a>| seat.dead || seat.host.duty == HostDuty::Draining;
        let leaving = seats.iter().filter(leaves).map(|seat| &seat.host.id).collect();
        let by_id = inputs.hosts.iter().enumerate().map(|(at, h)| (&h.id, at)).collect();
        let services = inputs.services.iter().filter(|s| !s.deleted).map(|s| (&s.name, s)).collect();
        let apps = inputs.apps.iter().map(|a| (&a.app.name, a)).collect();
        let shunned = shunned(inputs);
        let zones = zones.len();
        let mut fleet = Self { inputs, seats, by_id, services, apps, leaving, zones, shunned };
        for placed in &inputs.placement.instances {
            if let (Some(at), Some(revision)) = (fleet.at(&placed.host), fleet.revision(placed)) {
                fleet.seats[at].take(&placed.app, revision);
            }
        }
        fleet
    }

    fn at(&self, id: &HostId) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    fn revision(&self, placed: &Placed) -> Option<&'a Revision> {
        self.apps.get(&placed.app)?.revisions.get(&placed.revision)
    }

    pub(crate) fn host(&self, id: &HostId) -> Option<&'a HostInput> {
        Some(self.seats[self.at(id)?].host)
    }

    /// Its instances are placed elsewhere.
    pub(crate) fn is_dead(&self, id: &HostId) -> bool {
        self.at(id).is_some_and(|at| self.seats[at].dead)
    }

    /// What is on this host is to be elsewhere.
    pub(crate) fn is_leaving(&self, id: &HostId) -> bool {
        !self.leaving.is_empty() && self.leaving.contains(id)
    }

    /// What its host said of an instance.
    pub(crate) fn status(&self, placed: &Placed) -> Option<&'a InstanceStatus> {
        self.seats[self.at(&placed.host)?].statuses.get(&placed.id).copied()
    }

    /// A service that is not deleted.
    pub(crate) fn service(&self, name: &ServiceName) -> Option<&'a ServiceInput> {
        self.services.get(name).copied()
    }

    /// Picks a host for one more instance beside `siblings`, and counts it there. `None`: nothing fits.
    pub(crate) fn place(&mut self, app: &'a AppName, revision: &'a Revision, siblings: &[Placed]) -> Option<HostId> {
        let (mut on_host, mut in_zone) = (vec![0_u32; self.seats.len()], vec![0_u32; self.zones]);
        let counts = |p: &&Placed| p.revision == revision.number && p.state == InstanceState::Running;
        for at in siblings.iter().filter(counts).filter_map(|p| self.at(&p.host)) {
            on_host[at] += 1;
            in_zone[self.seats[at].zone] += 1;
        }
        let bindings = revision.config.bindings.iter();
        let owners: BTreeSet<&HostId> = bindings.filter_map(|b| Some(&self.service(&b.service)?.owner)).collect();
        let rules = &revision.config.placement;
        let best = (0..self.seats.len())
            .filter(|at| self.obstacle(&self.seats[*at], app, revision, siblings).is_none())
            .min_by_key(|at| {
                let seat = &self.seats[*at];
                let host = seat.host;
                (
                    host.held,
                    in_zone[seat.zone],
                    on_host[*at],
                    rules.prefer.len() - agreeing(&rules.prefer, host),
                    !owners.is_empty() && !owners.contains(&host.id),
                    // An empty host that has to compile first is no better than one that has the code and as many.
                    (seat.instances, !seat.code.contains(&revision.digest)),
                    &host.id,
                )
            })?;
        self.seats[best].take(app, revision);
        Some(self.seats[best].host.id.clone())
    }

    fn obstacle(&self, seat: &Seat<'_>, app: &AppName, revision: &Revision, siblings: &[Placed]) -> Option<Obstacle> {
        let rules = &revision.config.placement;
        let host = seat.host;
        let Some(inventory) = host.inventory.as_ref().filter(|_| host.state == HostState::Up) else {
            return Some(Obstacle::Silent);
        };
        if !host.is_open() {
            return Some(Obstacle::Closed);
        }
        if agreeing(&rules.require, host) < rules.require.len() {
            return Some(Obstacle::Labels);
        }
        if keeps_away(rules, seat, app, revision, siblings) || self.is_kept_away(seat, app) {
            return Some(Obstacle::Apart);
        }
        if seat.memory + revision.config.limits.memory_bytes.0 > inventory.capacity.memory_bytes.0 {
            return Some(Obstacle::Memory);
        }
        let cpu = seat.cpu_millis + u64::from(rules.cpu_millis);
        (rules.cpu_millis > 0 && cpu > inventory.capacity.cpu_millis).then_some(Obstacle::Cpu)
    }

    /// Whether an app that is there already keeps away from this one.
    fn is_kept_away(&self, seat: &Seat<'_>, app: &AppName) -> bool {
        self.shunned.get(app).is_some_and(|by| by.iter().any(|other| *other != app && seat.apps.contains(*other)))
    }

    /// Why nothing fits, in words: what is in the way, on how many hosts.
    pub(crate) fn why_not(&self, app: &AppName, revision: &Revision, siblings: &[Placed]) -> String {
        let all = self.inputs.hosts.len();
        if all == 0 {
            return "no host has joined yet; next: marcato hosts token".into();
        }
        let mut counts: BTreeMap<Obstacle, usize> = BTreeMap::new();
        for seat in &self.seats {
            if let Some(obstacle) = self.obstacle(seat, app, revision, siblings) {
                *counts.entry(obstacle).or_default() += 1;
            }
        }
        let mut text = String::new();
        for (obstacle, count) in counts {
            let comma = if text.is_empty() { "" } else { "; " };
            let _ = write!(text, "{comma}{count} of {all} hosts: {}", obstacle.words());
            match obstacle {
                Obstacle::Memory => {
                    let _ = write!(text, " ({} for each instance)", revision.config.limits.memory_bytes);
                }
                Obstacle::Cpu => {
                    let _ = write!(text, " ({} thousandths of a core)", revision.config.placement.cpu_millis);
                }
                Obstacle::Labels => {
                    let labels = revision.config.placement.require.iter().map(|(k, v)| format!("{k}={v}"));
                    let _ = write!(text, " ({})", labels.collect::<Vec<_>>().join(", "));
                }
                Obstacle::Silent | Obstacle::Closed | Obstacle::Apart => {}
            }
        }
        text
    }
}

impl<'a> Seat<'a> {
    fn new(host: &'a HostInput, zone: usize, dead: bool) -> Self {
        let said = host.inventory.iter().flat_map(|i| &i.instances);
        let statuses = said.map(|status| (&status.id, status)).collect();
        let known = host.inventory.iter().flat_map(|i| &i.components);
        let code = known.filter(|c| c.state == ComponentState::Ready).map(|c| &c.digest).collect();
        Self { host, zone, dead, statuses, code, instances: 0, memory: 0, cpu_millis: 0, apps: HashSet::new() }
    }

    fn take(&mut self, app: &'a AppName, revision: &Revision) {
        self.instances += 1;
        let Bytes(memory) = revision.config.limits.memory_bytes;
        self.memory = self.memory.saturating_add(memory);
        self.cpu_millis = self.cpu_millis.saturating_add(revision.config.placement.cpu_millis.into());
        self.apps.insert(app);
    }
}

fn keeps_away(
    rules: &PlacementRules,
    seat: &Seat<'_>,
    app: &AppName,
    revision: &Revision,
    siblings: &[Placed],
) -> bool {
    // A roll-out starts the new beside the old: only those of one revision keep apart.
    let sibling = |p: &Placed| {
        p.host == seat.host.id && p.revision == revision.number && p.state == InstanceState::Running && p.app == *app
    };
    (rules.one_per_host && siblings.iter().any(sibling))
        || rules.apart_from.iter().any(|other| other != app && seat.apps.contains(other))
}

fn agreeing(labels: &BTreeMap<String, String>, host: &HostInput) -> usize {
    labels.iter().filter(|(name, value)| host.labels.get(*name) == Some(*value)).count()
}

/// By app, the apps whose current revision keeps away from it.
fn shunned(inputs: &Inputs) -> HashMap<&AppName, Vec<&AppName>> {
    let mut shunned: HashMap<&AppName, Vec<&AppName>> = HashMap::new();
    for input in &inputs.apps {
        let current = input.app.current.and_then(|number| input.revisions.get(&number));
        for other in current.iter().flat_map(|r| &r.config.placement.apart_from) {
            shunned.entry(other).or_default().push(&input.app.name);
        }
    }
    shunned
}
