//! The client of the admin API.

use std::sync::Arc;

use futures::Stream;
use http::Method;
use marcato_api::{
    AdminApi, ApiResult, App, AppLimits, AppName, AppStatus, AppSummary, AppUpdate, DebugToken, Digest, Etag, Event,
    HostDetail, HostId, HostRemoval, HostUpdate, HostView, JoinRequest, JoinResponse, JoinToken, LogLine, NewApp,
    NewDebugToken, NewRevision, NewService, NewToken, PageOf, Policy, PolicyScope, PolicyView, Problem, ProblemKind,
    Revision, RevisionNumber, Service, ServiceName, StoreRevision, Token, TokenSecret, UsageQuery, UsageReport,
    admin_paths,
};
use serde::de::DeserializeOwned;

use crate::call::{BACKUP_LIMIT_BYTES, BACKUP_TIMEOUT, Call, Caller, Origin, Payload, UPLOAD_TIMEOUT, escape};
use crate::connect::Target;
use crate::trust::Trust;

/// Calls the admin API at one URL with one token. Cheap to clone; connections are pooled.
#[derive(Clone)]
pub struct AdminClient {
    caller: Caller,
    base: Arc<str>,
}

impl std::fmt::Debug for AdminClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminClient").field("base", &self.base).finish_non_exhaustive()
    }
}

impl AdminClient {
    /// A client of `https://HOST:PORT` that believes `trust` only and sends `token` as bearer.
    /// Does not connect yet. Errors: `Invalid` when the URL or the token cannot be one.
    pub fn new(base_url: &str, trust: &Trust, token: Option<&str>) -> ApiResult<Self> {
        let origin = Origin::parse(base_url)?;
        let tls = trust.client_config().map_err(|e| Problem::new(ProblemKind::Internal, e.to_string()))?;
        let target = Target::Tcp(origin.host, origin.port);
        let caller =
            Caller::new(target, origin.server_name, tls, &origin.base, &format!("the admin API at {base_url}"));
        let caller = match token {
            Some(token) => caller.with_bearer(token)?,
            None => caller,
        };
        Ok(Self { caller, base: origin.base.into() })
    }

    /// `https://HOST:PORT`.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// `GET /healthz`: whether the control plane answers. Needs no token.
    pub async fn health(&self) -> ApiResult<()> {
        self.caller.send(Call::get(admin_paths::HEALTH)).await.map(drop)
    }

    /// `GET /v1/apps/{app}/logs`: the last `tail` lines, and with `follow` all that come after.
    pub async fn logs(
        &self,
        app: &AppName,
        follow: bool,
        tail: u32,
    ) -> ApiResult<impl Stream<Item = ApiResult<LogLine>> + Send + use<>> {
        let path = format!("{}?follow={follow}&tail={tail}", admin_paths::app_logs(app));
        let response = self.caller.open(Call::get(path)).await?;
        Ok(crate::logs::lines(response.into_body()))
    }

    /// [`AdminApi::put_component`] that reports bytes handed to the transport.
    pub async fn put_component_with_progress(
        &self,
        digest: &Digest,
        bytes: impl Into<bytes::Bytes>,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> ApiResult<()> {
        let payload = Payload::Octets(bytes.into(), Some(Arc::new(progress)));
        self.upload(digest, payload).await
    }

    async fn upload(&self, digest: &Digest, payload: Payload) -> ApiResult<()> {
        let call = Call::new(Method::PUT, admin_paths::component(digest)).payload(payload).timeout(UPLOAD_TIMEOUT);
        self.caller.send(call).await.map(drop)
    }

    async fn json<T: DeserializeOwned>(&self, call: Call) -> ApiResult<T> {
        self.caller.send(call).await?.json()
    }

    async fn versioned<T: DeserializeOwned>(&self, call: Call) -> ApiResult<Etag<T>> {
        let answer = self.caller.send(call).await?;
        Ok(Etag { value: answer.json()?, etag: answer.etag()? })
    }

    async fn page<T: DeserializeOwned>(&self, path: &str, after: Option<String>, limit: u32) -> ApiResult<PageOf<T>> {
        let after = after.map(|a| format!("&after={}", escape(&a))).unwrap_or_default();
        self.json(Call::get(format!("{path}?limit={limit}{after}"))).await
    }
}

impl AdminApi for AdminClient {
    async fn list_apps(&self, after: Option<String>, limit: u32) -> ApiResult<PageOf<AppSummary>> {
        self.page(admin_paths::APPS, after, limit).await
    }

    async fn get_app(&self, app: &AppName) -> ApiResult<Etag<App>> {
        self.versioned(Call::get(admin_paths::app(app))).await
    }

    async fn put_app(&self, app: &AppName, new: NewApp) -> ApiResult<Etag<App>> {
        let payload = Payload::json(&new)?;
        self.versioned(Call::new(Method::PUT, admin_paths::app(app)).payload(payload)).await
    }

    async fn update_app(
        &self,
        app: &AppName,
        update: AppUpdate,
        if_match: Option<StoreRevision>,
    ) -> ApiResult<Etag<App>> {
        let payload = Payload::json(&update)?;
        self.versioned(Call::new(Method::PATCH, admin_paths::app(app)).payload(payload).if_match(if_match)).await
    }

    async fn delete_app(&self, app: &AppName, if_match: Option<StoreRevision>) -> ApiResult<()> {
        self.caller.send(Call::new(Method::DELETE, admin_paths::app(app)).if_match(if_match)).await.map(drop)
    }

    async fn app_status(&self, app: &AppName) -> ApiResult<AppStatus> {
        self.json(Call::get(admin_paths::app_status(app))).await
    }

    async fn app_limits(&self, app: &AppName) -> ApiResult<AppLimits> {
        self.json(Call::get(admin_paths::app_limits(app))).await
    }

    async fn create_debug_token(&self, app: &AppName, new: NewDebugToken) -> ApiResult<DebugToken> {
        let payload = Payload::json(&new)?;
        self.json(Call::new(Method::POST, admin_paths::debug_token(app)).payload(payload)).await
    }

    async fn list_revisions(&self, app: &AppName, after: Option<String>, limit: u32) -> ApiResult<PageOf<Revision>> {
        self.page(&admin_paths::revisions(app), after, limit).await
    }

    async fn get_revision(&self, app: &AppName, number: RevisionNumber) -> ApiResult<Revision> {
        self.json(Call::get(admin_paths::revision(app, number))).await
    }

    async fn create_revision(
        &self,
        app: &AppName,
        new: NewRevision,
        if_match: Option<StoreRevision>,
    ) -> ApiResult<Revision> {
        let payload = Payload::json(&new)?;
        self.json(Call::new(Method::POST, admin_paths::revisions(app)).payload(payload).if_match(if_match)).await
    }

    async fn has_component(&self, digest: &Digest) -> ApiResult<bool> {
        match self.caller.send(Call::new(Method::HEAD, admin_paths::component(digest))).await {
            Ok(_) => Ok(true),
            Err(problem) if problem.status == 404 => Ok(false),
            Err(problem) => Err(problem),
        }
    }

    async fn put_component(&self, digest: &Digest, bytes: Vec<u8>) -> ApiResult<()> {
        self.upload(digest, Payload::Octets(bytes.into(), None)).await
    }

    async fn list_hosts(&self) -> ApiResult<PageOf<HostView>> {
        self.json(Call::get(admin_paths::HOSTS)).await
    }

    async fn get_host(&self, host: &HostId) -> ApiResult<HostDetail> {
        self.json(Call::get(admin_paths::host(host))).await
    }

    async fn update_host(&self, host: &HostId, update: HostUpdate) -> ApiResult<HostView> {
        self.json(Call::new(Method::PATCH, admin_paths::host(host)).payload(Payload::json(&update)?)).await
    }

    async fn remove_host(&self, host: &HostId, removal: HostRemoval) -> ApiResult<()> {
        let force = if removal.force { "?force=true" } else { "" };
        self.caller.send(Call::new(Method::DELETE, format!("{}{force}", admin_paths::host(host)))).await.map(drop)
    }

    async fn host_metrics(&self, host: &HostId) -> ApiResult<String> {
        Ok(self.caller.send(Call::get(admin_paths::host_metrics(host))).await?.text())
    }

    async fn create_join_token(&self) -> ApiResult<JoinToken> {
        self.json(Call::new(Method::POST, admin_paths::HOST_TOKENS)).await
    }

    async fn join(&self, request: JoinRequest) -> ApiResult<JoinResponse> {
        let payload = Payload::json(&request)?;
        self.json(Call::new(Method::POST, admin_paths::HOST_JOIN).payload(payload)).await
    }

    async fn list_services(&self) -> ApiResult<PageOf<Service>> {
        self.json(Call::get(admin_paths::SERVICES)).await
    }

    async fn put_service(&self, name: &ServiceName, new: NewService) -> ApiResult<Service> {
        let payload = Payload::json(&new)?;
        self.json(Call::new(Method::PUT, admin_paths::service(name)).payload(payload)).await
    }

    async fn delete_service(&self, name: &ServiceName) -> ApiResult<()> {
        self.caller.send(Call::new(Method::DELETE, admin_paths::service(name))).await.map(drop)
    }

    async fn backup_service(&self, name: &ServiceName) -> ApiResult<Vec<u8>> {
        let mut call = Call::get(admin_paths::service_backup(name)).timeout(BACKUP_TIMEOUT);
        call.limit_bytes = BACKUP_LIMIT_BYTES;
        Ok(self.caller.send(call).await?.bytes.into())
    }

    async fn restore_service(&self, name: &ServiceName, bytes: Vec<u8>) -> ApiResult<()> {
        let payload = Payload::Octets(bytes.into(), None);
        let call = Call::new(Method::PUT, admin_paths::service_backup(name)).payload(payload).timeout(BACKUP_TIMEOUT);
        self.caller.send(call).await.map(drop)
    }

    async fn list_policies(&self) -> ApiResult<PageOf<PolicyView>> {
        self.json(Call::get(admin_paths::POLICIES)).await
    }

    async fn get_policy(&self, scope: &PolicyScope) -> ApiResult<Etag<PolicyView>> {
        self.versioned(Call::get(admin_paths::policy(scope))).await
    }

    async fn put_policy(
        &self,
        scope: &PolicyScope,
        policy: Policy,
        if_match: Option<StoreRevision>,
    ) -> ApiResult<Etag<PolicyView>> {
        let payload = Payload::json(&policy)?;
        self.versioned(Call::new(Method::PUT, admin_paths::policy(scope)).payload(payload).if_match(if_match)).await
    }

    async fn delete_policy(&self, scope: &PolicyScope, if_match: Option<StoreRevision>) -> ApiResult<()> {
        self.caller.send(Call::new(Method::DELETE, admin_paths::policy(scope)).if_match(if_match)).await.map(drop)
    }

    async fn usage(&self, query: UsageQuery) -> ApiResult<UsageReport> {
        let mut path = format!("{}?by={}", admin_paths::USAGE, query.by);
        let text = [
            ("from", query.from.map(|t| t.to_string())),
            ("to", query.to.map(|t| t.to_string())),
            ("org", query.org.map(|o| o.to_string())),
            ("app", query.app.map(|a| a.to_string())),
            ("after", query.after),
            ("limit", query.limit.map(|l| l.to_string())),
        ];
        for (name, value) in text {
            if let Some(value) = value {
                path = format!("{path}&{name}={}", escape(&value));
            }
        }
        self.json(Call::get(path)).await
    }

    async fn list_events(&self, after: Option<String>, limit: u32) -> ApiResult<PageOf<Event>> {
        self.page(admin_paths::EVENTS, after, limit).await
    }

    async fn list_tokens(&self) -> ApiResult<PageOf<Token>> {
        self.json(Call::get(admin_paths::TOKENS)).await
    }

    async fn create_token(&self, name: &str, new: NewToken) -> ApiResult<TokenSecret> {
        let payload = Payload::json(&new)?;
        self.json(Call::new(Method::PUT, admin_paths::token(&escape(name))).payload(payload)).await
    }

    async fn delete_token(&self, name: &str) -> ApiResult<()> {
        self.caller.send(Call::new(Method::DELETE, admin_paths::token(&escape(name)))).await.map(drop)
    }

    async fn whoami(&self) -> ApiResult<Token> {
        self.json(Call::get(admin_paths::WHOAMI)).await
    }
}
