//! One request through one sandbox, under its limits.
//!
//! The sandbox runs inside the future that asks for its answer: in [`handle`] until the head of the
//! response is there, then within the response's body. No task is spawned and nothing is handed
//! between threads, unless it computes for long or its app uses more than its share (`share`). Whoever
//! drops the future or the body ends the sandbox.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::BoxFuture;
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt as _;
use marcato_api::{Bytes as ByteCount, Limits, ProblemKind, headers as names};
use tokio::time::Instant;
use wasmtime::component::Accessor;
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p3::bindings::Service;
use wasmtime_wasi_http::{WasiBody, WasiHttpView, p3};

use crate::body::{GuestBody, RequestBody, ResponseBody, UploadBody, WatchedBody};
use crate::cgi;
use crate::crowd;
use crate::error::{self, InvokeError, LoadError};
use crate::instance::{Inner, Ticket};
use crate::limits::{CpuMeter, Limit};
use crate::logs::SandboxLog;
use crate::running::Running;
use crate::sandbox::{Host, NoSandbox, Pre, Proxy, Sandbox};
use crate::usage;

/// The head of a guest's answer; an error is what the guest said went wrong.
type Answer = Result<http::Response<WasiBody>, String>;

/// Where it goes. Not tokio's: its receiver may say "not yet" of what is there, when the task has used
/// its turn up, and that would look like a guest that ended without an answer.
pub(crate) type AnswerSender = oneshot::Sender<Answer>;

/// Why a request failed.
#[derive(Clone)]
pub(crate) struct Failure {
    pub(crate) kind: ProblemKind,
    pub(crate) limit: Option<Limit>,
    /// What was used of the limit, where [`usage::fired`] cannot tell.
    pub(crate) used: Option<u64>,
    pub(crate) not_started: bool,
    /// For the owner and the log: names the limit.
    pub(crate) detail: String,
    /// For the owner and the log: what the guest or wasmtime said.
    pub(crate) reason: Option<String>,
}

impl Failure {
    pub(crate) fn guest(reason: String) -> Self {
        Self {
            kind: ProblemKind::GuestFailed,
            limit: None,
            used: None,
            not_started: false,
            detail: "the app failed on this request; its log says why".into(),
            reason: Some(reason),
        }
    }

    pub(crate) fn limit(kind: ProblemKind, limit: Limit, detail: String) -> Self {
        Self { kind, limit: Some(limit), used: None, not_started: false, detail, reason: None }
    }
}

/// The request's id; empty when the edge gave none.
pub(crate) fn request_id(headers: &HeaderMap) -> &str {
    headers.get(names::REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or("")
}

/// Refuses a body whose announced length is over the limit. Another instance would refuse it as well,
/// so this does not count as "not started".
pub(crate) fn check_length<B: http_body::Body>(inner: &Inner, request: &http::Request<B>) -> Result<(), InvokeError> {
    let limit = inner.config.limits.request_body_bytes;
    let announced = content_length(request.headers()).unwrap_or(0).max(request.body().size_hint().lower());
    if announced <= limit.0 {
        return Ok(());
    }
    let detail = format!("limit request_body_bytes ({limit}) reached: the body has {}", ByteCount(announced));
    let id = request_id(request.headers());
    let mut error = inner.refused(Limit::RequestBodyBytes, ProblemKind::TooLarge, detail, Some(announced), id);
    error.not_started = false;
    Err(error)
}

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn strip_internal(headers: &mut HeaderMap) {
    let internal = |name: &HeaderName| name.as_str().starts_with(names::INTERNAL_PREFIX);
    if headers.keys().any(internal) {
        let names: Vec<_> = headers.keys().filter(|n| internal(n)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// When a request is over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// The head of the response has to be there.
    first_byte: Instant,
    /// The whole response has to be out.
    pub(crate) deadline: Instant,
}

impl Times {
    /// Of a request that arrives now.
    pub(crate) fn new(limits: &Limits) -> Self {
        let now = Instant::now();
        let deadline = now + Duration::from(limits.time_ms);
        Self { first_byte: deadline.min(now + Duration::from(limits.first_byte_ms)), deadline }
    }

    /// The limit that fires when there is no head in time.
    fn head_is_late(&self, inner: &Inner) -> Failure {
        if self.first_byte == self.deadline {
            return timed_out(inner);
        }
        let detail = format!("limit {} reached: no response", usage::named(inner, Limit::FirstByteMs));
        Failure::limit(ProblemKind::TimedOut, Limit::FirstByteMs, detail)
    }
}

/// Counts and logs a failure.
pub(crate) fn record(inner: &Inner, request_id: &str, failure: Failure) -> InvokeError {
    if let Some(limit) = failure.limit {
        inner.limits.count(limit);
    }
    if !failure.not_started {
        inner.counters.failures.fetch_add(1, Ordering::Relaxed);
    }
    match &failure.reason {
        Some(reason) => error::told(reason).for_each(|line| inner.log.platform(request_id, line)),
        None => inner.log.platform(request_id, &failure.detail),
    }
    let limit = failure.limit.map(|limit| usage::fired(inner, limit, failure.used));
    let reason = failure.reason.map(String::into_boxed_str);
    InvokeError { kind: failure.kind, not_started: failure.not_started, detail: failure.detail, limit, reason }
}

/// Runs the request until the head of its response is there.
pub(crate) async fn handle(
    inner: &Arc<Inner>,
    ticket: Arc<Ticket>,
    times: Times,
    request: http::Request<RequestBody>,
) -> Result<http::Response<ResponseBody>, InvokeError> {
    let limits = &inner.config.limits;
    let id: Arc<str> = request_id(request.headers()).into();
    let too_large = Arc::new(AtomicBool::new(false));
    let (mut parts, body) = request.into_parts();
    strip_internal(&mut parts.headers);
    if parts.uri.authority().is_none() && !parts.headers.contains_key(HOST) {
        // HTTP/1.0 knows no Host; `wasi:http` demands an authority.
        parts.headers.insert(HOST, HeaderValue::from_static("localhost"));
    }
    let body = UploadBody::new(body, limits, Arc::clone(&too_large), Arc::clone(&inner.limits)).boxed_unsync();
    if crowd::may_share(inner) {
        // Whether its requests can meet in one sandbox is known once its code is mapped.
        match tokio::time::timeout_at(times.first_byte, inner.code.get()).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return Err(record(inner, &id, no_code(&e))),
            Err(_) => return Err(record(inner, &id, times.head_is_late(inner))),
        }
    }
    let (tx, mut answer) = oneshot::channel();
    let mut running = Running::new(inner, ticket, http::Request::from_parts(parts, body), tx);
    let mut timer = std::pin::pin!(tokio::time::sleep_until(times.first_byte));
    let head = std::future::poll_fn(|cx| {
        let done = running.poll(cx);
        if too_large.load(Ordering::Relaxed) {
            let detail = format!("limit request_body_bytes ({}) reached", limits.request_body_bytes);
            return Poll::Ready(Err(Failure::limit(ProblemKind::TooLarge, Limit::RequestBodyBytes, detail)));
        }
        let done = match done {
            Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        match Pin::new(&mut answer).poll(cx) {
            Poll::Ready(Ok(Ok(response))) => return Poll::Ready(Ok(response)),
            Poll::Ready(Ok(Err(said))) => return Poll::Ready(Err(Failure::guest(said))),
            _ if done => return Poll::Ready(Err(Failure::guest("the guest ended without a response".into()))),
            _ => {}
        }
        timer.as_mut().poll(cx).map(|()| Err(times.head_is_late(inner)))
    })
    .await;
    match head.and_then(|response| check_response(inner, response)) {
        Ok(response) => {
            inner.counters.requests.fetch_add(1, Ordering::Relaxed);
            let announced = content_length(response.headers());
            let (mut parts, body) = response.into_parts();
            let mut body = GuestBody::new(body, running, times.deadline, id, announced);
            std::future::poll_fn(|cx| body.read_ahead(cx)).await?;
            body.announce_trailers(&mut parts.headers);
            Ok(http::Response::from_parts(parts, ResponseBody::new(body)))
        }
        Err(failure) => {
            running.kill();
            Err(record(inner, &id, failure))
        }
    }
}

pub(crate) fn timed_out(inner: &Inner) -> Failure {
    let limit = inner.config.limits.time_ms;
    Failure::limit(ProblemKind::TimedOut, Limit::TimeMs, format!("limit time_ms ({limit}) reached: request ended"))
}

fn check_response(inner: &Inner, mut response: http::Response<WasiBody>) -> Result<http::Response<WasiBody>, Failure> {
    // hyper would close the connection after it without a word, and the next request on it, of whatever app, would be lost.
    if response.status().is_informational() {
        return Err(Failure::guest(format!(
            "the guest answered with {}, which is not a final status",
            response.status()
        )));
    }
    // A guest must not speak in the platform's name.
    strip_internal(response.headers_mut());
    let limit = inner.config.limits.response_body_bytes;
    match content_length(response.headers()) {
        Some(length) if length > limit.0 => {
            let detail = format!("limit response_body_bytes ({limit}) reached: the body has {}", ByteCount(length));
            let failure = Failure::limit(ProblemKind::GuestFailed, Limit::ResponseBodyBytes, detail);
            Err(Failure { used: Some(length), ..failure })
        }
        _ => Ok(response),
    }
}

/// Everything that a sandbox does for one request, from its making to its end.
pub(crate) async fn work(
    inner: Arc<Inner>,
    idle: Option<Sandbox>,
    meter: Arc<CpuMeter>,
    log: Arc<SandboxLog>,
    request: http::Request<WasiBody>,
    answer: AnswerSender,
) -> Result<(), Failure> {
    // A command is never kept, so what was kept is none.
    if idle.is_none() && matches!(inner.code.get().await.map_err(|e| no_code(&e))?.pre, Pre::Command(_)) {
        return cgi::work(&inner, &meter, &log, request, answer).await;
    }
    let mut sandbox = match idle {
        Some(sandbox) => sandbox,
        None => new_sandbox(&inner, &meter, &log, None).await?,
    };
    sandbox.requests += 1;
    sandbox.begin(&inner.config.limits);
    let keep = sandbox.requests < inner.config.reuse.max_requests;
    let result = call(&mut sandbox, keep, request, answer).await;
    log.flush();
    let fired = sandbox.store.data_mut().limiter.fired.take();
    match result {
        Ok(()) => {
            note_growth(&inner, &log, fired);
            inner.recycle(sandbox);
            Ok(())
        }
        Err(e) => Err(explain(&inner, &meter, fired, &e)),
    }
}

/// A fresh sandbox, or why there is none.
pub(crate) async fn new_sandbox(
    inner: &Inner,
    meter: &Arc<CpuMeter>,
    log: &Arc<SandboxLog>,
    stdio: Option<cgi::Stdio>,
) -> Result<Sandbox, Failure> {
    Sandbox::new(inner, Arc::clone(meter), Arc::clone(log), stdio).await.map_err(|why| match why {
        NoSandbox::Limit(limit) => no_memory(inner, limit),
        NoSandbox::Guest(e) => explain(inner, meter, None, &e),
        NoSandbox::Code(e) => no_code(&e),
    })
}

/// The guest got on without the memory; whoever tunes its limits wants to know.
pub(crate) fn note_growth(inner: &Inner, log: &SandboxLog, fired: Option<Limit>) {
    if let Some(limit) = fired {
        inner.limits.count(limit);
        log.platform(&format!("limit {} reached: memory growth was refused", usage::named(inner, limit)));
    }
}

/// Calls the handler; returns when the guest is done. A sandbox that is to be kept is not done before
/// its response's body has gone out.
async fn call(
    sandbox: &mut Sandbox,
    keep: bool,
    request: http::Request<WasiBody>,
    answer: AnswerSender,
) -> wasmtime::Result<()> {
    let Sandbox { store, proxy, .. } = sandbox;
    match proxy {
        Proxy::Command(_) => Err(wasmtime::Error::msg("a command has no handler")),
        Proxy::P2(proxy) => {
            let mut http = store.data_mut().http();
            let request = http.new_incoming_request(Scheme::Http, request)?;
            let out = http.new_response_outparam_from_callback(move |value| {
                // The client may be gone.
                let _ = answer.send(value.map_err(|code| format!("the guest answered with the error {code:?}")));
            })?;
            proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await
        }
        Proxy::P3(service) => {
            store
                .run_concurrent(async |accessor| {
                    let sent_all = exchange(accessor, service, request, answer).await?;
                    // The response's body, and whatever the guest does after it.
                    std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                    if keep {
                        // Ends with an error when the body is dropped, which is as good.
                        let _ = sent_all.await;
                    }
                    wasmtime::Result::Ok(())
                })
                .await?
        }
    }
}

/// Has a WASI 0.3 handler answer. Gives what resolves when the response's body has gone out.
pub(crate) async fn exchange(
    accessor: &Accessor<Host>,
    service: &Service,
    mut request: http::Request<WasiBody>,
    answer: AnswerSender,
) -> wasmtime::Result<oneshot::Receiver<()>> {
    if request.uri().scheme().is_none() {
        *request.uri_mut() = absolute(request.uri(), request.headers())?;
    }
    let (request, sent) = accessor.with(|mut store| {
        let (request, sent) = p3::Request::from_http(store.data_mut().http().hooks, request);
        // Boxed, for its type would borrow the store.
        (request, Box::pin(sent) as BoxFuture<'static, Result<(), wasmtime_wasi_http::Error>>)
    });
    let reply = match service.handle(accessor, request).await? {
        Ok(response) => Ok(accessor.with(|store| response.into_http(store, sent))?),
        Err(code) => Err(format!("the guest answered with the error {code:?}")),
    };
    let (reply, sent_all) = watched(reply);
    // The client may be gone.
    let _ = answer.send(reply);
    Ok(sent_all)
}

/// The answer with a body that tells when it is at its end or dropped.
fn watched(answer: Answer) -> (Answer, oneshot::Receiver<()>) {
    let (tx, rx) = oneshot::channel();
    (answer.map(|response| response.map(|body| WatchedBody::new(body, tx).boxed_unsync())), rx)
}

/// WASI 0.3 takes scheme and authority from the URI, which in HTTP/1.1 has a path only.
fn absolute(uri: &http::Uri, headers: &HeaderMap) -> wasmtime::Result<http::Uri> {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    if parts.authority.is_none() {
        let host = headers.get(HOST).map_or("localhost", |h| h.to_str().unwrap_or("localhost"));
        parts.authority = Some(host.parse()?);
    }
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    Ok(http::Uri::from_parts(parts)?)
}

/// There was no room for a sandbox.
fn no_memory(inner: &Inner, limit: Limit) -> Failure {
    let detail = format!("limit {} reached: no sandbox could be made", usage::named(inner, limit));
    let kind = match limit {
        Limit::InstanceMemoryBytes | Limit::AppMemoryBytes | Limit::AppBufferBytes => ProblemKind::MemoryExhausted,
        Limit::HostSandboxes | Limit::HostMemory => ProblemKind::Unavailable,
        // The component asks for more than its own limit: it fails everywhere.
        _ => ProblemKind::GuestFailed,
    };
    Failure { not_started: kind != ProblemKind::GuestFailed, ..Failure::limit(kind, limit, detail) }
}

/// The limit that a trap tells of. Those of the platform's own calls have counted themselves.
fn of_trap(error: &wasmtime::Error) -> Option<Limit> {
    match error.downcast_ref() {
        Some(wasmtime::Trap::StackOverflow) => return Some(Limit::StackBytes),
        Some(_) => return None,
        None => {}
    }
    // wasmtime has words and no types for these.
    let text = format!("{error:#}");
    let says = |words: &str| text.contains(words);
    if says("fuel allocated for hostcalls") {
        Some(Limit::HostcallBytes)
    } else if says("resource table has no free keys") {
        Some(Limit::ResourceHandles)
    } else if says("instance count too high") {
        Some(Limit::CoreInstances)
    } else if says("memory count too high") {
        Some(Limit::Memories)
    } else if says("table count too high") {
        Some(Limit::Tables)
    } else {
        None
    }
}

/// The component's code could not be mapped; another host may have it.
fn no_code(error: &LoadError) -> Failure {
    Failure {
        kind: ProblemKind::Unavailable,
        limit: None,
        used: None,
        not_started: true,
        detail: "the app's code is not ready on this host".into(),
        reason: Some(error.to_string()),
    }
}

/// Why guest code ended.
pub(crate) fn explain(inner: &Inner, meter: &CpuMeter, fired: Option<Limit>, error: &wasmtime::Error) -> Failure {
    if meter.exhausted() {
        let detail = format!("limit cpu_ms ({}) reached: request ended", inner.config.limits.cpu_ms);
        return Failure::limit(ProblemKind::CpuExhausted, Limit::CpuMs, detail);
    }
    if let Some(I32Exit(code)) = error.downcast_ref() {
        return Failure::guest(format!("the guest ended its process with status {code}"));
    }
    let reason = format!("the guest trapped: {error:#}");
    match fired.or_else(|| of_trap(error)) {
        Some(limit) => {
            let kind = match limit {
                Limit::InstanceMemoryBytes | Limit::AppMemoryBytes => ProblemKind::MemoryExhausted,
                Limit::HostMemory => ProblemKind::Unavailable,
                _ => ProblemKind::GuestFailed,
            };
            let detail = format!("limit {} reached: the app failed on this request", usage::named(inner, limit));
            let reason = Some(format!("{detail}\n{reason}"));
            Failure { reason, ..Failure::limit(kind, limit, detail) }
        }
        None => Failure::guest(reason),
    }
}
