//! Limits: their names, how often each fired, memory over all sandboxes, and the CPU meter.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use marcato_api::LimitScope;
use nix::time::{ClockId, clock_gettime};
use wasmtime::ResourceLimiter;

use crate::budget::AppAccount;
use crate::engine::{CORE_INSTANCES, MEMORIES, TABLES};
use crate::totals::HostTotals;

/// Elements that all tables of a sandbox may have.
pub(crate) const TABLE_ELEMENTS_TOTAL: usize = 1_000_000;

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $scope:ident, $by:ident;)*) => {
        /// A limit that can fire. Each has a row in docs/limits.md.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Limit { $($(#[$doc])* $name,)* }

        impl Limit {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As the API and the metrics spell it.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it is counted over.
            pub(crate) const fn scope(self) -> LimitScope {
                match self { $(Self::$name => LimitScope::$scope,)* }
            }

            /// Who sets it.
            #[cfg(test)]
            pub(crate) const fn set_by(self) -> SetBy {
                match self { $(Self::$name => SetBy::$by,)* }
            }
        }
    };
}

/// Who sets a limit.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetBy {
    /// The app's manifest, up to the operator's quota.
    Manifest,
    /// The operator, per app or for the host.
    Operator,
    /// Nobody: it is part of this build.
    Fixed,
}

limits! {
    MemoryBytes = "memory_bytes", Sandbox, Manifest;
    InstanceMemoryBytes = "instance_memory_bytes", Instance, Manifest;
    AppMemoryBytes = "app_memory_bytes", App, Operator;
    /// Linear memory of all sandboxes of the host.
    HostMemory = "host_memory", Host, Operator;
    /// Sandboxes of the whole host.
    HostSandboxes = "host_sandboxes", Host, Operator;
    CoreInstances = "core_instances", Sandbox, Fixed;
    Memories = "memories", Sandbox, Fixed;
    Tables = "tables", Sandbox, Fixed;
    TableElements = "table_elements", Sandbox, Fixed;
    StackBytes = "stack_bytes", Sandbox, Fixed;
    /// What the host holds for a sandbox beside its linear memory.
    BufferBytes = "buffer_bytes", Sandbox, Manifest;
    AppBufferBytes = "app_buffer_bytes", App, Operator;
    /// One `fields` of `wasi:http`.
    HeaderBytes = "header_bytes", Call, Fixed;
    /// What one call may carry from guest to host.
    HostcallBytes = "hostcall_bytes", Call, Fixed;
    RandomBytes = "random_bytes", Call, Fixed;
    ResourceHandles = "resource_handles", Sandbox, Fixed;
    /// Tasks, streams and host calls that wait, in a component of WASI 0.3.
    PendingCalls = "pending_calls", Sandbox, Fixed;
    CpuMs = "cpu_ms", Request, Manifest;
    /// CPU of all the app's guests, in thousandths of a core.
    CpuCapMillis = "cpu_cap_millis", App, Operator;
    TimeMs = "time_ms", Request, Manifest;
    FirstByteMs = "first_byte_ms", Request, Manifest;
    IdleMs = "idle_ms", Request, Manifest;
    RequestBodyBytes = "request_body_bytes", Request, Manifest;
    ResponseBodyBytes = "response_body_bytes", Request, Manifest;
    Concurrency = "concurrency", Instance, Manifest;
    Queue = "queue", Instance, Manifest;
    QueueTimeoutMs = "queue_timeout_ms", Request, Manifest;
    /// Servers that a guest may ask.
    AllowedOutboundHosts = "allowed_outbound_hosts", Instance, Manifest;
    OutboundRequests = "outbound_requests", Request, Manifest;
    OutboundConcurrent = "outbound_concurrent", Request, Manifest;
    OutboundBytes = "outbound_bytes", Request, Manifest;
    AppOutboundConcurrent = "app_outbound_concurrent", App, Operator;
    /// Bytes of log per second.
    LogRate = "log_rate", App, Operator;
    /// The longest line; what is longer goes on in the next.
    LogLine = "log_line", Call, Fixed;
}

/// How often each limit fired, and the most that was used of those without a counter of their own.
#[derive(Debug)]
pub(crate) struct LimitCounters(Vec<Counter>);

#[derive(Debug, Default)]
struct Counter {
    fired: AtomicU64,
    peak: AtomicU64,
}

impl Default for LimitCounters {
    fn default() -> Self {
        Self(Limit::ALL.iter().map(|_| Counter::default()).collect())
    }
}

impl LimitCounters {
    pub(crate) fn count(&self, limit: Limit) {
        self.0[limit as usize].fired.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes how much was used.
    pub(crate) fn peak(&self, limit: Limit, used: u64) {
        let peak = &self.0[limit as usize].peak;
        // Most are below it: no write to a line that all threads read.
        if used > peak.load(Ordering::Relaxed) {
            peak.fetch_max(used, Ordering::Relaxed);
        }
    }

    pub(crate) fn fired(&self, limit: Limit) -> u64 {
        self.0[limit as usize].fired.load(Ordering::Relaxed)
    }

    pub(crate) fn peak_of(&self, limit: Limit) -> u64 {
        self.0[limit as usize].peak.load(Ordering::Relaxed)
    }
}

/// A total over many, as the memory of all live sandboxes of an instance: never more than its limit.
#[derive(Debug)]
pub(crate) struct MemoryTotal {
    used: AtomicU64,
    peak: AtomicU64,
    limit: AtomicU64,
}

impl MemoryTotal {
    pub(crate) const fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), peak: AtomicU64::new(0), limit: AtomicU64::new(limit) }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }

    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Another limit from now on; what is used stays used.
    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::SeqCst);
    }

    pub(crate) fn has_room(&self, more: u64) -> bool {
        self.used().checked_add(more).is_some_and(|total| total <= self.limit())
    }

    fn note(&self, used: u64) {
        if used > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(used, Ordering::Relaxed);
        }
    }

    /// Counts `more` in, unless that would go over the limit.
    pub(crate) fn take(&self, more: u64) -> bool {
        let limit = self.limit();
        let taken = self.used.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |used| {
            used.checked_add(more).filter(|total| *total <= limit)
        });
        let Ok(before) = taken else { return false };
        // Whoever lowered the limit meanwhile has either seen this in `used`, or is seen here.
        if before + more > self.limit.load(Ordering::SeqCst) {
            self.release(more);
            return false;
        }
        self.note(before + more);
        true
    }

    /// Counts `more` in whatever the limit says.
    pub(crate) fn force(&self, more: u64) {
        let before = self.used.fetch_add(more, Ordering::Relaxed);
        self.note(before.saturating_add(more));
    }

    /// Gives back what was taken.
    pub(crate) fn release(&self, less: u64) {
        self.used.fetch_sub(less, Ordering::Relaxed);
    }
}

/// One sandbox's limiter: over all its memories, and against the totals of instance and host.
pub(crate) struct SandboxLimiter {
    memory_limit: u64,
    memory_used: u64,
    table_elements: usize,
    peak: u64,
    instance: Arc<MemoryTotal>,
    app: Arc<AppAccount>,
    host: Arc<HostTotals>,
    counters: Arc<LimitCounters>,
    /// The limit that made a growth fail, until somebody takes it.
    pub(crate) fired: Option<Limit>,
}

impl SandboxLimiter {
    pub(crate) fn new(
        memory_limit: u64,
        instance: Arc<MemoryTotal>,
        app: Arc<AppAccount>,
        host: Arc<HostTotals>,
        counters: Arc<LimitCounters>,
    ) -> Self {
        let (memory_used, table_elements, peak, fired) = (0, 0, 0, None);
        Self { memory_limit, memory_used, table_elements, peak, instance, app, host, counters, fired }
    }
}

impl Drop for SandboxLimiter {
    fn drop(&mut self) {
        self.instance.release(self.memory_used);
        self.app.memory.release(self.memory_used);
        self.host.memory.release(self.memory_used);
        self.counters.peak(Limit::MemoryBytes, self.peak);
        self.counters.peak(Limit::TableElements, self.table_elements as u64);
    }
}

impl ResourceLimiter for SandboxLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|most| desired > most) {
            // wasmtime would refuse it after it was counted.
            return Ok(false);
        }
        let growth = desired.saturating_sub(current) as u64;
        if self.memory_used.saturating_add(growth) > self.memory_limit {
            self.fired = Some(Limit::MemoryBytes);
            return Ok(false);
        }
        if !self.instance.take(growth) {
            self.fired = Some(Limit::InstanceMemoryBytes);
            return Ok(false);
        }
        if !self.app.memory.take(growth) {
            self.instance.release(growth);
            self.fired = Some(Limit::AppMemoryBytes);
            return Ok(false);
        }
        if !self.host.take_memory(growth) {
            self.instance.release(growth);
            self.app.memory.release(growth);
            self.fired = Some(Limit::HostMemory);
            return Ok(false);
        }
        self.memory_used += growth;
        self.peak = self.peak.max(self.memory_used);
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // Nothing is given back: wasmtime calls this for growth that it never asked for here as well, and then what was
        // granted before is in use. What was granted and could not be had stays counted until the sandbox ends.
        tracing::debug!(error = format!("{error:#}"), "memory could not be had");
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let total = self.table_elements.saturating_add(desired.saturating_sub(current));
        if total > TABLE_ELEMENTS_TOTAL {
            self.fired = Some(Limit::TableElements);
            return Ok(false);
        }
        self.table_elements = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES as usize
    }

    fn tables(&self) -> usize {
        TABLES as usize
    }

    fn memories(&self) -> usize {
        MEMORIES as usize
    }
}

/// The CPU time of this thread, in nanoseconds.
fn thread_cpu_ns() -> u64 {
    // The clock exists on every Linux; 0 would only make a meter stand still.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(0, |t| {
        let (seconds, nanos) = (t.tv_sec().max(0), t.tv_nsec().max(0));
        (seconds as u64) * 1_000_000_000 + nanos as u64
    })
}

/// A turn on a thread of connections that lasted so long is over at the next interruption: others may have come.
pub(crate) const TURN: Duration = Duration::from_millis(1);

/// The same in the lane, where nobody waits but for guests that compute as well: fewer changes cost less.
pub(crate) const LANE_TURN: Duration = Duration::from_millis(5);

/// How a sandbox stands when it is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It just began to run: to let others run now would only cost both time.
    Short,
    /// Others may run now.
    Long,
    /// Its budget is used up.
    Exhausted,
}

/// Measures the CPU time of one sandbox: the real time of the thread while the sandbox's future is
/// polled, wherever it is polled. Read from within by the epoch callback.
#[derive(Debug, Default)]
pub(crate) struct CpuMeter {
    /// Time of finished polls.
    used_ns: AtomicU64,
    /// The thread's clock when the present poll began.
    poll_began_ns: AtomicU64,
    /// The sandbox traps once it has used this much.
    stop_at_ns: AtomicU64,
    /// How long the present turn may be.
    turn_ns: AtomicU64,
    exhausted: AtomicBool,
}

impl CpuMeter {
    /// Grants a budget to the request that begins.
    pub(crate) fn grant(&self, budget_ns: u64) {
        let used = self.used_ns.load(Ordering::Relaxed);
        self.stop_at_ns.store(used.saturating_add(budget_ns), Ordering::Relaxed);
    }

    /// Runs one poll of the sandbox's future as a turn of this length; says how long it took.
    pub(crate) fn poll<R>(&self, turn: Duration, poll: impl FnOnce() -> R) -> (R, u64) {
        self.turn_ns.store(u64::try_from(turn.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let began = thread_cpu_ns();
        self.poll_began_ns.store(began, Ordering::Relaxed);
        let result = poll();
        let ns = thread_cpu_ns().saturating_sub(began);
        self.used_ns.fetch_add(ns, Ordering::Relaxed);
        (result, ns)
    }

    /// How far the present turn has come; call it within a poll.
    pub(crate) fn turn(&self) -> Turn {
        let poll = thread_cpu_ns().saturating_sub(self.poll_began_ns.load(Ordering::Relaxed));
        let used = self.used_ns.load(Ordering::Relaxed).saturating_add(poll);
        if used >= self.stop_at_ns.load(Ordering::Relaxed) {
            self.exhausted.store(true, Ordering::Relaxed);
            Turn::Exhausted
        } else if poll < self.turn_ns.load(Ordering::Relaxed) {
            Turn::Short
        } else {
            Turn::Long
        }
    }

    pub(crate) fn exhausted(&self) -> bool {
        self.exhausted.load(Ordering::Relaxed)
    }

    pub(crate) fn used_ns(&self) -> u64 {
        self.used_ns.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
