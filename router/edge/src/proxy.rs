//! One request: route, wait for an instance if need be, attempt, decide, answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use marcato_api::headers::{INSTANCE, NOT_STARTED, PLATFORM_ERROR};
use marcato_api::{Millis, ProblemKind, trailers};
use marcato_balance::{AppEntry, Endpoint, InFlight, pick};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::admit::{admit, strip_hop_by_hop, strip_internal};
use crate::download::{Download, Stream};
use crate::edge::Shared;
use crate::errors::{Accept, Refusal};
use crate::forwarded::Peer;
use crate::observe::{Exchange, REQUEST_ID_NAME};
use crate::owner::{self, Asked};
use crate::retry::is_idempotent;
use crate::upload::{Patience, RequestBody, Upload, UploadError};
use crate::upstream::{Lease, SendError};

const INSTANCE_NAME: HeaderName = HeaderName::from_static(INSTANCE);
const PLATFORM_ERROR_NAME: HeaderName = HeaderName::from_static(PLATFORM_ERROR);
const NOT_STARTED_NAME: HeaderName = HeaderName::from_static(NOT_STARTED);

/// Most of a platform error's body that is read for its connection's sake.
const DRAINED_BYTES: usize = 16 << 10;

/// Serves a request. It always has a response; a refusal is one of the edge's own.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Result<Response<Download>, Infallible> {
    let accept = Accept::of(request.headers());
    let is_head = request.method() == Method::HEAD;
    let mut exchange = Exchange::begin(&shared, &peer, &request);
    let result = if exchange.over_limit {
        Err(Refusal::new(ProblemKind::Unavailable, "The router is at its limit."))
    } else {
        forward(&shared, &peer, request, &mut exchange).await
    };
    Ok(match result {
        Ok(mut response) => {
            exchange.status = response.status().as_u16();
            exchange.mark(response.headers_mut());
            response.map(|stream| Download::stream(stream, exchange))
        }
        Err(refusal) => {
            if matches!(refusal.kind, ProblemKind::QueueFull | ProblemKind::MemoryExhausted) {
                hold(&shared).await;
            }
            exchange.status = refusal.status.as_u16();
            let owner = exchange.app().filter(|_| exchange.is_owner()).map(|entry| &entry.app);
            let (mut response, body) = refusal.render(&accept, exchange.id.to_str().unwrap_or_default(), owner);
            exchange.mark(response.headers_mut());
            // hyper leaves the body out for HTTP/1 only.
            response.map(|()| Download::page(if is_head { Bytes::new() } else { body }, exchange))
        }
    })
}

/// Has a client whose app is full wait before it hears so; each for another time, lest they all come back at once.
async fn hold(shared: &Shared) {
    if let Ok(_place) = shared.held.try_acquire() {
        shared.metrics.holds.inc();
        let mean = Duration::from(shared.cfg.refusal_hold_ms);
        sleep(mean.mul_f64(0.5 + rand::random::<f64>())).await;
    }
}

async fn forward(
    shared: &Shared,
    peer: &Peer,
    request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Result<Response<Stream>, Refusal> {
    let (mut parts, incoming) = request.into_parts();
    exchange.asked = Asked::take(&mut parts.headers);
    let takes_trailers = takes_trailers(&parts);
    exchange.host = admit(&mut parts, peer)?;
    parts.headers.insert(REQUEST_ID_NAME, exchange.id.clone());
    let mut job = Job::new(shared, parts, exchange);
    job.takes_trailers = takes_trailers;
    let entry = job.route()?;
    job.set_body(&entry, incoming);
    job.run(entry).await
}

/// A request over its attempts.
struct Job<'a> {
    shared: &'a Shared,
    exchange: &'a mut Exchange,
    head: Parts,
    upload: Option<Arc<Upload>>,
    /// Endpoints that it was sent to, or should have been.
    tried: Vec<Arc<Endpoint>>,
    /// Attempts that a guest may have seen.
    attempts: u32,
    pauses: u32,
    deadline: Instant,
    /// Whether the client gets the response's trailers.
    takes_trailers: bool,
}

/// What came of an attempt.
enum Attempt {
    Done(Response<Stream>),
    /// To be tried again, on another endpoint if there is one. `patient`: worth waiting when there
    /// is none.
    Again {
        refusal: Refusal,
        patient: bool,
    },
    Failed(Refusal),
}

impl<'a> Job<'a> {
    fn new(shared: &'a Shared, head: Parts, exchange: &'a mut Exchange) -> Self {
        let deadline = exchange.started();
        let (tried, takes_trailers) = (Vec::new(), false);
        Self { shared, exchange, head, upload: None, tried, attempts: 0, pauses: 0, deadline, takes_trailers }
    }

    /// The app, by the table as it is now.
    fn route(&mut self) -> Result<Arc<AppEntry>, Refusal> {
        let table = self.shared.table.load();
        let entry = table
            .find(&self.exchange.host, self.head.uri.path())
            .ok_or_else(|| Refusal::new(ProblemKind::NoRoute, "Check the address, or the app's routes."))?;
        self.exchange.routed(entry);
        if entry.stopped {
            let refusal = Refusal::new(ProblemKind::AppStopped, "Its operator stopped it.");
            let why = || format!("the app is stopped; next: marcato start {}", entry.app);
            return Err(self.explain(refusal, None, why));
        }
        Ok(Arc::clone(entry))
    }

    /// The refusal with its reason, when it is the owner who asks.
    fn explain(&self, refusal: Refusal, endpoint: Option<&Endpoint>, why: impl FnOnce() -> String) -> Refusal {
        if !self.exchange.is_owner() {
            return refusal;
        }
        let explanation = owner::because(refusal.kind, why());
        refusal.explained(match endpoint {
            Some(endpoint) => owner::at(endpoint, explanation),
            None => explanation,
        })
    }

    /// Takes the body over. Of one that is longer than the app allows, no more is sent than it takes the
    /// host to see that.
    fn set_body(&mut self, entry: &AppEntry, incoming: Incoming) {
        let cfg = &self.shared.cfg;
        let time = Duration::from(entry.limits.time_ms);
        self.deadline += time + Duration::from(cfg.host_grace_ms);
        let room = entry.limits.request_body_bytes.0;
        if incoming.is_end_stream() {
            return;
        }
        let waits = Duration::from(cfg.instance_wait_ms) + Duration::from(cfg.reconnect_wait_ms);
        let attempts = time * cfg.max_attempts.saturating_sub(1);
        let patience = Patience::new(cfg.upload_idle_ms.into(), self.deadline + waits + attempts);
        let kept = usize::try_from(cfg.replay_bytes.0).unwrap_or(usize::MAX);
        let upload = Upload::new(incoming, patience, room, kept);
        if !upload.has_length() {
            // hyper takes a GET without a length to have no body; this one has.
            self.head.headers.remove(CONTENT_LENGTH);
            self.head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            trailers::announce(&mut self.head.headers);
        }
        self.upload = Some(upload);
    }

    async fn run(mut self, mut entry: Arc<AppEntry>) -> Result<Response<Stream>, Refusal> {
        let mut last: Option<(Refusal, bool)> = None;
        loop {
            let now = self.shared.clock.now_ms();
            let breaker = &self.shared.cfg.breaker;
            match pick(&entry, now, breaker, &mut rand::random::<u64>, &self.tried) {
                Some(picked) => {
                    let endpoint = Arc::clone(picked.endpoint());
                    self.exchange.endpoint = Some(Arc::clone(&endpoint));
                    let began = Instant::now();
                    match self.attempt(picked).await {
                        Attempt::Done(response) => return Ok(response),
                        Attempt::Failed(refusal) => return Err(refusal),
                        Attempt::Again { refusal, patient } => last = Some((refusal, patient)),
                    }
                    // The next host gives it the app's whole time anew.
                    self.deadline += began.elapsed();
                    self.tried.push(endpoint);
                }
                None => {
                    let began = Instant::now();
                    if entry.endpoints.is_empty() {
                        self.wait_for_instance().await?;
                    } else {
                        let (refusal, patient) = last.take().unwrap_or_else(|| (self.left_out(&entry), true));
                        self.pause(refusal, patient).await?;
                        self.tried.clear();
                    }
                    // The time limit counts from the arrival at a host: waiting comes on top.
                    self.deadline += began.elapsed();
                }
            }
            entry = self.route()?;
        }
    }

    /// Every instance failed lately, and none is due to be tried.
    fn left_out(&self, entry: &AppEntry) -> Refusal {
        let why = || {
            let count = entry.endpoints.len();
            format!("none of the app's {count} instances could be reached lately; each is tried again within seconds")
        };
        self.explain(Refusal::plain(ProblemKind::NoInstance), None, why)
    }

    /// Waits until the app has an instance, bounded in time and in number of waiters.
    async fn wait_for_instance(&mut self) -> Result<(), Refusal> {
        let refusal = Refusal::new(ProblemKind::NoInstance, "Try again in a moment.");
        let cfg = &self.shared.cfg;
        let until = self.exchange.started() + Duration::from(cfg.instance_wait_ms);
        let Some(_waiter) = Waiter::new(self.shared) else {
            let why = || format!("{} requests wait for an instance already, of all apps together", cfg.max_waiting);
            return Err(self.explain(refusal, None, why));
        };
        let mut changed = self.shared.changed.clone();
        let ready = async {
            loop {
                // Seen first, looked at second: a change in between is not lost.
                changed.borrow_and_update();
                let table = self.shared.table.load_full();
                match table.find(&self.exchange.host, self.head.uri.path()) {
                    Some(entry) if entry.endpoints.is_empty() && !entry.stopped => {}
                    _ => return,
                }
                if changed.changed().await.is_err() {
                    // The control plane is gone: nobody will bring an instance.
                    std::future::pending::<()>().await;
                }
            }
        };
        let app = || self.exchange.app().map_or("APP", |entry| entry.app.as_str());
        let why = || format!("no instance was ready within {}; next: marcato app show {}", cfg.instance_wait_ms, app());
        timeout_at(until, ready).await.map_err(|_| self.explain(refusal, None, why))
    }

    /// Every endpoint was tried: waits a moment for one to come back, or gives up.
    async fn pause(&mut self, refusal: Refusal, patient: bool) -> Result<(), Refusal> {
        let until = self.exchange.started() + Duration::from(self.shared.cfg.reconnect_wait_ms);
        if !patient || Instant::now() >= until {
            return Err(refusal);
        }
        let Some(_waiter) = Waiter::new(self.shared) else { return Err(refusal) };
        let mut changed = self.shared.changed.clone();
        let moment = Duration::from_millis(25 << self.pauses.min(4));
        self.pauses += 1;
        // A new table ends the pause early. Without a control plane there is only the pause.
        let wait = async {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let _ = timeout(moment, wait).await;
        Ok(())
    }

    async fn attempt(&mut self, picked: InFlight) -> Attempt {
        let request = match self.request(&picked) {
            Ok(request) => request,
            Err(refusal) => return Attempt::Failed(refusal),
        };
        match timeout_at(self.deadline, self.shared.upstream.send(&picked, request)).await {
            Ok(Ok((response, lease))) => self.answered(picked, response, lease).await,
            Ok(Err(error)) => self.broke(&picked, &error),
            Err(_) => {
                self.failed(&picked);
                if let Some(failure) = self.upload.as_ref().and_then(|u| u.failure()) {
                    return Attempt::Failed(client_failed(failure));
                }
                let why = || {
                    let time = self.exchange.app().map_or(Millis(0), |entry| entry.limits.time_ms);
                    let grace = self.shared.cfg.host_grace_ms;
                    format!("the host did not answer within the app's time_ms ({time}) and {grace} for the way")
                };
                Attempt::Failed(self.explain(Refusal::plain(ProblemKind::TimedOut), Some(&picked), why))
            }
        }
    }

    /// The request for this endpoint; the head is kept for another attempt.
    fn request(&self, endpoint: &Endpoint) -> Result<Request<RequestBody>, Refusal> {
        let body = self.upload.as_ref().map_or(RequestBody::Empty, |upload| upload.attempt());
        let mut request = Request::new(body);
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.headers_mut() = self.head.headers.clone();
        let instance = HeaderValue::from_str(endpoint.instance.as_str());
        // An instance id is a label: it is always valid.
        let instance = instance.map_err(|_| Refusal::plain(ProblemKind::Internal))?;
        request.headers_mut().insert(INSTANCE_NAME, instance);
        if self.exchange.is_owner() {
            request.headers_mut().insert(owner::EXPLAIN_NAME, HeaderValue::from_static("1"));
        }
        // Whatever the client takes: a host has no other way to send what comes last.
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        Ok(request)
    }

    /// A response came: the guest's, or the platform's in its place.
    async fn answered(&mut self, picked: InFlight, mut response: Response<Incoming>, lease: Lease) -> Attempt {
        if let Some(slug) = response.headers().get(PLATFORM_ERROR_NAME) {
            let kind = slug.to_str().ok().and_then(ProblemKind::from_slug).unwrap_or(ProblemKind::Internal);
            let not_started = response.headers().get(NOT_STARTED_NAME).is_some_and(|v| v == "1");
            return self.refused(&picked, kind, not_started, response.into_body(), lease).await;
        }
        picked.succeeded();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let why = || "the app's host answered with 101; upgrades are not served".to_owned();
            return Attempt::Failed(self.explain(Refusal::plain(ProblemKind::BadGateway), Some(&picked), why));
        }
        strip_hop_by_hop(response.headers_mut());
        strip_internal(response.headers_mut());
        trailers::clean_announcement(response.headers_mut());
        if !self.takes_trailers {
            response.headers_mut().remove(TRAILER);
        }
        let patience = Patience::new(self.shared.cfg.response_idle_ms.into(), self.deadline);
        let upload = self.upload.clone();
        Attempt::Done(response.map(|body| Stream::new(body, lease, upload, picked, patience)))
    }

    /// The platform's own error from the host.
    async fn refused(
        &mut self,
        picked: &InFlight,
        kind: ProblemKind,
        not_started: bool,
        body: Incoming,
        lease: Lease,
    ) -> Attempt {
        let gone = kind == ProblemKind::InstanceGone;
        if gone {
            self.failed(picked);
        } else {
            picked.succeeded();
        }
        let is_owner = self.exchange.is_owner();
        let most = if is_owner { owner::EXPLANATION_BYTES } else { DRAINED_BYTES };
        let rest = drain(body, lease, self.upload.as_deref(), most).await;
        let mut refusal = match kind {
            // The limit is the app's, and no secret: the client can only help itself when it knows.
            ProblemKind::TooLarge => {
                Refusal::new(kind, "The app's limits.request_body_bytes says how long it may be.").closing()
            }
            _ => Refusal::plain(kind),
        };
        if is_owner {
            let told = rest.and_then(|rest| serde_json::from_slice(&rest).ok());
            let told = told.unwrap_or_else(|| owner::because(kind, "its host gave no reason".into()));
            refusal = refusal.explained(owner::at(picked, told));
        }
        if !not_started || !self.can_replay() {
            return Attempt::Failed(refusal);
        }
        // An instance that is gone costs nothing to ask; the others are at their limit and must not
        // be asked more often than the budget allows.
        if gone || self.may_retry() {
            self.shared.metrics.retries_not_started.inc();
            return Attempt::Again { refusal, patient: gone };
        }
        Attempt::Failed(refusal)
    }

    /// No response came.
    fn broke(&mut self, picked: &InFlight, error: &SendError) -> Attempt {
        if let Some(failure) = self.upload.as_ref().and_then(|u| u.failure()) {
            return Attempt::Failed(client_failed(failure));
        }
        self.failed(picked);
        let cause = std::error::Error::source(error).map(ToString::to_string);
        let request_id = self.exchange.id.to_str().unwrap_or_default();
        tracing::debug!(%error, cause, instance = %picked.instance, request_id, "an attempt failed");
        let refusal = self.explain(Refusal::plain(ProblemKind::BadGateway), Some(picked), || owner::chain(error));
        match error {
            SendError::NotSent(_) if self.can_replay() => {
                self.shared.metrics.retries_not_sent.inc();
                Attempt::Again { refusal, patient: true }
            }
            SendError::Sent(_) if is_idempotent(&self.head.method) && self.can_replay() && self.may_retry() => {
                self.shared.metrics.retries_idempotent.inc();
                Attempt::Again { refusal, patient: true }
            }
            _ => Attempt::Failed(refusal),
        }
    }

    fn can_replay(&self) -> bool {
        Instant::now() < self.deadline && self.upload.as_ref().is_none_or(|u| u.can_replay())
    }

    /// Whether there is an attempt left, by this request's count and by the budget of all.
    fn may_retry(&mut self) -> bool {
        self.attempts += 1;
        if self.attempts >= self.shared.cfg.max_attempts {
            return false;
        }
        let granted = self.shared.budget.withdraw(self.shared.clock.now_ms());
        if !granted {
            self.shared.metrics.retries_over_budget.inc();
        }
        granted
    }

    fn failed(&self, picked: &InFlight) {
        if picked.failed(self.shared.clock.now_ms(), &self.shared.cfg.breaker) {
            self.shared.metrics.ejections.inc();
            tracing::warn!(instance = %picked.instance, host = %picked.host, "an instance is left out for a while");
        }
    }
}

/// Reads the rest of a small body, so that its connection can be used again.
async fn drain(body: Incoming, lease: Lease, upload: Option<&Upload>, most: usize) -> Option<Bytes> {
    let rest = Limited::new(body, most).collect();
    let rest = timeout(Duration::from_millis(250), rest).await.ok()?.ok()?.to_bytes();
    if upload.is_none_or(Upload::is_done) {
        lease.release();
    }
    Some(rest)
}

/// Whether trailers reach the client: over HTTP/1.1 only if it asks for them (RFC 9110, 6.5.1), which hyper sees to.
fn takes_trailers(parts: &Parts) -> bool {
    let asks =
        |v: &HeaderValue| v.as_bytes().split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"trailers"));
    parts.version == Version::HTTP_2
        || (parts.version == Version::HTTP_11 && parts.headers.get_all(TE).iter().any(asks))
}

fn client_failed(failure: UploadError) -> Refusal {
    match failure {
        UploadError::Idle => Refusal::status(
            StatusCode::REQUEST_TIMEOUT,
            "Request timeout",
            "The request's body did not arrive in time.",
        ),
        UploadError::Trailers => Refusal::status(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "Trailers too large",
            "The fields after the request's body are longer than 4 KiB.",
        ),
        UploadError::Client | UploadError::Superseded => Refusal::malformed("The request's body is not well formed."),
    }
}

/// A request that waits; counted until dropped.
struct Waiter<'a>(&'a Shared);

impl<'a> Waiter<'a> {
    fn new(shared: &'a Shared) -> Option<Self> {
        let before = shared.waiting.fetch_add(1, Ordering::Relaxed);
        let waiter = Self(shared);
        shared.metrics.waiting.inc();
        if before >= shared.cfg.max_waiting {
            return None;
        }
        shared.metrics.waits.inc();
        Some(waiter)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.waiting.dec();
    }
}
