//! Counts the lines, words and bytes of what is sent to it, as `wc` does. The body is streamed: a gigabyte is counted in
//! the memory of one piece of it.

use wstd::http::body::{Body, HttpBody};
use wstd::http::{Error, Request, Response};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let mut body = std::pin::pin!(request.into_body().into_boxed_body());
    let mut count = Count::default();
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        if let Some(piece) = frame?.data_ref() {
            count.feed(piece);
        }
    }
    let text = format!("{{\"lines\":{},\"words\":{},\"bytes\":{}}}\n", count.lines, count.words, count.bytes);
    Ok(Response::builder().header("content-type", "application/json").body(text.into())?)
}

#[derive(Default)]
struct Count {
    lines: u64,
    words: u64,
    bytes: u64,
    in_word: bool,
}

impl Count {
    /// A word may begin in one piece and end in the next.
    fn feed(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        for byte in piece {
            self.lines += u64::from(*byte == b'\n');
            let in_word = !byte.is_ascii_whitespace();
            self.words += u64::from(in_word && !self.in_word);
            self.in_word = in_word;
        }
    }
}
