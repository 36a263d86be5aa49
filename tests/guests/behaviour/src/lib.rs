//! A guest that behaves as its path says: `/echo` and friends are what a good app does, `/trap`,
//! `/loop`, `/alloc`, `/never` and `/flood` are what the platform must survive.
//!
//! One component, so that a test pushes once and asks for what it needs. Paths:
//! `/` hello · `/trap` · `/panic` · `/loop` · `/alloc?mb=` · `/never` · `/sleep?ms=` · `/echo` · `/sink` ·
//! `/big?bytes=` · `/flood?lines=` · `/say?text=` · `/env?name=` · `/headers` · `/counter` · `/outbound?url=` ·
//! `/status?code=` · `/id` · `/socket` · `/trailers`, as the other guest has it

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use wstd::http::body::{Body, Bytes, Frame, HttpBody};
use wstd::http::{Client, Error, HeaderMap, HeaderValue, Request, Response, Uri};
use wstd::time::Duration;

/// Grows only when a sandbox serves more than one request.
static SERVED: AtomicU64 = AtomicU64::new(0);

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let uri = request.uri().clone();
    let query = |name: &str| parameter(&uri, name);
    let number = |name: &str| query(name).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    let served = SERVED.fetch_add(1, Ordering::Relaxed) + 1;
    match uri.path() {
        "/" => text("hello\n"),
        "/trap" => std::process::abort(),
        "/panic" => panic!("the guest panics, as asked"),
        "/loop" => spin(),
        "/alloc" => text(format!("{}\n", allocate(number("mb")))),
        "/never" => {
            // Waits in the host: a guest that waits for nothing at all traps.
            wstd::task::sleep(Duration::from_secs(86_400)).await;
            text("a day later\n")
        }
        "/sleep" => {
            wstd::task::sleep(Duration::from_millis(number("ms"))).await;
            text("awake\n")
        }
        "/echo" => Ok(Response::new(request.into_body())),
        "/sink" => text(format!("{}\n", drain(request.into_body()).await?)),
        "/big" => Ok(Response::new(Body::from_http_body(Zeros { left: number("bytes") }))),
        "/flood" => {
            for line in 0..number("lines") {
                println!("flood line {line}");
            }
            text("flooded\n")
        }
        "/say" => {
            let said = query("text").unwrap_or_default();
            println!("{said}");
            eprintln!("{said} (stderr)");
            text("said\n")
        }
        "/env" => text(std::env::var(query("name").unwrap_or_default()).unwrap_or_else(|_| "unset".into())),
        "/headers" => {
            let lines =
                request.headers().iter().map(|(n, v)| format!("{n}: {}\n", String::from_utf8_lossy(v.as_bytes())));
            text(lines.collect::<String>())
        }
        "/socket" => text(match std::net::TcpStream::connect("192.0.2.1:80") {
            Ok(_) => "connected\n".to_owned(),
            Err(error) => format!("{:?}\n", error.kind()),
        }),
        "/trailers" => trailers(request).await,
        "/counter" => text(format!("{served}\n")),
        "/outbound" => outbound(&query("url").unwrap_or_default()).await,
        "/status" => {
            let code = u16::try_from(number("code")).unwrap_or(500);
            Ok(Response::builder().status(code).body(Body::from("as asked\n".to_owned()))?)
        }
        "/id" => text(std::env::var("REVISION").unwrap_or_else(|_| "none".into())),
        _ => Ok(Response::builder().status(404).body(Body::from("no such behaviour\n".to_owned()))?),
    }
}

fn text(body: impl Into<String>) -> Result<Response<Body>, Error> {
    Ok(Response::new(Body::from(body.into())))
}

fn parameter(uri: &Uri, name: &str) -> Option<String> {
    uri.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then(|| value.replace("%3A", ":").replace("%2F", "/").replace("%20", " "))
    })
}

/// Never gives the processor back of its own will.
fn spin() -> ! {
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

/// Takes memory and touches it, so that it is really there.
fn allocate(megabytes: u64) -> u64 {
    let mut held = Vec::new();
    for n in 0..megabytes {
        let mut block = vec![0_u8; 1 << 20];
        block.iter_mut().step_by(4096).for_each(|b| *b = 1);
        held.push(block);
        std::hint::black_box((&held, n));
    }
    held.len() as u64
}

async fn drain(body: Body) -> Result<u64, Error> {
    let mut body = std::pin::pin!(body.into_boxed_body());
    let mut seen = 0;
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        seen += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(seen)
}

/// The body says which trailers came; they go back with some of the guest's own, of which only one is its to send.
async fn trailers(request: Request<Body>) -> Result<Response<Body>, Error> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let mut body = std::pin::pin!(request.into_body().into_boxed_body());
    let mut came = HeaderMap::new();
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        if let Ok(trailers) = frame?.into_trailers() {
            came = trailers;
        }
    }
    let mut lines: Vec<_> =
        came.iter().map(|(name, value)| format!("{name}={}\n", String::from_utf8_lossy(value.as_bytes()))).collect();
    lines.sort();
    let mut trailers = came;
    for (name, value) in
        [("x-checksum", "abc"), ("x-marcato-error", "gone"), ("x-marcato-trailers", "host=evil"), ("set-cookie", "a=b")]
    {
        trailers.insert(name, HeaderValue::from_static(value));
    }
    if query == "long" {
        trailers.insert("x-long", HeaderValue::try_from("y".repeat(5_000))?);
    }
    let data = Frame::data(Bytes::from(format!("body\n{}", lines.concat())));
    let mut response = Response::new(Body::from_http_body(Frames(VecDeque::from([data, Frame::trailers(trailers)]))));
    if query != "unnamed" {
        let names = HeaderValue::from_static("x-checksum, X-Sum, set-cookie, x-marcato-error");
        response.headers_mut().insert("trailer", names);
    }
    Ok(response)
}

async fn outbound(url: &str) -> Result<Response<Body>, Error> {
    let request = Request::get(url.parse::<Uri>()?).body(Body::empty())?;
    match Client::new().send(request).await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            text(format!("outbound {status}\n"))
        }
        Err(error) => text(format!("outbound refused: {error:#}\n")),
    }
}

/// A body that is all there.
struct Frames(VecDeque<Frame<Bytes>>);

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.pop_front().map(Ok))
    }
}

/// A body of so many zeros, made as it is sent.
struct Zeros {
    left: u64,
}

impl HttpBody for Zeros {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        static BLOCK: [u8; 64 << 10] = [0; 64 << 10];
        if self.left == 0 {
            return std::task::Poll::Ready(None);
        }
        let size = self.left.min(BLOCK.len() as u64);
        self.left -= size;
        let data = Bytes::from_static(&BLOCK[..usize::try_from(size).unwrap_or(BLOCK.len())]);
        std::task::Poll::Ready(Some(Ok(Frame::data(data))))
    }
}
