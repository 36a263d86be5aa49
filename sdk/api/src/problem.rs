//! The error body of every API: problem details (RFC 9457), `application/problem+json`.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{AppName, HostId, InstanceId, RevisionNumber};

/// A problem: one error, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// What kind, as the URI `urn:marcato:problem:KIND`.
    #[serde(rename = "type")]
    pub kind: ProblemKind,
    /// The kind in words.
    pub title: Cow<'static, str>,
    /// The HTTP status.
    pub status: u16,
    /// What happened here: names the field, the limit or the command to run.
    pub detail: String,
    /// The field of the request that is at fault, when one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The request's id, to find it in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// A problem as the app's owner gets it, for whom it explains itself: the members of [`Problem`] and these. A client that
/// has not shown to be the owner gets the kind alone. From a host to the edge, without what the edge knows itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerProblem {
    /// What everybody may know, and the detail.
    #[serde(flatten)]
    pub problem: Problem,
    /// The limit that fired, as docs/limits.md names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Cow<'static, str>>,
    /// Its value; the unit is the end of its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_value: Option<u64>,
    /// What was used or asked for, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// What the guest or its sandbox said, line by line, as in the app's log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reason: Vec<String>,
    /// The app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// The revision of the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<RevisionNumber>,
    /// The instance that had the request last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// The host of that instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
}

impl From<Problem> for OwnerProblem {
    fn from(problem: Problem) -> Self {
        let (limit, limit_value, used, reason) = (None, None, None, Vec::new());
        let (app, revision, instance_id, host) = (None, None, None, None);
        Self { problem, limit, limit_value, used, reason, app, revision, instance_id, host }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $slug:literal, $status:literal, $title:literal;)*) => {
        /// Kinds of problem; each has one status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum ProblemKind {
            $($(#[$doc])* #[serde(rename = $slug)] $name,)*
        }

        impl ProblemKind {
            /// Every kind, for documents and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// The kind in words.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// The last part of its URI, in kebab-case.
            #[must_use]
            pub fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug.rsplit(':').next().unwrap_or($slug),)* }
            }

            /// The kind of this slug.
            #[must_use]
            pub fn from_slug(slug: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|k| k.slug() == slug)
            }
        }
    };
}

kinds! {
    /// The request is not well formed.
    BadRequest = "urn:marcato:problem:bad-request", 400, "The request is not well formed";
    /// A field has a value that is not allowed.
    Invalid = "urn:marcato:problem:invalid", 422, "A field is not valid";
    /// No token, or one that is not known.
    Unauthenticated = "urn:marcato:problem:unauthenticated", 401, "Log in first";
    /// The token's role does not allow it.
    Forbidden = "urn:marcato:problem:forbidden", 403, "The token's role does not allow this";
    /// No such thing.
    NotFound = "urn:marcato:problem:not-found", 404, "Not found";
    /// The method is not offered there.
    MethodNotAllowed = "urn:marcato:problem:method-not-allowed", 405, "Method not allowed";
    /// It exists already, or is in use.
    Conflict = "urn:marcato:problem:conflict", 409, "Conflict";
    /// The host holds a newer config.
    StaleGeneration = "urn:marcato:problem:stale-generation", 409, "The host holds a newer config";
    /// `If-Match` names an older version.
    PreconditionFailed = "urn:marcato:problem:precondition-failed", 412, "It changed in the meantime";
    /// The body is longer than allowed.
    TooLarge = "urn:marcato:problem:too-large", 413, "The body is too large";
    /// The content type is not the one expected.
    UnsupportedMediaType = "urn:marcato:problem:unsupported-media-type", 415, "Unsupported media type";
    /// The bytes do not hash to the digest.
    DigestMismatch = "urn:marcato:problem:digest-mismatch", 422, "The bytes do not match the digest";
    /// The component cannot run here.
    BadComponent = "urn:marcato:problem:bad-component", 422, "The component cannot run here";
    /// Too many requests from one client.
    RateLimited = "urn:marcato:problem:rate-limited", 429, "Too many requests";
    /// No route leads there.
    NoRoute = "urn:marcato:problem:no-route", 404, "No app answers at this address";
    /// The app was stopped.
    AppStopped = "urn:marcato:problem:app-stopped", 503, "The app is stopped";
    /// No instance answers, or none became ready in time.
    NoInstance = "urn:marcato:problem:no-instance", 503, "No instance is ready";
    /// The instance has no room: concurrency and queue are used up.
    QueueFull = "urn:marcato:problem:queue-full", 503, "The app is at its limit";
    /// The request waited in the instance's queue too long.
    QueueTimeout = "urn:marcato:problem:queue-timeout", 503, "The app is at its limit";
    /// The instance's memory total is used up.
    MemoryExhausted = "urn:marcato:problem:memory-exhausted", 503, "The app is at its memory limit";
    /// The host does not have this instance (any more).
    InstanceGone = "urn:marcato:problem:instance-gone", 503, "The instance is gone";
    /// The guest used its CPU time up.
    CpuExhausted = "urn:marcato:problem:cpu-exhausted", 504, "The app used its CPU time up";
    /// The guest did not answer in time.
    TimedOut = "urn:marcato:problem:timed-out", 504, "The app did not answer in time";
    /// The guest trapped, panicked or answered nothing.
    GuestFailed = "urn:marcato:problem:guest-failed", 500, "The app failed";
    /// The connection to the instance failed.
    BadGateway = "urn:marcato:problem:bad-gateway", 502, "The instance could not be reached";
    /// A part of the platform is not there now.
    Unavailable = "urn:marcato:problem:unavailable", 503, "Temporarily unavailable";
    /// A fault of the platform.
    Internal = "urn:marcato:problem:internal", 500, "Internal error";
}

impl Problem {
    /// A problem of this kind.
    #[must_use]
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            title: kind.title().into(),
            status: kind.status(),
            detail: detail.into(),
            field: None,
            request_id: None,
        }
    }

    /// The same, naming the field at fault.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The content type of the body.
    pub const CONTENT_TYPE: &'static str = "application/problem+json";
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{} ({field}: {})", self.title, self.detail),
            None => write!(f, "{}: {}", self.title, self.detail),
        }
    }
}

impl std::error::Error for Problem {}
