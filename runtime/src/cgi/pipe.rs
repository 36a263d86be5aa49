//! Standard input and output of a command: the request's body on its way in, the response on its way out, both with
//! back-pressure.
//!
//! Reader and writer live in one task (`invoke`): a guest that is ahead of its client waits for room here.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};
use wasmtime_wasi_http::{Error, WasiBody};

use super::head::{self, Head, Section};
use crate::invoke::AnswerSender;

/// What a command may write ahead of its client.
pub(super) const ROOM: usize = 64 << 10;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Buffers and flags: usable whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The request's body.
#[derive(Clone)]
pub(crate) struct Stdin(Arc<Mutex<Source>>);

struct Source {
    body: WasiBody,
    ready: Bytes,
    end: Option<Result<(), String>>,
}

impl Source {
    /// Ready when there are bytes, or the end.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.ready.is_empty() && self.end.is_none() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => self.end = Some(Ok(())),
                Poll::Ready(Some(Err(e))) => self.end = Some(Err(e.to_string())),
                // Trailers have no place in CGI.
                Poll::Ready(Some(Ok(frame))) => self.ready = frame.into_data().unwrap_or_default(),
            }
        }
        Poll::Ready(())
    }
}

impl Stdin {
    pub(super) fn new(body: WasiBody) -> Self {
        Self(Arc::new(Mutex::new(Source { body, ready: Bytes::new(), end: None })))
    }
}

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Stdin {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

impl InputStream for Stdin {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let mut source = lock(&self.0);
        if source.fill(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Ok(Bytes::new());
        }
        if !source.ready.is_empty() {
            let size = size.min(source.ready.len());
            return Ok(source.ready.split_to(size));
        }
        match &source.end {
            Some(Err(why)) => Err(StreamError::LastOperationFailed(wasmtime::Error::msg(why.clone()))),
            _ => Err(StreamError::Closed),
        }
    }
}

impl Pollable for Stdin {
    // By hand what `async_trait` would write.
    fn ready<'a, 'b>(&'a mut self) -> Pin<Box<dyn Future<Output = ()> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(std::future::poll_fn(|cx| lock(&self.0).fill(cx)))
    }
}

impl AsyncRead for Stdin {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut source = lock(&self.0);
        std::task::ready!(source.fill(cx));
        let size = into.remaining().min(source.ready.len());
        into.put_slice(&source.ready.split_to(size));
        match &source.end {
            Some(Err(why)) if size == 0 => Poll::Ready(Err(io::Error::other(why.clone()))),
            _ => Poll::Ready(Ok(())),
        }
    }
}

/// The head of an answer, and whom to tell.
type Said = (AnswerSender, StatusCode, HeaderMap);

/// Where the answer is sent to, or what came instead.
enum Phase {
    Head(Section, AnswerSender),
    Body,
    /// A local redirect; what the command still writes is nobody's.
    Local(http::Uri, AnswerSender),
    /// The header was none; the client has been told so.
    Failed(String),
}

struct Sink {
    phase: Phase,
    buffer: BytesMut,
    /// The command has ended.
    ended: bool,
    /// Nobody reads on.
    deaf: bool,
    reader: Option<Waker>,
    writers: Vec<Waker>,
}

impl Sink {
    fn room(&self) -> usize {
        match self.phase {
            Phase::Head(..) => head::BYTES,
            Phase::Body if !self.deaf => ROOM.saturating_sub(self.buffer.len()),
            _ => ROOM,
        }
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.writers.iter().any(|w| w.will_wake(cx.waker())) {
            self.writers.push(cx.waker().clone());
        }
    }

    fn wake_writers(&mut self) {
        self.writers.drain(..).for_each(Waker::wake);
    }

    /// Takes what the command wrote. Errors: it is of no use to write on.
    fn take(&mut self, bytes: &[u8]) -> Result<Option<Said>, ()> {
        let found = match &mut self.phase {
            Phase::Head(section, _) => section.feed(bytes),
            Phase::Body => {
                self.push(bytes);
                return Ok(None);
            }
            Phase::Local(..) => return Ok(None),
            Phase::Failed(_) => return Err(()),
        };
        match (found, std::mem::replace(&mut self.phase, Phase::Body)) {
            (Ok(Some((Head::Answer(status, headers), rest))), Phase::Head(_, answer)) => {
                self.push(rest);
                Ok(Some((answer, status, headers)))
            }
            (Ok(Some((Head::Local(uri), _))), Phase::Head(_, answer)) => {
                self.phase = Phase::Local(uri, answer);
                Ok(None)
            }
            (Err(why), Phase::Head(_, answer)) => {
                // Whoever waits is told at once; the command may run for long.
                let _ = answer.send(Err(why.clone()));
                self.phase = Phase::Failed(why);
                Err(())
            }
            (_, phase) => {
                self.phase = phase;
                Ok(None)
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        if !self.deaf && !bytes.is_empty() {
            self.buffer.extend_from_slice(bytes);
            self.wake_reader();
        }
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// How a command's output ended.
pub(crate) enum Ending {
    /// It answered.
    Answered,
    /// The answer is that of this path.
    Redirected(http::Uri, AnswerSender),
    /// It gave no answer.
    Failed(String),
}

/// The response: header first, then the body.
#[derive(Clone)]
pub(crate) struct Stdout(Arc<Mutex<Sink>>);

impl Stdout {
    pub(super) fn new(answer: AnswerSender) -> Self {
        Self(Arc::new(Mutex::new(Sink {
            phase: Phase::Head(Section::default(), answer),
            buffer: BytesMut::new(),
            ended: false,
            deaf: false,
            reader: None,
            writers: Vec::new(),
        })))
    }

    fn put(&self, bytes: &[u8]) -> Result<(), ()> {
        // Not within the lock: what cannot be sent is dropped, and its reader locks.
        let said = lock(&self.0).take(bytes)?;
        if let Some((answer, status, headers)) = said {
            let mut response = http::Response::new(Reader(self.clone()).boxed_unsync());
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            // The client may be gone.
            let _ = answer.send(Ok(response));
        }
        Ok(())
    }

    /// The command has ended, and well.
    pub(super) fn end(&self) -> Ending {
        let mut sink = lock(&self.0);
        sink.ended = true;
        sink.wake_reader();
        match std::mem::replace(&mut sink.phase, Phase::Body) {
            Phase::Body => Ending::Answered,
            Phase::Local(uri, answer) => Ending::Redirected(uri, answer),
            Phase::Head(section, _) => Ending::Failed(section.missing()),
            Phase::Failed(why) => Ending::Failed(why),
        }
    }
}

impl IsTerminal for Stdout {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stdout {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Stdout {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.put(&bytes).map_err(|()| StreamError::Closed)
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(lock(&self.0).room())
    }
}

impl Pollable for Stdout {
    // By hand what `async_trait` would write.
    fn ready<'a, 'b>(&'a mut self) -> Pin<Box<dyn Future<Output = ()> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(std::future::poll_fn(|cx| {
            let mut sink = lock(&self.0);
            if sink.room() > 0 {
                return Poll::Ready(());
            }
            sink.wait(cx);
            Poll::Pending
        }))
    }
}

impl AsyncWrite for Stdout {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let size = {
            let mut sink = lock(&self.0);
            let size = sink.room().min(bytes.len());
            if size == 0 && !bytes.is_empty() {
                sink.wait(cx);
                return Poll::Pending;
            }
            size
        };
        Poll::Ready(self.put(&bytes[..size]).map(|()| size).map_err(|()| io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The response's body, as its client reads it.
struct Reader(Stdout);

impl Body for Reader {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut sink = lock(&self.0.0);
        if !sink.buffer.is_empty() {
            let data = sink.buffer.split().freeze();
            sink.wake_writers();
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if sink.ended {
            return Poll::Ready(None);
        }
        sink.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        let sink = lock(&self.0.0);
        sink.ended && sink.buffer.is_empty()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut sink = lock(&self.0.0);
        sink.deaf = true;
        sink.buffer.clear();
        sink.wake_writers();
    }
}
