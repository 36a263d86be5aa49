//! A hostile guest: its request's path names the attack, the query its size. Raw WASI 0.2, for what it
//! does no library would do. Each attack answers how far it got, so that a test sees it work where no
//! limit stands against it.
//!
//! Owns no limit and no check: what it may do is up to whoever runs it.

mod bodies;
mod faults;
mod heads;
mod host;
mod outbound;
mod state;

use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasip2::io::streams::{OutputStream, StreamError};

wasip2::http::proxy::export!(Guest);

struct Guest;

impl wasip2::exports::http::incoming_handler::Guest for Guest {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let ask = Ask::new(request);
        match ask.path.as_str() {
            "/" => text(out, "hello\n"),
            "/spin" | "/grow" | "/fill" | "/recurse" | "/oob" | "/unreachable" | "/divide" | "/call" | "/trap" => {
                faults::run(&ask, out);
            }
            "/header" | "/status" | "/inject" | "/many-headers" | "/length" => heads::run(&ask, out),
            "/body" | "/endless" | "/drip" | "/hold" | "/unfinished" | "/silent" | "/unread" | "/sink" | "/echo"
            | "/wait-body" => bodies::run(&ask, out),
            "/out" | "/out-many" | "/out-fields" | "/out-read" => outbound::run(&ask, out),
            "/keep" | "/scan" | "/env" | "/keyvalue" | "/request" => state::run(&ask, out),
            _ => host::run(&ask, out),
        }
    }
}

/// What the request asks for.
struct Ask {
    request: IncomingRequest,
    path: String,
    query: Vec<(String, Vec<u8>)>,
}

impl Ask {
    fn new(request: IncomingRequest) -> Self {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let pair = |text: &str| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            (name.to_owned(), decoded(value))
        };
        let query = query.split('&').filter(|p| !p.is_empty()).map(pair).collect();
        Self { path: path.to_owned(), query, request }
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()).unwrap_or_default()
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&self.bytes(name)).into_owned()
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }
}

/// Percent decoding, of every byte.
fn decoded(text: &str) -> Vec<u8> {
    let hex = |at: usize| text.get(at..at + 2).and_then(|h| u8::from_str_radix(h, 16).ok());
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        match (bytes[at], hex(at + 1)) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// Answers 200 with a text.
fn text(out: ResponseOutparam, body: impl AsRef<str>) {
    respond(out, OutgoingResponse::new(Fields::new()), body.as_ref().as_bytes());
}

/// Answers with this head and these bytes.
fn respond(out: ResponseOutparam, response: OutgoingResponse, bytes: &[u8]) {
    let body = begin(out, response);
    if let Some((body, stream)) = body {
        let written = write(&stream, bytes);
        drop(stream);
        if written.is_ok() {
            let _ = OutgoingBody::finish(body, None);
        }
    }
}

/// Sends the head; gives the body to write to.
fn begin(out: ResponseOutparam, response: OutgoingResponse) -> Option<(OutgoingBody, OutputStream)> {
    let body = response.body().ok()?;
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().ok()?;
    Some((body, stream))
}

/// Writes all, waiting for room.
fn write(stream: &OutputStream, mut bytes: &[u8]) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        let room = usize::try_from(stream.check_write()?).unwrap_or(usize::MAX);
        if room == 0 {
            stream.subscribe().block();
            continue;
        }
        let (now, later) = bytes.split_at(room.min(bytes.len()));
        stream.write(now)?;
        bytes = later;
    }
    stream.flush()
}
