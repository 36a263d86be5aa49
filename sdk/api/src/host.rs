//! What a host is told (`HostConfig`) and what it reports (`Inventory`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    AppBudget, AppName, Bytes, Digest, Generation, HostId, InstanceId, Isolation, OrgName, RevisionConfig,
    RevisionNumber, ServiceId, ServiceKind, SpaceName, WorkerStatus,
};

/// Where a host listens: `tcp:127.0.0.1:7301` or `unix:/run/marcato/ingress.sock`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HostAddress {
    /// TCP; always mutual TLS.
    Tcp(SocketAddr),
    /// A Unix socket on the same machine; peers are told apart by user id.
    Unix(PathBuf),
}

// By hand: the derive has no way to say that an enum travels as text.
#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for HostAddress {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        let text = utoipa::openapi::schema::Type::String;
        utoipa::openapi::schema::ObjectBuilder::new()
            .schema_type(text)
            .description(Some("`tcp:IP:PORT` or `unix:/PATH`"))
            .build()
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for HostAddress {}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(a) => write!(f, "tcp:{a}"),
            Self::Unix(p) => write!(f, "unix:{}", p.display()),
        }
    }
}

impl FromStr for HostAddress {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(path) = s.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(format!("address {s:?}: a unix socket needs an absolute path"));
            }
            return Ok(Self::Unix(path.into()));
        }
        let tcp = s.strip_prefix("tcp:").unwrap_or(s);
        tcp.parse().map(Self::Tcp).map_err(|_| format!("address {s:?}: expected tcp:IP:PORT or unix:/PATH"))
    }
}

impl TryFrom<String> for HostAddress {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<HostAddress> for String {
    fn from(a: HostAddress) -> String {
        a.to_string()
    }
}

/// Body of `PUT /v1/config`: everything that a host should run. Replaces what it had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostConfig {
    /// Refused (409) when older than what the host holds.
    pub generation: Generation,
    /// The instances it should run.
    pub instances: Vec<InstanceSpec>,
    /// Services that its instances use, or that it owns.
    pub services: Vec<ServiceSpec>,
    /// The other hosts, for services that they own.
    pub peers: Vec<Peer>,
}

/// One instance to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Its id.
    pub id: InstanceId,
    /// Its app.
    pub app: AppName,
    /// The app's org.
    pub org: OrgName,
    /// The app's space.
    pub space: SpaceName,
    /// Its revision.
    pub revision: RevisionNumber,
    /// Its component.
    pub digest: Digest,
    /// What it runs with, env in clear (the transport is mutual TLS; the ledger seals it).
    pub config: RevisionConfig,
    /// Service ids by binding name.
    pub bindings: BTreeMap<String, ServiceId>,
    /// Serve, or finish what is in flight and take no more.
    pub state: InstanceState,
    /// Which worker process it runs in.
    #[serde(default)]
    pub isolation: Isolation,
    /// What the operator lets its app have on this host.
    #[serde(default)]
    pub budget: AppBudget,
}

/// What an instance should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Take requests.
    Running,
    /// Finish requests in flight, refuse new ones.
    Draining,
}

/// A service that a host owns or uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Its id.
    pub id: ServiceId,
    /// Its kind.
    pub kind: ServiceKind,
    /// The host that has its database; every write happens there.
    pub owner: HostId,
    /// True on the owner when the service was deleted: remove the database.
    #[serde(default)]
    pub deleted: bool,
    /// On the owner: the other hosts that may use it, for they have instances that are bound to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<HostId>,
}

/// Another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub id: HostId,
    /// Where its HostApi listens (mutual TLS, on TCP and Unix sockets alike).
    pub control: HostAddress,
}

/// `GET /v1/inventory`: all that a host has, as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Which host.
    pub host: HostId,
    /// Its release.
    pub version: String,
    /// When its daemon started.
    pub started_at: Timestamp,
    /// The config that it holds.
    pub generation: Generation,
    /// What it has to give.
    pub capacity: HostCapacity,
    /// What is used.
    pub used: HostUsage,
    /// Components that it knows.
    pub components: Vec<ComponentStatus>,
    /// Instances that it runs.
    pub instances: Vec<InstanceStatus>,
    /// Services that it owns.
    pub services: Vec<ServiceStatus>,
    /// Whether its ingress is on TCP and needs a certificate.
    #[serde(default)]
    pub ingress_tls: bool,
    /// From when to when that certificate is good; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_certificate: Option<CertificateTerm>,
    /// From when to when the certificate that it shows is good; absent from hosts that do not renew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateTerm>,
    /// The processes that run its instances.
    #[serde(default)]
    pub workers: Vec<WorkerStatus>,
}

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateTerm {
    /// Refused before this.
    pub not_before: Timestamp,
    /// Refused after this.
    pub not_after: Timestamp,
}

impl CertificateTerm {
    /// When a successor should be made: after two thirds of its life.
    #[must_use]
    pub fn renewal_due_at(&self) -> Timestamp {
        let (begin, end) = (self.not_before.as_second(), self.not_after.as_second());
        Timestamp::from_second(begin + end.saturating_sub(begin) / 3 * 2).unwrap_or(self.not_after)
    }
}

/// Answer of `POST /v1/certificate-request`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// PKCS#10 in PEM. Only its public key counts.
    pub csr_pem: String,
}

/// Body of `PUT /v1/certificate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCertificate {
    /// The chain in PEM, the host's own certificate first.
    pub certificate_pem: String,
}

/// What a host has to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostCapacity {
    /// Memory for sandboxes.
    pub memory_bytes: Bytes,
    /// CPU in thousandths of a core.
    pub cpu_millis: u64,
    /// Most live sandboxes at once.
    pub sandboxes: u32,
}

/// What a host uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostUsage {
    /// Resident memory of the daemon.
    pub resident_bytes: Bytes,
    /// Linear memory of live sandboxes.
    pub sandbox_bytes: Bytes,
    /// Live sandboxes.
    pub sandboxes: u32,
}

/// A component on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentStatus {
    /// Which.
    pub digest: Digest,
    /// How it stands.
    pub state: ComponentState,
    /// Why it failed, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a component stands on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentState {
    /// Its bytes are here; it compiles, or waits to.
    Compiling,
    /// Its code is in the cache.
    Ready,
    /// It does not compile; see `reason`.
    Failed,
}

/// An instance on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Which.
    pub id: InstanceId,
    /// Its app.
    pub app: AppName,
    /// Its revision.
    pub revision: RevisionNumber,
    /// How it stands.
    pub phase: InstancePhase,
    /// Requests that run now.
    pub in_flight: u32,
    /// Requests that wait now.
    pub queued: u32,
    /// Where its worker takes requests; absent from hosts that have one ingress for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<HostAddress>,
    /// Totals since the instance started.
    pub counters: InstanceCounters,
    /// Limits that were used or fired; those that are not here never were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitUsage>,
    /// Why it failed, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far a limit is used. Sizes are in bytes and times in milliseconds, as the name says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LimitUsage {
    /// Its name, as in docs/limits.md.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: Cow<'static, str>,
    /// What it is counted over.
    pub scope: LimitScope,
    /// The limit; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// What is used now; 0 for limits of a call, a request or a sandbox, of which there are many at once.
    pub used: u64,
    /// The most that was ever used; 0 where nothing is measured.
    pub peak: u64,
    /// How often it fired.
    pub fired: u64,
}

/// What a limit is counted over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum LimitScope {
    /// One call from guest to host.
    Call,
    /// One request.
    Request,
    /// One sandbox.
    Sandbox,
    /// All sandboxes of an instance.
    Instance,
    /// All instances of an app on one host.
    App,
    /// All apps of a host.
    Host,
}

/// How an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum InstancePhase {
    /// Told, but its component is not on the host or not compiled yet.
    Pending,
    /// It takes requests.
    Ready,
    /// It finishes what it has.
    Draining,
    /// It cannot run; see `reason`.
    Failed,
}

/// Totals of one instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceCounters {
    /// Requests that a guest answered.
    pub requests: u64,
    /// Requests that trapped or gave no answer.
    pub failures: u64,
    /// Requests that a guest was started for, whatever came of them: those of the two above, and those whose client left.
    #[serde(default)]
    pub started: u64,
    /// CPU time of all requests' guests, in microseconds, measured.
    pub cpu_us: u64,
    /// Sandboxes made.
    pub sandboxes: u64,
    /// Linear memory times the time that it was held, in byte-milliseconds; begins anew after 2⁶⁴.
    #[serde(default)]
    pub memory_byte_ms: u64,
    /// Bytes of requests, heads and bodies.
    #[serde(default)]
    pub bytes_in: u64,
    /// Bytes of responses, heads and bodies.
    #[serde(default)]
    pub bytes_out: u64,
}

/// A service on its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Which.
    pub id: ServiceId,
    /// Whether its database opens and answers.
    pub ready: bool,
    /// Size on disk.
    pub bytes: Bytes,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
