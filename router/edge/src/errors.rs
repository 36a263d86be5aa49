//! Responses that the edge makes itself: one status per kind of problem, a body that the client can
//! read, and nothing of the platform's inside, but for the app's owner.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use marcato_api::{AppName, OwnerProblem, Problem, ProblemKind};
use serde::Serialize;

/// Why a request is not served.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) kind: ProblemKind,
    pub(crate) status: StatusCode,
    title: &'static str,
    detail: Cow<'static, str>,
    retry_after_s: Option<u32>,
    close: bool,
    /// What the app's owner gets instead of the detail. Only made when it is the owner who asks.
    explanation: Option<Box<OwnerProblem>>,
}

impl Refusal {
    pub(crate) fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        let status = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // What may pass soon says so (RFC 9110, 10.2.3).
        let retry_after_s = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(match kind {
            ProblemKind::AppStopped => 30,
            ProblemKind::NoInstance => 2,
            _ => 1,
        });
        let (title, detail) = (kind.title(), detail.into());
        Self { kind, status, title, detail, retry_after_s, close: false, explanation: None }
    }

    /// One that only says what kind it is.
    pub(crate) fn plain(kind: ProblemKind) -> Self {
        Self::new(kind, "")
    }

    /// A request that is not well formed: the connection ends, for what follows cannot be trusted.
    pub(crate) fn malformed(detail: &'static str) -> Self {
        Self { close: true, ..Self::new(ProblemKind::BadRequest, detail) }
    }

    /// Ends the connection with it: what the client still sends is not read.
    pub(crate) fn closing(self) -> Self {
        Self { close: true, ..self }
    }

    /// The same, with what its owner gets to know.
    pub(crate) fn explained(self, explanation: OwnerProblem) -> Self {
        Self { explanation: Some(Box::new(explanation)), ..self }
    }

    /// A status that no problem kind has.
    pub(crate) fn status(status: StatusCode, title: &'static str, detail: &'static str) -> Self {
        Self { status, title, close: true, ..Self::new(ProblemKind::BadRequest, detail) }
    }

    /// Makes the response; the body comes back beside it. `owner`: the app whose owner asks, who gets the whole problem
    /// whatever kind of body they would rather read.
    pub(crate) fn render(&self, accept: &Accept, request_id: &str, owner: Option<&AppName>) -> (Response<()>, Bytes) {
        let (content_type, body) = match (owner, accept) {
            (Some(app), _) => (Problem::CONTENT_TYPE, self.whole(request_id, app)),
            (None, Accept::Json) => (Problem::CONTENT_TYPE, json(&self.problem(request_id))),
            (None, Accept::Html) => ("text/html; charset=utf-8", self.html(request_id)),
            (None, Accept::Text) => ("text/plain; charset=utf-8", self.text(request_id)),
        };
        let mut response = Response::new(());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        (response, Bytes::from(body))
    }

    fn problem(&self, request_id: &str) -> Problem {
        let mut problem = Problem::new(self.kind, self.detail.clone());
        problem.title = self.title.into();
        problem.status = self.status.as_u16();
        problem.request_id = Some(request_id.to_owned());
        problem
    }

    fn whole(&self, request_id: &str, app: &AppName) -> String {
        let mut problem = self.problem(request_id);
        let told = match self.explanation.as_deref().cloned() {
            Some(told) => {
                problem.detail.clone_from(&told.problem.detail);
                told
            }
            None => OwnerProblem::from(problem.clone()),
        };
        json(&OwnerProblem { problem, app: Some(app.clone()), ..told })
    }

    fn text(&self, request_id: &str) -> String {
        let mut text = format!("{} {}\n", self.status.as_u16(), self.title);
        if !self.detail.is_empty() {
            text.push_str(&self.detail);
            text.push('\n');
        }
        text + "request " + request_id + "\n"
    }

    /// Title and detail are the edge's own words: there is nothing of the client's to escape.
    fn html(&self, request_id: &str) -> String {
        let (status, title, detail) = (self.status.as_u16(), self.title, &self.detail);
        format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{status} {title}</title>\
             <body style=\"font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em\">\
             <h1>{title}</h1><p>{detail}</p><p><small>Status {status} · request {request_id}</small></p></html>\n"
        )
    }
}

fn json(problem: &impl Serialize) -> String {
    serde_json::to_string(problem).unwrap_or_else(|_| "{}".to_owned())
}

/// What kind of body the client would rather read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accept {
    Json,
    Html,
    Text,
}

impl Accept {
    /// Reads `Accept` (RFC 9110, 12.5.1) as far as it takes to choose among three; plain text when
    /// nothing is preferred.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut best = (Self::Text, 0_u32);
        let values = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
        for range in values.flat_map(|v| v.split(',')).take(32) {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let kind = if media.eq_ignore_ascii_case("text/html") || media.eq_ignore_ascii_case("application/xhtml+xml")
            {
                Self::Html
            } else if media.eq_ignore_ascii_case("application/json")
                || media.eq_ignore_ascii_case(Problem::CONTENT_TYPE)
            {
                Self::Json
            } else if media.eq_ignore_ascii_case("text/plain") {
                Self::Text
            } else {
                continue;
            };
            let quality = parts
                .find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")))
                .map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0));
            // Thousandths are all that the grammar has.
            let quality = if (0.0..=1.0).contains(&quality) { (quality * 1000.0) as u32 } else { 0 };
            if quality > best.1 {
                best = (kind, quality);
            }
        }
        best.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_read() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            Accept::of(&headers)
        };
        assert_eq!(of("*/*"), Accept::Text);
        assert_eq!(of("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"), Accept::Html);
        assert_eq!(of("application/json"), Accept::Json);
        assert_eq!(of("text/html;q=0.2, application/problem+json ; q=0.9"), Accept::Json);
        assert_eq!(of("text/html;q=0"), Accept::Text);
        for garbage in ["", ",,,;;", "text/html;q=nan", "text/html;q=-1", "text/html;q=1e9", "\u{e9}"] {
            assert_eq!(of(garbage), Accept::Text, "{garbage:?}");
        }
        assert_eq!(Accept::of(&HeaderMap::new()), Accept::Text);
    }

    #[test]
    fn what_may_pass_says_when_to_come_back() {
        for kind in ProblemKind::ALL {
            let (response, body) = Refusal::plain(*kind).render(&Accept::Json, "id", None);
            assert_eq!(response.status(), kind.status());
            assert_eq!(response.headers().contains_key(RETRY_AFTER), kind.status() == 503, "{kind:?}");
            let problem: Problem = serde_json::from_slice(&body).unwrap();
            assert_eq!((problem.kind, problem.request_id.as_deref()), (*kind, Some("id")));
        }
    }
}
