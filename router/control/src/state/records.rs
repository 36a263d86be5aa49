//! Objects that only the control plane sees, as the store keeps them.
//!
//! Apps and revisions are wire types (`marcato-api`); what is here never leaves the router whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use marcato_api::{
    App, AppName, Bytes, Digest, HostAddress, HostDuty, HostId, OrgName, Revision, RevisionNumber, ServiceId,
    ServiceKind, ServiceName, SpaceName, StoreRevision, Token,
};
use serde::{Deserialize, Serialize};

use super::Policies;

/// A host that joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its id.
    pub id: HostId,
    /// Where its HostApi listens.
    pub control: HostAddress,
    /// Where it takes requests.
    pub ingress: HostAddress,
    /// Its failure domain.
    pub zone: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it joined.
    pub joined_at: Timestamp,
    /// What the operator lets it do.
    #[serde(default)]
    pub duty: HostDuty,
}

/// A service and where its database is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// Its identity.
    pub id: ServiceId,
    /// Its name.
    pub name: ServiceName,
    /// Its kind.
    pub kind: ServiceKind,
    /// Its org.
    pub org: OrgName,
    /// Its space.
    pub space: SpaceName,
    /// The host that has its database.
    pub owner: HostId,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A bearer token: what it may do, and the hash of its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// What it may do.
    #[serde(flatten)]
    pub token: Token,
    /// SHA-256 of the secret in hexadecimal.
    pub sha256: String,
}

impl fmt::Debug for TokenRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRecord").field("token", &self.token).finish_non_exhaustive()
    }
}

/// A join token; its key is the hash of its secret. Stays after use, so that a replay is told apart
/// from a guess.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRecord {
    /// Who made it.
    pub created_by: String,
    /// Refused after this.
    pub expires_at: Timestamp,
    /// The host that used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<HostId>,
}

/// A component that was uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentRecord {
    /// Which.
    pub digest: Digest,
    /// Its size.
    pub size: Bytes,
    /// When it was uploaded, or last asked for.
    pub created_at: Timestamp,
    /// Kinds of service that its imports use. `None`: it was uploaded before this was looked at, or cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<BTreeSet<ServiceKind>>,
}

/// A revision in the store: env is not in it but sealed beside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StoredRevision {
    pub(crate) revision: Revision,
    pub(crate) sealed_env: String,
}

/// Everything that the planner decides from, of one moment.
#[derive(Debug, Clone)]
pub struct Desired {
    /// The moment.
    pub revision: StoreRevision,
    /// Every app with its version.
    pub apps: Vec<(App, StoreRevision)>,
    /// Current and stable revisions of every app, and those that were asked for, env opened.
    pub revisions: BTreeMap<(AppName, RevisionNumber), Revision>,
    /// Hosts that joined.
    pub hosts: Vec<HostRecord>,
    /// Services.
    pub services: Vec<ServiceRecord>,
    /// Every policy.
    pub policies: Policies,
    /// Services that were deleted and whose owner has not yet confirmed that the database is gone.
    pub deleted_services: Vec<ServiceRecord>,
}
