//! Responses of HostApi and the reading of bodies: every error is a problem, every body is bounded.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use marcato_api::{Problem, ProblemKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A problem on its way out.
pub(crate) struct Failure(pub(crate) Problem);

/// What a handler answers.
pub(crate) type Reply = Result<Response<Body>, Failure>;

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> Response<Body> {
        problem_response(&self.0).map(Body::from)
    }
}

pub(crate) fn fail(kind: ProblemKind, detail: impl Into<String>) -> Failure {
    Failure(Problem::new(kind, detail))
}

/// A problem as a response.
pub(crate) fn problem_response(problem: &Problem) -> Response<Bytes> {
    // A problem's texts always serialize; an empty body with the right status is the worst case.
    let body = serde_json::to_vec(problem).unwrap_or_default();
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(Problem::CONTENT_TYPE));
    response
}

/// 200 with bytes of a type.
pub(crate) fn bytes(content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// 200 with JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> Reply {
    let body = serde_json::to_vec(value).map_err(|e| fail(ProblemKind::Internal, e.to_string()))?;
    Ok(bytes("application/json", body))
}

/// 204.
pub(crate) fn nothing() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// The whole body, up to `most` bytes.
pub(crate) async fn read(body: Body, most: usize) -> Result<Bytes, Failure> {
    match Limited::new(body, most).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => {
            Err(fail(ProblemKind::TooLarge, format!("the body may have at most {most} bytes")))
        }
        Err(e) => Err(fail(ProblemKind::BadRequest, format!("the body was cut short: {e}"))),
    }
}

/// The body as JSON, up to `most` bytes.
pub(crate) async fn read_json<T: DeserializeOwned>(headers: &HeaderMap, body: Body, most: usize) -> Result<T, Failure> {
    let content_type = headers.get(header::CONTENT_TYPE).map(|v| v.to_str().unwrap_or_default());
    let essence = content_type.map(|v| v.split(';').next().unwrap_or_default().trim());
    if !essence.is_some_and(|e| e.eq_ignore_ascii_case("application/json")) {
        return Err(fail(ProblemKind::UnsupportedMediaType, "expected application/json"));
    }
    let bytes = read(body, most).await?;
    // serde's words name places and types; of the contents only a field's own value, which the sender knows.
    serde_json::from_slice(&bytes).map_err(|e| {
        let kind = if e.is_data() { ProblemKind::Invalid } else { ProblemKind::BadRequest };
        fail(kind, e.to_string())
    })
}
