//! Apps, revisions, their configuration and what `app show` says of them.
//!
//! An app holds what changes without a new revision (instances, routes, started or stopped); a
//! revision holds what a running instance is made from and never changes.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    AppName, Bytes, Digest, HostId, InstanceId, InstancePhase, Millis, OrgName, RevisionNumber, ServiceName, SpaceName,
    StoreRevision,
};

/// An app as the store keeps it and `GET /v1/apps/{app}` answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct App {
    /// Its name.
    pub name: AppName,
    /// Its organization.
    pub org: OrgName,
    /// Its space.
    pub space: SpaceName,
    /// Whether instances should run.
    pub state: AppState,
    /// How many instances are wanted while started (0 to 100).
    pub instances: u32,
    /// The revision that should serve. `None` before the first push.
    pub current: Option<RevisionNumber>,
    /// The last revision that served in full: a failed roll-out leaves it serving.
    pub stable: Option<RevisionNumber>,
    /// Counts explicit restarts; a higher number replaces every instance.
    pub restarts: u64,
    /// Where requests come from. The default route is `{name}.{cluster domain}` + `/`.
    pub routes: Vec<Route>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// Whether an app should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AppState {
    /// Instances run.
    Started,
    /// None runs; its routes answer 503.
    Stopped,
}

/// A host name and a path prefix that lead to an app.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// A lower-case host name without a port. No wildcard.
    pub host: String,
    /// Begins with `/`; matches whole path segments. `/` matches all.
    #[serde(default = "root_path")]
    pub path: String,
}

fn root_path() -> String {
    "/".into()
}

impl Route {
    /// Parses `host`, `host/path`. Errors name what is wrong, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (host, path) = match text.find('/') {
            Some(at) => (&text[..at], &text[at..]),
            None => (text, "/"),
        };
        let route = Self { host: host.to_ascii_lowercase(), path: path.to_owned() };
        route.validate().map(|()| route)
    }

    /// Checks host and path. Errors name what is wrong, for people.
    pub fn validate(&self) -> Result<(), String> {
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        };
        if self.host.is_empty() || self.host.len() > 253 || !self.host.split('.').all(label) {
            return Err(format!(
                "route host {:?}: expected a lower-case host name such as shop.example.org, without scheme or port",
                self.host
            ));
        }
        let path_ok = self.path.starts_with('/')
            && self.path.len() <= 512
            && !self.path.contains("//")
            && self.path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'%' | b'\\'))
            && self.path.split('/').all(|s| s != "." && s != "..");
        if !path_ok {
            return Err(format!(
                "route path {:?}: expected a prefix such as /api, without query, escapes or dot segments",
                self.path
            ));
        }
        Ok(())
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.host, self.path)
    }
}

/// A revision: a component plus its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Revision {
    /// Its app.
    pub app: AppName,
    /// Its number.
    pub number: RevisionNumber,
    /// Its component.
    pub digest: Digest,
    /// The component's size.
    pub size: Bytes,
    /// What it runs with. Over the admin API, env values read `***`: they are secrets.
    pub config: RevisionConfig,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it (a token's name).
    pub created_by: String,
    /// Why it exists: `push`, `env`, `bind`, …
    pub reason: String,
    /// How its roll-out stands.
    pub phase: RevisionPhase,
    /// Why it failed, when it did; names the limit or the missing import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// How a revision's roll-out stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum RevisionPhase {
    /// Made; its instances start beside the old ones.
    Rolling,
    /// It answered with all its instances at least once.
    Serving,
    /// Another revision took over.
    Superseded,
    /// It could not be compiled or started; the last stable one goes on.
    Failed,
}

/// Everything that an instance is made from, beside the component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RevisionConfig {
    /// Requests that one instance runs at once (1 to 10,000).
    pub concurrency: u32,
    /// Requests that may wait for one of those places (0 to 100,000); more get 503.
    pub queue: u32,
    /// How long a request may wait in that queue; longer gets 503.
    pub queue_timeout_ms: Millis,
    /// What one sandbox may use.
    pub limits: Limits,
    /// Whether a sandbox may serve more than one request.
    pub reuse: Reuse,
    /// Environment and `wasi:config`. Values are secrets.
    pub env: BTreeMap<String, String>,
    /// Services by the name that the guest uses.
    pub bindings: Vec<Binding>,
    /// Outbound HTTP: `host`, `host:port` or `*.host`. Empty: none allowed.
    pub allowed_outbound_hosts: Vec<String>,
    /// On which hosts its instances may be.
    pub placement: PlacementRules,
}

/// On which hosts instances may be, and rather are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PlacementRules {
    /// Only on hosts that have all of these labels (at most 16).
    pub require: BTreeMap<String, String>,
    /// Of hosts that are as good otherwise, the one with most of these (at most 16).
    pub prefer: BTreeMap<String, String>,
    /// CPU that is set aside on the host for each instance, in thousandths of a core; 0: none.
    pub cpu_millis: u32,
    /// Never two instances of one revision on one host: fewer run than are wanted where there are fewer hosts.
    pub one_per_host: bool,
    /// Never on a host with an instance of these apps (at most 16), nor they beside this one.
    pub apart_from: Vec<AppName>,
}

impl Default for RevisionConfig {
    fn default() -> Self {
        Self {
            concurrency: 64,
            queue: 128,
            queue_timeout_ms: Millis::secs(5),
            limits: Limits::default(),
            reuse: Reuse::default(),
            env: BTreeMap::new(),
            bindings: Vec::new(),
            allowed_outbound_hosts: Vec::new(),
            placement: PlacementRules::default(),
        }
    }
}

/// What one sandbox may use. Each is named in the log when it fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Linear memory over all memories of a sandbox (64 KiB to 1 GiB; default 128 MiB). Growth fails in the guest.
    pub memory_bytes: Bytes,
    /// Linear memory over all live sandboxes of an instance (default 512 MiB). New sandboxes: 503.
    pub instance_memory_bytes: Bytes,
    /// From the request's arrival to the response's last byte (1 ms to 1 h; default 30 s). 504.
    pub time_ms: Millis,
    /// From the request's arrival to the head of the response (1 ms to 1 h; default 30 s). 504.
    pub first_byte_ms: Millis,
    /// Longest time without a byte of a response that streams, or of the request's body meanwhile (1 ms to 1 h; default
    /// 10 s). The stream is cut.
    pub idle_ms: Millis,
    /// CPU time of one request (1 ms to 10 min; default 1 s). 504.
    pub cpu_ms: Millis,
    /// Longest request body (0 to 1 TiB; default 16 MiB). 413.
    pub request_body_bytes: Bytes,
    /// Longest response body (default 1 GiB). The stream is cut.
    pub response_body_bytes: Bytes,
    /// Memory that the host holds for one sandbox: bodies in flight, header fields, handles, calls (256 KiB to 64 MiB;
    /// default 8 MiB). The call that would go over it fails.
    pub buffer_bytes: Bytes,
    /// Outbound requests of one request (0 to 10,000; default 32). `connection-limit-reached`.
    pub outbound_requests: u32,
    /// Outbound requests in flight of one request (0 to 256; default 16). `connection-limit-reached`.
    pub outbound_concurrent: u32,
    /// Bytes of the bodies of all outbound requests and their responses, of one request (0 to 1 TiB; default 64 MiB).
    /// `HTTP-request-body-size` or `HTTP-response-body-size`.
    pub outbound_bytes: Bytes,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: Bytes::mib(128),
            instance_memory_bytes: Bytes::mib(512),
            time_ms: Millis::secs(30),
            cpu_ms: Millis::secs(1),
            request_body_bytes: Bytes::mib(16),
            response_body_bytes: Bytes::mib(1024),
            first_byte_ms: Millis::secs(30),
            idle_ms: Millis::secs(10),
            buffer_bytes: Bytes::mib(8),
            outbound_requests: 32,
            outbound_concurrent: 16,
            outbound_bytes: Bytes::mib(64),
        }
    }
}

/// A setting out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value} is not within {min} to {max}")]
pub struct LimitsError {
    /// The field as the manifest and the API spell it.
    pub field: &'static str,
    /// What was asked for.
    pub value: u64,
    /// The least allowed.
    pub min: u64,
    /// The most allowed.
    pub max: u64,
}

impl RevisionConfig {
    /// Checks every number against its range. Errors: the first field out of range.
    pub fn validate(&self) -> Result<(), LimitsError> {
        let l = &self.limits;
        let checks = [
            ("concurrency", u64::from(self.concurrency), 1, 10_000),
            ("queue", u64::from(self.queue), 0, 100_000),
            ("queue_timeout_ms", self.queue_timeout_ms.0, 0, 60_000),
            ("limits.memory_bytes", l.memory_bytes.0, 1 << 16, 1 << 30),
            ("limits.instance_memory_bytes", l.instance_memory_bytes.0, l.memory_bytes.0, 64 << 30),
            ("limits.time_ms", l.time_ms.0, 1, 3_600_000),
            ("limits.cpu_ms", l.cpu_ms.0, 1, 600_000),
            ("limits.request_body_bytes", l.request_body_bytes.0, 0, 1 << 40),
            ("limits.response_body_bytes", l.response_body_bytes.0, 0, 1 << 40),
            ("limits.first_byte_ms", l.first_byte_ms.0, 1, 3_600_000),
            ("limits.idle_ms", l.idle_ms.0, 1, 3_600_000),
            ("limits.buffer_bytes", l.buffer_bytes.0, 256 << 10, 64 << 20),
            ("limits.outbound_requests", u64::from(l.outbound_requests), 0, 10_000),
            ("limits.outbound_concurrent", u64::from(l.outbound_concurrent), 0, 256),
            ("limits.outbound_bytes", l.outbound_bytes.0, 0, 1 << 40),
            ("reuse.max_requests", u64::from(self.reuse.max_requests), 1, 1_000_000),
            ("reuse.concurrent", u64::from(self.reuse.concurrent), 1, 10_000),
            ("env (entries)", self.env.len() as u64, 0, 256),
            ("bindings (entries)", self.bindings.len() as u64, 0, 64),
            ("allowed_outbound_hosts (entries)", self.allowed_outbound_hosts.len() as u64, 0, 256),
        ];
        for (field, value, min, max) in checks {
            if !(min..=max).contains(&value) {
                return Err(LimitsError { field, value, min, max });
            }
        }
        self.placement.validate()?;
        for (name, value) in &self.env {
            let size = (name.len() + value.len()) as u64;
            if name.is_empty() || name.contains(['=', '\0']) || size > 64 << 10 {
                return Err(LimitsError {
                    field: "env (bytes of an entry; a name without '=')",
                    value: size,
                    min: 1,
                    max: 64 << 10,
                });
            }
        }
        Ok(())
    }
}

impl PlacementRules {
    /// Labels that a rule may name.
    const LABELS_MAX: u64 = 16;

    fn validate(&self) -> Result<(), LimitsError> {
        let labels = |rules: &BTreeMap<String, String>| rules.keys().chain(rules.values()).map(String::len).max();
        let bytes = |rules| labels(rules).unwrap_or(0) as u64;
        let checks = [
            ("placement.require (entries)", self.require.len() as u64, 0, Self::LABELS_MAX),
            ("placement.prefer (entries)", self.prefer.len() as u64, 0, Self::LABELS_MAX),
            ("placement.require (bytes of a name or value)", bytes(&self.require), 0, 63),
            ("placement.prefer (bytes of a name or value)", bytes(&self.prefer), 0, 63),
            ("placement.cpu_millis", self.cpu_millis.into(), 0, 1_000_000),
            ("placement.apart_from (entries)", self.apart_from.len() as u64, 0, Self::LABELS_MAX),
        ];
        let wrong = checks.into_iter().find(|(_, value, min, max)| !(min..=max).contains(&value));
        wrong.map_or(Ok(()), |(field, value, min, max)| Err(LimitsError { field, value, min, max }))
    }
}

/// How long a sandbox lives. The default is one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Reuse {
    /// Requests that a sandbox serves before it is thrown away (1: a fresh sandbox each).
    pub max_requests: u32,
    /// Requests that a sandbox serves at once; more than 1 needs a WASI 0.3 component.
    pub concurrent: u32,
    /// An idle sandbox is thrown away after this.
    pub idle_ms: Millis,
}

impl Default for Reuse {
    fn default() -> Self {
        Self { max_requests: 1, concurrent: 1, idle_ms: Millis::secs(1) }
    }
}

/// A service under the name that the guest opens it by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// The name that the guest uses: for keyvalue the bucket, for access the registry.
    pub name: String,
    /// The service.
    pub service: ServiceName,
}

/// Body of `PUT /v1/apps/{app}` when it makes an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewApp {
    /// Its organization.
    #[serde(default = "OrgName::default_org")]
    pub org: OrgName,
    /// Its space.
    #[serde(default = "SpaceName::default_space")]
    pub space: SpaceName,
    /// How many instances.
    #[serde(default = "one")]
    pub instances: u32,
    /// Routes; empty asks for the default one.
    #[serde(default)]
    pub routes: Vec<Route>,
}

fn one() -> u32 {
    1
}

/// Body of `PATCH /v1/apps/{app}`: only what is given changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AppUpdate {
    /// Start or stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<AppState>,
    /// Scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
    /// Replace all routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Route>>,
    /// Serve an existing revision (rollback or forward).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<RevisionNumber>,
    /// Replace every instance, one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<bool>,
}

/// Body of `POST /v1/apps/{app}/revisions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewRevision {
    /// A component that was uploaded; `None` takes the current revision's.
    #[serde(default)]
    pub digest: Option<Digest>,
    /// The whole configuration but `env`; `None` takes the current revision's.
    #[serde(default)]
    pub config: Option<RevisionConfig>,
    /// Changes to env on top of the current revision's (or of `config.env`): a value sets, null removes.
    #[serde(default)]
    pub env: BTreeMap<String, Option<String>>,
    /// Bindings to add, by name, on top.
    #[serde(default)]
    pub bind: Vec<Binding>,
    /// Names of bindings to remove.
    #[serde(default)]
    pub unbind: Vec<String>,
    /// Why, for people: `push`, `env`, `bind`.
    #[serde(default)]
    pub reason: String,
}

/// A line of `marcato apps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppSummary {
    /// The app.
    #[serde(flatten)]
    pub app: App,
    /// Instances that answer now.
    pub ready: u32,
    /// Its version for `If-Match`.
    pub etag: StoreRevision,
}

/// `GET /v1/apps/{app}/status`: desired beside actual.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppStatus {
    /// The app.
    pub app: App,
    /// Its version for `If-Match`.
    pub etag: StoreRevision,
    /// The revision that should serve, env values hidden.
    pub revision: Option<Revision>,
    /// Each instance, on every host.
    pub instances: Vec<InstanceView>,
    /// URLs that lead to it.
    pub urls: Vec<String>,
    /// Why it is not as desired, in words; empty when it is.
    pub notes: Vec<String>,
}

/// An instance as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceView {
    /// Its id.
    pub id: InstanceId,
    /// Where it is.
    pub host: HostId,
    /// Which revision.
    pub revision: RevisionNumber,
    /// How it stands.
    pub phase: InstancePhase,
    /// Requests that run in it now.
    pub in_flight: u32,
    /// Why it failed, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
