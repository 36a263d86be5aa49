//! Every error as problem details (RFC 9457) that carry the request's id.
//!
//! Handlers leave the [`Problem`] in the response's extensions; the outermost layer writes it, so that
//! the id is in each body, also of those that no handler of ours made.

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::IntoResponse;
use marcato_api::{Problem, ProblemKind, headers};

use super::{Api, CallLabels};

/// An error of a handler.
#[derive(Debug)]
pub(crate) struct ApiError(pub(crate) Problem);

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status(&self.0);
        response.extensions_mut().insert(self.0);
        response
    }
}

fn status(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The outermost layer: gives the request its id, writes problems, counts and logs.
pub(crate) async fn outermost(State(api): State<Api>, request: Request, next: Next) -> Response<Body> {
    let id = ulid::Ulid::new().to_string().to_lowercase();
    let method = request.method().to_string();
    // The pattern, not the path: metrics must not grow with what clients send.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let started = std::time::Instant::now();
    let mut response = finish(next.run(request).await, &id);
    let status = response.status().as_u16();
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(headers::REQUEST_ID, value);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    tracing::info!(request_id = %id, %method, %route, status, ms = started.elapsed().as_millis(), "admin call");
    api.metrics.calls.get_or_create(&CallLabels { route, method, status }).inc();
    response
}

fn finish(mut response: Response<Body>, id: &str) -> Response<Body> {
    let problem = response.extensions_mut().remove::<Problem>();
    let Some(mut problem) = problem else { return response };
    problem.request_id = Some(id.to_owned());
    let bytes = serde_json::to_vec(&problem).unwrap_or_default();
    let mut parts = response.into_parts().0;
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(Problem::CONTENT_TYPE));
    if problem.status == 401 {
        parts.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"marcato\""));
    }
    Response::from_parts(parts, Body::from(bytes))
}

/// No such path.
pub(crate) async fn not_found(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(200).collect();
    ApiError(Problem::new(ProblemKind::NotFound, format!("there is nothing at {path}; see /v1/openapi.json")))
}

/// The path is there, the method is not.
pub(crate) async fn wrong_method(request: Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    ApiError(Problem::new(ProblemKind::MethodNotAllowed, format!("{path} does not take {method}")))
}

/// A handler panicked: a fault of ours, never a dropped connection.
#[allow(clippy::needless_pass_by_value, reason = "the signature is tower-http's")]
pub(crate) fn panicked(_: Box<dyn std::any::Any + Send>) -> Response<Body> {
    tracing::error!("a handler of the admin API panicked");
    ApiError(Problem::new(ProblemKind::Internal, "a fault of the control plane; see its log")).into_response()
}
