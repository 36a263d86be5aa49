//! Request bodies: bounded in size and time, JSON with the field at fault named.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use marcato_api::{Problem, ProblemKind};
use serde::de::DeserializeOwned;

use super::problem::ApiError;

/// Longest JSON body.
const JSON_LIMIT_BYTES: usize = 1 << 20;
/// How much of a body that is too long is read and thrown away.
const THROWN_BYTES: usize = 8 << 20;
/// How long a JSON body may take to arrive.
const JSON_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a component or a backup may take to arrive.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// A JSON body. An unknown field or one of the wrong type is an error that names it.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let why = "send the body with `Content-Type: application/json`";
            return Err(Problem::new(ProblemKind::UnsupportedMediaType, why).with_field("Content-Type").into());
        }
        let bytes = read(request, JSON_LIMIT_BYTES, JSON_TIMEOUT).await?;
        parse(&bytes).map(Self).map_err(ApiError)
    }
}

/// A component or a backup.
pub(crate) async fn upload(request: Request, limit_bytes: usize) -> Result<Bytes, ApiError> {
    read(request, limit_bytes, UPLOAD_TIMEOUT).await
}

async fn read(request: Request, limit_bytes: usize, timeout: Duration) -> Result<Bytes, ApiError> {
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let too_large = announced.is_some_and(|n: u64| n > limit_bytes as u64);
    let reading = collect(request.into_body(), limit_bytes, too_large);
    tokio::time::timeout(timeout, reading).await.unwrap_or_else(|_| {
        let why = format!("the body did not arrive within {} s", timeout.as_secs());
        Err(Problem::new(ProblemKind::BadRequest, why).into())
    })
}

/// A body that is too long is read on for a while and thrown away: a client that still writes when the
/// connection closes sees a broken pipe instead of the answer.
async fn collect(mut body: Body, limit_bytes: usize, mut too_large: bool) -> Result<Bytes, ApiError> {
    let (mut kept, mut thrown) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Problem::new(ProblemKind::BadRequest, format!("the body broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        too_large |= kept.len() + data.len() > limit_bytes;
        if !too_large {
            kept.extend_from_slice(&data);
            continue;
        }
        kept = BytesMut::new();
        thrown += data.len();
        if thrown > THROWN_BYTES {
            break;
        }
    }
    if too_large {
        let why = format!("the body may have at most {limit_bytes} bytes");
        return Err(Problem::new(ProblemKind::TooLarge, why).into());
    }
    Ok(kept.freeze())
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // serde would also take the fields as an array, in their order: nobody means that.
    if bytes.trim_ascii_start().first().is_some_and(|b| *b != b'{') {
        return Err(Problem::new(ProblemKind::BadRequest, "expected a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        let why = e.inner().to_string();
        let problem = Problem::new(ProblemKind::BadRequest, &why);
        match field(&path, &why) {
            Some(field) => problem.with_field(field),
            None => problem,
        }
    })?;
    json.end().map_err(|e| Problem::new(ProblemKind::BadRequest, e.to_string()))?;
    Ok(value)
}

/// The field at fault: where the reader was, or the one that it names (unknown, missing).
fn field(path: &str, why: &str) -> Option<String> {
    let named = ["unknown field `", "missing field `"]
        .iter()
        .find_map(|start| why.strip_prefix(start)?.split('`').next().map(str::to_owned));
    let path = path.trim_matches('.');
    let last = path.rsplit('.').next().unwrap_or_default();
    match named {
        Some(named) if path.is_empty() || path == "?" || last == named => {
            Some(if path.is_empty() || path == "?" { named } else { path.to_owned() })
        }
        Some(named) => Some(format!("{path}.{named}")),
        None if path.is_empty() || path == "?" => None,
        None => Some(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use marcato_api::{AppUpdate, NewApp, NewRevision};

    use super::*;

    #[test]
    fn the_field_at_fault_is_named() {
        let field = |r: Result<NewApp, Problem>| r.unwrap_err().field;
        assert_eq!(field(parse(br#"{"instances": "two"}"#)).as_deref(), Some("instances"));
        assert_eq!(field(parse(br#"{"instanzes": 2}"#)).as_deref(), Some("instanzes"));
        assert_eq!(field(parse(br#"{"routes": [{"host": 1}]}"#)).as_deref(), Some("routes[0].host"));
        assert_eq!(field(parse(br#"{"routes": [{"path": "/"}]}"#)).as_deref(), Some("routes[0].host"));
        assert_eq!(field(parse(br#"{"org": "NOT A NAME"}"#)).as_deref(), Some("org"));
        let nested: Result<NewRevision, Problem> = parse(br#"{"config": {"limits": {"memory": 1}}}"#);
        assert_eq!(nested.unwrap_err().field.as_deref(), Some("config.limits.memory"));
    }

    #[test]
    fn garbage_is_a_problem_and_never_a_panic() {
        let deep = "[".repeat(100_000);
        for garbage in ["", "{", "null", "{}x", "[]", "\u{0}", "{\"state\": \"x\"}", &deep, "{\"instances\": 1e99}"] {
            let problem = parse::<AppUpdate>(garbage.as_bytes()).unwrap_err();
            assert_eq!(problem.status, 400, "{garbage:.40}");
        }
        assert!(parse::<AppUpdate>(b"\xff\xfe").is_err());
    }
}
