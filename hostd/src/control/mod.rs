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
use marcato_api::{HostId, Problem, ProblemKind, ServiceId, host_paths};
use tower::ServiceExt;

use crate::node::Node;
use crate::serve::{Handler, ReplyBody, reply_body};
use crate::tls::Caller;

/// Answers HostApi.
#[derive(Clone)]
pub(crate) struct Control {
    routes: axum::Router,
    node: Arc<Node>,
}

impl Control {
    /// HostApi of this node.
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { routes: handlers::routes(Arc::clone(&node)), node }
    }
}

/// Whether the caller may use this method and path at all. Routers may use everything; hosts only call services, those that
/// the router lets them use (`uses`), and may ask for life and release.
fn allowed(caller: &Caller, method: &Method, path: &str, uses: impl Fn(&HostId, &ServiceId) -> bool) -> bool {
    match caller {
        Caller::Router => true,
        Caller::Host(_) if method == Method::GET => path == host_paths::HEALTH || path == host_paths::VERSION,
        Caller::Host(host) if method == Method::POST => {
            let Some((id, verb)) = path.strip_prefix("/v1/services/").and_then(|rest| rest.split_once('/')) else {
                return false;
            };
            // An id has no character that a path would escape.
            (verb == "access" || verb == "keyvalue") && ServiceId::new(id).is_ok_and(|id| uses(host, &id))
        }
        Caller::Host(_) => false,
    }
}

impl Handler for Control {
    async fn handle(&self, caller: &Caller, request: Request<Incoming>) -> Response<ReplyBody> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        if !allowed(caller, &method, &path, |host, service| self.node.may_use(host, service)) {
            tracing::warn!(?caller, %method, path, "a call was refused");
            let problem = Problem::new(
                ProblemKind::Forbidden,
                "a host may only call the services that its instances are bound to",
            );
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
