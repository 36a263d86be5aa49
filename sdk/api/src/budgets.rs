//! What `app show --limits` says: every budget of an app, who set it, and how far it is used.

use serde::{Deserialize, Serialize};

use crate::{AppName, Isolation, LimitScope, PolicyScope, RevisionNumber};

/// `GET /v1/apps/{app}/limits`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppLimits {
    /// Which app.
    pub app: AppName,
    /// The revision whose limits these are.
    pub revision: Option<RevisionNumber>,
    /// Which process its instances run in.
    pub isolation: Isolation,
    /// The scope that says so; absent: nobody, it is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation_set_by: Option<PolicyScope>,
    /// Instances that said how far their limits are used.
    pub instances: u32,
    /// The budgets.
    pub items: Vec<LimitView>,
}

/// One budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LimitView {
    /// Its name; `_bytes` and `_ms` at its end are its unit.
    pub name: String,
    /// What it is counted over.
    pub scope: LimitScope,
    /// The limit; absent when there is none.
    pub limit: Option<u64>,
    /// Who set it.
    pub set_by: LimitSource,
    /// The most that a manifest may ask for; absent when no policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
    /// The scope whose policy has set the limit, or its quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyScope>,
    /// The most that any instance uses now.
    pub used: u64,
    /// The most that any instance ever used.
    pub peak: u64,
    /// How often it fired, over all instances.
    pub fired: u64,
}

/// Who set a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum LimitSource {
    /// Nobody: it is the default.
    Default,
    /// The app's manifest.
    Manifest,
    /// A policy of the operator's.
    Policy,
    /// The host, or this release.
    Platform,
}
