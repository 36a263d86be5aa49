//! Attacks with bodies, from both sides: too long, without end, byte by byte, never finished, never read,
//! and clients that leave in every phase.

use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use marcato_tests::{RequestBody, Socket, empty, full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::arena::{Arena, Prey};

/// Reads a response's body for at most `time`: how much came, and whether it came to its end as it should.
async fn read(app: &Prey, path: &str, time: Duration) -> Result<(usize, Option<bool>)> {
    let mut connection = app.target.connect().await?;
    let mut body = connection.open(Method::GET, path, &[], empty()).await?.into_body();
    let (begin, mut seen) = (Instant::now(), 0);
    loop {
        match tokio::time::timeout(time.saturating_sub(begin.elapsed()), body.frame()).await {
            Ok(Some(Ok(frame))) => seen += frame.data_ref().map_or(0, Bytes::len),
            Ok(Some(Err(_))) => return Ok((seen, Some(false))),
            Ok(None) => return Ok((seen, Some(true))),
            Err(_) => return Ok((seen, None)),
        }
    }
}

fn blocks(count: usize) -> RequestBody {
    static BLOCK: [u8; 64 << 10] = [7; 64 << 10];
    let frames = (0..count).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&BLOCK))));
    StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_responses_are_cut_at_their_length() -> Result<()> {
    let arena = Arena::enter().await?;
    let second = Duration::from_millis(700);
    for (wild, tame) in [(arena.wild()?, arena.tame()?), (arena.app("wild-swarm")?, arena.app("tame-swarm")?)] {
        let (seen, end) = read(&wild, "/endless", second).await?;
        assert!(seen > 2 << 20 && end.is_none(), "without the limit it goes on: {seen} {end:?}");
        let (seen, end) = read(&tame, "/endless", Duration::from_secs(20)).await?;
        assert!(seen <= 1 << 20 && end == Some(false), "{seen} {end:?}");
        wild.idle().await?;
    }
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_drip_or_are_never_finished_are_cut_with_their_time() -> Result<()> {
    let arena = Arena::enter().await?;
    let (wild, tame) = (arena.wild()?, arena.tame()?);
    assert_eq!(read(&wild, "/drip?bytes=20&ms=100", Duration::from_secs(20)).await?, (20, Some(true)));
    let (seen, end) = read(&wild, "/hold", Duration::from_secs(3)).await?;
    assert!(seen <= 1 && end.is_none(), "without the limit it is held: {seen} {end:?}");
    for path in ["/drip?bytes=1000&ms=100", "/hold"] {
        let begin = Instant::now();
        let (_, end) = read(&tame, path, Duration::from_secs(20)).await?;
        assert_eq!(end, Some(false), "{path} was cut");
        assert!(begin.elapsed() < Duration::from_secs(10), "{path} took {:?}", begin.elapsed());
    }
    for path in ["/unfinished", "/silent"] {
        match tame.get(path).await {
            Ok(answer) => assert_eq!(answer.status, 500, "{path}"),
            Err(error) => assert!(format!("{error:#}").contains("cut short"), "{path}: {error:#}"),
        }
    }
    wild.idle().await?;
    arena.unharmed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_request_bodies_are_refused_announced_or_not() -> Result<()> {
    let arena = Arena::enter().await?;
    let (wild, tame) = (arena.wild()?, arena.tame()?);
    let whole = wild.target.request(Method::POST, "/sink", &[], blocks(160)).await?;
    assert_eq!(whole.text(), format!("{}\n", 160 * (64 << 10)), "ten megabytes, without the limit");
    for body in [full(vec![7; 1 << 20]), blocks(160)] {
        // A refusal may come while the body is on its way: then the connection ends under it.
        match tame.target.request(Method::POST, "/sink", &[], body).await {
            Ok(answer) => {
                assert_eq!(answer.status, 413, "{}", answer.text());
                tame.logged(answer.header("x-request-id"), "limit request_body_bytes").await?;
            }
            Err(error) => assert!(!format!("{error:#}").contains("200"), "{error:#}"),
        }
    }
    arena.unharmed().await
}

/// The guest answers without a look at the body, or keeps it and never reads: nothing piles up in between.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_never_read_do_not_pile_up() -> Result<()> {
    let arena = Arena::enter().await?;
    let (wild, tame) = (arena.wild()?, arena.tame()?);
    let before = marcato_tests::tree_resident_bytes(arena.cluster.pid());
    let uploads = (0..8).map(|_| wild.target.request(Method::POST, "/unread", &[], blocks(480)));
    // 30 MiB each: answered before they are over, which may end the connection under the upload.
    for answer in futures::future::join_all(uploads).await.into_iter().flatten() {
        assert!(answer.text() == "unread\n" || answer.status == 502, "{} {}", answer.status, answer.text());
    }
    let grown = marcato_tests::tree_resident_bytes(arena.cluster.pid()).saturating_sub(before);
    assert!(grown < 96 << 20, "240 MiB were sent, {} MiB are held", grown >> 20);
    let held = tame.target.request(Method::POST, "/unread?hold=1", &[], full(vec![7; 60 << 10])).await?;
    assert_eq!(held.status, 504, "{}", held.text());
    wild.idle().await?;
    arena.unharmed().await
}

/// Each leaves in another phase; the limits are wide, so only that the client is gone can end the sandbox.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_in_any_phase_leave_nothing_behind() -> Result<()> {
    let arena = Arena::enter().await?;
    let wild = arena.wild()?;
    let Socket::Tcp(address) = wild.target.socket else { unreachable!("the edge listens on TCP") };
    let host = wild.target.host.clone();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let post =
        |path: &str, body: &str| format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 60000\r\n\r\n{body}");
    let phases = [
        ("half a head", "GET /sink HTTP/1.1\r\nHo".to_owned(), 0),
        ("no body", post("/sink", ""), 0),
        ("half a body", post("/sink", &"x".repeat(30_000)), 0),
        ("half an echo", post("/echo", &"x".repeat(30_000)), 1),
        ("before the head", get("/sleep?ms=300000"), 0),
        ("while it polls", get("/poll?n=50"), 0),
        ("while it loops", get("/spin?ms=300000"), 0),
        ("after the head", get("/hold"), 1),
        ("in the body", get("/endless"), 100_000),
        ("drop by drop", get("/drip?bytes=3000&ms=100"), 1),
    ];
    let mut left = Vec::new();
    for reset in [false, true] {
        for (name, head, wait) in &phases {
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            stream.write_all(head.as_bytes()).await?;
            let mut buffer = vec![0; 200_000];
            let mut seen = 0;
            while seen < *wait {
                let n = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer)).await??;
                assert!(n > 0, "{name} was closed early");
                seen += n;
            }
            if *wait == 0 {
                left.push(stream);
            } else {
                if reset {
                    nix::sys::socket::setsockopt(
                        &stream,
                        nix::sys::socket::sockopt::Linger,
                        &nix::libc::linger { l_onoff: 1, l_linger: 0 },
                    )?;
                }
                drop(stream);
            }
        }
    }
    // Those that wait for nothing that they could see leave together, when their requests have arrived: all but the
    // two with half a head, which are none.
    wild.busy(u32::try_from(left.len())? - 2).await?;
    drop(left);
    wild.idle().await?;
    arena.unharmed().await
}

/// A client that closes its half has still asked; what it asked for has the same limits.
#[tokio::test(flavor = "multi_thread")]
async fn half_closed_connections_end_with_the_requests_time() -> Result<()> {
    let arena = Arena::enter().await?;
    let tame = arena.tame()?;
    let Socket::Tcp(address) = tame.target.socket else { unreachable!("the edge listens on TCP") };
    for (path, expect) in [("/sleep?ms=300", "awake"), ("/sleep?ms=60000", ""), ("/hold", "")] {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", tame.target.host);
        stream.write_all(head.as_bytes()).await?;
        stream.shutdown().await?;
        let mut bytes = Vec::new();
        drop(tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await?);
        let text = String::from_utf8_lossy(&bytes);
        // The router may take a closed half for a client that left: both are fine, hanging is not.
        assert!(text.is_empty() || expect.is_empty() || text.contains(expect), "{path}: {text}");
    }
    tame.idle().await?;
    arena.unharmed().await
}
