//! Garbage to every parser that faces outside: raw bytes to the listeners, JSON to the admin API,
//! components that are none. Nothing dies, every answer is a refusal, and good requests go on.

use std::time::Duration;

use anyhow::Result;
use http::Method;
use marcato_api::{Digest, admin_paths};
use marcato_tests::{Cluster, Deploy, Socket, guest, is_alive};
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster;

/// Requests that two HTTP parsers could read in two ways, or that none should read at all. All must be refused.
const SMUGGLED: &[(&str, &str)] = &[
    ("two lengths", "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"),
    (
        "length and chunks",
        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("odd coding", "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    ("coding in 1.0", "POST / HTTP/1.0\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("negative length", "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: -1\r\n\r\n"),
    ("signed length", "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: +4\r\n\r\nabcd"),
    ("huge length", "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 99999999999999999999999\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nHost: HOST\r\nHost: other.localhost\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\n\r\n"),
    ("blank before colon", "GET / HTTP/1.1\r\nHost: HOST\r\nX-A : b\r\n\r\n"),
    ("folded header", "GET / HTTP/1.1\r\nHost: HOST\r\nX-A: b\r\n c\r\n\r\n"),
    ("nul in header", "GET / HTTP/1.1\r\nHost: HOST\r\nX-A: b\0c\r\n\r\n"),
    ("bad chunk size", "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n"),
    ("unknown version", "GET / HTTP/3.7\r\nHost: HOST\r\n\r\n"),
    ("connect", "CONNECT internal:22 HTTP/1.1\r\nHost: internal:22\r\n\r\n"),
];

/// Sends bytes and reads until the peer closes, or answers and then is silent, or a bound passes. Our side
/// stays open: a half-closed connection would be a reason of its own to answer nothing.
async fn exchange(cluster: &Cluster, bytes: &[u8]) -> Result<String> {
    let Socket::Tcp(address) = cluster.app("shop")?.socket else { unreachable!("the edge listens on TCP") };
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    // The peer may close before all is written: that is a refusal too.
    drop(stream.write_all(bytes).await);
    let mut answer = Vec::new();
    loop {
        let bound = if answer.is_empty() { Duration::from_secs(20) } else { Duration::from_millis(300) };
        match tokio::time::timeout(bound, stream.read_buf(&mut answer)).await {
            Ok(Ok(1..)) => {}
            _ => return Ok(String::from_utf8_lossy(&answer).into_owned()),
        }
    }
}

async fn assert_serves(cluster: &Cluster) -> Result<()> {
    assert_eq!(cluster.app("shop")?.get("/").await?.text(), "hello\n");
    assert_eq!(cluster.app_secure("shop")?.get("/").await?.text(), "hello\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_refuses_what_two_parsers_could_read_in_two_ways() -> Result<()> {
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    let router = cluster.router()?;
    let good = exchange(&cluster, b"GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await?;
    assert!(good.starts_with("HTTP/1.1 200") && good.contains("hello"), "a good request on the same path: {good}");
    for (name, template) in SMUGGLED {
        let answer = exchange(&cluster, template.replace("HOST", "shop.localhost").as_bytes()).await?;
        let status = answer.split_whitespace().nth(1).unwrap_or("closed");
        assert!(status == "closed" || status.starts_with('4') || status.starts_with("50"), "{name}: {answer}");
        assert!(!answer.contains("hello\n"), "{name} reached the app: {answer}");
    }
    let upgrade = "GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    let answer = exchange(&cluster, upgrade.as_bytes()).await?;
    assert!(!answer.starts_with("HTTP/1.1 101"), "an upgrade is refused: {answer}");
    assert!(
        answer.split_whitespace().nth(1).is_some_and(|s| s.starts_with('4') || s.starts_with('5')),
        "clearly: {answer}"
    );
    let many: String = (0..2000).map(|n| format!("X-{n}: v\r\n")).collect();
    let answer = exchange(&cluster, format!("GET / HTTP/1.1\r\nHost: shop.localhost\r\n{many}\r\n").as_bytes()).await?;
    assert!(!answer.contains("200 OK"), "header count is limited: {answer}");
    let long = format!("GET / HTTP/1.1\r\nHost: shop.localhost\r\nX: {}\r\n\r\n", "a".repeat(1 << 20));
    let answer = exchange(&cluster, long.as_bytes()).await?;
    assert!(!answer.contains("200 OK"), "header size is limited");
    assert!(is_alive(router), "the router died");
    assert_serves(&cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_kill_nobody() -> Result<()> {
    let cluster = cluster(1).await?;
    cluster.admin()?.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    let (router, host) = (cluster.router()?, cluster.host(1)?);
    let port = |url: &str| url.trim_end_matches('/').rsplit(':').next().and_then(|p| p.parse::<u16>().ok());
    let ports =
        [&cluster.endpoints.http, &cluster.endpoints.https, &cluster.endpoints.admin].map(|u| port(u).expect("port"));
    // A fixed seed: a failure comes again.
    let mut random = rand::rngs::StdRng::seed_from_u64(3);
    for round in 0..120 {
        let mut bytes: Vec<u8> = (0..random.random_range(1..4096)).map(|_| random.random()).collect();
        match round % 4 {
            0 => bytes.splice(0..0, *b"GET / HTTP/1.1\r\nHost: shop.localhost\r\n").for_each(drop),
            1 => bytes.splice(0..0, *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").for_each(drop),
            2 => bytes.splice(0..0, [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).for_each(drop),
            _ => {}
        }
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", ports[round % 3])).await?;
        drop(stream.write_all(&bytes).await);
        drop(stream.shutdown().await);
        let mut answer = Vec::new();
        drop(tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await?);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "round {round}: {}", String::from_utf8_lossy(&answer));
    }
    assert!(is_alive(router) && is_alive(host), "a process died");
    assert_serves(&cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_answers_garbage_with_problems() -> Result<()> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    let json = "application/json";
    let cases: &[(Method, &str, &str, &[u8])] = &[
        (Method::PUT, "/v1/apps/shop", json, b"{"),
        (Method::PUT, "/v1/apps/shop", json, b"[1,2,3]"),
        (Method::PUT, "/v1/apps/shop", json, b"{\"instances\":-1}"),
        (Method::PUT, "/v1/apps/shop", json, b"{\"instances\":4000000000000}"),
        (Method::PUT, "/v1/apps/shop", json, b"{\"unknown\":1}"),
        (Method::PUT, "/v1/apps/shop", json, b"\xff\xfe\x00"),
        (Method::PUT, "/v1/apps/shop", "text/plain", b"{}"),
        (Method::PUT, "/v1/apps/Not_A_Label", json, b"{}"),
        (Method::PUT, "/v1/apps/..%2f..%2fetc", json, b"{}"),
        (Method::PATCH, "/v1/apps/shop", json, b"null"),
        (Method::POST, "/v1/apps/shop/revisions", json, b"{\"digest\":\"sha256:zz\"}"),
        (Method::POST, "/v1/hosts/join", json, b"{\"id\":\"h9\",\"csr_pem\":\"garbage\"}"),
        (Method::PUT, "/v1/services/x", json, b"{\"kind\":\"mongodb\"}"),
        (Method::PUT, "/v1/tokens/x", json, b"{\"role\":\"root\"}"),
        (Method::PUT, "/v1/components/sha256:12", "application/wasm", b"x"),
        (Method::GET, "/v1/apps/shop/revisions/minus-one", json, b""),
        (Method::GET, "/v1/apps?limit=many", json, b""),
        (Method::GET, "/v1/nothing/here", json, b""),
        (Method::DELETE, "/v1/apps", json, b""),
    ];
    for (method, path, content_type, body) in cases {
        let answer = admin.raw(method.clone(), path, content_type, body.to_vec()).await?;
        assert!((400..500).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
        let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        assert!(
            problem["type"].as_str().is_some_and(|t| t.starts_with("urn:marcato:problem:")),
            "{method} {path}: {}",
            answer.text()
        );
    }
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = admin.raw(Method::PUT, "/v1/apps/shop", json, nested.into_bytes()).await?;
    assert!((400..500).contains(&answer.status), "nesting: {}", answer.status);
    let huge = admin.raw(Method::PUT, "/v1/apps/shop", json, vec![b' '; 32 << 20]).await;
    assert!(huge.as_ref().map_or(true, |a| (400..500).contains(&a.status)), "size: {huge:?}");
    let open: serde_json::Value = admin.get(admin_paths::OPENAPI).await?;
    assert!(open["paths"].as_object().is_some_and(|p| p.len() > 10), "the OpenAPI document lists the paths");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_component_is_refused_with_a_reason() -> Result<()> {
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    let good = std::fs::read(guest("guest-behaviour")?)?;
    let mut flipped = good.clone();
    for at in (1000..flipped.len()).step_by(7001) {
        flipped[at] ^= 0x5a;
    }
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("text", b"this is not wasm at all".to_vec()),
        ("core module", b"\0asm\x01\0\0\0".to_vec()),
        ("cut short", good[..good.len() / 2].to_vec()),
        ("flipped bits", flipped),
    ];
    for (name, bytes) in cases {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("bad.wasm");
        std::fs::write(&file, &bytes)?;
        let app = name.replace(' ', "-");
        let error = admin.deploy(&file, &Deploy::new(&app)).await.expect_err(name);
        let text = format!("{error:#}");
        assert!(text.contains("422") || text.contains("Failed"), "{name}: {text}");
        // The command finds it before any upload.
        let out = cluster.cli(&["push", file.to_str().expect("utf-8")]).await?;
        assert!(!out.status.success(), "{name}: push succeeded");
        assert!(!out.stderr.is_empty(), "{name}: push says why");
    }
    let lied = admin_paths::component(&Digest::of(b"other bytes"));
    let answer = admin.raw(Method::PUT, &lied, "application/wasm", good).await?;
    assert_eq!(answer.status, 422, "the digest is checked: {}", answer.text());
    admin.deploy(&guest("guest-behaviour")?, &Deploy::new("shop")).await?;
    assert_serves(&cluster).await
}
