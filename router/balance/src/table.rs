//! The route table: host name, then the longest path prefix on whole segments.
//!
//! A table is immutable. The control plane builds a new one for each change and swaps it in; a
//! request that has found its entry goes on with it.

use std::collections::HashMap;
use std::sync::Arc;

use marcato_api::{AppName, InstanceId, Limits, Route};

use crate::debug::DebugKey;
use crate::endpoint::{Endpoint, EndpointSpec};
use crate::stats::AppStats;

/// What the control plane says of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppSpec {
    /// Its name.
    pub app: AppName,
    /// Whether an operator stopped it: its routes answer 503 at once.
    pub stopped: bool,
    /// The limits of the revision that should serve.
    pub limits: Limits,
    /// Where its requests come from.
    pub routes: Vec<Route>,
    /// Instances that take requests now.
    pub endpoints: Vec<EndpointSpec>,
    /// What debug tokens of this app are checked with.
    pub debug: DebugKey,
}

/// An app as the request path sees it.
#[derive(Debug)]
pub struct AppEntry {
    /// Its name.
    pub app: AppName,
    /// Whether an operator stopped it.
    pub stopped: bool,
    /// The limits of the revision that should serve.
    pub limits: Limits,
    /// Where its requests come from.
    pub routes: Vec<Route>,
    /// Instances that take requests now.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// What debug tokens of this app are checked with.
    pub debug: DebugKey,
    /// What the request path counts.
    pub stats: Arc<AppStats>,
}

/// Path prefixes of one host name.
type Prefixes = Vec<(Box<str>, Arc<AppEntry>)>;

/// Which app answers where.
#[derive(Debug, Default)]
pub struct RouteTable {
    version: u64,
    apps: Vec<Arc<AppEntry>>,
    /// Prefixes of a host, longest first, without their trailing `/`.
    hosts: HashMap<Box<str>, Prefixes>,
}

impl RouteTable {
    /// A table without routes, of version 0.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// The version that it was built with.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A table of these apps. An endpoint that `previous` has just so is kept, with its in-flight
    /// count and breaker, and an app keeps its numbers. When two apps claim a route, the first one has it: the control plane
    /// refuses such a claim, and one that slips through must not depend on the weather.
    #[must_use]
    pub fn build(version: u64, apps: Vec<AppSpec>, previous: &RouteTable) -> RouteTable {
        let known: HashMap<&InstanceId, &Arc<Endpoint>> =
            previous.apps.iter().flat_map(|a| &a.endpoints).map(|e| (&e.instance, e)).collect();
        let counted: HashMap<&AppName, &Arc<AppStats>> = previous.apps.iter().map(|a| (&a.app, &a.stats)).collect();
        let mut table = RouteTable { version, apps: Vec::with_capacity(apps.len()), hosts: HashMap::new() };
        for spec in apps {
            let endpoints = spec
                .endpoints
                .into_iter()
                .map(|e| match known.get(&e.instance) {
                    Some(old) if old.is(&e) => Arc::clone(old),
                    _ => Arc::new(Endpoint::new(e)),
                })
                .collect();
            let stats = counted.get(&spec.app).map_or_else(Arc::default, |s| Arc::clone(s));
            let entry = Arc::new(AppEntry {
                app: spec.app,
                stopped: spec.stopped,
                limits: spec.limits,
                routes: spec.routes,
                endpoints,
                debug: spec.debug,
                stats,
            });
            for route in &entry.routes {
                let host = route.host.to_ascii_lowercase().into_boxed_str();
                let prefixes = table.hosts.entry(host).or_default();
                let prefix = route.path.trim_end_matches('/');
                if prefixes.iter().all(|(p, _)| **p != *prefix) {
                    prefixes.push((prefix.into(), Arc::clone(&entry)));
                }
            }
            table.apps.push(entry);
        }
        for prefixes in table.hosts.values_mut() {
            prefixes.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        }
        table
    }

    /// The app that answers at `host` (lower case, without port and trailing dot) and `path` (as
    /// the client sent it, without the query).
    #[must_use]
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<AppEntry>> {
        let prefixes = self.hosts.get(host)?;
        prefixes.iter().find(|(prefix, _)| covers(prefix, path)).map(|(_, entry)| entry)
    }

    /// Whether any app has a route on this host name.
    #[must_use]
    pub fn has_host(&self, host: &str) -> bool {
        self.hosts.contains_key(host)
    }

    /// Every app, in the order in which it was built.
    pub fn apps(&self) -> impl Iterator<Item = &Arc<AppEntry>> {
        self.apps.iter()
    }
}

/// Whether `prefix` (without trailing `/`; empty is the root) covers `path` on whole segments.
fn covers(prefix: &str, path: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}
