//! The register of client connections: how drain and the watchdog reach each of them.
//!
//! A connection is told to drain or to end through two atomics and a waker of its own. A shared
//! notification would be simpler, but each poll of each connection would take its lock.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::config::EdgeConfig;
use crate::metrics::Metrics;

const RUN: u8 = 0;
const DRAIN: u8 = 1;
const END: u8 = 2;

/// Monotonic milliseconds since the edge was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    /// Never 0, so that 0 can stand for "never".
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// What others may ask of a connection, and see of it.
#[derive(Debug)]
pub(crate) struct ConnState {
    wish: AtomicU8,
    waker: AtomicWaker,
    clock: Clock,
    /// Since when the client takes no bytes; 0: it takes them.
    stalled_since_ms: AtomicU64,
    requests: AtomicU32,
    last_active_ms: AtomicU64,
    /// HTTP/2 connections need the watchdog for idleness; HTTP/1 has its header timeout.
    http2: AtomicU8,
}

impl ConnState {
    fn ask(&self, wish: u8) {
        self.wish.fetch_max(wish, Ordering::AcqRel);
        self.waker.wake();
    }

    pub(crate) fn is_http2(&self) {
        self.http2.store(1, Ordering::Relaxed);
    }

    pub(crate) fn request_begins(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn request_ends(&self) {
        // The time first: an observer that sees no request must not see the time before it.
        self.last_active_ms.store(self.clock.now_ms(), Ordering::Relaxed);
        self.requests.fetch_sub(1, Ordering::Release);
    }

    /// Runs what comes before the first request; `None` when the edge drains meanwhile.
    pub(crate) async fn until_drain<F: Future>(&self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            if self.wish.load(Ordering::Acquire) != RUN {
                return Poll::Ready(None);
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Runs a connection to its end. Drain lets it finish what is in flight (HTTP/1: `Connection:
    /// close`, HTTP/2: GOAWAY). `None`: the watchdog or the end of the drain cut it.
    pub(crate) async fn drive<C: GracefulConnection>(&self, conn: C) -> Option<C::Output> {
        let mut conn = pin!(conn);
        let mut asked = false;
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            match self.wish.load(Ordering::Acquire) {
                END => return Poll::Ready(None),
                DRAIN if !asked => {
                    asked = true;
                    conn.as_mut().graceful_shutdown();
                }
                _ => {}
            }
            conn.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

/// All client connections.
#[derive(Debug)]
pub(crate) struct Connections {
    clock: Clock,
    metrics: Metrics,
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    next: u64,
    draining: bool,
    by_number: HashMap<u64, Arc<ConnState>>,
}

impl Connections {
    pub(crate) fn new(clock: Clock, metrics: Metrics) -> Self {
        Self { clock, metrics, live: Mutex::default() }
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection until the guard is dropped.
    pub(crate) fn register(self: &Arc<Self>) -> ConnGuard {
        let state = Arc::new(ConnState {
            wish: AtomicU8::new(RUN),
            waker: AtomicWaker::new(),
            clock: self.clock,
            stalled_since_ms: AtomicU64::new(0),
            requests: AtomicU32::new(0),
            last_active_ms: AtomicU64::new(self.clock.now_ms()),
            http2: AtomicU8::new(0),
        });
        let mut live = self.live();
        let number = live.next;
        live.next += 1;
        if live.draining {
            state.ask(DRAIN);
        }
        live.by_number.insert(number, Arc::clone(&state));
        self.metrics.connections.inc();
        ConnGuard { connections: Arc::clone(self), number, state }
    }

    /// Asks every connection, also those that come later, to finish.
    pub(crate) fn drain(&self) {
        let mut live = self.live();
        live.draining = true;
        live.by_number.values().for_each(|c| c.ask(DRAIN));
    }

    /// Cuts every connection.
    pub(crate) fn end(&self) -> usize {
        let live = self.live();
        live.by_number.values().for_each(|c| c.ask(END));
        live.by_number.len()
    }

    /// Cuts clients that take nothing, and lets idle HTTP/2 connections go.
    pub(crate) fn watchdog(&self, cfg: &EdgeConfig) {
        let now = self.clock.now_ms();
        for conn in self.live().by_number.values() {
            let stalled = conn.stalled_since_ms.load(Ordering::Relaxed);
            if stalled != 0 && now.saturating_sub(stalled) > cfg.write_stall_ms.0 {
                conn.ask(END);
                self.metrics.cut_stalled.inc();
            }
            let idle = conn.http2.load(Ordering::Relaxed) == 1
                && conn.requests.load(Ordering::Acquire) == 0
                && now.saturating_sub(conn.last_active_ms.load(Ordering::Relaxed)) > cfg.http2_idle_ms.0;
            if idle {
                conn.ask(DRAIN);
            }
        }
    }
}

/// A registered connection.
#[derive(Debug)]
pub(crate) struct ConnGuard {
    connections: Arc<Connections>,
    number: u64,
    state: Arc<ConnState>,
}

impl ConnGuard {
    pub(crate) fn state(&self) -> &Arc<ConnState> {
        &self.state
    }
}

impl Drop for ConnGuard {
    fn drop(&mut self) {
        self.connections.live().by_number.remove(&self.number);
        self.connections.metrics.connections.dec();
    }
}

/// A stream that notes since when its peer takes no bytes.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    inner: T,
    state: Arc<ConnState>,
}

impl<T> Watched<T> {
    pub(crate) fn new(inner: T, state: Arc<ConnState>) -> Self {
        Self { inner, state }
    }

    fn note<R>(&self, result: Poll<R>) -> Poll<R> {
        let stalled = &self.state.stalled_since_ms;
        match (result.is_pending(), stalled.load(Ordering::Relaxed)) {
            (true, 0) => stalled.store(self.state.clock.now_ms(), Ordering::Relaxed),
            (false, since) if since != 0 => stalled.store(0, Ordering::Relaxed),
            _ => {}
        }
        result
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.note(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.note(result)
    }
}
