//! The arithmetic of leases: how the memory and the sandboxes of a host are divided among its workers. Pure: no clock,
//! no process, no message; `lessor` tells workers what comes out of it.
//!
//! All that there is is given out, for growth of a memory cannot wait for it; what lies idle is taken back when another
//! worker lacks it. A worker is owed what it needs, up to a share of the whole by its weight, as long as others need
//! theirs (weighted max-min fairness); and nobody ever holds what is set aside for the next worker to come.
//!
//! What is lowered counts as held until the worker says that it keeps to it, and what it uses beyond as long as it does.
//! So whatever is in flight, and in whatever order: what workers may use is never more than there is.

use std::collections::BTreeMap;

/// A worker's process, by a number that no other has.
pub(super) type Holder = u64;

/// Memory that a worker should have before it needs it, at most.
const CHUNK_BYTES: u64 = 64 << 20;
/// The same of sandboxes.
const CHUNK_SANDBOXES: u64 = 16;

/// Memory in bytes, and sandboxes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) memory: u64,
    pub(super) sandboxes: u64,
}

/// What a worker says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Statement {
    /// The last lease that it keeps to.
    pub(super) number: u64,
    /// What it used after it took that lease.
    pub(super) used: Amount,
    /// What it wants beyond that, now.
    pub(super) wants: Amount,
}

/// What a worker may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Granted {
    /// Later ones have higher numbers.
    pub(super) number: u64,
    pub(super) amount: Amount,
    /// Whether it could get more by wanting it.
    pub(super) more: bool,
}

/// Who has what of both.
#[derive(Debug)]
pub(super) struct Leases {
    memory: Book,
    sandboxes: Book,
    number: u64,
    told: BTreeMap<Holder, Granted>,
}

impl Leases {
    pub(super) fn new(total: Amount) -> Self {
        Self {
            memory: Book::new(total.memory, CHUNK_BYTES),
            sandboxes: Book::new(total.sandboxes, CHUNK_SANDBOXES),
            number: 0,
            told: BTreeMap::new(),
        }
    }

    /// A new worker. Its first lease comes from the next [`Self::settle`].
    pub(super) fn join(&mut self, holder: Holder, weight: Amount) {
        self.memory.join(holder, weight.memory);
        self.sandboxes.join(holder, weight.sandboxes);
        self.told.insert(holder, Granted::default());
    }

    /// Its process is gone, and what it held is free.
    pub(super) fn leave(&mut self, holder: Holder) {
        self.memory.entries.remove(&holder);
        self.sandboxes.entries.remove(&holder);
        self.told.remove(&holder);
    }

    /// What it is weighed by against others.
    pub(super) fn weigh(&mut self, holder: Holder, weight: Amount) {
        self.memory.weigh(holder, weight.memory);
        self.sandboxes.weigh(holder, weight.sandboxes);
    }

    /// Takes down what a worker says. It is believed only what it could be.
    pub(super) fn hear(&mut self, holder: Holder, said: &Statement) {
        self.memory.hear(holder, said.number, said.used.memory, said.wants.memory);
        self.sandboxes.hear(holder, said.number, said.used.sandboxes, said.wants.sandboxes);
    }

    /// Divides anew. Gives the leases that changed.
    pub(super) fn settle(&mut self) -> Vec<(Holder, Granted)> {
        self.number += 1;
        self.memory.settle(self.number);
        self.sandboxes.settle(self.number);
        let mut changed = Vec::new();
        for (holder, told) in &mut self.told {
            let (Some(memory), Some(sandboxes)) = (self.memory.entries.get(holder), self.sandboxes.entries.get(holder))
            else {
                continue;
            };
            let amount = Amount { memory: memory.lease, sandboxes: sandboxes.lease };
            let more = memory.more || sandboxes.more;
            if amount != told.amount || more != told.more || told.number == 0 {
                *told = Granted { number: self.number, amount, more };
                changed.push((*holder, *told));
            }
        }
        changed
    }

    /// The most memory that it may use now, with what it has not given back yet.
    pub(super) fn held_memory(&self, holder: Holder) -> u64 {
        self.memory.entries.get(&holder).map_or(0, |e| e.held)
    }

    /// Whether it has yet to give back what it was told to.
    pub(super) fn is_over(&self, holder: Holder) -> bool {
        let over = |book: &Book| book.entries.get(&holder).is_some_and(|e| e.held > e.lease);
        over(&self.memory) || over(&self.sandboxes)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    weight: u64,
    /// What it was told, or is about to be.
    lease: u64,
    /// The most that it may use until it says that it keeps to its lease. At least `lease`.
    held: u64,
    used: u64,
    wants: u64,
    /// The number of the last lease that was lower than the one before.
    fell: u64,
    /// It could get more.
    more: bool,
}

/// One resource.
#[derive(Debug)]
struct Book {
    total: u64,
    /// Set aside for the next worker to come.
    reserve: u64,
    /// What a worker should have before it needs it.
    chunk: u64,
    entries: BTreeMap<Holder, Entry>,
}

impl Book {
    fn new(total: u64, most: u64) -> Self {
        Self { total, reserve: (total / 16).min(most), chunk: (total / 64).clamp(1, most), entries: BTreeMap::new() }
    }

    fn budget(&self) -> u64 {
        self.total - self.reserve
    }

    fn join(&mut self, holder: Holder, weight: u64) {
        let weight = weight.max(1);
        let all: u64 = self.entries.values().map(|e| e.weight).fold(weight, u64::saturating_add);
        // As much as it would have if all were busy; what it does not use is taken back when somebody else would.
        let wants = part(self.budget(), weight, all.into());
        self.entries.insert(holder, Entry { weight, wants, ..Entry::default() });
    }

    fn weigh(&mut self, holder: Holder, weight: u64) {
        if let Some(entry) = self.entries.get_mut(&holder) {
            entry.weight = weight.max(1);
        }
    }

    fn hear(&mut self, holder: Holder, number: u64, used: u64, wants: u64) {
        let most = self.total;
        let Some(entry) = self.entries.get_mut(&holder) else { return };
        entry.used = used.min(entry.held);
        entry.wants = wants.min(most);
        if number >= entry.fell {
            entry.held = entry.lease.max(entry.used);
        }
    }

    /// What it should have: what it uses, what it wants, and something in advance.
    fn need(&self, entry: &Entry) -> u64 {
        let wanted = entry.used.saturating_add(entry.wants);
        wanted.saturating_add((wanted / 2).max(self.chunk)).min(self.total)
    }

    fn settle(&mut self, number: u64) {
        let asks: Vec<(u64, u64)> = self.entries.values().map(|e| (self.need(e), e.weight)).collect();
        let fair = Fair::divide(self.budget(), &asks);
        let owed: BTreeMap<Holder, u64> = self.entries.keys().copied().zip(fair.parts.iter().copied()).collect();
        let mut free = self.total - self.entries.values().map(|e| e.held).sum::<u64>();
        let (chunk, reserve) = (self.chunk, self.reserve);
        // The reserve is for those who have next to nothing.
        for (holder, entry) in &mut self.entries {
            entry.raise(owed[holder].min(chunk), &mut free);
        }
        let mut usable = free.saturating_sub(reserve);
        let aside = free - usable;
        let mut poorest: Vec<(u64, Holder)> = self.entries.iter().map(|(h, e)| (e.lease, *h)).collect();
        poorest.sort_unstable();
        for (_, holder) in poorest {
            if let Some(entry) = self.entries.get_mut(&holder) {
                entry.raise(owed[&holder], &mut usable);
            }
        }
        let lacking: u64 = self.entries.iter().map(|(h, e)| owed[h].saturating_sub(e.lease)).sum();
        let lacking = lacking + (reserve - aside);
        if lacking > 0 {
            self.recall(lacking, &owed, number);
        } else {
            self.spread(usable);
        }
        for ((holder, entry), (need, weight)) in self.entries.iter_mut().zip(&asks) {
            let most = fair.most(owed[holder], *need, *weight);
            // What is lost by rounding is not worth asking for.
            entry.more = entry.lease.saturating_add(chunk.max(2)) <= most;
        }
    }

    /// Lowers leases of those who have more than they are owed, idle ones first, until what comes back is enough.
    fn recall(&mut self, lacking: u64, owed: &BTreeMap<Holder, u64>, number: u64) {
        // Comes back anyway, once workers say so.
        let coming: u64 = self.entries.values().map(|e| e.held - e.lease.max(e.used)).sum();
        let mut lacking = lacking.saturating_sub(coming);
        for idle in [true, false] {
            let keep = |holder: &Holder, e: &Entry| if idle { owed[holder].max(e.used) } else { owed[holder] };
            let mut richest: Vec<(u64, Holder)> =
                self.entries.iter().map(|(h, e)| (e.lease.saturating_sub(keep(h, e)), *h)).collect();
            richest.sort_unstable_by(|a, b| b.cmp(a));
            for (excess, holder) in richest {
                let cut = excess.min(lacking);
                if cut == 0 {
                    break;
                }
                if let Some(entry) = self.entries.get_mut(&holder) {
                    entry.lease -= cut;
                    entry.fell = number;
                    lacking -= cut;
                }
            }
        }
    }

    /// Gives out what nobody lacks, so that all come to have the same, in parts that are worth a message.
    fn spread(&mut self, mut usable: u64) {
        let many = self.entries.len() as u64;
        if many == 0 {
            return;
        }
        let part = usable / many;
        if part == 0 || (many > 1 && part < self.chunk / 2) {
            return;
        }
        let even = self.budget() / many;
        for entry in self.entries.values_mut() {
            entry.raise(even, &mut usable);
        }
        let part = usable / many;
        for entry in self.entries.values_mut() {
            let to = entry.lease.saturating_add(part);
            entry.raise(to, &mut usable);
        }
    }
}

impl Entry {
    /// Raises the lease towards `to`, as far as there is something free. What it holds anyway costs nothing.
    fn raise(&mut self, to: u64, free: &mut u64) {
        if to <= self.lease {
            return;
        }
        let cost = to.saturating_sub(self.held).min(*free);
        *free -= cost;
        self.lease = to.min(self.held + cost);
        self.held = self.held.max(self.lease);
    }
}

/// `whole * weight / all`, without overflow.
fn part(whole: u64, weight: u64, all: u128) -> u64 {
    let part = u128::from(whole) * u128::from(weight) / all.max(1);
    u64::try_from(part).unwrap_or(whole).min(whole)
}

/// Weighted max-min fairness: nobody gets more than they ask for, and who gets less gets at least as much for their
/// weight as anybody else.
struct Fair {
    /// In the order of the asks.
    parts: Vec<u64>,
    budget: u64,
    asked: u128,
    /// Where not all asks are met: what was left to those whose are not, and their weight together.
    level: Option<(u64, u128)>,
}

impl Fair {
    fn divide(budget: u64, asks: &[(u64, u64)]) -> Self {
        let mut order: Vec<usize> = (0..asks.len()).collect();
        order.sort_by_key(|at| {
            let (need, weight) = asks[*at];
            // Least for its weight first, in steps that are fine enough for either.
            (u128::from(need) << 64) / u128::from(weight.max(1))
        });
        let mut all: u128 = asks.iter().map(|(_, weight)| u128::from(*weight)).sum();
        let (mut parts, mut rest, mut level) = (vec![0; asks.len()], budget, None);
        for at in order {
            let (need, weight) = asks[at];
            let share = part(rest, weight, all);
            if need > share && level.is_none() {
                level = Some((rest, all));
            }
            parts[at] = need.min(share);
            rest -= parts[at];
            all -= u128::from(weight);
        }
        Self { parts, budget, asked: asks.iter().map(|(need, _)| u128::from(*need)).sum(), level }
    }

    /// About what somebody would get who asked for everything.
    fn most(&self, has: u64, need: u64, weight: u64) -> u64 {
        match self.level {
            Some((rest, all)) => part(rest, weight, all).max(has),
            None => {
                let others = self.asked - u128::from(need);
                u64::try_from(u128::from(self.budget).saturating_sub(others)).unwrap_or(0)
            }
        }
    }
}

#[cfg(test)]
mod tests;
