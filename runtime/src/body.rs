//! Bodies on their way into and out of a sandbox: they count against their limits, and the one that
//! goes out drives the sandbox that makes it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use marcato_api::{Bytes as ByteCount, Limits, ProblemKind, trailers};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use wasmtime_wasi_http::{Error, WasiBody};

use crate::accounting;
use crate::error::InvokeError;
use crate::instance::Inner;
use crate::invoke::{self, Failure};
use crate::limits::{Limit, LimitCounters};
use crate::running::Running;
use crate::usage;

/// Any error of a body's source.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request on its way to a guest.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// Frames that are read before the head goes out: one with a short answer, and its end.
const FRAMES_AHEAD: usize = 2;

/// Why a response ended early.
#[derive(Debug, thiserror::Error)]
#[error("the response was cut: {}", .0.detail)]
pub struct BodyError(pub(crate) InvokeError);

/// A guest's response body. It drives the sandbox: dropping it before its end kills the sandbox.
pub struct ResponseBody(GuestBody);

impl ResponseBody {
    pub(crate) fn new(body: GuestBody) -> Self {
        Self(body)
    }
}

impl std::fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = match self.0.ahead.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => self.0.poll(cx),
        };
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.0.inner.counters.bytes_out.fetch_add(accounting::frame(frame), Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.ahead.is_empty() && (self.0.ended || self.0.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let ahead: u64 = self.0.ahead.iter().filter_map(|f| Some(f.data_ref()?.len() as u64)).sum();
        if self.0.ended && self.0.ahead.iter().all(Frame::is_data) {
            return SizeHint::with_exact(ahead);
        }
        let rest = self.0.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(ahead));
        if let Some(upper) = rest.upper().and_then(|u| u.checked_add(ahead)) {
            hint.set_upper(upper);
        }
        hint
    }
}

/// What a response body is made of.
pub(crate) struct GuestBody {
    body: WasiBody,
    /// Frames that were there when the head was.
    ahead: VecDeque<Frame<Bytes>>,
    inner: Arc<Inner>,
    /// Taken when a guest works on after its response.
    running: Option<Running>,
    timer: Pin<Box<Sleep>>,
    /// Runs while the client waits for the guest.
    idle: Idle,
    deadline: Instant,
    request_id: Arc<str>,
    announced: Option<u64>,
    sent: u64,
    ended: bool,
    /// The head has not gone out: nobody waits for the body yet.
    head_waits: bool,
}

impl GuestBody {
    pub(crate) fn new(
        body: WasiBody,
        running: Running,
        deadline: Instant,
        request_id: Arc<str>,
        announced: Option<u64>,
    ) -> Self {
        let timer = Box::pin(sleep_until(deadline));
        let idle = Idle::new(&running.inner().config.limits);
        let inner = Arc::clone(running.inner());
        let (running, ahead) = (Some(running), VecDeque::new());
        let (sent, ended, head_waits) = (0, false, true);
        Self { body, ahead, inner, running, timer, idle, deadline, request_id, announced, sent, ended, head_waits }
    }

    /// Takes what the guest has made already. A short answer is whole then: it goes out in one piece and with
    /// its length, and the sandbox is free before the first byte leaves. Errors: it failed before any byte left.
    pub(crate) fn read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), InvokeError>> {
        while self.ahead.len() < FRAMES_AHEAD {
            // Asked before the body is: what a turn elsewhere makes is then there, or its end wakes us.
            let at_work = self.is_at_work(cx);
            match self.poll(cx) {
                Poll::Ready(Some(Ok(frame))) => self.ahead.push_back(frame),
                Poll::Ready(Some(Err(BodyError(error)))) => return Poll::Ready(Err(error)),
                // It may have begun a turn elsewhere just now.
                Poll::Pending if at_work || self.is_at_work(cx) => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        self.head_waits = false;
        Poll::Ready(Ok(()))
    }

    /// The guest has its turn on another thread, whose end wakes us.
    fn is_at_work(&self, cx: &mut Context<'_>) -> bool {
        self.running.as_ref().is_some_and(|running| running.poll_turn(cx).is_pending())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // The guest first: it makes what the body has to give.
        if let Some(running) = &mut self.running
            && let Poll::Ready(Err(failure)) = running.poll(cx)
        {
            return self.fail(failure);
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.idle.moved();
                self.count(frame)
            }
            Poll::Ready(Some(Err(e))) => self.fail_with(format!("the guest's response body failed: {e}")),
            Poll::Ready(None) => {
                self.ended = true;
                // The sandbox may have waited for just this.
                match self.running.as_mut().map(|running| running.poll(cx)) {
                    Some(Poll::Ready(Err(failure))) => self.fail(failure),
                    _ => Poll::Ready(None),
                }
            }
            Poll::Pending => {
                let late = self.timer.as_mut().poll(cx).is_ready();
                if !late {
                    if self.head_waits {
                        return Poll::Pending;
                    }
                    ready!(self.idle.poll(cx));
                }
                match &self.running {
                    Some(running) if late => {
                        let failure = invoke::timed_out(running.inner());
                        self.fail(failure)
                    }
                    Some(running) => {
                        let detail =
                            format!("limit {} reached: response cut", usage::named(running.inner(), Limit::IdleMs));
                        self.fail(Failure::limit(ProblemKind::TimedOut, Limit::IdleMs, detail))
                    }
                    None => self.fail_with("its time is over".into()),
                }
            }
        }
    }

    /// Names the trailers that were there when the head was, where the guest did not.
    pub(crate) fn announce_trailers(&self, head: &mut HeaderMap) {
        if let Some(ahead) = self.ahead.back().and_then(Frame::trailers_ref) {
            trailers::name_unless_named(head, ahead);
        }
    }

    fn count(&mut self, frame: Frame<Bytes>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(sent) = frame.trailers_ref()
            && trailers::size(sent) > trailers::MAX_BYTES
        {
            let most = ByteCount(trailers::MAX_BYTES as u64);
            return self.fail_with(format!("the guest's trailers are longer than {most}: response cut"));
        }
        self.sent = self.sent.saturating_add(frame.data_ref().map_or(0, |data| data.len() as u64));
        if let Some(running) = &self.running {
            let limit = running.inner().config.limits.response_body_bytes;
            if self.sent > limit.0 {
                let detail = format!("limit response_body_bytes ({limit}) reached: response cut");
                return self.fail(Failure::limit(ProblemKind::GuestFailed, Limit::ResponseBodyBytes, detail));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn fail_with(&mut self, reason: String) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.fail(Failure {
            kind: ProblemKind::GuestFailed,
            limit: None,
            used: None,
            not_started: false,
            detail: "the app failed while it answered; its log says why".into(),
            reason: Some(reason),
        })
    }

    fn fail(&mut self, failure: Failure) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.ended = true;
        let error = match self.running.take() {
            Some(mut running) => {
                running.kill();
                invoke::record(running.inner(), &self.request_id, failure)
            }
            // The guest was done: no limit of its request is left that could fire.
            None => InvokeError {
                kind: failure.kind,
                not_started: failure.not_started,
                detail: failure.detail,
                limit: None,
                reason: failure.reason.map(String::into_boxed_str),
            },
        };
        Poll::Ready(Some(Err(BodyError(error))))
    }
}

impl Drop for GuestBody {
    fn drop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        let whole = self.ended || self.body.is_end_stream() || self.announced == Some(self.sent);
        if !whole || running.is_done() {
            return;
        }
        self.body = Empty::new().map_err(|e| match e {}).boxed_unsync();
        match running.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => return,
            Poll::Ready(Err(failure)) => {
                // Nobody waits for the error: it is logged and counted.
                let _ = invoke::record(running.inner(), &self.request_id, failure);
                return;
            }
            Poll::Pending => {}
        }
        // The client has its response; the guest may finish what it began, until the request's time is over.
        let (inner, id, deadline) = (Arc::clone(running.inner()), Arc::clone(&self.request_id), self.deadline);
        let tracker = inner.afterwork.clone();
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        tracker.spawn(async move {
            let rest = std::future::poll_fn(|cx| running.poll(cx));
            let failure = match tokio::time::timeout_at(deadline, rest).await {
                Ok(Ok(())) => return,
                Ok(Err(failure)) => failure,
                Err(_) => invoke::timed_out(&inner),
            };
            running.kill();
            // Nobody waits for the error: it is logged and counted.
            let _ = invoke::record(&inner, &id, failure);
        });
    }
}

/// A body that drops a sender at its end.
pub(crate) struct WatchedBody {
    body: WasiBody,
    done: Option<futures::channel::oneshot::Sender<()>>,
}

impl WatchedBody {
    pub(crate) fn new(body: WasiBody, done: futures::channel::oneshot::Sender<()>) -> Self {
        Self { body, done: Some(done) }
    }
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.done = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How long one side waits for the other; the time that a slow reader takes is not counted.
struct Idle {
    after: Duration,
    since: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    fn new(limits: &Limits) -> Self {
        Self { after: limits.idle_ms.into(), since: None }
    }

    /// There was something: the next wait begins anew.
    fn moved(&mut self) {
        self.since = None;
    }

    /// There is nothing. Ready when that was so for too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let after = self.after;
        self.since.get_or_insert_with(|| Box::pin(sleep(after))).as_mut().poll(cx)
    }
}

/// A request body that is cut at its limit, or when the client sends nothing for too long.
pub(crate) struct UploadBody {
    body: RequestBody,
    left: u64,
    limit: u64,
    exceeded: Arc<AtomicBool>,
    idle: Idle,
    counters: Arc<LimitCounters>,
}

impl UploadBody {
    pub(crate) fn new(
        body: RequestBody,
        limits: &Limits,
        exceeded: Arc<AtomicBool>,
        counters: Arc<LimitCounters>,
    ) -> Self {
        let limit = limits.request_body_bytes.0;
        Self { body, left: limit, limit, exceeded, idle: Idle::new(limits), counters }
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(_))) => return Poll::Ready(Some(Err(Error::ConnectionTerminated))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                ready!(self.idle.poll(cx));
                self.counters.count(Limit::IdleMs);
                return Poll::Ready(Some(Err(Error::ConnectionReadTimeout)));
            }
        };
        self.idle.moved();
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                self.left = 0;
                self.exceeded.store(true, Ordering::Relaxed);
                Poll::Ready(Some(Err(Error::HttpRequestBodySize(Some(self.limit)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
