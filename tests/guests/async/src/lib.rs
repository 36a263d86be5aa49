//! A WASI 0.3 guest: the other ABI that the platform serves. `/` says hello, `/echo` streams the body
//! back, `/counter` tells how many requests this sandbox has served, `/sleep` waits 200 ms so that
//! requests meet in one sandbox, `/trap` traps, `/trailers` answers with one, `/socket` tries to connect.

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
        "/trailers" => {
            let trailers = http::HeaderMap::from_iter([(
                http::HeaderName::from_static("x-checksum"),
                http::HeaderValue::from_static("abc"),
            )]);
            return with_trailer_announced(
                full("body\n".to_owned()).with_trailers(async { Some(Ok(trailers)) }).boxed_unsync(),
            );
        }
        "/socket" => full(connect().await),
        _ => full("hello from WASI 0.3\n".to_owned()),
    };
    http::Response::new(body)
}

fn full(text: String) -> UnsyncBoxBody<Bytes, ErrorCode> {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

fn with_trailer_announced(body: UnsyncBoxBody<Bytes, ErrorCode>) -> http::Response<UnsyncBoxBody<Bytes, ErrorCode>> {
    let mut response = http::Response::new(body);
    response.headers_mut().insert("trailer", http::HeaderValue::from_static("x-checksum"));
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
