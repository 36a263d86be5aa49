//! The threads on which guests run that compute for long or whose app is ahead of its share, and the way there and back.
//!
//! Owns: the threads, and where the work of one request is. Does not own: who runs when (`turns`), nor who is ahead
//! (`balance`). On a thread of connections the work is polled by whoever asks for its answer; in the lane it is a task.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use nix::libc;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::AbortOnDropHandle;

use super::turns::{Turn, Turns};
use super::{Share, Shares};
use crate::error::RuntimeError;
use crate::instance::Counters;
use crate::limits::{CpuMeter, LANE_TURN, TURN};

/// How much nicer (sched(7)) the lane's threads are than those of connections: a third of their weight where both want
/// the same core, and a connection that becomes ready need not wait for a guest that computes.
const NICE: i32 = 5;

/// What the kernel gives a thread of the lane at once. From Linux 6.12 on, one that becomes ready and has a shorter slice,
/// as all others have (0.7 to 3 ms), need not wait for the rest of it. What a guest loses thereby is no time, only order.
const SLICE: Duration = Duration::from_millis(20);

/// Work that had so many short turns in a row, of an app that is not behind, goes home. Not so long: whoever waits for its
/// turn would be calm.
const CALM: u32 = 16;

/// Threads for what blocks: the files of guests.
const BLOCKING: usize = 16;

/// The threads; they end with this.
pub(super) struct Lane(Option<Runtime>);

impl Lane {
    /// With so many threads. Comes back when all have their priority: later a worker may not change it.
    pub(super) fn start(threads: usize) -> Result<Self, RuntimeError> {
        let (ready, all_ready) = std::sync::mpsc::channel();
        // Threads for what blocks start later and need no other priority.
        let left = AtomicUsize::new(threads);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .max_blocking_threads(BLOCKING)
            .thread_name("lane")
            .enable_all()
            .on_thread_start(move || {
                if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    // Who is told by whom is decided before this thread takes work.
                    let _ = ready.send(step_back());
                }
            })
            .build()
            .map_err(RuntimeError::Lane)?;
        for _ in 0..threads {
            match all_ready.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "guests that compute have the priority of connections"),
                Err(_) => break,
            }
        }
        Ok(Self(Some(runtime)))
    }

    fn handle(&self) -> Option<&Handle> {
        self.0.as_ref().map(Runtime::handle)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // May be dropped by a task, which must not wait.
            runtime.shutdown_background();
        }
    }
}

/// Gives the calling thread the lane's priority.
#[allow(unsafe_code, reason = "sched_setattr(2), for which no crate has a call; see SAFETY")]
fn step_back() -> io::Result<()> {
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).map_err(io::Error::other)?,
        sched_policy: 0, // SCHED_OTHER
        sched_flags: 0,
        sched_nice: NICE,
        sched_priority: 0,
        sched_runtime: u64::try_from(SLICE.as_nanos()).map_err(io::Error::other)?,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of the structure, which outlives the call, and changes this thread alone.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The lane ended, or the work panicked there.
#[derive(Debug, thiserror::Error)]
#[error("the thread that ran the guest gave it up")]
pub(crate) struct Lost(#[source] pub(crate) tokio::task::JoinError);

/// Who pays for CPU time.
#[derive(Clone)]
pub(crate) struct Payer {
    pub(crate) shares: Shares,
    pub(crate) share: Arc<Share>,
    pub(crate) meter: Arc<CpuMeter>,
    pub(crate) counters: Arc<Counters>,
}

impl Payer {
    /// Polls, as a turn of this length, and pays for it. True: it lasted.
    fn poll<R>(&self, turn: Duration, poll: impl FnOnce() -> R) -> (R, u64, bool) {
        let (result, ns) = self.meter.poll(turn, poll);
        self.counters.cpu_ns.fetch_add(ns, Ordering::Relaxed);
        self.shares.spent(&self.share, ns);
        (result, ns, u128::from(ns) >= turn.as_nanos())
    }
}

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What comes back from the lane.
enum Back<T> {
    Done(T),
    Home(Work<T>),
}

enum Place<T> {
    Here(Work<T>),
    Lane { task: AbortOnDropHandle<Back<T>>, turn: Arc<AtTurn> },
    Done,
}

/// Whether work in the lane has its turn right now, or its first one is still to come.
struct AtTurn {
    now: AtomicBool,
    owner: AtomicWaker,
}

impl AtTurn {
    const fn new() -> Self {
        Self { now: AtomicBool::new(true), owner: AtomicWaker::new() }
    }

    fn end(&self) {
        self.now.store(false, Ordering::SeqCst);
        self.owner.wake();
    }
}

/// Work that is paid for, wherever it runs. Dropping it ends the work: at once, or after its present turn in the lane.
pub(crate) struct Task<T> {
    payer: Payer,
    place: Place<T>,
}

impl<T: Send + 'static> Task<T> {
    pub(crate) fn new(payer: Payer, work: impl Future<Output = T> + Send + 'static) -> Self {
        Self { payer, place: Place::Here(Box::pin(work)) }
    }

    /// Has it go on. Not to be called again after it was ready.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, Lost>> {
        loop {
            match &mut self.place {
                Place::Here(work) if !self.payer.share.is_behind() => {
                    let (polled, _, long) = self.payer.poll(TURN, || work.as_mut().poll(cx));
                    if let Poll::Ready(result) = polled {
                        self.place = Place::Done;
                        return Poll::Ready(Ok(result));
                    }
                    if !long || !self.payer.shares.0.on {
                        return Poll::Pending;
                    }
                    self.send(0);
                }
                Place::Here(_) => self.send(CALM),
                Place::Lane { task, .. } => match ready!(Pin::new(task).poll(cx)) {
                    Ok(Back::Home(work)) => self.place = Place::Here(work),
                    Ok(Back::Done(result)) => {
                        self.place = Place::Done;
                        return Poll::Ready(Ok(result));
                    }
                    Err(error) => {
                        self.place = Place::Done;
                        return Poll::Ready(Err(Lost(error)));
                    }
                },
                Place::Done => return Poll::Pending,
            }
        }
    }

    /// Ready when the work is not at a turn elsewhere: what it makes in this turn is made.
    pub(crate) fn poll_turn(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Place::Lane { turn, .. } = &self.place else { return Poll::Ready(()) };
        turn.owner.register(cx.waker());
        if turn.now.load(Ordering::SeqCst) { Poll::Pending } else { Poll::Ready(()) }
    }

    /// To the lane.
    fn send(&mut self, short_turns: u32) {
        let shares = &self.payer.shares.0;
        self.place = match (std::mem::replace(&mut self.place, Place::Done), shares.lane.handle()) {
            (Place::Here(work), Some(lane)) => {
                let turns = Arc::clone(&shares.turns);
                let (payer, work) = (self.payer.clone(), Some(work));
                let at_turn = Arc::new(AtTurn::new());
                let turn = Arc::clone(&at_turn);
                let visit = Visit { payer, work, turns, turn: None, at_turn, joined: Instant::now(), short_turns };
                Place::Lane { task: AbortOnDropHandle::new(lane.spawn(visit)), turn }
            }
            (place, _) => place,
        };
    }
}

/// Work in the lane: each poll is a turn.
struct Visit<T> {
    payer: Payer,
    work: Option<Work<T>>,
    turns: Arc<Turns>,
    turn: Option<Turn>,
    at_turn: Arc<AtTurn>,
    joined: Instant,
    /// In a row.
    short_turns: u32,
}

impl<T> Future for Visit<T> {
    type Output = Back<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Back<T>> {
        let this = &mut *self;
        if this.short_turns >= CALM
            && !this.payer.share.is_behind()
            && let Some(work) = this.work.take()
        {
            this.turn = None;
            return Poll::Ready(Back::Home(work));
        }
        let Some(work) = &mut this.work else { return Poll::Pending };
        let turn = match this.turn.take() {
            Some(turn) => turn,
            None => {
                this.joined = Instant::now();
                this.turns.join(&this.payer.share, cx.waker())
            }
        };
        if !turn.is_granted(cx.waker()) {
            this.turn = Some(turn);
            return Poll::Pending;
        }
        this.payer.shares.waited_in_lane(this.joined.elapsed());
        this.at_turn.now.store(true, Ordering::SeqCst);
        let (polled, ns, long) = this.payer.poll(LANE_TURN, || work.as_mut().poll(cx));
        this.at_turn.end();
        if polled.is_pending() && long {
            // It was interrupted and wants to go on. It is in line before its place is free: tokio wakes those who yield
            // when all others were served, whoever's they are.
            this.joined = Instant::now();
            this.turn = Some(this.turns.join(&this.payer.share, cx.waker()));
        }
        turn.end(ns);
        this.short_turns = if long { 0 } else { this.short_turns.saturating_add(1) };
        polled.map(Back::Done)
    }
}
