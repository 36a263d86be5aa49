//! Shared sandboxes: several requests at once in one store, for WASI 0.3 components that ask for it.
//!
//! Owns: which sandbox takes a request, and when a shared one ends. Does not own: making a sandbox (`sandbox`) nor
//! admission (`instance`). Flow: instance -> here -> guest; one task per shared sandbox drives it.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use wasmtime::component::Accessor;
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::p3::bindings::Service;

use crate::instance::Inner;
use crate::invoke::{self, AnswerSender, Failure};
use crate::limits::CpuMeter;
use crate::logs::SandboxLog;
use crate::running;
use crate::sandbox::{Host, Proxy};
use crate::share::Task;

type Outcome = Result<(), Failure>;

/// A request on its way into a shared sandbox.
struct Job {
    request: http::Request<WasiBody>,
    answer: AnswerSender,
    done: oneshot::Sender<()>,
}

/// A shared sandbox as its clients see it.
struct Member {
    jobs: mpsc::Sender<Job>,
    state: Arc<State>,
}

struct State {
    /// Requests in it now.
    active: AtomicU32,
    /// Requests that it ever took.
    taken: AtomicU32,
    /// It takes no more requests.
    retired: AtomicBool,
    /// A client gave up on it: what that request does has no end of its own.
    abandoned: AtomicBool,
    /// A client that gave up left.
    left: Notify,
    /// Why it failed, for all that were in it.
    failure: watch::Sender<Option<Failure>>,
}

/// The shared sandboxes of one instance.
#[derive(Default)]
pub(crate) struct Crowd(Mutex<Vec<Member>>);

/// A place in a shared sandbox. Dropping it before its request is finished retires the sandbox, for a
/// single request of a component cannot be cancelled.
struct Place {
    state: Arc<State>,
    finished: Arc<AtomicBool>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.finished.load(Ordering::SeqCst) {
            self.state.abandoned.store(true, Ordering::SeqCst);
            self.state.retired.store(true, Ordering::SeqCst);
        }
        self.state.active.fetch_sub(1, Ordering::SeqCst);
        if self.state.is_forsaken() {
            self.state.left.notify_one();
        }
    }
}

/// Whether requests of this instance are to share sandboxes, if its component can.
pub(crate) fn may_share(inner: &Inner) -> bool {
    let reuse = &inner.config.reuse;
    reuse.concurrent > 1 && reuse.max_requests > 1
}

/// Whether they do. Known once its code was mapped.
pub(crate) fn is_shared(inner: &Inner) -> bool {
    may_share(inner) && inner.code.is_concurrent()
}

impl Crowd {
    /// Puts a request into a sandbox that has room, or into a new one. The future is ready when the
    /// sandbox is done with the request; the flag says so in advance, when the response is out.
    pub(crate) fn enter(
        &self,
        inner: &Arc<Inner>,
        request: http::Request<WasiBody>,
        answer: AnswerSender,
    ) -> (impl Future<Output = Outcome> + Send + use<>, Arc<AtomicBool>) {
        let (done, outcome) = oneshot::channel();
        let finished = Arc::new(AtomicBool::new(false));
        let state = self.place(inner, Job { request, answer, done });
        let place = Place { state, finished: Arc::clone(&finished) };
        let wait = async move {
            let result = match outcome.await {
                Ok(()) => Ok(()),
                Err(_) => Err(place.state.why().await),
            };
            place.finished.store(true, Ordering::SeqCst);
            result
        };
        (wait, finished)
    }

    fn place(&self, inner: &Arc<Inner>, mut job: Job) -> Arc<State> {
        let reuse = inner.config.reuse;
        let mut members = self.members();
        if inner.machine.totals.is_over() {
            // Others wait for what is over the lease: each ends with what is in it.
            members.iter().for_each(|m| m.state.retired.store(true, Ordering::SeqCst));
        }
        // A member without its place in the list ends by itself.
        members.retain(|m| !m.state.retired.load(Ordering::SeqCst) && !m.jobs.is_closed());
        for member in members.iter() {
            if member.state.active.load(Ordering::SeqCst) >= reuse.concurrent {
                continue;
            }
            match member.jobs.try_send(job) {
                Ok(()) => return member.state.take(reuse.max_requests),
                Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => job = back,
            }
        }
        let (jobs, queue) = mpsc::channel(reuse.concurrent as usize);
        // The first always has room in a channel of at least two.
        let _ = jobs.try_send(job);
        let state = Arc::new(State {
            active: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            retired: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            left: Notify::new(),
            failure: watch::Sender::new(None),
        });
        inner.afterwork.spawn(run(Arc::clone(inner), Arc::clone(&state), queue));
        members.push(Member { jobs, state: Arc::clone(&state) });
        state.take(reuse.max_requests)
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        // A list of whole members: usable whatever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(self: &Arc<Self>, max_requests: u32) -> Arc<Self> {
        self.active.fetch_add(1, Ordering::SeqCst);
        if self.taken.fetch_add(1, Ordering::SeqCst) + 1 >= max_requests {
            self.retired.store(true, Ordering::SeqCst);
        }
        Arc::clone(self)
    }

    /// Nobody waits for the sandbox, and it would not end by itself.
    fn is_forsaken(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst) && self.active.load(Ordering::SeqCst) == 0
    }

    /// Resolves when nobody waits for it and it would not end by itself.
    async fn forsaken(&self) {
        while !self.is_forsaken() {
            self.left.notified().await;
        }
    }

    async fn why(&self) -> Failure {
        let mut failure = self.failure.subscribe();
        let known = failure.wait_for(Option::is_some).await.ok().and_then(|f| f.clone());
        known.unwrap_or_else(|| Failure::guest("the guest's sandbox ended".into()))
    }
}

/// The life of a shared sandbox.
async fn run(inner: Arc<Inner>, state: Arc<State>, mut jobs: mpsc::Receiver<Job>) {
    let meter = Arc::new(CpuMeter::default());
    let log = Arc::new(SandboxLog::new(Arc::clone(&inner.log)));
    let payer = running::payer(&inner, &meter);
    let life = {
        let (inner, state, log) = (Arc::clone(&inner), Arc::clone(&state), Arc::clone(&log));
        async move { live(&inner, &state, &mut jobs, &meter, &log).await }
    };
    let mut life = Task::new(payer, life);
    let ended = poll_fn(|cx| life.poll(cx).map(|result| result.unwrap_or_else(|lost| Err(lost.into()))));
    // A guest that loops lets nothing within run: what ends it has to be out here.
    let result = tokio::select! {
        result = ended => result,
        () = state.forsaken() => Ok(()),
    };
    drop(life);
    state.retired.store(true, Ordering::SeqCst);
    log.flush();
    let ended = || Failure::guest("the guest's sandbox ended before it answered".into());
    state.failure.send_replace(Some(result.err().unwrap_or_else(ended)));
}

async fn live(
    inner: &Arc<Inner>,
    state: &State,
    jobs: &mut mpsc::Receiver<Job>,
    meter: &Arc<CpuMeter>,
    log: &Arc<SandboxLog>,
) -> Outcome {
    let limits = &inner.config.limits;
    let budget_ns = limits.cpu_ms.0.saturating_mul(1_000_000);
    meter.grant(budget_ns);
    let mut sandbox = invoke::new_sandbox(inner, meter, log, None).await?;
    let Proxy::P3(service) = &sandbox.proxy else {
        return Err(Failure::guest("only components of WASI 0.3 can share a sandbox".into()));
    };
    let account = Arc::clone(sandbox.store.data().ledger.account());
    let idle = Duration::from(inner.config.reuse.idle_ms).max(Duration::from_millis(10));
    let afterwards = Duration::from(inner.config.limits.time_ms);
    let result = sandbox
        .store
        .run_concurrent(async |accessor| {
            let mut running = FuturesUnordered::new();
            loop {
                if state.retired.load(Ordering::SeqCst) {
                    jobs.close();
                }
                tokio::select! {
                    biased;
                    Some(served) = running.next(), if !running.is_empty() => served?,
                    job = jobs.recv() => match job {
                        Some(job) => {
                            // Lines of requests that run at once cannot be told apart.
                            let id = if running.is_empty() { invoke::request_id(job.request.headers()) } else { "" };
                            log.begin(id.into());
                            meter.grant(budget_ns);
                            account.grant(limits.outbound_requests, limits.outbound_bytes.0, inner.config.reuse.concurrent);
                            running.push(serve(accessor, service, job));
                        }
                        None => break,
                    },
                    () = tokio::time::sleep(idle), if running.is_empty() => jobs.close(),
                }
            }
            while let Some(served) = running.next().await {
                served?;
            }
            let rest = poll_fn(|cx| accessor.poll_no_interesting_tasks(cx));
            // What a guest does after its last response has the time of a request.
            let _ = tokio::time::timeout(afterwards, rest).await;
            wasmtime::Result::Ok(())
        })
        .await
        .and_then(|result| result);
    let fired = sandbox.store.data_mut().limiter.fired.take();
    match result {
        Ok(()) => {
            invoke::note_growth(inner, log, fired);
            Ok(())
        }
        Err(e) => Err(invoke::explain(inner, meter, fired, &e)),
    }
}

/// One request, until its response is out or its client gone.
async fn serve(accessor: &Accessor<Host>, service: &Service, job: Job) -> wasmtime::Result<()> {
    let Job { request, answer, mut done } = job;
    let exchange = async {
        let sent_all = invoke::exchange(accessor, service, request, answer).await?;
        // Ends with an error when the body is dropped, which is as good.
        let _ = sent_all.await;
        Ok::<_, wasmtime::Error>(())
    };
    tokio::select! {
        result = exchange => result?,
        () = done.closed() => return Ok(()),
    }
    // The client may be gone.
    let _ = done.send(());
    Ok(())
}
