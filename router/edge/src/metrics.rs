//! The edge's numbers. Counters are resolved once, so that a request only adds to atomics.

use std::sync::Arc;
use std::time::Duration;

use marcato_balance::{CLASSES, Durations, TableCell, class};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::scrape::Scrape;

/// Status class of a response; `aborted` when the client left before one was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    class: &'static str,
}

/// Why a request was sent again, or why there was none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// All of them. Clones share the numbers.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: [Counter; CLASSES.len()],
    pub(crate) in_flight: Gauge,
    seconds: Arc<Durations>,
    pub(crate) retries_not_sent: Counter,
    pub(crate) retries_not_started: Counter,
    pub(crate) retries_idempotent: Counter,
    pub(crate) unparsed_malformed: Counter,
    pub(crate) unparsed_too_large: Counter,
    pub(crate) retries_over_budget: Counter,
    pub(crate) ejections: Counter,
    pub(crate) waits: Counter,
    pub(crate) waiting: Gauge,
    pub(crate) holds: Counter,
    pub(crate) connections: Gauge,
    pub(crate) accepted: Counter,
    pub(crate) accept_errors: Counter,
    pub(crate) tls_failures: Counter,
    pub(crate) cut_stalled: Counter,
    pub(crate) upstream_opened: Counter,
    pub(crate) upstream_failed: Counter,
    pub(crate) upstream_open: Gauge,
}

impl Metrics {
    /// `table` tells which apps have numbers of their own.
    pub(crate) fn register(registry: &mut Registry, table: Arc<TableCell>) -> Self {
        let registry = registry.sub_registry_with_prefix("marcato_edge");
        let seconds = Arc::<Durations>::default();
        registry.register_collector(Box::new(Scrape { table, seconds: Arc::clone(&seconds) }));
        let requests = Family::<Class, Counter>::default();
        registry.register("requests", "Requests by status class of the response", requests.clone());
        let retries = Family::<Reason, Counter>::default();
        registry.register("retries", "Requests sent again, by reason", retries.clone());
        let unparsed = Family::<Reason, Counter>::default();
        let help = "Connections ended because what came was no request, by reason";
        registry.register("unparsed", help, unparsed.clone());
        let retry = |reason| retries.get_or_create(&Reason { reason }).clone();
        let no_request = |reason| unparsed.get_or_create(&Reason { reason }).clone();
        let metrics = Self {
            requests: CLASSES.map(|class| requests.get_or_create(&Class { class }).clone()),
            in_flight: Gauge::default(),
            seconds,
            retries_not_sent: retry("not_sent"),
            retries_not_started: retry("not_started"),
            retries_idempotent: retry("idempotent"),
            unparsed_malformed: no_request("malformed"),
            unparsed_too_large: no_request("too_large"),
            retries_over_budget: Counter::default(),
            ejections: Counter::default(),
            waits: Counter::default(),
            waiting: Gauge::default(),
            holds: Counter::default(),
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
        registry.register("retries_over_budget", "Retries refused by the budget", m.retries_over_budget.clone());
        registry.register("ejections", "Instances left out after failures", m.ejections.clone());
        registry.register("waits", "Requests that waited for an instance", m.waits.clone());
        registry.register("waiting", "Requests that wait for an instance now", m.waiting.clone());
        registry.register("holds", "Clients that heard later that a queue is full", m.holds.clone());
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
    pub(crate) fn finished(&self, status: u16, took: Duration) {
        self.requests[class(status)].inc();
        self.seconds.observe(took);
    }
}
