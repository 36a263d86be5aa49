//! An instance: one placement of a revision. It admits requests (concurrency, a bounded queue), keeps
//! sandboxes that may be used again, and counts. How one request runs is in `invoke`.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use marcato_api::{InstanceCounters, InstanceId, LimitUsage, ProblemKind, RevisionConfig};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tokio_util::task::TaskTracker;

use crate::accounting::{self, MemoryTime};
use crate::body::{RequestBody, ResponseBody};
use crate::budget::{AppAccount, Apps};
use crate::code::CodeHandle;
use crate::config::InstanceSetup;
use crate::crowd::Crowd;
use crate::egress::{Egress, Network};
use crate::engine::Machine;
use crate::error::{InvokeError, StartError};
use crate::invoke::{self, Times};
use crate::limits::{Limit, LimitCounters, MemoryTotal};
use crate::logs::InstanceLog;
use crate::sandbox::Sandbox;
use crate::services::Services;
use crate::usage;

/// A running instance. Cheap to clone.
#[derive(Clone)]
pub struct Instance(Arc<Inner>);

/// Totals since the start.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) failures: AtomicU64,
    /// Requests that a guest was started for, also those whose client left.
    started: AtomicU64,
    pub(crate) cpu_ns: AtomicU64,
    pub(crate) sandboxes: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) memory: Arc<MemoryTime>,
}

impl Counters {
    pub(crate) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            requests: zero(),
            failures: zero(),
            started: zero(),
            cpu_ns: zero(),
            sandboxes: zero(),
            bytes_in: zero(),
            bytes_out: zero(),
            memory: Arc::new(MemoryTime::new()),
        }
    }
}

/// A request that a guest is started for, unless it turns out that none was. Counts when it is dropped, for its client
/// may leave at any time.
struct Started<'a> {
    counters: &'a Counters,
    head: Option<u64>,
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        if let Some(head) = self.head {
            self.counters.started.fetch_add(1, Ordering::Relaxed);
            self.counters.bytes_in.fetch_add(head, Ordering::Relaxed);
        }
    }
}

struct IdleSandbox {
    sandbox: Sandbox,
    since: Instant,
}

/// Sandboxes that wait for a request.
#[derive(Default)]
struct Idle {
    /// The one used last is the last.
    sandboxes: Vec<IdleSandbox>,
    /// Ends those that wait for too long, and itself when there are none: an instance at rest costs no timer.
    sweeper: Option<AbortOnDropHandle<()>>,
}

/// What all requests of an instance share.
pub(crate) struct Inner {
    id: InstanceId,
    pub(crate) config: RevisionConfig,
    pub(crate) machine: Arc<Machine>,
    pub(crate) code: CodeHandle,
    pub(crate) egress: Arc<Egress>,
    pub(crate) services: Arc<Services>,
    pub(crate) env: Arc<[(String, String)]>,
    pub(crate) memory: Arc<MemoryTotal>,
    /// What it shares with the other instances of its app.
    pub(crate) account: Arc<AppAccount>,
    pub(crate) limits: Arc<LimitCounters>,
    pub(crate) log: Arc<InstanceLog>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) crowd: Crowd,
    /// Guests that work on after their response; each is bounded by its request's deadline.
    pub(crate) afterwork: TaskTracker,
    places: Arc<Semaphore>,
    pub(crate) in_flight: AtomicU32,
    pub(crate) queued: AtomicU32,
    draining: AtomicBool,
    settled: Notify,
    idle: Mutex<Idle>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance").field("id", &self.0.id).finish_non_exhaustive()
    }
}

/// A place among the requests in flight, until dropped by whoever answers and by the sandbox.
pub(crate) struct Ticket {
    inner: Arc<Inner>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.inner.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.inner.settle();
    }
}

/// A place in the queue, until dropped.
struct Queued<'a>(&'a Inner);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::SeqCst);
        self.0.settle();
    }
}

impl Instance {
    pub(crate) fn new(
        setup: InstanceSetup,
        code: CodeHandle,
        machine: Arc<Machine>,
        network: &Network,
        apps: &Apps,
    ) -> Result<Self, StartError> {
        let InstanceSetup { id, app, config, budget, services, logs, .. } = setup;
        let limits = Arc::new(LimitCounters::default());
        let egress =
            Egress::new(id.clone(), &config.allowed_outbound_hosts, config.limits, network, Arc::clone(&limits))
                .map_err(StartError::OutboundPattern)?;
        // Last: nothing is set for an instance that does not start.
        let account = apps.account(&app, &budget);
        let inner = Arc::new(Inner {
            id,
            machine,
            code,
            egress: Arc::new(egress),
            services: Arc::new(services),
            env: config.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            memory: Arc::new(MemoryTotal::new(config.limits.instance_memory_bytes.0)),
            log: Arc::new(InstanceLog::new(logs, Arc::clone(&account.log), Arc::clone(&limits))),
            account,
            limits,
            counters: Arc::new(Counters::new()),
            crowd: Crowd::default(),
            afterwork: TaskTracker::new(),
            places: Arc::new(Semaphore::new(config.concurrency as usize)),
            in_flight: AtomicU32::new(0),
            queued: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            settled: Notify::new(),
            idle: Mutex::default(),
            config,
        });
        Ok(Self(inner))
    }

    /// Runs one request. Dropping the future, or the response's body before its end, ends the sandbox
    /// that serves it.
    ///
    /// # Errors
    /// Each limit has its kind: `TooLarge`, `QueueFull`, `QueueTimeout`, `MemoryExhausted`,
    /// `CpuExhausted`, `TimedOut`; `GuestFailed` when the guest trapped or gave no answer, and
    /// `InstanceGone` once it drains.
    pub async fn handle(
        &self,
        request: http::Request<RequestBody>,
    ) -> Result<http::Response<ResponseBody>, InvokeError> {
        let inner = &self.0;
        let times = Times::new(&inner.config.limits);
        invoke::check_length(inner, &request)?;
        let ticket = inner.admit(times.deadline, request.headers()).await?;
        let mut started = Started { counters: &inner.counters, head: Some(accounting::request_head(&request)) };
        let request = request.map(|body| accounting::upload(body, inner));
        let result = invoke::handle(inner, Arc::new(ticket), times, request).await;
        match &result {
            Ok(response) => {
                inner.counters.bytes_out.fetch_add(accounting::response_head(response), Ordering::Relaxed);
            }
            Err(error) if error.not_started => started.head = None,
            Err(_) => {}
        }
        result
    }

    /// Requests that run now, those whose response still streams among them.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.0.in_flight.load(Ordering::SeqCst)
    }

    /// Requests that wait for a place.
    #[must_use]
    pub fn queued(&self) -> u32 {
        self.0.queued.load(Ordering::SeqCst)
    }

    /// Totals since the start.
    #[must_use]
    pub fn counters(&self) -> InstanceCounters {
        let c = &self.0.counters;
        InstanceCounters {
            requests: c.requests.load(Ordering::Relaxed),
            failures: c.failures.load(Ordering::Relaxed),
            cpu_us: c.cpu_ns.load(Ordering::Relaxed) / 1000,
            sandboxes: c.sandboxes.load(Ordering::Relaxed),
            started: c.started.load(Ordering::Relaxed),
            memory_byte_ms: c.memory.byte_ms(),
            bytes_in: c.bytes_in.load(Ordering::Relaxed),
            bytes_out: c.bytes_out.load(Ordering::Relaxed),
        }
    }

    /// How far its limits are used, and how often each fired; without those that were neither used nor fired.
    #[must_use]
    pub fn limits_used(&self) -> Vec<LimitUsage> {
        usage::of(&self.0)
    }

    /// Ends sandboxes that wait to be used again.
    pub fn end_idle(&self) {
        let idle = std::mem::take(&mut self.0.idle_sandboxes().sandboxes);
        // Not while others wait for the list.
        drop(idle);
    }

    /// Refuses new requests from now on; those in flight and in the queue go on.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
    }

    /// Resolves once nothing runs and nothing waits.
    pub async fn idle(&self) {
        loop {
            let mut settled = std::pin::pin!(self.0.settled.notified());
            settled.as_mut().enable();
            if self.in_flight() == 0 && self.queued() == 0 {
                return;
            }
            settled.await;
        }
    }
}

impl Inner {
    /// A place for the request, at once or after a wait in the queue.
    async fn admit(self: &Arc<Self>, deadline: Instant, headers: &http::HeaderMap) -> Result<Ticket, InvokeError> {
        if self.draining.load(Ordering::SeqCst) {
            return Err(InvokeError::not_started(
                ProblemKind::InstanceGone,
                format!("{} takes no more requests", self.id),
            ));
        }
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => self.wait(deadline, invoke::request_id(headers)).await?,
        };
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.limits.peak(Limit::Concurrency, now.into());
        Ok(Ticket { inner: Arc::clone(self), _place: place })
    }

    async fn wait(&self, deadline: Instant, request_id: &str) -> Result<OwnedSemaphorePermit, InvokeError> {
        let (queue, timeout) = (self.config.queue, self.config.queue_timeout_ms);
        let queued = Queued(self);
        let before = self.queued.fetch_add(1, Ordering::SeqCst);
        self.limits.peak(Limit::Queue, before.saturating_add(1).min(queue).into());
        if before >= queue {
            drop(queued);
            let detail =
                format!("limit queue ({queue} requests) reached beside concurrency ({})", self.config.concurrency);
            return Err(self.refused(Limit::Queue, ProblemKind::QueueFull, detail, None, request_id));
        }
        let until = deadline.min(Instant::now() + Duration::from(timeout));
        match tokio::time::timeout_at(until, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => {
                let detail = format!("limit queue_timeout_ms ({timeout}) reached: the request waited for a place");
                Err(self.refused(Limit::QueueTimeoutMs, ProblemKind::QueueTimeout, detail, None, request_id))
            }
        }
    }

    /// A limit fired before any guest code ran.
    pub(crate) fn refused(
        &self,
        limit: Limit,
        kind: ProblemKind,
        detail: String,
        used: Option<u64>,
        request_id: &str,
    ) -> InvokeError {
        self.limits.count(limit);
        self.log.platform(request_id, &detail);
        InvokeError { limit: Some(usage::fired(self, limit, used)), ..InvokeError::not_started(kind, detail) }
    }

    fn settle(&self) {
        if self.in_flight.load(Ordering::SeqCst) == 0 && self.queued.load(Ordering::SeqCst) == 0 {
            self.settled.notify_waiters();
        }
    }

    fn idle_sandboxes(&self) -> std::sync::MutexGuard<'_, Idle> {
        // A list of whole sandboxes: usable whatever panicked.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox that may serve another request: the one used last, whose pages are warm.
    pub(crate) fn take_idle(&self) -> Option<Sandbox> {
        if self.config.reuse.max_requests <= 1 {
            return None;
        }
        self.idle_sandboxes().sandboxes.pop().map(|idle| idle.sandbox)
    }

    /// Keeps a sandbox for another request, or ends it.
    pub(crate) fn recycle(self: &Arc<Self>, sandbox: Sandbox) {
        if sandbox.requests >= self.config.reuse.max_requests || self.draining.load(Ordering::SeqCst) {
            return;
        }
        // Others wait for what is over the lease.
        if self.machine.totals.is_over() {
            return;
        }
        let mut idle = self.idle_sandboxes();
        if idle.sweeper.is_none() {
            // A body that is dropped outside of any task may end a request; then nobody would sweep.
            let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
            let after = Duration::from(self.config.reuse.idle_ms).max(Duration::from_millis(10));
            idle.sweeper = Some(AbortOnDropHandle::new(runtime.spawn(sweep(Arc::downgrade(self), after))));
        }
        idle.sandboxes.push(IdleSandbox { sandbox, since: Instant::now() });
    }
}

/// Ends sandboxes that nobody used for `idle`.
async fn sweep(inner: Weak<Inner>, idle: Duration) {
    loop {
        tokio::time::sleep(idle).await;
        let Some(inner) = inner.upgrade() else { return };
        let now = Instant::now();
        let mut kept = inner.idle_sandboxes();
        // The oldest are first: the newest are taken from the end.
        let expired = kept.sandboxes.iter().take_while(|s| now.saturating_duration_since(s.since) >= idle).count();
        let ended: Vec<_> = kept.sandboxes.drain(..expired).collect();
        let last = kept.sandboxes.is_empty();
        if last {
            kept.sweeper = None;
        }
        drop(kept);
        drop(ended);
        if last {
            return;
        }
    }
}
