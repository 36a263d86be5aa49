//! Trailers at the edge: what comes after a body goes on, packed into one field between edge and host.

use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper_util::rt::TokioExecutor;
use marcato_api::trailers;

use super::*;

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
}

fn with_trailers(trailers: HeaderMap) -> Body {
    let frames = [Frame::data(Bytes::from_static(b"body")), Frame::trailers(trailers)];
    StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>))).boxed_unsync()
}

/// A host that notes the trailers that reach it, and answers with some of its own.
fn host_with_trailers(path: &Path, seen: &Arc<Mutex<Vec<Option<HeaderMap>>>>) -> Host {
    let seen = Arc::clone(seen);
    host(path, move |request| {
        let seen = Arc::clone(&seen);
        async move {
            let trailers = request.into_body().collect().await.ok().and_then(|b| b.trailers().cloned());
            seen.lock().unwrap().push(trailers);
            let answer = map(&[("x-sum", "a, b"), ("x-other", "1")]);
            let mut response = Response::new(with_trailers(trailers::pack(&answer).unwrap()));
            // As a guest may: a name that is none of a trailer's, and one that it has not.
            response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum, host, x-none"));
            trailers::announce(response.headers_mut());
            response
        }
    })
}

const REQUEST: &str = "POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
                       Trailer: X-Sum, x-marcato-trailers, Content-Length\r\n";

#[tokio::test]
async fn trailers_of_http_1_go_on_both_ways() {
    let rig = Rig::new(|_| {}).await;
    let seen = Arc::default();
    let h = host_with_trailers(&rig.socket("h"), &seen);
    rig.app("a", &[&h.path]);
    let sent = format!(
        "{REQUEST}TE: gzip, Trailers\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1, 2\r\nHost: evil\r\nContent-Length: 9\r\n\
         X-Marcato-Error: gone\r\nx-marcato-trailers: x-forged=1\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
    );
    let response = rig.raw(&sent).await;
    let packed = seen.lock().unwrap().pop().unwrap().unwrap();
    assert_eq!(packed.keys().collect::<Vec<_>>(), ["x-marcato-trailers"]);
    assert_eq!(trailers::unpack(&packed), Some(map(&[("x-sum", "1, 2")])));
    let mut named = h.last().headers;
    assert_eq!(named.get_all("trailer").iter().collect::<Vec<_>>(), ["x-sum", "x-marcato-trailers"]);
    trailers::clean_announcement(&mut named);
    assert_eq!(named["trailer"], "x-sum");
    assert!(response.contains("trailer: x-sum, x-none\r\n"), "{response}");
    assert!(response.ends_with("4\r\nbody\r\n0\r\nx-sum: a, b\r\n\r\n"), "{response}");
    assert!(!response.contains("x-marcato"), "{response}");
}

#[tokio::test]
async fn a_client_that_does_not_ask_for_trailers_gets_none() {
    let rig = Rig::new(|_| {}).await;
    let seen = Arc::default();
    let h = host_with_trailers(&rig.socket("h"), &seen);
    rig.app("a", &[&h.path]);
    let response = rig.raw(format!("{REQUEST}TE: gzip\r\n\r\n0\r\nHost: evil\r\n\r\n")).await;
    assert_eq!(seen.lock().unwrap().pop(), Some(None), "there was none that may go on");
    assert!(response.ends_with("4\r\nbody\r\n0\r\n\r\n"), "{response}");
    assert!(!response.contains("trailer"), "{response}");
    // The connection to the host is good for the next.
    assert_eq!(status(&rig.get("a.test", "/").await), 200);
    assert_eq!(h.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn trailers_that_are_too_long_or_garbage_are_refused() {
    let rig = Rig::new(|_| {}).await;
    let seen = Arc::default();
    let h = host_with_trailers(&rig.socket("h"), &seen);
    rig.app("a", &[&h.path]);
    let long = format!("x-long: {}\r\n", "y".repeat(5_000));
    for (trailers, expected) in [
        (long.as_str(), 431),
        (&format!("x-longer: {}\r\n", "y".repeat(100_000)), 400),
        ("no field at all\r\n", 400),
        ("x-nul: \0\r\n", 400),
        (": nameless\r\n", 400),
        ("sp ace: 1\r\n", 400),
    ] {
        let response = rig.raw(format!("{REQUEST}\r\n2\r\nhi\r\n0\r\n{trailers}\r\n")).await;
        assert_eq!(status(&response), expected, "{trailers:.20}: {response}");
    }
    assert_eq!(status(&rig.get("a.test", "/").await), 200, "it still serves");
}

#[tokio::test]
async fn trailers_of_http_2_need_no_announcement() {
    let rig = Rig::new(|_| {}).await;
    let seen = Arc::default();
    let h = host_with_trailers(&rig.socket("h"), &seen);
    rig.app("a", &[&h.path]);
    let io = TokioIo::new(TcpStream::connect(rig.http).await.unwrap());
    let (mut sender, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let driver = tokio::spawn(conn);
    let body = with_trailers(map(&[("grpc-status", "0"), ("x-marcato-instance", "evil"), ("set-cookie", "a=b")]));
    let response = sender.send_request(Request::post("http://a.test/").body(body).unwrap()).await.unwrap();
    assert_eq!(response.headers()["trailer"], "x-sum, x-none");
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers(), Some(&map(&[("x-sum", "a, b"), ("x-other", "1")])));
    let packed = seen.lock().unwrap().pop().unwrap().unwrap();
    assert_eq!(trailers::unpack(&packed), Some(map(&[("grpc-status", "0")])));
    driver.abort();
}
