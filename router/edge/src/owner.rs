//! Whether an app's owner asks, and what errors tell one.
//!
//! Owns: taking the debug token off a request, its worth for the app that the request leads to, and the parts of an
//! explanation that the edge knows itself. Does not own the token (`marcato-balance`). Nothing here is done for a request
//! without the header, but to see that it is not there.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use marcato_api::{OwnerProblem, Problem, ProblemKind, headers};
use marcato_balance::{AppEntry, DebugVerdict, Endpoint};

/// Where a client puts the token, and where it reads what that was worth.
pub(crate) const DEBUG_NAME: HeaderName = HeaderName::from_static(headers::DEBUG);
/// Tells the host to say why.
pub(crate) const EXPLAIN_NAME: HeaderName = HeaderName::from_static(headers::EXPLAIN);
/// Most of an explanation that is read from a host: 16 lines of 1,024 characters, however they are escaped.
pub(crate) const EXPLANATION_BYTES: usize = 128 << 10;

/// A debug token that came with a request.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Empty when there were several: which one was meant is not guessed.
    token: HeaderValue,
    /// Unknown until the request leads to an app.
    verdict: Option<DebugVerdict>,
}

impl Asked {
    /// Takes the token off a request, so that nobody behind the edge sees it.
    pub(crate) fn take(headers: &mut HeaderMap) -> Option<Box<Self>> {
        let mut tokens = headers.get_all(DEBUG_NAME).iter();
        let token = match (tokens.next()?, tokens.next()) {
            (token, None) => token.clone(),
            _ => HeaderValue::from_static(""),
        };
        headers.remove(DEBUG_NAME);
        Some(Box::new(Self { token, verdict: None }))
    }

    /// What it is worth for the app that the request leads to now.
    pub(crate) fn judge(&mut self, entry: &AppEntry) {
        // A clock before 1970 makes every token a good one of ours still.
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.verdict = Some(entry.debug.check(&entry.app, self.token.as_bytes(), now_s));
    }

    pub(crate) fn is_owner(&self) -> bool {
        self.verdict == Some(DebugVerdict::Valid)
    }

    /// What the response says of it; nothing when the request led to no app.
    pub(crate) fn answer(&self) -> Option<HeaderValue> {
        self.verdict.map(|verdict| HeaderValue::from_static(verdict.as_str()))
    }
}

/// Why, in the edge's own words.
pub(crate) fn because(kind: ProblemKind, why: String) -> OwnerProblem {
    Problem::new(kind, why).into()
}

/// Where it happened, by the edge's own knowledge and whatever a host said.
pub(crate) fn at(endpoint: &Endpoint, problem: OwnerProblem) -> OwnerProblem {
    OwnerProblem {
        revision: Some(endpoint.revision),
        instance_id: Some(endpoint.instance.clone()),
        host: Some(endpoint.host.clone()),
        ..problem
    }
}

/// An error with all that caused it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        // Writing into a String does not fail.
        let _ = write!(text, ": {inner}");
        source = inner.source();
    }
    text
}
