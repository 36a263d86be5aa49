//! The request's body on its way to a host: streamed with back-pressure, counted, under an idle
//! timeout, and kept while it is small so that another attempt can send it again.
//!
//! Of a body that is longer than the app allows, the host gets as much as it needs to refuse it. Trailers go on as
//! [`marcato_api::trailers`] says.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use marcato_api::trailers;
use tokio::time::{Instant, Sleep};

/// Why a body could not be sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the client stopped sending the request's body")]
    Idle,
    #[error("the client's connection broke, or its body is not well formed")]
    Client,
    #[error("the client's trailers are too long")]
    Trailers,
    #[error("another attempt has taken over")]
    Superseded,
}

/// Waits for progress and gives up after a while without, or at a deadline.
#[derive(Debug)]
pub(crate) struct Patience {
    idle: Duration,
    deadline: Instant,
    /// Made at the first wait: most bodies never wait.
    sleep: Option<Pin<Box<Sleep>>>,
    progress: bool,
}

impl Patience {
    pub(crate) fn new(idle: Duration, deadline: Instant) -> Self {
        Self { idle, deadline, sleep: None, progress: false }
    }

    pub(crate) fn progress(&mut self) {
        self.progress = true;
    }

    /// Ready when it is over. Between `idle` and twice `idle` passes without progress: the timer is
    /// only moved when it fires, not with each frame.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (idle, deadline) = (self.idle, self.deadline);
        let next = move || (Instant::now() + idle).min(deadline);
        let sleep = self.sleep.get_or_insert_with(|| {
            self.progress = false;
            Box::pin(tokio::time::sleep_until(next()))
        });
        loop {
            ready!(sleep.as_mut().poll(cx));
            if !self.progress || Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.progress = false;
            sleep.as_mut().reset(next());
        }
    }
}

/// A request's body over all its attempts.
pub(crate) struct Upload {
    state: Mutex<State>,
    hint: SizeHint,
    replay_limit: usize,
}

struct State {
    incoming: Incoming,
    patience: Patience,
    /// Bytes that the app still allows.
    room: u64,
    /// It is too long, and the host can see that from what it was sent: the head's length, or the bytes.
    /// It refuses, for its app's log and numbers name the limit; the rest is not asked for.
    held: bool,
    /// What was sent, as long as it can be sent again.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    can_replay: bool,
    ended: bool,
    failure: Option<UploadError>,
    attempt: u32,
    waker: Option<Waker>,
}

impl Upload {
    pub(crate) fn new(incoming: Incoming, patience: Patience, room: u64, replay_limit: usize) -> Arc<Self> {
        let hint = incoming.size_hint();
        let state = State {
            incoming,
            patience,
            room,
            held: hint.lower() > room,
            kept: Vec::new(),
            kept_bytes: 0,
            can_replay: true,
            ended: false,
            failure: None,
            attempt: 0,
            waker: None,
        };
        Arc::new(Self { state: Mutex::new(state), hint, replay_limit })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body for one more attempt; the one before ends with an error, and its connection with it.
    pub(crate) fn attempt(self: &Arc<Self>) -> RequestBody {
        let mut state = self.state();
        state.attempt += 1;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        RequestBody::Stream { upload: Arc::clone(self), attempt: state.attempt, next: 0 }
    }

    /// Whether all of it went to the host.
    pub(crate) fn is_done(&self) -> bool {
        self.state().ended
    }

    /// Whether another attempt could send it in full.
    pub(crate) fn can_replay(&self) -> bool {
        let state = self.state();
        state.can_replay && state.failure.is_none()
    }

    /// Whether its length is known before.
    pub(crate) fn has_length(&self) -> bool {
        self.hint.exact().is_some()
    }

    /// What went wrong on the client's side.
    pub(crate) fn failure(&self) -> Option<UploadError> {
        self.state().failure
    }
}

impl State {
    fn poll_client(
        &mut self,
        cx: &mut Context<'_>,
        replay_limit: usize,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        if let Some(failure) = self.failure {
            return Poll::Ready(Some(Err(failure)));
        }
        if self.held {
            // The answer, or the deadline, ends this.
            return Poll::Pending;
        }
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Pending => {
                ready!(self.patience.poll_over(cx));
                return self.fail(UploadError::Idle);
            }
            Poll::Ready(None) => {
                self.ended = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(_))) => return self.fail(UploadError::Client),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        self.patience.progress();
        let frame = match frame.into_trailers() {
            Ok(trailers) => return self.end_with(&trailers),
            Err(frame) => frame,
        };
        match frame.data_ref() {
            Some(data) => {
                let size = data.len();
                match self.room.checked_sub(size as u64) {
                    Some(room) => self.room = room,
                    None => self.held = true,
                }
                self.kept_bytes = self.kept_bytes.saturating_add(size);
                if self.can_replay && self.kept_bytes <= replay_limit {
                    self.kept.push(data.clone());
                } else if self.can_replay {
                    self.can_replay = false;
                    self.kept = Vec::new();
                }
            }
            None => self.can_replay = false,
        }
        // One that is held never ends, not even with the frame that is too much: the host refuses it.
        self.ended = self.incoming.is_end_stream() && !self.held;
        Poll::Ready(Some(Ok(frame)))
    }

    /// The frame behind the data, and the last. What may be no trailer ends here.
    fn end_with(&mut self, sent: &HeaderMap) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        if trailers::size(sent) > trailers::MAX_BYTES {
            return self.fail(UploadError::Trailers);
        }
        self.ended = true;
        Poll::Ready(trailers::pack(sent).map(|packed| {
            // Rare enough not to be kept.
            self.can_replay = false;
            Ok(Frame::trailers(packed))
        }))
    }

    fn fail(&mut self, why: UploadError) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        self.failure = Some(why);
        Poll::Ready(Some(Err(why)))
    }
}

/// One attempt's view of a request's body.
pub(crate) enum RequestBody {
    Empty,
    Stream { upload: Arc<Upload>, attempt: u32, next: usize },
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Self::Stream { upload, attempt, next } = self.get_mut() else { return Poll::Ready(None) };
        let mut state = upload.state();
        if state.attempt != *attempt {
            return Poll::Ready(Some(Err(UploadError::Superseded)));
        }
        if let Some(kept) = state.kept.get(*next) {
            let kept = kept.clone();
            *next += 1;
            return Poll::Ready(Some(Ok(Frame::data(kept))));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        let result = state.poll_client(cx, upload.replay_limit);
        match &result {
            Poll::Pending => state.waker = Some(cx.waker().clone()),
            // What was just kept has just been sent.
            Poll::Ready(_) => *next = state.kept.len(),
        }
        result
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream { upload, attempt, next } => {
                let state = upload.state();
                state.attempt == *attempt && state.ended && *next >= state.kept.len()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            // hyper asks once, before the first frame.
            Self::Stream { upload, .. } => upload.hint,
        }
    }
}
