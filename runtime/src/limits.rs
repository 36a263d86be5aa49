//! Limits: their names, how often each fired, memory over all sandboxes, and the CPU meter.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::time::{ClockId, clock_gettime};
use wasmtime::ResourceLimiter;

use crate::engine::{CORE_INSTANCES, HostTotals, MEMORIES, TABLES, TICK};

/// Elements that all tables of a sandbox may have.
const TABLE_ELEMENTS_TOTAL: usize = 1_000_000;

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// A limit that can fire.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Limit { $($(#[$doc])* $name,)* }

        impl Limit {
            const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As the manifest and the metrics spell it.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

limits! {
    MemoryBytes = "memory_bytes";
    InstanceMemoryBytes = "instance_memory_bytes";
    TimeMs = "time_ms";
    CpuMs = "cpu_ms";
    RequestBodyBytes = "request_body_bytes";
    ResponseBodyBytes = "response_body_bytes";
    Queue = "queue";
    QueueTimeoutMs = "queue_timeout_ms";
    LogRate = "log_rate";
    TableElements = "table_elements";
    /// Memory of all sandboxes of the host.
    HostMemory = "host_memory";
    /// Sandboxes of the whole host.
    HostSandboxes = "host_sandboxes";
    OutboundConnections = "outbound_connections";
}

/// How often each limit fired.
#[derive(Debug)]
pub(crate) struct LimitCounters(Vec<AtomicU64>);

impl Default for LimitCounters {
    fn default() -> Self {
        Self(Limit::ALL.iter().map(|_| AtomicU64::new(0)).collect())
    }
}

impl LimitCounters {
    pub(crate) fn count(&self, limit: Limit) {
        self.0[limit as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Vec<(&'static str, u64)> {
        Limit::ALL.iter().zip(&self.0).map(|(limit, n)| (limit.name(), n.load(Ordering::Relaxed))).collect()
    }
}

/// Memory of all live sandboxes of one instance, or of the host: never more than its limit.
#[derive(Debug)]
pub(crate) struct MemoryTotal {
    used: AtomicU64,
    limit: u64,
}

impl MemoryTotal {
    pub(crate) const fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) const fn limit(&self) -> u64 {
        self.limit
    }

    /// Counts `bytes` in, unless that would go over the limit.
    fn take(&self, bytes: u64) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|total| *total <= self.limit)
            })
            .is_ok()
    }

    /// Gives back what was taken.
    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One sandbox's limiter: over all its memories, and against the totals of instance and host.
pub(crate) struct SandboxLimiter {
    memory_limit: u64,
    memory_used: u64,
    last_growth: u64,
    table_elements: usize,
    instance: Arc<MemoryTotal>,
    host: Arc<HostTotals>,
    /// The limit that made a growth fail, until somebody takes it.
    pub(crate) fired: Option<Limit>,
}

impl SandboxLimiter {
    pub(crate) fn new(memory_limit: u64, instance: Arc<MemoryTotal>, host: Arc<HostTotals>) -> Self {
        Self { memory_limit, memory_used: 0, last_growth: 0, table_elements: 0, instance, host, fired: None }
    }

    fn release(&mut self, bytes: u64) {
        self.memory_used -= bytes;
        self.instance.release(bytes);
        self.host.memory.release(bytes);
    }
}

impl Drop for SandboxLimiter {
    fn drop(&mut self) {
        self.release(self.memory_used);
    }
}

impl ResourceLimiter for SandboxLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let growth = desired.saturating_sub(current) as u64;
        if self.memory_used.saturating_add(growth) > self.memory_limit {
            self.fired = Some(Limit::MemoryBytes);
            return Ok(false);
        }
        if !self.instance.take(growth) {
            self.fired = Some(Limit::InstanceMemoryBytes);
            return Ok(false);
        }
        if !self.host.memory.take(growth) {
            self.instance.release(growth);
            self.fired = Some(Limit::HostMemory);
            return Ok(false);
        }
        self.memory_used += growth;
        self.last_growth = growth;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        tracing::debug!(error = format!("{error:#}"), "memory was granted but could not be had");
        let growth = std::mem::take(&mut self.last_growth);
        self.release(growth);
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
    exhausted: AtomicBool,
}

impl CpuMeter {
    /// Grants a budget to the request that begins.
    pub(crate) fn grant(&self, budget_ns: u64) {
        let used = self.used_ns.load(Ordering::Relaxed);
        self.stop_at_ns.store(used.saturating_add(budget_ns), Ordering::Relaxed);
    }

    /// Runs one poll of the sandbox's future.
    pub(crate) fn poll<R>(&self, poll: impl FnOnce() -> R) -> R {
        let began = thread_cpu_ns();
        self.poll_began_ns.store(began, Ordering::Relaxed);
        let result = poll();
        self.used_ns.fetch_add(thread_cpu_ns().saturating_sub(began), Ordering::Relaxed);
        result
    }

    /// How far the present turn has come; call it within a poll.
    pub(crate) fn turn(&self) -> Turn {
        let poll = thread_cpu_ns().saturating_sub(self.poll_began_ns.load(Ordering::Relaxed));
        let used = self.used_ns.load(Ordering::Relaxed).saturating_add(poll);
        if used >= self.stop_at_ns.load(Ordering::Relaxed) {
            self.exhausted.store(true, Ordering::Relaxed);
            Turn::Exhausted
        } else if u128::from(poll) < TICK.as_nanos() {
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
