//! A hostile guest of WASI 0.3: subtasks without number, streams and futures that nobody reads, traps in
//! tasks that outlive the answer. The path names the attack, `n` its size; it answers how far it got.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::join_all;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use wasip3::clocks::monotonic_clock::{now, wait_for};
use wasip3::http::types::{self, ErrorCode};
use wasip3::http_compat::{IncomingRequestBody, http_from_wasi_request, http_into_wasi_response};

wasip3::http::service::export!(Guest);

const MS: u64 = 1_000_000;
const DAY: u64 = 86_400_000 * MS;

struct Guest;

impl wasip3::exports::http::handler::Guest for Guest {
    async fn handle(request: types::Request) -> Result<types::Response, ErrorCode> {
        http_into_wasi_response(serve(http_from_wasi_request(request)?).await)
    }
}

type Answer = http::Response<UnsyncBoxBody<Bytes, ErrorCode>>;

async fn serve(request: http::Request<IncomingRequestBody>) -> Answer {
    let n: u64 = request.uri().query().and_then(|q| q.strip_prefix("n=")).map_or(0, |n| n.parse().unwrap_or(0));
    match request.uri().path() {
        // Each wait is a subtask of the host.
        "/fork" => {
            join_all((0..n).map(|_| wait_for(50 * MS))).await;
            full(format!("forked {n}\n"))
        }
        "/fork-forever" => {
            join_all((0..n).map(|_| wait_for(DAY))).await;
            full("a day later\n".to_owned())
        }
        // They go on when the answer is out.
        "/orphans" => {
            (0..n).for_each(|_| drop(wasip3::spawn_local(wait_for(DAY))));
            full(format!("left {n}\n"))
        }
        "/streams" => {
            let held: Vec<_> = (0..n).map(|_| wasip3::wit_stream::new::<u8>()).collect();
            full(format!("held {}\n", held.len()))
        }
        "/futures" => {
            let held: Vec<_> = (0..n).map(|_| wasip3::wit_future::new::<Result<(), ErrorCode>>(|| Ok(()))).collect();
            full(format!("held {}\n", held.len()))
        }
        "/trap-in-subtask" => {
            wasip3::spawn_local(async {
                wait_for(20 * MS).await;
                std::process::abort();
            });
            full("spawned\n".to_owned())
        }
        // For `n` milliseconds, or for ever.
        "/spin-in-subtask" => {
            wasip3::spawn_local(async move {
                wait_for(20 * MS).await;
                let end = now() + n * MS;
                while n == 0 || now() < end {
                    std::hint::black_box(0);
                }
                println!("spun {n}");
            });
            full("spawned\n".to_owned())
        }
        // Times the same work ten times: the nanoseconds of each.
        "/probe" => {
            let took: Vec<_> = (0..10)
                .map(|_| {
                    let begin = now();
                    (0..n).for_each(|n| {
                        std::hint::black_box(n);
                    });
                    (now() - begin).to_string()
                })
                .collect();
            full(took.join("\n"))
        }
        "/endless" => http::Response::new(Endless.map_err(|never| match never {}).boxed_unsync()),
        "/echo" => http::Response::new(request.into_body().boxed_unsync()),
        "/unread" => {
            wait_for(DAY).await;
            full("unread\n".to_owned())
        }
        _ => full("hello from WASI 0.3\n".to_owned()),
    }
}

fn full(text: String) -> Answer {
    http::Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync())
}

/// A body that never ends.
struct Endless;

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        static BLOCK: [u8; 16 << 10] = [b'x'; 16 << 10];
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(&BLOCK)))))
    }
}
