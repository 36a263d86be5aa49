//! TLS, HTTP/2, mutual TLS to hosts, limits on connections, drain.

use http_body_util::Empty;
use hyper_util::rt::TokioExecutor;
use marcato_api::Millis;
use rustls_pki_types::ServerName;
use tokio::net::TcpListener;

use super::*;

async fn tls(rig: &Rig, alpn: &[&[u8]]) -> tokio_rustls::client::TlsStream<TcpStream> {
    let stream = TcpStream::connect(rig.https).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(client_tls(rig.ca.clone(), alpn));
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
}

pub(crate) async fn http2<T>(io: T) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    tokio::spawn(conn);
    sender
}

fn get(uri: &str) -> Request<Empty<Bytes>> {
    Request::get(uri).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn http2_is_served_plain_and_over_tls() {
    let rig = Rig::new(|_| {}).await;
    let h = host(&rig.socket("h"), |_| async { answer("hello") });
    rig.app("a", &[&h.path]);
    let plain = http2(TcpStream::connect(rig.http).await.unwrap()).await;
    let stream = tls(&rig, &[b"h2", b"http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let secure = http2(stream).await;
    for (mut sender, scheme) in [(plain, "http"), (secure, "https")] {
        let uri = format!("{scheme}://a.test/path?q");
        let (one, two) = (sender.send_request(get(&uri)), sender.clone().send_request(get(&uri)));
        let (one, two) = tokio::join!(one, two);
        for response in [one.unwrap(), two.unwrap()] {
            assert_eq!((response.status().as_u16(), response.headers().contains_key("x-request-id")), (200, true));
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
        }
        let head = h.last();
        assert_eq!((head.uri.to_string().as_str(), head.headers["host"].to_str().unwrap()), ("/path?q", "a.test"));
        assert_eq!(head.headers["x-forwarded-proto"], scheme);
        let mut crumbs = get(&uri);
        crumbs.headers_mut().append("cookie", "a=1".parse().unwrap());
        crumbs.headers_mut().append("cookie", "b=2".parse().unwrap());
        assert_eq!(sender.send_request(crumbs).await.unwrap().status(), 200);
        assert_eq!(h.last().headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        let mut head = get("http://nowhere.test/");
        *head.method_mut() = http::Method::HEAD;
        let response = sender.send_request(head).await.unwrap();
        assert_eq!(response.status(), 404);
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
        let mut other = get(&uri);
        other.headers_mut().insert("host", "b.test".parse().unwrap());
        assert_eq!(sender.send_request(other).await.unwrap().status(), 400);
    }
}

#[tokio::test]
async fn http1_is_served_over_tls() {
    let rig = Rig::new(|c| c.tls_handshake_ms = Millis(200)).await;
    let h = host(&rig.socket("h"), |_| async { answer("hello") });
    rig.app("a", &[&h.path]);
    // One that never shakes hands does not delay another.
    let mut silent = TcpStream::connect(rig.https).await.unwrap();
    let mut stream = tls(&rig, &[]).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await.unwrap();
    assert_eq!(body(&read_all(&mut stream).await), "hello");
    assert_eq!(read_all(&mut silent).await, "");
    let mut plain = TcpStream::connect(rig.https).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    read_all(&mut plain).await;
    until("both failures are counted", || rig.metric("marcato_edge_tls_failures_total") == 2.0).await;
}

#[tokio::test]
async fn hosts_over_tcp_are_reached_by_mutual_tls() {
    let ca = Tls::new();
    let (cert, key) = ca.leaf("router.marcato.internal");
    let upstream = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(ca.roots())
        .with_client_auth_cert(vec![cert], key)
        .unwrap();
    let rig = Rig::with_upstream(|_| {}, Arc::new(upstream), &ca).await;
    for (name, expected) in [("h1.ingress.marcato.internal", 200), ("h2.ingress.marcato.internal", 502)] {
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(ca.roots()), provider())
            .build()
            .unwrap();
        let (cert, key) = ca.leaf(name);
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![cert], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                assert!(stream.get_ref().1.peer_certificates().is_some());
                let service = service_fn(|_| async { Ok::<_, Infallible>(answer("secure")) });
                let conn = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(conn);
            }
        });
        let mut app = spec("a", &["a.test"], &[Path::new("/unused")]);
        app.endpoints[0].address = HostAddress::Tcp(address);
        rig.publish(app);
        let response = rig.get("a.test", "/").await;
        assert_eq!(status(&response), expected, "{response}");
    }
}

#[tokio::test]
async fn connections_have_a_limit() {
    let rig = Rig::new(|c| c.max_connections = 1).await;
    let h = host(&rig.socket("h"), |_| async { answer("hello") });
    rig.app("a", &[&h.path]);
    let held = TcpStream::connect(rig.http).await.unwrap();
    until("it is accepted", || rig.metric("marcato_edge_connections") == 1.0).await;
    // The second waits until there is a place.
    let mut second = std::pin::pin!(rig.get("a.test", "/"));
    let early = tokio::time::timeout(Duration::from_millis(100), second.as_mut()).await;
    assert!(early.is_err() && h.requests() == 0);
    drop(held);
    assert_eq!(body(&second.await), "hello");
}

#[tokio::test]
async fn requests_have_a_limit() {
    let rig = Rig::new(|c| c.max_in_flight = 0).await;
    assert_eq!(status(&rig.get("a.test", "/").await), 503);
}

#[tokio::test]
async fn drain_finishes_what_is_in_flight() {
    let rig = Rig::new(|_| {}).await;
    let (go, gone) = tokio::sync::watch::channel(false);
    let h = host(&rig.socket("h"), move |_| {
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|g| *g).await.unwrap();
            answer("finished")
        }
    });
    rig.app("a", &[&h.path]);
    // A kept-alive one in flight, one without a request, an idle HTTP/2 one and one in flight.
    let mut busy = TcpStream::connect(rig.http).await.unwrap();
    busy.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    let mut silent = TcpStream::connect(rig.http).await.unwrap();
    let mut two = http2(TcpStream::connect(rig.http).await.unwrap()).await;
    let request = tokio::spawn(two.send_request(get("http://a.test/")));
    until("both are in flight", || h.requests() == 2).await;
    rig.shutdown.cancel();
    assert_eq!(read_all(&mut silent).await, "");
    until("nobody listens", || std::net::TcpStream::connect(rig.http).is_err()).await;
    assert!(!rig.served.is_finished());
    go.send_replace(true);
    let response = read_all(&mut busy).await;
    assert!(body(&response) == "finished" && response.contains("connection: close"), "{response}");
    let response = request.await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "finished");
    tokio::time::timeout(Duration::from_secs(5), rig.served).await.expect("the drain ends").unwrap().unwrap();
}

#[tokio::test]
async fn drain_is_bounded() {
    let rig = Rig::new(|c| c.drain_ms = Millis(100)).await;
    let h = host(&rig.socket("h"), |_| std::future::pending());
    rig.app("a", &[&h.path]);
    let mut busy = TcpStream::connect(rig.http).await.unwrap();
    busy.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    until("it is in flight", || h.requests() == 1).await;
    rig.shutdown.cancel();
    assert_eq!(read_all(&mut busy).await, "");
    tokio::time::timeout(Duration::from_secs(5), rig.served).await.expect("the drain ends").unwrap().unwrap();
}

#[tokio::test]
async fn idle_http2_connections_go() {
    let rig = Rig::new(|c| c.http2_idle_ms = Millis(50)).await;
    let h = host(&rig.socket("h"), |_| async { answer("hello") });
    rig.app("a", &[&h.path]);
    let mut two = http2(TcpStream::connect(rig.http).await.unwrap()).await;
    two.send_request(get("http://a.test/")).await.unwrap().into_body().collect().await.unwrap();
    until("it is let go", || rig.metric("marcato_edge_connections") == 0.0).await;
}
