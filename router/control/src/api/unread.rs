//! What a refused request still sends.
//!
//! An HTTP/1.1 client that writes a long body when the connection closes sees a reset, and not why it was refused. So
//! a body that no handler read is read and thrown away, within bounds, before the answer goes out. HTTP/2 needs none of
//! this (a stream ends by itself), nor a client that waits for `100 Continue`.

use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Response, Version, header};
use axum::middleware::Next;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;

/// How much is read: the longest component, and a little.
const THROWN_BYTES: usize = 65 << 20;
/// And for how long.
const THROWN_WITHIN: Duration = Duration::from_secs(10);

/// A body that comes back when its user drops it unread.
struct Lent {
    body: Body,
    back: Mutex<Option<oneshot::Sender<Body>>>,
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let back = self.back.get_mut().ok().and_then(Option::take);
        if let Some(back) = back
            && !self.body.is_end_stream()
        {
            // Nobody may wait for it: the answer was no refusal.
            let _ = back.send(std::mem::take(&mut self.body));
        }
    }
}

/// The layer; see the module.
pub(crate) async fn discard(request: Request, next: Next) -> Response<Body> {
    let one = request.version() <= Version::HTTP_11 && !request.headers().contains_key(header::EXPECT);
    if !one || request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (back, returned) = oneshot::channel();
    let request = request.map(|body| Body::new(Lent { body, back: Mutex::new(Some(back)) }));
    let mut returned = returned;
    let response = next.run(request).await;
    if (response.status().is_client_error() || response.status().is_server_error())
        && let Ok(body) = returned.try_recv()
    {
        // Out of time is as good as done: the answer goes out in any case.
        let _ = tokio::time::timeout(THROWN_WITHIN, throw_away(body)).await;
    }
    response
}

async fn throw_away(mut body: Body) {
    let mut thrown = 0;
    while let Some(Ok(frame)) = body.frame().await {
        thrown += frame.data_ref().map_or(0, Bytes::len);
        if thrown > THROWN_BYTES {
            return;
        }
    }
}
