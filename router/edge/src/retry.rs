//! Whether a request may be sent again: the rules and the budget.
//!
//! Rules: what was never sent, what the host says no guest has begun
//! (`x-marcato-not-started: 1`), and what is idempotent (RFC 9110, 9.2.2) may be sent again, as long
//! as its body can be repeated. The budget (a token bucket, as Finagle's and tower's) keeps retries
//! a share of the requests, so that an overload does not feed itself.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use http::Method;

/// One retry, in hundredths.
const RETRY: i64 = 100;

/// A token bucket that fills with requests and, slowly, with time.
#[derive(Debug)]
pub(crate) struct Budget {
    tokens: AtomicI64,
    refilled_ms: AtomicU64,
    percent: i64,
    min_per_s: u64,
    most: i64,
}

impl Budget {
    pub(crate) fn new(percent: u32, min_per_s: u32, now_ms: u64) -> Self {
        // Ten seconds' worth of the minimum, or a burst of 100, may be saved up.
        let most = (i64::from(min_per_s) * 10).max(100) * RETRY;
        Self {
            tokens: AtomicI64::new(i64::from(min_per_s) * RETRY),
            refilled_ms: AtomicU64::new(now_ms),
            percent: i64::from(percent),
            min_per_s: u64::from(min_per_s),
            most,
        }
    }

    /// Counts a request in.
    pub(crate) fn deposit(&self) {
        // A few too many under contention do no harm: it is a bound on a rate.
        if self.tokens.load(Ordering::Relaxed) < self.most {
            self.tokens.fetch_add(self.percent, Ordering::Relaxed);
        }
    }

    /// Takes a retry out of the budget; false when there is none left.
    pub(crate) fn withdraw(&self, now_ms: u64) -> bool {
        let since = self.refilled_ms.load(Ordering::Relaxed);
        // One refill per 100 ms at most: whole tokens, and rarely contended.
        let elapsed = now_ms.saturating_sub(since);
        if elapsed >= 100
            && self.refilled_ms.compare_exchange(since, now_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            let earned = i64::try_from(elapsed.min(10_000) * self.min_per_s / 10).unwrap_or(i64::MAX);
            let room = (self.most - self.tokens.load(Ordering::Relaxed)).max(0);
            self.tokens.fetch_add(earned.min(room), Ordering::Relaxed);
        }
        self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |t| (t >= RETRY).then(|| t - RETRY)).is_ok()
    }
}

/// Whether a method may be repeated without further effect (RFC 9110, 9.2.2).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_a_share_and_a_minimum() {
        let budget = Budget::new(20, 10, 0);
        let taken = |budget: &Budget, now| (0..1_000).filter(|_| budget.withdraw(now)).count();
        assert_eq!(taken(&budget, 0), 10);
        for _ in 0..100 {
            budget.deposit();
        }
        assert_eq!(taken(&budget, 0), 20);
        // A second later the minimum is back; after an hour only what may be saved up.
        assert_eq!(taken(&budget, 1_000), 10);
        assert_eq!(taken(&budget, 3_600_000), 100);
        for _ in 0..1_000_000 {
            budget.deposit();
        }
        assert_eq!(taken(&budget, 3_600_000), 100);
    }

    #[test]
    fn post_and_patch_are_not_idempotent() {
        assert!(is_idempotent(&Method::GET) && is_idempotent(&Method::PUT) && is_idempotent(&Method::DELETE));
        assert!(!is_idempotent(&Method::POST) && !is_idempotent(&Method::PATCH));
        assert!(!is_idempotent(&Method::from_bytes(b"PURGE").unwrap()));
    }
}
