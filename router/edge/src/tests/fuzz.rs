//! Fuzz target: what a client writes to a listener, read by the whole edge and by a host's own parser behind it.

use marcato_api::Millis;
use marcato_fuzz::{Input, PanicWatch, target};

use super::*;

const GOOD: &[&[u8]] = &[
    b"GET /a?b HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhelloGET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n3;e=\"1\"\r\nabc\r\n0\r\nx: y\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: A.test:80\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n",
    b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nConnection: x-a, keep-alive\r\nX-A: 1\r\nCookie: a\r\nCookie: b\r\nUpgrade: h2c\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nHost: a.test\r\n\r\n",
    // HTTP/2: the preface, settings, one request, a window, a ping.
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x0b\x01\x05\0\0\0\x01\x82\x86\x84\x41\x06a.test\0\0\x04\x08\0\0\0\0\0\0\x01\0\0\0\0\x08\x06\0\0\0\0\x0012345678",
    // TLS: the beginning of a handshake.
    b"\x16\x03\x01\0\x31\x01\0\0\x2d\x03\x03abcdefghijklmnopqrstuvwxyz012345\0\0\x02\x13\x01\x01\0\0\x02\0\0",
];
const WORDS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n",
    b"POST / HTTP/1.1\r\n",
    b"GET /x HTTP/1.0\r\n",
    b"Host: a.test\r\n",
    b"Host: b.test\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"Content-Length: 3\r\n",
    b"Content-Length: 4\r\n",
    b"Content-Length: +3\r\n",
    b"Content-Length: 18446744073709551616\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: Content-Length, Host\r\n",
    b"Expect: 100-continue\r\n",
    b"x-marcato-evil: 1\r\n",
    b"X-Marcato-Instance: a-9\r\n",
    b"Upgrade: websocket\r\n",
    b"TE: trailers\r\n",
    b"Keep-Alive: 5\r\n",
    b" folded\r\n",
    b"abc",
    b"\0",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"FFFFFFFFFFFFFFFF\r\n",
    b"0x3\r\n",
    b"0\r\nHost: b.test\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\0\0\0\x04\x01\0\0\0\0",
    b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08",
    b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0",
    b"\xff\xff\xff\x01\x04\0\0\0\x03",
];

/// Requests that the edge finished, whatever became of them.
fn finished(rig: &Rig) -> f64 {
    marcato_balance::CLASSES
        .map(|class| rig.metric(&format!("marcato_edge_requests_total{{class=\"{class}\"}}")))
        .iter()
        .sum()
}

/// Writes all of it and reads to the end; the edge has to end the connection by itself or after our end.
async fn exchange(address: std::net::SocketAddr, bytes: &[u8], is_patient: bool) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = stream.split();
    let writing = async {
        // The edge may have ended it by now.
        let _ = write.write_all(bytes).await;
        if !is_patient {
            let _ = write.shutdown().await;
        }
    };
    tokio::join!(writing, read_all(&mut read)).1
}

async fn check(rig: &Rig, h: &Host, bytes: &[u8], to_tls: bool, is_patient: bool) {
    let watch = PanicWatch::begin();
    h.seen.lock().unwrap().clear();
    let before = finished(rig);
    let answer = exchange(if to_tls { rig.https } else { rig.http }, bytes, is_patient).await;
    until("every request is finished", || finished(rig) >= before + h.requests() as f64).await;
    let seen = h.seen.lock().unwrap().clone();
    assert!(!to_tls || (seen.is_empty() && !answer.starts_with("HTTP/")), "no request without a handshake");
    for head in &seen {
        let hosts: Vec<_> =
            head.headers.get_all("host").iter().map(|v| v.to_str().unwrap().to_ascii_lowercase()).collect();
        assert!(
            matches!(hosts.as_slice(), [one] if one.split(':').next().unwrap().trim_end_matches('.') == "a.test"),
            "{hosts:?}"
        );
        assert!(!(head.headers.contains_key("content-length") && head.headers.contains_key("transfer-encoding")));
        assert!(head.headers.get_all("content-length").iter().count() <= 1, "{head:?}");
        // The edge's own word, not the client's.
        assert_eq!(head.headers.get_all("te").iter().collect::<Vec<_>>(), ["trailers"], "{head:?}");
        for name in ["upgrade", "keep-alive", "proxy-connection", "x-marcato-evil", "http2-settings", "expect"] {
            assert!(!head.headers.contains_key(name), "{name}: {head:?}");
        }
        assert_eq!(head.headers["x-marcato-instance"], "a-0", "the edge alone says which instance");
        assert!(head.uri.authority().is_none(), "{}", head.uri);
    }
    assert!(!answer.contains("internal words"), "{answer}");
    let good = rig.get("a.test", "/good").await;
    assert_eq!((status(&good), h.last().uri.path()), (200, "/good"), "others are served as before");
    watch.end();
}

/// Whatever comes: nothing panics, the connection ends in time, a host never sees more requests than the edge read, nor
/// one of two meanings or with a field that is the platform's own, and the next client is served.
#[test]
fn fuzz_connection() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (rig, h) = runtime.block_on(async {
        let rig = Rig::new(|c| {
            c.header_timeout_ms = Millis(150);
            c.tls_handshake_ms = Millis(150);
            c.upload_idle_ms = Millis(100);
            c.http2_idle_ms = Millis(150);
        })
        .await;
        let h = host(&rig.socket("h"), |r| async {
            answer(r.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default())
        });
        rig.app("a", &[&h.path]);
        (rig, h)
    });
    target!(400, |input: &(u8, Input)| {
        let (how, input) = input;
        let bytes = input.bytes(GOOD, WORDS);
        // Whoever says nothing more on HTTP/2 is let go by its keep-alive, after longer than a test waits.
        let (to_tls, is_patient) = (how % 16 == 1, how % 32 == 0 && !bytes.starts_with(b"PRI "));
        runtime.block_on(check(&rig, &h, &bytes, to_tls, is_patient));
    });
}
