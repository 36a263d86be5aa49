//! The lane with real threads: work goes there and comes home, apps get their shares, nobody is stuck.

use std::future::poll_fn;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::*;
use crate::instance::Counters;
use crate::limits::CpuMeter;

fn share(cpu_weight: u32, cpu_cap_millis: Option<u32>) -> Arc<Share> {
    Arc::new(Share::new(&AppBudget { cpu_weight, cpu_cap_millis, ..AppBudget::default() }))
}

fn payer(shares: &Shares, share: &Arc<Share>) -> Payer {
    let counters = Arc::new(Counters::new());
    Payer { shares: shares.clone(), share: Arc::clone(share), meter: Arc::new(CpuMeter::default()), counters }
}

/// Computes for so long, measured by the thread's own clock as the meter does.
fn compute(payer: &Payer, ms: u64) {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(ms) || payer.meter.turn() == crate::limits::Turn::Short {
        std::hint::black_box(());
    }
}

/// A guest that computes in turns until it is told to stop; counts them.
async fn spin(payer: Payer, stop: Arc<AtomicBool>, turns: Arc<AtomicU64>) {
    payer.meter.grant(u64::MAX);
    while !stop.load(Ordering::Relaxed) {
        compute(&payer, 1);
        turns.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }
}

/// Asks until it holds; the test's own time limit is the runner's.
async fn until(holds: impl Fn() -> bool) {
    let mut pause = tokio::time::interval(Duration::from_millis(1));
    while !holds() {
        pause.tick().await;
    }
}

/// Runs so many guests of each app until they used so much together; what each app used. Counts from when each guest had
/// its third turn: the first is on a thread of connections and not in line.
async fn compete(apps: &[(Arc<Share>, usize)], shares: &Shares, total: Duration) -> Vec<u64> {
    let stop = Arc::new(AtomicBool::new(false));
    let (mut guests, mut counts) = (Vec::new(), Vec::new());
    for (share, count) in apps {
        for _ in 0..*count {
            let (payer, turns): (_, Arc<AtomicU64>) = (payer(shares, share), Arc::default());
            counts.push(Arc::clone(&turns));
            let mut task = Task::new(payer.clone(), spin(payer, Arc::clone(&stop), turns));
            guests.push(tokio::spawn(async move { poll_fn(|cx| task.poll(cx)).await }));
        }
    }
    until(|| counts.iter().all(|turns| turns.load(Ordering::Relaxed) > 2)).await;
    let used = || apps.iter().map(|(share, _)| share.seen().used_ns).collect::<Vec<_>>();
    let before = used();
    let since = || used().iter().zip(&before).map(|(now, before)| now - before).collect::<Vec<_>>();
    let total = u64::try_from(total.as_nanos()).unwrap();
    until(|| since().iter().sum::<u64>() >= total).await;
    let result = since();
    stop.store(true, Ordering::Relaxed);
    for guest in guests {
        assert!(guest.await.unwrap().is_ok());
    }
    result
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_that_compute_share_by_the_weight_of_their_apps_and_not_by_their_number() {
    let shares = Shares::new(Vec::new(), true).unwrap();
    let apps = [(share(100, None), 20), (share(300, None), 2)];
    let used = compete(&apps, &shares, Duration::from_millis(300)).await;
    let ratio = used[1] as f64 / used[0] as f64;
    assert!((2.0..=4.0).contains(&ratio), "{used:?}");
}

#[tokio::test]
async fn threads_of_the_lane_are_nicer_than_others() {
    async fn nice() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // Behind the name, which may hold anything; see proc_pid_stat(5).
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse().unwrap()
    }
    let shares = Shares::new(Vec::new(), true).unwrap();
    let share = share(100, None);
    let here = nice().await;
    share.behind.store(true, Ordering::Relaxed);
    let mut task = Task::new(payer(&shares, &share), nice());
    let there = poll_fn(|cx| task.poll(cx)).await.unwrap();
    // What the tests run under may be nice already; the lane has its number whatever that is.
    assert_eq!((there, here <= there), (5, true), "{here}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_hold_over_several_threads() {
    let shares = Shares::new(vec![Handle::current(), Handle::current()], true).unwrap();
    let apps = [(share(100, None), 6), (share(300, None), 3)];
    let used = compete(&apps, &shares, Duration::from_millis(600)).await;
    let ratio = used[1] as f64 / used[0] as f64;
    assert!((2.0..=4.0).contains(&ratio), "{used:?}");
}

#[tokio::test]
async fn a_long_turn_goes_to_the_lane_and_calm_work_comes_home() {
    let shares = Shares::new(Vec::new(), true).unwrap();
    let payer = payer(&shares, &share(100, None));
    payer.meter.grant(u64::MAX);
    let here = std::thread::current().id();
    let work = {
        let payer = payer.clone();
        async move {
            let mut seen = vec![std::thread::current().id()];
            compute(&payer, 1);
            tokio::task::yield_now().await;
            seen.push(std::thread::current().id());
            // Short turns from now on, until it is home.
            while std::thread::current().id() != here {
                tokio::task::yield_now().await;
            }
            seen
        }
    };
    let mut task = Task::new(payer, work);
    let seen = poll_fn(|cx| task.poll(cx)).await.unwrap();
    assert!(seen[0] == here && seen[1] != here);
}

#[tokio::test]
async fn a_capped_app_gets_its_cap_and_is_not_stuck() {
    let shares = Shares::new(Vec::new(), true).unwrap();
    // A fifth of a core.
    let capped = share(100, Some(200));
    let stop = Arc::new(AtomicBool::new(false));
    let ticker = std::thread::spawn({
        let (shares, stop) = (shares.clone(), Arc::clone(&stop));
        move || {
            let mut last = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                std::thread::yield_now();
                let elapsed = last.elapsed();
                if elapsed >= Duration::from_millis(2) {
                    last += elapsed;
                    shares.balance(elapsed);
                }
            }
        }
    });
    let used = compete(&[(Arc::clone(&capped), 4)], &shares, Duration::from_millis(100)).await;
    stop.store(true, Ordering::Relaxed);
    ticker.join().unwrap();
    assert!(used[0] >= 100_000_000 && capped.times_capped() > 0);
}

#[tokio::test]
async fn work_that_is_dropped_in_the_lane_ends_and_leaves_its_place() {
    let shares = Shares::new(Vec::new(), true).unwrap();
    let app = share(100, None);
    for _ in 0..20 {
        let payer = payer(&shares, &app);
        let ended = Arc::new(());
        let held = Arc::clone(&ended);
        let mut task = Task::new(payer.clone(), async move {
            let _held = held;
            spin(payer, Arc::default(), Arc::default()).await;
        });
        // Polled once: it has had a long turn here and is in the lane.
        assert!(poll_fn(|cx| std::task::Poll::Ready(task.poll(cx).is_pending())).await);
        drop(task);
        until(|| Arc::strong_count(&ended) == 1).await;
    }
    let used = compete(&[(app, 1)], &shares, Duration::from_millis(20)).await;
    assert!(used[0] > 0);
}

#[tokio::test]
async fn a_panic_in_the_lane_is_an_error_and_leaves_its_place() {
    let shares = Shares::new(Vec::new(), true).unwrap();
    let app = share(100, None);
    let payer = payer(&shares, &app);
    payer.meter.grant(u64::MAX);
    let work = {
        let payer = payer.clone();
        async move {
            compute(&payer, 1);
            tokio::task::yield_now().await;
            let none: Option<u8> = std::hint::black_box(None);
            none.expect("a defect of the host");
        }
    };
    let mut task = Task::new(payer, work);
    let lost = poll_fn(|cx| task.poll(cx)).await.unwrap_err();
    assert!(lost.0.is_panic());
    compete(&[(app, 1)], &shares, Duration::from_millis(20)).await;
}
