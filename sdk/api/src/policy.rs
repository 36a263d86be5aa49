//! What operators set per cluster, org, space or app: the isolation class, quotas, shares of the CPU.
//!
//! A policy is a set of optional settings at one scope; what holds for an app is, setting by setting, the nearest
//! scope's: app over space over org over cluster. Quotas bound what a manifest may ask for; the rest goes to the host
//! with the instance ([`Isolation`], [`AppBudget`]).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{App, AppName, Bytes, IdError, LimitsError, Millis, OrgName, RevisionConfig, SpaceName, StoreRevision};

/// Which process an app's instances run in. A class for a virtual machine of its own comes after these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum IsolationClass {
    /// One worker process for all apps of a trust group on a host.
    #[default]
    Shared,
    /// A worker process of the app's own on each host.
    Process,
}

impl IsolationClass {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Process => "process",
        }
    }
}

impl fmt::Display for IsolationClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for IsolationClass {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "shared" => Ok(Self::Shared),
            "process" => Ok(Self::Process),
            _ => Err(format!("isolation class {s:?}: expected shared or process")),
        }
    }
}

/// The isolation of one instance, resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Isolation {
    /// Which process.
    pub class: IsolationClass,
    /// Apps of one group trust each other enough to share a process. Empty: the group of all that have none.
    /// Means nothing with the class `process`.
    pub group: String,
}

impl Isolation {
    /// The name of the worker process on its host: `shared`, `shared-GROUP` or `app-NAME`.
    #[must_use]
    pub fn worker(&self, app: &AppName) -> String {
        match self.class {
            IsolationClass::Shared if self.group.is_empty() => "shared".into(),
            IsolationClass::Shared => format!("shared-{}", self.group),
            IsolationClass::Process => format!("app-{app}"),
        }
    }
}

/// What the operator gives an app on each host, beside the limits of its revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct AppBudget {
    /// Linear memory over all instances of the app on one host. `None`: what its instances may have.
    pub app_memory_bytes: Option<Bytes>,
    /// Memory that a host holds for all sandboxes of the app: bodies in flight, header fields, handles, calls.
    pub app_buffer_bytes: Bytes,
    /// The app's share of the CPU beside other apps (1 to 1,000).
    pub cpu_weight: u32,
    /// CPU of all the app's instances on one host, in thousandths of a core; slowed beyond. `None`: as its share allows.
    pub cpu_cap_millis: Option<u32>,
    /// Clocks that are too coarse to time a neighbour with.
    pub coarse_clocks: bool,
    /// Whether outbound requests may reach private addresses. `None`: as the host says.
    pub allow_private_egress: Option<bool>,
    /// Outbound requests in flight, over the app on one host. `None`: the host's default.
    pub outbound_in_flight: Option<u32>,
    /// Log bytes in a second, over the app on one host. `None`: the host's default.
    pub log_bytes_per_s: Option<Bytes>,
}

impl AppBudget {
    /// The share of an app for which nothing is set.
    pub const DEFAULT_WEIGHT: u32 = 100;
}

impl Default for AppBudget {
    fn default() -> Self {
        Self {
            app_memory_bytes: None,
            app_buffer_bytes: Bytes::mib(64),
            cpu_weight: Self::DEFAULT_WEIGHT,
            cpu_cap_millis: None,
            coarse_clocks: false,
            allow_private_egress: None,
            outbound_in_flight: None,
            log_bytes_per_s: None,
        }
    }
}

macro_rules! policy {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// What one scope sets. Absent: as the next wider scope says.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(deny_unknown_fields, default)]
        pub struct Policy {
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<$type>,)*
        }

        impl Policy {
            /// The settings by name, in the order in which they are shown.
            pub const FIELDS: &'static [&'static str] = &[$(stringify!($name),)*];

            /// Fills what is not set from a wider scope, and tells which settings came from there.
            pub fn inherit(&mut self, wider: &Self) -> Vec<&'static str> {
                let mut filled = Vec::new();
                $(if self.$name.is_none() && wider.$name.is_some() {
                    self.$name.clone_from(&wider.$name);
                    filled.push(stringify!($name));
                })*
                filled
            }

            /// Removes a setting. False when there is none of this name.
            pub fn unset(&mut self, field: &str) -> bool {
                match field {
                    $(stringify!($name) => self.$name = None,)*
                    _ => return false,
                }
                true
            }

            /// Puts what `changes` sets over what is set here.
            pub fn overlay(&mut self, changes: &Self) {
                $(if changes.$name.is_some() {
                    self.$name.clone_from(&changes.$name);
                })*
            }
        }
    };
}

policy! {
    /// Which process instances run in.
    isolation: IsolationClass,
    /// The trust group of the class `shared`: a name as apps have; an app's own, an org's, …
    group: String,
    /// Most `limits.memory_bytes` of a revision.
    max_memory_bytes: Bytes,
    /// Most `limits.instance_memory_bytes` of a revision.
    max_instance_memory_bytes: Bytes,
    /// Most `limits.buffer_bytes` of a revision.
    max_buffer_bytes: Bytes,
    /// Most `limits.cpu_ms` of a revision.
    max_cpu_ms: Millis,
    /// Most `limits.time_ms` of a revision.
    max_time_ms: Millis,
    /// Most `limits.first_byte_ms` of a revision.
    max_first_byte_ms: Millis,
    /// Most `limits.idle_ms` of a revision.
    max_idle_ms: Millis,
    /// Most `limits.request_body_bytes` of a revision.
    max_request_body_bytes: Bytes,
    /// Most `limits.response_body_bytes` of a revision.
    max_response_body_bytes: Bytes,
    /// Most `limits.outbound_requests` of a revision.
    max_outbound_requests: u32,
    /// Most `limits.outbound_concurrent` of a revision.
    max_outbound_concurrent: u32,
    /// Most `limits.outbound_bytes` of a revision.
    max_outbound_bytes: Bytes,
    /// Most `concurrency` of a revision.
    max_concurrency: u32,
    /// Most `queue` of a revision.
    max_queue: u32,
    /// Longest component of a revision.
    max_component_bytes: Bytes,
    /// Most instances of an app.
    max_instances: u32,
    /// Most apps of an org; at the scopes cluster and org only.
    max_apps: u32,
    /// Linear memory over all instances of an app on one host.
    app_memory_bytes: Bytes,
    /// Memory that one host holds for all sandboxes of an app: bodies in flight, header fields, handles, calls.
    app_buffer_bytes: Bytes,
    /// Outbound requests in flight over all instances of an app on one host.
    app_outbound_concurrent: u32,
    /// Log bytes of an app on one host in a second.
    log_bytes_per_s: Bytes,
    /// An app's share of the CPU beside other apps (1 to 1,000; 100 where nothing is set).
    cpu_weight: u32,
    /// CPU of all an app's instances on one host, in thousandths of a core; slowed beyond.
    cpu_cap_millis: u32,
    /// Clocks that are too coarse to time a neighbour with.
    coarse_clocks: bool,
    /// Whether outbound requests may reach private addresses.
    allow_private_egress: bool,
}

/// A quota that a configuration does not keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// The field of the configuration, as the API spells it.
    pub field: &'static str,
    /// What is asked for.
    pub value: u64,
    /// The most allowed.
    pub quota: u64,
    /// The policy's setting that says so.
    pub setting: &'static str,
}

impl Policy {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks every number against its range, the group's name, and that the scope can have what is set.
    pub fn validate(&self, scope: &PolicyScope) -> Result<(), PolicyError> {
        for (field, value, min, max) in self.numbers() {
            if let Some(value) = value.filter(|v| !(min..=max).contains(v)) {
                return Err(LimitsError { field, value, min, max }.into());
            }
        }
        if let Some(group) = self.group.as_deref().filter(|g| !g.is_empty()) {
            // The worker's name is made of it.
            AppName::new(group).map_err(|_| PolicyError::Group(group.chars().take(80).collect()))?;
        }
        if self.max_apps.is_some() && !matches!(scope, PolicyScope::Cluster | PolicyScope::Org(_)) {
            return Err(PolicyError::Scope("max_apps"));
        }
        Ok(())
    }

    /// Every number with its range.
    fn numbers(&self) -> Vec<(&'static str, Option<u64>, u64, u64)> {
        let bytes = |b: Option<Bytes>| b.map(|b| b.0);
        let millis = |m: Option<Millis>| m.map(|m| m.0);
        let number = |n: Option<u32>| n.map(u64::from);
        vec![
            ("max_memory_bytes", bytes(self.max_memory_bytes), 1 << 16, 1 << 30),
            ("max_instance_memory_bytes", bytes(self.max_instance_memory_bytes), 1 << 16, 64 << 30),
            ("max_buffer_bytes", bytes(self.max_buffer_bytes), 256 << 10, 64 << 20),
            ("max_cpu_ms", millis(self.max_cpu_ms), 1, 600_000),
            ("max_time_ms", millis(self.max_time_ms), 1, 3_600_000),
            ("max_first_byte_ms", millis(self.max_first_byte_ms), 1, 3_600_000),
            ("max_idle_ms", millis(self.max_idle_ms), 1, 3_600_000),
            ("max_request_body_bytes", bytes(self.max_request_body_bytes), 0, 1 << 40),
            ("max_response_body_bytes", bytes(self.max_response_body_bytes), 0, 1 << 40),
            ("max_outbound_requests", number(self.max_outbound_requests), 0, 10_000),
            ("max_outbound_concurrent", number(self.max_outbound_concurrent), 0, 256),
            ("max_outbound_bytes", bytes(self.max_outbound_bytes), 0, 1 << 40),
            ("max_concurrency", number(self.max_concurrency), 1, 10_000),
            ("max_queue", number(self.max_queue), 0, 100_000),
            ("max_component_bytes", bytes(self.max_component_bytes), 0, 64 << 20),
            ("max_instances", number(self.max_instances), 0, 100),
            ("max_apps", number(self.max_apps), 0, 1_000_000),
            ("app_memory_bytes", bytes(self.app_memory_bytes), 1 << 16, 1 << 40),
            ("app_buffer_bytes", bytes(self.app_buffer_bytes), 256 << 10, 1 << 40),
            ("app_outbound_concurrent", number(self.app_outbound_concurrent), 0, 100_000),
            ("log_bytes_per_s", bytes(self.log_bytes_per_s), 0, 1 << 30),
            ("cpu_weight", number(self.cpu_weight), 1, 1_000),
            ("cpu_cap_millis", number(self.cpu_cap_millis), 1, 1_000_000),
        ]
    }

    /// A number by its setting's name; none for what is not set, and for what is no number.
    #[must_use]
    pub fn number(&self, setting: &str) -> Option<u64> {
        self.numbers().into_iter().find(|(name, ..)| *name == setting)?.1
    }

    /// Every quota that a configuration with a component of this size does not keep.
    #[must_use]
    pub fn exceeded(&self, config: &RevisionConfig, component: Bytes) -> Vec<Exceeded> {
        let numbers: BTreeMap<_, _> = self.numbers().into_iter().map(|(name, value, ..)| (name, value)).collect();
        asked(config, component)
            .into_iter()
            .filter_map(|(field, value, setting)| {
                let quota = numbers.get(setting).copied().flatten().filter(|q| value > *q)?;
                Some(Exceeded { field, value, quota, setting })
            })
            .collect()
    }
}

/// What a configuration asks for, and which setting bounds it.
fn asked(config: &RevisionConfig, component: Bytes) -> [(&'static str, u64, &'static str); 15] {
    let l = &config.limits;
    [
        ("config.limits.memory_bytes", l.memory_bytes.0, "max_memory_bytes"),
        ("config.limits.instance_memory_bytes", l.instance_memory_bytes.0, "max_instance_memory_bytes"),
        ("config.limits.buffer_bytes", l.buffer_bytes.0, "max_buffer_bytes"),
        ("config.limits.cpu_ms", l.cpu_ms.0, "max_cpu_ms"),
        ("config.limits.time_ms", l.time_ms.0, "max_time_ms"),
        ("config.limits.first_byte_ms", l.first_byte_ms.0, "max_first_byte_ms"),
        ("config.limits.idle_ms", l.idle_ms.0, "max_idle_ms"),
        ("config.limits.request_body_bytes", l.request_body_bytes.0, "max_request_body_bytes"),
        ("config.limits.response_body_bytes", l.response_body_bytes.0, "max_response_body_bytes"),
        ("config.limits.outbound_requests", u64::from(l.outbound_requests), "max_outbound_requests"),
        ("config.limits.outbound_concurrent", u64::from(l.outbound_concurrent), "max_outbound_concurrent"),
        ("config.limits.outbound_bytes", l.outbound_bytes.0, "max_outbound_bytes"),
        ("config.concurrency", u64::from(config.concurrency), "max_concurrency"),
        ("config.queue", u64::from(config.queue), "max_queue"),
        ("digest", component.0, "max_component_bytes"),
    ]
}

/// A policy that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A number out of its range.
    #[error(transparent)]
    Range(#[from] LimitsError),
    /// The group's name is part of a process's name.
    #[error("group {0:?}: use 1 to 63 lower-case letters, digits or inner hyphens, or nothing")]
    Group(String),
    /// This scope cannot have the setting.
    #[error("{0} can be set for the cluster or an org only")]
    Scope(&'static str),
}

impl PolicyError {
    /// The setting at fault.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        match self {
            Self::Range(e) => e.field,
            Self::Group(_) => "group",
            Self::Scope(field) => field,
        }
    }
}

/// What a policy is for: `cluster`, `org:ORG`, `space:ORG:SPACE` or `app:ORG:APP`. An app's policy names its
/// org, so that who takes a name that became free in another org does not get what was granted to the former owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PolicyScope {
    /// All apps.
    Cluster,
    /// The apps of an org.
    Org(OrgName),
    /// The apps of a space.
    Space(OrgName, SpaceName),
    /// One app, while it is of this org.
    App(OrgName, AppName),
}

// By hand: the derive has no way to say that an enum travels as text.
#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for PolicyScope {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::schema::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("`cluster`, `org:ORG`, `space:ORG:SPACE` or `app:ORG:APP`"))
            .build()
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for PolicyScope {}

impl PolicyScope {
    /// The scopes that hold for an app, the nearest first.
    #[must_use]
    pub fn of(app: &App) -> [Self; 4] {
        [
            Self::App(app.org.clone(), app.name.clone()),
            Self::Space(app.org.clone(), app.space.clone()),
            Self::Org(app.org.clone()),
            Self::Cluster,
        ]
    }

    /// The org that it is within.
    #[must_use]
    pub const fn org(&self) -> Option<&OrgName> {
        match self {
            Self::Org(org) | Self::Space(org, _) | Self::App(org, _) => Some(org),
            Self::Cluster => None,
        }
    }
}

impl fmt::Display for PolicyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::Org(org) => write!(f, "org:{org}"),
            Self::Space(org, space) => write!(f, "space:{org}:{space}"),
            Self::App(org, app) => write!(f, "app:{org}:{app}"),
        }
    }
}

impl FromStr for PolicyScope {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let name = |e: IdError| e.to_string();
        let parts: Vec<&str> = s.split(':').collect();
        match parts[..] {
            ["cluster"] => Ok(Self::Cluster),
            ["org", org] => Ok(Self::Org(OrgName::new(org).map_err(name)?)),
            ["space", org, space] => {
                Ok(Self::Space(OrgName::new(org).map_err(name)?, SpaceName::new(space).map_err(name)?))
            }
            ["app", org, app] => Ok(Self::App(OrgName::new(org).map_err(name)?, AppName::new(app).map_err(name)?)),
            _ => {
                let cut: String = s.chars().take(80).collect();
                Err(format!("policy scope {cut:?}: expected cluster, org:ORG, space:ORG:SPACE or app:ORG:APP"))
            }
        }
    }
}

impl TryFrom<String> for PolicyScope {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<PolicyScope> for String {
    fn from(scope: PolicyScope) -> String {
        scope.to_string()
    }
}

/// What holds at one place, and which scope each setting comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Effective {
    /// The settings.
    pub policy: Policy,
    /// The scope of each setting that is set.
    pub sources: BTreeMap<String, PolicyScope>,
}

impl Effective {
    /// Puts scopes together, the nearest first.
    #[must_use]
    pub fn of<'a>(scopes: impl IntoIterator<Item = (PolicyScope, &'a Policy)>) -> Self {
        let mut whole = Self::default();
        for (scope, policy) in scopes {
            let filled = whole.policy.inherit(policy);
            whole.sources.extend(filled.into_iter().map(|f| (f.to_owned(), scope.clone())));
        }
        whole
    }

    /// The scope that a setting comes from.
    #[must_use]
    pub fn source(&self, setting: &str) -> Option<&PolicyScope> {
        self.sources.get(setting)
    }

    /// The isolation that instances get.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        let class = self.policy.isolation.unwrap_or_default();
        let group = match class {
            IsolationClass::Shared => self.policy.group.clone().unwrap_or_default(),
            IsolationClass::Process => String::new(),
        };
        Isolation { class, group }
    }

    /// What instances get beside their revision's limits.
    #[must_use]
    pub fn budget(&self) -> AppBudget {
        let (p, usual) = (&self.policy, AppBudget::default());
        AppBudget {
            app_memory_bytes: p.app_memory_bytes,
            app_buffer_bytes: p.app_buffer_bytes.unwrap_or(usual.app_buffer_bytes),
            outbound_in_flight: p.app_outbound_concurrent,
            coarse_clocks: p.coarse_clocks.unwrap_or(usual.coarse_clocks),
            cpu_weight: p.cpu_weight.unwrap_or(usual.cpu_weight),
            cpu_cap_millis: p.cpu_cap_millis,
            allow_private_egress: p.allow_private_egress,
            log_bytes_per_s: p.log_bytes_per_s,
        }
    }
}

/// `GET /v1/policies/{scope}`: what the scope itself sets, and what holds there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyView {
    /// Which scope.
    pub scope: PolicyScope,
    /// What it sets itself; empty when nothing.
    pub policy: Policy,
    /// What holds there, wider scopes included.
    pub effective: Effective,
    /// Its version for `If-Match`; 0 while it sets nothing.
    pub etag: StoreRevision,
    /// When it was last set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
    /// Who set it (a token's name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_by: Option<String>,
}
