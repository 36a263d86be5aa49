//! What an app is charged for beside CPU time: bytes of requests and responses, and linear memory over time.
//!
//! Owns: how heads are measured, bodies that count themselves, and the integral of memory. Does not own: CPU time
//! (`limits`), nor who hears of it (the worker's report). On the request path, so nothing here waits.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use marcato_api::headers::INTERNAL_PREFIX;
use wasmtime::ResourceLimiter;

use crate::body::{BoxError, RequestBody};
use crate::instance::Inner;
use crate::sandbox::Host;

/// The unit of linear memory: memories are made of whole pages.
const PAGE: u64 = 64 << 10;

/// Fields as HTTP/1.1 writes them, without those of the platform.
fn fields(headers: &HeaderMap) -> u64 {
    let apps = headers.iter().filter(|(name, _)| !name.as_str().starts_with(INTERNAL_PREFIX));
    apps.map(|(name, value)| (name.as_str().len() + value.len() + ": \r\n".len()) as u64).sum()
}

/// Bytes of a request's head as HTTP/1.1 writes it.
pub(crate) fn request_head<B>(request: &Request<B>) -> u64 {
    let target = request.uri().path_and_query().map_or(1, |p| p.as_str().len());
    let line = request.method().as_str().len() + target + "  HTTP/1.1\r\n".len();
    line as u64 + fields(request.headers()) + 2
}

/// Bytes of a response's head as HTTP/1.1 writes it, without what the connection adds.
pub(crate) fn response_head<B>(response: &Response<B>) -> u64 {
    let reason = response.status().canonical_reason().map_or(0, str::len);
    (reason + "HTTP/1.1 200 \r\n".len()) as u64 + fields(response.headers()) + 2
}

/// Bytes of one frame of a body.
pub(crate) fn frame(frame: &Frame<Bytes>) -> u64 {
    match (frame.data_ref(), frame.trailers_ref()) {
        (Some(data), _) => data.len() as u64,
        (None, Some(trailers)) => fields(trailers),
        (None, None) => 0,
    }
}

/// A request's body that counts what comes of it.
struct Upload {
    body: RequestBody,
    inner: Arc<Inner>,
}

/// The body, counting. One that is at its end costs nothing.
pub(crate) fn upload(body: RequestBody, inner: &Arc<Inner>) -> RequestBody {
    if body.is_end_stream() { body } else { Upload { body, inner: Arc::clone(inner) }.boxed_unsync() }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(read)) = &polled {
            self.inner.counters.bytes_in.fetch_add(frame(read), Ordering::Relaxed);
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Linear memory times the time that it is held, over all sandboxes of an instance.
///
/// Pages that were held from `a` to `b` count as `pages * b - pages * a`; so two sums, over all that changed, are
/// enough, modulo 2⁶⁴. Requests change them without a lock and never wait for a reader; a reader takes both
/// between two changes.
#[derive(Debug)]
pub(crate) struct MemoryTime {
    since: Instant,
    /// Changes that began and that ended: equal when none is under way.
    began: AtomicU64,
    ended: AtomicU64,
    /// Pages that are held now.
    pages: AtomicU64,
    /// Each change in pages times its microsecond.
    offset: AtomicU64,
    heard: Mutex<Heard>,
}

/// What readers have made of it.
#[derive(Debug, Default)]
struct Heard {
    raw: u64,
    page_us: u128,
}

impl MemoryTime {
    pub(crate) fn new() -> Self {
        Self {
            since: Instant::now(),
            began: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            offset: AtomicU64::new(0),
            heard: Mutex::default(),
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// So many pages more; fewer, modulo 2⁶⁴.
    fn change(&self, pages: u64, now_us: impl FnOnce() -> u64) {
        self.began.fetch_add(1, Ordering::SeqCst);
        // Not before: a reader that saw none under way has an earlier time.
        let at = now_us();
        self.pages.fetch_add(pages, Ordering::SeqCst);
        self.offset.fetch_add(pages.wrapping_mul(at), Ordering::SeqCst);
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    fn read(&self, now_us: impl Fn() -> u64) -> u128 {
        // A change takes nanoseconds. Without a gap between them the next report has it.
        const ATTEMPTS: u32 = 1_000;
        // Two numbers that belong together, whatever panicked; only readers lock.
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ATTEMPTS {
            let ended = self.ended.load(Ordering::SeqCst);
            let held = self.pages.load(Ordering::SeqCst).wrapping_mul(now_us());
            let raw = held.wrapping_sub(self.offset.load(Ordering::SeqCst));
            if self.began.load(Ordering::SeqCst) == ended {
                heard.page_us += u128::from(raw.wrapping_sub(heard.raw));
                heard.raw = raw;
                break;
            }
            std::hint::spin_loop();
        }
        heard.page_us
    }

    /// The total until now, in byte-milliseconds, modulo 2⁶⁴.
    pub(crate) fn byte_ms(&self) -> u64 {
        (self.read(|| self.now_us()) * u128::from(PAGE) / 1_000) as u64
    }
}

/// The memory of one sandbox, until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    of: Arc<MemoryTime>,
    pages: u64,
}

impl Held {
    pub(crate) fn new(of: &Arc<MemoryTime>) -> Self {
        Self { of: Arc::clone(of), pages: 0 }
    }

    fn grow(&mut self, bytes: usize) {
        let pages = bytes as u64 / PAGE;
        self.pages += pages;
        self.of.change(pages, || self.of.now_us());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.change(self.pages.wrapping_neg(), || self.of.now_us());
    }
}

/// The limiter decides; what it grants is held from then on.
impl ResourceLimiter for Host {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let granted = self.limiter.memory_growing(current, desired, maximum)?;
        if granted {
            self.held.grow(desired.saturating_sub(current));
        }
        Ok(granted)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limiter.memory_grow_failed(error)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.limiter.table_growing(current, desired, maximum)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limiter.table_grow_failed(error)
    }

    fn instances(&self) -> usize {
        self.limiter.instances()
    }

    fn tables(&self) -> usize {
        self.limiter.tables()
    }

    fn memories(&self) -> usize {
        self.limiter.memories()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_over_time_is_the_sum_of_what_was_held() {
        let memory = MemoryTime::new();
        let clock = AtomicU64::new(10);
        let at = |now: u64| clock.store(now, Ordering::SeqCst);
        let now = || clock.load(Ordering::SeqCst);
        memory.change(3, now);
        at(110);
        assert_eq!(memory.read(now), 300, "what is still held counts");
        memory.change(5, now);
        at(210);
        memory.change(3_u64.wrapping_neg(), now);
        at(1_210);
        memory.change(5_u64.wrapping_neg(), now);
        at(99_999);
        assert_eq!(memory.read(now), 300 + 800 + 5_000);
        // Far beyond what 64 bits hold, so long as somebody reads now and then.
        memory.change(1 << 24, now);
        for n in 1..=5_u64 {
            at(99_999 + n * (1 << 39));
            memory.read(now);
        }
        assert_eq!(memory.read(now), 6_100 + 5 * (1_u128 << 63));
    }

    #[test]
    fn a_reader_between_changes_never_goes_back_and_misses_nothing() {
        let memory = Arc::new(MemoryTime::new());
        let begun = Instant::now();
        let held: Vec<_> = (0..4_u64)
            .map(|n| {
                let memory = Arc::clone(&memory);
                std::thread::spawn(move || {
                    let mut page_us = 0.0;
                    for round in 0..20_000_u64 {
                        let mut one = Held::new(&memory);
                        let from = Instant::now();
                        one.grow(((1 + (round + n) % 7) * PAGE) as usize);
                        let pages = one.pages as f64;
                        drop(one);
                        page_us += pages * from.elapsed().as_secs_f64() * 1e6;
                    }
                    page_us
                })
            })
            .collect();
        let mut last = 0;
        while held.iter().any(|t| !t.is_finished()) {
            let now = memory.byte_ms();
            assert!(now >= last, "{now} after {last}");
            // Four threads with at most seven pages each.
            assert!(now as f64 <= begun.elapsed().as_secs_f64() * 1e3 * (28 * PAGE) as f64);
            last = now;
        }
        let most: f64 = held.into_iter().map(|t| t.join().expect("no panic")).sum();
        let total = memory.read(|| memory.now_us());
        assert!(total > 0 && total as f64 <= most + 80_000.0 * 7.0, "{total} of at most {most}");
        assert_eq!(memory.pages.load(Ordering::SeqCst), 0);
        assert_eq!(memory.read(|| memory.now_us()), total, "what is not held costs nothing");
    }

    #[test]
    fn heads_are_measured_as_they_are_written() {
        let request = Request::get("http://shop.localhost/a?b=c").header("host", "shop.localhost");
        let request = request.header("x-marcato-instance", "shop-r1-0").body(()).expect("valid");
        assert_eq!(request_head(&request), "GET /a?b=c HTTP/1.1\r\nhost: shop.localhost\r\n\r\n".len() as u64);
        let response = Response::builder().status(404).header("x-a", "b").body(()).expect("valid");
        assert_eq!(response_head(&response), "HTTP/1.1 404 Not Found\r\nx-a: b\r\n\r\n".len() as u64);
    }
}
