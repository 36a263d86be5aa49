//! Bodies that do not fit into memory and clients that take their time: what is streamed is not held, and
//! one slow client does not slow another.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use marcato_api::Bytes as Size;
use marcato_api::Millis;
use marcato_tests::{Answer, Deploy, Load, RequestBody, Socket, empty, guest, tree_resident_bytes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{Running, cluster};

const GIGABYTE: u64 = 1 << 30;
/// The most that the processes may grow while a gigabyte passes: buffers and a sandbox, not the body.
const ROOM: u64 = 192 << 20;

fn hello(answer: &Answer) -> bool {
    answer.text() == "hello\n"
}

async fn wide_open() -> Result<Running> {
    let cluster = cluster(1).await?;
    let deploy = Deploy::new("pipe").with(|c| {
        c.limits.request_body_bytes = Size(4 * GIGABYTE);
        c.limits.response_body_bytes = Size(4 * GIGABYTE);
        c.limits.time_ms = Millis::secs(300);
        c.limits.cpu_ms = Millis::secs(120);
    });
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &deploy).await?;
    Ok(cluster)
}

fn zeros(length: u64) -> RequestBody {
    static BLOCK: [u8; 64 << 10] = [0; 64 << 10];
    let blocks = length / BLOCK.len() as u64;
    let frames = (0..blocks).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&BLOCK))));
    BodyExt::boxed_unsync(StreamBody::new(futures::stream::iter(frames)))
}

/// Follows the cluster's memory while `work` runs; gives its result and the most that it grew.
async fn watched<T>(cluster: &Running, work: impl Future<Output = Result<T>>) -> Result<(T, u64)> {
    let pid = cluster.pid();
    let before = tree_resident_bytes(pid);
    let mut most = before;
    let mut work = std::pin::pin!(work);
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            done = &mut work => return Ok((done?, most.saturating_sub(before))),
            _ = tick.tick() => most = most.max(tree_resident_bytes(pid)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_up_passes_in_bounded_memory() -> Result<()> {
    let cluster = wide_open().await?;
    let pipe = cluster.app("pipe")?;
    assert_eq!(pipe.request(Method::POST, "/sink", &[], zeros(1 << 20)).await?.text(), "1048576\n");
    let (answer, grown) = watched(&cluster, pipe.request(Method::POST, "/sink", &[], zeros(GIGABYTE))).await?;
    assert_eq!(answer.text(), format!("{GIGABYTE}\n"));
    assert!(grown < ROOM, "grew by {} MiB", grown >> 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_down_passes_in_bounded_memory() -> Result<()> {
    let cluster = wide_open().await?;
    let pipe = cluster.app("pipe")?;
    let download = async {
        let mut connection = pipe.connect().await?;
        let mut body = connection.open(Method::GET, &format!("/big?bytes={GIGABYTE}"), &[], empty()).await?.into_body();
        let mut seen = 0_u64;
        while let Some(frame) = body.frame().await {
            seen += frame?.data_ref().map_or(0, |d| d.len() as u64);
        }
        Ok(seen)
    };
    let (seen, grown) = watched(&cluster, download).await?;
    assert_eq!(seen, GIGABYTE);
    assert!(grown < ROOM, "grew by {} MiB", grown >> 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_streams_both_ways_at_once() -> Result<()> {
    let cluster = wide_open().await?;
    let pipe = cluster.app("pipe")?;
    let size = 64_u64 << 20;
    let (answer, grown) = watched(&cluster, pipe.request(Method::POST, "/echo", &[], zeros(size))).await?;
    assert_eq!(answer.body.len() as u64, size);
    assert!(grown < ROOM, "grew by {} MiB", grown >> 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_slow_nobody_else() -> Result<()> {
    let cluster = wide_open().await?;
    let pipe = cluster.app("pipe")?;
    let Socket::Tcp(address) = pipe.socket else { unreachable!("the edge listens on TCP") };
    let mut slow = Vec::new();
    // Heads that never end, bodies that never come, and readers that do not read.
    for n in 0..60 {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let host = &pipe.host;
        let text = match n % 3 {
            0 => "GET / HT".to_owned(),
            1 => format!("POST /sink HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\nx"),
            _ => format!("GET /big?bytes=100000000 HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        };
        stream.write_all(text.as_bytes()).await?;
        slow.push(stream);
    }
    let before = tree_resident_bytes(cluster.pid());
    let load = Load::start(&pipe, "/", 4, hello);
    load.answered(200).await?;
    let report = load.stop().await;
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let grown = tree_resident_bytes(cluster.pid()).saturating_sub(before);
    assert!(grown < ROOM, "grew by {} MiB", grown >> 20);
    Ok(())
}

/// Slowloris: a head that does not come to its end is closed by the edge's own timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_never_ends_is_closed() -> Result<()> {
    let cluster = wide_open().await?;
    let Socket::Tcp(address) = cluster.app("pipe")?.socket else { unreachable!("the edge listens on TCP") };
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: pipe").await?;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(90), stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "still open after 90 s");
    let text = String::from_utf8_lossy(&answer);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_answer_goes_out_whole_and_with_its_length() -> Result<()> {
    let cluster = wide_open().await?;
    let app = cluster.app("pipe")?;
    let short = app.get("/").await?;
    assert_eq!(
        (short.headers.get("content-length").map(|v| v.as_bytes()), short.text().as_str()),
        (Some(b"6".as_slice()), "hello\n")
    );
    assert!(!short.headers.contains_key("transfer-encoding"));
    let long = app.get("/big?bytes=1000000").await?;
    assert_eq!((long.headers.get("content-length"), long.body.len()), (None, 1_000_000), "what is long is streamed");
    let failed = app.get("/trap").await?;
    assert_eq!(failed.status, 500);
    Ok(())
}
