//! One worker as the daemon sees it: what it should run, the channel to it while it lives, what it last reported.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use marcato_api::{
    Bytes, ConfinementReport, Digest, HostAddress, HostUsage, InstanceCounters, InstanceId, IsolationClass, LimitUsage,
    WorkerStatus,
};
use marcato_runtime::{CodeCache, LogSink, Services};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::bounds::{self, Bounds};
use super::groups::Groups;
use super::leases::{Amount, Holder};
use super::lessor::Lessor;
use super::{Placement, process};
use crate::channel::{
    Asks, Holding, IngressNumbers, IngressTls, NotStarted, Order, OrderAnswer, Orders, Peer, Report, StartOrder,
};
use crate::listen::SocketFile;
use crate::usage::Meter;

/// For an order to be on its way.
const ORDER_WITHIN: Duration = Duration::from_secs(5);
/// For a report.
const REPORT_WITHIN: Duration = Duration::from_secs(1);
/// For a worker that is being started, or started anew, before an instance counts as not started.
const START_WITHIN: Duration = Duration::from_secs(20);

/// The daemon's end of a channel.
pub(super) type WorkerPeer = Peer<Orders, Asks>;

/// A worker process that is ready.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) peer: WorkerPeer,
    pub(super) pid: u32,
    /// Tells a new process from the one before: whose lease it is.
    pub(super) holder: Holder,
    /// Ends the process, for this reason.
    pub(super) kill: mpsc::Sender<&'static str>,
}

/// An instance that the worker should run.
pub(super) struct Entry {
    pub(super) order: StartOrder,
    pub(super) services: Services,
    pub(super) logs: Arc<dyn LogSink>,
    draining: bool,
    /// Why it did not start in the present process.
    failed: Option<String>,
    /// As last reported by the present process.
    now: InstanceState,
    /// What earlier processes had counted.
    before: InstanceCounters,
}

/// How an instance stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct InstanceState {
    pub(crate) in_flight: u32,
    pub(crate) queued: u32,
    pub(crate) counters: InstanceCounters,
    pub(crate) limits: Vec<LimitUsage>,
    /// Why it does not run although its worker does.
    pub(crate) failed: Option<String>,
}

struct State {
    entries: HashMap<InstanceId, Entry>,
    report: Report,
    /// The number of that report.
    heard: u64,
    /// What the ingress of earlier processes had answered.
    past: IngressNumbers,
    restarts: u64,
    confinement: ConfinementReport,
    open: bool,
    tls: Option<IngressTls>,
    meter: Meter,
    /// Its share of the CPU as its control group has it.
    cpu_weight: u32,
    /// How long what its process has may last when nothing is added.
    longest: Duration,
}

/// How long what an instance has lasts at most when nothing is added: a request, what its guest does after the response,
/// and a sandbox that waits to be used again.
fn longest(order: &StartOrder) -> Duration {
    Duration::from(order.config.limits.time_ms) * 2 + Duration::from(order.config.reuse.idle_ms) * 2
}

/// Where a worker sits on its host.
pub(super) struct Seat {
    /// Tells its user from those of other workers.
    pub(super) number: u16,
    /// Where its instances take requests.
    pub(super) address: HostAddress,
    /// The socket that listens there, which each process gets.
    pub(super) ingress: OwnedFd,
    /// That socket's file, which goes with the worker.
    #[expect(dead_code, reason = "held for its end, which removes the file")]
    pub(super) file: Option<SocketFile>,
    /// Its folder, with the code of its instances.
    pub(super) dir: PathBuf,
}

/// See the module.
pub(crate) struct Worker {
    name: String,
    class: IsolationClass,
    pub(super) seat: Seat,
    state: Mutex<State>,
    link: watch::Sender<Option<Link>>,
    /// Numbers what is asked, so that an older report never follows a newer one.
    asked: AtomicU64,
    /// It should drain and end.
    pub(super) ending: CancellationToken,
}

fn sum(a: InstanceCounters, b: InstanceCounters) -> InstanceCounters {
    InstanceCounters {
        requests: a.requests + b.requests,
        failures: a.failures + b.failures,
        started: a.started + b.started,
        cpu_us: a.cpu_us + b.cpu_us,
        sandboxes: a.sandboxes + b.sandboxes,
        memory_byte_ms: a.memory_byte_ms.wrapping_add(b.memory_byte_ms),
        bytes_in: a.bytes_in + b.bytes_in,
        bytes_out: a.bytes_out + b.bytes_out,
    }
}

impl Worker {
    pub(super) fn new(
        name: &str,
        class: IsolationClass,
        seat: Seat,
        tls: Option<IngressTls>,
        meter: Meter,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            class,
            seat,
            state: Mutex::new(State {
                entries: HashMap::new(),
                report: Report::default(),
                heard: 0,
                past: IngressNumbers::default(),
                restarts: 0,
                confinement: ConfinementReport::default(),
                open: false,
                tls,
                meter,
                cpu_weight: 0,
                longest: Duration::ZERO,
            }),
            link: watch::Sender::new(None),
            asked: AtomicU64::new(0),
            ending: CancellationToken::new(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where its instances take requests.
    pub(crate) fn address(&self) -> &HostAddress {
        &self.seat.address
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole entries and numbers: usable whatever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tls(&self) -> Option<IngressTls> {
        self.state().tls.clone()
    }

    /// What it should run, for a new process.
    pub(super) fn orders(&self) -> Vec<StartOrder> {
        self.state().entries.values().filter(|e| !e.draining).map(|e| e.order.clone()).collect()
    }

    /// What it counts for against others when memory or sandboxes are short: what the planner counts for its instances,
    /// which is one sandbox of each.
    pub(super) fn weight(&self) -> Amount {
        let state = self.state();
        let memory = state.entries.values().map(|e| e.order.config.limits.memory_bytes.0);
        Amount { memory: memory.fold(0, u64::saturating_add), sandboxes: state.entries.len() as u64 }
    }

    /// The name of its control group: no other worker's, not even of one with the same name that is about to end.
    pub(super) fn group(&self) -> String {
        format!("{}-{}", self.name, self.seat.number)
    }

    /// Its share of the CPU: those of its apps together.
    pub(super) fn cpu_weight(&self) -> u32 {
        let state = self.state();
        let apps: BTreeMap<_, _> = state.entries.values().map(|e| (&e.order.app, e.order.budget.cpu_weight)).collect();
        apps.into_values().fold(0, u32::saturating_add).max(1)
    }

    /// What the host may hold for its apps.
    fn buffers(&self) -> Bytes {
        let state = self.state();
        let apps: BTreeMap<_, _> =
            state.entries.values().map(|e| (&e.order.app, e.order.budget.app_buffer_bytes.0)).collect();
        Bytes(apps.into_values().fold(0, u64::saturating_add))
    }

    /// Ends its process if that holds more memory than it can have, or keeps what it was told to give back; and has its
    /// control group know its share of the CPU.
    pub(super) fn look_after(&self, lessor: &Lessor, bounds: &Bounds, groups: &Groups) {
        let Some(link) = self.link.borrow().clone() else { return };
        let most = bounds.worker(lessor.held(link.holder), self.buffers());
        let why = if bounds::private(link.pid) > most {
            "it held more memory than it was given"
        } else if lessor.is_overdue(link.holder, self.state().longest) {
            "it did not give back memory or sandboxes that others need"
        } else {
            let weight = self.cpu_weight();
            let before = std::mem::replace(&mut self.state().cpu_weight, weight);
            // Where there is no group, its report says so.
            if weight != before {
                drop(groups.ensure(&self.group(), weight));
            }
            return;
        };
        // Told once: the second time it is about to end.
        let _ = link.kill.try_send(why);
    }

    pub(super) fn is_open(&self) -> bool {
        self.state().open
    }

    /// What the broker needs of an instance of this worker.
    pub(super) fn with_entry<R>(&self, id: &InstanceId, read: impl FnOnce(&Entry) -> R) -> Option<R> {
        self.state().entries.get(id).map(read)
    }

    /// Whether an instance of this worker runs this code.
    pub(super) fn runs(&self, digest: &Digest) -> bool {
        self.state().entries.values().any(|e| e.order.digest == *digest)
    }

    /// A process is ready and has all its instances.
    pub(super) fn came(
        &self,
        link: Link,
        confinement: ConfinementReport,
        results: Vec<(InstanceId, Result<(), NotStarted>)>,
    ) {
        {
            let mut state = self.state();
            state.confinement = confinement;
            for (id, result) in results {
                if let Some(entry) = state.entries.get_mut(&id) {
                    entry.failed = result.err().map(|why| reason(&why));
                }
            }
        }
        self.link.send_replace(Some(link));
    }

    /// Its process is gone. What it reported last is kept.
    pub(super) fn went(&self) {
        self.link.send_replace(None);
        let mut state = self.state();
        state.restarts = state.restarts.saturating_add(1);
        let report = std::mem::take(&mut state.report);
        super::add(&mut state.past, report.ingress);
        state.meter.died();
        // Those that drained had no more to do than what was cut off.
        state.entries.retain(|_, e| !e.draining);
        state.longest = state.entries.values().map(|e| longest(&e.order)).max().unwrap_or_default();
        for entry in state.entries.values_mut() {
            let now = std::mem::take(&mut entry.now);
            entry.before = sum(entry.before, now.counters);
        }
    }

    /// Starts instances and says of each how it went. One that failed is not tried again by itself.
    pub(super) async fn place(&self, placements: Vec<Placement>) -> Vec<Result<(), NotStarted>> {
        let orders: Vec<StartOrder> = placements.iter().map(|p| p.order.clone()).collect();
        self.expect(placements);
        let results = match tokio::time::timeout(START_WITHIN, self.start(&orders)).await {
            Ok(results) => results,
            Err(_) => vec![Err(NotStarted::Reason("its worker did not start in time".into())); orders.len()],
        };
        let mut state = self.state();
        for (order, result) in orders.iter().zip(&results) {
            if result.is_err() {
                state.entries.remove(&order.id);
                state.meter.remove(&order.id);
            }
        }
        results
    }

    /// Has these run in the present process, once they were started, and in each that follows.
    pub(super) fn expect(&self, placements: Vec<Placement>) {
        let mut state = self.state();
        for Placement { order, org, services, logs } in placements {
            let (now, before) = (InstanceState::default(), InstanceCounters::default());
            let id = order.id.clone();
            // Also when it is removed: what it has in flight is finished.
            state.longest = state.longest.max(longest(&order));
            state.meter.expect(&id, &order.app, &org);
            let entry = Entry { order, services, logs, draining: false, failed: None, now, before };
            state.entries.insert(id, entry);
        }
    }

    async fn start(&self, orders: &[StartOrder]) -> Vec<Result<(), NotStarted>> {
        let mut links = self.link.subscribe();
        loop {
            let link = links.borrow_and_update().clone();
            if let Some(link) = link
                && let Ok(OrderAnswer::Started(results)) = link.peer.call(&Order::Start(orders.to_vec())).await
                && results.len() == orders.len()
            {
                return results;
            }
            // Another process gets them as well as this one would; starting twice changes nothing.
            if links.changed().await.is_err() {
                return vec![Err(NotStarted::Reason("its worker ended".into())); orders.len()];
            }
        }
    }

    /// Sends an order in the background, at any time.
    fn send(self: &Arc<Self>, order: Order) {
        let Some(link) = self.link.borrow().clone() else { return };
        tokio::spawn(async move {
            // A process that is gone has nothing to do any more; the next one is told anew.
            let _ = link.peer.call(&order).await;
        });
    }

    /// Sends an order that comes before every later one. A worker that takes none for so long is given up.
    async fn tell(&self, order: Order) {
        let link = self.link.borrow().clone();
        let Some(link) = link else { return };
        // A process that is gone has nothing to do any more; the next one is told anew.
        if tokio::time::timeout(ORDER_WITHIN, link.peer.tell(&order)).await.is_err() {
            tracing::error!(worker = self.name, "a worker takes no orders");
            link.peer.gone().cancel();
        }
    }

    pub(crate) async fn drain(&self, id: &InstanceId) {
        if let Some(entry) = self.state().entries.get_mut(id) {
            entry.draining = true;
        }
        self.tell(Order::Drain(id.clone())).await;
    }

    pub(crate) async fn remove(&self, id: &InstanceId) {
        {
            let mut state = self.state();
            state.entries.remove(id);
            state.meter.remove(id);
        }
        self.tell(Order::Remove(id.clone())).await;
    }

    /// Takes connections from now on, and each process after this one too.
    pub(super) fn open(self: &Arc<Self>) {
        self.state().open = true;
        self.send(Order::Open);
    }

    pub(super) fn set_tls(self: &Arc<Self>, tls: IngressTls) {
        self.state().tls = Some(tls);
        self.tell_tls();
    }

    /// Tells the process of the certificate of its ingress, when there are both. To be told twice does no harm.
    pub(super) fn tell_tls(self: &Arc<Self>) {
        if let Some(tls) = self.tls() {
            self.send(Order::Tls(Box::new(tls)));
        }
    }

    /// Asks how it stands; gives what it uses of its lease. One that does not answer in time stands as before.
    pub(super) async fn refresh(&self) -> Option<(Holder, Holding)> {
        let link = self.link.borrow().clone()?;
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let cpu_us = process::cpu_us(link.pid);
        let asked = tokio::time::timeout(REPORT_WITHIN, link.peer.call(&Order::Report)).await;
        let Ok(Ok(OrderAnswer::Report(report))) = asked else { return None };
        // Of a process that was replaced meanwhile it would count twice.
        let same = self.link.borrow().as_ref().is_some_and(|now| now.holder == link.holder);
        same.then(|| {
            let holding = report.holding;
            self.take(number, *report, cpu_us);
            (link.holder, holding)
        })
    }

    /// Takes over the last word of a process that ends: nothing runs in it any more.
    pub(super) fn take_last(&self, report: Report) {
        let cpu_us = self.link.borrow().as_ref().and_then(|link| process::cpu_us(link.pid));
        self.take(self.asked.fetch_add(1, Ordering::Relaxed), report, cpu_us);
    }

    /// Takes over what a process says of itself, and its CPU time when it was asked.
    fn take(&self, number: u64, mut report: Report, cpu_us: Option<u64>) {
        let mut state = self.state();
        if number < state.heard {
            return;
        }
        state.heard = number;
        state.meter.hear(&report.instances, cpu_us, jiff::Timestamp::now());
        for one in std::mem::take(&mut report.instances) {
            if let Some(entry) = state.entries.get_mut(&one.id) {
                entry.now = InstanceState {
                    in_flight: one.in_flight,
                    queued: one.queued,
                    counters: one.counters,
                    limits: one.limits,
                    failed: None,
                };
            }
        }
        state.report = report;
    }

    /// How an instance stands, as last reported.
    pub(crate) fn instance(&self, id: &InstanceId) -> InstanceState {
        let state = self.state();
        let Some(entry) = state.entries.get(id) else { return InstanceState::default() };
        let mut now = entry.now.clone();
        now.counters = sum(now.counters, entry.before);
        now.failed.clone_from(&entry.failed);
        now
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().entries.is_empty()
    }

    pub(super) fn ingress(&self) -> IngressNumbers {
        let state = self.state();
        let mut sum = state.past;
        super::add(&mut sum, state.report.ingress);
        sum
    }

    pub(super) fn usage(&self) -> HostUsage {
        let pid = self.link.borrow().as_ref().map(|l| l.pid);
        let resident_bytes = pid.map_or(Bytes(0), |pid| process::resident(&pid.to_string()));
        HostUsage { resident_bytes, ..self.state().report.usage }
    }

    pub(super) fn status(&self) -> WorkerStatus {
        let pid = self.link.borrow().as_ref().map(|l| l.pid);
        let state = self.state();
        WorkerStatus {
            name: self.name.clone(),
            class: self.class,
            pid,
            restarts: state.restarts,
            confinement: state.confinement.clone(),
            resident_bytes: pid.map_or(Bytes(0), |pid| process::resident(&pid.to_string())),
        }
    }

    /// Drains and ends; no process follows.
    pub(super) fn end(self: &Arc<Self>) {
        self.ending.cancel();
    }

    /// The file of this code in the worker's folder.
    pub(super) fn code_file(&self, digest: &Digest) -> PathBuf {
        self.seat.dir.join(format!("{}.cwasm", digest.hex()))
    }

    pub(super) fn forget(&self, digest: &Digest) {
        let code = std::fs::remove_file(self.code_file(digest));
        match code.and(CodeCache::unlink_files(digest, &self.seat.dir)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(worker = self.name, %digest, %error, "code cannot be taken from a worker's folder");
            }
            _ => {}
        }
    }
}

fn reason(why: &NotStarted) -> String {
    match why {
        NotStarted::Code => "its code has to be compiled again".into(),
        NotStarted::Reason(reason) => reason.clone(),
    }
}
