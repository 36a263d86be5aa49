//! What the request path counts of each app: requests by status class, how long they took, how many
//! there are now.
//!
//! Owns: the atomics. A request adds to them without a lock; a scrape reads them one by one, so a
//! snapshot may be a request apart from itself. They live in the route table with the app, and go with
//! it: the number of series is bounded by the number of apps. Does not own how they are shown (edge).

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds: 250 µs to 60 s, from what a proxy can add at best to
/// the longest that people wait. One more bucket takes the rest.
pub const DURATION_BOUNDS_US: [u64; 14] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000, 15_000_000,
    60_000_000,
];

const BUCKETS: usize = DURATION_BOUNDS_US.len() + 1;

/// Names of the status classes; `aborted`: the client left before there was a response.
pub const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "aborted"];

/// How long things took: a histogram of atomics.
#[derive(Debug, Default)]
pub struct Durations {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Durations {
    /// Adds one.
    pub fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = DURATION_BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Each bucket's upper bound in seconds with its own count (not the sum of those below); the last
    /// bound is [`f64::MAX`].
    #[must_use]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = DURATION_BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
        bounds.zip(self.buckets.iter().map(|n| n.load(Ordering::Relaxed))).collect()
    }

    /// All of them together, in seconds.
    #[must_use]
    pub fn sum_s(&self) -> f64 {
        self.sum_us.load(Ordering::Relaxed) as f64 / 1e6
    }
}

/// An app's numbers.
#[derive(Debug, Default)]
pub struct AppStats {
    classes: [AtomicU64; CLASSES.len()],
    in_flight: AtomicI64,
    durations: Durations,
}

impl AppStats {
    /// A request was routed to the app.
    pub fn begins(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// It is not the app's after all: its route changed while it waited.
    pub fn leaves(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// It ended; status 0 stands for none.
    pub fn ends(&self, status: u16, took: Duration) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.classes[class(status)].fetch_add(1, Ordering::Relaxed);
        self.durations.observe(took);
    }

    /// Requests that ended, by the names of [`CLASSES`].
    #[must_use]
    pub fn requests(&self) -> [(&'static str, u64); CLASSES.len()] {
        std::array::from_fn(|n| (CLASSES[n], self.classes[n].load(Ordering::Relaxed)))
    }

    /// Requests now, those that wait for an instance among them.
    #[must_use]
    pub fn in_flight(&self) -> i64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// From a request's header to its response's last byte.
    #[must_use]
    pub fn durations(&self) -> &Durations {
        &self.durations
    }
}

/// The place of a status in [`CLASSES`].
#[must_use]
pub fn class(status: u16) -> usize {
    match status / 100 {
        n @ 1..=5 => usize::from(n) - 1,
        _ => CLASSES.len() - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_that_covers_it() {
        let durations = Durations::default();
        for us in [0, 250, 251, 60_000_000, 60_000_001, u64::MAX >> 1] {
            durations.observe(Duration::from_micros(us));
        }
        let buckets = durations.buckets();
        let filled: Vec<_> = buckets.iter().filter(|(_, n)| *n > 0).copied().collect();
        assert_eq!(filled, [(0.000_25, 2), (0.000_5, 1), (60.0, 1), (f64::MAX, 2)]);
        assert!(buckets.windows(2).all(|w| w[0].0 < w[1].0) && durations.sum_s() > 120.0);
    }

    #[test]
    fn requests_are_counted_by_class_and_leave_nothing_behind() {
        let stats = AppStats::default();
        for status in [200, 204, 404, 503, 0, 999] {
            stats.begins();
            stats.ends(status, Duration::from_millis(1));
        }
        stats.begins();
        stats.leaves();
        let counted = stats.requests().map(|(_, n)| n);
        assert_eq!((counted, stats.in_flight()), ([0, 2, 0, 1, 1, 2], 0));
        assert_eq!(stats.durations().buckets().iter().map(|(_, n)| n).sum::<u64>(), 6);
    }
}
