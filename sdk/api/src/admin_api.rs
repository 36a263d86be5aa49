//! AdminApi: what operators and developers ask of the control plane, under `/v1`.
//!
//! Transport: HTTPS with a bearer token. Errors are [`Problem`]s. A changed object carries its
//! version in `ETag`; a write may demand one with `If-Match` and fails with 412 when it is another.

use std::future::Future;

use serde::{Deserialize, Serialize};

use crate::{
    App, AppLimits, AppName, AppStatus, AppSummary, AppUpdate, DebugToken, Digest, Event, HostDetail, HostId,
    HostRemoval, HostUpdate, HostView, JoinRequest, JoinResponse, JoinToken, NewApp, NewDebugToken, NewRevision,
    NewService, NewToken, Policy, PolicyScope, PolicyView, Problem, Revision, RevisionNumber, Service, ServiceName,
    StoreRevision, Token, TokenSecret, UsageQuery, UsageReport,
};

/// What every API call gives.
pub type ApiResult<T> = Result<T, Problem>;

/// An object with its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etag<T> {
    /// The object.
    pub value: T,
    /// Its version, as `ETag` carries it.
    pub etag: StoreRevision,
}

/// A page of a listing: `?limit=` (1 to 1,000, default 100) and `?after=` the last page's `next`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PageOf<T> {
    /// Its entries.
    pub items: Vec<T>,
    /// Set when more follow: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What the control plane can be asked. `if_match` is the version that the object must have.
pub trait AdminApi: Send + Sync {
    /// `GET /v1/apps`.
    fn list_apps(
        &self,
        after: Option<String>,
        limit: u32,
    ) -> impl Future<Output = ApiResult<PageOf<AppSummary>>> + Send;

    /// `GET /v1/apps/{app}`.
    fn get_app(&self, app: &AppName) -> impl Future<Output = ApiResult<Etag<App>>> + Send;

    /// `PUT /v1/apps/{app}`: makes it when it is not there; else answers it unchanged when org, space
    /// fit, and 409 when not.
    fn put_app(&self, app: &AppName, new: NewApp) -> impl Future<Output = ApiResult<Etag<App>>> + Send;

    /// `PATCH /v1/apps/{app}`.
    fn update_app(
        &self,
        app: &AppName,
        update: AppUpdate,
        if_match: Option<StoreRevision>,
    ) -> impl Future<Output = ApiResult<Etag<App>>> + Send;

    /// `DELETE /v1/apps/{app}`: with its revisions and routes; services stay.
    fn delete_app(&self, app: &AppName, if_match: Option<StoreRevision>) -> impl Future<Output = ApiResult<()>> + Send;

    /// `GET /v1/apps/{app}/status`.
    fn app_status(&self, app: &AppName) -> impl Future<Output = ApiResult<AppStatus>> + Send;

    /// `GET /v1/apps/{app}/limits`: every budget, who set it, and how far it is used.
    fn app_limits(&self, app: &AppName) -> impl Future<Output = ApiResult<AppLimits>> + Send;

    /// `POST /v1/apps/{app}/debug-token`: with it, errors of the platform explain themselves.
    fn create_debug_token(
        &self,
        app: &AppName,
        new: NewDebugToken,
    ) -> impl Future<Output = ApiResult<DebugToken>> + Send;

    /// `GET /v1/apps/{app}/revisions`, newest first.
    fn list_revisions(
        &self,
        app: &AppName,
        after: Option<String>,
        limit: u32,
    ) -> impl Future<Output = ApiResult<PageOf<Revision>>> + Send;

    /// `GET /v1/apps/{app}/revisions/{number}`.
    fn get_revision(&self, app: &AppName, number: RevisionNumber) -> impl Future<Output = ApiResult<Revision>> + Send;

    /// `POST /v1/apps/{app}/revisions`: makes a revision and starts its roll-out. The same
    /// component and config as the current one answers that one.
    fn create_revision(
        &self,
        app: &AppName,
        new: NewRevision,
        if_match: Option<StoreRevision>,
    ) -> impl Future<Output = ApiResult<Revision>> + Send;

    /// `HEAD /v1/components/{digest}`.
    fn has_component(&self, digest: &Digest) -> impl Future<Output = ApiResult<bool>> + Send;

    /// `PUT /v1/components/{digest}`: at most 64 MiB.
    fn put_component(&self, digest: &Digest, bytes: Vec<u8>) -> impl Future<Output = ApiResult<()>> + Send;

    /// `GET /v1/hosts`.
    fn list_hosts(&self) -> impl Future<Output = ApiResult<PageOf<HostView>>> + Send;

    /// `GET /v1/hosts/{id}`: a host with its worker processes.
    fn get_host(&self, host: &HostId) -> impl Future<Output = ApiResult<HostDetail>> + Send;

    /// `PATCH /v1/hosts/{id}`: cordon, drain, take into service again, label. Role admin.
    fn update_host(&self, host: &HostId, update: HostUpdate) -> impl Future<Output = ApiResult<HostView>> + Send;

    /// `DELETE /v1/hosts/{id}`: 409 while it has instances or services' data, unless forced. Role admin.
    fn remove_host(&self, host: &HostId, removal: HostRemoval) -> impl Future<Output = ApiResult<()>> + Send;

    /// `GET /v1/hosts/{id}/metrics`: Prometheus text format.
    fn host_metrics(&self, host: &HostId) -> impl Future<Output = ApiResult<String>> + Send;

    /// `POST /v1/hosts/tokens`: a join token, single use. Role admin.
    fn create_join_token(&self) -> impl Future<Output = ApiResult<JoinToken>> + Send;

    /// `POST /v1/hosts/join` with the join token as bearer.
    fn join(&self, request: JoinRequest) -> impl Future<Output = ApiResult<JoinResponse>> + Send;

    /// `GET /v1/services`.
    fn list_services(&self) -> impl Future<Output = ApiResult<PageOf<Service>>> + Send;

    /// `PUT /v1/services/{name}`: makes it, or answers the one that is there when the kind fits.
    fn put_service(&self, name: &ServiceName, new: NewService) -> impl Future<Output = ApiResult<Service>> + Send;

    /// `DELETE /v1/services/{name}`: 409 while bound.
    fn delete_service(&self, name: &ServiceName) -> impl Future<Output = ApiResult<()>> + Send;

    /// `GET /v1/services/{name}/backup`: a consistent copy.
    fn backup_service(&self, name: &ServiceName) -> impl Future<Output = ApiResult<Vec<u8>>> + Send;

    /// `PUT /v1/services/{name}/backup`: replaces the data.
    fn restore_service(&self, name: &ServiceName, bytes: Vec<u8>) -> impl Future<Output = ApiResult<()>> + Send;

    /// `GET /v1/policies`: those that are set, as far as the token's org may see them.
    fn list_policies(&self) -> impl Future<Output = ApiResult<PageOf<PolicyView>>> + Send;

    /// `GET /v1/policies/{scope}`: what is set there, and what holds there. Version 0 while nothing is set.
    fn get_policy(&self, scope: &PolicyScope) -> impl Future<Output = ApiResult<Etag<PolicyView>>> + Send;

    /// `PUT /v1/policies/{scope}`: replaces all that the scope sets. Role admin.
    fn put_policy(
        &self,
        scope: &PolicyScope,
        policy: Policy,
        if_match: Option<StoreRevision>,
    ) -> impl Future<Output = ApiResult<Etag<PolicyView>>> + Send;

    /// `DELETE /v1/policies/{scope}`: the wider scopes hold again. Role admin.
    fn delete_policy(
        &self,
        scope: &PolicyScope,
        if_match: Option<StoreRevision>,
    ) -> impl Future<Output = ApiResult<()>> + Send;

    /// `GET /v1/usage`: what apps used, by period, org and app.
    fn usage(&self, query: UsageQuery) -> impl Future<Output = ApiResult<UsageReport>> + Send;

    /// `GET /v1/events`, newest first.
    fn list_events(&self, after: Option<String>, limit: u32) -> impl Future<Output = ApiResult<PageOf<Event>>> + Send;

    /// `GET /v1/tokens`. Role admin.
    fn list_tokens(&self) -> impl Future<Output = ApiResult<PageOf<Token>>> + Send;

    /// `PUT /v1/tokens/{name}`: makes a token; 409 when the name is taken. Role admin.
    fn create_token(&self, name: &str, new: NewToken) -> impl Future<Output = ApiResult<TokenSecret>> + Send;

    /// `DELETE /v1/tokens/{name}`. Role admin.
    fn delete_token(&self, name: &str) -> impl Future<Output = ApiResult<()>> + Send;

    /// `GET /v1/whoami`.
    fn whoami(&self) -> impl Future<Output = ApiResult<Token>> + Send;
}

/// Paths of the admin API.
pub mod admin_paths {
    use crate::{AppName, Digest, HostId, PolicyScope, RevisionNumber, ServiceName};

    /// Apps.
    pub const APPS: &str = "/v1/apps";
    /// Hosts.
    pub const HOSTS: &str = "/v1/hosts";
    /// Join tokens.
    pub const HOST_TOKENS: &str = "/v1/hosts/tokens";
    /// Joining.
    pub const HOST_JOIN: &str = "/v1/hosts/join";
    /// Services.
    pub const SERVICES: &str = "/v1/services";
    /// Events.
    pub const EVENTS: &str = "/v1/events";
    /// Policies.
    pub const POLICIES: &str = "/v1/policies";
    /// Usage.
    pub const USAGE: &str = "/v1/usage";
    /// Tokens.
    pub const TOKENS: &str = "/v1/tokens";
    /// Who the token is.
    pub const WHOAMI: &str = "/v1/whoami";
    /// The OpenAPI document; needs no token.
    pub const OPENAPI: &str = "/v1/openapi.json";
    /// The router's metrics; needs a token.
    pub const METRICS: &str = "/metrics";
    /// Liveness; needs no token.
    pub const HEALTH: &str = "/healthz";
    /// Release and cluster domain; needs no token.
    pub const VERSION: &str = "/version";

    /// An app.
    #[must_use]
    pub fn app(app: &AppName) -> String {
        format!("{APPS}/{app}")
    }

    /// An app's status.
    #[must_use]
    pub fn app_status(app: &AppName) -> String {
        format!("{APPS}/{app}/status")
    }

    /// An app's logs: `?follow=true&tail=N`, as JSON lines ([`crate::LogLine`]).
    #[must_use]
    pub fn app_logs(app: &AppName) -> String {
        format!("{APPS}/{app}/logs")
    }

    /// An app's budgets.
    #[must_use]
    pub fn app_limits(app: &AppName) -> String {
        format!("{APPS}/{app}/limits")
    }

    /// Debug tokens of an app.
    #[must_use]
    pub fn debug_token(app: &AppName) -> String {
        format!("{APPS}/{app}/debug-token")
    }

    /// What a scope sets.
    #[must_use]
    pub fn policy(scope: &PolicyScope) -> String {
        format!("{POLICIES}/{scope}")
    }

    /// An app's revisions.
    #[must_use]
    pub fn revisions(app: &AppName) -> String {
        format!("{APPS}/{app}/revisions")
    }

    /// A revision.
    #[must_use]
    pub fn revision(app: &AppName, number: RevisionNumber) -> String {
        format!("{APPS}/{app}/revisions/{number}")
    }

    /// A component.
    #[must_use]
    pub fn component(digest: &Digest) -> String {
        format!("/v1/components/{digest}")
    }

    /// A host.
    #[must_use]
    pub fn host(host: &HostId) -> String {
        format!("{HOSTS}/{host}")
    }

    /// A host's metrics.
    #[must_use]
    pub fn host_metrics(host: &HostId) -> String {
        format!("{HOSTS}/{host}/metrics")
    }

    /// A service.
    #[must_use]
    pub fn service(name: &ServiceName) -> String {
        format!("{SERVICES}/{name}")
    }

    /// A service's backup.
    #[must_use]
    pub fn service_backup(name: &ServiceName) -> String {
        format!("{SERVICES}/{name}/backup")
    }

    /// A token.
    #[must_use]
    pub fn token(name: &str) -> String {
        format!("{TOKENS}/{name}")
    }
}
