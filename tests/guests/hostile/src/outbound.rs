//! Attacks by outbound HTTP: where it leads, how much, and what it says.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{ErrorCode, Fields, Method, OutgoingBody, OutgoingRequest, ResponseOutparam, Scheme};

use wasip2::io::streams::StreamError;

use crate::{Ask, text, write};

pub(crate) fn run(ask: &Ask, out: ResponseOutparam) {
    let answer = match ask.path.as_str() {
        "/out" => one(ask, Fields::new()),
        "/out-fields" => {
            let fields = Fields::new();
            let size = usize::try_from(ask.number("size")).unwrap_or(0);
            let value = if size > 0 { vec![b'a'; size] } else { ask.bytes("value") };
            match fields.append(&ask.text("name"), &value) {
                Ok(()) => one(ask, fields),
                Err(error) => format!("refused {error:?}"),
            }
        }
        "/out-read" => read(ask),
        _ => many(ask),
    };
    text(out, format!("{answer}\n"));
}

fn request(ask: &Ask, fields: Fields) -> Result<OutgoingRequest, String> {
    let request = OutgoingRequest::new(fields);
    let scheme = if ask.number("tls") > 0 { Scheme::Https } else { Scheme::Http };
    let path = ask.text("path");
    request.set_scheme(Some(&scheme)).map_err(|()| "refused scheme".to_owned())?;
    request.set_authority(Some(&ask.text("authority"))).map_err(|()| "refused authority".to_owned())?;
    request.set_path_with_query(Some(if path.is_empty() { "/" } else { &path })).map_err(|()| "refused path")?;
    if ask.number("bytes") > 0 {
        request.set_method(&Method::Post).map_err(|()| "refused method")?;
    }
    Ok(request)
}

/// One request: its status, or the name of its error.
fn one(ask: &Ask, fields: Fields) -> String {
    let request = match request(ask, fields) {
        Ok(request) => request,
        Err(why) => return why,
    };
    let body = request.body();
    let pending = match outgoing_handler::handle(request, None) {
        Ok(pending) => pending,
        Err(error) => return format!("error {error:?}"),
    };
    if let Ok(body) = body {
        let Ok(stream) = body.write() else { return "no stream".into() };
        let (mut left, block) = (ask.number("bytes"), [b'x'; 16 << 10]);
        while left > 0 {
            let size = left.min(block.len() as u64);
            if let Err(error) = write(&stream, &block[..usize::try_from(size).unwrap_or(0)]) {
                drop(stream);
                return format!("cut {left} {error:?} {}", wait(&pending));
            }
            left -= size;
        }
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
    wait(&pending)
}

fn wait(pending: &wasip2::http::types::FutureIncomingResponse) -> String {
    loop {
        match pending.get() {
            None => pending.subscribe().block(),
            Some(Ok(Ok(response))) => return format!("status {}", response.status()),
            Some(Ok(Err(ErrorCode::InternalError(why)))) => return format!("error internal {why:?}"),
            Some(Ok(Err(error))) => return format!("error {error:?}"),
            Some(Err(())) => return "gone".into(),
        }
    }
}

/// One request, and all that it is answered with.
fn read(ask: &Ask) -> String {
    let request = match request(ask, Fields::new()) {
        Ok(request) => request,
        Err(why) => return why,
    };
    let pending = match outgoing_handler::handle(request, None) {
        Ok(pending) => pending,
        Err(error) => return format!("error {error:?}"),
    };
    pending.subscribe().block();
    let Some(Ok(Ok(response))) = pending.get() else { return "no response".into() };
    let Ok(body) = response.consume() else { return "no body".into() };
    let Ok(stream) = body.stream() else { return "no stream".into() };
    let mut seen = 0;
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(bytes) => seen += bytes.len(),
            Err(StreamError::Closed) => return format!("read {seen}"),
            Err(StreamError::LastOperationFailed(error)) => return format!("cut {seen} {}", error.to_debug_string()),
        }
    }
}

/// `n` requests at once, all kept; how many were not refused, and the last refusal.
fn many(ask: &Ask) -> String {
    let (mut pending, mut refused) = (Vec::new(), String::new());
    for _ in 0..ask.number("n") {
        match request(ask, Fields::new()).map(|r| outgoing_handler::handle(r, None)) {
            Ok(Ok(future)) => pending.push(future),
            Ok(Err(error)) => refused = format!("{error:?}"),
            Err(why) => refused = why,
        }
    }
    let mut answered = 0;
    for future in &pending {
        let said = wait(future);
        if said.starts_with("status") {
            answered += 1;
        } else {
            refused = said;
        }
    }
    format!("answered {answered} {refused}")
}
