//! Outbound requests against their limits: how many, how many at once, and the bytes of their bodies.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use marcato_api::{Bytes as ByteCount, Limits};
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::{Error, WasiBody};

use super::{P3_CHUNK, READ_AHEAD};
use crate::budget::{Charge, SandboxAccount};
use crate::limits::Limit;

/// What the host holds for an outbound request: two pieces of a body, what is read ahead, and as much again for TLS.
const COST: u64 = (2 * P3_CHUNK + 2 * READ_AHEAD) as u64;

/// An outbound request in flight, from its sending until its response is read or dropped.
pub(super) struct Permit {
    account: Arc<SandboxAccount>,
    _charge: Charge,
}

impl Permit {
    /// Counts a request in. Errors: `ConnectionLimitReached`, with the limit's name in the log.
    pub(super) fn take(account: &Arc<SandboxAccount>, limits: &Limits) -> Result<Self, Error> {
        let refuse = |limit, of: &dyn std::fmt::Display| {
            account.refused_outbound(limit, of);
            Error::ConnectionLimitReached
        };
        if !account.take_outbound_request() {
            return Err(refuse(Limit::OutboundRequests, &limits.outbound_requests));
        }
        // Tells of itself.
        let charge = account.charge(COST).map_err(|_| Error::ConnectionLimitReached)?;
        if !account.outbound.take(1) {
            return Err(refuse(Limit::OutboundConcurrent, &limits.outbound_concurrent));
        }
        let app = account.app();
        if !app.outbound.take(1) {
            account.outbound.release(1);
            return Err(refuse(Limit::AppOutboundConcurrent, &app.outbound.limit()));
        }
        Ok(Self { account: Arc::clone(account), _charge: charge })
    }

    pub(super) fn account(&self) -> &Arc<SandboxAccount> {
        &self.account
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.account.outbound.release(1);
        self.account.app().outbound.release(1);
    }
}

/// Which body it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
    Request,
    Response,
}

/// Tells whether a body went over its limit.
#[derive(Debug, Clone, Default)]
pub(super) struct Over(Arc<AtomicBool>);

impl Over {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The body of an outbound request or of its response: its bytes count against the request that asks.
pub(super) struct Metered {
    body: WasiBody,
    direction: Direction,
    limit: ByteCount,
    account: Arc<SandboxAccount>,
    over: Over,
    permit: Option<Permit>,
    /// The longest time between two frames, when the guest set one.
    gap: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Metered {
    pub(super) fn new(body: WasiBody, direction: Direction, limit: ByteCount, account: &Arc<SandboxAccount>) -> Self {
        let (account, over) = (Arc::clone(account), Over::default());
        Self { body, direction, limit, account, over, permit: None, gap: None }
    }

    /// The request is in flight until this body is at its end or dropped.
    pub(super) fn with_permit(mut self, permit: Permit) -> Self {
        self.permit = (!self.body.is_end_stream()).then_some(permit);
        self
    }

    pub(super) fn with_gap(mut self, gap: Option<Duration>) -> Self {
        self.gap = gap.map(|gap| (gap, Box::pin(tokio::time::sleep(gap))));
        self
    }

    pub(super) fn over(&self) -> Over {
        self.over.clone()
    }

    fn waited(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some((_, timer)) = &mut self.gap else { return Poll::Pending };
        ready!(timer.as_mut().poll(cx));
        self.permit = None;
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }
}

impl Body for Metered {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => return self.waited(cx),
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(end) => {
                self.permit = None;
                return Poll::Ready(end);
            }
        };
        if let Some((gap, timer)) = &mut self.gap {
            timer.as_mut().reset(Instant::now() + *gap);
        }
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        if length == 0 || self.account.take_outbound_bytes(length) {
            return Poll::Ready(Some(Ok(frame)));
        }
        self.over.0.store(true, Ordering::Relaxed);
        self.permit = None;
        self.account.refused_outbound(Limit::OutboundBytes, &self.limit);
        let limit = Some(self.limit.0);
        Poll::Ready(Some(Err(match self.direction {
            Direction::Request => Error::HttpRequestBodySize(limit),
            Direction::Response => Error::HttpResponseBodySize(limit),
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
