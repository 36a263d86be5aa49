//! Properties over random clouds and random histories, and the cases that a person would ask about.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use marcato_api::*;
use proptest::prelude::*;

use crate::*;

fn name(text: &str) -> AppName {
    AppName::new(text).unwrap()
}

fn host(n: usize) -> HostId {
    HostId::new(format!("h{n}")).unwrap()
}

fn revision(app: &AppName, number: u64, phase: RevisionPhase) -> Revision {
    Revision {
        app: app.clone(),
        number: RevisionNumber(number),
        digest: Digest::of(&number.to_le_bytes()),
        size: Bytes(1),
        config: RevisionConfig::default(),
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
    }
}

fn host_input(n: usize, zone: &str) -> HostInput {
    HostInput {
        id: host(n),
        zone: zone.into(),
        state: HostState::Up,
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
        })),
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

/// Carries a plan out as hosts and the store would, `ready` deciding how each instance starts.
fn apply(inputs: &mut Inputs, plan: &Plan, ready: &dyn Fn(&Placed) -> InstancePhase) {
    apply_phases(inputs, plan);
    for host in inputs.hosts.iter_mut().filter(|h| h.state == HostState::Up) {
        let mut inventory = Inventory::clone(host.inventory.as_ref().unwrap());
        inventory.instances = plan
            .placement
            .instances
            .iter()
            .filter(|p| p.host == host.id)
            .map(|p| InstanceStatus {
                id: p.id.clone(),
                app: p.app.clone(),
                revision: p.revision,
                phase: if p.state == InstanceState::Draining { InstancePhase::Draining } else { ready(p) },
                in_flight: 0,
                queued: 0,
                counters: InstanceCounters::default(),
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
    let mut input = app("shop", 2);
    let register = ServiceName::new("register").unwrap();
    let binding = Binding { name: "db".into(), service: register.clone() };
    input.revisions.get_mut(&RevisionNumber(1)).unwrap().config.bindings.push(binding);
    let mut inputs = cloud(vec![input], 2);
    let id = ServiceId::generate();
    inputs.services.push(ServiceInput {
        id: id.clone(),
        name: register,
        kind: ServiceKind::Access,
        owner: host(0),
        deleted: false,
    });
    let made = settle(&mut inputs);
    assert!(made.hosts[&host(0)].peers.is_empty());
    assert_eq!(made.hosts[&host(1)].peers[0].id, host(0));
    assert_eq!(made.hosts[&host(1)].instances[0].bindings["db"], id);
}

/// What a random operator does between two plans.
#[derive(Debug, Clone)]
enum Deed {
    Scale(usize, u32),
    Push(usize, bool),
    Rollback(usize),
    Restart(usize),
    StartStop(usize),
    Delete(usize),
    Host(usize, bool),
    Wait,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        (0..3usize, 0..6u32).prop_map(|(a, n)| Deed::Scale(a, n)),
        (0..3usize, any::<bool>()).prop_map(|(a, ok)| Deed::Push(a, ok)),
        (0..3usize).prop_map(Deed::Rollback),
        (0..3usize).prop_map(Deed::Restart),
        (0..3usize).prop_map(Deed::StartStop),
        (0..3usize).prop_map(Deed::Delete),
        (0..4usize, any::<bool>()).prop_map(|(h, up)| Deed::Host(h, up)),
        Just(Deed::Wait),
    ];
    proptest::collection::vec(deed, 1..40)
}

fn act(inputs: &mut Inputs, deed: &Deed, bad: &mut Vec<(AppName, u64)>) {
    let count = inputs.apps.len();
    let mut with = |index: usize, change: &mut dyn FnMut(&mut AppInput)| {
        if count > 0 {
            change(&mut inputs.apps[index % count]);
        }
    };
    match *deed {
        Deed::Scale(a, n) => with(a, &mut |i| i.app.instances = n),
        Deed::Restart(a) => with(a, &mut |i| i.app.restarts += 1),
        Deed::Rollback(a) => with(a, &mut |i| {
            let stable = i.app.stable;
            if let Some(revision) = stable.and_then(|s| i.revisions.get_mut(&s)) {
                revision.phase = RevisionPhase::Rolling;
                i.app.current = stable;
            }
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
                bad.push((i.app.name.clone(), number));
            }
        }),
        Deed::Delete(a) if count > 1 => drop(inputs.apps.remove(a % count)),
        Deed::Host(h, up) => {
            let hosts = inputs.hosts.len();
            inputs.hosts[h % hosts].state = if up { HostState::Up } else { HostState::Suspected };
        }
        Deed::Delete(_) | Deed::Wait => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever operators and hosts do, every plan passes the checker, and once they leave it alone the
    /// cloud becomes what is wanted.
    #[test]
    fn every_history_converges(deeds in deeds()) {
        let mut inputs = cloud(vec![app("a", 2), app("b", 1), app("c", 3)], 4);
        let mut bad = Vec::new();
        for deed in &deeds {
            act(&mut inputs, deed, &mut bad);
            let outcome = bad.clone();
            step(&mut inputs, &move |p| {
                if outcome.contains(&(p.app.clone(), p.revision.0)) { InstancePhase::Failed } else { InstancePhase::Ready }
            });
        }
        inputs.hosts.iter_mut().for_each(|h| h.state = HostState::Up);
        let outcome = bad.clone();
        for _ in 0..12 {
            let outcome = outcome.clone();
            step(&mut inputs, &move |p| {
                if outcome.contains(&(p.app.clone(), p.revision.0)) { InstancePhase::Failed } else { InstancePhase::Ready }
            });
        }
        for input in &inputs.apps {
            let current = &input.revisions[&input.app.current.unwrap()];
            let serving = if current.phase == RevisionPhase::Failed { input.app.stable } else { input.app.current };
            let wanted = match (input.app.state, serving) {
                (AppState::Started, Some(s)) if input.revisions[&s].phase != RevisionPhase::Failed => input.app.instances as usize,
                _ => 0,
            };
            let placed: Vec<_> = inputs.placement.instances.iter().filter(|p| p.app == input.app.name).collect();
            if !bad.contains(&(input.app.name.clone(), current.number.0)) || current.phase == RevisionPhase::Failed {
                prop_assert_eq!(placed.len(), wanted, "{:?}", input);
                prop_assert!(placed.iter().all(|p| Some(p.revision) == serving && p.restarts == input.app.restarts));
            }
        }
    }
}
