//! Request and response bodies: an upload that reports its progress, and reading an answer within a bound.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

/// Bytes handed to the transport at once; small enough that a progress bar moves.
const CHUNK_BYTES: usize = 64 << 10;

/// Is told how many bytes of an upload have been handed to the transport.
pub(crate) type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// A body of known length, sent in chunks.
pub(crate) struct Upload {
    rest: Bytes,
    sent: u64,
    progress: Option<Progress>,
}

impl Upload {
    pub(crate) fn new(bytes: impl Into<Bytes>, progress: Option<Progress>) -> Self {
        Self { rest: bytes.into(), sent: 0, progress }
    }

    pub(crate) fn empty() -> Self {
        Self::new(Bytes::new(), None)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if !this.rest.has_remaining() {
            return Poll::Ready(None);
        }
        let chunk = this.rest.split_to(this.rest.len().min(CHUNK_BYTES));
        this.sent += chunk.len() as u64;
        if let Some(progress) = &this.progress {
            progress(this.sent);
        }
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// Reads a body to its end. Errors: it is longer than `limit` bytes, or the connection broke.
pub(crate) async fn read(body: Incoming, limit: usize) -> Result<Bytes, String> {
    match Limited::new(body, limit).collect().await {
        Ok(all) => Ok(all.to_bytes()),
        Err(e) => Err(e.to_string()),
    }
}
