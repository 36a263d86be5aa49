//! An endpoint (one instance behind one host's ingress) and what the request path knows of it.
//!
//! Owns the in-flight count and the breaker. Both are atomics, so that no request waits for another.
//! The breaker opens after some consecutive failures to reach the endpoint and lets one request in
//! per back-off interval through as a probe. A guest's own 5xx is no failure here: the endpoint was
//! reached. The shape is Envoy's outlier detection (consecutive gateway failures), with the probe of
//! a circuit breaker instead of a blind return.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use marcato_api::{HostAddress, HostId, InstanceId, RevisionNumber};

/// What the control plane says of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSpec {
    /// The instance.
    pub instance: InstanceId,
    /// The host that runs it.
    pub host: HostId,
    /// Where that host's ingress listens.
    pub address: HostAddress,
    /// The instance's revision.
    pub revision: RevisionNumber,
    /// Requests that the instance runs at once (at least 1).
    pub concurrency: u32,
}

/// An endpoint with its live numbers. A new table keeps the endpoints that did not change, so that
/// the numbers survive.
#[derive(Debug)]
pub struct Endpoint {
    /// The instance.
    pub instance: InstanceId,
    /// The host that runs it.
    pub host: HostId,
    /// Where that host's ingress listens.
    pub address: HostAddress,
    /// The instance's revision.
    pub revision: RevisionNumber,
    /// Requests that the instance runs at once (at least 1).
    pub concurrency: u32,
    /// What the request path counts.
    pub stats: EndpointStats,
}

/// Live numbers of an endpoint.
#[derive(Debug, Default)]
pub struct EndpointStats {
    in_flight: AtomicU32,
    /// Failures since the last success.
    failures: AtomicU32,
    /// Ejections since the last success: the exponent of the back-off.
    ejections: AtomicU32,
    /// 0: takes part. Else left out until this time, then due for a probe.
    ejected_until_ms: AtomicU64,
}

/// When a failing endpoint is left out, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Consecutive failures that eject (at least 1).
    pub failures: u32,
    /// The first back-off; each failed probe doubles it.
    pub backoff_ms: u64,
    /// The longest back-off.
    pub backoff_max_ms: u64,
}

impl BreakerPolicy {
    /// Three failures; 500 ms doubling to 10 s: a host that restarts is back within a second.
    #[must_use]
    pub const fn standard() -> Self {
        Self { failures: 3, backoff_ms: 500, backoff_max_ms: 10_000 }
    }

    fn backoff(&self, ejections: u32) -> u64 {
        let doubled = self.backoff_ms.saturating_mul(1 << ejections.saturating_sub(1).min(20));
        // Never 0: 0 stands for "not ejected".
        doubled.min(self.backoff_max_ms).max(1)
    }
}

impl Endpoint {
    /// A fresh endpoint, idle and healthy.
    #[must_use]
    pub fn new(spec: EndpointSpec) -> Self {
        Self {
            instance: spec.instance,
            host: spec.host,
            address: spec.address,
            revision: spec.revision,
            concurrency: spec.concurrency.max(1),
            stats: EndpointStats::default(),
        }
    }

    /// Whether this is what `spec` describes, so that it can be kept.
    pub(crate) fn is(&self, spec: &EndpointSpec) -> bool {
        self.instance == spec.instance
            && self.host == spec.host
            && self.address == spec.address
            && self.revision == spec.revision
            && self.concurrency == spec.concurrency.max(1)
    }

    /// Counts a request in until the guard is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> InFlight {
        InFlight::new(self, false)
    }
}

impl EndpointStats {
    /// Requests that are with the endpoint now.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether the breaker is open (also while it waits for a probe).
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.ejected_until_ms.load(Ordering::Relaxed) != 0
    }

    /// Whether the breaker is open and its back-off has passed.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        let until = self.ejected_until_ms.load(Ordering::Relaxed);
        until != 0 && until <= now_ms
    }

    /// Takes the one probe of this back-off interval. The next one is due after another interval,
    /// so a probe whose outcome is never told costs nothing but time.
    pub(crate) fn claim_probe(&self, now_ms: u64, policy: &BreakerPolicy) -> bool {
        let until = self.ejected_until_ms.load(Ordering::Relaxed);
        if until == 0 || until > now_ms {
            return false;
        }
        let next = now_ms.saturating_add(policy.backoff(self.ejections.load(Ordering::Relaxed)));
        self.ejected_until_ms.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn succeeded(&self) {
        // Loads first: in the common case nothing is written, and the cache line stays shared.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.ejected_until_ms.load(Ordering::Relaxed) != 0 {
            self.ejections.store(0, Ordering::Relaxed);
            self.ejected_until_ms.store(0, Ordering::Relaxed);
        }
    }

    fn failed(&self, now_ms: u64, policy: &BreakerPolicy, probe: bool) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let until = self.ejected_until_ms.load(Ordering::Relaxed);
        if until != 0 {
            // Only the probe speaks for an ejected endpoint; older requests that fail late do not
            // push its return away.
            if probe {
                let ejections = self.ejections.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                self.ejected_until_ms.store(now_ms.saturating_add(policy.backoff(ejections)), Ordering::Relaxed);
            }
            return false;
        }
        if failures < policy.failures.max(1) {
            return false;
        }
        let next = now_ms.saturating_add(policy.backoff(1));
        let ejected = self.ejected_until_ms.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if ejected {
            self.ejections.store(1, Ordering::Relaxed);
        }
        ejected
    }
}

/// A request that is with an endpoint; counted until dropped.
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    probe: bool,
}

impl InFlight {
    pub(crate) fn new(endpoint: &Arc<Endpoint>, probe: bool) -> Self {
        endpoint.stats.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { endpoint: Arc::clone(endpoint), probe }
    }

    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Whether this request tries an ejected endpoint.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// The endpoint was reached and answered: closes the breaker.
    pub fn succeeded(&self) {
        self.endpoint.stats.succeeded();
    }

    /// The endpoint could not be reached, or broke the protocol. True when this ejected it.
    pub fn failed(&self, now_ms: u64, policy: &BreakerPolicy) -> bool {
        self.endpoint.stats.failed(now_ms, policy, self.probe)
    }
}

impl Deref for InFlight {
    type Target = Endpoint;
    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.stats.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlight").field("instance", &self.endpoint.instance).field("probe", &self.probe).finish()
    }
}
