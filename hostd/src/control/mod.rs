//! HostApi over HTTP: who may call what, and from requests to the node's verbs and back.
//!
//! Intent flow: control plane -> here -> ledger. What a caller may do is decided in one place, before any
//! route is looked at, and everything that is not allowed there is refused.

mod handlers;
mod reply;

use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use marcato_api::{Problem, ProblemKind, host_paths};
use tower::ServiceExt;

use crate::node::Node;
use crate::serve::{Handler, ReplyBody, reply_body};
use crate::tls::Caller;

/// Answers HostApi.
#[derive(Clone)]
pub(crate) struct Control {
    routes: axum::Router,
}

impl Control {
    /// HostApi of this node.
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { routes: handlers::routes(node) }
    }
}

/// Whether the caller may use this method and path at all. Routers may use everything; hosts only call
/// services, and may ask for life and release.
fn allowed(caller: &Caller, method: &Method, path: &str) -> bool {
    match caller {
        Caller::Router => true,
        Caller::Host(_) if method == Method::GET => path == host_paths::HEALTH || path == host_paths::VERSION,
        Caller::Host(_) if method == Method::POST => path
            .strip_prefix("/v1/services/")
            .and_then(|rest| rest.split_once('/'))
            .is_some_and(|(_, verb)| verb == "access" || verb == "keyvalue"),
        Caller::Host(_) => false,
    }
}

impl Handler for Control {
    async fn handle(&self, caller: &Caller, request: Request<Incoming>) -> Response<ReplyBody> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        if !allowed(caller, &method, &path) {
            tracing::warn!(?caller, %method, path, "a call was refused");
            let problem = Problem::new(ProblemKind::Forbidden, "a host's certificate may only call services");
            return reply::problem_response(&problem).map(reply_body);
        }
        let response = match self.routes.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if response.status() == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(%method, path, "a call failed");
        }
        response.map(|body| body.map_err(Into::into).boxed_unsync())
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
