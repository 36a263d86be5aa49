//! Memory over many memories, and the meter.

use super::*;

fn account(budget: &marcato_api::AppBudget) -> Arc<AppAccount> {
    Arc::new(AppAccount::new(budget))
}

fn limiter(memory: u64, instance: Arc<MemoryTotal>, host: &Arc<HostTotals>) -> SandboxLimiter {
    let app = account(&marcato_api::AppBudget::default());
    SandboxLimiter::new(memory, instance, app, Arc::clone(host), Arc::default())
}

#[test]
fn the_apps_total_holds_over_its_instances() {
    let host = Arc::new(HostTotals::new(u32::MAX, marcato_api::Bytes(1000)));
    let budget = marcato_api::AppBudget { app_memory_bytes: Some(marcato_api::Bytes(150)), ..Default::default() };
    let app = account(&budget);
    let sandbox = || {
        let instance = Arc::new(MemoryTotal::new(200));
        SandboxLimiter::new(200, instance, Arc::clone(&app), Arc::clone(&host), Arc::default())
    };
    let (mut one, mut two) = (sandbox(), sandbox());
    assert!(one.memory_growing(0, 100, None).expect("no trap"));
    assert!(!two.memory_growing(0, 51, None).expect("no trap"));
    assert_eq!(two.fired.take(), Some(Limit::AppMemoryBytes));
    assert_eq!((two.instance.used(), app.memory.used(), host.memory.used()), (0, 100, 100), "nothing stays charged");
    assert!(two.memory_growing(0, 50, None).expect("no trap"));
    // Another app of the host goes on.
    let mut other = limiter(200, Arc::new(MemoryTotal::new(200)), &host);
    assert!(other.memory_growing(0, 100, None).expect("no trap"));
    drop((one, two, other));
    assert_eq!((app.memory.used(), app.memory.peak(), host.memory.used()), (0, 150, 0));
}

#[test]
fn memory_is_added_up_and_given_back() {
    let instance = Arc::new(MemoryTotal::new(300));
    let host = Arc::new(HostTotals::new(u32::MAX, marcato_api::Bytes(1000)));
    let mut one = limiter(200, Arc::clone(&instance), &host);
    let mut two = limiter(200, Arc::clone(&instance), &host);
    let grow = |l: &mut SandboxLimiter, from, to| l.memory_growing(from, to, None).expect("no trap");
    // Two memories of one sandbox count together.
    assert!(grow(&mut one, 0, 100));
    assert!(grow(&mut one, 0, 100));
    assert!(!grow(&mut one, 100, 101));
    assert_eq!(one.fired.take(), Some(Limit::MemoryBytes));
    assert!(grow(&mut two, 0, 100));
    assert!(!grow(&mut two, 100, 101));
    assert_eq!(two.fired.take(), Some(Limit::InstanceMemoryBytes));
    assert_eq!(host.memory.used(), 300);
    // wasmtime tells of growth that it never asked for: what is in use stays counted.
    two.memory_grow_failed(wasmtime::Error::msg("no pages")).expect("no trap");
    assert_eq!(instance.used(), 300);
    assert!(!two.memory_growing(0, 100, Some(99)).expect("no trap"), "more than the memory may have by its type");
    assert_eq!(two.fired, None);
    assert!(!grow(&mut one, 0, usize::MAX));
    drop((one, two));
    assert_eq!(instance.used(), 0);
    assert_eq!(host.memory.used(), 0);
}

#[test]
fn the_hosts_total_holds_over_all_instances() {
    let host = Arc::new(HostTotals::new(u32::MAX, marcato_api::Bytes(150)));
    let limiter = || limiter(200, Arc::new(MemoryTotal::new(200)), &host);
    let (mut one, mut two) = (limiter(), limiter());
    assert!(one.memory_growing(0, 100, None).expect("no trap"));
    assert!(!two.memory_growing(0, 51, None).expect("no trap"));
    assert_eq!(two.fired.take(), Some(Limit::HostMemory));
    assert_eq!(two.instance.used(), 0, "the instance is not charged for what the host refused");
    assert!(two.memory_growing(0, 50, None).expect("no trap"));
    drop(one);
    assert_eq!(host.memory.used(), 50);
    assert!(two.memory_growing(50, 150, None).expect("no trap"));
    drop(two);
    assert_eq!(host.memory.used(), 0);
}

#[test]
fn the_hosts_total_holds_between_threads() {
    const LIMIT: u64 = 1000;
    let host = Arc::new(HostTotals::new(u32::MAX, marcato_api::Bytes(LIMIT)));
    std::thread::scope(|scope| {
        for size in 1..=8 {
            let host = &host;
            scope.spawn(move || {
                for _ in 0..2000 {
                    let instance = Arc::new(MemoryTotal::new(u64::MAX));
                    let mut sandbox = limiter(u64::MAX, instance, host);
                    let (mut had, mut refused) = (0, false);
                    while !refused && had < 500 {
                        let next = had + 37 * size;
                        refused = !sandbox.memory_growing(had, next, None).expect("no trap");
                        if !refused {
                            had = next;
                        }
                        assert!(host.memory.used() <= LIMIT);
                    }
                }
            });
        }
    });
    assert_eq!(host.memory.used(), 0);
}

#[test]
fn the_meter_counts_this_threads_time_and_stops_at_its_budget() {
    let meter = CpuMeter::default();
    meter.grant(2_000_000);
    meter.poll(TURN, || assert_eq!(meter.turn(), Turn::Short));
    let mut turns = 0_u64;
    meter.poll(TURN, || {
        while meter.turn() != Turn::Exhausted {
            turns = std::hint::black_box(turns + 1);
        }
    });
    assert!(meter.exhausted());
    assert!(meter.used_ns() >= 2_000_000);
    // The next request has a budget of its own.
    meter.grant(1_000_000_000);
    meter.poll(TURN, || assert_eq!(meter.turn(), Turn::Short));
    meter.poll(TURN, || while meter.turn() == Turn::Short {});
    meter.poll(TURN, || assert_eq!(meter.turn(), Turn::Short, "a new turn"));
    assert!(meter.used_ns() >= 3_000_000);
}
