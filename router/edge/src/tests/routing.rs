//! Which app answers, which refusal says what, and what headers pass.

use marcato_api::Millis;

use super::*;
use crate::IpRange;

#[tokio::test]
async fn host_and_prefix_lead_to_apps() {
    let rig = Rig::new(|_| {}).await;
    let one = host(&rig.socket("one"), |_| async { answer("one") });
    let two = host(&rig.socket("two"), |_| async { answer("two") });
    rig.publish(spec("one", &["x.test"], &[&one.path]));
    rig.publish(spec("two", &["x.test/api", "y.test"], &[&two.path]));
    for (name, path, expected) in [
        ("x.test", "/", "one"),
        ("X.Test.:8080", "/apiary?q=/api", "one"),
        ("x.test", "/api/v1?x", "two"),
        ("y.test", "/", "two"),
    ] {
        let response = rig.get(name, path).await;
        assert_eq!((status(&response), body(&response)), (200, expected), "{name}{path}");
    }
    assert_eq!(two.seen.lock().unwrap()[0].uri, "/api/v1?x");
    let response = rig.raw("GET http://y.test/abs?q HTTP/1.1\r\nHost: y.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((status(&response), body(&response)), (200, "two"));
    assert_eq!(two.last().uri, "/abs?q");
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let rig = Rig::new(|c| c.host_grace_ms = Millis(0)).await;
    let slow = host(&rig.socket("slow"), |_| std::future::pending());
    let mut app = spec("slow", &["slow.test"], &[&slow.path]);
    app.limits.time_ms = Millis(50);
    rig.publish(app);
    rig.app("gone", &[&rig.socket("nobody")]);
    rig.app("none", &[]);
    let mut app = spec("stopped", &["stopped.test"], &[]);
    app.stopped = true;
    rig.publish(app);
    for (name, expected, retry, slug) in [
        ("nowhere.test", 404, false, "no-route"),
        ("gone.test", 502, false, "bad-gateway"),
        ("none.test", 503, true, "no-instance"),
        ("stopped.test", 503, true, "app-stopped"),
        ("slow.test", 504, false, "timed-out"),
    ] {
        let request =
            format!("GET / HTTP/1.1\r\nHost: {name}\r\nAccept: application/json\r\nConnection: close\r\n\r\n");
        let response = rig.raw(request).await;
        assert_eq!(status(&response), expected, "{response}");
        assert_eq!(response.contains("retry-after: "), retry, "{response}");
        assert!(response.contains("x-request-id: ") && response.contains("application/problem+json"), "{response}");
        assert!(body(&response).contains(&format!("urn:marcato:problem:{slug}")), "{response}");
        assert!(!response.contains("x-marcato") && !response.contains("sock"), "{response}");
    }
    let page = rig.raw("GET / HTTP/1.1\r\nHost: no.test\r\nAccept: text/html\r\nConnection: close\r\n\r\n").await;
    assert!(page.contains("text/html") && body(&page).starts_with("<!doctype html>"), "{page}");
    assert_eq!(rig.metric("marcato_edge_requests_total{class=\"5xx\"}"), 4.0);
    assert_eq!(rig.metric("marcato_edge_requests_total{class=\"4xx\"}"), 2.0);
}

#[tokio::test]
async fn platform_errors_of_a_host_become_the_edge_s_own() {
    let rig = Rig::new(|_| {}).await;
    let h = host(&rig.socket("h"), |r| async move {
        match r.uri().path() {
            "/cpu" => platform(504, "cpu-exhausted", false),
            "/queue" => platform(503, "queue-full", true),
            "/odd" => platform(200, "nonsense", false),
            _ => Response::builder().status(503).body(full("the guest's own")).unwrap(),
        }
    });
    rig.app("a", &[&h.path]);
    for (path, expected) in [("/cpu", 504), ("/queue", 503), ("/odd", 500)] {
        let response = rig.get("a.test", path).await;
        assert_eq!(status(&response), expected, "{response}");
        assert!(!response.contains("internal words") && !response.contains("x-marcato"), "{response}");
    }
    let response = rig.get("a.test", "/own").await;
    assert_eq!((status(&response), body(&response)), (503, "the guest's own"));
    // All over connections that were kept, the one before being done.
    assert_eq!(h.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn internal_and_hop_by_hop_headers_stop_here() {
    let rig = Rig::new(|_| {}).await;
    let h = host(&rig.socket("h"), |_| async {
        Response::builder()
            .header("x-marcato-secret", "1")
            .header("x-request-id", "forged")
            .header("x-kept", "1")
            .header("connection", "x-named")
            .header("x-named", "1")
            .header("keep-alive", "timeout=5")
            .body(full("ok"))
            .unwrap()
    });
    rig.app("a", &[&h.path]);
    let response = rig
        .raw(
            "GET / HTTP/1.1\r\nHost: a.test:81\r\nX-Marcato-Instance: other\r\nx-marcato-x: 1\r\nX-Request-Id: mine\r\n\
             Connection: close, X-Drop\r\nX-Drop: 1\r\nTE: trailers\r\nProxy-Authorization: x\r\nX-Keep: 1\r\n\
             X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\r\n",
        )
        .await;
    let head = h.last().headers;
    let get = |name: &str| head.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(get("x-marcato-instance"), ["a-0"]);
    assert_eq!(get("host"), ["a.test:81"]);
    assert_eq!(get("x-keep"), ["1"]);
    assert_eq!(get("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(get("x-forwarded-proto"), ["http"]);
    assert_eq!(get("x-forwarded-host"), ["a.test:81"]);
    assert_eq!(get("forwarded"), ["for=127.0.0.1;proto=http;host=\"a.test:81\""]);
    // The edge's own word: it takes them from every host.
    assert_eq!(get("te"), ["trailers"]);
    for gone in ["x-marcato-x", "x-drop", "trailer", "proxy-authorization", "x-real-ip", "connection"] {
        assert!(get(gone).is_empty(), "{gone}");
    }
    let id = get("x-request-id")[0];
    assert_eq!(id.len(), 26);
    assert!(response.contains(&format!("x-request-id: {id}\r\n")) && response.contains("x-kept: 1"), "{response}");
    for gone in ["x-marcato", "forged", "x-named", "keep-alive"] {
        assert!(!response.contains(gone), "{gone} in {response}");
    }
}

#[tokio::test]
async fn a_trusted_proxy_is_added_to() {
    let rig = Rig::new(|c| c.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]).await;
    let h = host(&rig.socket("h"), |_| async { answer("ok") });
    rig.app("a", &[&h.path]);
    rig.raw(
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\
         Forwarded: for=1.2.3.4\r\n\r\n",
    )
    .await;
    let head = h.last().headers;
    assert_eq!(head["x-forwarded-for"], "1.2.3.4, 127.0.0.1");
    assert_eq!(head["x-forwarded-proto"], "https");
    assert_eq!(head["forwarded"], "for=1.2.3.4, for=127.0.0.1;proto=http;host=\"a.test\"");
}

#[test]
fn address_ranges_are_read() {
    let contains = |range: &str, ip: &str| range.parse::<IpRange>().unwrap().contains(ip.parse().unwrap());
    assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
    assert!(contains("0.0.0.0/0", "1.2.3.4") && !contains("0.0.0.0/0", "::1"));
    assert!(contains("::/0", "2001:db8::1") && contains("fe80::/10", "fe80::1") && !contains("fe80::/10", "ff00::1"));
    assert!(contains("127.0.0.1", "::ffff:127.0.0.1"));
    for bad in ["", "x", "1.2.3.4/33", "::/129", "1.2.3.4/-1", "1.2.3.4/"] {
        assert!(bad.parse::<IpRange>().is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn a_request_waits_for_an_instance() {
    let rig = Rig::new(|c| c.instance_wait_ms = Millis(10_000)).await;
    let h = host(&rig.socket("h"), |_| async { answer("awake") });
    rig.app("a", &[]);
    let waits = async {
        until("a request waits", || rig.metric("marcato_edge_waiting") == 1.0).await;
        // Another app's change does not end the wait.
        rig.app("b", &[]);
        rig.app("a", &[&h.path]);
    };
    let (response, ()) = tokio::join!(rig.get("a.test", "/"), waits);
    assert_eq!((status(&response), body(&response)), (200, "awake"));
    assert_eq!(rig.metric("marcato_edge_waiting"), 0.0);
}

#[tokio::test]
async fn a_full_queue_is_told_late_and_to_those_who_find_no_place_at_once() {
    let rig = Rig::new(|c| {
        // Longer than any test: whoever is answered was not held.
        c.refusal_hold_ms = Millis::secs(3_600);
        c.max_held = 1;
    })
    .await;
    let h = host(&rig.socket("h"), |r| async move {
        if r.uri().path() == "/" { platform(503, "queue-full", true) } else { answer("served") }
    });
    rig.app("a", &[&h.path]);
    let others = async {
        until("a client is held", || rig.metric("marcato_edge_holds_total") == 1.0).await;
        assert_eq!(status(&rig.get("a.test", "/").await), 503);
        // Who asks for something else is served.
        assert_eq!(body(&rig.get("a.test", "/else").await), "served");
    };
    tokio::select! {
        response = rig.get("a.test", "/") => panic!("answered at once: {response}"),
        () = others => {}
    }
}

#[tokio::test]
async fn waiters_are_bounded() {
    let rig = Rig::new(|c| {
        c.instance_wait_ms = Millis(10_000);
        c.max_waiting = 1;
    })
    .await;
    rig.app("a", &[]);
    let second = async {
        until("a request waits", || rig.metric("marcato_edge_waiting") == 1.0).await;
        let response = rig.get("a.test", "/").await;
        assert_eq!(status(&response), 503);
        let mut app = spec("a", &["a.test"], &[]);
        app.stopped = true;
        rig.publish(app);
    };
    let (first, ()) = tokio::join!(rig.get("a.test", "/"), second);
    assert!(status(&first) == 503 && first.contains("stopped"), "{first}");
}
