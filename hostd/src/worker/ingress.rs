//! Requests from the edge to instances. Reads one swap cell; no lock, no disk, no wait but for the guest.
//!
//! Request flow: edge::upstream -> here -> runtime::invoke. What the platform answers itself carries
//! `x-marcato-error`, and `x-marcato-not-started` when no guest code ran; a guest cannot forge either. Why it failed goes
//! out only when the edge says that the app's owner asks.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, TE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use marcato_api::{OwnerProblem, Problem, ProblemKind, headers, trailers};
use marcato_runtime::{FiredLimit, InvokeError};

use super::instances::{InstanceMap, Numbers};
use super::trailers::Replaced;
use crate::serve::{Handler, ReplyBody, reply_body};
use crate::tls::Caller;

const INSTANCE: HeaderName = HeaderName::from_static(headers::INSTANCE);
const EXPLAIN: HeaderName = HeaderName::from_static(headers::EXPLAIN);
const PLATFORM_ERROR: HeaderName = HeaderName::from_static(headers::PLATFORM_ERROR);
const NOT_STARTED: HeaderName = HeaderName::from_static(headers::NOT_STARTED);

/// Longest line of a reason that goes out: a trap's names can be long, and the edge reads no more than it must.
const REASON_LINE: usize = 1 << 10;

/// Answers requests with instances.
#[derive(Clone)]
pub(super) struct Ingress {
    instances: Arc<InstanceMap>,
    numbers: Arc<Numbers>,
}

impl Ingress {
    /// Serves the instances of this cell.
    pub(super) fn new(instances: Arc<InstanceMap>, numbers: Arc<Numbers>) -> Self {
        Self { instances, numbers }
    }

    async fn invoke(
        &self,
        caller: &Caller,
        mut request: Request<Incoming>,
    ) -> Result<Response<ReplyBody>, InvokeError> {
        if *caller != Caller::Router {
            return Err(not_started(ProblemKind::Forbidden, "only the router may send requests"));
        }
        let Some(id) = request.headers_mut().remove(INSTANCE) else {
            return Err(not_started(ProblemKind::BadRequest, "x-marcato-instance is missing"));
        };
        let instance = id.to_str().ok().and_then(|id| self.instances.load().get(id).cloned());
        let Some(instance) = instance else {
            return Err(not_started(ProblemKind::InstanceGone, "this host does not have the instance"));
        };
        // The edge's, not the client's.
        request.headers_mut().remove(TE);
        trailers::clean_announcement(request.headers_mut());
        let request = request.map(|body| Replaced::unpacked(body).map_err(Into::into).boxed_unsync());
        let mut response = instance.handle(request).await?;
        remove_internal(response.headers_mut());
        if response.body().size_hint().exact().is_none() && !response.headers().contains_key(CONTENT_LENGTH) {
            trailers::announce(response.headers_mut());
        }
        Ok(response.map(|body| Replaced::packed(body).map_err(Into::into).boxed_unsync()))
    }
}

fn not_started(kind: ProblemKind, detail: &str) -> InvokeError {
    InvokeError::not_started(kind, detail)
}

/// A guest's word about the platform counts for nothing.
fn remove_internal(map: &mut HeaderMap) {
    let internal = |name: &&HeaderName| name.as_str().starts_with(headers::INTERNAL_PREFIX);
    while let Some(name) = map.keys().find(internal).cloned() {
        map.remove(name);
    }
}

/// What the owner gets to know; the app's log has the same.
fn explanation(error: &InvokeError) -> OwnerProblem {
    let (limit, limit_value, used) = match error.limit {
        Some(FiredLimit { name, value, used }) => (Some(name.into()), value, used),
        None => (None, None, None),
    };
    let reason = error.reason_lines().map(|line| line.chars().take(REASON_LINE).collect()).collect();
    let problem = Problem::new(error.kind, error.detail.clone());
    OwnerProblem { limit, limit_value, used, reason, ..OwnerProblem::from(problem) }
}

fn platform_error(error: &InvokeError, explain: bool) -> Response<ReplyBody> {
    let InvokeError { kind, not_started, .. } = *error;
    let body = if explain {
        serde_json::to_vec(&explanation(error))
    } else {
        serde_json::to_vec(&Problem::new(kind, kind.title()))
    };
    let body = body.unwrap_or_default();
    let mut response = Response::new(reply_body(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let map = response.headers_mut();
    map.insert(CONTENT_TYPE, HeaderValue::from_static(Problem::CONTENT_TYPE));
    map.insert(PLATFORM_ERROR, HeaderValue::from_static(kind.slug()));
    if not_started {
        map.insert(NOT_STARTED, HeaderValue::from_static("1"));
    }
    response
}

impl Handler for Ingress {
    async fn handle(&self, caller: &Caller, request: Request<Incoming>) -> Response<ReplyBody> {
        // Only the router may speak in an owner's name.
        let explain = *caller == Caller::Router && request.headers().contains_key(EXPLAIN);
        let (response, by_platform) = match Box::pin(self.invoke(caller, request)).await {
            Ok(response) => (response, false),
            Err(error) => (platform_error(&error, explain), true),
        };
        self.numbers.answered(response.status(), by_platform);
        response
    }
}

#[cfg(test)]
mod tests;
