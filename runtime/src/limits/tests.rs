//! Memory over many memories, and the meter.

use super::*;

#[test]
fn memory_is_added_up_and_given_back() {
    let instance = Arc::new(InstanceMemory { used: AtomicU64::new(0), limit: 300 });
    let host = Arc::new(HostTotals::default());
    let mut one = SandboxLimiter::new(200, Arc::clone(&instance), Arc::clone(&host));
    let mut two = SandboxLimiter::new(200, Arc::clone(&instance), Arc::clone(&host));
    let grow = |l: &mut SandboxLimiter, from, to| l.memory_growing(from, to, None).expect("no trap");
    // Two memories of one sandbox count together.
    assert!(grow(&mut one, 0, 100));
    assert!(grow(&mut one, 0, 100));
    assert!(!grow(&mut one, 100, 101));
    assert_eq!(one.fired.take(), Some(Limit::MemoryBytes));
    assert!(grow(&mut two, 0, 100));
    assert!(!grow(&mut two, 100, 101));
    assert_eq!(two.fired.take(), Some(Limit::InstanceMemoryBytes));
    assert_eq!(host.memory.load(Ordering::Relaxed), 300);
    // What was granted and could not be had is given back, once.
    two.memory_grow_failed(wasmtime::Error::msg("no pages")).expect("no trap");
    two.memory_grow_failed(wasmtime::Error::msg("no pages")).expect("no trap");
    assert_eq!(instance.used.load(Ordering::Relaxed), 200);
    assert!(!grow(&mut one, 0, usize::MAX));
    drop((one, two));
    assert_eq!(instance.used.load(Ordering::Relaxed), 0);
    assert_eq!(host.memory.load(Ordering::Relaxed), 0);
}

#[test]
fn the_meter_counts_this_threads_time_and_stops_at_its_budget() {
    let meter = CpuMeter::default();
    meter.grant(2_000_000);
    meter.poll(|| assert!(!meter.check()));
    let mut turns = 0_u64;
    meter.poll(|| {
        while !meter.check() {
            turns = std::hint::black_box(turns + 1);
        }
    });
    assert!(meter.exhausted());
    assert!(meter.used_ns() >= 2_000_000);
    // The next request has a budget of its own.
    meter.grant(1_000_000_000);
    meter.poll(|| assert!(!meter.check()));
}
