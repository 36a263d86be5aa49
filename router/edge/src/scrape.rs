//! Numbers that are read when somebody asks: each app's, and how long requests took.
//!
//! An app's series are there as long as the app is in the route table, and no longer; there is nothing to
//! forget and no map to lock. Does not own the counting: see [`marcato_balance::AppStats`].

use std::fmt;
use std::sync::Arc;

use marcato_balance::{AppStats, Durations, TableCell};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// What is read at a scrape.
pub(crate) struct Scrape {
    pub(crate) table: Arc<TableCell>,
    /// Of all requests, those without an app among them.
    pub(crate) seconds: Arc<Durations>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "From request header to last response byte";
        let all = encoder.encode_descriptor("request_seconds", help, None, MetricType::Histogram)?;
        histogram(all, &self.seconds)?;
        let table = self.table.load_full();
        let apps: Vec<(&str, &AppStats)> = table.apps().map(|a| (a.app.as_str(), &*a.stats)).collect();
        let help = "Requests of an app by status class of the response";
        let mut requests = encoder.encode_descriptor("app_requests", help, None, MetricType::Counter)?;
        for (app, stats) in &apps {
            for (class, count) in stats.requests() {
                ConstCounter::new(count).encode(requests.encode_family(&[("app", *app), ("class", class)])?)?;
            }
        }
        let help = "Requests of an app now, those that wait for an instance among them";
        let mut in_flight = encoder.encode_descriptor("app_in_flight", help, None, MetricType::Gauge)?;
        for (app, stats) in &apps {
            ConstGauge::new(stats.in_flight()).encode(in_flight.encode_family(&[("app", *app)])?)?;
        }
        let help = "From request header to last response byte, of an app";
        let mut seconds = encoder.encode_descriptor("app_request_seconds", help, None, MetricType::Histogram)?;
        for (app, stats) in &apps {
            histogram(seconds.encode_family(&[("app", *app)])?, stats.durations())?;
        }
        Ok(())
    }
}

fn histogram(mut encoder: MetricEncoder<'_>, durations: &Durations) -> fmt::Result {
    let buckets = durations.buckets();
    let count = buckets.iter().map(|(_, n)| n).sum();
    encoder.encode_histogram::<NoLabelSet>(durations.sum_s(), count, &buckets, None)
}
