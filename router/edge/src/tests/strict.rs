//! Raw bytes that two parsers could read in two ways, and limits on what a client may send.

use marcato_api::{Bytes as Size, Millis};

use super::*;

async fn rig() -> (Rig, Host) {
    let rig = Rig::new(|c| {
        c.max_header_bytes = Size::kib(8);
        c.header_timeout_ms = Millis(300);
        c.upload_idle_ms = Millis(100);
    })
    .await;
    let h = host(&rig.socket("h"), |r| async {
        answer(r.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default())
    });
    rig.app("a", &[&h.path]);
    (rig, h)
}

#[tokio::test]
async fn what_has_two_readings_is_refused() {
    let (rig, h) = rig().await;
    for (what, bytes) in [
        ("two lengths", "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        ("a list of lengths", "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3, 3\r\n\r\nabc"),
        ("a signed length", "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: +3\r\n\r\nabc"),
        ("a hexadecimal length", "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0x3\r\n\r\nabc"),
        ("an empty length", "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length:\r\n\r\nabc"),
        ("chunked not last", "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
        ("unknown coding", "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("coding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("space before the colon", "GET / HTTP/1.1\r\nHost : a.test\r\n\r\n"),
        ("folded header", "GET / HTTP/1.1\r\nHost: a.test\r\nX-A: 1\r\n b\r\n\r\n"),
        ("NUL in a value", "GET / HTTP/1.1\r\nHost: a.test\r\nX-A: a\0b\r\n\r\n"),
        ("CR in a value", "GET / HTTP/1.1\r\nHost: a.test\r\nX-A: a\rb\r\n\r\n"),
        ("NUL in a name", "GET / HTTP/1.1\r\nHost: a.test\r\nX\0A: 1\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n"),
        ("an odd host", "GET / HTTP/1.1\r\nHost: a.test/x\r\n\r\n"),
        ("target and host disagree", "GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n"),
        ("an odd scheme", "GET ftp://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n"),
        ("user in the target", "GET http://u@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n"),
        ("authority form", "GET a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n\r\n"),
        ("no version", "GET /\r\n\r\n"),
        ("a version of the future", "GET / HTTP/3.0\r\nHost: a.test\r\n\r\n"),
        ("garbage", "\x16\x03\x01\x02\0\x01"),
        ("garbage after P", "PRI * HTTP/1.1\r\nHost: a.test\r\n\r\n"),
    ] {
        let response = rig.raw(bytes).await;
        // Either a refusal or nothing at all; hyper closes without a word where it cannot answer.
        assert!(!response.starts_with("HTTP/1") || (400..=505).contains(&status(&response)), "{what}: {response}");
        assert_eq!(h.requests(), 0, "{what} reached the host");
    }
}

#[tokio::test]
async fn ambiguous_framing_and_hosts_are_400_and_end_the_connection() {
    // No short header timeout here: only the refusal itself may end the connection.
    let rig = Rig::new(|_| {}).await;
    let h = host(&rig.socket("h"), |_| async { answer("hello") });
    rig.app("a", &[&h.path]);
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a.test\r\n\r\n";
    for head in [
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: gzip, chunked",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked, chunked",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked, gzip",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked;q=1",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: \"chunked\"",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: identity",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: xchunked",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding:",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: xchunked\r\nContent-Length: 5",
        "POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked",
        "POST / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
        "POST / HTTP/1.1\r\nHost: a.test\r\nHost: a.test",
        "POST / HTTP/1.1\r\nHost: a.test\r\nHost: b.test",
        "POST / HTTP/1.1\r\nHost: a.test, b.test",
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nContent-Length: 6",
    ] {
        let response = rig.raw(format!("{head}\r\n\r\n0\r\n\r\n{hidden}")).await;
        assert_eq!(status(&response), 400, "{head:?}: {response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{head:?}: {response}");
    }
    assert_eq!(h.requests(), 0);
}

#[tokio::test]
async fn a_host_never_sees_two_framings() {
    let rig = Rig::new(|_| {}).await;
    // What is on the wire, before any parser drops a part of it.
    let path = rig.socket("raw");
    let listener = UnixListener::bind(&path).unwrap();
    rig.app("a", &[&path]);
    for order in ["Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5"]
    {
        let wire = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"0\r\n\r\n") {
                assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
            String::from_utf8(seen).unwrap().to_ascii_lowercase()
        };
        let hidden = "GET /hidden HTTP/1.1\r\nHost: a.test\r\n\r\n";
        let bytes = format!("POST /open HTTP/1.1\r\nHost: a.test\r\n{order}\r\n\r\n3\r\nabc\r\n0\r\n\r\n{hidden}");
        let (response, wire) = tokio::join!(rig.raw(bytes), wire);
        assert!(status(&response) == 200 && response.contains("connection: close"), "{response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "what follows is not read: {response}");
        assert!(!wire.contains("content-length") && !wire.contains("hidden"), "{wire}");
        assert!(wire.matches("transfer-encoding: chunked\r\n").count() == 1 && wire.contains("\r\n3\r\nabc"), "{wire}");
    }
}

#[tokio::test]
async fn a_second_request_cannot_be_hidden_in_the_first() {
    let (rig, h) = rig().await;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a.test\r\n\r\n";
    // Both framings, in either order: the chunks count, and the connection ends (RFC 9112, 6.1).
    for order in ["Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5"]
    {
        let before = h.requests();
        let response =
            rig.raw(format!("POST /open HTTP/1.1\r\nHost: a.test\r\n{order}\r\n\r\n0\r\n\r\n{hidden}")).await;
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{response}");
        assert!(h.seen.lock().unwrap().iter().all(|r| r.uri == "/open"));
        if h.requests() > before {
            assert!(h.last().headers.get("content-length").is_none_or(|l| l == "0"), "{:?}", h.last().headers);
        }
    }
    // Bytes after a body of known length are another request only on a connection that goes on.
    let response = rig
        .raw(format!("POST /open HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab{hidden}"))
        .await;
    assert!(response.matches("HTTP/1.1 ").count() == 1 && body(&response) == "ab", "{response}");
    // Bad chunks: size with a sign, size too large, bare LF inside the size line.
    for chunks in ["+1\r\na\r\n0\r\n\r\n", "fffffffffffffffff\r\na", "1;a\nb\r\na\r\n0\r\n\r\n", "1\r\nab\r\n0\r\n\r\n"]
    {
        let response = rig
            .raw(format!("POST /open HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{hidden}"))
            .await;
        assert!(
            response.matches("HTTP/1.1 ").count() <= 1 && !response.starts_with("HTTP/1.1 2"),
            "{chunks:?}: {response}"
        );
    }
    // A bare LF ends a line for hyper (RFC 9112, 2.2 allows it); the host gets it in one reading only.
    let response = rig.raw("GET /lf HTTP/1.1\nHost: a.test\nX-A: 1\nConnection: close\n\n").await;
    if response.starts_with("HTTP/1.1 200") {
        assert_eq!((h.last().uri.path(), &h.last().headers["x-a"]), ("/lf", &http::HeaderValue::from_static("1")));
    }
    assert!(h.seen.lock().unwrap().iter().all(|r| r.uri != "/hidden"));
}

#[tokio::test]
async fn headers_have_limits() {
    let (rig, h) = rig().await;
    let long = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-A: {}\r\n\r\n", "x".repeat(9 << 10));
    let many = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{}\r\n", "x: 1\r\n".repeat(200));
    let endless = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-A: {}", "x".repeat(200 << 10));
    for bytes in [long, many, endless] {
        let response = rig.raw(&bytes).await;
        assert_eq!(status(&response), 431, "{response}");
    }
    let path = format!("GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n", "x".repeat(7 << 10));
    assert_eq!(h.requests(), 0);
    assert_eq!(status(&rig.raw(path.replace("Host", "Connection: close\r\nHost")).await), 200);
}

#[tokio::test]
async fn a_slow_header_is_cut() {
    let (rig, h) = rig().await;
    for begin in ["", "P", "GET / HT", "GET / HTTP/1.1\r\nHost: a.test\r\n"] {
        let mut stream = TcpStream::connect(rig.http).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        // The edge closes; the client's half stays open.
        let response = read_all(&mut stream).await;
        assert!(response.is_empty() || status(&response) == 408, "{begin:?}: {response}");
    }
    assert_eq!(h.requests(), 0);
    // An idle kept-alive connection ends by the same clock.
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    assert_eq!(status(&read_all(&mut stream).await), 200);
}

#[tokio::test]
async fn a_slow_body_is_cut() {
    let (rig, _h) = rig().await;
    let response = rig.raw("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nab").await;
    assert!(status(&response) == 408 && response.contains("connection: close"), "{response}");
}

/// A host that allows 8 bytes, and says so as hosts do: by the announced length, or when it has seen more.
fn short_host(path: &Path) -> Host {
    host(path, |r| async move {
        let refusal = || platform(413, "too-large", false);
        let announced = r.headers().get("content-length").map_or(0, |l| l.to_str().unwrap().parse::<u64>().unwrap());
        if announced > 8 {
            return refusal();
        }
        let (mut body, mut all) = (r.into_body(), Vec::new());
        while let Some(Ok(frame)) = body.frame().await {
            all.extend_from_slice(&frame.into_data().unwrap());
            if all.len() > 8 {
                return refusal();
            }
        }
        answer(all)
    })
}

#[tokio::test]
async fn a_body_over_the_app_s_limit_is_refused_by_the_host_and_not_asked_for() {
    let rig = Rig::new(|_| {}).await;
    let h = short_host(&rig.socket("h"));
    let mut app = spec("small", &["small.test"], &[&h.path]);
    app.limits.request_body_bytes = Size(8);
    rig.publish(app);
    let post = |framing: &str| format!("POST / HTTP/1.1\r\nHost: small.test\r\n{framing}\r\n\r\n");
    // Announced: the head is enough, the client is never told to go on, and nothing of the body is sent.
    let response = rig.raw(post("Expect: 100-continue\r\nContent-Length: 9")).await;
    assert!(status(&response) == 413 && response.contains("connection: close"), "{response}");
    assert!(response.contains("request_body_bytes") && !response.contains("100 Continue"), "{response}");
    assert_eq!(h.last().headers["content-length"], "9");
    let response = rig.raw(post("Content-Length: 9") + "123456789").await;
    assert_eq!(status(&response), 413, "{response}");
    // Not announced: as many bytes as the host needs to see it, in one piece or in several.
    for chunks in ["5\r\n12345\r\n4\r\n6789\r\n0\r\n\r\n", "9\r\n123456789\r\n0\r\n\r\n", "5\r\n12345\r\n4\r\n6789\r\n"]
    {
        let response = rig.raw(post("Transfer-Encoding: chunked") + chunks).await;
        assert!(status(&response) == 413 && response.contains("connection: close"), "{response}");
    }
    assert_eq!(h.requests(), 5, "none is asked twice");
    until("no connection is kept that waits for a body", || rig.metric("marcato_edge_upstream_connections") == 0.0)
        .await;
    let fits = "Connection: close\r\nTransfer-Encoding: chunked";
    let response = rig.raw(post(fits) + "5\r\n12345\r\n3\r\n678\r\n0\r\n\r\n").await;
    assert!(status(&response) == 200 && response.ends_with("12345678"), "{response}");
}

#[tokio::test]
async fn upgrades_and_tunnels_are_refused_clearly() {
    let (rig, h) = rig().await;
    let upgrade = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let response = rig.raw(upgrade).await;
    assert!(status(&response) == 501 && response.contains("upgrade"), "{response}");
    let response = rig.raw("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status(&response), 405, "{response}");
    assert_eq!(status(&rig.raw("TRACE / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await), 405);
    let response = rig.raw("GET / HTTP/1.1\r\nHost: a.test\r\nExpect: 200-ok\r\n\r\n").await;
    assert_eq!(status(&response), 417);
    assert_eq!(h.requests(), 0);
    let h2c = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    assert_eq!(status(&rig.raw(h2c).await), 200);
    assert!(!h.last().headers.contains_key("http2-settings") && !h.last().headers.contains_key("upgrade"));
    let expect =
        "POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab";
    let response = rig.raw(expect).await;
    assert!(response.starts_with("HTTP/1.1 100 Continue") && response.ends_with("ab"), "{response}");
}

#[tokio::test]
async fn a_get_with_a_chunked_body_keeps_it() {
    let (rig, _h) = rig().await;
    let get = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert!(rig.raw(get).await.ends_with("\r\n\r\nabc"));
}

#[tokio::test]
async fn random_bytes_do_no_harm() {
    let (rig, h) = rig().await;
    let good = b"POST /p?q HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\n\r\n";
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    let mut jobs = Vec::new();
    for _ in 0..100 {
        let mut bytes = good.to_vec();
        for _ in 0..1 + random() % 4 {
            let at = random() % bytes.len();
            bytes[at] = random() as u8;
        }
        jobs.push(rig.raw(bytes));
    }
    futures::future::join_all(jobs).await;
    assert_eq!(status(&rig.get("a.test", "/").await), 200);
    assert_eq!(h.last().uri, "/");
}
