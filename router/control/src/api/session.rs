//! A caller with a token: what it may do, and the admin API as it sees it.
//!
//! Each verb is in the file of its noun; this one holds the checks that all share.

use marcato_api::{
    AdminApi, ApiResult, App, AppLimits, AppName, AppStatus, AppSummary, AppUpdate, DebugToken, Digest, Etag, Event,
    HostDetail, HostId, HostRemoval, HostUpdate, HostView, JoinRequest, JoinResponse, JoinToken, NewApp, NewDebugToken,
    NewRevision, NewService, NewToken, OrgName, Outcome, PageOf, Policy, PolicyScope, PolicyView, Problem, ProblemKind,
    Revision, RevisionNumber, Role, Service, ServiceName, StoreRevision, Token, TokenSecret, UsageQuery, UsageReport,
};

use super::{Api, state_problem};
use crate::state::{Deed, StateError};

/// A caller with a token. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Session {
    pub(super) api: Api,
    pub(super) token: Token,
}

/// Turns the state's errors into problems.
pub(super) trait OrProblem<T> {
    fn or_problem(self) -> ApiResult<T>;
}

impl<T> OrProblem<T> for Result<T, StateError> {
    fn or_problem(self) -> ApiResult<T> {
        self.map_err(|e| state_problem(&e))
    }
}

impl Session {
    pub(crate) fn new(api: Api, token: Token) -> Self {
        Self { api, token }
    }

    pub(super) fn actor(&self) -> &str {
        &self.token.name
    }

    pub(super) fn deed(&self, action: &'static str, target: String, detail: impl Into<String>) -> Deed {
        Deed::new(self.actor(), action, target, detail)
    }

    /// Demands a role, and an org when the object has one. A refusal is an event.
    pub(super) async fn may(
        &self,
        needed: Role,
        org: Option<&OrgName>,
        action: &'static str,
        target: &str,
    ) -> ApiResult<()> {
        let why = if !self.token.role.includes(needed) {
            format!("{action} needs the role {}; this token has {}", role(needed), role(self.token.role))
        } else {
            match (&self.token.org, org) {
                (None, _) => return Ok(()),
                (Some(own), Some(org)) if own == org => return Ok(()),
                (Some(own), _) => format!("this token is for the org {own} only"),
            }
        };
        self.note(&self.deed(action, target.to_owned(), &why), Outcome::Denied).await;
        Err(Problem::new(ProblemKind::Forbidden, why))
    }

    /// Like [`Self::may`] for what belongs to the whole cluster but may be looked at from every org.
    pub(super) async fn may_look(&self, action: &'static str, target: &str) -> ApiResult<()> {
        self.may(Role::Viewer, self.token.org.as_ref(), action, target).await
    }

    /// Records an attempt that did not succeed. Its own failure is logged: the caller gets the first one.
    pub(super) async fn note(&self, deed: &Deed, outcome: Outcome) {
        if let Err(e) = self.api.state.record(deed, outcome).await {
            tracing::error!(error = %e, action = deed.action, "an event could not be recorded");
        }
    }

    /// Records the failure of a change that was allowed, and hands the problem on.
    pub(super) async fn failed<T>(&self, action: &'static str, target: String, result: ApiResult<T>) -> ApiResult<T> {
        if let Err(problem) = &result
            && problem.kind != ProblemKind::Forbidden
        {
            self.note(&self.deed(action, target, &problem.detail), Outcome::Failed).await;
        }
        result
    }

    /// An app that the caller may see.
    pub(super) async fn visible_app(
        &self,
        app: &AppName,
        needed: Role,
        action: &'static str,
    ) -> ApiResult<(App, StoreRevision)> {
        let found = self.api.state.app(app).await.or_problem()?;
        match found {
            Some(found) => {
                self.may(needed, Some(&found.0.org), action, &format!("app/{app}")).await?;
                Ok(found)
            }
            None => {
                // The role is checked first, so that a wrong role learns nothing about names.
                self.may(needed, self.token.org.as_ref(), action, &format!("app/{app}")).await?;
                Err(Problem::new(ProblemKind::NotFound, format!("there is no app {app}")))
            }
        }
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Admin => "admin",
        Role::Deployer => "deployer",
        Role::Viewer => "viewer",
    }
}

/// 412 when the object is not at the version that the caller wants.
pub(super) fn at_version(found: StoreRevision, if_match: Option<StoreRevision>) -> ApiResult<()> {
    match if_match {
        Some(wanted) if wanted != found => Err(Problem::new(
            ProblemKind::PreconditionFailed,
            format!("it is at version {found}, not {wanted}; read it again"),
        )
        .with_field("If-Match")),
        _ => Ok(()),
    }
}

pub(super) fn invalid(field: &str, why: impl Into<String>) -> Problem {
    Problem::new(ProblemKind::Invalid, why).with_field(field)
}

// The trait that the clients implement as well: both sides of the wire cannot drift apart. Inherent
// methods of the same names do the work.
impl AdminApi for Session {
    async fn list_apps(&self, after: Option<String>, limit: u32) -> ApiResult<PageOf<AppSummary>> {
        Session::list_apps(self, after, limit).await
    }
    async fn get_app(&self, app: &AppName) -> ApiResult<Etag<App>> {
        Session::get_app(self, app).await
    }
    async fn put_app(&self, app: &AppName, new: NewApp) -> ApiResult<Etag<App>> {
        Session::put_app(self, app, new).await
    }
    async fn update_app(
        &self,
        app: &AppName,
        update: AppUpdate,
        if_match: Option<StoreRevision>,
    ) -> ApiResult<Etag<App>> {
        Session::update_app(self, app, update, if_match).await
    }
    async fn delete_app(&self, app: &AppName, if_match: Option<StoreRevision>) -> ApiResult<()> {
        Session::delete_app(self, app, if_match).await
    }
    async fn app_status(&self, app: &AppName) -> ApiResult<AppStatus> {
        Session::app_status(self, app).await
    }
    async fn app_limits(&self, app: &AppName) -> ApiResult<AppLimits> {
        Session::app_limits(self, app).await
    }
    async fn create_debug_token(&self, app: &AppName, new: NewDebugToken) -> ApiResult<DebugToken> {
        Session::create_debug_token(self, app, new).await
    }
    async fn list_revisions(&self, app: &AppName, after: Option<String>, limit: u32) -> ApiResult<PageOf<Revision>> {
        Session::list_revisions(self, app, after, limit).await
    }
    async fn get_revision(&self, app: &AppName, number: RevisionNumber) -> ApiResult<Revision> {
        Session::get_revision(self, app, number).await
    }
    async fn create_revision(
        &self,
        app: &AppName,
        new: NewRevision,
        if_match: Option<StoreRevision>,
    ) -> ApiResult<Revision> {
        Session::create_revision(self, app, new, if_match).await
    }
    async fn has_component(&self, digest: &Digest) -> ApiResult<bool> {
        Session::has_component(self, digest).await
    }
    async fn put_component(&self, digest: &Digest, bytes: Vec<u8>) -> ApiResult<()> {
        Session::put_component(self, digest, bytes.into()).await
    }
    async fn list_hosts(&self) -> ApiResult<PageOf<HostView>> {
        Session::list_hosts(self).await
    }
    async fn update_host(&self, host: &HostId, update: HostUpdate) -> ApiResult<HostView> {
        Self::update_host(self, host, update).await
    }

    async fn remove_host(&self, host: &HostId, removal: HostRemoval) -> ApiResult<()> {
        Self::remove_host(self, host, removal).await
    }

    async fn get_host(&self, host: &HostId) -> ApiResult<HostDetail> {
        Session::get_host(self, host).await
    }
    async fn host_metrics(&self, host: &HostId) -> ApiResult<String> {
        Session::host_metrics(self, host).await
    }
    async fn create_join_token(&self) -> ApiResult<JoinToken> {
        Session::create_join_token(self).await
    }
    async fn join(&self, _: JoinRequest) -> ApiResult<JoinResponse> {
        Err(Problem::new(ProblemKind::Unauthenticated, "joining needs a join token (mj_…), not a bearer token"))
    }
    async fn list_services(&self) -> ApiResult<PageOf<Service>> {
        Session::list_services(self).await
    }
    async fn put_service(&self, name: &ServiceName, new: NewService) -> ApiResult<Service> {
        Session::put_service(self, name, new).await
    }
    async fn delete_service(&self, name: &ServiceName) -> ApiResult<()> {
        Session::delete_service(self, name).await
    }
    async fn backup_service(&self, name: &ServiceName) -> ApiResult<Vec<u8>> {
        Session::backup_service(self, name).await
    }
    async fn restore_service(&self, name: &ServiceName, bytes: Vec<u8>) -> ApiResult<()> {
        Session::restore_service(self, name, bytes).await
    }
    async fn list_policies(&self) -> ApiResult<PageOf<PolicyView>> {
        Session::list_policies(self).await
    }
    async fn get_policy(&self, scope: &PolicyScope) -> ApiResult<Etag<PolicyView>> {
        Session::get_policy(self, scope).await
    }
    async fn put_policy(
        &self,
        scope: &PolicyScope,
        policy: Policy,
        if_match: Option<StoreRevision>,
    ) -> ApiResult<Etag<PolicyView>> {
        Session::put_policy(self, scope, policy, if_match).await
    }
    async fn delete_policy(&self, scope: &PolicyScope, if_match: Option<StoreRevision>) -> ApiResult<()> {
        Session::delete_policy(self, scope, if_match).await
    }
    async fn usage(&self, query: UsageQuery) -> ApiResult<UsageReport> {
        Session::usage(self, query).await
    }
    async fn list_events(&self, after: Option<String>, limit: u32) -> ApiResult<PageOf<Event>> {
        Session::list_events(self, after, limit).await
    }
    async fn list_tokens(&self) -> ApiResult<PageOf<Token>> {
        Session::list_tokens(self).await
    }
    async fn create_token(&self, name: &str, new: NewToken) -> ApiResult<TokenSecret> {
        Session::create_token(self, name, new).await
    }
    async fn delete_token(&self, name: &str) -> ApiResult<()> {
        Session::delete_token(self, name).await
    }
    async fn whoami(&self) -> ApiResult<Token> {
        Ok(self.token.clone())
    }
}
