//! Hosts as operators see them, how a host joins, and who may call the admin API.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{AppName, Generation, HostAddress, HostCapacity, HostId, HostUsage, OrgName, WorkerStatus};

/// A host as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostView {
    /// Its id.
    pub id: HostId,
    /// How it stands.
    pub state: HostState,
    /// What the operator lets it do.
    #[serde(default)]
    pub duty: HostDuty,
    /// Instances that the planner has on it: while it drains, those that are still to go.
    #[serde(default)]
    pub placed: u32,
    /// It fell silent again and again and gets new instances only where no other host can have them, until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<Timestamp>,
    /// Its failure domain.
    pub zone: String,
    /// Labels that placement may ask for.
    pub labels: BTreeMap<String, String>,
    /// Its release, once seen.
    pub version: Option<String>,
    /// What it has to give, once seen.
    pub capacity: Option<HostCapacity>,
    /// What it uses, once seen.
    pub used: Option<HostUsage>,
    /// Instances on it.
    pub instances: u32,
    /// Worker processes on it.
    #[serde(default)]
    pub workers: u32,
    /// Whether every worker gave up all that it should; absent until one is there.
    #[serde(default)]
    pub confined: Option<bool>,
    /// The config generation that it holds.
    pub generation: Option<Generation>,
    /// Where its HostApi listens.
    pub control: HostAddress,
    /// Where it takes requests.
    pub ingress: HostAddress,
    /// When it last answered.
    pub last_seen: Option<Timestamp>,
    /// When it joined.
    pub joined_at: Timestamp,
}

/// `GET /v1/hosts/{id}`: a host with its worker processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostDetail {
    /// The host.
    #[serde(flatten)]
    pub host: HostView,
    /// Its worker processes, by name, and what each could give up on that machine.
    pub worker_list: Vec<WorkerStatus>,
    /// Why it did not answer the last time, when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What the operator lets a host do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum HostDuty {
    /// Take instances.
    #[default]
    Active,
    /// Keep what it has; nothing new comes.
    Cordoned,
    /// Give up what it has: each instance goes once another stands in for it.
    Draining,
}

/// Body of `PATCH /v1/hosts/{id}`; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct HostUpdate {
    /// What it may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duty: Option<HostDuty>,
    /// Its labels, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

/// Query of `DELETE /v1/hosts/{id}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(deny_unknown_fields)]
pub struct HostRemoval {
    /// Also where it still has instances, which are then placed elsewhere, or the databases of services, which are lost.
    #[serde(default)]
    pub force: bool,
}

/// How a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// It answers.
    Up,
    /// It did not answer the last times.
    Suspected,
    /// It was not reached yet since this router started.
    Unknown,
}

/// Body of `POST /v1/hosts/join`; the join token goes in the bearer header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The name it wishes for.
    pub id: HostId,
    /// PKCS#10 request in PEM; its key stays on the host.
    pub csr_pem: String,
    /// Where its HostApi listens.
    pub control: HostAddress,
    /// Where it takes requests.
    pub ingress: HostAddress,
    /// Its failure domain.
    #[serde(default)]
    pub zone: String,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinResponse {
    /// The host's certificate chain.
    pub certificate_pem: String,
    /// The cluster's authority.
    pub ca_pem: String,
}

/// A join token, shown once; single use.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinToken {
    /// The token: `mj_` and 43 characters.
    pub token: String,
    /// Refused after this.
    pub expires_at: Timestamp,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("token", &"***").field("expires_at", &self.expires_at).finish()
    }
}

/// Body of `POST /v1/apps/{app}/debug-token`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewDebugToken {
    /// How long it is good for, in seconds: 1 to 86,400. Absent: an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
}

/// A debug token: requests that carry it as `Marcato-Debug` get errors of the platform with their reasons.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DebugToken {
    /// The app that it is good for.
    pub app: AppName,
    /// The token: `md_` and 54 characters. It is kept nowhere.
    pub token: String,
    /// No good after this.
    pub expires_at: Timestamp,
}

impl fmt::Debug for DebugToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (app, expires_at) = (&self.app, &self.expires_at);
        f.debug_struct("DebugToken").field("app", app).field("token", &"***").field("expires_at", expires_at).finish()
    }
}

/// What a token may do. Each includes the ones after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, tokens and hosts included.
    Admin,
    /// Apps and services.
    Deployer,
    /// Look, never touch.
    Viewer,
}

impl Role {
    /// Whether this role may do what `needed` may.
    #[must_use]
    pub fn includes(self, needed: Self) -> bool {
        let rank = |r| match r {
            Self::Admin => 2,
            Self::Deployer => 1,
            Self::Viewer => 0,
        };
        rank(self) >= rank(needed)
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "admin" => Ok(Self::Admin),
            "deployer" => Ok(Self::Deployer),
            "viewer" => Ok(Self::Viewer),
            _ => Err(format!("role {s:?}: expected admin, deployer or viewer")),
        }
    }
}

/// A bearer token as it is listed; its secret is stored only as a hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Token {
    /// Its name: the actor in events.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Only apps and services of this org; `None`: all.
    #[serde(default)]
    pub org: Option<OrgName>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Refused after this; `None`: never.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

/// Body of `PUT /v1/tokens/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it may do.
    pub role: Role,
    /// Only this org.
    #[serde(default)]
    pub org: Option<OrgName>,
    /// Lifetime in seconds; `None`: no end.
    #[serde(default)]
    pub ttl_s: Option<u64>,
}

/// A token that was just made: the only time that its secret is seen.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenSecret {
    /// What was made.
    #[serde(flatten)]
    pub token: Token,
    /// `mt_` and 43 characters.
    pub secret: String,
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSecret").field("token", &self.token).field("secret", &"***").finish()
    }
}
