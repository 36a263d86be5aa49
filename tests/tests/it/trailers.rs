//! Trailers from client to guest and back, through the router, for both ABIs of guests and both versions of HTTP.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use marcato_tests::{Deploy, RequestBody, Socket, Target, guest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{Running, cluster};

/// WASI 0.2 and 0.3.
const GUESTS: [&str; 2] = ["guest-behaviour", "guest-async"];

async fn apps() -> Result<(Running, Vec<Target>)> {
    let cluster = cluster(1).await?;
    let mut apps = Vec::new();
    for name in GUESTS {
        cluster.admin()?.deploy(&guest(name)?, &Deploy::new(name)).await?;
        apps.push(cluster.app(name)?);
    }
    Ok((cluster, apps))
}

async fn stream(app: &Target) -> Result<TcpStream> {
    let Socket::Tcp(address) = app.socket else { unreachable!("the edge listens on TCP") };
    Ok(TcpStream::connect(address).await?)
}

/// Sends a chunked body and these lines after it; gives the response's head and what is behind it.
async fn http1(app: &Target, path: &str, te: &str, trailers: &str) -> Result<(String, String)> {
    let mut stream = stream(app).await?;
    let sent = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\n{te}Connection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         5\r\nhello\r\n0\r\n{trailers}\r\n",
        app.host
    );
    stream.write_all(sent.as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(std::time::Duration::from_secs(20), stream.read_to_string(&mut answer)).await??;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?;
    Ok((head.to_owned(), body.to_owned()))
}

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
}

async fn http2(app: &Target, path: &str, trailers: HeaderMap) -> Result<Response<Incoming>> {
    let io = TokioIo::new(stream(app).await?);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    let frames = [Frame::data(Bytes::from_static(b"hello")), Frame::trailers(trailers)];
    let body: RequestBody = StreamBody::new(futures::stream::iter(frames.map(Ok))).boxed_unsync();
    let request = Request::post(format!("http://{}{path}", app.host)).body(body)?;
    Ok(sender.send_request(request).await?)
}

/// Those of the client that are good, and all that are not.
const SENT: &str = "X-Sum: 7, 8\r\nx-unnamed: 1\r\nHost: evil\r\nContent-Length: 99\r\nTransfer-Encoding: gzip\r\n\
                    X-Marcato-Instance: evil\r\nx-marcato-trailers: x-sum=forged\r\nX-Forwarded-For: 6.6.6.6\r\n\
                    Authorization: Basic eA==\r\nCookie: a=b\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_over_http_1() -> Result<()> {
    let (_cluster, apps) = apps().await?;
    for app in &apps {
        let (head, body) = http1(app, "/trailers", "TE: trailers\r\n", SENT).await?;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
        assert!(head.contains("\r\ntrailer: x-checksum, x-sum"), "{head}");
        assert!(body.contains("body\nx-sum=7, 8\nx-unnamed=1\n\r\n"), "the guest got the good ones: {body}");
        // Over HTTP/1.1 those come that the guest announced.
        let (_, trailers) = body.split_once("\r\n0\r\n").with_context(|| body.clone())?;
        let mut lines: Vec<_> = trailers.trim_end().split("\r\n").collect();
        lines.sort_unstable();
        assert_eq!(lines, ["x-checksum: abc", "x-sum: 7, 8"]);
        assert!(!head.contains("x-marcato"), "{head}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_over_http_1_that_does_not_ask_for_trailers_gets_none() -> Result<()> {
    let (_cluster, apps) = apps().await?;
    for app in &apps {
        let (head, body) = http1(app, "/trailers", "", SENT).await?;
        assert!(head.starts_with("HTTP/1.1 200") && !head.contains("\r\ntrailer:"), "{head}");
        assert!(body.contains("x-sum=7, 8") && body.ends_with("\r\n0\r\n\r\n"), "{body}");
    }
    Ok(())
}

/// A short answer is whole before its head goes out, so the platform can announce what the guest did not.
#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_a_short_answer_are_announced_by_the_platform() -> Result<()> {
    let (_cluster, apps) = apps().await?;
    for app in &apps {
        let (head, body) = http1(app, "/trailers?unnamed", "TE: trailers\r\n", "").await?;
        assert!(head.contains("\r\ntrailer: x-checksum"), "{head}");
        assert!(body.ends_with("\r\n0\r\nx-checksum: abc\r\n\r\n"), "{body}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_over_http_2() -> Result<()> {
    let (_cluster, apps) = apps().await?;
    let sent = map(&[
        ("grpc-status", "0"),
        ("x-bytes", "a,b%c=d"),
        ("x-marcato-instance", "evil"),
        ("x-marcato-trailers", "grpc-status=1"),
        ("content-length", "99"),
        ("x-forwarded-for", "6.6.6.6"),
        ("set-cookie", "c=d"),
    ]);
    for app in &apps {
        let response = http2(app, "/trailers?unnamed", sent.clone()).await?;
        assert_eq!(response.status(), 200);
        let collected = response.into_body().collect().await?;
        let expected = map(&[("grpc-status", "0"), ("x-bytes", "a,b%c=d"), ("x-checksum", "abc")]);
        assert_eq!(collected.trailers(), Some(&expected));
        assert_eq!(collected.to_bytes(), "body\ngrpc-status=0\nx-bytes=a,b%c=d\n");
        // What is streamed back has them as well.
        let echoed = http2(app, "/echo", sent.clone()).await?.into_body().collect().await?;
        assert_eq!(echoed.trailers(), Some(&map(&[("grpc-status", "0"), ("x-bytes", "a,b%c=d")])));
        assert_eq!(echoed.to_bytes(), "hello");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_after_a_body_ends_its_request_only() -> Result<()> {
    let (cluster, apps) = apps().await?;
    for (app, name) in apps.iter().zip(GUESTS) {
        for (trailers, status) in [
            ("no field at all\r\n".to_owned(), "400"),
            ("sp ace: 1\r\n".to_owned(), "400"),
            (format!("x-long: {}\r\n", "y".repeat(5_000)), "431"),
        ] {
            let (head, body) = http1(app, "/trailers", "TE: trailers\r\n", &trailers).await?;
            assert_eq!(&head[9..12], status, "{trailers:.20}: {head}\n{body}");
        }
        // The guest's own are bounded, too.
        let response = http2(app, "/trailers?long", HeaderMap::new()).await;
        let cut = match response {
            Ok(response) => response.status() != 200 || response.into_body().collect().await.is_err(),
            Err(_) => true,
        };
        assert!(cut, "{name}: trailers of 5,000 bytes");
        cluster.admin()?.logged(name, "the guest's trailers are longer than 4 KiB").await?;
        assert_eq!(app.get("/").await?.status, 200);
    }
    Ok(())
}
