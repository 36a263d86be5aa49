//! The table of budgets: what each limit of an instance is, and how far it is used. docs/limits.md has the same table
//! for people, and a test compares them. Read by inventory and by messages; nothing here is on the request path.

use std::sync::atomic::Ordering;

use marcato_api::{Bytes, LimitScope, LimitUsage, Millis, RevisionConfig};

use crate::budget::AppAccount;
use crate::engine::{CORE_INSTANCES, MEMORIES, STACK_BYTES, TABLES};
use crate::error::FiredLimit;
use crate::instance::Inner;
use crate::limits::{Limit, TABLE_ELEMENTS_TOTAL};
use crate::logs::LINE_LIMIT;
use crate::sandbox::{HANDLES, HEADER_BYTES, HOSTCALL_BYTES, PENDING_CALLS, RANDOM_BYTES};
use crate::totals::HostTotals;

/// What a limit is; nothing where none is set, and for those that are no number.
pub(crate) fn limit(limit: Limit, config: &RevisionConfig, app: &AppAccount, host: &HostTotals) -> Option<u64> {
    let limits = &config.limits;
    let value = match limit {
        Limit::MemoryBytes => limits.memory_bytes.0,
        Limit::InstanceMemoryBytes => limits.instance_memory_bytes.0,
        Limit::AppMemoryBytes => app.memory.limit(),
        Limit::HostMemory => host.memory.limit(),
        Limit::HostSandboxes | Limit::AllowedOutboundHosts => u64::MAX,
        Limit::CoreInstances => CORE_INSTANCES.into(),
        Limit::Memories => MEMORIES.into(),
        Limit::Tables => TABLES.into(),
        Limit::TableElements => TABLE_ELEMENTS_TOTAL as u64,
        Limit::StackBytes => STACK_BYTES as u64,
        Limit::BufferBytes => limits.buffer_bytes.0,
        Limit::AppBufferBytes => app.buffers.limit(),
        Limit::HeaderBytes => HEADER_BYTES as u64,
        Limit::HostcallBytes => HOSTCALL_BYTES as u64,
        Limit::RandomBytes => RANDOM_BYTES,
        Limit::ResourceHandles => HANDLES as u64,
        Limit::PendingCalls => PENDING_CALLS as u64,
        Limit::CpuMs => limits.cpu_ms.0,
        Limit::CpuCapMillis => app.share.cap_millis().map_or(u64::MAX, u64::from),
        Limit::TimeMs => limits.time_ms.0,
        Limit::FirstByteMs => limits.first_byte_ms.0,
        Limit::IdleMs => limits.idle_ms.0,
        Limit::RequestBodyBytes => limits.request_body_bytes.0,
        Limit::ResponseBodyBytes => limits.response_body_bytes.0,
        Limit::Concurrency => config.concurrency.into(),
        Limit::Queue => config.queue.into(),
        Limit::QueueTimeoutMs => config.queue_timeout_ms.0,
        Limit::OutboundRequests => limits.outbound_requests.into(),
        Limit::OutboundConcurrent => limits.outbound_concurrent.into(),
        Limit::OutboundBytes => limits.outbound_bytes.0,
        Limit::AppOutboundConcurrent => app.outbound.limit(),
        Limit::LogRate => app.log.per_second(),
        Limit::LogLine => LINE_LIMIT as u64,
    };
    (value != u64::MAX).then_some(value)
}

fn limit_of(inner: &Inner, of: Limit) -> Option<u64> {
    limit(of, &inner.config, &inner.account, &inner.machine.totals)
}

/// A limit with its value, for people.
pub(crate) fn named(inner: &Inner, limit: Limit) -> String {
    let name = limit.name();
    match limit_of(inner, limit) {
        Some(value) if name.ends_with("_ms") => format!("{name} ({})", Millis(value)),
        Some(value) if name.ends_with("_bytes") || limit == Limit::HostMemory => format!("{name} ({})", Bytes(value)),
        Some(value) => format!("{name} ({value})"),
        None => name.into(),
    }
}

/// A limit that fired, for the app's owner: with `used`, or what is used now of the app's own totals. What others use of
/// a host's is none of its business.
pub(crate) fn fired(inner: &Inner, limit: Limit, known: Option<u64>) -> FiredLimit {
    let of_others = limit.scope() == LimitScope::Host;
    let used = known.or_else(|| Some(used(inner, limit)).filter(|used| *used > 0 && !of_others));
    FiredLimit { name: limit.name(), value: limit_of(inner, limit), used }
}

/// What is used now, of the totals that there are.
fn used(inner: &Inner, limit: Limit) -> u64 {
    let (app, host) = (&inner.account, &inner.machine.totals);
    match limit {
        Limit::InstanceMemoryBytes => inner.memory.used(),
        Limit::AppMemoryBytes => app.memory.used(),
        Limit::HostMemory => host.memory.used(),
        Limit::HostSandboxes => host.sandboxes.load(Ordering::Relaxed).into(),
        Limit::AppBufferBytes => app.buffers.used(),
        Limit::Concurrency => inner.in_flight.load(Ordering::SeqCst).into(),
        Limit::Queue => inner.queued.load(Ordering::SeqCst).into(),
        Limit::AppOutboundConcurrent => app.outbound.used(),
        _ => 0,
    }
}

fn peak(inner: &Inner, limit: Limit) -> u64 {
    let (app, host) = (&inner.account, &inner.machine.totals);
    match limit {
        Limit::InstanceMemoryBytes => inner.memory.peak(),
        Limit::AppMemoryBytes => app.memory.peak(),
        Limit::HostMemory => host.memory.peak(),
        Limit::AppBufferBytes => app.buffers.peak(),
        Limit::AppOutboundConcurrent => app.outbound.peak(),
        _ => inner.limits.peak_of(limit),
    }
}

fn times_fired(inner: &Inner, limit: Limit) -> u64 {
    match limit {
        Limit::CpuCapMillis => inner.account.share.times_capped(),
        _ => inner.limits.fired(limit),
    }
}

/// The limits of an instance that were used or fired.
pub(crate) fn of(inner: &Inner) -> Vec<LimitUsage> {
    let usage = |of: Limit| {
        let (used, fired) = (used(inner, of), times_fired(inner, of));
        let peak = peak(inner, of).max(used);
        (peak > 0 || fired > 0).then(|| LimitUsage {
            name: of.name().into(),
            scope: of.scope(),
            limit: limit_of(inner, of),
            used,
            peak,
            fired,
        })
    };
    Limit::ALL.iter().filter_map(|of| usage(*of)).collect()
}

#[cfg(test)]
mod tests;
