//! Where each object lives in the store. One place, so that no two repositories disagree.

use marcato_api::{AppName, Digest, HostId, OrgName, PolicyScope, RevisionNumber, Route, ServiceId, ServiceName};

pub(crate) const APPS: &str = "apps/";
pub(crate) const HOSTS: &str = "hosts/";
pub(crate) const SERVICES: &str = "services/";
pub(crate) const TOMBSTONES: &str = "tombstones/";
pub(crate) const TOKENS: &str = "tokens/";
pub(crate) const JOIN_TOKENS: &str = "join-tokens/";
pub(crate) const COMPONENTS: &str = "components/";
pub(crate) const EVENTS: &str = "events/";
pub(crate) const ROUTES: &str = "routes/";
pub(crate) const POLICIES: &str = "policies/";
pub(crate) const PLACEMENTS: &str = "placements";
/// What debug tokens hang on, sealed.
pub(crate) const DEBUG_SECRET: &str = "debug-secret";

pub(crate) fn app(name: &AppName) -> String {
    format!("{APPS}{name}")
}

pub(crate) fn revisions(app: &AppName) -> String {
    format!("revisions/{app}/")
}

pub(crate) fn revision(app: &AppName, number: RevisionNumber) -> String {
    format!("revisions/{app}/{:020}", number.0)
}

/// The revision number last given to an app of this name; outlives the app, so that none is used twice.
pub(crate) fn last_revision(app: &AppName) -> String {
    format!("last-revisions/{app}")
}

pub(crate) fn host(id: &HostId) -> String {
    format!("{HOSTS}{id}")
}

pub(crate) fn service(name: &ServiceName) -> String {
    format!("{SERVICES}{name}")
}

pub(crate) fn tombstone(id: &ServiceId) -> String {
    format!("{TOMBSTONES}{id}")
}

pub(crate) fn token(name: &str) -> String {
    format!("{TOKENS}{name}")
}

pub(crate) fn policy(scope: &PolicyScope) -> String {
    format!("{POLICIES}{scope}")
}

/// Written by whoever makes an app in an org whose number of apps is bounded.
pub(crate) fn app_count(org: &OrgName) -> String {
    format!("app-counts/{org}")
}

/// `hash`: SHA-256 in hexadecimal.
pub(crate) fn join_token(hash: &str) -> String {
    format!("{JOIN_TOKENS}{hash}")
}

pub(crate) fn component(digest: &Digest) -> String {
    format!("{COMPONENTS}{}", digest.hex())
}

pub(crate) fn event(sequence: u64) -> String {
    format!("{EVENTS}{sequence:020}")
}

/// One key per route, so that two apps cannot take the same at once.
pub(crate) fn route(route: &Route) -> String {
    format!("{ROUTES}{route}")
}
