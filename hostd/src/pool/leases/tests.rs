//! Leases under workers that are honest and workers that are not, with messages that come late.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn memory(bytes: u64) -> Amount {
    Amount { memory: bytes, sandboxes: 0 }
}

/// A worker that does as it is told.
#[derive(Debug, Clone, Default)]
struct Worker {
    lease: Granted,
    used: u64,
    /// Leases on their way to it, statements on their way from it.
    inbox: VecDeque<Granted>,
    outbox: VecDeque<Statement>,
    wants: u64,
}

impl Worker {
    /// As much of it as its lease has room for.
    fn grow(&mut self, by: u64) {
        let room = self.lease.amount.memory.saturating_sub(self.used);
        self.used += by.min(room);
        self.wants = by - by.min(room);
        self.say();
    }

    fn shrink(&mut self, by: u64) {
        self.used -= by.min(self.used);
        self.wants = 0;
        self.say();
    }

    fn say(&mut self) {
        let (number, used) = (self.lease.number, memory(self.used));
        self.outbox.push_back(Statement { number, used, wants: memory(self.wants) });
    }

    fn take(&mut self) {
        if let Some(lease) = self.inbox.pop_front() {
            self.lease = lease;
            self.say();
        }
    }
}

struct Host {
    leases: Leases,
    workers: BTreeMap<Holder, Worker>,
    next: Holder,
    total: u64,
}

impl Host {
    fn new(total: u64) -> Self {
        let leases = Leases::new(Amount { memory: total, sandboxes: 1000 });
        Self { leases, workers: BTreeMap::new(), next: 1, total }
    }

    fn settle(&mut self) {
        for (holder, lease) in self.leases.settle() {
            if let Some(worker) = self.workers.get_mut(&holder) {
                worker.inbox.push_back(lease);
            }
        }
    }

    fn join(&mut self, weight: u64) -> Holder {
        let holder = self.next;
        self.next += 1;
        self.workers.insert(holder, Worker::default());
        self.leases.join(holder, Amount { memory: weight, sandboxes: 1 });
        self.settle();
        holder
    }

    fn leave(&mut self, holder: Holder) {
        self.workers.remove(&holder);
        self.leases.leave(holder);
        self.settle();
    }

    fn deliver(&mut self, holder: Holder) {
        let said = self.workers.get_mut(&holder).and_then(|w| w.outbox.pop_front());
        if let Some(said) = said {
            self.leases.hear(holder, &said);
            self.settle();
        }
    }

    /// Until nothing is on its way. Bounded: it must come to rest.
    fn rest(&mut self) {
        for _ in 0..1000 {
            let holders: Vec<Holder> = self.workers.keys().copied().collect();
            let moving = self.workers.values().any(|w| !w.inbox.is_empty() || !w.outbox.is_empty());
            if !moving {
                return;
            }
            for holder in holders {
                self.workers.get_mut(&holder).unwrap().take();
                self.deliver(holder);
            }
        }
        panic!("it never comes to rest: {:?}", self.workers);
    }

    /// Has it use so much, as far as its lease grows with it.
    fn fill(&mut self, holder: Holder, to: u64) {
        for _ in 0..20 {
            let lacks = to.saturating_sub(self.worker(holder).used);
            self.worker(holder).grow(lacks);
            self.rest();
        }
    }

    fn worker(&mut self, holder: Holder) -> &mut Worker {
        self.workers.get_mut(&holder).unwrap()
    }

    fn lease(&self, holder: Holder) -> u64 {
        self.workers[&holder].lease.amount.memory
    }

    /// What workers use, or could at this moment.
    fn in_reach(&self) -> u64 {
        self.workers.values().map(|w| w.used.max(w.lease.amount.memory)).sum()
    }

    fn check(&self) {
        assert!(self.in_reach() <= self.total, "{} of {}: {:?}", self.in_reach(), self.total, self.workers);
        let held: u64 = self.leases.memory.entries.values().map(|e| e.held).sum();
        assert!(held <= self.total);
    }
}

#[test]
fn a_worker_alone_has_all_but_what_the_next_one_begins_with() {
    let mut host = Host::new(4 * GIB);
    let one = host.join(1);
    host.rest();
    assert_eq!(host.lease(one), 4 * GIB - 64 * MIB);
    assert!(!host.worker(one).lease.more);
    host.worker(one).grow(5 * GIB);
    host.rest();
    assert_eq!(host.worker(one).used, 4 * GIB - 64 * MIB);
    // The next one can begin at once, whatever the first one holds.
    let two = host.join(1);
    host.worker(two).take();
    assert_eq!(host.lease(two), 64 * MIB);
    host.check();
}

#[test]
fn small_hosts_have_nothing_set_aside_and_no_rounding_loses_a_byte() {
    for total in [1, 15, 63, 64 << 10] {
        let mut host = Host::new(total);
        let one = host.join(0);
        host.rest();
        assert_eq!(host.lease(one), total - total / 16);
    }
}

#[test]
fn what_lies_idle_goes_to_who_lacks_it_and_comes_back() {
    let mut host = Host::new(4 * GIB);
    let (one, two) = (host.join(1), host.join(1));
    host.rest();
    let half = 2 * GIB - 32 * MIB;
    assert!(host.lease(one) >= half - 64 * MIB && host.lease(two) >= half - 64 * MIB);
    host.fill(one, 4 * GIB);
    assert!(host.worker(one).used > 3 * GIB, "{:?}", host.workers);
    assert!(host.lease(two) >= 64 * MIB, "something in advance");
    // It needs its share: the other one may not grow, and has to give what ends.
    host.worker(two).grow(2 * GIB);
    host.rest();
    host.check();
    assert!(host.lease(one) <= half, "{:?}", host.workers);
    assert!(host.worker(two).used < GIB, "not yet there");
    host.worker(one).shrink(2 * GIB);
    host.rest();
    host.fill(two, 2 * GIB);
    assert!(host.worker(two).used >= half - 64 * MIB, "{:?}", host.workers);
    host.check();
}

#[test]
fn shares_go_by_weight_when_all_want_everything() {
    let mut host = Host::new(4 * GIB);
    let (light, heavy) = (host.join(1), host.join(3));
    host.rest();
    // The light one is first, and has it all until what it holds ends.
    host.fill(light, 4 * GIB);
    assert!(host.worker(light).used > 3 * GIB, "{:?}", host.workers);
    host.fill(heavy, 4 * GIB);
    host.worker(light).shrink(4 * GIB);
    host.rest();
    for holder in [light, heavy] {
        host.worker(holder).wants = 4 * GIB;
        host.worker(holder).say();
    }
    host.rest();
    let budget = 4 * GIB - 64 * MIB;
    assert!(host.lease(light).abs_diff(budget / 4) < MIB, "{:?}", host.workers);
    assert!(host.lease(heavy).abs_diff(budget / 4 * 3) < MIB, "{:?}", host.workers);
    assert!(host.leases.memory.entries.values().all(|e| !e.more), "{:?}", host.leases.memory);
}

#[test]
fn the_death_of_a_worker_frees_what_it_held() {
    let mut host = Host::new(4 * GIB);
    let (one, two) = (host.join(1), host.join(1));
    host.rest();
    host.worker(one).grow(2 * GIB);
    host.rest();
    host.leave(one);
    host.rest();
    assert_eq!(host.lease(two), 4 * GIB - 64 * MIB);
}

#[test]
fn who_lies_gets_what_others_do_not_need_and_no_more() {
    let mut host = Host::new(4 * GIB);
    let (liar, good) = (host.join(1), host.join(1));
    host.rest();
    host.worker(good).grow(GIB);
    host.rest();
    host.leases.hear(liar, &Statement { number: u64::MAX, used: memory(u64::MAX), wants: memory(u64::MAX) });
    host.settle();
    host.rest();
    assert!(host.lease(good) >= host.worker(good).used + 64 * MIB, "{:?}", host.workers);
    host.fill(good, GIB + 900 * MIB);
    assert_eq!(host.worker(good).used, GIB + 900 * MIB, "up to its share, whatever the other one says");
    host.check();
}

#[test]
fn a_worker_that_does_not_answer_keeps_what_it_was_given_and_stops_nobody_else() {
    let mut host = Host::new(4 * GIB);
    let (silent, one, two) = (host.join(1), host.join(1), host.join(1));
    host.rest();
    host.worker(silent).grow(GIB);
    host.rest();
    host.worker(one).grow(3 * GIB);
    for _ in 0..100 {
        for holder in [one, two] {
            host.worker(holder).take();
            host.deliver(holder);
        }
    }
    host.check();
    // What lies idle with the one that answers is there for the other one.
    assert!(host.worker(one).lease.amount.memory > 4 * GIB / 3, "{:?}", host.workers);
    assert!(host.lease(two) >= 64 * MIB);
}

#[derive(Debug, Clone)]
enum Step {
    Join(u64),
    Leave(usize),
    Grow(usize, u64),
    Shrink(usize, u64),
    Take(usize),
    Deliver(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..1000_u64).prop_map(Step::Join),
        1 => any::<usize>().prop_map(Step::Leave),
        6 => (any::<usize>(), 0..GIB).prop_map(|(at, by)| Step::Grow(at, by)),
        6 => (any::<usize>(), 0..GIB).prop_map(|(at, by)| Step::Shrink(at, by)),
        8 => any::<usize>().prop_map(Step::Take),
        8 => any::<usize>().prop_map(Step::Deliver),
    ]
}

fn run(host: &mut Host, step: &Step) {
    let holders: Vec<Holder> = host.workers.keys().copied().collect();
    let pick = |at: usize| holders.get(at % holders.len().max(1)).copied();
    match *step {
        Step::Join(weight) if holders.len() < 12 => drop(host.join(weight)),
        Step::Join(_) => {}
        Step::Leave(at) => pick(at).into_iter().for_each(|h| host.leave(h)),
        Step::Grow(at, by) => pick(at).into_iter().for_each(|h| host.worker(h).grow(by)),
        Step::Shrink(at, by) => pick(at).into_iter().for_each(|h| host.worker(h).shrink(by)),
        Step::Take(at) => pick(at).into_iter().for_each(|h| host.worker(h).take()),
        Step::Deliver(at) => pick(at).into_iter().for_each(|h| host.deliver(h)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happens and whatever is on its way: the sum of what workers may use is never more than there is.
    #[test]
    fn the_sum_is_never_more_than_the_host_has(
        total in 1..8 * GIB,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut host = Host::new(total);
        host.join(1);
        for step in &steps {
            run(&mut host, step);
            host.check();
        }
        host.rest();
        host.check();
    }

    /// Once all is said: everybody has what they use and something in advance, or their share by weight.
    #[test]
    fn at_rest_everybody_has_what_they_need_or_their_share(
        total in 64 * MIB..8 * GIB,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut host = Host::new(total);
        host.join(1);
        for step in &steps {
            run(&mut host, step);
        }
        host.rest();
        // Whoever is over its lease ends what it has; then each says once more what it needs.
        for holder in host.workers.keys().copied().collect::<Vec<_>>() {
            let worker = host.worker(holder);
            let over = worker.used.saturating_sub(worker.lease.amount.memory);
            worker.shrink(over);
        }
        host.rest();
        host.check();
        let all: u128 = host.leases.memory.entries.values().map(|e| u128::from(e.weight)).sum();
        for (holder, entry) in &host.leases.memory.entries {
            let worker = &host.workers[holder];
            prop_assert_eq!(worker.lease.amount.memory, entry.lease, "told what stands in the book");
            let need = worker.used + (worker.used / 2).max(host.leases.memory.chunk);
            let share = part(host.leases.memory.budget(), entry.weight, all);
            prop_assert!(entry.lease + 16 >= need.min(share), "{} of need {} and share {}", entry.lease, need, share);
        }
        prop_assert!(host.leases.settle().is_empty(), "it is at rest");
    }

    /// Workers that say anything at all take nothing from an honest one: what it needs, up to its share, is there.
    #[test]
    fn lies_take_nothing_from_who_is_honest(
        lies in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..60),
    ) {
        let mut host = Host::new(4 * GIB);
        let (liar, good) = (host.join(1), host.join(1));
        host.rest();
        for (number, used, wants) in lies {
            host.leases.hear(liar, &Statement { number, used: memory(used), wants: memory(wants) });
            host.settle();
            host.worker(good).take();
            host.deliver(good);
            let held: u64 = host.leases.memory.entries.values().map(|e| e.held).sum();
            prop_assert!(held <= 4 * GIB);
        }
        // The one that lies may say that it uses what it was given; it was never given what the other one has.
        host.worker(good).say();
        host.rest();
        prop_assert!(host.lease(good) >= 64 * MIB);
    }
}
