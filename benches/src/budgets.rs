//! Budgets: each a ratio or a bound, with its command, its last value and whether it is met. A budget that
//! is missed says so with the reason; nothing fails.

use anyhow::{Context, Result};

use crate::fair::Beside;
use crate::idle::Idle;
use crate::rounds::Measured;
use crate::table::Results;

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

const FRESH_DEFAULTS: &[&str] = &["wasmtime serve, fresh, defaults"];
/// The better of its two.
const REUSE_BEST: &[&str] = &["wasmtime serve, reuse, pooling", "wasmtime serve, reuse, pooling, 2 MiB kept resident"];

/// All budgets of this run.
pub fn judge(results: &Results<'_>) -> Vec<Budget> {
    let (measured, moments) = (results.measured, results.moments);
    let no_peer = "the peer was not there";
    let against = |ours, peers, connections, least| cpu_ratio(measured, ours, peers, connections, least);
    let (fresh_host, fresh_router) = ("marcato, fresh, direct to a host", "marcato, fresh, through the router");
    let (reuse_host, reuse_router) = ("marcato, reuse, direct to a host", "marcato, reuse, through the router");
    let nginx = against("nginx before wasmtime serve", &REUSE_BEST[..1], 32, 0.8);
    let added = (|| {
        let p50 = |name: &str| Some(find(measured, name, 1)?.p50_us());
        let ours = p50("marcato, reuse, through the router")? - p50("marcato, reuse, direct")?;
        let nginx = p50("nginx before wasmtime serve, reuse")? - p50("wasmtime serve, reuse, pooling")?;
        Some((format!("{ours:.0} us against {nginx:.0} us"), ours <= nginx))
    })();
    let push =
        moments.map(|m| (format!("{:.0} ms ({:.0} KB)", m.push_ms, m.push_size as f64 / 1e3), m.push_ms < 1000.0));
    let first = moments.map(|m| (format!("{:.2} ms", m.first_request_ms), m.first_request_ms < 5.0));
    let worker = moments.map(|m| (format!("{:.0} ms", m.worker_again_ms), m.worker_again_ms < 100.0));
    let idle = moments.map(|m| {
        let last = format!("{:.1} MB (PSS {:.1} MB)", m.idle_resident as f64 / 1e6, m.idle_proportional as f64 / 1e6);
        (last, m.idle_resident < 80_000_000)
    });
    let mut budgets = vec![
        Budget::of(
            "fresh sandboxes at a host, 32 connections: 2 times the requests per CPU second of `wasmtime serve` at its defaults",
            against(fresh_host, FRESH_DEFAULTS, 32, 2.0),
            no_peer,
        ),
        Budget::of("the same with one connection", against(fresh_host, FRESH_DEFAULTS, 1, 2.0), no_peer),
        Budget::of(
            "fresh sandboxes through the router, 32 connections: 1.5 times `wasmtime serve` at its defaults",
            against(fresh_router, FRESH_DEFAULTS, 32, 1.5),
            no_peer,
        ),
        Budget::of("the same with one connection", against(fresh_router, FRESH_DEFAULTS, 1, 1.5), no_peer),
        Budget::of(
            "reused sandboxes at a host, 32 connections: 1.2 times `wasmtime serve` with the same reuse and pooling",
            against(reuse_host, REUSE_BEST, 32, 1.2),
            no_peer,
        ),
        Budget::of("the same with one connection", against(reuse_host, REUSE_BEST, 1, 1.2), no_peer),
        Budget::of(
            "with reuse, through the router, 32 connections: at least 0.8 of `wasmtime serve`'s with the same reuse",
            against(reuse_router, REUSE_BEST, 32, 0.8),
            no_peer,
        )
        .because(nginx.map(|(last, _)| format!("nginx in front of `wasmtime serve` gives {last}; see above"))),
        Budget::of("the same with one connection", against(reuse_router, REUSE_BEST, 1, 0.8), no_peer),
        Budget::of("p50 that the router adds at one connection: at most nginx's as a proxy", added, no_peer),
        Budget::of("push of a 250 KB component to the first 200: under 1 s", push, "left out"),
        Budget::of("first request on a host with the code on disk: under 5 ms", first, "left out"),
        Budget::of("worker killed until the next answer at its host: under 100 ms", worker, "left out"),
        Budget::of("`marcato up` at rest: under 80 MB RSS in all", idle, "left out"),
    ];
    budgets.extend(at_rest(results.idle));
    budgets.extend(neighbours(results.fair));
    budgets
}

/// What hostile tenants may cost a neighbour.
fn neighbours(fair: &[Beside]) -> Vec<Budget> {
    let p99 = |name: &str| fair.iter().find(|b| b.name == name).map(|b| b.p99_us as f64);
    let beside = |with: &str, without: &str| {
        let (quiet, with, without) = (p99("nobody, on half of the cores")?, p99(with)?, p99(without)?);
        let last = format!(
            "{:.2} ({with:.0} us against {quiet:.0} us; without shares {:.2}, {without:.0} us)",
            with / quiet,
            without / quiet
        );
        Some((last, with <= 1.2 * quiet))
    };
    vec![
        Budget::of(
            "p99 beside 1,000 connections of spinning guests: at most 1.2 times that of a quiet host of the same share",
            beside("spinning, with shares", "spinning, without shares"),
            "left out",
        ),
        Budget::of(
            "the same beside guests that allocate and free",
            beside("allocating, with shares", "allocating, without shares"),
            "left out",
        ),
    ]
}

/// What apps at rest may cost, and first requests.
fn at_rest(idle: Option<&Idle>) -> Vec<Budget> {
    let most = idle.and_then(|i| i.rests.iter().max_by_key(|r| r.apps).filter(|r| r.apps > 1000));
    let each = most.zip(idle.and_then(|i| i.rests.first())).map(|(most, one)| {
        let bytes = most.resident.saturating_sub(one.resident) as f64 / (most.apps - one.apps) as f64;
        (format!("{:.1} KB", bytes / 1e3), bytes < 20_000.0)
    });
    let start = most.map(|r| (format!("{:.1} s", r.again_ms / 1e3), r.again_ms < 10_000.0));
    let cold = |name: &str, most: f64| {
        let found = idle.and_then(|i| i.colds.iter().find(|c| c.name == name))?;
        let more = found.cold_p99_ms - found.warm_p99_ms;
        Some((format!("{more:.2} ms ({:.2} against {:.2})", found.cold_p99_ms, found.warm_p99_ms), more < most))
    };
    vec![
        Budget::of("an app at rest, of 10,000: under 20 KB RSS beside its code", each, "left out"),
        Budget::of("10,000 apps on one host, killed and started again: ready within 10 s", start, "left out"),
        Budget::of(
            "first request with the code on disk, p99 over that of warm ones, Rust: under 1 ms",
            cold("Rust", 1.0),
            "left out",
        ),
        Budget::of("the same, JavaScript: under 5 ms", cold("JavaScript", 5.0), "no such guest"),
        Budget::of("the same, Python: under 5 ms", cold("Python", 5.0), "no such guest"),
    ]
}

/// Replaces the generated part of BUDGETS.md.
pub fn update(old: &str, results: &Results<'_>, when: &str) -> Result<String> {
    let (head, rest) = old.split_once(BEGIN).context("BUDGETS.md has no mark where the table begins")?;
    let (_, tail) = rest.split_once(END).context("BUDGETS.md has no mark where the table ends")?;
    let mut table = format!(
        "{BEGIN}\nLast run: {when}. Command: `cargo xtask bench`.\n\n| budget | last | state |\n|---|---|---|\n"
    );
    for budget in judge(results) {
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
    use crate::idle::Rest;

    fn measured(name: &str, connections: usize, cpu_us: f64, p50_us: u64) -> Measured {
        let round = Round { requests: 1, errors: 0, per_second: 1.0, cpu_us, p50_us, p99_us: 0, resident: 0 };
        Measured { name: name.into(), connections, rounds: vec![round] }
    }

    fn results(measured: &[Measured]) -> Results<'_> {
        Results { measured, moments: None, idle: None, fair: &[] }
    }

    #[test]
    fn a_budget_is_judged_against_the_better_peer() {
        let rows = [
            measured("wasmtime serve, fresh, defaults", 32, 160.0, 0),
            measured("marcato, fresh, direct to a host", 32, 90.0, 0),
            measured("wasmtime serve, reuse, pooling", 32, 24.0, 0),
            measured("wasmtime serve, reuse, pooling, 2 MiB kept resident", 32, 20.0, 0),
            measured("marcato, reuse, through the router", 32, 40.0, 0),
            measured("nginx before wasmtime serve, reuse", 32, 32.0, 0),
        ];
        let budgets = judge(&results(&rows));
        assert!(matches!(budgets[0].verdict, Verdict::Missed(_)), "{budgets:?}");
        assert!(budgets[0].last.starts_with("1.78"), "{}", budgets[0].last);
        assert!(matches!(budgets[1].verdict, Verdict::Unmeasured(_)));
        let missed = &budgets[6];
        assert!(missed.last.starts_with("0.50"), "{missed:?}");
        assert!(matches!(&missed.verdict, Verdict::Missed(why) if why.contains("0.75")), "{missed:?}");
    }

    #[test]
    fn apps_at_rest_are_counted_beside_the_first() {
        let rest = |apps, resident| Rest { apps, told_ms: 0.0, again_ms: 900.0, resident, proportional: 0 };
        let idle = Idle { rests: vec![rest(1, 30_000_000), rest(10_000, 129_990_000)], colds: Vec::new() };
        let budgets = at_rest(Some(&idle));
        assert_eq!((budgets[0].last.as_str(), &budgets[0].verdict), ("10.0 KB", &Verdict::Met));
        assert_eq!((budgets[1].last.as_str(), &budgets[1].verdict), ("0.9 s", &Verdict::Met));
    }

    #[test]
    fn only_the_generated_part_is_replaced() {
        let old = format!("head\n{BEGIN}\nold\n{END}\ntail\n");
        let new = update(&old, &results(&[]), "today").expect("marks");
        assert!(new.starts_with("head\n") && new.ends_with("tail\n") && !new.contains("old\n"), "{new}");
        assert!(update("no marks", &results(&[]), "today").is_err());
    }
}
