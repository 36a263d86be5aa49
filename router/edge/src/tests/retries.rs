//! What is sent again, and what never is.

use marcato_balance::BreakerPolicy;

use super::*;

#[tokio::test]
async fn what_was_not_started_goes_to_another_instance() {
    let rig = Rig::new(|_| {}).await;
    let full_house = host(&rig.socket("full"), |_| async { platform(503, "queue-full", true) });
    let free = host(&rig.socket("free"), |r| async { answer(r.into_body().collect().await.unwrap().to_bytes()) });
    rig.app("a", &[&full_house.path, &free.path]);
    let mut asked = 0;
    // Which one is asked first is random.
    for _ in 0..40 {
        let request = "POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
        let response = rig.raw(request).await;
        assert_eq!((status(&response), body(&response)), (200, "hello"));
        asked = full_house.requests();
        if asked >= 3 {
            break;
        }
    }
    assert!(asked >= 3);
    assert_eq!(rig.metric("marcato_edge_retries_total{reason=\"not_started\"}"), asked as f64);
}

#[tokio::test]
async fn an_instance_that_is_gone_is_waited_past() {
    let rig = Rig::new(|c| c.reconnect_wait_ms = marcato_api::Millis(10_000)).await;
    let old = host(&rig.socket("old"), |_| async { platform(503, "instance-gone", true) });
    let new = host(&rig.socket("new"), |_| async { answer("new") });
    rig.app("a", &[&old.path]);
    let publish = async {
        until("the old one was asked", || old.requests() > 0).await;
        rig.app("a", &[&new.path]);
    };
    let (response, ()) = tokio::join!(rig.get("a.test", "/"), publish);
    assert_eq!((status(&response), body(&response)), (200, "new"));
}

/// In virtual time: hosts that take most of the app's time each.
#[tokio::test(start_paused = true)]
async fn another_host_gets_the_app_s_whole_time() {
    let rig = Rig::new(|_| {}).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let hosts: Vec<Host> = ["one", "two"]
        .map(|name| {
            let asked = Arc::clone(&asked);
            // The first that is asked refuses after 25 s in its queue, the second answers after 25 s.
            host(&rig.socket(name), move |_| {
                let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
                async move {
                    tokio::time::sleep(Duration::from_secs(25)).await;
                    if first { platform(503, "queue-timeout", true) } else { answer("in time") }
                }
            })
        })
        .into();
    let mut app = spec("a", &["a.test"], &[&hosts[0].path, &hosts[1].path]);
    // 30 s and 10 s of grace for each host: less than both take together.
    app.limits.time_ms = marcato_api::Millis::secs(30);
    rig.publish(app.clone());
    let ask = || async {
        let began = tokio::time::Instant::now();
        let mut stream = TcpStream::connect(rig.http).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        (all, began.elapsed().as_secs())
    };
    let (response, took) = ask().await;
    assert!(status(&response) == 200 && (50..75).contains(&took), "{took} s: {response}");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    // A host that does not keep the app's limit is given up on.
    app.limits.time_ms = marcato_api::Millis::secs(5);
    rig.publish(app);
    let (response, took) = ask().await;
    assert!(status(&response) == 504 && (14..25).contains(&took), "{took} s: {response}");
}

/// A host that answers the first request of each connection and closes at the second, unread or read.
fn once_per_connection(path: &Path, also: &'static str) -> (JoinHandle<()>, Arc<AtomicUsize>) {
    let listener = UnixListener::bind(path).unwrap();
    let heads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heads);
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut buf = [0; 4096];
                for n in 0.. {
                    if !matches!(stream.read(&mut buf).await, Ok(n) if n > 0) {
                        return;
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    if n == 1 {
                        let _ = stream.write_all(also.as_bytes()).await;
                        return;
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                }
            });
        }
    });
    (task, heads)
}

#[tokio::test]
async fn a_kept_connection_that_breaks_is_retried_for_get_only() {
    let rig = Rig::new(|_| {}).await;
    let path = rig.socket("h");
    let (_task, heads) = once_per_connection(&path, "");
    rig.app("a", &[&path]);
    assert_eq!(status(&rig.get("a.test", "/1").await), 200);
    // The second request of the connection breaks it; a GET goes again, over a new one.
    assert_eq!(status(&rig.get("a.test", "/2").await), 200);
    assert_eq!(heads.load(Ordering::SeqCst), 3);
    assert_eq!(rig.metric("marcato_edge_retries_total{reason=\"idempotent\"}"), 1.0);
    // A POST may have been acted on: it fails, and is sent once only.
    let post = "POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(status(&rig.raw(post).await), 502);
    assert_eq!(heads.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_host_that_closed_its_idle_connections_costs_nothing() {
    let rig = Rig::new(|_| {}).await;
    let path = rig.socket("h");
    let first = host(&path, |_| async { answer("first") });
    rig.app("a", &[&path]);
    assert_eq!(body(&rig.get("a.test", "/").await), "first");
    first.stop().await;
    let _second = host(&path, |_| async { answer("second") });
    let post = "POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx";
    until("the edge sees the end", || rig.metric("marcato_edge_upstream_connections") == 0.0).await;
    assert_eq!(body(&rig.raw(post).await), "second");
    assert_eq!(rig.metric("marcato_edge_retries_total{reason=\"idempotent\"}"), 0.0);
}

#[tokio::test]
async fn a_host_that_restarts_is_waited_for() {
    let rig = Rig::new(|c| c.reconnect_wait_ms = marcato_api::Millis(10_000)).await;
    let path = rig.socket("h");
    rig.app("a", &[&path]);
    let start = async {
        until("a request tries", || rig.metric("marcato_edge_upstream_failed_total") >= 2.0).await;
        host(&path, |_| async { answer("back") })
    };
    let post = "POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx";
    let (response, host) = tokio::join!(rig.raw(post), start);
    assert_eq!((status(&response), body(&response)), (200, "back"));
    assert_eq!(host.requests(), 1);
}

#[tokio::test]
async fn an_answer_cut_in_its_middle_is_cut_for_the_client() {
    let rig = Rig::new(|_| {}).await;
    let path = rig.socket("h");
    let (_task, heads) = once_per_connection(&path, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
    rig.app("a", &[&path]);
    assert_eq!(status(&rig.get("a.test", "/").await), 200);
    let cut = rig.get("a.test", "/").await;
    assert!(status(&cut) == 200 && body(&cut) == "half", "{cut}");
    assert_eq!(heads.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_failing_instance_is_left_out_and_probed_back() {
    let rig = Rig::new(|c| c.breaker = BreakerPolicy { failures: 2, backoff_ms: 100, backoff_max_ms: 100 }).await;
    let good = host(&rig.socket("good"), |_| async { answer("good") });
    let path = rig.socket("bad");
    rig.app("a", &[&good.path, &path]);
    // Nobody listens at the second: each request is served all the same, and soon it is left out.
    for _ in 0..200 {
        assert_eq!(body(&rig.get("a.test", "/").await), "good");
        if rig.metric("marcato_edge_ejections_total") >= 1.0 {
            break;
        }
    }
    assert_eq!(rig.metric("marcato_edge_ejections_total"), 1.0);
    let _back = host(&path, |_| async { answer("back") });
    for n in 0.. {
        assert!(n < 2_000, "it is probed back");
        if body(&rig.get("a.test", "/").await) == "back" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let entry = Arc::clone(rig.table.load().apps().next().unwrap());
    assert!(entry.endpoints.iter().all(|e| !e.stats.is_ejected()));
    until("nothing is in flight", || entry.endpoints.iter().all(|e| e.stats.in_flight() == 0)).await;
}

#[tokio::test]
async fn the_budget_ends_a_storm() {
    let rig = Rig::new(|c| {
        c.retry_min_per_s = 1;
        c.retry_percent = 0;
    })
    .await;
    let a = host(&rig.socket("a"), |_| async { platform(503, "queue-full", true) });
    let b = host(&rig.socket("b"), |_| async { platform(503, "queue-full", true) });
    rig.app("a", &[&a.path, &b.path]);
    for _ in 0..20 {
        assert_eq!(status(&rig.get("a.test", "/").await), 503);
    }
    // One at the start, and one a second at most.
    let retries = a.requests() + b.requests() - 20;
    assert!((1..=12).contains(&retries), "{retries}");
    assert!(rig.metric("marcato_edge_retries_over_budget_total") > 0.0);
}
