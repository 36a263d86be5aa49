//! A WASI 0.3 guest: the other ABI that the platform serves. `/` says hello, `/echo` streams the body
//! back, `/counter` tells how many requests this sandbox has served, `/sleep` waits 200 ms so that
//! requests meet in one sandbox, `/trap` traps, `/trailers` answers with those that came and some more
//! (`?unnamed` does not announce them, `?long` sends one of 5,000 bytes), `/socket` tries to connect.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use wasip3::http::types::{self, ErrorCode};
use wasip3::http_compat::{IncomingRequestBody, http_from_wasi_request, http_into_wasi_response};

wasip3::http::service::export!(Guest);

static SERVED: AtomicU64 = AtomicU64::new(0);

struct Guest;

impl wasip3::exports::http::handler::Guest for Guest {
    async fn handle(request: types::Request) -> Result<types::Response, ErrorCode> {
        http_into_wasi_response(serve(http_from_wasi_request(request)?).await)
    }
}

async fn serve(request: http::Request<IncomingRequestBody>) -> http::Response<UnsyncBoxBody<Bytes, ErrorCode>> {
    let served = SERVED.fetch_add(1, Ordering::Relaxed) + 1;
    let body = match request.uri().path() {
        "/echo" => request.into_body().boxed_unsync(),
        "/counter" => full(format!("{served}\n")),
        "/sleep" => {
            wasip3::clocks::monotonic_clock::wait_for(200_000_000).await;
            full(format!("{served}\n"))
        }
        "/trap" => std::process::abort(),
        "/trailers" => return trailers(request).await,
        "/socket" => full(connect().await),
        _ => full("hello from WASI 0.3\n".to_owned()),
    };
    http::Response::new(body)
}

fn full(text: String) -> UnsyncBoxBody<Bytes, ErrorCode> {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

/// The body says which trailers came; they go back with some of the guest's own, of which only one is its to send.
async fn trailers(request: http::Request<IncomingRequestBody>) -> http::Response<UnsyncBoxBody<Bytes, ErrorCode>> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let came = request.into_body().collect().await.ok().and_then(|b| b.trailers().cloned()).unwrap_or_default();
    let mut lines: Vec<_> =
        came.iter().map(|(name, value)| format!("{name}={}\n", String::from_utf8_lossy(value.as_bytes()))).collect();
    lines.sort();
    let mut trailers = came;
    for (name, value) in
        [("x-checksum", "abc"), ("x-marcato-error", "gone"), ("x-marcato-trailers", "host=evil"), ("set-cookie", "a=b")]
    {
        trailers.insert(name, http::HeaderValue::from_static(value));
    }
    if query == "long" {
        trailers.insert("x-long", http::HeaderValue::try_from("y".repeat(5_000)).expect("a value"));
    }
    let body = full(format!("body\n{}", lines.concat())).with_trailers(async { Some(Ok(trailers)) });
    let mut response = http::Response::new(body.boxed_unsync());
    if query != "unnamed" {
        let names = http::HeaderValue::from_static("x-checksum, X-Sum, set-cookie, x-marcato-error");
        response.headers_mut().insert("trailer", names);
    }
    response
}

/// What a socket says.
async fn connect() -> String {
    use wasip3::sockets::types::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket};
    let address = IpSocketAddress::Ipv4(Ipv4SocketAddress { port: 80, address: (192, 0, 2, 1) });
    match TcpSocket::create(IpAddressFamily::Ipv4) {
        Ok(socket) => format!("connect: {:?}\n", socket.connect(address).await),
        Err(code) => format!("create: {code:?}\n"),
    }
}
