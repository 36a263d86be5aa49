//! What the platform answers itself, on a real daemon's Unix socket.

use std::sync::Arc;

use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::testing::{TestCa, TestHost, problem_of};

#[tokio::test]
async fn a_request_for_no_instance_may_go_elsewhere() {
    let host = TestHost::start("h1", Arc::new(TestCa::new())).await;
    let request = |instance: Option<&[u8]>| {
        let mut builder = Request::builder().uri("/a?b").header("host", "hello.localhost");
        if let Some(instance) = instance {
            builder = builder.header(INSTANCE, HeaderValue::from_bytes(instance).unwrap());
        }
        builder.body(Full::default()).unwrap()
    };
    for (instance, kind) in [
        (Some(b"hello-r1-0".as_slice()), ProblemKind::InstanceGone),
        (Some(b""), ProblemKind::InstanceGone),
        (Some(b"\xff\xfe"), ProblemKind::InstanceGone),
        (None, ProblemKind::BadRequest),
    ] {
        let response = host.request(request(instance)).await;
        assert_eq!(problem_of(&response).kind, kind);
        assert_eq!(response.headers()[PLATFORM_ERROR], kind.slug());
        assert_eq!(response.headers()[NOT_STARTED], "1");
    }
    let metrics = host.get("/metrics").await.unwrap();
    let text = std::str::from_utf8(metrics.body()).unwrap();
    assert!(text.contains("marcato_host_ingress_platform_errors_total 4"), "{text}");
    assert!(text.contains("marcato_host_ingress_responses_total{class=\"5xx\"} 3"), "{text}");
}

#[tokio::test]
async fn an_error_explains_itself_when_the_owner_asks_and_only_then() {
    let host = TestHost::start("h1", Arc::new(TestCa::new())).await;
    for (explain, detail) in
        [(true, "this host does not have the instance"), (false, ProblemKind::InstanceGone.title())]
    {
        let mut request = Request::builder().uri("/").header("host", "a").header(INSTANCE, "hello-r1-0");
        if explain {
            request = request.header(EXPLAIN, "1");
        }
        let response = host.request(request.body(Full::default()).unwrap()).await;
        assert_eq!(problem_of(&response).detail, detail);
    }
}

#[test]
fn an_explanation_has_the_limit_and_the_reason_within_bounds() {
    let error = InvokeError {
        limit: Some(FiredLimit { name: "queue", value: Some(2), used: None }),
        ..InvokeError::not_started(ProblemKind::QueueFull, "limit queue (2 requests) reached")
    };
    let told = explanation(&error);
    assert_eq!((told.limit.as_deref(), told.limit_value, told.used), (Some("queue"), Some(2), None));
    assert_eq!((told.problem.detail.as_str(), told.reason.len()), ("limit queue (2 requests) reached", 0));
    let long = format!("a\n\n  \n{}", "\u{fc}".repeat(5_000) + &"\nline".repeat(50));
    let told = explanation(&InvokeError { reason: Some(long.into()), ..error });
    assert_eq!((told.reason.len(), told.reason[0].as_str(), told.reason[2].as_str()), (16, "a", "line"));
    assert_eq!(told.reason[1], "\u{fc}".repeat(REASON_LINE), "cut between characters");
}

#[tokio::test]
async fn garbage_ends_its_connection_and_nothing_else() {
    let host = TestHost::start("h1", Arc::new(TestCa::new())).await;
    let long_header = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(200_000));
    let garbage: [&[u8]; 5] = [
        b"\x16\x03\x01\x02\x00",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
        b"GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        long_header.as_bytes(),
    ];
    for bytes in garbage {
        let mut stream = tokio::net::UnixStream::connect(&host.ingress).await.unwrap();
        // The daemon may close before it has read all.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    let request = Request::builder().uri("/").header("host", "a").body(Full::default()).unwrap();
    assert_eq!(host.request(request).await.status(), 400, "it still serves");
}

#[test]
fn a_guest_cannot_speak_for_the_platform() {
    let mut map = HeaderMap::new();
    for name in ["x-marcato-error", "x-marcato-not-started", "x-marcato-anything", "x-other"] {
        map.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
        map.append(HeaderName::from_static(name), HeaderValue::from_static("2"));
    }
    remove_internal(&mut map);
    assert_eq!(map.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-other"]);
}
