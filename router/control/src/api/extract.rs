//! Taking a request apart: path, query, conditions, and the session of its bearer token.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Instant;

use axum::extract::{FromRequestParts, Query};
use axum::http::header::{AUTHORIZATION, IF_MATCH, RETRY_AFTER};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use marcato_api::{Outcome, Problem, ProblemKind, StoreRevision};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::problem::ApiError;
use super::{Api, Session};
use crate::auth;
use crate::state::Deed;

/// Where the connection comes from; the server puts it into each request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// A name in the path: the segment is percent-decoded by axum and parsed by its type.
pub(crate) fn name<T: FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|e| ApiError(Problem::new(ProblemKind::Invalid, format!("{e}")).with_field(field)))
}

/// Path segments, with our errors.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        found.map(|p| Self(p.0)).map_err(|e| ApiError(Problem::new(ProblemKind::BadRequest, e.body_text())))
    }
}

/// `?after=&limit=` of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Paging {
    #[serde(default)]
    pub(crate) after: Option<String>,
    #[serde(default = "Paging::usual")]
    pub(crate) limit: u32,
}

impl Paging {
    const fn usual() -> u32 {
        100
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Paging {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        query(parts, state).await
    }
}

/// A query string, with our errors.
async fn query<T: DeserializeOwned + 'static, S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<T, ApiError> {
    let found = Query::<T>::from_request_parts(parts, state).await;
    found.map(|q| q.0).map_err(|e| ApiError(Problem::new(ProblemKind::BadRequest, e.body_text()).with_field("query")))
}

/// The query, as one value.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned + 'static, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        query(parts, state).await.map(Self)
    }
}

/// `If-Match`, when there is one. `*` is no condition beyond that the object is there.
pub(crate) struct IfMatch(pub(crate) Option<StoreRevision>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get(IF_MATCH) else { return Ok(Self(None)) };
        let text = value.to_str().unwrap_or_default();
        if text == "*" {
            return Ok(Self(None));
        }
        let number = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).and_then(|t| t.parse().ok());
        match number {
            Some(number) => Ok(Self(Some(StoreRevision(number)))),
            None => {
                let why = "expected one strong version as an ETag gave it, such as \"42\"";
                Err(ApiError(Problem::new(ProblemKind::BadRequest, why).with_field("If-Match")))
            }
        }
    }
}

/// The bearer secret of a request.
pub(crate) fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}

/// Why a request has no session.
pub(crate) enum Refused {
    Problem(Box<Problem>),
    Throttled { seconds: u64 },
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Problem(problem) => ApiError(*problem).into_response(),
            Self::Throttled { seconds } => {
                let why = format!("too many wrong tokens from your address; wait {seconds} s");
                let mut response = ApiError(Problem::new(ProblemKind::RateLimited, why)).into_response();
                response.headers_mut().insert(RETRY_AFTER, seconds.into());
                response
            }
        }
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

/// Refuses a peer that guessed too often.
pub(crate) fn not_throttled(api: &Api, peer: IpAddr) -> Result<(), Refused> {
    match api.throttle.wait(peer, Instant::now()) {
        Some(wait) => Err(Refused::Throttled { seconds: wait.as_secs() + 1 }),
        None => Ok(()),
    }
}

/// Counts and records a wrong secret, and says no.
pub(crate) async fn wrong_secret(api: &Api, peer: IpAddr, action: &'static str, why: &str) -> Refused {
    api.throttle.failed(peer, Instant::now());
    api.metrics.refused.inc();
    let deed = Deed::new("unknown", action, "admin-api", format!("from {peer}: {why}"));
    if let Err(e) = api.state.record(&deed, Outcome::Denied).await {
        tracing::error!(error = %e, "a refused attempt could not be recorded");
    }
    Problem::new(ProblemKind::Unauthenticated, why).into()
}

impl FromRequestParts<Api> for Session {
    type Rejection = Refused;
    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refused> {
        let peer = peer(parts);
        not_throttled(api, peer)?;
        let Some(secret) = bearer(parts) else {
            // Not a guess: someone forgot to log in. Neither counted nor recorded.
            api.metrics.refused.inc();
            let why = "send a token as `Authorization: Bearer mt_…` (marcato login)";
            return Err(Problem::new(ProblemKind::Unauthenticated, why).into());
        };
        let tokens = api.state.tokens().await.map_err(|e| super::state_problem(&e))?;
        let known = auth::well_formed(auth::TOKEN_PREFIX, secret);
        match auth::find(&tokens, secret, Timestamp::now()).filter(|_| known) {
            Some(token) => Ok(Session::new(api.clone(), token.clone())),
            None => Err(wrong_secret(api, peer, "token.refuse", "the token is not known or has ended").await),
        }
    }
}

/// The peer's address.
pub(crate) fn peer(parts: &Parts) -> IpAddr {
    parts.extensions.get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |p| p.0)
}
