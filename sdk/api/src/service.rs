//! Services: what an app may use beyond compute.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{AppName, Bytes, HostId, OrgName, ServiceId, ServiceName, SpaceName};

/// Kinds of service, each with one plan today (`sqlite`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ServiceKind {
    /// `marcato:access`: subjects, secure keys, access rights, history.
    Access,
    /// `wasi:keyvalue`.
    Keyvalue,
}

impl ServiceKind {
    /// As the CLI and the manifest spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Keyvalue => "keyvalue",
        }
    }
}

impl std::fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for ServiceKind {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "access" => Ok(Self::Access),
            "keyvalue" => Ok(Self::Keyvalue),
            _ => Err(format!("service kind {s:?}: expected access or keyvalue")),
        }
    }
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Service {
    /// Its identity.
    pub id: ServiceId,
    /// What people call it.
    pub name: ServiceName,
    /// Its kind.
    pub kind: ServiceKind,
    /// Its org; only apps of the same org and space may bind it.
    pub org: OrgName,
    /// Its space.
    pub space: SpaceName,
    /// The host that has its database.
    pub owner: HostId,
    /// Size on disk, when the owner reported it.
    #[serde(default)]
    pub bytes: Option<Bytes>,
    /// Whether the owner says that it is ready.
    #[serde(default)]
    pub ready: bool,
    /// Apps whose current revision binds it.
    #[serde(default)]
    pub bound_by: Vec<AppName>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Body of `PUT /v1/services/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewService {
    /// Its kind.
    pub kind: ServiceKind,
    /// Its org.
    #[serde(default = "OrgName::default_org")]
    pub org: OrgName,
    /// Its space.
    #[serde(default = "SpaceName::default_space")]
    pub space: SpaceName,
}

/// A copy of a service's database as it travels: SQLite's file format, bytes as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup(pub Vec<u8>);
