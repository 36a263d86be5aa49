//! `marcato.toml`: what a push asks for, as people write it.
//!
//! Owns the file's shape, its units, its schema and its error messages. Does not own what the values
//! mean or their ranges (`marcato_api::RevisionConfig`), nor files other than the manifest. Flow: push reads it, turns it into an
//! app, its services and a revision.

mod fields;
mod parse;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use marcato_api::{
    AppName, Binding, Limits, OrgName, PlacementRules, Reuse, RevisionConfig, Route, ServiceKind, ServiceName,
    SpaceName,
};
use schemars::JsonSchema;
use serde::Deserialize;

pub(crate) use self::fields::{EnvValue, Interval, RouteText, Size};
pub(crate) use self::parse::ManifestError;

/// The file's name.
pub(crate) const FILE_NAME: &str = "marcato.toml";

/// A Marcato app: what `marcato push` makes of the component beside this file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "marcato.toml")]
pub(crate) struct Manifest {
    /// The app's name, unique in the cluster: 1 to 63 lower-case letters, digits or inner hyphens. It is the first
    /// label of the app's default host name.
    #[schemars(with = "String", regex(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    pub(crate) name: AppName,
    /// The component's file, relative to this one.
    #[schemars(with = "String")]
    pub(crate) component: PathBuf,
    /// A folder, relative to this file, whose files the app may read at `/` (at most 10,000 files of 32 MiB together).
    #[schemars(with = "Option<String>")]
    pub(crate) files: Option<PathBuf>,
    /// The organization that owns the app; `default` when absent.
    #[schemars(with = "Option<String>")]
    pub(crate) org: Option<OrgName>,
    /// The space within the organization; `default` when absent.
    #[schemars(with = "Option<String>")]
    pub(crate) space: Option<SpaceName>,
    /// Where requests come from: `host` or `host/path`. Absent: `NAME.DOMAIN`.
    pub(crate) route: Option<RouteText>,
    /// Several routes, instead of `route`.
    pub(crate) routes: Option<Vec<RouteText>>,
    /// How many instances; 1 at the first push, unchanged later, when absent.
    #[schemars(range(min = 0, max = 100))]
    pub(crate) instances: Option<u32>,
    /// Requests that one instance runs at once (default 64).
    #[schemars(range(min = 1, max = 10_000))]
    pub(crate) concurrency: Option<u32>,
    /// Requests that may wait for one of those places (default 128); more get 503.
    #[schemars(range(min = 0, max = 100_000))]
    pub(crate) queue: Option<u32>,
    /// How long a request may wait there (default `5s`, at most `60s`); longer gets 503.
    pub(crate) queue_timeout: Option<Interval>,
    /// What one sandbox may use.
    #[serde(default)]
    pub(crate) limits: LimitsTable,
    /// Whether a sandbox may serve more than one request.
    #[serde(default)]
    pub(crate) reuse: ReuseTable,
    /// Environment and `wasi:config`. Secrets do not belong in this file: `marcato env set` takes them.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, EnvValue>,
    /// Services that the app uses.
    #[serde(default)]
    pub(crate) bindings: Vec<BindingTable>,
    /// Outbound HTTP: `host`, `host:port` or `*.host`. Absent: none is allowed.
    #[serde(default)]
    pub(crate) allowed_outbound_hosts: Vec<String>,
    /// On which hosts instances may be, and rather are.
    #[serde(default)]
    pub(crate) placement: PlacementTable,
}

/// On which hosts instances may be, and rather are; `marcato hosts label` gives hosts their labels.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlacementTable {
    /// Only on hosts with all of these labels, at most 16: `require = { disk = "ssd" }`.
    #[serde(default)]
    pub(crate) require: BTreeMap<String, String>,
    /// Rather on hosts with these, at most 16.
    #[serde(default)]
    pub(crate) prefer: BTreeMap<String, String>,
    /// CPU that is set aside for each instance, in thousandths of a core (default 0: none).
    #[serde(default)]
    pub(crate) cpu_millis: u32,
    /// Never two instances of one revision on one host (default false).
    #[serde(default)]
    pub(crate) one_per_host: bool,
    /// Never on a host with an instance of these apps, at most 16.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(crate) apart_from: Vec<AppName>,
}

/// What one sandbox may use. Each limit is named in the app's log when it fires.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LimitsTable {
    /// Linear memory of one sandbox, `64KiB` to `1GiB` (default `128MiB`).
    pub(crate) memory: Option<Size>,
    /// Linear memory over all live sandboxes of an instance (default `512MiB`).
    pub(crate) instance_memory: Option<Size>,
    /// Wall-clock time of a request, `1ms` to `1h` (default `30s`).
    pub(crate) time: Option<Interval>,
    /// CPU time of a request, `1ms` to `10m` (default `1s`).
    pub(crate) cpu: Option<Interval>,
    /// Longest request body (default `16MiB`).
    pub(crate) request_body: Option<Size>,
    /// Longest response body (default `1GiB`).
    pub(crate) response_body: Option<Size>,
    /// From the request's arrival to the head of the response, `1ms` to `1h` (default `30s`).
    pub(crate) first_byte: Option<Interval>,
    /// Longest time without a byte while a response streams, `1ms` to `1h` (default `10s`).
    pub(crate) idle: Option<Interval>,
    /// Memory that the host holds for one sandbox: bodies in flight, header fields, handles; `256KiB` to `64MiB`
    /// (default `8MiB`).
    pub(crate) buffer: Option<Size>,
    /// Outbound requests of one request (default 32).
    #[schemars(range(min = 0, max = 10_000))]
    pub(crate) outbound_requests: Option<u32>,
    /// Outbound requests in flight of one request (default 16).
    #[schemars(range(min = 0, max = 256))]
    pub(crate) outbound_concurrent: Option<u32>,
    /// Bodies of all outbound requests and their responses, of one request (default `64MiB`).
    pub(crate) outbound: Option<Size>,
}

/// How long a sandbox lives. Absent: one request.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReuseTable {
    /// Requests that a sandbox serves before it is thrown away (default 1).
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) max_requests: Option<u32>,
    /// Requests that a sandbox serves at once (default 1); more than 1 needs a WASI 0.3 component.
    #[schemars(range(min = 1, max = 10_000))]
    pub(crate) concurrent: Option<u32>,
    /// An idle sandbox is thrown away after this (default `1s`).
    pub(crate) idle: Option<Interval>,
}

/// A service under the name that the guest opens it by.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BindingTable {
    /// The name that the guest uses.
    pub(crate) name: String,
    /// The service; it is created when it is not there.
    #[schemars(with = "String")]
    pub(crate) service: ServiceName,
    /// `access` or `keyvalue`.
    #[schemars(with = "fields::Kind")]
    pub(crate) kind: ServiceKind,
}

impl Manifest {
    /// Reads and checks a manifest. Errors name the file, the line and what to write instead.
    pub(crate) fn load(file: &Path) -> Result<Self, ManifestError> {
        let text =
            std::fs::read_to_string(file).map_err(|source| ManifestError::Read { file: file.to_owned(), source })?;
        Self::parse(&text, &file.display().to_string())
    }

    /// Parses and checks a text; `file` is how errors call it.
    pub(crate) fn parse(text: &str, file: &str) -> Result<Self, ManifestError> {
        parse::parse(text, file)
    }

    /// The routes that it names; `None` when it names none.
    pub(crate) fn routes(&self) -> Option<Vec<Route>> {
        match (&self.route, &self.routes) {
            (Some(one), _) => Some(vec![one.0.clone()]),
            (None, Some(many)) => Some(many.iter().map(|r| r.0.clone()).collect()),
            (None, None) => None,
        }
    }

    /// The revision's configuration, without env: that travels as changes, so that what
    /// `marcato env set` put there stays.
    pub(crate) fn config(&self) -> RevisionConfig {
        let base = RevisionConfig::default();
        let (l, r) = (Limits::default(), Reuse::default());
        RevisionConfig {
            concurrency: self.concurrency.unwrap_or(base.concurrency),
            queue: self.queue.unwrap_or(base.queue),
            queue_timeout_ms: self.queue_timeout.map_or(base.queue_timeout_ms, |t| t.0),
            limits: Limits {
                memory_bytes: self.limits.memory.map_or(l.memory_bytes, |s| s.0),
                instance_memory_bytes: self.limits.instance_memory.map_or(l.instance_memory_bytes, |s| s.0),
                time_ms: self.limits.time.map_or(l.time_ms, |t| t.0),
                cpu_ms: self.limits.cpu.map_or(l.cpu_ms, |t| t.0),
                request_body_bytes: self.limits.request_body.map_or(l.request_body_bytes, |s| s.0),
                response_body_bytes: self.limits.response_body.map_or(l.response_body_bytes, |s| s.0),
                first_byte_ms: self.limits.first_byte.map_or(l.first_byte_ms, |t| t.0),
                idle_ms: self.limits.idle.map_or(l.idle_ms, |t| t.0),
                buffer_bytes: self.limits.buffer.map_or(l.buffer_bytes, |s| s.0),
                outbound_requests: self.limits.outbound_requests.unwrap_or(l.outbound_requests),
                outbound_concurrent: self.limits.outbound_concurrent.unwrap_or(l.outbound_concurrent),
                outbound_bytes: self.limits.outbound.map_or(l.outbound_bytes, |s| s.0),
            },
            reuse: Reuse {
                max_requests: self.reuse.max_requests.unwrap_or(r.max_requests),
                concurrent: self.reuse.concurrent.unwrap_or(r.concurrent),
                idle_ms: self.reuse.idle.map_or(r.idle_ms, |t| t.0),
            },
            env: BTreeMap::new(),
            bindings: self
                .bindings
                .iter()
                .map(|b| Binding { name: b.name.clone(), service: b.service.clone() })
                .collect(),
            allowed_outbound_hosts: self.allowed_outbound_hosts.clone(),
            placement: PlacementRules {
                require: self.placement.require.clone(),
                prefer: self.placement.prefer.clone(),
                cpu_millis: self.placement.cpu_millis,
                one_per_host: self.placement.one_per_host,
                apart_from: self.placement.apart_from.clone(),
            },
        }
    }

    /// The env changes of a push onto an app whose current revision has the keys `present`, and the
    /// values that were generated now.
    pub(crate) fn env_changes(&self, present: &[String]) -> (EnvChanges, BTreeMap<String, String>) {
        let mut changes = EnvChanges::new();
        let mut generated = BTreeMap::new();
        for (key, value) in &self.env {
            match value {
                EnvValue::Text(text) => {
                    changes.insert(key.clone(), Some(text.clone()));
                }
                EnvValue::Generate(_) if present.contains(key) => {}
                EnvValue::Generate(bytes) => {
                    let value = fields::random_hex(*bytes);
                    generated.insert(key.clone(), value.clone());
                    changes.insert(key.clone(), Some(value));
                }
            }
        }
        (changes, generated)
    }
}

/// As `marcato_api::NewRevision::env` has them.
pub(crate) type EnvChanges = BTreeMap<String, Option<String>>;

/// The JSON schema, as `docs/marcato.schema.json` holds it.
pub(crate) fn schema() -> String {
    let schema = schemars::schema_for!(Manifest);
    // A schema made of plain maps always serializes.
    serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
