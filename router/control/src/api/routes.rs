//! Paths, handlers and the OpenAPI document that is made from them.

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json as Out, Router, middleware};
use marcato_api::{
    App, AppLimits, AppName, AppStatus, AppSummary, AppUpdate, DebugToken, Digest, Etag, Event, HostDetail, HostId,
    HostRemoval, HostUpdate, HostView, JoinRequest, JoinResponse, JoinToken, NewApp, NewDebugToken, NewRevision,
    NewService, NewToken, PageOf, Policy, PolicyScope, PolicyView, Problem, ProblemKind, Revision, RevisionNumber,
    Service, ServiceName, StoreRevision, Token, TokenSecret, UsageQuery, UsageReport, admin_paths,
};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::{Json, upload};
use super::extract::{IfMatch, Paging, Parameters, Path, Refused, bearer, name, not_throttled, peer, wrong_secret};
use super::hosts::NotJoined;
use super::logs::LogParams;
use super::problem::{self, ApiError};
use super::{Api, Session, components, hosts, services, unread};

#[derive(OpenApi)]
#[openapi(
    info(title = "Marcato admin API", description = "Apps, revisions, hosts, services, tokens and the audit log. Errors are problem details (RFC 9457)."),
    modifiers(&Bearer),
    security(("bearer" = [])),
    components(schemas(Problem))
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        openapi.components.get_or_insert_default().add_security_scheme("bearer", scheme);
        openapi.info.version = env!("CARGO_PKG_VERSION").into();
    }
}

type Answer<T> = Result<T, ApiError>;

/// The whole service.
pub(crate) fn router(api: Api) -> Router {
    let (routes, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(list_apps))
        .routes(routes!(get_app, put_app, update_app, delete_app))
        .routes(routes!(app_status))
        .routes(routes!(app_limits))
        .routes(routes!(app_logs))
        .routes(routes!(create_debug_token))
        .routes(routes!(list_revisions, create_revision))
        .routes(routes!(get_revision))
        .routes(routes!(has_component, put_component))
        .routes(routes!(list_hosts))
        .routes(routes!(get_host, update_host, remove_host))
        .routes(routes!(host_metrics))
        .routes(routes!(create_join_token))
        .routes(routes!(join))
        .routes(routes!(list_services))
        .routes(routes!(put_service, delete_service))
        .routes(routes!(backup_service, restore_service))
        .routes(routes!(list_policies))
        .routes(routes!(get_policy, put_policy, delete_policy))
        .routes(routes!(usage))
        .routes(routes!(list_events))
        .routes(routes!(list_tokens))
        .routes(routes!(create_token, delete_token))
        .routes(routes!(whoami))
        .routes(routes!(metrics))
        .routes(routes!(health))
        .routes(routes!(version))
        .split_for_parts();
    let document: bytes::Bytes = document.to_json().unwrap_or_default().into();
    let openapi = move || async move { ([(header::CONTENT_TYPE, "application/json")], document) };
    routes
        .route(admin_paths::OPENAPI, axum::routing::get(openapi))
        .method_not_allowed_fallback(problem::wrong_method)
        .fallback(problem::not_found)
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(middleware::from_fn(unread::discard))
        .layer(middleware::from_fn_with_state(api.clone(), problem::outermost))
        .with_state(api)
}

/// An object with its version in `ETag`.
fn versioned<T: serde::Serialize>(found: Etag<T>) -> Response {
    let mut response = Out(found.value).into_response();
    if let Ok(value) = HeaderValue::from_str(&format!("\"{}\"", found.etag)) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

#[utoipa::path(get, path = "/v1/apps", tag = "apps",
    params(("after" = Option<String>, Query, description = "the last page's `next`"), ("limit" = Option<u32>, Query, description = "1 to 1000, default 100")),
    responses((status = 200, body = PageOf<AppSummary>), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list_apps(session: Session, paging: Paging) -> Answer<Out<PageOf<AppSummary>>> {
    Ok(Out(session.list_apps(paging.after, paging.limit).await?))
}

#[utoipa::path(get, path = "/v1/apps/{app}", tag = "apps", params(("app" = AppName, Path)),
    responses((status = 200, body = App, headers(("ETag" = String))), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn get_app(session: Session, Path(app): Path<String>) -> Answer<Response> {
    Ok(versioned(session.get_app(&name("app", &app)?).await?))
}

#[utoipa::path(put, path = "/v1/apps/{app}", tag = "apps", params(("app" = AppName, Path)), request_body = NewApp,
    responses((status = 200, body = App, headers(("ETag" = String))), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn put_app(session: Session, Path(app): Path<String>, Json(new): Json<NewApp>) -> Answer<Response> {
    Ok(versioned(session.put_app(&name("app", &app)?, new).await?))
}

#[utoipa::path(patch, path = "/v1/apps/{app}", tag = "apps", params(("app" = AppName, Path), ("If-Match" = Option<String>, Header)),
    request_body = AppUpdate,
    responses((status = 200, body = App, headers(("ETag" = String))), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn update_app(
    session: Session,
    Path(app): Path<String>,
    IfMatch(if_match): IfMatch,
    Json(update): Json<AppUpdate>,
) -> Answer<Response> {
    Ok(versioned(session.update_app(&name("app", &app)?, update, if_match).await?))
}

#[utoipa::path(delete, path = "/v1/apps/{app}", tag = "apps", params(("app" = AppName, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn delete_app(session: Session, Path(app): Path<String>, IfMatch(if_match): IfMatch) -> Answer<StatusCode> {
    session.delete_app(&name("app", &app)?, if_match).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/v1/apps/{app}/status", tag = "apps", params(("app" = AppName, Path)),
    responses((status = 200, body = AppStatus), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn app_status(session: Session, Path(app): Path<String>) -> Answer<Out<AppStatus>> {
    Ok(Out(session.app_status(&name("app", &app)?).await?))
}

#[utoipa::path(get, path = "/v1/apps/{app}/limits", tag = "apps", params(("app" = AppName, Path)),
    responses((status = 200, body = AppLimits), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn app_limits(session: Session, Path(app): Path<String>) -> Answer<Out<AppLimits>> {
    Ok(Out(session.app_limits(&name("app", &app)?).await?))
}

#[utoipa::path(get, path = "/v1/apps/{app}/logs", tag = "apps",
    params(("app" = AppName, Path), ("follow" = Option<bool>, Query), ("tail" = Option<u32>, Query, description = "0 to 10000, default 100")),
    responses((status = 200, description = "one LogLine per line; empty lines keep the connection", body = marcato_api::LogLine, content_type = "application/x-ndjson"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn app_logs(
    session: Session,
    Path(app): Path<String>,
    Parameters(params): Parameters<LogParams>,
) -> Answer<Response> {
    let body = session.app_logs(&name("app", &app)?, params).await?;
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

#[utoipa::path(post, path = "/v1/apps/{app}/debug-token", tag = "apps", params(("app" = AppName, Path)), request_body = NewDebugToken,
    responses((status = 200, body = DebugToken), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn create_debug_token(
    session: Session,
    Path(app): Path<String>,
    Json(new): Json<NewDebugToken>,
) -> Answer<Out<DebugToken>> {
    Ok(Out(session.create_debug_token(&name("app", &app)?, new).await?))
}

#[utoipa::path(get, path = "/v1/apps/{app}/revisions", tag = "revisions",
    params(("app" = AppName, Path), ("after" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = PageOf<Revision>), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list_revisions(session: Session, Path(app): Path<String>, paging: Paging) -> Answer<Out<PageOf<Revision>>> {
    Ok(Out(session.list_revisions(&name("app", &app)?, paging.after, paging.limit).await?))
}

#[utoipa::path(post, path = "/v1/apps/{app}/revisions", tag = "revisions",
    params(("app" = AppName, Path), ("If-Match" = Option<String>, Header)), request_body = NewRevision,
    responses((status = 200, body = Revision), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn create_revision(
    session: Session,
    Path(app): Path<String>,
    IfMatch(if_match): IfMatch,
    Json(new): Json<NewRevision>,
) -> Answer<Out<Revision>> {
    Ok(Out(session.create_revision(&name("app", &app)?, new, if_match).await?))
}

#[utoipa::path(get, path = "/v1/apps/{app}/revisions/{number}", tag = "revisions",
    params(("app" = AppName, Path), ("number" = u64, Path)),
    responses((status = 200, body = Revision), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn get_revision(session: Session, Path((app, number)): Path<(String, String)>) -> Answer<Out<Revision>> {
    let number = RevisionNumber(name("number", &number)?);
    Ok(Out(session.get_revision(&name("app", &app)?, number).await?))
}

#[utoipa::path(head, path = "/v1/components/{digest}", tag = "components", params(("digest" = Digest, Path)),
    responses((status = 204, description = "it is here"), (status = 404, description = "upload it")))]
async fn has_component(session: Session, Path(digest): Path<String>) -> Answer<StatusCode> {
    let digest: Digest = name("digest", &digest)?;
    if session.has_component(&digest).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::new(ProblemKind::NotFound, format!("the component {digest} is not here")).into())
}

#[utoipa::path(put, path = "/v1/components/{digest}", tag = "components", params(("digest" = Digest, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "at most 64 MiB"),
    responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn put_component(
    session: Session,
    State(api): State<Api>,
    Path(digest): Path<String>,
    request: Request,
) -> Answer<StatusCode> {
    let digest: Digest = name("digest", &digest)?;
    // The role comes before the bytes: who may not upload does not get us to read 64 MiB.
    let target = format!("component/{}", digest.short());
    session.may(marcato_api::Role::Deployer, session.token.org.as_ref(), "component.upload", &target).await?;
    let _place = big_body(&api).await?;
    let bytes = upload(request, components::LIMIT_BYTES).await?;
    session.put_component(&digest, bytes).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn big_body(api: &Api) -> Answer<tokio::sync::SemaphorePermit<'_>> {
    let closed = |_| ApiError(Problem::new(ProblemKind::Unavailable, "the router is stopping"));
    api.big_bodies.acquire().await.map_err(closed)
}

#[utoipa::path(get, path = "/v1/hosts", tag = "hosts",
    responses((status = 200, body = PageOf<HostView>), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list_hosts(session: Session) -> Answer<Out<PageOf<HostView>>> {
    Ok(Out(session.list_hosts().await?))
}

#[utoipa::path(get, path = "/v1/hosts/{id}", tag = "hosts", params(("id" = HostId, Path)),
    responses((status = 200, body = HostDetail), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn get_host(session: Session, Path(id): Path<String>) -> Answer<Out<HostDetail>> {
    Ok(Out(session.get_host(&name("id", &id)?).await?))
}

#[utoipa::path(patch, path = "/v1/hosts/{id}", tag = "hosts", params(("id" = HostId, Path)), request_body = HostUpdate,
    responses((status = 200, body = HostView), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn update_host(
    session: Session,
    Path(id): Path<String>,
    Json(update): Json<HostUpdate>,
) -> Answer<Out<HostView>> {
    Ok(Out(session.update_host(&name("id", &id)?, update).await?))
}

#[utoipa::path(delete, path = "/v1/hosts/{id}", tag = "hosts", params(("id" = HostId, Path), HostRemoval),
    responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn remove_host(
    session: Session,
    Path(id): Path<String>,
    Parameters(removal): Parameters<HostRemoval>,
) -> Answer<StatusCode> {
    session.remove_host(&name("id", &id)?, removal).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/v1/hosts/{id}/metrics", tag = "hosts", params(("id" = HostId, Path)),
    responses((status = 200, body = String, content_type = "text/plain"), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn host_metrics(session: Session, Path(id): Path<String>) -> Answer<Response> {
    let text = session.host_metrics(&name("id", &id)?).await?;
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response())
}

#[utoipa::path(post, path = "/v1/hosts/tokens", tag = "hosts",
    responses((status = 200, body = JoinToken), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn create_join_token(session: Session) -> Answer<Out<JoinToken>> {
    Ok(Out(session.create_join_token().await?))
}

/// Who wants to join: a join token instead of a bearer token.
struct Joiner {
    secret: String,
    peer: std::net::IpAddr,
}

impl FromRequestParts<Api> for Joiner {
    type Rejection = Refused;
    async fn from_request_parts(parts: &mut axum::http::request::Parts, api: &Api) -> Result<Self, Refused> {
        let peer = peer(parts);
        not_throttled(api, peer)?;
        match bearer(parts) {
            Some(secret) => Ok(Self { secret: secret.to_owned(), peer }),
            None => Err(Problem::new(ProblemKind::Unauthenticated, "send a join token as bearer").into()),
        }
    }
}

#[utoipa::path(post, path = "/v1/hosts/join", tag = "hosts", request_body = JoinRequest,
    responses((status = 200, body = JoinResponse), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn join(
    joiner: Joiner,
    State(api): State<Api>,
    Json(request): Json<JoinRequest>,
) -> Result<Out<JoinResponse>, Refused> {
    match hosts::join(&api, &joiner.secret, &request).await {
        Ok(joined) => Ok(Out(joined)),
        Err(NotJoined::Problem(problem)) => Err(Refused::Problem(problem)),
        Err(NotJoined::Token(why)) => Err(wrong_secret(&api, joiner.peer, "host.join", why).await),
    }
}

#[utoipa::path(get, path = "/v1/services", tag = "services",
    responses((status = 200, body = PageOf<Service>), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list_services(session: Session) -> Answer<Out<PageOf<Service>>> {
    Ok(Out(session.list_services().await?))
}

#[utoipa::path(put, path = "/v1/services/{name}", tag = "services", params(("name" = ServiceName, Path)), request_body = NewService,
    responses((status = 200, body = Service), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn put_service(
    session: Session,
    Path(service): Path<String>,
    Json(new): Json<NewService>,
) -> Answer<Out<Service>> {
    Ok(Out(session.put_service(&name("name", &service)?, new).await?))
}

#[utoipa::path(delete, path = "/v1/services/{name}", tag = "services", params(("name" = ServiceName, Path)),
    responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn delete_service(session: Session, Path(service): Path<String>) -> Answer<StatusCode> {
    session.delete_service(&name("name", &service)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/v1/services/{name}/backup", tag = "services", params(("name" = ServiceName, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn backup_service(session: Session, State(api): State<Api>, Path(service): Path<String>) -> Answer<Response> {
    let _place = big_body(&api).await?;
    let bytes = session.backup_service(&name("name", &service)?).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

#[utoipa::path(put, path = "/v1/services/{name}/backup", tag = "services", params(("name" = ServiceName, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn restore_service(
    session: Session,
    State(api): State<Api>,
    Path(service): Path<String>,
    request: Request,
) -> Answer<StatusCode> {
    let service: ServiceName = name("name", &service)?;
    session.visible_service(&service, marcato_api::Role::Deployer, "service.restore").await?;
    let _place = big_body(&api).await?;
    let bytes = upload(request, services::BACKUP_LIMIT_BYTES).await?;
    session.restore_service(&service, bytes.into()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/v1/policies", tag = "policies",
    responses((status = 200, body = PageOf<PolicyView>), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list_policies(session: Session) -> Answer<Out<PageOf<PolicyView>>> {
    Ok(Out(session.list_policies().await?))
}

#[utoipa::path(get, path = "/v1/policies/{scope}", tag = "policies", params(("scope" = PolicyScope, Path)),
    responses((status = 200, body = PolicyView, headers(("ETag" = String))), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn get_policy(session: Session, Path(scope): Path<String>) -> Answer<Response> {
    Ok(versioned(session.get_policy(&name("scope", &scope)?).await?))
}

#[utoipa::path(put, path = "/v1/policies/{scope}", tag = "policies", params(("scope" = PolicyScope, Path), ("If-Match" = Option<String>, Header)),
    request_body = Policy,
    responses((status = 200, body = PolicyView, headers(("ETag" = String))), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn put_policy(
    session: Session,
    Path(scope): Path<String>,
    IfMatch(if_match): IfMatch,
    Json(policy): Json<Policy>,
) -> Answer<Response> {
    Ok(versioned(session.put_policy(&name("scope", &scope)?, policy, if_match).await?))
}

#[utoipa::path(delete, path = "/v1/policies/{scope}", tag = "policies", params(("scope" = PolicyScope, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn delete_policy(session: Session, Path(scope): Path<String>, IfMatch(if_match): IfMatch) -> Answer<StatusCode> {
    session.delete_policy(&name("scope", &scope)?, if_match).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/v1/usage", tag = "usage",
    params(("from" = Option<String>, Query, description = "RFC 3339; default 30 days before `to`"), ("to" = Option<String>, Query, description = "RFC 3339; default now"),
        ("org" = Option<String>, Query), ("app" = Option<String>, Query), ("by" = Option<marcato_api::UsagePeriod>, Query, description = "default day"),
        ("after" = Option<String>, Query), ("limit" = Option<u32>, Query, description = "1 to 1000, default 100")),
    responses((status = 200, body = UsageReport), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn usage(session: Session, Parameters(query): Parameters<UsageQuery>) -> Answer<Out<UsageReport>> {
    Ok(Out(session.usage(query).await?))
}

#[utoipa::path(get, path = "/v1/events", tag = "events", params(("after" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = PageOf<Event>), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list_events(session: Session, paging: Paging) -> Answer<Out<PageOf<Event>>> {
    Ok(Out(session.list_events(paging.after, paging.limit).await?))
}

#[utoipa::path(get, path = "/v1/tokens", tag = "tokens",
    responses((status = 200, body = PageOf<Token>), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list_tokens(session: Session) -> Answer<Out<PageOf<Token>>> {
    Ok(Out(session.list_tokens().await?))
}

#[utoipa::path(put, path = "/v1/tokens/{name}", tag = "tokens", params(("name" = String, Path)), request_body = NewToken,
    responses((status = 200, body = TokenSecret), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn create_token(
    session: Session,
    Path(token): Path<String>,
    Json(new): Json<NewToken>,
) -> Answer<Out<TokenSecret>> {
    Ok(Out(session.create_token(&token, new).await?))
}

#[utoipa::path(delete, path = "/v1/tokens/{name}", tag = "tokens", params(("name" = String, Path)),
    responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn delete_token(session: Session, Path(token): Path<String>) -> Answer<StatusCode> {
    session.delete_token(&token).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/v1/whoami", tag = "tokens",
    responses((status = 200, body = Token), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn whoami(session: Session) -> Answer<Out<Token>> {
    Ok(Out(session.token))
}

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[utoipa::path(get, path = "/metrics", tag = "router",
    responses((status = 200, body = String, content_type = "text/plain"), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn metrics(session: Session, State(api): State<Api>) -> Answer<Response> {
    session.may(marcato_api::Role::Viewer, None, "router.metrics", "router").await?;
    api.metrics.observe(&api.observed.load());
    let mut text = String::new();
    let failed = |e: std::fmt::Error| Problem::new(ProblemKind::Internal, e.to_string());
    prometheus_client::encoding::text::encode(&mut text, &api.registry).map_err(failed)?;
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], Body::from(text)).into_response())
}

#[utoipa::path(get, path = "/healthz", tag = "router", security(()), responses((status = 200, body = String, content_type = "text/plain")))]
async fn health() -> (HeaderMap, &'static str) {
    (HeaderMap::new(), "ok\n")
}

/// What runs here.
#[derive(serde::Serialize, utoipa::ToSchema)]
struct Release {
    /// The release.
    version: String,
    /// Apps answer at `{app}.{cluster_domain}`.
    cluster_domain: String,
    /// Where the store is.
    revision: StoreRevision,
}

#[utoipa::path(get, path = "/version", tag = "router", security(()), responses((status = 200, body = Release)))]
async fn version(State(api): State<Api>) -> Out<Release> {
    let revision = *api.state.store().latest().borrow();
    Out(Release { version: api.version.clone(), cluster_domain: api.domain.clone(), revision })
}
