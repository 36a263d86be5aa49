//! What an app is charged for, with real guests: each request once, bytes as they were, memory as long as it was held.

use super::*;

#[tokio::test]
async fn each_request_that_a_guest_was_started_for_counts_once() {
    let f = Fixture::new();
    let long = |c: &mut RevisionConfig| {
        c.limits.cpu_ms = Millis::secs(60);
        c.concurrency = 1;
        c.queue = 0;
    };
    let head = "GET / HTTP/1.1\r\nhost: app.localhost\r\nx-request-id: r1\r\n\r\n".len() as u64;
    let good = f.start(&guests::hello(), RevisionConfig::default()).await;
    for _ in 0..3 {
        good.handle(request()).await.expect("an answer").into_body().collect().await.expect("a body");
    }
    let body = Full::new(Bytes::from_static(b"twelve bytes")).map_err(|e| match e {}).boxed_unsync();
    good.handle(with_body(body)).await.expect("an answer").into_body().collect().await.expect("a body");
    let counted = good.counters();
    assert_eq!((counted.started, counted.bytes_in), (4, 4 * head), "a body that nobody reads does not count");
    assert_eq!(counted.bytes_out, 4 * "HTTP/1.1 200 OK\r\n\r\n".len() as u64);

    // It fails after it has answered: two of the other counters, and one request.
    let late = f.start(&guests::answer_then_loop(), config(|c| c.limits.cpu_ms = Millis(30))).await;
    drop(late.handle(request()).await);
    until("the loop is ended", || fired(&late, "cpu_ms") == 1).await;
    assert_eq!(late.counters().started, 1);

    let trap = f.start(&guests::trap(), RevisionConfig::default()).await;
    trap.handle(request()).await.map(drop).expect_err("a trap");
    assert_eq!((trap.counters().started, trap.counters().bytes_out), (1, 0));

    // Its client leaves; another one finds no place, and no guest is started for it.
    let busy = f.start(&guests::endless(), config(long)).await;
    let left = tokio::spawn({
        let busy = busy.clone();
        async move { busy.handle(request()).await.map(drop) }
    });
    until("it runs", || f.runtime.usage().sandboxes == 1).await;
    busy.handle(request()).await.map(drop).expect_err("no place");
    assert_eq!(busy.counters().started, 0, "it has not ended");
    left.abort();
    until("it is gone", || busy.in_flight() == 0).await;
    let counted = busy.counters();
    assert_eq!((counted.started, counted.requests, counted.failures), (1, 0, 0));
    assert!(counted.cpu_us > 0 && counted.bytes_in == head);

    let tight = AppBudget { app_memory_bytes: Some(ByteCount::kib(64)), ..AppBudget::default() };
    let none = f.start_as("none", &guests::hello(), RevisionConfig::default(), tight).await.expect("starts");
    assert!(none.handle(request()).await.map(drop).expect_err("no memory").not_started);
    assert_eq!((none.counters().started, none.counters().bytes_in), (0, 0));
}

/// What is kept for the next request is held, and what runs is.
#[tokio::test]
async fn memory_counts_as_long_as_it_is_held() {
    const SANDBOX: u64 = 128 << 10;
    let f = Fixture::new();
    let kept = |c: &mut RevisionConfig| {
        c.reuse.max_requests = 10;
        c.reuse.idle_ms = Millis::secs(60);
    };
    let instance = f.start(&guests::hello(), config(kept)).await;
    let asked = std::time::Instant::now();
    drop(instance.handle(request()).await.expect("an answer"));
    let answered = std::time::Instant::now();
    let held = || instance.counters().memory_byte_ms / SANDBOX;
    until("it was held for 200 ms", || held() >= 200).await;
    let (least, most) = (answered.elapsed(), asked.elapsed());
    assert!(u128::from(held()) + 1 >= least.as_millis(), "{} ms, {least:?}", held());
    assert!(200 <= most.as_millis(), "{most:?}");
    // A second one, which grows: by 32 pages of 64 KiB.
    let grown = f.start(&guests::grow(32), config(kept)).await;
    drop(grown.handle(request()).await.expect("an answer"));
    let size = SANDBOX + (32 << 16);
    assert_eq!(f.runtime.usage().sandbox_bytes, ByteCount(SANDBOX + size));
    until("that one too", || grown.counters().memory_byte_ms >= 100 * size).await;

    let fresh = f.start(&guests::hello(), RevisionConfig::default()).await;
    drop(fresh.handle(request()).await.expect("an answer"));
    fresh.idle().await;
    let once = fresh.counters().memory_byte_ms;
    until("time went by", || held() >= 500).await;
    assert_eq!(fresh.counters().memory_byte_ms, once, "what is not held costs nothing");
}
