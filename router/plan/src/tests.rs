//! Properties over random clouds and random histories, and the cases that a person would ask about.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use marcato_api::*;
use proptest::prelude::*;

use crate::*;

/// Revisions of this app bind the service `register`.
const BINDER: &str = "binder";

fn name(text: &str) -> AppName {
    AppName::new(text).unwrap()
}

fn host(n: usize) -> HostId {
    HostId::new(format!("h{n}")).unwrap()
}

fn revision(app: &AppName, number: u64, phase: RevisionPhase) -> Revision {
    let mut config = RevisionConfig::default();
    if app.as_str() == BINDER {
        config.bindings.push(Binding { name: "db".into(), service: ServiceName::new("register").unwrap() });
    }
    Revision {
        app: app.clone(),
        number: RevisionNumber(number),
        digest: Digest::of(&number.to_le_bytes()),
        size: Bytes(1),
        config,
        created_at: Timestamp::UNIX_EPOCH,
        created_by: "test".into(),
        reason: "push".into(),
        phase,
        failure: None,
    }
}

fn app(text: &str, instances: u32) -> AppInput {
    let name = name(text);
    AppInput {
        app: App {
            name: name.clone(),
            org: OrgName::default_org(),
            space: SpaceName::default_space(),
            state: AppState::Started,
            instances,
            current: Some(RevisionNumber(1)),
            stable: None,
            restarts: 0,
            routes: vec![],
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        },
        revisions: BTreeMap::from([(RevisionNumber(1), revision(&name, 1, RevisionPhase::Rolling))]),
        provision: Provision::default(),
    }
}

fn host_input(n: usize, zone: &str) -> HostInput {
    HostInput {
        id: host(n),
        zone: zone.into(),
        labels: BTreeMap::from([("n".into(), n.to_string())]),
        state: HostState::Up,
        duty: HostDuty::Active,
        held: false,
        control: format!("unix:/h{n}").parse().unwrap(),
        inventory: Some(Arc::new(Inventory {
            host: host(n),
            version: "0".into(),
            started_at: Timestamp::UNIX_EPOCH,
            generation: Generation(0),
            capacity: HostCapacity { memory_bytes: Bytes::mib(128 * 64), cpu_millis: 1000, sandboxes: 100 },
            used: HostUsage::default(),
            components: vec![],
            instances: vec![],
            services: vec![],
            certificate: None,
            ingress_tls: false,
            ingress_certificate: None,
            workers: Vec::new(),
        })),
        last_seen_ms: Some(1_000_000),
    }
}

fn register(owner: HostId) -> ServiceInput {
    ServiceInput {
        id: ServiceId::generate(),
        name: ServiceName::new("register").unwrap(),
        kind: ServiceKind::Access,
        owner,
        deleted: false,
    }
}

fn cloud(apps: Vec<AppInput>, hosts: usize) -> Inputs {
    Inputs {
        apps,
        hosts: (0..hosts).map(|n| host_input(n, &format!("z{}", n % 2))).collect(),
        services: vec![],
        placement: Placement::default(),
        now_ms: 1_000_000,
        settings: Settings::standard(),
    }
}

/// What the store keeps before anything else of a plan is carried out.
fn apply_phases(inputs: &mut Inputs, plan: &Plan) {
    for change in &plan.phases {
        let app = inputs.apps.iter_mut().find(|a| a.app.name == change.app).unwrap();
        let revision = app.revisions.get_mut(&change.revision).unwrap();
        revision.phase = change.phase;
        revision.failure.clone_from(&change.failure);
        if change.phase == RevisionPhase::Serving {
            app.app.stable = Some(change.revision);
        }
    }
}

/// Carries a plan out as hosts and the store would, `ready` deciding how each instance that does not run yet starts.
fn apply(inputs: &mut Inputs, plan: &Plan, ready: &dyn Fn(&Placed) -> InstancePhase) {
    apply_phases(inputs, plan);
    for host in inputs.hosts.iter_mut().filter(|h| h.state == HostState::Up) {
        host.last_seen_ms = Some(inputs.now_ms);
        let mut inventory = Inventory::clone(host.inventory.as_ref().unwrap());
        let runs = |p: &Placed| host.instance(&p.id).is_some_and(|s| s.phase == InstancePhase::Ready);
        inventory.instances = plan
            .placement
            .instances
            .iter()
            .filter(|p| p.host == host.id)
            .map(|p| InstanceStatus {
                id: p.id.clone(),
                app: p.app.clone(),
                revision: p.revision,
                phase: match p.state {
                    InstanceState::Draining => InstancePhase::Draining,
                    InstanceState::Running if runs(p) => InstancePhase::Ready,
                    InstanceState::Running => ready(p),
                },
                in_flight: 0,
                queued: 0,
                ingress: None,
                counters: InstanceCounters::default(),
                limits: Vec::new(),
                reason: Some("no such import".into()),
            })
            .collect();
        host.inventory = Some(Arc::new(inventory));
    }
    inputs.placement = plan.placement.clone();
    inputs.now_ms += 600;
}

fn step(inputs: &mut Inputs, ready: &dyn Fn(&Placed) -> InstancePhase) -> Plan {
    let made = plan(inputs);
    assert_eq!(check(inputs, &made), vec![], "{inputs:#?}");
    let mut after = Inputs { placement: made.placement.clone(), ..inputs.clone() };
    apply_phases(&mut after, &made);
    let again = plan(&after);
    assert_eq!(again.placement, made.placement, "a second plan on the same input moves nothing");
    apply(inputs, &made, ready);
    made
}

fn settle(inputs: &mut Inputs) -> Plan {
    let mut last = None;
    for _ in 0..12 {
        last = Some(step(inputs, &|_| InstancePhase::Ready));
    }
    last.unwrap()
}

fn running(inputs: &Inputs, number: u64) -> Vec<&Placed> {
    let of = |p: &&Placed| p.revision == RevisionNumber(number) && p.state == InstanceState::Running;
    inputs.placement.instances.iter().filter(of).collect()
}

fn push(inputs: &mut Inputs, number: u64) {
    let input = &mut inputs.apps[0];
    let name = input.app.name.clone();
    input.app.current = Some(RevisionNumber(number));
    input.revisions.insert(RevisionNumber(number), revision(&name, number, RevisionPhase::Rolling));
}

#[test]
fn instances_spread_over_zones_then_hosts() {
    let mut inputs = cloud(vec![app("shop", 4)], 4);
    let made = settle(&mut inputs);
    let mut hosts: Vec<_> = running(&inputs, 1).iter().map(|p| p.host.clone()).collect();
    hosts.sort();
    assert_eq!(hosts, (0..4).map(host).collect::<Vec<_>>());
    assert_eq!(made.endpoints[&name("shop")].len(), 4);
    assert_eq!(inputs.apps[0].app.stable, Some(RevisionNumber(1)));
    assert!(made.notes.is_empty(), "{:?}", made.notes);
}

#[test]
fn a_roll_out_keeps_the_old_until_the_new_answer() {
    let mut inputs = cloud(vec![app("shop", 3)], 2);
    settle(&mut inputs);
    push(&mut inputs, 2);
    step(&mut inputs, &|p| if p.revision.0 == 2 { InstancePhase::Pending } else { InstancePhase::Ready });
    let made = step(&mut inputs, &|_| InstancePhase::Ready);
    assert_eq!((running(&inputs, 1).len(), running(&inputs, 2).len()), (3, 3));
    assert_eq!(made.endpoints[&name("shop")].len(), 3, "the new ones do not answer yet");
    settle(&mut inputs);
    assert_eq!((running(&inputs, 1).len(), running(&inputs, 2).len()), (0, 3));
    assert_eq!(inputs.placement.instances.len(), 3, "what drained is gone");
    assert_eq!(inputs.apps[0].revisions[&RevisionNumber(1)].phase, RevisionPhase::Superseded);
}

#[test]
fn a_revision_that_cannot_start_leaves_the_stable_one_serving() {
    let mut inputs = cloud(vec![app("shop", 2)], 2);
    settle(&mut inputs);
    push(&mut inputs, 2);
    let fail = |p: &Placed| if p.revision.0 == 2 { InstancePhase::Failed } else { InstancePhase::Ready };
    let mut notes = BTreeMap::new();
    for _ in 0..6 {
        let made = step(&mut inputs, &fail);
        assert_eq!(made.endpoints[&name("shop")].len(), 2);
        notes = made.notes;
    }
    assert_eq!((running(&inputs, 1).len(), running(&inputs, 2).len()), (2, 0));
    let failed = &inputs.apps[0].revisions[&RevisionNumber(2)];
    assert_eq!((failed.phase, failed.failure.as_deref()), (RevisionPhase::Failed, Some("no such import")));
    assert!(notes[&name("shop")][0].contains("revision 1 goes on"), "{notes:?}");
}

#[test]
fn a_restart_replaces_every_instance() {
    let mut inputs = cloud(vec![app("shop", 2)], 2);
    settle(&mut inputs);
    let before: Vec<_> = inputs.placement.instances.iter().map(|p| p.id.clone()).collect();
    inputs.apps[0].app.restarts += 1;
    settle(&mut inputs);
    assert_eq!(inputs.placement.instances.len(), 2);
    assert!(inputs.placement.instances.iter().all(|p| !before.contains(&p.id)));
}

fn process() -> Provision {
    let isolation = Isolation { class: IsolationClass::Process, group: String::new() };
    Provision { isolation, budget: AppBudget { cpu_weight: 10, ..AppBudget::default() } }
}

#[test]
fn another_isolation_class_rolls_every_instance_and_loses_none() {
    let mut inputs = cloud(vec![app("shop", 2), app("other", 1)], 2);
    settle(&mut inputs);
    let before = inputs.placement.instances.clone();
    inputs.apps[0].provision = process();
    let pending = |p: &Placed| if p.provision == process() { InstancePhase::Pending } else { InstancePhase::Ready };
    for _ in 0..3 {
        let made = step(&mut inputs, &pending);
        assert_eq!(made.endpoints[&name("shop")].len(), 2, "the old ones answer until the new ones do");
    }
    let made = settle(&mut inputs);
    let of = |app: &str| -> Vec<Placed> {
        inputs.placement.instances.iter().filter(|p| p.app == name(app)).cloned().collect()
    };
    assert!(of("shop").iter().all(|p| p.provision == process() && !before.contains(p)));
    assert_eq!((of("shop").len(), made.endpoints[&name("shop")].len()), (2, 2));
    assert!(of("other").iter().all(|p| before.contains(p)), "another app's policy is not its own");
    let specs: Vec<_> = made.hosts.values().flat_map(|h| &h.instances).filter(|i| i.app == name("shop")).collect();
    assert!(specs.iter().all(|s| s.isolation.worker(&s.app) == "app-shop" && s.budget.cpu_weight == 10), "{specs:?}");
    assert_eq!(made.phases, vec![], "the revision serves as before");
}

#[test]
fn a_class_in_which_nothing_starts_leaves_the_old_instances_serving() {
    let mut inputs = cloud(vec![app("shop", 2)], 2);
    settle(&mut inputs);
    inputs.apps[0].provision = process();
    let fails = |p: &Placed| if p.provision == process() { InstancePhase::Failed } else { InstancePhase::Ready };
    for _ in 0..6 {
        let made = step(&mut inputs, &fails);
        assert_eq!(made.endpoints[&name("shop")].len(), 2);
        inputs.now_ms += 100_000;
    }
    let made = plan(&inputs);
    assert!(made.notes[&name("shop")].join("; ").contains("failed"), "{:?}", made.notes);
}

#[test]
fn the_checker_sees_a_provision_that_is_not_the_apps() {
    let mut inputs = cloud(vec![app("shop", 1)], 1);
    inputs.apps[0].provision = process();
    let mut made = plan(&inputs);
    assert_eq!(check(&inputs, &made), vec![]);
    let id = made.placement.instances[0].id.clone();
    made.hosts.get_mut(&host(0)).unwrap().instances[0].isolation = Isolation::default();
    assert_eq!(check(&inputs, &made), vec![Violation::WrongProvision(id.clone())]);
    let mut made = plan(&inputs);
    made.placement.instances[0].provision = Provision::default();
    made.hosts.get_mut(&host(0)).unwrap().instances[0].isolation = Isolation::default();
    made.hosts.get_mut(&host(0)).unwrap().instances[0].budget = AppBudget::default();
    assert_eq!(check(&inputs, &made), vec![Violation::WrongProvision(id)]);
    // A placement of a release that knew no policies is one without any.
    let old = serde_json::to_value(&plan(&cloud(vec![app("shop", 1)], 1)).placement).unwrap();
    let mut without = old.clone();
    without["instances"][0].as_object_mut().unwrap().remove("provision");
    assert_eq!(serde_json::from_value::<Placement>(without).unwrap(), serde_json::from_value(old).unwrap());
}

#[test]
fn a_full_cloud_says_what_is_missing() {
    let mut inputs = cloud(vec![app("shop", 100)], 1);
    let made = settle(&mut inputs);
    assert_eq!(running(&inputs, 1).len(), 64);
    let notes = made.notes[&name("shop")].join("; ");
    assert!(notes.contains("36 of 100 instances cannot be placed") && notes.contains("128 MiB"), "{notes}");
    let mut empty = cloud(vec![app("shop", 1)], 0);
    assert!(settle(&mut empty).notes[&name("shop")][0].contains("no host has joined"));
}

#[test]
fn a_busy_instance_drains_until_the_bound() {
    let mut inputs = cloud(vec![app("shop", 1)], 1);
    settle(&mut inputs);
    inputs.apps[0].app.state = AppState::Stopped;
    let busy = |inputs: &mut Inputs| {
        let made = plan(inputs);
        apply(inputs, &made, &|_| InstancePhase::Ready);
        let mut inventory = Inventory::clone(inputs.hosts[0].inventory.as_ref().unwrap());
        inventory.instances.iter_mut().for_each(|i| i.in_flight = 1);
        inputs.hosts[0].inventory = Some(Arc::new(inventory));
    };
    for _ in 0..40 {
        busy(&mut inputs);
        assert_eq!(inputs.placement.instances.len(), 1);
    }
    inputs.now_ms += 30_000;
    busy(&mut inputs);
    assert_eq!(inputs.placement.instances.len(), 0);
}

#[test]
fn a_service_elsewhere_comes_with_its_owner() {
    let mut inputs = cloud(vec![app(BINDER, 2)], 2);
    inputs.services.push(register(host(0)));
    let id = inputs.services[0].id.clone();
    let made = settle(&mut inputs);
    assert!(made.hosts[&host(0)].peers.is_empty());
    assert_eq!(made.hosts[&host(1)].peers[0].id, host(0));
    assert_eq!(made.hosts[&host(1)].instances[0].bindings["db"], id);
    assert!(made.notes.is_empty(), "{:?}", made.notes);
    inputs.hosts[0].state = HostState::Suspected;
    let notes = plan(&inputs).notes[&name(BINDER)].join("; ");
    assert!(notes.contains("service register is on host h0, which does not answer"), "{notes}");
    inputs.services.clear();
    let notes = plan(&inputs).notes[&name(BINDER)].join("; ");
    assert!(notes.contains("there is no service register"), "{notes}");
}

/// Host 1 cannot start anything of revision 2.
fn half(placed: &Placed) -> InstancePhase {
    let sick = placed.revision.0 == 2 && placed.host == host(1);
    if sick { InstancePhase::Failed } else { InstancePhase::Ready }
}

#[test]
fn a_revision_that_starts_on_some_hosts_only_goes_back_after_the_bound() {
    let mut inputs = cloud(vec![app("shop", 2)], 2);
    settle(&mut inputs);
    push(&mut inputs, 2);
    for _ in 0..4 {
        step(&mut inputs, &half);
    }
    let made = step(&mut inputs, &half);
    assert_eq!((running(&inputs, 1).len(), running(&inputs, 2).len()), (1, 2), "the host may still make it");
    assert!(!made.unsettled, "nothing starts, so nobody needs to be asked often");
    assert!(made.notes[&name("shop")].join("; ").contains("on h1 failed: no such import"), "{:?}", made.notes);
    inputs.now_ms += 120_000;
    for _ in 0..4 {
        step(&mut inputs, &half);
    }
    assert_eq!((running(&inputs, 1).len(), running(&inputs, 2).len()), (2, 0));
    let failed = &inputs.apps[0].revisions[&RevisionNumber(2)];
    assert_eq!((failed.phase, failed.failure.as_deref()), (RevisionPhase::Failed, Some("no such import")));
}

#[test]
fn with_nothing_to_go_back_to_some_instances_are_better_than_none() {
    let mut inputs = cloud(vec![app("shop", 2)], 2);
    inputs.apps[0].app.current = Some(RevisionNumber(2));
    let shop = name("shop");
    inputs.apps[0].revisions = BTreeMap::from([(RevisionNumber(2), revision(&shop, 2, RevisionPhase::Rolling))]);
    for _ in 0..4 {
        step(&mut inputs, &half);
    }
    inputs.now_ms += 120_000;
    let made = step(&mut inputs, &half);
    assert_eq!(made.endpoints[&shop].len(), 1);
    assert_eq!((made.unsettled, made.phases.len()), (false, 0));
    settle(&mut inputs);
    assert_eq!(inputs.apps[0].revisions[&RevisionNumber(2)].phase, RevisionPhase::Serving, "the host got well");
}

#[test]
fn a_host_that_is_silent_for_a_moment_does_not_cost_the_only_revision_that_ran() {
    let mut inputs = cloud(vec![app("shop", 2)], 2);
    inputs.apps[0].app.current = Some(RevisionNumber(1));
    inputs.apps[0].revisions =
        BTreeMap::from([(RevisionNumber(1), revision(&name("shop"), 1, RevisionPhase::Rolling))]);
    let sick = |p: &Placed| {
        let fails = p.revision.0 == 2 || p.host == host(1);
        if fails { InstancePhase::Failed } else { InstancePhase::Ready }
    };
    step(&mut inputs, &sick);
    step(&mut inputs, &sick);
    let ready: Vec<_> = inputs.placement.instances.iter().filter(|p| p.host == host(0)).map(|p| p.id.clone()).collect();
    assert_eq!(ready.len(), 1);
    push(&mut inputs, 2);
    inputs.hosts[0].state = HostState::Suspected;
    for _ in 0..4 {
        step(&mut inputs, &sick);
    }
    assert_eq!(inputs.apps[0].revisions[&RevisionNumber(2)].phase, RevisionPhase::Failed);
    let kept = inputs.placement.instances.iter().find(|p| p.id == ready[0]);
    assert_eq!(kept.map(|p| p.state), Some(InstanceState::Running));
}

#[test]
fn an_instance_that_came_later_does_not_keep_a_roll_out_alive_that_starts_nowhere() {
    let mut inputs = cloud(vec![app("shop", 2)], 3);
    settle(&mut inputs);
    push(&mut inputs, 2);
    step(&mut inputs, &|_| InstancePhase::Pending);
    inputs.now_ms += 100_000;
    inputs.apps[0].app.instances = 3;
    step(&mut inputs, &|_| InstancePhase::Pending);
    assert_eq!(running(&inputs, 2).len(), 3);
    inputs.now_ms += 30_000;
    step(&mut inputs, &|_| InstancePhase::Pending);
    let failed = &inputs.apps[0].revisions[&RevisionNumber(2)];
    assert_eq!(failed.phase, RevisionPhase::Failed, "{failed:?}");
    assert!(failed.failure.as_deref().unwrap().contains("within 120 s"), "{failed:?}");
}

#[test]
fn what_failed_drains_before_what_is_only_silent() {
    for failing in 0..2 {
        let mut inputs = cloud(vec![app("shop", 2)], 2);
        settle(&mut inputs);
        let (sick, silent) =
            (inputs.placement.instances[failing].clone(), inputs.placement.instances[1 - failing].clone());
        for host in &mut inputs.hosts {
            if host.id == silent.host {
                host.state = HostState::Suspected;
            } else {
                let mut inventory = Inventory::clone(host.inventory.as_ref().unwrap());
                inventory.instances.iter_mut().for_each(|i| i.phase = InstancePhase::Failed);
                host.inventory = Some(Arc::new(inventory));
            }
        }
        inputs.apps[0].app.instances = 1;
        let made = plan(&inputs);
        let state = |id: &InstanceId| made.placement.instances.iter().find(|p| p.id == *id).map(|p| p.state);
        assert_eq!((state(&sick.id), state(&silent.id)), (Some(InstanceState::Draining), Some(InstanceState::Running)));
    }
}

#[test]
fn a_rollback_that_cannot_start_goes_back_to_what_serves() {
    let mut inputs = cloud(vec![app("shop", 2)], 2);
    settle(&mut inputs);
    push(&mut inputs, 2);
    settle(&mut inputs);
    inputs.apps[0].app.current = Some(RevisionNumber(1));
    for _ in 0..4 {
        let made = step(&mut inputs, &|p| if p.revision.0 == 1 { InstancePhase::Failed } else { InstancePhase::Ready });
        assert_eq!(made.endpoints[&name("shop")].len(), 2);
    }
    assert_eq!(inputs.apps[0].revisions[&RevisionNumber(1)].phase, RevisionPhase::Failed);
    assert_eq!((running(&inputs, 1).len(), running(&inputs, 2).len()), (0, 2));
    assert_eq!(inputs.apps[0].revisions[&RevisionNumber(2)].phase, RevisionPhase::Serving);
}

#[test]
fn a_roll_out_that_was_overtaken_is_over() {
    let mut inputs = cloud(vec![app("shop", 2)], 2);
    settle(&mut inputs);
    for number in 2..4 {
        push(&mut inputs, number);
        step(&mut inputs, &|_| InstancePhase::Pending);
    }
    assert_eq!(inputs.apps[0].revisions[&RevisionNumber(2)].phase, RevisionPhase::Superseded);
    assert_eq!((running(&inputs, 1).len(), running(&inputs, 2).len()), (2, 0), "those that answer stay");
    let made = settle(&mut inputs);
    assert_eq!((running(&inputs, 3).len(), inputs.placement.instances.len()), (2, 2));
    assert_eq!((made.unsettled, made.phases.len()), (false, 0));
}

#[test]
fn what_cannot_be_placed_now_keeps_nobody_busy() {
    let mut full = cloud(vec![app("shop", 100)], 1);
    assert!(!settle(&mut full).unsettled);
    let mut silent = cloud(vec![app("shop", 2)], 2);
    settle(&mut silent);
    silent.hosts[1].state = HostState::Suspected;
    let made = settle(&mut silent);
    assert!(!made.unsettled);
    assert_eq!((running(&silent, 1).len(), made.endpoints[&name("shop")].len()), (2, 1), "it may come back");
}

#[test]
fn a_host_that_was_restarted_is_asked_often_until_it_is_ready() {
    let mut inputs = cloud(vec![app("shop", 1)], 1);
    settle(&mut inputs);
    inputs.now_ms += 86_400_000;
    let mut inventory = Inventory::clone(inputs.hosts[0].inventory.as_ref().unwrap());
    inventory.started_at = Timestamp::from_millisecond(i64::try_from(inputs.now_ms).unwrap()).unwrap();
    inventory.instances[0].phase = InstancePhase::Pending;
    inputs.hosts[0].inventory = Some(Arc::new(inventory));
    assert!(plan(&inputs).unsettled);
    inputs.now_ms += 121_000;
    assert!(!plan(&inputs).unsettled, "within reason");
}

#[test]
fn instances_of_a_dead_host_are_placed_elsewhere_when_that_is_wished() {
    for (dead_after_ms, moved) in [(None, false), (Some(30_000), true)] {
        let mut inputs = cloud(vec![app("shop", 2)], 3);
        inputs.settings.dead_after_ms = dead_after_ms;
        settle(&mut inputs);
        let lost = inputs.placement.instances[0].host.clone();
        let at = inputs.hosts.iter().position(|h| h.id == lost).unwrap();
        inputs.hosts[at].state = HostState::Suspected;
        settle(&mut inputs);
        assert!(inputs.placement.instances.iter().any(|p| p.host == lost), "not at once");
        inputs.now_ms += 30_000;
        let made = settle(&mut inputs);
        assert_eq!(inputs.placement.instances.iter().all(|p| p.host != lost), moved);
        assert_eq!(made.endpoints[&name("shop")].len(), if moved { 2 } else { 1 });
        inputs.hosts[at].last_seen_ms = None;
        inputs.hosts[at].state = HostState::Unknown;
        assert!(inputs.dead().is_empty(), "a router that was just started gives no host up");
    }
}

#[test]
fn a_router_that_is_cut_off_does_not_move_the_fleet() {
    let mut inputs = cloud(vec![app("shop", 6)], 6);
    settle(&mut inputs);
    let before = inputs.placement.clone();
    inputs.hosts.iter_mut().for_each(|h| h.state = HostState::Suspected);
    inputs.now_ms += 60_000;
    let made = plan(&inputs);
    assert_eq!(inputs.dead().len(), 1, "a third of six, rounded down: {:?}", inputs.dead());
    assert_eq!(made.placement, before, "and what has nowhere to go stays");
    assert_eq!(made.endpoints[&name("shop")].len(), 6);
    // Half of them: those that have been silent for longest, up to a third.
    for (n, host) in inputs.hosts.iter_mut().enumerate() {
        host.state = if n < 3 { HostState::Suspected } else { HostState::Up };
        host.last_seen_ms = Some(inputs.now_ms - if n < 3 { 60_000 - n as u64 } else { 0 });
    }
    inputs.settings.dead_percent_max = 34;
    assert_eq!(inputs.dead().into_iter().cloned().collect::<Vec<_>>(), [host(0), host(1)]);
}

#[test]
fn a_host_that_comes_back_before_its_instances_moved_keeps_them() {
    let mut inputs = cloud(vec![app("shop", 2)], 3);
    settle(&mut inputs);
    let before = inputs.placement.clone();
    let at = inputs.hosts.iter().position(|h| h.id == before.instances[0].host).unwrap();
    inputs.hosts[at].state = HostState::Suspected;
    inputs.now_ms += 60_000;
    // The one that stands in for it does not start.
    step(&mut inputs, &|_| InstancePhase::Pending);
    assert_eq!(inputs.placement.instances.len(), 3);
    inputs.hosts[at].state = HostState::Up;
    settle(&mut inputs);
    assert_eq!(inputs.placement.instances, before.instances);
}

#[test]
fn a_host_that_drains_gives_up_each_instance_once_another_stands_in() {
    let mut inputs = cloud(vec![app("shop", 3), app("cart", 1)], 3);
    settle(&mut inputs);
    inputs.hosts[0].duty = HostDuty::Draining;
    for _ in 0..12 {
        let made = step(&mut inputs, &|_| InstancePhase::Ready);
        assert!(made.endpoints[&name("shop")].len() >= 3, "nothing is missing meanwhile");
    }
    assert!(inputs.placement.instances.iter().all(|p| p.host != host(0)), "{:?}", inputs.placement);
    // Where nothing else has room, what is there stays, and it is said.
    inputs.hosts.iter_mut().for_each(|h| h.duty = HostDuty::Draining);
    let made = settle(&mut inputs);
    assert_eq!(made.endpoints[&name("shop")].len(), 3);
    assert!(made.notes[&name("shop")][0].contains("3 of 3 hosts: takes nothing new"), "{:?}", made.notes);
}

#[test]
fn nothing_new_comes_to_a_cordoned_host_and_what_is_there_stays() {
    let mut inputs = cloud(vec![app("shop", 2)], 2);
    settle(&mut inputs);
    let before = inputs.placement.clone();
    inputs.hosts[0].duty = HostDuty::Cordoned;
    settle(&mut inputs);
    assert_eq!(inputs.placement, before);
    inputs.apps[0].app.instances = 4;
    settle(&mut inputs);
    assert_eq!(inputs.placement.instances.iter().filter(|p| p.host == host(0)).count(), 1);
}

#[test]
fn a_host_that_flaps_is_the_last_choice() {
    let mut inputs = cloud(vec![app("shop", 2)], 2);
    inputs.hosts[0].held = true;
    settle(&mut inputs);
    assert!(inputs.placement.instances.iter().all(|p| p.host == host(1)));
    let mut alone = cloud(vec![app("shop", 2)], 1);
    alone.hosts[0].held = true;
    settle(&mut alone);
    assert_eq!(alone.placement.instances.len(), 2, "better than none");
}

/// One app with such rules on so many hosts; where its instances are, and what is said.
fn with_rules(instances: u32, hosts: usize, rules: PlacementRules) -> (Vec<HostId>, Vec<String>) {
    let mut inputs = cloud(vec![app("shop", instances)], hosts);
    inputs.apps[0].revisions.get_mut(&RevisionNumber(1)).unwrap().config.placement = rules;
    let made = settle(&mut inputs);
    let mut at: Vec<HostId> = inputs.placement.instances.iter().map(|p| p.host.clone()).collect();
    at.sort();
    (at, made.notes.get(&name("shop")).cloned().unwrap_or_default())
}

#[test]
fn rules_of_placement_hold_and_what_they_keep_out_is_named() {
    let labels = |value: &str| BTreeMap::from([("n".to_owned(), value.to_owned())]);
    let (at, notes) = with_rules(2, 3, PlacementRules { require: labels("2"), ..PlacementRules::default() });
    assert_eq!((at, notes), (vec![host(2), host(2)], vec![]));
    let (at, notes) = with_rules(1, 3, PlacementRules { require: labels("9"), ..PlacementRules::default() });
    assert!(at.is_empty() && notes[0].contains("3 of 3 hosts: has not the labels that it requires (n=9)"), "{notes:?}");
    let (at, _) = with_rules(1, 3, PlacementRules { prefer: labels("2"), ..PlacementRules::default() });
    assert_eq!(at, [host(2)]);
    let (at, _) = with_rules(3, 3, PlacementRules { prefer: labels("2"), ..PlacementRules::default() });
    assert_eq!(at, [host(0), host(1), host(2)], "they spread before they go where they like it");
    let (at, notes) = with_rules(3, 2, PlacementRules { one_per_host: true, ..PlacementRules::default() });
    assert_eq!(at, [host(0), host(1)]);
    assert!(notes[0].contains("2 of 2 hosts: has an instance that it keeps away from"), "{notes:?}");
    // A host has a core.
    let (at, notes) = with_rules(5, 2, PlacementRules { cpu_millis: 400, ..PlacementRules::default() });
    assert_eq!(at.len(), 4);
    assert!(notes[0].contains("not enough CPU left (400 thousandths of a core)"), "{notes:?}");
}

#[test]
fn apps_keep_away_from_each_other_whichever_asks_for_it() {
    for asks in 0..2 {
        let mut inputs = cloud(vec![app("cart", 1), app("shop", 2)], 2);
        let other = inputs.apps[1 - asks].app.name.clone();
        let own = inputs.apps[asks].revisions.get_mut(&RevisionNumber(1)).unwrap();
        own.config.placement.apart_from.push(other);
        settle(&mut inputs);
        let at = |app: &str| -> Vec<_> {
            let of = inputs.placement.instances.iter().filter(|p| p.app == name(app));
            of.map(|p| p.host.clone()).collect()
        };
        assert!(!at("shop").is_empty() && at("cart").iter().all(|h| !at("shop").contains(h)), "{:?}", inputs.placement);
    }
}

#[test]
fn of_hosts_that_are_as_empty_the_one_with_the_code_is_taken() {
    let mut inputs = cloud(vec![app("shop", 1)], 3);
    let digest = inputs.apps[0].revisions[&RevisionNumber(1)].digest.clone();
    let mut inventory = Inventory::clone(inputs.hosts[2].inventory.as_ref().unwrap());
    inventory.components.push(ComponentStatus { digest, state: ComponentState::Ready, reason: None });
    inputs.hosts[2].inventory = Some(Arc::new(inventory));
    settle(&mut inputs);
    assert_eq!(inputs.placement.instances[0].host, host(2));
}

#[test]
fn only_hosts_with_instances_that_are_bound_to_a_service_may_use_it() {
    let mut inputs = cloud(vec![app(BINDER, 2), app("shop", 2)], 3);
    inputs.services.push(register(host(2)));
    let made = settle(&mut inputs);
    let service = |h: usize| made.hosts[&host(h)].services.first();
    let users: Vec<HostId> =
        inputs.placement.instances.iter().filter(|p| p.app == name(BINDER)).map(|p| p.host.clone()).collect();
    let mut others: Vec<_> = users.into_iter().filter(|h| *h != host(2)).collect();
    others.sort();
    assert_eq!(service(2).unwrap().users, others);
    assert!((0..2).filter_map(service).all(|s| s.users.is_empty()), "it is the owner's to know");
}

/// What a random operator does between two plans.
#[derive(Debug, Clone)]
enum Deed {
    Scale(usize, u32),
    Push(usize, bool),
    /// To the revision that is so many before the newest.
    Rollback(usize, usize),
    Restart(usize),
    /// Another isolation class and budget, or none.
    Policy(usize, Option<u32>),
    StartStop(usize),
    Delete(usize),
    Host(usize, bool),
    Duty(usize, HostDuty),
    Held(usize, bool),
    /// A host can or cannot start instances.
    Health(usize, bool),
    /// Starts and drains take their time from now on, or not.
    Slow(bool),
    Wait(u64),
}

/// What goes wrong in a random cloud.
#[derive(Debug, Clone, Default)]
struct Trouble {
    bad: Vec<(AppName, u64)>,
    sick: Vec<HostId>,
    slow: bool,
}

impl Trouble {
    fn phase(&self, placed: &Placed) -> InstancePhase {
        if self.bad.contains(&(placed.app.clone(), placed.revision.0)) || self.sick.contains(&placed.host) {
            InstancePhase::Failed
        } else if self.slow {
            InstancePhase::Pending
        } else {
            InstancePhase::Ready
        }
    }

    /// What drains has something to finish.
    fn keep_busy(&self, inputs: &mut Inputs) {
        for host in inputs.hosts.iter_mut().filter(|_| self.slow) {
            let mut inventory = Inventory::clone(host.inventory.as_ref().unwrap());
            let draining = inventory.instances.iter_mut().filter(|i| i.phase == InstancePhase::Draining);
            draining.for_each(|i| i.in_flight = 1);
            host.inventory = Some(Arc::new(inventory));
        }
    }
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        (0..3usize, 0..6u32).prop_map(|(a, n)| Deed::Scale(a, n)),
        (0..3usize, any::<bool>()).prop_map(|(a, ok)| Deed::Push(a, ok)),
        (0..3usize, 0..4usize).prop_map(|(a, back)| Deed::Rollback(a, back)),
        (0..3usize).prop_map(Deed::Restart),
        (0..3usize, proptest::option::of(1..4u32)).prop_map(|(a, w)| Deed::Policy(a, w)),
        (0..3usize).prop_map(Deed::StartStop),
        (0..3usize).prop_map(Deed::Delete),
        (0..4usize, any::<bool>()).prop_map(|(h, up)| Deed::Host(h, up)),
        (0..4usize, prop_oneof![Just(HostDuty::Active), Just(HostDuty::Cordoned), Just(HostDuty::Draining)])
            .prop_map(|(h, duty)| Deed::Duty(h, duty)),
        (0..4usize, any::<bool>()).prop_map(|(h, held)| Deed::Held(h, held)),
        (0..4usize, any::<bool>()).prop_map(|(h, well)| Deed::Health(h, well)),
        any::<bool>().prop_map(Deed::Slow),
        (0..150_000u64).prop_map(Deed::Wait),
    ];
    proptest::collection::vec(deed, 1..40)
}

fn act(inputs: &mut Inputs, deed: &Deed, trouble: &mut Trouble) {
    let count = inputs.apps.len();
    let mut with = |index: usize, change: &mut dyn FnMut(&mut AppInput)| {
        if count > 0 {
            change(&mut inputs.apps[index % count]);
        }
    };
    match *deed {
        Deed::Scale(a, n) => with(a, &mut |i| i.app.instances = n),
        Deed::Restart(a) => with(a, &mut |i| i.app.restarts += 1),
        Deed::Policy(a, weight) => with(a, &mut |i| {
            i.provision = weight.map_or_else(Provision::default, |cpu_weight| {
                let budget = AppBudget { cpu_weight, ..AppBudget::default() };
                Provision { budget, ..process() }
            });
        }),
        Deed::Rollback(a, back) => with(a, &mut |i| {
            i.app.current = i.revisions.keys().rev().nth(back % i.revisions.len()).copied();
        }),
        Deed::StartStop(a) => with(a, &mut |i| {
            i.app.state = match i.app.state {
                AppState::Started => AppState::Stopped,
                AppState::Stopped => AppState::Started,
            };
        }),
        Deed::Push(a, ok) => with(a, &mut |i| {
            let number = i.revisions.keys().next_back().map_or(0, |r| r.0) + 1;
            let made = revision(&i.app.name, number, RevisionPhase::Rolling);
            i.revisions.insert(RevisionNumber(number), made);
            i.app.current = Some(RevisionNumber(number));
            if !ok {
                trouble.bad.push((i.app.name.clone(), number));
            }
        }),
        Deed::Delete(a) if count > 1 => drop(inputs.apps.remove(a % count)),
        Deed::Host(h, up) => {
            let hosts = inputs.hosts.len();
            inputs.hosts[h % hosts].state = if up { HostState::Up } else { HostState::Suspected };
        }
        Deed::Duty(h, duty) => {
            let hosts = inputs.hosts.len();
            inputs.hosts[h % hosts].duty = duty;
        }
        Deed::Held(h, held) => {
            let hosts = inputs.hosts.len();
            inputs.hosts[h % hosts].held = held;
        }
        Deed::Health(h, well) => {
            let id = inputs.hosts[h % inputs.hosts.len()].id.clone();
            trouble.sick.retain(|s| *s != id);
            if !well {
                trouble.sick.push(id);
            }
        }
        Deed::Slow(slow) => trouble.slow = slow,
        Deed::Wait(ms) => inputs.now_ms += ms,
        Deed::Delete(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever operators and hosts do, every plan passes the checker, and once they leave it alone the
    /// cloud becomes what is wanted.
    #[test]
    fn every_history_converges(deeds in deeds(), dead_after_ms in proptest::option::of(1_000..60_000u64)) {
        let mut inputs = cloud(vec![app("a", 2), app(BINDER, 1), app("c", 3)], 4);
        inputs.services.push(register(host(1)));
        inputs.settings.dead_after_ms = dead_after_ms;
        let mut trouble = Trouble::default();
        for deed in &deeds {
            act(&mut inputs, deed, &mut trouble);
            step(&mut inputs, &|p| trouble.phase(p));
            trouble.keep_busy(&mut inputs);
        }
        for host in &mut inputs.hosts {
            (host.state, host.duty) = (HostState::Up, HostDuty::Active);
        }
        let calm = Trouble { bad: trouble.bad, ..Trouble::default() };
        let mut last = None;
        for _ in 0..12 {
            last = Some(step(&mut inputs, &|p| calm.phase(p)));
        }
        let last = last.unwrap();
        prop_assert!(!last.unsettled && last.phases.is_empty(), "it comes to rest: {:?}", last.phases);
        for input in &inputs.apps {
            let current = &input.revisions[&input.app.current.unwrap()];
            let serving = if current.phase == RevisionPhase::Failed { input.app.stable } else { input.app.current };
            let wanted = match (input.app.state, serving) {
                (AppState::Started, Some(s)) if input.revisions[&s].phase != RevisionPhase::Failed => input.app.instances as usize,
                _ => 0,
            };
            let placed: Vec<_> = inputs.placement.instances.iter().filter(|p| p.app == input.app.name).collect();
            let bad = calm.bad.contains(&(input.app.name.clone(), current.number.0));
            if !bad || current.phase == RevisionPhase::Failed {
                prop_assert_eq!(placed.len(), wanted, "{:?}", input);
                prop_assert!(placed.iter().all(|p| Some(p.revision) == serving && p.restarts == input.app.restarts));
                prop_assert!(placed.iter().all(|p| p.provision == input.provision));
                prop_assert_eq!(last.endpoints[&input.app.name].len(), wanted);
            }
        }
    }
}
