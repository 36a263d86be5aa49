//! Attacks on what the host holds and does for a guest, against the budgets of manifest and operator: host memory, time to
//! the first byte, idle streams, outbound requests, an app's memory, its log.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::future::join_all;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use marcato_api::{Bytes as ByteCount, Millis, RevisionConfig};
use marcato_tests::{RequestBody, empty, guest, until};
use tokio::task::JoinSet;

use super::arena::{Arena, Prey, wild};

/// Many resources, each within the limit of one: 20 MB of header fields.
#[tokio::test(flavor = "multi_thread")]
async fn many_small_things_that_the_host_holds_end_at_buffer_bytes() -> Result<()> {
    let arena = Arena::enter().await?;
    let path = "/hold-fields?n=200&size=100000";
    assert_eq!(arena.wild()?.works(path).await?, "held 20000000", "within the widest limit");
    let small = |c: &mut RevisionConfig| {
        wild(c);
        c.limits.buffer_bytes = ByteCount::mib(1);
    };
    let app = arena.deploy("small-buffer", &guest("guest-hostile")?, small).await?;
    assert_eq!(app.works("/hold-fields?n=5&size=100000").await?, "held 500000");
    app.fails(path, 500, "limit buffer_bytes (1 MiB)").await?;
    app.fails("/handles?kind=fields&n=9000", 500, "limit buffer_bytes (1 MiB)").await?;
    assert_eq!(app.works("/hold-fields?n=5&size=100000").await?, "held 500000", "all was given back");
    arena.unharmed().await
}

/// Each sandbox is within its own budget; together they are not within the app's, which the operator sets.
#[tokio::test(flavor = "multi_thread")]
async fn many_sandboxes_end_at_app_buffer_bytes() -> Result<()> {
    let arena = Arena::enter().await?;
    let app = arena.deploy("app-buffer", &guest("guest-hostile")?, wild).await?;
    let all = || async { join_all((0..6).map(|_| app.get("/hold-fields?n=20&size=100000&ms=1500"))).await };
    for answer in all().await {
        assert_eq!(answer?.text(), "held 2000000\n", "without the policy");
    }
    app.policy(arena.cluster, "--app-buffer 5MiB").await?;
    let (mut held, mut refused) = (0, 0);
    for answer in all().await {
        let answer = answer?;
        if answer.status == 200 {
            held += 1;
            continue;
        }
        refused += 1;
        assert!([500, 503].contains(&answer.status), "{} {}", answer.status, answer.text());
        app.logged(answer.header("x-request-id"), "limit app_buffer_bytes (5 MiB)").await?;
    }
    assert!(held <= 2 && refused >= 4, "5 MiB are two sandboxes of 2 MB: {held} held, {refused} refused");
    assert_eq!(app.works("/hold-fields?n=20&size=100000").await?, "held 2000000", "all was given back");
    arena.unharmed().await
}

/// Linear memory over all of an app, set by the operator.
#[tokio::test(flavor = "multi_thread")]
async fn many_instances_end_at_app_memory_bytes() -> Result<()> {
    let arena = Arena::enter().await?;
    let roomy = |c: &mut RevisionConfig| {
        wild(c);
        c.limits.memory_bytes = ByteCount::mib(64);
        c.limits.instance_memory_bytes = ByteCount::mib(256);
    };
    let app = arena.deploy("app-memory", &guest("guest-hostile")?, roomy).await?;
    arena.admin.scale("app-memory", 2).await?;
    // Filled one byte after the other, so that they meet.
    let all = || async { join_all((0..4).map(|_| app.get("/fill?mb=40"))).await };
    for answer in all().await {
        assert_eq!(answer?.text(), "dirty 0\n", "without the policy each gets its memory");
    }
    app.policy(arena.cluster, "--app-memory 64MiB").await?;
    let mut refused = 0;
    for answer in all().await {
        let answer = answer?;
        if answer.text() == "dirty 0\n" {
            continue;
        }
        refused += 1;
        assert!(answer.status == 503 || answer.text() == "refused\n", "{} {}", answer.status, answer.text());
        app.logged(answer.header("x-request-id"), "limit app_memory_bytes (64 MiB)").await?;
    }
    assert!(refused > 0, "four of 40 MiB in two instances do not fit into 64");
    app.idle().await?;
    assert_eq!(app.works("/fill?mb=40").await?, "dirty 0", "all was given back");
    arena.unharmed().await
}

/// A guest that does nothing, or too much, before it says anything. Its time in all is long.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_says_nothing_ends_at_first_byte_ms() -> Result<()> {
    let arena = Arena::enter().await?;
    let late = |c: &mut RevisionConfig| {
        wild(c);
        c.limits.first_byte_ms = Millis(1_000);
    };
    let app = arena.deploy("late", &guest("guest-hostile")?, late).await?;
    let wild = arena.wild()?;
    assert_eq!(wild.works("/sleep?ms=2000").await?, "awake");
    assert_eq!(wild.works("/spin?ms=1500").await?, "spun");
    for path in ["/sleep?ms=60000", "/spin?ms=60000"] {
        let begin = Instant::now();
        app.fails(path, 504, "limit first_byte_ms (1 s)").await?;
        assert!(begin.elapsed() < Duration::from_secs(30), "{path} took {:?}", begin.elapsed());
    }
    // What has begun has all its time.
    assert_eq!(app.get("/drip?bytes=20&ms=100").await?.text(), "x".repeat(20));
    app.idle().await?;
    arena.unharmed().await
}

/// Waits for the end of a response: how much came, and whether the time was enough.
async fn rest(mut body: Incoming, time: Duration) -> (usize, Option<bool>) {
    let mut seen = 0;
    let all = async {
        loop {
            match body.frame().await {
                Some(Ok(frame)) => seen += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) => return false,
                None => return true,
            }
        }
    };
    let end = tokio::time::timeout(time, all).await.ok();
    (seen, end)
}

/// One byte, and then nothing: a connection, a sandbox and its memory, for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_stand_still_end_at_idle_ms() -> Result<()> {
    let arena = Arena::enter().await?;
    let quick = |c: &mut RevisionConfig| {
        wild(c);
        c.limits.idle_ms = Millis(700);
    };
    let app = arena.deploy("stalls", &guest("guest-hostile")?, quick).await?;
    let ask = |app: &Prey| {
        let target = app.target.clone();
        async move { target.connect().await?.open(Method::GET, "/hold", &[], empty()).await }
    };
    let (seen, end) = rest(ask(&arena.wild()?).await?.into_body(), Duration::from_secs(3)).await;
    assert!(seen <= 1 && end.is_none(), "without the limit it stands: {seen} {end:?}");
    let stalled = ask(&app).await?;
    let id = stalled.headers().get("x-request-id").and_then(|v| v.to_str().ok()).context("an id")?.to_owned();
    let (_, end) = rest(stalled.into_body(), Duration::from_secs(20)).await;
    assert_eq!(end, Some(false), "it was cut");
    app.logged(&id, "limit idle_ms (700 ms)").await?;
    assert_eq!(app.get("/drip?bytes=30&ms=100").await?.text(), "x".repeat(30), "slow is not still");

    // The other direction: a client that begins to send, and stops.
    let upload = || -> RequestBody {
        use futures::StreamExt as _;
        let first = futures::stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"x")))]);
        StreamBody::new(first.chain(futures::stream::pending())).boxed_unsync()
    };
    let wild = arena.wild()?;
    let waits = wild.target.request(Method::POST, "/wait-body", &[], upload());
    assert!(tokio::time::timeout(Duration::from_secs(3), waits).await.is_err(), "without the limit it is waited for");
    let answer = app.target.request(Method::POST, "/wait-body", &[], upload()).await?;
    assert_eq!(answer.text(), "no body\n", "reading fails in the guest, which goes on");
    for app in [&app, &wild] {
        app.idle().await?;
    }
    arena.unharmed().await
}

/// A server of the outside: reads a request whole, waits, and answers with so many bytes.
async fn outside(tasks: &mut JoinSet<()>, wait: Duration, bytes: usize) -> Result<u16> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let answer = move |request: Request<Incoming>| async move {
        drop(request.into_body().collect().await);
        tokio::time::sleep(wait).await;
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b'x'; bytes]))))
    };
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(answer);
            connections.spawn(async move {
                // A guest that was cut closes it.
                drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    Ok(port)
}

/// An app that may ask the server, which is on loopback: by the operator's policy for this app alone.
async fn asker(arena: &Arena, name: &str, port: u16, limits: impl FnOnce(&mut RevisionConfig)) -> Result<Prey> {
    let config = |c: &mut RevisionConfig| {
        wild(c);
        c.allowed_outbound_hosts = vec![format!("127.0.0.1:{port}")];
        limits(c);
    };
    let app = arena.deploy(name, &guest("guest-hostile")?, config).await?;
    let refused = app.works(&format!("/out?authority=127.0.0.1:{port}")).await?;
    ensure!(refused.contains("DestinationIpProhibited"), "not without the policy: {refused}");
    app.policy(arena.cluster, "--allow-private-egress").await?;
    Ok(app)
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_outbound_requests_end_at_their_number() -> Result<()> {
    let arena = Arena::enter().await?;
    let mut tasks = JoinSet::new();
    let port = outside(&mut tasks, Duration::ZERO, 2).await?;
    let flood = format!("/out-many?authority=127.0.0.1:{port}&n=12");
    let widest = asker(&arena, "asks-all", port, |_| ()).await?;
    assert_eq!(widest.works(&flood).await?, "answered 12");
    let few = asker(&arena, "asks-few", port, |c| c.limits.outbound_requests = 3).await?;
    let answer = few.get(&flood).await?;
    assert!(answer.text().starts_with("answered 3 ") && answer.text().contains("ConnectionLimit"), "{}", answer.text());
    few.logged(answer.header("x-request-id"), "limit outbound_requests (3)").await?;
    // All are sent before the first is read: those in flight.
    let two = asker(&arena, "asks-two", port, |c| c.limits.outbound_concurrent = 2).await?;
    let answer = two.get(&flood).await?;
    assert!(answer.text().starts_with("answered 2 ") && answer.text().contains("ConnectionLimit"), "{}", answer.text());
    two.logged(answer.header("x-request-id"), "limit outbound_concurrent (2)").await?;
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_outbound_requests_end_at_their_bytes() -> Result<()> {
    let arena = Arena::enter().await?;
    let mut tasks = JoinSet::new();
    let port = outside(&mut tasks, Duration::ZERO, 2 << 20).await?;
    let authority = format!("authority=127.0.0.1:{port}");
    let (upload, download) = (format!("/out?{authority}&bytes=2000000"), format!("/out-read?{authority}"));
    let widest = asker(&arena, "moves-all", port, |_| ()).await?;
    assert_eq!(widest.works(&upload).await?, "status 200");
    assert_eq!(widest.works(&download).await?, format!("read {}", 2 << 20));
    let little = asker(&arena, "moves-little", port, |c| c.limits.outbound_bytes = ByteCount::kib(256)).await?;
    for (path, named) in [(upload, "HttpRequestBodySize"), (download, "HTTP response body size")] {
        let answer = little.get(&path).await?;
        let said = answer.text();
        assert!(answer.status == 200 && said.contains("cut "), "{path}: {} {said}", answer.status);
        assert!(said.contains(named), "{path}: {said}");
        little.logged(answer.header("x-request-id"), "limit outbound_bytes (256 KiB)").await?;
    }
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn outbound_requests_of_all_an_app_end_at_app_outbound_concurrent() -> Result<()> {
    let arena = Arena::enter().await?;
    let mut tasks = JoinSet::new();
    let port = outside(&mut tasks, Duration::from_millis(1_500), 2).await?;
    let app = asker(&arena, "asks-together", port, |_| ()).await?;
    let path = format!("/out-many?authority=127.0.0.1:{port}&n=2");
    let all = || async { join_all((0..4).map(|_| app.get(&path))).await };
    for answer in all().await {
        assert_eq!(answer?.text().trim(), "answered 2", "without the policy");
    }
    app.policy(arena.cluster, "--app-outbound-concurrent 3").await?;
    let mut answered = 0;
    for answer in all().await {
        let answer = answer?;
        let said = answer.text();
        let n: u32 = said.split_whitespace().nth(1).and_then(|n| n.parse().ok()).with_context(|| said.clone())?;
        answered += n;
        if n < 2 {
            assert!(said.contains("ConnectionLimit"), "{said}");
            app.logged(answer.header("x-request-id"), "limit app_outbound_concurrent (3)").await?;
        }
    }
    assert!(answered < 8, "eight at once are more than three");
    arena.unharmed().await
}

/// What the operator lets an app say in a second; what is within the burst is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_lines_ends_at_the_rate_that_the_operator_sets() -> Result<()> {
    let arena = Arena::enter().await?;
    let app = arena.deploy("talks", &guest("guest-hostile")?, wild).await?;
    let kept = async || -> Result<usize> {
        Ok(arena.admin.logs("talks").await?.iter().filter(|l| l.text.starts_with("flood ")).count())
    };
    assert_eq!(app.works("/log?n=500").await?, "logged");
    until("500 lines without the policy", Duration::from_secs(20), || async {
        Ok((kept().await? == 500).then_some(()))
    })
    .await?;
    app.policy(arena.cluster, "--log-rate 4KiB").await?;
    let before = kept().await?;
    assert_eq!(app.works("/log?n=500").await?, "logged");
    let cut = until("a line that tells what was dropped", Duration::from_secs(20), || async {
        app.get("/").await?;
        Ok(arena.admin.logs("talks").await?.into_iter().find(|line| line.text.contains("dropped")))
    })
    .await?;
    assert!(cut.text.contains("log_rate"), "{}", cut.text);
    let more = kept().await?.saturating_sub(before);
    // 500 lines of some 110 bytes; 8 KiB in a burst.
    assert!((20..=120).contains(&more), "{more} of 500 lines were kept");
    arena.unharmed().await
}
