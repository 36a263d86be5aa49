//! One call: build the request, send it within its time, and read the answer or the problem.
//!
//! Both clients sit on this. Everything that goes wrong becomes a [`Problem`]: the peer's own is passed
//! through as it is; what the transport says becomes `Unavailable` and names the peer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderValue, IF_MATCH, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use marcato_api::{ApiResult, Problem, ProblemKind, StoreRevision};
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::body::{self, Progress, Upload};
use crate::connect::{Connector, Target};

/// An ordinary call, from first byte to last.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// A call that carries a component.
pub(crate) const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);
/// A call that carries a database.
pub(crate) const BACKUP_TIMEOUT: Duration = Duration::from_secs(1800);
/// Longest JSON or text answer.
const JSON_LIMIT_BYTES: usize = 64 << 20;
/// Longest backup.
pub(crate) const BACKUP_LIMIT_BYTES: usize = 4 << 30;
/// Longest error body that is read.
const PROBLEM_LIMIT_BYTES: usize = 64 << 10;

/// The server of a base URL.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) server_name: ServerName<'static>,
    /// `https://host:port`, without a path.
    pub(crate) base: String,
}

impl Origin {
    /// Errors: `Invalid` for anything but `https://HOST[:PORT][/]`. Plain HTTP is refused: it would
    /// show the token to whoever listens.
    pub(crate) fn parse(url: &str) -> ApiResult<Self> {
        let wrong = |why: &str| {
            Problem::new(ProblemKind::Invalid, format!("admin URL {url:?}: {why}; expected https://HOST:PORT"))
        };
        let uri: http::Uri = url.parse().map_err(|_| wrong("it is not a URL"))?;
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") => return Err(wrong("the token needs TLS")),
            _ => return Err(wrong("the scheme is missing")),
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(wrong("it has a path"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("the host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it carries credentials"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let server_name = ServerName::try_from(host.clone()).map_err(|_| wrong("the host name is not valid"))?;
        let port = authority.port_u16().unwrap_or(443);
        Ok(Self { host, port, server_name, base: format!("https://{authority}") })
    }
}

/// What goes out.
pub(crate) enum Payload {
    None,
    Json(Bytes),
    Octets(Bytes, Option<Progress>),
}

impl Payload {
    pub(crate) fn json<T: Serialize>(value: &T) -> ApiResult<Self> {
        serde_json::to_vec(value)
            .map(|v| Self::Json(v.into()))
            .map_err(|e| Problem::new(ProblemKind::Internal, format!("cannot write the request: {e}")))
    }
}

/// One call's parts.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) payload: Payload,
    pub(crate) if_match: Option<StoreRevision>,
    pub(crate) timeout: Duration,
    pub(crate) limit_bytes: usize,
}

impl Call {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            payload: Payload::None,
            if_match: None,
            timeout: CALL_TIMEOUT,
            limit_bytes: JSON_LIMIT_BYTES,
        }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }

    pub(crate) fn if_match(mut self, revision: Option<StoreRevision>) -> Self {
        self.if_match = revision;
        self
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// An answer that was read to its end.
pub(crate) struct Answer {
    pub(crate) bytes: Bytes,
    etag: Option<StoreRevision>,
    peer: Arc<str>,
}

impl Answer {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> ApiResult<T> {
        serde_json::from_slice(&self.bytes).map_err(|e| {
            Problem::new(ProblemKind::Internal, format!("{} gave an answer that cannot be read: {e}", self.peer))
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub(crate) fn etag(&self) -> ApiResult<StoreRevision> {
        self.etag
            .ok_or_else(|| Problem::new(ProblemKind::Internal, format!("{} gave an answer without an ETag", self.peer)))
    }
}

/// Sends calls to one peer over pooled connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Caller {
    client: Client<Connector, Upload>,
    base: Arc<str>,
    /// How errors name the peer.
    peer: Arc<str>,
    bearer: Option<HeaderValue>,
}

impl Caller {
    pub(crate) fn new(
        target: Target,
        server_name: ServerName<'static>,
        tls: Arc<rustls::ClientConfig>,
        base: &str,
        peer: &str,
    ) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .build(Connector { target, server_name, tls });
        Self { client, base: base.into(), peer: peer.into(), bearer: None }
    }

    /// Adds a bearer token. Errors: `Invalid` when it has characters that no token has.
    pub(crate) fn with_bearer(mut self, token: &str) -> ApiResult<Self> {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| Problem::new(ProblemKind::Invalid, "the token has characters that no token has"))?;
        value.set_sensitive(true);
        self.bearer = Some(value);
        Ok(self)
    }

    pub(crate) fn unavailable(&self, why: impl std::fmt::Display) -> Problem {
        Problem::new(ProblemKind::Unavailable, format!("{}: {why}", self.peer))
    }

    fn request(&self, call: Call) -> ApiResult<Request<Upload>> {
        let mut request = Request::builder()
            .method(call.method)
            .uri(format!("{}{}", self.base, call.path))
            .header(USER_AGENT, concat!("marcato/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json, application/problem+json, */*;q=0.5");
        if let Some(bearer) = &self.bearer {
            request = request.header(AUTHORIZATION, bearer.clone());
        }
        if let Some(revision) = call.if_match {
            request = request.header(IF_MATCH, format!("\"{revision}\""));
        }
        let request = match call.payload {
            Payload::None => request.body(Upload::empty()),
            Payload::Json(bytes) => request.header(CONTENT_TYPE, "application/json").body(Upload::new(bytes, None)),
            Payload::Octets(bytes, progress) => {
                request.header(CONTENT_TYPE, "application/octet-stream").body(Upload::new(bytes, progress))
            }
        };
        request.map_err(|e| Problem::new(ProblemKind::Invalid, format!("cannot build the request: {e}")))
    }

    /// Sends and gives the response's head when its status is 2xx; else the problem. The body has no
    /// time limit of its own: for streams.
    pub(crate) async fn open(&self, call: Call) -> ApiResult<Response<Incoming>> {
        let timeout = call.timeout;
        let request = self.request(call)?;
        let answer = tokio::time::timeout(timeout, async {
            let response = self.client.request(request).await.map_err(|e| self.unavailable(root_cause(&e)))?;
            if response.status().is_success() { Ok(response) } else { Err(self.problem(response).await) }
        });
        answer.await.unwrap_or_else(|_| Err(self.late(timeout)))
    }

    /// Sends and reads the whole answer.
    pub(crate) async fn send(&self, call: Call) -> ApiResult<Answer> {
        let (timeout, limit) = (call.timeout, call.limit_bytes);
        let whole = tokio::time::timeout(timeout, async {
            let response = self.open(call).await?;
            let etag = response.headers().get(ETAG).and_then(parse_etag);
            let bytes = body::read(response.into_body(), limit).await.map_err(|e| self.unavailable(e))?;
            Ok(Answer { bytes, etag, peer: Arc::clone(&self.peer) })
        });
        whole.await.unwrap_or_else(|_| Err(self.late(timeout)))
    }

    fn late(&self, timeout: Duration) -> Problem {
        self.unavailable(format_args!("no answer within {} s", timeout.as_secs()))
    }

    /// The peer's problem, or one made from the status when the body is not a problem.
    async fn problem(&self, response: Response<Incoming>) -> Problem {
        let status = response.status();
        let body = body::read(response.into_body(), PROBLEM_LIMIT_BYTES).await.unwrap_or_default();
        if let Ok(problem) = serde_json::from_slice::<Problem>(&body) {
            return problem;
        }
        let mut words: String = String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(200).collect();
        if words.is_empty() {
            words = format!("{} answered {status}", self.peer);
        }
        let mut problem = Problem::new(kind_of(status), words);
        problem.status = status.as_u16();
        problem
    }
}

fn kind_of(status: StatusCode) -> ProblemKind {
    match status.as_u16() {
        401 => ProblemKind::Unauthenticated,
        403 => ProblemKind::Forbidden,
        404 => ProblemKind::NotFound,
        405 => ProblemKind::MethodNotAllowed,
        409 => ProblemKind::Conflict,
        412 => ProblemKind::PreconditionFailed,
        413 => ProblemKind::TooLarge,
        415 => ProblemKind::UnsupportedMediaType,
        422 => ProblemKind::Invalid,
        429 => ProblemKind::RateLimited,
        502 => ProblemKind::BadGateway,
        504 => ProblemKind::TimedOut,
        503 => ProblemKind::Unavailable,
        400..=499 => ProblemKind::BadRequest,
        _ => ProblemKind::Internal,
    }
}

fn parse_etag(value: &HeaderValue) -> Option<StoreRevision> {
    let text = value.to_str().ok()?;
    let text = text.strip_prefix("W/").unwrap_or(text);
    text.trim_matches('"').parse().ok().map(StoreRevision)
}

/// The innermost error: hyper's own message only says that a connect failed.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Escapes what a query value or a path segment cannot carry as it is (RFC 3986, unreserved kept).
pub(crate) fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
