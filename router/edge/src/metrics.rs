//! The edge's numbers. Counters are resolved once, so that a request only adds to atomics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Status class of a response; `aborted` when the client left before one was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    class: &'static str,
}

/// Why a request was sent again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// All of them. Clones share the numbers.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: [Counter; 6],
    pub(crate) in_flight: Gauge,
    pub(crate) seconds: Histogram,
    pub(crate) retries_not_sent: Counter,
    pub(crate) retries_not_started: Counter,
    pub(crate) retries_idempotent: Counter,
    pub(crate) retries_over_budget: Counter,
    pub(crate) ejections: Counter,
    pub(crate) waits: Counter,
    pub(crate) waiting: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) accepted: Counter,
    pub(crate) accept_errors: Counter,
    pub(crate) tls_failures: Counter,
    pub(crate) cut_stalled: Counter,
    pub(crate) upstream_opened: Counter,
    pub(crate) upstream_failed: Counter,
    pub(crate) upstream_open: Gauge,
}

/// 250 µs to 60 s: what a proxy can add at best, to the longest that people wait.
const BUCKETS: [f64; 14] = [0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("marcato_edge");
        let requests = Family::<Class, Counter>::default();
        registry.register("requests", "Requests by status class of the response", requests.clone());
        let retries = Family::<Reason, Counter>::default();
        registry.register("retries", "Requests sent again, by reason", retries.clone());
        let class = |class| requests.get_or_create(&Class { class }).clone();
        let retry = |reason| retries.get_or_create(&Reason { reason }).clone();
        let metrics = Self {
            requests: [class("1xx"), class("2xx"), class("3xx"), class("4xx"), class("5xx"), class("aborted")],
            in_flight: Gauge::default(),
            seconds: Histogram::new(BUCKETS),
            retries_not_sent: retry("not_sent"),
            retries_not_started: retry("not_started"),
            retries_idempotent: retry("idempotent"),
            retries_over_budget: Counter::default(),
            ejections: Counter::default(),
            waits: Counter::default(),
            waiting: Gauge::default(),
            connections: Gauge::default(),
            accepted: Counter::default(),
            accept_errors: Counter::default(),
            tls_failures: Counter::default(),
            cut_stalled: Counter::default(),
            upstream_opened: Counter::default(),
            upstream_failed: Counter::default(),
            upstream_open: Gauge::default(),
        };
        let m = &metrics;
        registry.register("in_flight", "Requests now", m.in_flight.clone());
        registry.register("request_seconds", "From request header to last response byte", m.seconds.clone());
        registry.register("retries_over_budget", "Retries refused by the budget", m.retries_over_budget.clone());
        registry.register("ejections", "Instances left out after failures", m.ejections.clone());
        registry.register("waits", "Requests that waited for an instance", m.waits.clone());
        registry.register("waiting", "Requests that wait for an instance now", m.waiting.clone());
        registry.register("connections", "Client connections now", m.connections.clone());
        registry.register("accepted", "Client connections accepted", m.accepted.clone());
        registry.register("accept_errors", "Errors of accept", m.accept_errors.clone());
        registry.register("tls_failures", "TLS handshakes that failed or timed out", m.tls_failures.clone());
        registry.register("cut_stalled", "Connections cut: the client took no bytes", m.cut_stalled.clone());
        registry.register("upstream_opened", "Connections opened to hosts", m.upstream_opened.clone());
        registry.register(
            "upstream_failed",
            "Connections to hosts that could not be opened",
            m.upstream_failed.clone(),
        );
        registry.register("upstream_connections", "Connections to hosts now", m.upstream_open.clone());
        metrics
    }

    /// Counts a finished request; status 0 stands for none.
    pub(crate) fn finished(&self, status: u16, seconds: f64) {
        let class = match status / 100 {
            n @ 1..=5 => usize::from(n) - 1,
            _ => 5,
        };
        self.requests[class].inc();
        self.seconds.observe(seconds);
    }
}
