//! The audit log: one event per change of state, and per refused attempt.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Its place; grows by one.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// Who: a token's name, `host:ID`, or `system`.
    pub actor: String,
    /// What: `app.scale`, `revision.create`, `token.create`, …
    pub action: String,
    /// On what: `app/hello`, `host/h1`, …
    pub target: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Details in words; never a secret.
    pub detail: String,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Ok,
    /// It was not allowed.
    Denied,
    /// It was allowed, and failed.
    Failed,
}
