//! Bodies on their way into and out of a sandbox.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;

/// Any error of a body's source.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request on its way to a guest.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// Why a response ended early.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the response was cut: {0}")]
pub struct BodyError(pub(crate) String);

/// A guest's response body. It drives the sandbox: dropping it before its end kills the sandbox.
pub struct ResponseBody(pub(crate) UnsyncBoxBody<Bytes, BodyError>);

impl std::fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}
