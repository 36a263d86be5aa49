//! The host's metrics in OpenMetrics text. Instances are read when somebody asks, the request path only
//! counts what it must: one atomic per response, in the worker.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use marcato_api::{HostUsage, InstancePhase, LimitUsage, WorkerStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::channel::IngressNumbers;
use crate::pool::Placed;
use crate::reconcile::instances::InstanceEntry;

/// What [`Metrics::text`] is served as.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds: from a hello component to a Python one on a slow machine.
const COMPILE_BUCKETS: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// The host's metrics.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    compile_seconds: Histogram,
    compile_failures: Counter,
}

/// What the host's state says at this moment, encoded beside the counters.
#[derive(Debug)]
pub(crate) struct Moment {
    /// One per instance of the config.
    pub(crate) instances: Vec<InstanceNumbers>,
    /// What sandboxes use.
    pub(crate) usage: HostUsage,
    /// Log lines that made room for others.
    pub(crate) log_lines_evicted: u64,
    /// The config held.
    pub(crate) generation: u64,
    /// What the ingresses of all workers answered.
    pub(crate) ingress: IngressNumbers,
    /// The workers.
    pub(crate) workers: Vec<WorkerStatus>,
}

/// Numbers of one instance.
#[derive(Debug)]
pub(crate) struct InstanceNumbers {
    app: String,
    revision: String,
    instance: String,
    phase: InstancePhase,
    in_flight: u32,
    queued: u32,
    counters: marcato_api::InstanceCounters,
    limits: Vec<LimitUsage>,
}

impl InstanceNumbers {
    /// Those of an instance now.
    pub(crate) fn of(entry: &InstanceEntry) -> Self {
        let live = entry.placed.as_ref().map(Placed::state).unwrap_or_default();
        Self {
            app: entry.spec.app.to_string(),
            revision: entry.spec.revision.to_string(),
            instance: entry.spec.id.to_string(),
            phase: entry.phase,
            in_flight: live.in_flight,
            queued: live.queued,
            counters: live.counters,
            limits: live.limits,
        }
    }

    fn labels(&self) -> [(&'static str, &str); 3] {
        [("app", &self.app), ("revision", &self.revision), ("instance", &self.instance)]
    }
}

impl Metrics {
    /// Empty metrics of this build.
    pub(crate) fn new(host: &str) -> Self {
        let mut registry = Registry::with_prefix("marcato_host");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION").to_owned()), ("host", host.to_owned())]);
        registry.register("build", "The daemon's release and the host's id", build);
        let compile_seconds = Histogram::new(COMPILE_BUCKETS);
        registry.register_with_unit("compile", "Time that compilations took", Unit::Seconds, compile_seconds.clone());
        let compile_failures = Counter::default();
        registry.register("compile_failures", "Compilations that failed", compile_failures.clone());
        Self { registry: Mutex::new(registry), compile_seconds, compile_failures }
    }

    /// A compilation ended.
    pub(crate) fn compiled(&self, took: Duration, ok: bool) {
        self.compile_seconds.observe(took.as_secs_f64());
        if !ok {
            self.compile_failures.inc();
        }
    }

    /// Everything, as text. `None` never happens with a `String` as the writer.
    pub(crate) fn text(&self, moment: Moment) -> Option<String> {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = Registry::with_prefix("marcato_host");
        now.register_collector(Box::new(moment));
        prometheus_client::encoding::text::encode_registry(&mut text, &registry).ok()?;
        prometheus_client::encoding::text::encode_registry(&mut text, &now).ok()?;
        prometheus_client::encoding::text::encode_eof(&mut text).ok()?;
        Some(text)
    }
}

type Numbers<'a> = &'a [InstanceNumbers];

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    all: Numbers<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: impl Fn(&InstanceNumbers) -> f64,
) -> std::fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
    for one in all {
        ConstCounter::new(value(one)).encode(metric.encode_family(&one.labels())?)?;
    }
    Ok(())
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    all: Numbers<'_>,
    name: &str,
    help: &str,
    value: impl Fn(&InstanceNumbers) -> u64,
) -> std::fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for one in all {
        ConstGauge::new(value(one)).encode(metric.encode_family(&one.labels())?)?;
    }
    Ok(())
}

/// Writes one limit of one instance under its labels.
type WriteLimit<'a> = dyn FnMut(&[(&str, &str)], &LimitUsage) -> std::fmt::Result + 'a;

/// Limits that were used or fired.
fn encode_limits(encoder: &mut DescriptorEncoder<'_>, all: Numbers<'_>) -> std::fmt::Result {
    let each = |write: &mut WriteLimit<'_>| {
        for one in all {
            for limit in &one.limits {
                let [app, revision, instance] = one.labels();
                write(&[app, revision, instance, ("limit", &*limit.name)], limit)?;
            }
        }
        Ok(())
    };
    let mut fired = encoder.encode_descriptor("limits_fired", "How often a limit fired", None, MetricType::Counter)?;
    each(&mut |labels, limit| ConstCounter::new(limit.fired).encode(fired.encode_family(&labels)?))?;
    let mut used = encoder.encode_descriptor("limit_used", "What of a limit is used now", None, MetricType::Gauge)?;
    each(&mut |labels, limit| ConstGauge::new(limit.used).encode(used.encode_family(&labels)?))?;
    let mut peak =
        encoder.encode_descriptor("limit_peak", "The most that was ever used of a limit", None, MetricType::Gauge)?;
    each(&mut |labels, limit| ConstGauge::new(limit.peak).encode(peak.encode_family(&labels)?))
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> std::fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

impl Moment {
    fn encode_ingress(&self, e: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let help = "Responses by class of status";
        let mut responses = e.encode_descriptor("ingress_responses", help, None, MetricType::Counter)?;
        for (class, count) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(self.ingress.responses) {
            ConstCounter::new(count).encode(responses.encode_family(&[("class", class)])?)?;
        }
        let help = "Responses that the platform made instead of a guest";
        let errors = e.encode_descriptor("ingress_platform_errors", help, None, MetricType::Counter)?;
        ConstCounter::new(self.ingress.platform_errors).encode(errors)
    }

    fn encode_workers(&self, e: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut restarts = e.encode_descriptor("worker_restarts", "Starts after a death", None, MetricType::Counter)?;
        for worker in &self.workers {
            let labels = [("worker", worker.name.as_str())];
            ConstCounter::new(worker.restarts).encode(restarts.encode_family(&labels)?)?;
        }
        let help = "Whether a worker is confined as well as can be";
        let mut confined = e.encode_descriptor("worker_confined", help, None, MetricType::Gauge)?;
        for worker in &self.workers {
            let labels = [("worker", worker.name.as_str())];
            ConstGauge::new(u64::from(worker.confinement.is_full())).encode(confined.encode_family(&labels)?)?;
        }
        let help = "Whether a worker goes without something";
        let mut measures = e.encode_descriptor("worker_confinement", help, None, MetricType::Gauge)?;
        for worker in &self.workers {
            for one in &worker.confinement.measures {
                let labels = [("worker", worker.name.as_str()), ("measure", one.measure.as_str())];
                ConstGauge::new(u64::from(one.had)).encode(measures.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Collector for Moment {
    #[allow(clippy::cast_precision_loss, reason = "metrics are doubles")]
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let (e, all) = (&mut encoder, self.instances.as_slice());
        counters(e, all, "requests", "Requests that a guest answered", None, |i| i.counters.requests as f64)?;
        counters(e, all, "failures", "Requests that trapped or gave no answer", None, |i| i.counters.failures as f64)?;
        counters(e, all, "sandboxes_made", "Sandboxes made", None, |i| i.counters.sandboxes as f64)?;
        let cpu = |i: &InstanceNumbers| i.counters.cpu_us as f64 / 1e6;
        counters(e, all, "cpu", "CPU time of guests", Some(&Unit::Seconds), cpu)?;
        gauges(e, all, "in_flight", "Requests that run", |i| i.in_flight.into())?;
        gauges(e, all, "queued", "Requests that wait", |i| i.queued.into())?;
        gauges(e, all, "ready", "Whether the instance takes requests", |i| (i.phase == InstancePhase::Ready).into())?;
        encode_limits(e, all)?;
        self.encode_ingress(e)?;
        self.encode_workers(e)?;
        gauge(e, "resident_bytes", "Resident memory of the daemon and its workers", self.usage.resident_bytes.0)?;
        gauge(e, "sandbox_bytes", "Linear memory of live sandboxes", self.usage.sandbox_bytes.0)?;
        gauge(e, "sandboxes", "Live sandboxes", self.usage.sandboxes.into())?;
        gauge(e, "generation", "Generation of the config held", self.generation)?;
        let evicted = e.encode_descriptor(
            "log_lines_evicted",
            "Log lines that made room for newer ones",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(self.log_lines_evicted).encode(evicted)
    }
}
