//! Log lines of guests: cuts streams into lines, caps their length and their rate, and counts what is
//! dropped. Owns no storage; lines go to the instance's [`LogSink`].

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use marcato_api::{Bytes as ByteCount, LogStream};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::limits::{Limit, LimitCounters};
use crate::services::LogSink;

/// Longest line; the rest of a longer one goes on as a line of its own.
pub(crate) const LINE_LIMIT: usize = 16 << 10;

/// What an app's guests may log per second when its operator set nothing. Twice as much at once.
pub(crate) const RATE_PER_SECOND: u64 = 1 << 20;

/// What the platform may add per second, so that a limit that fires at every request floods nothing.
const PLATFORM_PER_SECOND: u64 = 64 << 10;

/// How often at most the log says that lines were dropped.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// What a line costs beside its text.
const LINE_COST: u64 = 64;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data is a buffer or a counter: usable whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Bucket {
    tokens: u64,
    per_second: u64,
    burst: u64,
    filled_at: Instant,
}

impl Bucket {
    fn new(per_second: u64, burst: u64, now: Instant) -> Self {
        Self { tokens: burst, per_second, burst, filled_at: now }
    }

    fn take(&mut self, cost: u64, now: Instant) -> bool {
        let micros = u64::try_from(now.saturating_duration_since(self.filled_at).as_micros()).unwrap_or(u64::MAX);
        let gained = micros.saturating_mul(self.per_second) / 1_000_000;
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(self.burst);
            self.filled_at = now;
        }
        match self.tokens.checked_sub(cost) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

/// What the guests of an app may log, over all its instances on this host.
pub(crate) struct AppRate(Mutex<Bucket>);

impl Default for AppRate {
    fn default() -> Self {
        Self(Mutex::new(Bucket::new(RATE_PER_SECOND, 2 * RATE_PER_SECOND, Instant::now())))
    }
}

impl AppRate {
    /// Another rate from now on.
    pub(crate) fn set(&self, per_second: u64) {
        let mut bucket = lock(&self.0);
        (bucket.per_second, bucket.burst) = (per_second, per_second.saturating_mul(2));
        bucket.tokens = bucket.tokens.min(bucket.burst);
    }

    pub(crate) fn per_second(&self) -> u64 {
        lock(&self.0).per_second
    }
}

struct Rate {
    platform: Bucket,
    dropped_lines: u64,
    dropped_bytes: u64,
    reported_at: Option<Instant>,
}

impl Rate {
    /// What was dropped, when it is time to tell.
    fn due(&mut self, now: Instant) -> Option<(u64, u64)> {
        let early = self.reported_at.is_some_and(|at| now.saturating_duration_since(at) < REPORT_EVERY);
        if self.dropped_lines == 0 || early {
            return None;
        }
        self.reported_at = Some(now);
        Some((std::mem::take(&mut self.dropped_lines), std::mem::take(&mut self.dropped_bytes)))
    }
}

/// The log of one instance.
pub(crate) struct InstanceLog {
    sink: Arc<dyn LogSink>,
    rate: Mutex<Rate>,
    app: Arc<AppRate>,
    counters: Arc<LimitCounters>,
}

impl InstanceLog {
    pub(crate) fn new(sink: Arc<dyn LogSink>, app: Arc<AppRate>, counters: Arc<LimitCounters>) -> Self {
        let now = Instant::now();
        let rate = Rate {
            platform: Bucket::new(PLATFORM_PER_SECOND, PLATFORM_PER_SECOND, now),
            dropped_lines: 0,
            dropped_bytes: 0,
            reported_at: None,
        };
        Self { sink, rate: Mutex::new(rate), app, counters }
    }

    /// A line of the platform, cut to the limit: it may quote a guest.
    pub(crate) fn platform(&self, request_id: &str, text: &str) {
        let text = &text[..text.floor_char_boundary(LINE_LIMIT)];
        if lock(&self.rate).platform.take(text.len() as u64 + LINE_COST, Instant::now()) {
            self.sink.line(request_id, LogStream::Platform, text);
        }
    }

    /// A line of a guest, or nothing when the guests' rate is used up.
    pub(crate) fn guest(&self, request_id: &str, stream: LogStream, text: &str) {
        let now = Instant::now();
        let granted = lock(&self.app.0).take(text.len() as u64 + LINE_COST, now);
        let due = {
            let mut rate = lock(&self.rate);
            if !granted {
                if rate.dropped_lines == 0 {
                    self.counters.count(Limit::LogRate);
                }
                rate.dropped_lines += 1;
                rate.dropped_bytes += text.len() as u64;
                return;
            }
            rate.due(now)
        };
        self.report(due);
        self.sink.line(request_id, stream, text);
    }

    /// Tells what was dropped, when a request ends.
    pub(crate) fn report_dropped(&self) {
        let due = lock(&self.rate).due(Instant::now());
        self.report(due);
    }

    fn report(&self, due: Option<(u64, u64)>) {
        if let Some((lines, bytes)) = due {
            let text = format!(
                "limit log_rate ({}/s) reached: {lines} lines ({bytes} bytes) were dropped",
                ByteCount(self.app.per_second())
            );
            self.sink.line("", LogStream::Platform, &text);
        }
    }
}

impl Drop for InstanceLog {
    fn drop(&mut self) {
        lock(&self.rate).reported_at = None;
        self.report_dropped();
    }
}

/// The log of one sandbox: the request that it serves, and lines that are not complete.
pub(crate) struct SandboxLog {
    pub(crate) instance: Arc<InstanceLog>,
    request_id: Mutex<Arc<str>>,
    stdout: Mutex<Vec<u8>>,
    stderr: Mutex<Vec<u8>>,
}

impl SandboxLog {
    pub(crate) fn new(instance: Arc<InstanceLog>) -> Self {
        Self {
            instance,
            request_id: Mutex::new("".into()),
            stdout: Mutex::new(Vec::new()),
            stderr: Mutex::new(Vec::new()),
        }
    }

    /// Lines from here on belong to this request.
    pub(crate) fn begin(&self, request_id: Arc<str>) {
        self.flush();
        *lock(&self.request_id) = request_id;
    }

    pub(crate) fn platform(&self, text: &str) {
        let id = Arc::clone(&lock(&self.request_id));
        self.instance.platform(&id, text);
    }

    /// A line of `wasi:logging`, cut to the limit.
    pub(crate) fn message(&self, text: &str) {
        let mut buffer = Vec::new();
        self.feed(LogStream::Log, &mut buffer, text.as_bytes());
        self.end(LogStream::Log, &mut buffer);
    }

    /// Sends out lines without an end, and what was dropped.
    pub(crate) fn flush(&self) {
        for (stream, buffer) in [(LogStream::Stdout, &self.stdout), (LogStream::Stderr, &self.stderr)] {
            self.end(stream, &mut lock(buffer));
        }
        self.instance.report_dropped();
    }

    fn write(&self, stream: LogStream, bytes: &[u8]) {
        let buffer = if stream == LogStream::Stdout { &self.stdout } else { &self.stderr };
        self.feed(stream, &mut lock(buffer), bytes);
    }

    fn feed(&self, stream: LogStream, buffer: &mut Vec<u8>, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = LINE_LIMIT - buffer.len();
            match bytes.iter().take(room).position(|b| *b == b'\n') {
                Some(end) => {
                    buffer.extend_from_slice(&bytes[..end]);
                    self.line(stream, buffer);
                    bytes = &bytes[end + 1..];
                }
                None => {
                    let n = bytes.len().min(room);
                    buffer.extend_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    if buffer.len() == LINE_LIMIT {
                        self.instance.counters.count(Limit::LogLine);
                        self.line(stream, buffer);
                    }
                }
            }
        }
    }

    fn end(&self, stream: LogStream, buffer: &mut Vec<u8>) {
        if !buffer.is_empty() {
            self.line(stream, buffer);
        }
    }

    fn line(&self, stream: LogStream, buffer: &mut Vec<u8>) {
        let id = Arc::clone(&lock(&self.request_id));
        let text = String::from_utf8_lossy(buffer);
        // Replacement makes the text longer than the bytes: cut again, at a character.
        let mut end = text.len().min(LINE_LIMIT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.instance.guest(&id, stream, text[..end].trim_end_matches('\r'));
        buffer.clear();
    }
}

impl Drop for SandboxLog {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A guest's stdout or stderr.
#[derive(Clone)]
pub(crate) struct GuestStream {
    pub(crate) log: Arc<SandboxLog>,
    pub(crate) stream: LogStream,
}

impl IsTerminal for GuestStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for GuestStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.log.write(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

impl Pollable for GuestStream {
    // Always ready. By hand what `async_trait` would write.
    fn ready<'a, 'b>(&'a mut self) -> Pin<Box<dyn Future<Output = ()> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(std::future::ready(()))
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.log.write(self.stream, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
