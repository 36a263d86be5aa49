//! The edge to the sandbox: WASI HTTP and the environment in, plain values through, WASI HTTP out.

use std::time::{SystemTime, UNIX_EPOCH};

use marcato_guest::{access, keyvalue};
use wstd::http::{Body, Error, Request, Response};

use crate::http::{Reply, Request as Plain};
use crate::problem::Problem;
use crate::{App, route};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let (head, mut body) = request.into_parts();
    let header = |(name, value): (&wstd::http::HeaderName, &wstd::http::HeaderValue)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    };
    let mut headers: Vec<_> = head.headers.iter().filter_map(header).collect();
    // WASI gives the host apart from the headers.
    if let (Some(authority), false) = (head.uri.authority(), head.headers.contains_key("host")) {
        headers.push(("host".to_owned(), authority.as_str().to_owned()));
    }
    let plain = Plain {
        method: head.method.as_str().to_owned(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers,
        body: body.contents().await?.to_vec(),
    };
    let reply = match open() {
        Ok(app) => route::answer(&app, &plain),
        Err(problem) => problem.reply(&plain, None),
    };
    into_wasi(reply)
}

fn open() -> Result<App, Problem> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(App {
        register: access::open("register")?,
        state: keyvalue::open("state")?,
        now_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
    })
}

fn into_wasi(reply: Reply) -> Result<Response<Body>, Error> {
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    Ok(response.body(reply.body.into())?)
}
