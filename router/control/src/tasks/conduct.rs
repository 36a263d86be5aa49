//! Makes a plan whenever the store or the hosts say something new, and carries out its parts in their order:
//! phases and placement become durable, the edge gets its table, then the hosts are told. That a revision serves is
//! said once the edge has the table with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{App, AppName, HostId, HostState, InstanceId, RevisionNumber, RevisionPhase, StoreRevision};
use marcato_plan::{AppInput, HostInput, Inputs, Placement, Plan, Provision, ServiceInput, Settings, plan};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::publish::{Published, publish, specs};
use super::{CALM, Shared};
use crate::observed::Observed;
use crate::state::{Desired, Policies, StateResult};

/// While something waits for time to pass (a drain, a start).
const UNSETTLED: Duration = Duration::from_millis(100);
/// The first table waits this long for hosts to answer.
const FIRST_TABLE: Duration = Duration::from_secs(2);

pub(crate) async fn run(shared: Arc<Shared>, ready: watch::Sender<bool>, shutdown: CancellationToken) {
    let mut latest = shared.tasks.state.store().latest();
    let mut conductor = Conductor { shared: Arc::clone(&shared), memory: None, published: None };
    let started = Instant::now();
    loop {
        latest.mark_unchanged();
        let hold = !*ready.borrow() && started.elapsed() < FIRST_TABLE;
        let pause = match conductor.turn(hold).await {
            Ok(Turn::Held) => UNSETTLED,
            Ok(Turn::Done { unsettled }) => {
                ready.send_replace(true);
                shared.unsettled.store(unsettled, Ordering::Relaxed);
                if unsettled { UNSETTLED } else { CALM * 10 }
            }
            Err(error) => {
                tracing::warn!(%error, "the plan cannot be made or kept; trying again");
                conductor.memory = None;
                CALM
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = latest.changed() => if changed.is_err() { return },
            () = shared.observed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

enum Turn {
    /// Too early: hosts have not answered yet.
    Held,
    Done {
        unsettled: bool,
    },
}

struct Conductor {
    shared: Arc<Shared>,
    /// The placement as the store has it. `None`: read it.
    memory: Option<(Placement, Option<StoreRevision>)>,
    published: Option<Published>,
}

impl Conductor {
    async fn turn(&mut self, hold: bool) -> StateResult<Turn> {
        let (placement, version) = self.placement().await?;
        let mut also: Vec<(AppName, RevisionNumber)> =
            placement.instances.iter().map(|p| (p.app.clone(), p.revision)).collect();
        also.dedup();
        let state = self.shared.tasks.state.clone();
        let desired = state.desired(&also).await?;
        let observed = self.shared.tasks.observed.snapshot();
        if hold && waits_for_hosts(&desired, &observed) {
            return Ok(Turn::Held);
        }
        let inputs = inputs(&desired, &observed, placement, self.shared.tasks.settings);
        let made = plan(&inputs);
        // Whoever reads that a revision serves may ask it at once: that is said last.
        let (serving, others): (Vec<_>, Vec<_>) =
            made.phases.iter().partition(|change| change.phase == RevisionPhase::Serving);
        for change in others {
            state.set_revision_phase(&change.app, change.revision, change.phase, change.failure.clone()).await?;
        }
        if made.placement != inputs.placement || version.is_none() {
            let version = state.put_placements(&made.placement, version).await?;
            self.memory = Some((made.placement.clone(), Some(version)));
        }
        self.forget_services(&desired, &observed).await?;
        let unsettled = made.unsettled || !made.phases.is_empty();
        self.carry_out(&inputs.apps, &desired, &made);
        for change in serving {
            state.set_revision_phase(&change.app, change.revision, change.phase, change.failure.clone()).await?;
        }
        Ok(Turn::Done { unsettled })
    }

    async fn placement(&mut self) -> StateResult<(Placement, Option<StoreRevision>)> {
        if self.memory.is_none() {
            let found = self.shared.tasks.state.placements::<Placement>().await?;
            self.memory = Some(match found {
                Some((placement, version)) => (placement, Some(version)),
                None => (Placement::default(), None),
            });
        }
        Ok(self.memory.clone().unwrap_or_default())
    }

    /// The edge first, so that it has stopped sending to an instance before its host is told to drain it.
    fn carry_out(&mut self, apps: &[AppInput], desired: &Desired, made: &Plan) {
        let tasks = &self.shared.tasks;
        let table = specs(apps, &desired.hosts, &tasks.observed.load(), made, &tasks.debug);
        if self.published.as_ref() != Some(&table) {
            publish(tasks, table.clone());
            self.published = Some(table);
        }
        let placed: BTreeMap<HostId, BTreeSet<InstanceId>> = made
            .hosts
            .iter()
            .map(|(host, share)| (host.clone(), share.instances.iter().map(|i| i.id.clone()).collect()))
            .collect();
        let known = tasks.observed.load();
        if known.notes != made.notes || known.placed != placed {
            tasks.observed.update(|o| {
                o.notes.clone_from(&made.notes);
                o.placed.clone_from(&placed);
            });
        }
        self.shared.plans.send_if_modified(|plans| {
            let differs = **plans != made.hosts;
            if differs {
                *plans = Arc::new(made.hosts.clone());
            }
            differs
        });
    }

    /// A deleted service is forgotten once its owner no longer lists it.
    async fn forget_services(&self, desired: &Desired, observed: &Observed) -> StateResult<()> {
        let told = self.shared.plans.borrow().clone();
        for service in &desired.deleted_services {
            let was_told = told.get(&service.owner).is_some_and(|p| p.services.iter().any(|s| s.id == service.id));
            let owner = observed.hosts.get(&service.owner);
            let gone = match owner {
                None => desired.hosts.iter().all(|h| h.id != service.owner),
                Some(h) => {
                    let listed = h.inventory.as_ref().is_none_or(|i| i.services.iter().any(|s| s.id == service.id));
                    was_told && h.state == HostState::Up && !listed
                }
            };
            if gone {
                self.shared.tasks.state.forget_deleted_service(&service.id).await?;
            }
        }
        Ok(())
    }
}

fn waits_for_hosts(desired: &Desired, observed: &Observed) -> bool {
    desired.hosts.iter().any(|h| observed.hosts.get(&h.id).is_none_or(|o| o.state == HostState::Unknown))
}

fn inputs(desired: &Desired, observed: &Observed, placement: Placement, settings: Settings) -> Inputs {
    let mut revisions: BTreeMap<AppName, BTreeMap<_, _>> = BTreeMap::new();
    for ((app, number), revision) in &desired.revisions {
        revisions.entry(app.clone()).or_default().insert(*number, revision.clone());
    }
    let service = |deleted: bool| {
        move |s: &crate::state::ServiceRecord| ServiceInput {
            id: s.id.clone(),
            name: s.name.clone(),
            kind: s.kind,
            owner: s.owner.clone(),
            deleted,
        }
    };
    let now = Timestamp::now();
    let live = desired.services.iter().map(service(false));
    Inputs {
        apps: desired
            .apps
            .iter()
            .map(|(app, _)| AppInput {
                revisions: revisions.remove(&app.name).unwrap_or_default(),
                provision: provision(&desired.policies, app),
                app: app.clone(),
            })
            .collect(),
        hosts: desired
            .hosts
            .iter()
            .map(|h| {
                let seen = observed.hosts.get(&h.id);
                HostInput {
                    id: h.id.clone(),
                    zone: h.zone.clone(),
                    labels: h.labels.clone(),
                    duty: h.duty,
                    held: seen.is_some_and(|o| o.steadiness.held_until(now).is_some()),
                    state: seen.map_or(HostState::Unknown, |o| o.state),
                    control: h.control.clone(),
                    inventory: seen.and_then(|o| o.inventory.clone()),
                    last_seen_ms: seen.and_then(|o| o.last_seen).map(millis),
                }
            })
            .collect(),
        services: live.chain(desired.deleted_services.iter().map(service(true))).collect(),
        placement,
        now_ms: millis(now),
        settings,
    }
}

fn provision(policies: &Policies, app: &App) -> Provision {
    let effective = policies.of(app);
    Provision { isolation: effective.isolation(), budget: effective.budget() }
}

fn millis(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or(0)
}
