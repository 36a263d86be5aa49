//! What the instances of one worker used: what it reports of them, and what the kernel says that it used itself.
//!
//! A worker says how much CPU time each guest took. The rest of its time goes into the work around them: HTTP, sandboxes,
//! log lines. The kernel knows the sum, so that rest is divided among those whose requests it was spent on, and what
//! the apps are charged for is what the worker cost. Flow: pool -> here -> ledger.

use std::collections::HashMap;

use jiff::Timestamp;
use marcato_api::{AppName, InstanceCounters, InstanceId, OrgName, UsageDelta};

use super::UsageLedger;
use crate::channel::InstanceReport;

/// A request makes as much work around guests as so many bytes of a body on their way.
const REQUEST_WEIGHT: u64 = 64 << 10;

/// Hears how a worker stands and records what came on top.
pub(crate) struct Meter {
    ledger: UsageLedger,
    /// Each instance until the worker does not list it any more.
    known: HashMap<InstanceId, Metered>,
    /// The worker's CPU time when it was last heard.
    worker_us: Option<u64>,
    /// What its guests were ahead of it, for the two are not read at the same moment.
    ahead_us: u64,
}

struct Metered {
    app: AppName,
    org: OrgName,
    /// What was last heard of it.
    last: UsageDelta,
    /// Its weight the last time.
    weight: u64,
    removed: bool,
}

/// What an instance used since the last time.
struct Used {
    id: InstanceId,
    delta: UsageDelta,
    weight: u64,
}

impl Meter {
    pub(crate) fn new(ledger: UsageLedger) -> Self {
        Self { ledger, known: HashMap::new(), worker_us: None, ahead_us: 0 }
    }

    /// An instance is about to be started. Only what was said here is believed later.
    pub(crate) fn expect(&mut self, id: &InstanceId, app: &AppName, org: &OrgName) {
        let metered =
            Metered { app: app.clone(), org: org.clone(), last: UsageDelta::default(), weight: 0, removed: false };
        self.known.insert(id.clone(), metered);
    }

    /// An instance is to go. What it still does is counted until it is not listed any more.
    pub(crate) fn remove(&mut self, id: &InstanceId) {
        if let Some(metered) = self.known.get_mut(id) {
            metered.removed = true;
        }
    }

    /// Records what every instance used since the last time. `worker_us` is the CPU time of the worker's process, read
    /// before its report, never after: what its guests used in between is theirs now, and comes off the next time. Nothing
    /// when it is gone.
    pub(crate) fn hear(&mut self, reports: &[InstanceReport], worker_us: Option<u64>, now: Timestamp) {
        let mut used: Vec<Used> = reports.iter().filter_map(|report| self.used(report)).collect();
        self.weigh(&mut used);
        if let Some(around) = self.around(&used, worker_us) {
            divide(around, &mut used);
        }
        for Used { id, delta, .. } in used {
            if let Some(metered) = self.known.get(&id) {
                self.ledger.record(&metered.app, &metered.org, delta, now);
            }
        }
        self.known.retain(|id, metered| !metered.removed || reports.iter().any(|r| r.id == *id));
    }

    /// Counters that went back began anew: all of them is new.
    fn used(&mut self, report: &InstanceReport) -> Option<Used> {
        let metered = self.known.get_mut(&report.id)?;
        let total = totals(&report.counters);
        let anew = total.requests < metered.last.requests || total.cpu_us < metered.last.cpu_us;
        let mut delta = if anew { total } else { total.since(&metered.last) };
        if !anew {
            // The one counter that reaches the end of its number, in months, and begins anew there.
            let held = total.memory_byte_ms.wrapping_sub(metered.last.memory_byte_ms);
            delta.memory_byte_ms = if held > u64::MAX / 2 { 0 } else { held };
        }
        metered.last = total;
        let moved = delta.bytes_in.saturating_add(delta.bytes_out);
        let requests = delta.requests.saturating_mul(REQUEST_WEIGHT);
        let weight = requests.saturating_add(moved).saturating_add(report.in_flight.into());
        Some(Used { id: report.id.clone(), delta, weight })
    }

    /// The clock of the worker was read early: what it did for the last requests is known one time later, when nobody asks
    /// any more, and belongs to those who asked before.
    fn weigh(&mut self, used: &mut [Used]) {
        let quiet = used.iter().all(|u| u.weight == 0);
        for one in used {
            let Some(metered) = self.known.get_mut(&one.id) else { continue };
            let before = std::mem::replace(&mut metered.weight, one.weight);
            if quiet {
                one.weight = before;
            }
        }
    }

    /// What the worker used since the last time and its guests did not. Nothing when it is not known yet.
    fn around(&mut self, used: &[Used], worker_us: Option<u64>) -> Option<u64> {
        let worker = worker_us?;
        // Two that ask at once may read the clock in one order and be heard in the other.
        let before = self.worker_us.replace(worker.max(self.worker_us.unwrap_or(0)))?;
        let guests: u64 = used.iter().map(|u| u.delta.cpu_us).fold(self.ahead_us, u64::saturating_add);
        let spent = worker.saturating_sub(before);
        self.ahead_us = guests.saturating_sub(spent);
        Some(spent.saturating_sub(guests))
    }

    /// The process is gone, and its counters with it.
    pub(crate) fn died(&mut self) {
        self.known.retain(|_, metered| !metered.removed);
        self.known.values_mut().for_each(|metered| metered.last = UsageDelta::default());
        (self.worker_us, self.ahead_us) = (None, 0);
    }
}

/// Divides by weight. What a worker does while nobody asks anything of it is the platform's.
fn divide(around_us: u64, used: &mut [Used]) {
    let mut weights: u128 = used.iter().map(|u| u128::from(u.weight)).sum();
    let mut left = around_us;
    for one in used.iter_mut().filter(|u| u.weight > 0) {
        // Of what is left, so that the parts are the whole.
        let part = u128::from(left) * u128::from(one.weight) / weights;
        let part = u64::try_from(part).unwrap_or(left);
        one.delta.cpu_us = one.delta.cpu_us.saturating_add(part);
        left -= part;
        weights -= u128::from(one.weight);
    }
}

fn totals(counters: &InstanceCounters) -> UsageDelta {
    UsageDelta {
        requests: counters.started,
        cpu_us: counters.cpu_us,
        memory_byte_ms: counters.memory_byte_ms,
        bytes_in: counters.bytes_in,
        bytes_out: counters.bytes_out,
    }
}

#[cfg(test)]
mod tests {
    use marcato_api::UsageCursor;

    use super::*;

    struct Fixture {
        _dir: tempfile::TempDir,
        ledger: UsageLedger,
        meter: Meter,
    }

    /// A worker with the apps `a` and `b`.
    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let ledger = UsageLedger::open(&dir.path().join("usage.sqlite")).unwrap();
        let mut meter = Meter::new(ledger.clone());
        for app in ["a", "b"] {
            meter.expect(&id(&format!("{app}-1")), &AppName::new(app).unwrap(), &OrgName::default_org());
        }
        Fixture { _dir: dir, ledger, meter }
    }

    fn id(text: &str) -> InstanceId {
        InstanceId::new(text).unwrap()
    }

    fn at() -> Timestamp {
        Timestamp::from_second(3_600).unwrap()
    }

    fn report(of: &str, started: u64) -> InstanceReport {
        let (cpu_us, bytes_out) = (started * 7, started * 100);
        let counters = InstanceCounters { started, cpu_us, bytes_out, ..InstanceCounters::default() };
        InstanceReport { id: id(of), in_flight: 0, queued: 0, counters, limits: Vec::new() }
    }

    fn recorded(ledger: &UsageLedger) -> Vec<(String, UsageDelta)> {
        ledger.flush().unwrap();
        let page = ledger.page(UsageCursor::START, 1_000).unwrap();
        let mut rows: Vec<_> = page.items.iter().map(|i| (i.app.to_string(), i.total)).collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        rows
    }

    #[test]
    fn each_request_is_counted_once_over_deaths_and_removals() {
        let Fixture { _dir, ledger, mut meter } = fixture();
        meter.hear(&[], None, at());
        // What was never placed there is not believed.
        meter.hear(&[report("a-1", 5), report("b-1", 1), report("c-1", 1_000)], None, at());
        meter.hear(&[report("a-1", 8), report("b-1", 1)], None, at());
        meter.remove(&id("a-1"));
        meter.hear(&[report("a-1", 9), report("b-1", 1)], None, at());
        meter.hear(&[report("b-1", 1)], None, at());
        meter.hear(&[report("a-1", 100)], None, at());
        meter.died();
        meter.hear(&[report("b-1", 3)], None, at());
        // A process that was replaced between two reports.
        meter.hear(&[report("b-1", 2)], None, at());
        let rows: Vec<_> = recorded(&ledger).into_iter().map(|(a, t)| (a, t.requests, t.bytes_out)).collect();
        assert_eq!(rows, [("a".into(), 9, 900), ("b".into(), 6, 600)]);
    }

    #[test]
    fn what_a_worker_uses_around_its_guests_goes_to_those_who_asked() {
        let Fixture { _dir, ledger, mut meter } = fixture();
        let cpu = |ledger: &UsageLedger| {
            let rows = recorded(ledger);
            let of = |app: &str| rows.iter().find(|(a, _)| a == app).map_or(0, |(_, t)| t.cpu_us);
            (of("a"), of("b"))
        };
        // Its start is nobody's.
        meter.hear(&[report("a-1", 0), report("b-1", 0)], Some(50_000), at());
        assert_eq!(cpu(&ledger), (0, 0));
        // 30 requests of 7 us of one and 10 of the other: 720 us around them.
        meter.hear(&[report("a-1", 30), report("b-1", 10)], Some(51_000), at());
        assert_eq!(cpu(&ledger), (210 + 540, 70 + 180));
        // Its clock was read a little early: the rest is known once nobody asks any more.
        meter.hear(&[report("a-1", 30), report("b-1", 10)], Some(51_400), at());
        assert_eq!(cpu(&ledger), (750 + 300, 250 + 100));
        // Nobody asked.
        meter.hear(&[report("a-1", 30), report("b-1", 10)], Some(52_000), at());
        assert_eq!(cpu(&ledger), (1_050, 350));
        // Guests are ahead of it: the next time has less, and the sum is right.
        meter.hear(&[report("a-1", 40), report("b-1", 10)], Some(52_020), at());
        assert_eq!(cpu(&ledger), (1_120, 350));
        meter.hear(&[report("a-1", 50), report("b-1", 10)], Some(52_200), at());
        assert_eq!(cpu(&ledger), (1_120 + 130, 350), "200 us in all since then");
        // A body on its way is work too, without a request that begins.
        let mut streams = report("b-1", 10);
        streams.counters.bytes_out += 1 << 30;
        meter.hear(&[report("a-1", 50), streams.clone()], Some(53_200), at());
        assert_eq!(cpu(&ledger), (1_250, 1_350));
        // Another process begins anew.
        meter.died();
        meter.hear(&[report("a-1", 1)], Some(400), at());
        assert_eq!(cpu(&ledger), (1_257, 1_350), "its start is nobody's either");
        meter.hear(&[report("a-1", 2)], Some(500), at());
        assert_eq!(cpu(&ledger), (1_257 + 100, 1_350));
    }

    #[test]
    fn memory_counts_on_where_its_number_ends() {
        let Fixture { _dir, ledger, mut meter } = fixture();
        let memory = |ledger: &UsageLedger| recorded(ledger).first().map_or(0, |(_, t)| t.memory_byte_ms);
        let held = |byte_ms: u64| {
            let mut one = report("a-1", 1);
            one.counters.memory_byte_ms = byte_ms;
            one
        };
        meter.hear(&[held(5)], None, at());
        assert_eq!(memory(&ledger), 5);
        meter.known.get_mut(&id("a-1")).unwrap().last.memory_byte_ms = u64::MAX - 9;
        meter.hear(&[held(20)], None, at());
        assert_eq!(memory(&ledger), 5 + 30);
        // A worker that is not itself any more gains nothing by going back.
        meter.hear(&[held(1)], None, at());
        assert_eq!(memory(&ledger), 35);
    }
}
