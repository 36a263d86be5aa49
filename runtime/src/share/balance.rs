//! How far each app is ahead of its share. Pure: what was used, by whom, in which time; whoever is ahead has to stand back.
//!
//! Bounded on both sides: an app that wanted little cannot save up to shut others out later, and one that used what
//! nobody wanted does not pay for it for ever.

use std::time::Duration;

/// Most that an app can be ahead or behind.
const BOUND_NS: i64 = 100_000_000;
/// So far ahead an app stands back, until it is not ahead at all.
const AHEAD_NS: i64 = 10_000_000;
/// Turns as short as this cost less than a way to the lane: they stand back only where others wait for them.
const SHORT_NS: u64 = 100_000;
/// One turn as long as this holds others up, however short the rest are: a guest may take pages in one step that nothing
/// interrupts. Many such guests begin at once, so an app that has them stands back even where it is alone: whoever comes
/// next would find all of them before it.
pub(super) const LONG_NS: u64 = 1_000_000;
/// What becomes ready on a thread of connections has waited this long: others wait.
pub(super) const CROWDED_US: u64 = 2_000;
/// So does a guest in the lane that waited this long.
pub(super) const LANE_CROWDED: Duration = Duration::from_millis(20);
/// How long that is remembered.
const REMEMBER: Duration = Duration::from_millis(250);
/// A capped app may use what it did not use in so long at once.
const BURST: Duration = Duration::from_millis(100);

/// An app's totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) used_ns: u64,
    pub(super) turns: u64,
    pub(super) long_turns: u64,
}

/// What is known of an app that used CPU time lately.
#[derive(Debug)]
pub(super) struct Account {
    seen: Seen,
    /// How far it is ahead of its share.
    ahead_ns: i64,
    /// How long its turns are.
    turn_ns: u64,
    behind: bool,
    /// What is left of its cap.
    left_ns: i64,
    /// How long ago others had to wait.
    crowded: Duration,
    /// How long ago a turn was long.
    long: Duration,
    /// How long it has used nothing.
    pub(super) idle: Duration,
}

impl Account {
    pub(super) const fn new(seen: Seen) -> Self {
        Self {
            seen,
            ahead_ns: 0,
            turn_ns: 0,
            behind: false,
            left_ns: 0,
            crowded: REMEMBER,
            long: REMEMBER,
            idle: Duration::ZERO,
        }
    }

    /// What it used since the last time.
    fn take(&mut self, now: Seen, elapsed: Duration) -> u64 {
        let long = now.long_turns != self.seen.long_turns;
        self.long = if long { Duration::ZERO } else { self.long.saturating_add(elapsed) };
        let used = now.used_ns.saturating_sub(self.seen.used_ns);
        let turns = now.turns.saturating_sub(self.seen.turns);
        self.seen = now;
        match used.checked_div(turns) {
            None => self.idle = self.idle.saturating_add(elapsed),
            Some(turn) => {
                self.idle = Duration::ZERO;
                self.turn_ns = (self.turn_ns * 7 + turn) / 8;
            }
        }
        used
    }

    /// Whether it stands back; `fair` is its share of what all used, nothing where no other app wants any.
    fn stands_back(&mut self, used: u64, fair: Option<u64>, crowded: bool, elapsed: Duration) -> bool {
        self.crowded = if crowded { Duration::ZERO } else { self.crowded.saturating_add(elapsed) };
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let long = self.long < REMEMBER;
        self.ahead_ns = match fair {
            Some(fair) => (self.ahead_ns + signed(used) - signed(fair)).clamp(-BOUND_NS, BOUND_NS),
            // As it would be at once, were there another.
            None if long => BOUND_NS,
            None => 0,
        };
        let in_the_way = self.turn_ns >= SHORT_NS || long || self.crowded < REMEMBER;
        self.behind = in_the_way && self.ahead_ns > if self.behind { 0 } else { AHEAD_NS };
        self.behind
    }

    fn is_capped(&mut self, used: u64, cap_millis: Option<u32>, elapsed: Duration) -> bool {
        let Some(cap) = cap_millis else {
            self.left_ns = 0;
            return false;
        };
        let of = |time: Duration| i64::try_from(time.as_nanos() * u128::from(cap) / 1000).unwrap_or(i64::MAX);
        let used = i64::try_from(used).unwrap_or(i64::MAX);
        self.left_ns = self.left_ns.saturating_sub(used).saturating_add(of(elapsed)).min(of(BURST));
        self.left_ns < 0
    }
}

/// What an app has to do until the next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Its guests run in the lane.
    pub(super) behind: bool,
    /// They do not run.
    pub(super) capped: bool,
}

/// Judges all apps that used CPU time lately; `seen` has totals, weight and cap of each, in the same order. `crowded`:
/// somebody had to wait.
pub(super) fn judge<'a>(
    accounts: impl ExactSizeIterator<Item = &'a mut Account>,
    seen: &[(Seen, u64, Option<u32>)],
    elapsed: Duration,
    crowded: bool,
) -> Vec<Verdict> {
    let alone = accounts.len() < 2;
    let mut used: Vec<(&mut Account, u64)> = accounts
        .zip(seen)
        .map(|(account, (now, ..))| {
            let used = account.take(*now, elapsed);
            (account, used)
        })
        .collect();
    let total: u64 = used.iter().map(|(_, ns)| ns).sum();
    let weights: u64 = seen.iter().map(|(_, weight, _)| weight).sum();
    let verdict = |(account, used): &mut (&mut Account, u64), weight: u64, cap: Option<u32>| {
        let fair = u128::from(total) * u128::from(weight) / u128::from(weights.max(1));
        let fair = (!alone).then(|| u64::try_from(fair).unwrap_or(u64::MAX));
        let capped = account.is_capped(*used, cap, elapsed);
        let behind = account.stands_back(*used, fair, crowded, elapsed);
        Verdict { behind: behind || capped, capped }
    };
    used.iter_mut().zip(seen).map(|(one, (_, weight, cap))| verdict(one, *weight, *cap)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(2);

    struct App {
        account: Account,
        seen: Seen,
        weight: u64,
        cap: Option<u32>,
    }

    fn app(weight: u64, cap: Option<u32>) -> App {
        App { account: Account::new(Seen::default()), seen: Seen::default(), weight, cap }
    }

    /// One tick in which each uses so many microseconds in so many turns.
    fn tick(apps: &mut [App], used: &[(u64, u64)], crowded: bool) -> Vec<Verdict> {
        for (app, (us, turns)) in apps.iter_mut().zip(used) {
            app.seen.used_ns += us * 1000;
            app.seen.turns += turns;
        }
        let seen: Vec<_> = apps.iter().map(|a| (a.seen, a.weight, a.cap)).collect();
        judge(apps.iter_mut().map(|a| &mut a.account), &seen, TICK, crowded)
    }

    fn last(apps: &mut [App], used: &[(u64, u64)], crowded: bool, ticks: usize) -> Vec<bool> {
        let verdicts = (0..ticks).map(|_| tick(apps, used, crowded)).last().unwrap();
        verdicts.iter().map(|v| v.behind).collect()
    }

    #[test]
    fn who_uses_more_than_its_share_stands_back_and_who_uses_less_does_not() {
        let mut apps = [app(100, None), app(100, None)];
        assert_eq!(last(&mut apps, &[(3_800, 1), (100, 4)], false, 20), [true, false]);
        // Once the other uses more, they change places.
        assert_eq!(last(&mut apps, &[(500, 1), (3_500, 2)], false, 200), [false, true]);
    }

    #[test]
    fn nobody_stands_back_for_turns_that_are_in_nobodys_way() {
        assert_eq!(last(&mut [app(100, None)], &[(4_000, 20)], true, 100), [false]);
        let short = (3_800, 100);
        let mut apps = [app(100, None), app(100, None)];
        assert_eq!(last(&mut apps, &[short, (50, 2)], false, 200), [false, false]);
        // Where others wait for them, they are.
        assert_eq!(last(&mut apps, &[short, (50, 2)], true, 1), [true, false]);
        assert_eq!(last(&mut apps, &[short, (50, 2)], false, 100), [true, false], "that is remembered");
        assert_eq!(last(&mut apps, &[short, (50, 2)], false, 100), [false, false], "for a while");
    }

    #[test]
    fn one_long_turn_among_short_ones_is_in_the_way() {
        let short = (3_800, 100);
        let mut apps = [app(100, None), app(100, None)];
        assert_eq!(last(&mut apps, &[short, (50, 2)], false, 200), [false, false]);
        apps[0].seen.long_turns += 1;
        assert_eq!(last(&mut apps, &[short, (50, 2)], false, 100), [true, false]);
        assert_eq!(last(&mut apps, &[short, (50, 2)], false, 100), [false, false], "it is forgotten");
    }

    #[test]
    fn who_has_long_turns_stands_back_before_another_comes() {
        let mut apps = [app(100, None), app(100, None)];
        let [alone, _] = &mut apps;
        alone.seen.long_turns += 1;
        assert_eq!(last(std::slice::from_mut(alone), &[(3_800, 100)], false, 1), [true]);
        assert_eq!(last(&mut apps, &[(3_800, 100), (50, 1)], false, 1), [true, false]);
        assert_eq!(last(&mut apps[..1], &[(3_800, 100)], false, 200), [false], "it is forgotten");
    }

    #[test]
    fn weights_decide_what_a_share_is() {
        let mut apps = [app(300, None), app(100, None)];
        assert_eq!(last(&mut apps, &[(2_800, 1), (1_200, 1)], false, 200), [false, true]);
        assert_eq!(last(&mut apps, &[(3_200, 1), (800, 1)], false, 400), [true, false]);
    }

    #[test]
    fn neither_thrift_nor_use_of_what_was_left_is_remembered_for_long() {
        let mut apps = [app(100, None), app(100, None)];
        last(&mut apps, &[(4_000, 1), (10, 1)], false, 100_000);
        assert_eq!(apps[0].account.ahead_ns, BOUND_NS);
        // 100 ms ahead are worked off in 50 ticks of 2 ms that fell short by 2 ms.
        assert_eq!(last(&mut apps, &[(0, 1), (4_000, 2)], false, 60), [false, true]);
    }

    #[test]
    fn a_cap_holds_on_average_and_lets_a_burst_through() {
        let mut apps = [app(100, Some(500))];
        let mut used = 0;
        let mut capped = false;
        for _ in 0..1000 {
            let us = if capped { 0 } else { 2_000 };
            used += us;
            capped = tick(&mut apps, &[(us, u64::from(us > 0))], false)[0].capped;
        }
        // Half a core over two seconds.
        assert!((990_000..=1_060_000).contains(&used), "{used}");
        apps[0].cap = None;
        assert!(!tick(&mut apps, &[(4_000, 1)], false)[0].capped);
    }

    #[test]
    fn an_app_without_use_grows_idle() {
        let mut apps = [app(100, None), app(100, None)];
        last(&mut apps, &[(100, 1), (0, 0)], false, 10);
        assert_eq!((apps[0].account.idle, apps[1].account.idle), (Duration::ZERO, TICK * 10));
    }
}
