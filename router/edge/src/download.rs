//! The response on its way back: streamed with back-pressure, under an idle and a total timeout.
//!
//! Trailers that the host packed into one are what they were again. When the last byte has passed, the connection to the host goes back to its pool at once; when the
//! body is dropped before, the connection is closed, for nobody will read the rest.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use marcato_api::trailers;
use marcato_balance::InFlight;

use crate::observe::Exchange;
use crate::upload::{Patience, Upload};
use crate::upstream::Lease;

/// Why a response ended before its end. The client sees its connection or stream cut.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    #[error("the instance's connection broke")]
    Upstream(#[source] hyper::Error),
    #[error("the instance sent nothing for too long, or the request's time is up")]
    Timeout,
}

/// A response's body from a host.
pub(crate) struct Stream {
    body: Incoming,
    lease: Option<Lease>,
    /// The request's body: the connection is free only when that is through, too.
    upload: Option<Arc<Upload>>,
    in_flight: Option<InFlight>,
    patience: Patience,
}

impl Stream {
    pub(crate) fn new(
        body: Incoming,
        lease: Lease,
        upload: Option<Arc<Upload>>,
        in_flight: InFlight,
        patience: Patience,
    ) -> Self {
        let mut stream = Self { body, lease: Some(lease), upload, in_flight: Some(in_flight), patience };
        // Nobody polls an empty body.
        if stream.body.is_end_stream() {
            stream.finish();
        }
        stream
    }

    fn finish(&mut self) {
        if let Some(lease) = self.lease.take()
            && self.upload.as_ref().is_none_or(|u| u.is_done())
        {
            lease.release();
        }
        self.in_flight = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.progress();
                match frame.into_trailers() {
                    Ok(packed) => {
                        // They are the last.
                        self.finish();
                        Poll::Ready(trailers::unpack(&packed).map(|t| Ok(Frame::trailers(t))))
                    }
                    Err(frame) => {
                        if self.body.is_end_stream() {
                            self.finish();
                        }
                        Poll::Ready(Some(Ok(frame)))
                    }
                }
            }
            Poll::Ready(Some(Err(e))) => {
                self.lease = None;
                self.in_flight = None;
                Poll::Ready(Some(Err(DownloadError::Upstream(e))))
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Pending => self.patience.poll_over(cx).map(|()| {
                self.lease = None;
                self.in_flight = None;
                Some(Err(DownloadError::Timeout))
            }),
        }
    }
}

/// A response's body as the client gets it.
pub(crate) struct Download {
    source: Source,
    exchange: Exchange,
}

enum Source {
    /// One that the edge made.
    Page(Option<Bytes>),
    Host(Stream),
}

impl Download {
    pub(crate) fn page(body: Bytes, exchange: Exchange) -> Self {
        Self { source: Source::Page((!body.is_empty()).then_some(body)), exchange }
    }

    pub(crate) fn stream(stream: Stream, mut exchange: Exchange) -> Self {
        exchange.complete = stream.body.is_end_stream();
        Self { source: Source::Host(stream), exchange }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        let Self { source, exchange } = self.get_mut();
        let result = match source {
            Source::Page(body) => Poll::Ready(body.take().map(|b| Ok(Frame::data(b)))),
            Source::Host(stream) => stream.poll(cx),
        };
        match &result {
            Poll::Ready(Some(Ok(frame))) => {
                exchange.bytes += frame.data_ref().map_or(0, |d| d.len() as u64);
                exchange.complete = match source {
                    Source::Page(_) => true,
                    // Nobody asks for more than trailers.
                    Source::Host(stream) => frame.is_trailers() || stream.body.is_end_stream(),
                };
            }
            Poll::Ready(None) => exchange.complete = true,
            Poll::Ready(Some(Err(error))) => exchange.broke(error),
            Poll::Pending => {}
        }
        result
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Page(body) => body.is_none(),
            Source::Host(stream) => stream.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Page(body) => SizeHint::with_exact(body.as_ref().map_or(0, |b| b.len() as u64)),
            Source::Host(stream) => stream.body.size_hint(),
        }
    }
}
