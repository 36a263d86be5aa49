//! What is counted: for each app, and of what never became a request.

use super::*;

#[tokio::test]
async fn each_app_has_its_numbers_as_long_as_it_is_there() {
    let rig = Rig::new(|_| {}).await;
    let (go, gone) = tokio::sync::watch::channel(false);
    let h = host(&rig.socket("h"), move |r| {
        let mut gone = gone.clone();
        async move {
            match r.uri().path() {
                "/wait" => {
                    gone.wait_for(|g| *g).await.unwrap();
                    answer("late")
                }
                "/fail" => Response::builder().status(500).body(full("")).unwrap(),
                _ => answer("hello"),
            }
        }
    });
    rig.app("a", &[&h.path]);
    rig.app("b", &[&h.path]);
    for path in ["/", "/", "/fail"] {
        rig.get("a.test", path).await;
    }
    rig.get("b.test", "/").await;
    rig.get("nowhere.test", "/").await;
    let of = |app: &str, class: &str| {
        rig.metric(&format!("marcato_edge_app_requests_total{{app=\"{app}\",class=\"{class}\"}}"))
    };
    until("all are counted", || rig.metric("marcato_edge_in_flight") == 0.0).await;
    assert_eq!((of("a", "2xx"), of("a", "5xx"), of("b", "2xx"), of("b", "5xx")), (2.0, 1.0, 1.0, 0.0));
    assert_eq!(rig.metric("marcato_edge_app_request_seconds_count{app=\"a\"}"), 3.0);
    assert_eq!(rig.metric("marcato_edge_app_request_seconds_bucket{le=\"+Inf\",app=\"a\"}"), 3.0);
    assert_eq!(rig.metric("marcato_edge_request_seconds_count"), 5.0, "of all, those without an app too");

    // A new table keeps the numbers; in flight is what is there now.
    let mut waiting = std::pin::pin!(rig.get("a.test", "/wait"));
    let in_flight = || rig.metric("marcato_edge_app_in_flight{app=\"a\"}");
    tokio::select! {
        _ = waiting.as_mut() => panic!("it waits"),
        () = until("it is in flight", || in_flight() == 1.0) => {}
    }
    rig.app("a", &[&h.path]);
    assert_eq!((of("a", "2xx"), in_flight()), (2.0, 1.0));
    go.send_replace(true);
    assert_eq!(body(&waiting.await), "late");
    until("it is counted", || in_flight() == 0.0).await;
    assert_eq!(of("a", "2xx"), 3.0);

    // Without the app there is no series.
    rig.withdraw("a");
    let text = rig.scrape();
    assert!(!text.contains("app=\"a\"") && text.contains("app=\"b\""), "{text}");
    assert_eq!(rig.metric("marcato_edge_requests_total{class=\"2xx\"}"), 4.0, "the total never goes back");
    rig.app("a", &[&h.path]);
    assert_eq!(of("a", "2xx"), 0.0, "another app of the same name begins anew");
}

#[tokio::test]
async fn what_is_no_request_is_counted_too() {
    let rig = Rig::new(|c| c.max_header_bytes = marcato_api::Bytes::kib(8)).await;
    let unparsed = |reason: &str| rig.metric(&format!("marcato_edge_unparsed_total{{reason=\"{reason}\"}}"));
    let response = rig.raw("GET / HTTP/1.1\r\nHost : a.test\r\n\r\n").await;
    assert_eq!(status(&response), 400, "{response}");
    until("it is counted", || (unparsed("malformed"), unparsed("too_large")) == (1.0, 0.0)).await;
    let response = rig.raw(format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-A: {}\r\n\r\n", "x".repeat(9 << 10))).await;
    assert_eq!(status(&response), 431, "{response}");
    until("it is counted", || (unparsed("malformed"), unparsed("too_large")) == (1.0, 1.0)).await;
    // A client that comes and goes is neither.
    drop(TcpStream::connect(rig.http).await.unwrap());
    assert_eq!(status(&rig.get("a.test", "/").await), 404);
    assert_eq!((unparsed("malformed"), unparsed("too_large")), (1.0, 1.0));
}
