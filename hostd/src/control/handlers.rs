//! One handler per verb of HostApi: reads the request, calls the node, writes the answer.

use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::routing::{get, post, put};
use http::{HeaderMap, Method, Response, Uri};
use marcato_api::{
    AccessRequest, AppName, HostApi, HostConfig, KeyValueRequest, LogCursor, LogQuery, Millis, NewCertificate, Problem,
    ProblemKind, UsageCursor, host_paths,
};
use serde::Deserialize;

use super::reply::{self, Failure, Reply, fail};
use crate::metrics;
use crate::node::Node;

/// A config, with the env of every instance.
const CONFIG_BYTES: usize = 64 << 20;
/// One call on a service: 1,000 values of a key-value batch may be large, as JSON.
const CALL_BYTES: usize = 64 << 20;
/// A database that is restored; it is held in memory while it is checked.
const RESTORE_BYTES: usize = 1 << 30;
/// A certificate chain.
const CERTIFICATE_BYTES: usize = 64 << 10;
/// Hours of a page when the query does not say; the ledger gives no more than it likes.
const USAGE_HOURS: u32 = 1000;
/// Lines of a page when the query does not say.
const LOG_LINES: u32 = 1000;

/// The routes of HostApi.
pub(crate) fn routes(node: Arc<Node>) -> Router {
    Router::new()
        .route(host_paths::CONFIG, put(put_config))
        .route(host_paths::INVENTORY, get(inventory))
        .route("/v1/components/{digest}", put(put_component))
        .route(host_paths::LOGS, get(logs))
        .route(host_paths::USAGE, get(usage))
        .route("/v1/services/{id}/access", post(access))
        .route("/v1/services/{id}/keyvalue", post(keyvalue))
        .route("/v1/services/{id}/backup", get(backup).put(restore))
        .route(host_paths::CERTIFICATE_REQUEST, post(certificate_request))
        .route(host_paths::CERTIFICATE, put(put_certificate))
        .route(host_paths::INGRESS_CERTIFICATE_REQUEST, post(ingress_certificate_request))
        .route(host_paths::INGRESS_CERTIFICATE, put(put_ingress_certificate))
        .route(host_paths::METRICS, get(metrics))
        .route(host_paths::HEALTH, get(health))
        .route(host_paths::VERSION, get(version))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        // Every handler bounds its own body.
        .layer(DefaultBodyLimit::disable())
        .with_state(node)
}

async fn no_such_path(uri: Uri) -> Failure {
    fail(ProblemKind::NotFound, format!("HostApi has no {}", uri.path()))
}

async fn no_such_method(method: Method, uri: Uri) -> Failure {
    fail(ProblemKind::MethodNotAllowed, format!("{} does not take {method}", uri.path()))
}

fn parse<T: FromStr>(field: &str, text: &str) -> Result<T, Failure>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| Failure(Problem::new(ProblemKind::Invalid, e.to_string()).with_field(field)))
}

async fn put_config(State(node): State<Arc<Node>>, headers: HeaderMap, body: Body) -> Reply {
    let config: HostConfig = reply::read_json(&headers, body, CONFIG_BYTES).await?;
    reply::json(&node.put_config(config).await?)
}

async fn inventory(State(node): State<Arc<Node>>) -> Reply {
    reply::json(&node.inventory().await?)
}

async fn put_component(State(node): State<Arc<Node>>, Path(digest): Path<String>, body: Body) -> Reply {
    let digest = parse("digest", &digest)?;
    node.receive_component(&digest, body).await?;
    Ok(reply::nothing())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogParameters {
    app: AppName,
    after: Option<String>,
    #[serde(default)]
    wait_ms: Millis,
    limit: Option<u32>,
}

async fn logs(State(node): State<Arc<Node>>, uri: Uri) -> Reply {
    let Query(wish) =
        Query::<LogParameters>::try_from_uri(&uri).map_err(|e| fail(ProblemKind::Invalid, e.body_text()))?;
    let after = wish.after.map_or(Ok(LogCursor::default()), |text| parse("after", &text))?;
    let limit = wish.limit.unwrap_or(LOG_LINES);
    if limit == 0 {
        return Err(Failure(Problem::new(ProblemKind::Invalid, "expected 1 to 10,000").with_field("limit")));
    }
    reply::json(&node.logs(LogQuery { app: wish.app, after, wait_ms: wish.wait_ms, limit }).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UsageParameters {
    after: Option<String>,
    limit: Option<u32>,
}

async fn usage(State(node): State<Arc<Node>>, uri: Uri) -> Reply {
    let Query(wish) =
        Query::<UsageParameters>::try_from_uri(&uri).map_err(|e| fail(ProblemKind::Invalid, e.body_text()))?;
    let after = wish.after.map_or(Ok(UsageCursor::START), |text| parse("after", &text))?;
    reply::json(&node.usage(after, wish.limit.unwrap_or(USAGE_HOURS)).await?)
}

async fn access(State(node): State<Arc<Node>>, Path(id): Path<String>, headers: HeaderMap, body: Body) -> Reply {
    let id = parse("service", &id)?;
    let request: AccessRequest = reply::read_json(&headers, body, CALL_BYTES).await?;
    reply::json(&node.access(&id, request).await?)
}

async fn keyvalue(State(node): State<Arc<Node>>, Path(id): Path<String>, headers: HeaderMap, body: Body) -> Reply {
    let id = parse("service", &id)?;
    let request: KeyValueRequest = reply::read_json(&headers, body, CALL_BYTES).await?;
    reply::json(&node.keyvalue(&id, request).await?)
}

async fn backup(State(node): State<Arc<Node>>, Path(id): Path<String>) -> Reply {
    let copy = node.backup(&parse("service", &id)?).await?;
    Ok(reply::bytes("application/vnd.sqlite3", copy))
}

async fn restore(State(node): State<Arc<Node>>, Path(id): Path<String>, body: Body) -> Reply {
    let id = parse("service", &id)?;
    let copy = reply::read(body, RESTORE_BYTES).await?;
    node.restore(&id, copy.into()).await?;
    Ok(reply::nothing())
}

async fn certificate_request(State(node): State<Arc<Node>>) -> Reply {
    reply::json(&node.certificate_request().await?)
}

async fn ingress_certificate_request(State(node): State<Arc<Node>>) -> Reply {
    reply::json(&node.ingress_certificate_request().await?)
}

async fn put_ingress_certificate(State(node): State<Arc<Node>>, headers: HeaderMap, body: Body) -> Reply {
    let certificate: NewCertificate = reply::read_json(&headers, body, CERTIFICATE_BYTES).await?;
    reply::json(&node.put_ingress_certificate(certificate).await?)
}

async fn put_certificate(State(node): State<Arc<Node>>, headers: HeaderMap, body: Body) -> Reply {
    let certificate: NewCertificate = reply::read_json(&headers, body, CERTIFICATE_BYTES).await?;
    reply::json(&node.put_certificate(certificate).await?)
}

async fn metrics(State(node): State<Arc<Node>>) -> Reply {
    Ok(reply::bytes(metrics::CONTENT_TYPE, node.metrics().await?))
}

async fn health() -> Response<Body> {
    reply::bytes("text/plain; charset=utf-8", "ok\n")
}

async fn version(State(node): State<Arc<Node>>) -> Reply {
    reply::json(&serde_json::json!({ "host": node.id, "version": env!("CARGO_PKG_VERSION") }))
}
