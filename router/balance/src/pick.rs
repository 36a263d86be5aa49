//! The choice of an endpoint: power of two choices on in-flight requests relative to concurrency
//! (Mitzenmacher, "The power of two choices in randomized load balancing", 2001).
//!
//! Two random endpoints are compared and the less loaded one taken. It needs no shared order, does
//! not herd onto the endpoint that looked best a moment ago, and does not allocate.

use std::sync::Arc;

use crate::{AppEntry, BreakerPolicy, Endpoint, InFlight};

/// Chooses an endpoint and counts the request in.
///
/// An ejected endpoint whose back-off has passed takes one request as a probe. Else one of the
/// healthy ones is taken. When all are ejected any is taken: an answer that may fail is better than
/// one that fails for certain. `exclude` lists endpoints that this request has tried already.
///
/// `now_ms` is monotonic; `random` gives 64 random bits. `None`: no endpoint outside `exclude`.
pub fn pick(
    entry: &AppEntry,
    now_ms: u64,
    policy: &BreakerPolicy,
    random: &mut impl FnMut() -> u64,
    exclude: &[Arc<Endpoint>],
) -> Option<InFlight> {
    if let [only] = entry.endpoints.as_slice()
        && exclude.is_empty()
    {
        let probe = only.stats.claim_probe(now_ms, policy);
        return Some(InFlight::new(only, probe));
    }
    let open = || entry.endpoints.iter().filter(|e| !exclude.iter().any(|x| x.instance == e.instance));
    let (mut healthy, mut all) = (0_usize, 0_usize);
    for endpoint in open() {
        all += 1;
        if !endpoint.stats.is_ejected() {
            healthy += 1;
        } else if endpoint.stats.is_due(now_ms) && endpoint.stats.claim_probe(now_ms, policy) {
            return Some(InFlight::new(endpoint, true));
        }
    }
    let chosen =
        if healthy > 0 { two_choices(|| open().filter(|e| !e.stats.is_ejected()), healthy, random) } else { None };
    // Between the count and the choice another request may have ejected one; then any will do.
    let chosen = match chosen {
        Some(endpoint) => endpoint,
        None if all > 0 => two_choices(open, all, random)?,
        None => return None,
    };
    Some(InFlight::new(chosen, false))
}

/// The less loaded of two random ones among the `count` that `candidates` gives.
fn two_choices<'a, I: Iterator<Item = &'a Arc<Endpoint>>>(
    candidates: impl Fn() -> I,
    count: usize,
    random: &mut impl FnMut() -> u64,
) -> Option<&'a Arc<Endpoint>> {
    if count == 1 {
        return candidates().next();
    }
    // Both halves of one random number: indexes are far below 2^32.
    let bits = random();
    let first = (bits as u32 as usize) % count;
    let step = 1 + ((bits >> 32) as usize) % (count - 1);
    let second = (first + step) % count;
    let (low, high) = (first.min(second), first.max(second));
    let mut candidates = candidates();
    let a = candidates.nth(low)?;
    let Some(b) = candidates.nth(high - low - 1) else { return Some(a) };
    // Ties go to the one drawn first, which is random.
    let (a, b) = if first == low { (a, b) } else { (b, a) };
    Some(if load_is_less(b, a) { b } else { a })
}

/// Whether `a` has less in flight than `b`, each relative to its concurrency, without division.
fn load_is_less(a: &Endpoint, b: &Endpoint) -> bool {
    let load_a = u64::from(a.stats.in_flight()) * u64::from(b.concurrency);
    let load_b = u64::from(b.stats.in_flight()) * u64::from(a.concurrency);
    load_a < load_b
}
