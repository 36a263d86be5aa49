//! `marcato-scale`: how long the planner takes, by the size of the fleet, and how much memory its inputs have. No process, no
//! network: the planner is a pure function, and its inputs are made here.
//!
//! `cargo run --release --locked -p marcato-benches --bin marcato-scale`

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use jiff::Timestamp;
use marcato_api::{
    App, AppName, AppState, Bytes, ComponentState, ComponentStatus, Digest, Generation, HostAddress, HostCapacity,
    HostDuty, HostId, HostState, HostUsage, InstanceCounters, InstancePhase, InstanceStatus, Inventory, OrgName,
    Revision, RevisionConfig, RevisionNumber, RevisionPhase, SpaceName,
};
use marcato_plan::{AppInput, HostInput, Inputs, Placed, Placement, Plan, Provision, Settings, plan};

/// Apps for each host, and instances of each app.
const APPS_PER_HOST: usize = 10;
const INSTANCES: u32 = 5;
const ZONES: usize = 10;
/// Distinct components: apps share code.
const COMPONENTS: usize = 500;

/// Plans fleets of these sizes.
#[derive(Parser)]
struct Arguments {
    /// How many hosts.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100, 1_000])]
    hosts: Vec<usize>,
    /// Each number is the median of so many.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut out = std::io::stdout();
    writeln!(
        out,
        "| hosts | apps | instances | from nothing | again, settled | after one host | moved | after a zone | moved | RSS MB |"
    )?;
    writeln!(out, "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")?;
    for hosts in arguments.hosts {
        writeln!(out, "{}", row(hosts, arguments.rounds)?)?;
    }
    Ok(())
}

fn row(hosts: usize, rounds: usize) -> Result<String> {
    let mut inputs = fleet(hosts)?;
    let (full, made) = median(rounds, || plan(&inputs));
    let wanted = inputs.apps.len() * INSTANCES as usize;
    ensure!(made.placement.instances.len() == wanted, "{:?}", made.notes.values().next());
    // Its phases are kept and its instances start; what is left of a roll-out takes a plan more.
    settle(&mut inputs, made);
    let next = plan(&inputs);
    settle(&mut inputs, next);
    let (again, steady) = median(rounds, || plan(&inputs));
    ensure!(steady.placement == inputs.placement, "a settled fleet moves");
    let one: BTreeSet<HostId> = inputs.hosts.iter().take(1).map(|h| h.id.clone()).collect();
    let (after_one, moved_one) = death(&inputs, &one, rounds)?;
    let zone: BTreeSet<HostId> = inputs.hosts.iter().filter(|h| h.zone == "z0").map(|h| h.id.clone()).collect();
    let (after_zone, moved_zone) = death(&inputs, &zone, rounds)?;
    let rss = marcato_tests::resident_bytes(marcato_tests::Pid::this())? >> 20;
    Ok(format!(
        "| {hosts} | {} | {wanted} | {} | {} | {} | {moved_one} | {} | {moved_zone} | {rss} |",
        inputs.apps.len(),
        ms(full),
        ms(again),
        ms(after_one),
        ms(after_zone),
    ))
}

/// Hosts that have been silent for a minute: the time to plan without them, and how many instances are placed anew.
fn death(inputs: &Inputs, dead: &BTreeSet<HostId>, rounds: usize) -> Result<(Duration, usize)> {
    let mut inputs = inputs.clone();
    inputs.now_ms += 60_000;
    for host in &mut inputs.hosts {
        if dead.contains(&host.id) {
            host.state = HostState::Suspected;
        } else {
            host.last_seen_ms = Some(inputs.now_ms);
        }
    }
    let (took, made) = median(rounds, || plan(&inputs));
    let known: BTreeSet<_> = inputs.placement.instances.iter().map(|p| &p.id).collect();
    let new: Vec<&Placed> = made.placement.instances.iter().filter(|p| !known.contains(&p.id)).collect();
    ensure!(new.iter().all(|p| !dead.contains(&p.host)), "placed on a dead host");
    let lost = inputs.placement.instances.iter().filter(|p| dead.contains(&p.host)).count();
    // A fleet of one has nowhere to go.
    ensure!(new.len() == lost || dead.len() == inputs.hosts.len(), "{} placed for {lost} lost", new.len());
    Ok((took, new.len()))
}

fn median(rounds: usize, mut of: impl FnMut() -> Plan) -> (Duration, Plan) {
    let mut last = of();
    let mut times: Vec<Duration> = (0..rounds.max(1))
        .map(|_| {
            let begin = Instant::now();
            last = of();
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    (times[times.len() / 2], last)
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
}

fn fleet(hosts: usize) -> Result<Inputs> {
    let apps: Result<Vec<AppInput>> = (0..hosts * APPS_PER_HOST).map(app).collect();
    let hosts: Result<Vec<HostInput>> = (0..hosts).map(host).collect();
    let mut hosts = hosts?;
    hosts.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(Inputs {
        apps: apps?,
        hosts,
        services: Vec::new(),
        placement: Placement::default(),
        now_ms: 1_000_000,
        settings: Settings::standard(),
    })
}

fn app(n: usize) -> Result<AppInput> {
    let name = AppName::new(format!("app-{n:05}"))?;
    let number = RevisionNumber(1);
    let app = App {
        name: name.clone(),
        org: OrgName::default_org(),
        space: SpaceName::default_space(),
        state: AppState::Started,
        instances: INSTANCES,
        current: Some(number),
        stable: None,
        restarts: 0,
        routes: Vec::new(),
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
    };
    let revision = Revision {
        app: name,
        number,
        digest: Digest::of(&(n % COMPONENTS).to_le_bytes()),
        size: Bytes(250_000),
        config: RevisionConfig::default(),
        created_at: Timestamp::UNIX_EPOCH,
        created_by: "scale".into(),
        reason: "push".into(),
        phase: RevisionPhase::Rolling,
        failure: None,
    };
    Ok(AppInput { app, revisions: BTreeMap::from([(number, revision)]), provision: Provision::default() })
}

fn host(n: usize) -> Result<HostInput> {
    let id = HostId::new(format!("h{n}"))?;
    let inventory = Inventory {
        host: id.clone(),
        version: "0".into(),
        started_at: Timestamp::UNIX_EPOCH,
        generation: Generation(0),
        // Room for 160 instances of 128 MiB.
        capacity: HostCapacity { memory_bytes: Bytes::mib(20 << 10), cpu_millis: 16_000, sandboxes: 2_000 },
        used: HostUsage::default(),
        components: Vec::new(),
        instances: Vec::new(),
        services: Vec::new(),
        certificate: None,
        ingress_tls: false,
        ingress_certificate: None,
        workers: Vec::new(),
    };
    let control: HostAddress = format!("tcp:10.0.{}.{}:8445", n >> 8, n & 255).parse().ok().context("an address")?;
    Ok(HostInput {
        id,
        zone: format!("z{}", n % ZONES),
        labels: BTreeMap::new(),
        state: HostState::Up,
        duty: HostDuty::Active,
        held: false,
        control,
        inventory: Some(Arc::new(inventory)),
        last_seen_ms: Some(1_000_000),
    })
}

/// Everything of a plan is carried out, and all that was placed is ready.
fn settle(inputs: &mut Inputs, made: Plan) {
    for change in &made.phases {
        let Some(input) = inputs.apps.iter_mut().find(|a| a.app.name == change.app) else { continue };
        if let Some(revision) = input.revisions.get_mut(&change.revision) {
            revision.phase = change.phase;
        }
        if change.phase == RevisionPhase::Serving {
            input.app.stable = Some(change.revision);
        }
    }
    let mut placed: BTreeMap<&HostId, Vec<&Placed>> = BTreeMap::new();
    for instance in &made.placement.instances {
        placed.entry(&instance.host).or_default().push(instance);
    }
    for host in &mut inputs.hosts {
        let Some(mut inventory) = host.inventory.as_deref().cloned() else { continue };
        let here = placed.remove(&host.id).unwrap_or_default();
        inventory.instances = here.iter().map(|p| status(p)).collect();
        let apps = &inputs.apps;
        let revision = |p: &Placed| {
            let at = apps.binary_search_by(|a| a.app.name.cmp(&p.app)).ok()?;
            apps[at].revisions.get(&p.revision)
        };
        let digests: BTreeSet<Digest> = here.iter().filter_map(|p| Some(revision(p)?.digest.clone())).collect();
        inventory.components = digests
            .into_iter()
            .map(|digest| ComponentStatus { digest, state: ComponentState::Ready, reason: None })
            .collect();
        host.inventory = Some(Arc::new(inventory));
    }
    inputs.placement = made.placement;
}

fn status(placed: &Placed) -> InstanceStatus {
    InstanceStatus {
        id: placed.id.clone(),
        app: placed.app.clone(),
        revision: placed.revision,
        phase: InstancePhase::Ready,
        in_flight: 0,
        queued: 0,
        ingress: None,
        counters: InstanceCounters::default(),
        limits: Vec::new(),
        reason: None,
    }
}
