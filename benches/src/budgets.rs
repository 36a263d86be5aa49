//! Budgets: each a ratio or a bound, with its command, its last value and whether it is met. A budget that
//! is missed says so with the reason; nothing fails.

use anyhow::{Context, Result};

use crate::moments::Moments;
use crate::rounds::Measured;

const BEGIN: &str = "<!-- written by cargo xtask bench -->";
const END: &str = "<!-- end -->";

/// A budget and how it stands.
#[derive(Debug, Clone)]
pub struct Budget {
    /// What is promised.
    pub promise: &'static str,
    /// The last value, in words.
    pub last: String,
    /// How it stands.
    pub verdict: Verdict,
}

/// How a budget stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Met,
    /// It does not; the reason, where known.
    Missed(String),
    /// Not measured in this run, and why.
    Unmeasured(String),
}

impl Budget {
    fn of(promise: &'static str, value: Option<(String, bool)>, missing: &str) -> Self {
        match value {
            Some((last, true)) => Self { promise, last, verdict: Verdict::Met },
            Some((last, false)) => Self { promise, last, verdict: Verdict::Missed("see results/latest.md".into()) },
            None => Self { promise, last: "-".into(), verdict: Verdict::Unmeasured(missing.into()) },
        }
    }

    /// Gives the reason, should it be missed.
    fn because(mut self, reason: Option<String>) -> Self {
        if let (Verdict::Missed(why), Some(reason)) = (&mut self.verdict, reason) {
            *why = reason;
        }
        self
    }
}

fn find<'a>(measured: &'a [Measured], name: &str, connections: usize) -> Option<&'a Measured> {
    measured.iter().find(|m| m.name.starts_with(name) && m.connections == connections)
}

/// Requests per CPU second of ours over the peer's, with the better of two peers.
fn cpu_ratio(
    measured: &[Measured],
    ours: &str,
    peers: &[&str],
    connections: usize,
    least: f64,
) -> Option<(String, bool)> {
    let own = find(measured, ours, connections)?.cpu_us().0;
    let of_peers = peers.iter().filter_map(|p| find(measured, p, connections)).map(|m| m.cpu_us().0);
    let best = of_peers.fold(f64::INFINITY, f64::min);
    let ratio = best / own;
    best.is_finite().then(|| (format!("{ratio:.2} ({own:.0} us against {best:.0} us)"), ratio >= least))
}

/// All budgets of this run.
pub fn judge(measured: &[Measured], moments: Option<&Moments>) -> Vec<Budget> {
    let no_peer = "the peer was not there";
    let fresh = |connections| {
        let peers = ["wasmtime serve, fresh, pooling", "wasmtime serve, fresh"];
        cpu_ratio(measured, "marcato, fresh, through the router", &peers, connections, 1.0)
    };
    let reuse = |connections| {
        let peers = ["wasmtime serve, reuse, pooling"];
        cpu_ratio(measured, "marcato, reuse, through the router", &peers, connections, 0.8)
    };
    let nginx = cpu_ratio(measured, "nginx before wasmtime serve", &["wasmtime serve, reuse, pooling"], 32, 0.8);
    let added = (|| {
        let p50 = |name: &str| Some(find(measured, name, 1)?.p50_us());
        let ours = p50("marcato, reuse, through the router")? - p50("marcato, reuse, direct")?;
        let nginx = p50("nginx before wasmtime serve, reuse")? - p50("wasmtime serve, reuse, pooling")?;
        Some((format!("{ours:.0} us against {nginx:.0} us"), ours <= nginx))
    })();
    let push =
        moments.map(|m| (format!("{:.0} ms ({:.0} KB)", m.push_ms, m.push_size as f64 / 1e3), m.push_ms < 1000.0));
    let first = moments.map(|m| (format!("{:.2} ms", m.first_request_ms), m.first_request_ms < 5.0));
    let idle = moments.map(|m| {
        let last = format!("{:.1} MB (PSS {:.1} MB)", m.idle_resident as f64 / 1e6, m.idle_proportional as f64 / 1e6);
        (last, m.idle_resident < 80_000_000)
    });
    vec![
        Budget::of(
            "fresh sandboxes, through the router, 32 connections: at least `wasmtime serve`'s requests per CPU second",
            fresh(32),
            no_peer,
        ),
        Budget::of("the same with one connection", fresh(1), no_peer),
        Budget::of(
            "with reuse, through the router, 32 connections: at least 0.8 of `wasmtime serve`'s with the same reuse",
            reuse(32),
            no_peer,
        )
        .because(nginx.map(|(last, _)| format!("nginx in front of `wasmtime serve` gives {last}; see above"))),
        Budget::of("the same with one connection", reuse(1), no_peer),
        Budget::of("p50 that the router adds at one connection: at most nginx's as a proxy", added, no_peer),
        Budget::of("push of a 250 KB component to the first 200: under 1 s", push, "left out"),
        Budget::of("first request on a host with the code on disk: under 5 ms", first, "left out"),
        Budget::of("`marcato up` at rest: under 80 MB RSS in all", idle, "left out"),
    ]
}

/// Replaces the generated part of BUDGETS.md.
pub fn update(old: &str, measured: &[Measured], moments: Option<&Moments>, when: &str) -> Result<String> {
    let (head, rest) = old.split_once(BEGIN).context("BUDGETS.md has no mark where the table begins")?;
    let (_, tail) = rest.split_once(END).context("BUDGETS.md has no mark where the table ends")?;
    let mut table = format!(
        "{BEGIN}\nLast run: {when}. Command: `cargo xtask bench`.\n\n| budget | last | state |\n|---|---|---|\n"
    );
    for budget in judge(measured, moments) {
        let state = match &budget.verdict {
            Verdict::Met => "met".to_owned(),
            Verdict::Missed(why) => format!("**missed**: {why}"),
            Verdict::Unmeasured(why) => format!("not measured: {why}"),
        };
        table.push_str(&format!("| {} | {} | {state} |\n", budget.promise, budget.last));
    }
    Ok(format!("{head}{table}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closed_loop::Round;

    fn measured(name: &str, connections: usize, cpu_us: f64, p50_us: u64) -> Measured {
        let round = Round { requests: 1, errors: 0, per_second: 1.0, cpu_us, p50_us, p99_us: 0, resident: 0 };
        Measured { name: name.into(), connections, rounds: vec![round] }
    }

    #[test]
    fn a_budget_is_judged_against_the_better_peer() {
        let rows = [
            measured("wasmtime serve, fresh", 32, 200.0, 0),
            measured("wasmtime serve, fresh, pooling", 32, 150.0, 0),
            measured("marcato, fresh, through the router", 32, 160.0, 0),
        ];
        let budgets = judge(&rows, None);
        assert!(matches!(budgets[0].verdict, Verdict::Missed(_)), "{budgets:?}");
        assert!(budgets[0].last.starts_with("0.94"), "{}", budgets[0].last);
        assert!(matches!(budgets[1].verdict, Verdict::Unmeasured(_)));
        let reuse = [
            measured("wasmtime serve, reuse, pooling", 32, 24.0, 0),
            measured("marcato, reuse, through the router", 32, 40.0, 0),
            measured("nginx before wasmtime serve, reuse", 32, 32.0, 0),
        ];
        let missed = &judge(&reuse, None)[2];
        assert!(matches!(&missed.verdict, Verdict::Missed(why) if why.contains("0.75")), "{missed:?}");
    }

    #[test]
    fn only_the_generated_part_is_replaced() {
        let old = format!("head\n{BEGIN}\nold\n{END}\ntail\n");
        let new = update(&old, &[], None, "today").expect("marks");
        assert!(new.starts_with("head\n") && new.ends_with("tail\n") && !new.contains("old\n"), "{new}");
        assert!(update("no marks", &[], None, "today").is_err());
    }
}
