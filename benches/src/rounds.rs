//! Rounds: every subject once per round, in an order that turns, so that a slow minute of the machine hits
//! all of them alike. Each number of the report is the median over the rounds.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::closed_loop::{Round, run};
use crate::subjects::Subject;

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Rounds.
    pub rounds: usize,
    /// Time per subject, connection count and round.
    pub time: Duration,
}

/// A subject at one number of connections.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The subject's name.
    pub name: String,
    /// Connections.
    pub connections: usize,
    /// All its rounds.
    pub rounds: Vec<Round>,
}

impl Measured {
    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        let mut values: Vec<f64> = self.rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// CPU per request, in microseconds: median, least, most.
    pub fn cpu_us(&self) -> (f64, f64, f64) {
        let values = || self.rounds.iter().map(|r| r.cpu_us);
        (self.median(|r| r.cpu_us), values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max))
    }

    /// Requests per second.
    pub fn per_second(&self) -> f64 {
        self.median(|r| r.per_second)
    }

    /// Median latency, in microseconds.
    pub fn p50_us(&self) -> f64 {
        self.median(|r| r.p50_us as f64)
    }

    /// 99th percentile, in microseconds.
    pub fn p99_us(&self) -> f64 {
        self.median(|r| r.p99_us as f64)
    }

    /// Resident memory of the servers, in bytes.
    pub fn resident(&self) -> f64 {
        self.median(|r| r.resident as f64)
    }

    /// Errors over all rounds.
    pub fn errors(&self) -> u64 {
        self.rounds.iter().map(|r| r.errors).sum()
    }
}

/// Measures all subjects at each number of connections, after one short warm-up each.
pub async fn measure(subjects: &[Subject], connections: &[usize], shape: Shape) -> Result<Vec<Measured>> {
    let mut measured: Vec<Measured> = Vec::new();
    for subject in subjects {
        for count in connections {
            measured.push(Measured { name: subject.name.clone(), connections: *count, rounds: Vec::new() });
        }
        one(subject, 4, shape.time / 4).await?;
    }
    for round in 0..shape.rounds {
        for step in 0..subjects.len() {
            let subject = &subjects[(step + round) % subjects.len()];
            for count in connections {
                let result = one(subject, *count, shape.time).await?;
                let slot = measured.iter_mut().find(|m| m.name == subject.name && m.connections == *count);
                slot.context("a subject without a slot")?.rounds.push(result);
            }
        }
        eprintln!("bench: round {} of {} done", round + 1, shape.rounds);
    }
    Ok(measured)
}

async fn one(subject: &Subject, connections: usize, time: Duration) -> Result<Round> {
    run(&subject.target, &subject.path, &subject.headers, connections, time, &subject.servers)
        .await
        .with_context(|| format!("{} at {connections} connections", subject.name))
}
