//! Trailers of requests and responses at ingress: one field on the wire, as they were in the sandbox.
//!
//! Owns where they are packed and unpacked, not how: [`marcato_api::trailers`].

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use marcato_api::trailers;

/// A body whose trailers are replaced; no trailers come where there are none to put in their place.
pub(super) struct Replaced<B> {
    body: B,
    by: fn(&HeaderMap) -> Option<HeaderMap>,
}

impl<B> Replaced<B> {
    /// A request's body as a sandbox gets it.
    pub(super) const fn unpacked(body: B) -> Self {
        Self { body, by: trailers::unpack }
    }

    /// A response's body as it goes to the edge.
    pub(super) const fn packed(body: B) -> Self {
        Self { body, by: trailers::pack }
    }
}

impl<B: Body + Unpin> Body for Replaced<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            let trailers = match frame.into_trailers() {
                Ok(trailers) => (self.by)(&trailers),
                Err(data) => return Poll::Ready(Some(Ok(data))),
            };
            if let Some(trailers) = trailers {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
