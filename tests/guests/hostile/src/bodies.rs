//! Attacks with bodies: too long, without end, byte by byte, never finished, never read.

use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::http::types::{Fields, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasip2::io::streams::StreamError;

use crate::{Ask, begin, text, write};

pub(crate) const DAY_NS: u64 = 86_400_000_000_000;

pub(crate) fn run(ask: &Ask, out: ResponseOutparam) {
    match ask.path.as_str() {
        "/silent" => drop(out),
        "/unread" => {
            // Holds the body's stream and never reads.
            let body = ask.request.consume();
            let stream = body.as_ref().ok().and_then(|b| b.stream().ok());
            if ask.number("hold") > 0 {
                subscribe_duration(DAY_NS).block();
            }
            text(out, "unread\n");
            drop(stream);
        }
        "/wait-body" | "/sink" => match drain(ask) {
            Some(seen) => text(out, format!("{seen}\n")),
            None => text(out, "no body\n"),
        },
        "/echo" => echo(ask, out),
        _ => stream_out(ask, out),
    }
}

fn stream_out(ask: &Ask, out: ResponseOutparam) {
    let Some((body, stream)) = begin(out, OutgoingResponse::new(Fields::new())) else { return };
    match ask.path.as_str() {
        "/body" => {
            let mut left = ask.number("bytes");
            while left > 0 {
                let size = left.min(64 << 10);
                if write(&stream, &vec![b'x'; usize::try_from(size).unwrap_or(0)]).is_err() {
                    return;
                }
                left -= size;
            }
        }
        "/endless" => while write(&stream, &[b'x'; 16 << 10]).is_ok() {},
        "/drip" => {
            for _ in 0..ask.number("bytes") {
                if write(&stream, b"x").is_err() {
                    return;
                }
                subscribe_duration(ask.number("ms") * 1_000_000).block();
            }
        }
        "/hold" => {
            let _ = write(&stream, b"x");
            subscribe_duration(DAY_NS).block();
        }
        // Dropped and not finished: the client must not take it for whole.
        _ => {
            let _ = write(&stream, b"half");
            drop(stream);
            drop(body);
            return;
        }
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

fn drain(ask: &Ask) -> Option<u64> {
    let body = ask.request.consume().ok()?;
    let stream = body.stream().ok()?;
    let mut seen = 0;
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(bytes) => seen += bytes.len() as u64,
            Err(StreamError::Closed) => return Some(seen),
            Err(StreamError::LastOperationFailed(_)) => return None,
        }
    }
}

fn echo(ask: &Ask, out: ResponseOutparam) {
    let Some(from) = ask.request.consume().ok() else { return };
    let Some(input) = from.stream().ok() else { return };
    let Some((body, stream)) = begin(out, OutgoingResponse::new(Fields::new())) else { return };
    while let Ok(bytes) = input.blocking_read(64 << 10) {
        if write(&stream, &bytes).is_err() {
            return;
        }
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}
