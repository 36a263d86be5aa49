//! A sandbox at work on one request, as whoever answers sees it: polled, ended, or left to finish.
//!
//! Owns: whether a request has a sandbox of its own or a place in a shared one, and who pays. Does not own: what the
//! sandbox does (`invoke`), nor on which thread (`share`). Request flow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use wasmtime_wasi_http::WasiBody;

use crate::crowd;
use crate::instance::{Inner, Ticket};
use crate::invoke::{self, AnswerSender, Failure};
use crate::limits::{CpuMeter, Limit};
use crate::logs::SandboxLog;
use crate::share::{Lost, Payer, Task};

/// What a request waits for.
enum Work {
    /// A sandbox of its own.
    Own(Task<Result<(), Failure>>),
    /// A sandbox that others are in too, which has a task of its own.
    Shared(BoxFuture<'static, Result<(), Failure>>),
}

/// A sandbox at work on one request. Dropping it ends the sandbox.
pub(crate) struct Running {
    inner: Arc<Inner>,
    work: Option<Work>,
    meter: Arc<CpuMeter>,
    used_before_ns: u64,
    /// Tells a shared sandbox that the response is out.
    finished: Option<Arc<AtomicBool>>,
    _ticket: Arc<Ticket>,
}

impl Running {
    pub(crate) fn new(
        inner: &Arc<Inner>,
        ticket: Arc<Ticket>,
        request: http::Request<WasiBody>,
        answer: AnswerSender,
    ) -> Self {
        if crowd::is_shared(inner) {
            let (work, finished) = inner.crowd.enter(inner, request, answer);
            let (inner, meter) = (Arc::clone(inner), Arc::default());
            let work = Some(Work::Shared(Box::pin(work)));
            return Self { inner, work, meter, used_before_ns: 0, finished: Some(finished), _ticket: ticket };
        }
        let id: Arc<str> = invoke::request_id(request.headers()).into();
        let idle = inner.take_idle();
        let (meter, log) = match &idle {
            Some(sandbox) => {
                let host = sandbox.store.data();
                (Arc::clone(&host.meter), Arc::clone(&host.log))
            }
            None => (Arc::new(CpuMeter::default()), Arc::new(SandboxLog::new(Arc::clone(&inner.log)))),
        };
        log.begin(id);
        meter.grant(inner.config.limits.cpu_ms.0.saturating_mul(1_000_000));
        let work = invoke::work(Arc::clone(inner), idle, Arc::clone(&meter), log, request, answer);
        // A sandbox that ends on another thread is in flight until it has.
        let held = Arc::clone(&ticket);
        let task = Task::new(payer(inner, &meter), async move {
            let result = work.await;
            drop(held);
            result
        });
        let (used_before_ns, work) = (meter.used_ns(), Some(Work::Own(task)));
        Self { inner: Arc::clone(inner), work, meter, used_before_ns, finished: None, _ticket: ticket }
    }

    /// Lets the sandbox run. Ready when it is done with the request; then it is gone or kept for another.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let result = match &mut self.work {
            Some(Work::Own(task)) => task.poll(cx).map(|result| result.unwrap_or_else(|lost| Err(lost.into()))),
            Some(Work::Shared(work)) => work.as_mut().poll(cx),
            None => return Poll::Ready(Ok(())),
        };
        if result.is_ready() {
            self.work = None;
        }
        result
    }

    /// Ready when the guest is not at work on another thread.
    pub(crate) fn poll_turn(&self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(Work::Own(task)) = &self.work { task.poll_turn(cx) } else { Poll::Ready(()) }
    }

    /// Ends the sandbox.
    pub(crate) fn kill(&mut self) {
        self.work = None;
    }

    /// The whole response is out. True when there is nothing left to wait for.
    pub(crate) fn is_done(&self) -> bool {
        if let Some(finished) = &self.finished {
            finished.store(true, Ordering::SeqCst);
            return true;
        }
        self.work.is_none()
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let used = self.meter.used_ns().saturating_sub(self.used_before_ns);
        self.inner.limits.peak(Limit::CpuMs, used / 1_000_000);
    }
}

/// Who pays for the CPU time of a sandbox.
pub(crate) fn payer(inner: &Inner, meter: &Arc<CpuMeter>) -> Payer {
    Payer {
        shares: inner.machine.shares.clone(),
        share: Arc::clone(&inner.account.share),
        meter: Arc::clone(meter),
        counters: Arc::clone(&inner.counters),
    }
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        Self::guest(format!("{lost}: {}", lost.0))
    }
}
