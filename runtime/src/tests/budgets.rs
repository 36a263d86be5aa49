//! Budgets with real guests: each fires, is named, and leaves a neighbour alone.

use super::*;

async fn neighbour(f: &Fixture) -> Instance {
    f.start_as("neighbour", &guests::hello(), RevisionConfig::default(), AppBudget::default()).await.expect("starts")
}

async fn goes_on(neighbour: &Instance) {
    for _ in 0..3 {
        let response = neighbour.handle(request()).await.expect("a neighbour goes on");
        response.into_body().collect().await.expect("a body");
    }
    assert_eq!(neighbour.counters().failures, 0);
}

fn usage(instance: &Instance, limit: &str) -> marcato_api::LimitUsage {
    instance.limits_used().into_iter().find(|l| l.name == limit).unwrap_or_else(|| panic!("{limit} was used"))
}

#[tokio::test]
async fn an_app_shares_its_memory_between_its_instances() {
    let f = Fixture::new();
    // Room for two sandboxes of 128 KiB.
    let budget = AppBudget { app_memory_bytes: Some(ByteCount::kib(300)), ..AppBudget::default() };
    let long = || config(|c| c.limits.cpu_ms = Millis::secs(60));
    let one = f.start_as("app", &guests::endless(), long(), budget).await.expect("starts");
    let two = f.start_as("app", &guests::hello(), long(), budget).await.expect("starts");
    let neighbour = neighbour(&f).await;
    let running: Vec<_> = (0..2)
        .map(|_| {
            let i = one.clone();
            tokio::spawn(async move { i.handle(request()).await.map(drop) })
        })
        .collect();
    until("both run", || f.runtime.usage().sandbox_bytes == ByteCount::kib(256)).await;
    let error = two.handle(request()).await.map(drop).expect_err("the app has no more");
    assert_eq!((error.kind, error.kind.status(), error.not_started), (ProblemKind::MemoryExhausted, 503, true));
    assert!(error.detail.contains("app_memory_bytes (300 KiB)"), "{}", error.detail);
    assert!(f.logged("limit app_memory_bytes (300 KiB) reached"));
    let used = usage(&two, "app_memory_bytes");
    assert_eq!((used.used, used.limit, used.fired), (256 << 10, Some(300 << 10), 1));
    goes_on(&neighbour).await;
    running.iter().for_each(tokio::task::JoinHandle::abort);
    until("all is given back", || f.runtime.usage().sandbox_bytes == ByteCount(0)).await;
    two.handle(request()).await.expect("there is room again");
}

#[tokio::test]
async fn what_the_host_holds_for_a_guest_is_limited() {
    let f = Fixture::new();
    let neighbour = neighbour(&f).await;
    let small = || config(|c| c.limits.buffer_bytes = ByteCount::kib(256));
    let flood = f.start(&guests::handles(), small()).await;
    let error = flood.handle(request()).await.map(drop).expect_err("no more handles");
    assert_eq!(error.kind, ProblemKind::GuestFailed);
    assert!(fired(&flood, "buffer_bytes") >= 1, "{:?}", flood.limits_used());
    assert!(f.logged("limit buffer_bytes (256 KiB) reached"));

    // With the interface's own error: this guest asks how the call went.
    let polite = f.start(&guests::authorities(), small()).await;
    polite.handle(request()).await.expect("an answer");
    // Its answer may be out before its sandbox has ended.
    until("it has ended", || usage(&polite, "buffer_bytes").peak > 0).await;
    let used = usage(&polite, "buffer_bytes");
    assert_eq!((used.limit, used.fired), (Some(256 << 10), 1));
    // Handles are counted a little late.
    assert!((128 << 10..=(256 + 64) << 10).contains(&used.peak), "{used:?}");

    // All of an app together.
    let tight = AppBudget { app_buffer_bytes: ByteCount::kib(128), ..AppBudget::default() };
    let app = f.start_as("tight", &guests::authorities(), RevisionConfig::default(), tight).await.expect("starts");
    app.handle(request()).await.expect("an answer");
    assert_eq!(fired(&app, "app_buffer_bytes"), 1);
    let none = AppBudget { app_buffer_bytes: ByteCount::kib(8), ..AppBudget::default() };
    let app = f.start_as("none", &guests::hello(), RevisionConfig::default(), none).await.expect("starts");
    let error = app.handle(request()).await.map(drop).expect_err("no sandbox");
    assert_eq!((error.kind, error.not_started), (ProblemKind::MemoryExhausted, true));
    goes_on(&neighbour).await;
}

#[tokio::test]
async fn a_response_comes_in_time_and_does_not_stall() {
    let f = Fixture::new();
    let neighbour = neighbour(&f).await;
    let late = |c: &mut RevisionConfig| {
        c.limits.first_byte_ms = Millis(30);
        c.limits.cpu_ms = Millis::secs(60);
    };
    let slow = f.start(&guests::endless(), config(late)).await;
    let error = slow.handle(request()).await.map(drop).expect_err("no head");
    assert_eq!((error.kind, fired(&slow, "first_byte_ms"), fired(&slow, "time_ms")), (ProblemKind::TimedOut, 1, 0));
    assert!(f.logged("limit first_byte_ms (30 ms) reached"));

    let idle = |c: &mut RevisionConfig| {
        c.limits.idle_ms = Millis(30);
        c.limits.cpu_ms = Millis::secs(60);
    };
    let stalled = f.start(&guests::stalled_body(), config(idle)).await;
    let response = stalled.handle(request()).await.expect("a head");
    let error = response.into_body().collect().await.expect_err("no byte");
    assert!(error.to_string().contains("idle_ms (30 ms)"), "{error}");
    assert_eq!(fired(&stalled, "idle_ms"), 1);
    until("the sandbox is gone", || f.runtime.usage().sandboxes == 0).await;
    goes_on(&neighbour).await;
}

#[tokio::test]
async fn a_component_that_never_fits_is_told_apart_from_a_full_host() {
    let f = Fixture::new();
    let neighbour = neighbour(&f).await;
    let small = config(|c| c.limits.memory_bytes = ByteCount::mib(1));
    let big = f.start(&guests::handler(32, "unreachable"), small).await;
    let error = big.handle(request()).await.map(drop).expect_err("no sandbox");
    assert_eq!((error.kind, error.not_started), (ProblemKind::GuestFailed, false), "another host would not help");
    assert!(f.logged("limit memory_bytes (1 MiB) reached: no sandbox could be made"));
    goes_on(&neighbour).await;
}

#[tokio::test]
async fn the_stack_is_limited_and_named() {
    let f = Fixture::new();
    let neighbour = neighbour(&f).await;
    let deep = f.start(&guests::recursion(), RevisionConfig::default()).await;
    let error = deep.handle(request()).await.map(drop).expect_err("too deep");
    assert_eq!((error.kind, fired(&deep, "stack_bytes")), (ProblemKind::GuestFailed, 1));
    assert!(f.logged("limit stack_bytes (512 KiB) reached"));
    goes_on(&neighbour).await;
}

#[tokio::test]
async fn what_is_used_is_told_and_nothing_else() {
    let f = Fixture::new();
    let instance = f.start(&guests::hello(), RevisionConfig::default()).await;
    assert_eq!(instance.limits_used(), Vec::new());
    let response = instance.handle(request()).await.expect("an answer");
    let now = usage(&instance, "concurrency");
    assert_eq!((now.used, now.peak, now.limit, now.fired), (1, 1, Some(64), 0));
    drop(response);
    instance.idle().await;
    let memory = usage(&instance, "memory_bytes");
    assert_eq!((memory.used, memory.peak, memory.scope), (0, 128 << 10, marcato_api::LimitScope::Sandbox));
    assert_eq!(usage(&instance, "concurrency").used, 0);
    assert!(instance.limits_used().iter().all(|l| l.fired == 0 && l.name != "outbound_bytes"));
}

/// A body of which nothing ever comes.
#[tokio::test]
async fn a_client_that_sends_nothing_is_not_waited_for() {
    let counters = Arc::new(crate::limits::LimitCounters::default());
    let limits = marcato_api::Limits { idle_ms: Millis(20), ..marcato_api::Limits::default() };
    let silent = StreamBody::new(futures::stream::pending()).boxed_unsync();
    let body = crate::body::UploadBody::new(silent, &limits, Arc::default(), Arc::clone(&counters));
    let begun = tokio::time::Instant::now();
    let error = body.collect().await.expect_err("too long");
    assert!(matches!(error, wasmtime_wasi_http::Error::ConnectionReadTimeout), "{error:?}");
    assert!(begun.elapsed() >= Duration::from(limits.idle_ms));
    assert_eq!(counters.fired(crate::limits::Limit::IdleMs), 1);
}

/// What leaks, if only a little, ends an app in the end.
#[tokio::test]
async fn ten_thousand_requests_leave_nothing_charged() {
    let f = Fixture::new();
    let small = |c: &mut RevisionConfig| c.limits.buffer_bytes = ByteCount::kib(256);
    let reused = |c: &mut RevisionConfig| c.reuse.max_requests = 100;
    let long = |c: &mut RevisionConfig| c.limits.cpu_ms = Millis::secs(60);
    let answers = f.start(&guests::hello(), RevisionConfig::default()).await;
    let kept = f.start(&guests::hello(), config(reused)).await;
    let greedy = f.start(&guests::authorities(), config(small)).await;
    let floods = f.start(&guests::handles(), config(small)).await;
    let traps = f.start(&guests::handler(1, "unreachable"), RevisionConfig::default()).await;
    let grows = "(loop $again (br_if $again (i32.ne (memory.grow (i32.const 100)) (i32.const -1))))
      (drop (memory.grow (i32.const 65536))) (call $answer (local.get $out))";
    let grows = f.start(&guests::handler(1, grows), RevisionConfig::default()).await;
    let stalls = f.start(&guests::stalled_body(), config(long)).await;
    for n in 0..10_000_u32 {
        let (instance, fails) = match n % 100 {
            0 => (&stalls, false),
            1..5 => (&greedy, false),
            5..7 => (&floods, true),
            7..20 => (&traps, true),
            20..25 => (&grows, false),
            25..60 => (&kept, false),
            _ => (&answers, false),
        };
        let result = instance.handle(request()).await;
        assert_eq!(result.is_err(), fails, "request {n}");
        if n % 2 == 0
            && n % 100 != 0
            && let Ok(response) = result
        {
            response.into_body().collect().await.expect("a body");
        }
    }
    let all = [answers, kept, greedy, floods, traps, grows, stalls];
    until("all sandboxes are gone", || f.runtime.usage().sandboxes == 0).await;
    for instance in &all {
        instance.idle().await;
        let held: Vec<_> = instance.limits_used().into_iter().filter(|l| l.used > 0).collect();
        assert_eq!(held, Vec::new());
    }
    assert_eq!(f.runtime.usage().sandbox_bytes, ByteCount(0));
    assert!(usage(&all[0], "app_buffer_bytes").peak > 0, "it was counted at all");
}

/// A growth beyond what the type allows is reported to the host without having been asked for.
#[tokio::test]
async fn growth_that_cannot_be_gives_back_nothing() {
    let f = Fixture::new();
    let body = "(loop $again
        (drop (memory.grow (i32.const 65536)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $again (i32.and (i32.ne (memory.grow (i32.const 1)) (i32.const -1)) (i32.lt_u (local.get $n) (i32.const 1000)))))
      (if (i32.ge_u (memory.size) (i32.const 40)) (then (unreachable)))
      (call $answer (local.get $out))";
    let instance = f.start(&guests::handler(1, body), config(|c| c.limits.memory_bytes = ByteCount::mib(2))).await;
    instance.handle(request()).await.expect("it has got no more than its limit");
    assert_eq!(usage(&instance, "memory_bytes").peak, 2 << 20);
}
