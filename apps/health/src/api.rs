//! The JSON API: the same rules and the same records of who saw what as the pages.
//!
//! `POST /api/login {name, password}` gives a token for `Authorization: Bearer`. A browser's session
//! works as well; then what changes something needs the header `x-csrf-token` (`GET /api/session`).
//! Errors are problem details (RFC 9457).

use jiff::Timestamp;
use marcato_guest::access::{self, Change, HistoryEntry, NewSubject, Permission, Subject, SubjectUpdate};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::App;
use crate::auth::{self, User};
use crate::forms::{Fields, kind_word, parse_kind};
use crate::http::{Reply, Request};
use crate::pages::{audit::change_word, users};
use crate::problem::Problem;
use crate::session::{ABSOLUTE_MS, IDLE_MS};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    name: String,
    password: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Verify {
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rights {
    read: bool,
    write: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    id: String,
    kind: String,
    name: String,
    #[serde(default)]
    description: String,
    permission: Rights,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    kind: Option<String>,
    name: Option<String>,
    description: Option<String>,
    permission: Option<Rights>,
    version: Option<u64>,
}

pub(crate) fn route(
    app: &App,
    request: &Request,
    method: &str,
    segments: &[&str],
    user: Option<&User>,
) -> Result<Reply, Problem> {
    if (method, segments) == ("POST", &["login"]) {
        return log_in(app, request);
    }
    let user = user.ok_or(Problem::LogIn)?;
    if method != "GET" {
        auth::check_form(request, user, &Fields::parse(b""))?;
    }
    match (method, segments) {
        ("GET", ["session"]) => {
            Ok(Reply::json(200, &json!({"account": user.name(), "role": user.account.role, "csrf": user.csrf})))
        }
        ("POST", ["logout"]) => {
            auth::log_out(app, user)?;
            Ok(no_content())
        }
        ("GET", ["users"]) => list(app, user, request),
        ("POST", ["users"]) => add(app, user, request),
        ("GET", ["users", id]) => Ok(Reply::json(200, &subject_json(&users::view(app, user, id, "API")?))),
        ("PATCH", ["users", id]) => update(app, user, id, request),
        ("DELETE", ["users", id]) => {
            users::remove(app, user, id)?;
            Ok(no_content())
        }
        ("POST", ["users", id, "verify"]) => {
            let asked: Verify = body(request)?;
            let right = users::verify(app, user, id, &asked.key)?;
            Ok(Reply::json(200, &json!({"valid": right})))
        }
        ("GET", ["history"]) => history(app, user, request),
        (_, ["login" | "logout" | "session" | "users" | "history", ..]) => Err(Problem::MethodNotAllowed),
        _ => Err(Problem::NotFound("There is no such address in the API.".to_owned())),
    }
}

fn log_in(app: &App, request: &Request) -> Result<Reply, Problem> {
    // A form of another site cannot send this type.
    let is_json = request.header("content-type").is_some_and(|t| t.starts_with("application/json"));
    if !is_json || request.is_cross_site() {
        return Err(Problem::BadRequest("Send application/json.".to_owned()));
    }
    let asked: Login = body(request)?;
    let (session, token) = auth::log_in(app, request, &asked.name, &asked.password)?;
    Ok(Reply::json(
        200,
        &json!({
            "token": token,
            "account": session.account,
            "idle_seconds": IDLE_MS / 1000,
            "expires_at": time(session.issued_ms + ABSOLUTE_MS),
        }),
    ))
}

fn list(app: &App, user: &User, request: &Request) -> Result<Reply, Problem> {
    let query = Fields::parse(request.query.as_bytes());
    let found = users::find(app, user, &query)?;
    let items: Vec<Value> = found
        .rows
        .iter()
        .map(|row| if row.visible { subject_json(&row.subject) } else { json!({"id": row.subject.id, "hidden": true}) })
        .collect();
    Ok(Reply::json(200, &json!({"items": items, "page": query.page(), "page_size": users::PAGE, "total": found.total})))
}

fn add(app: &App, user: &User, request: &Request) -> Result<Reply, Problem> {
    let new: New = body(request)?;
    let subject = NewSubject {
        id: new.id,
        kind: parse_kind(&new.kind).ok_or_else(bad_kind)?,
        name: new.name,
        description: new.description,
        permission: Permission { read: new.permission.read, write: new.permission.write },
    };
    let added = users::create(app, user, &subject)?;
    Ok(Reply::json(201, &subject_json(&added)).with("location", format!("/api/users/{}", added.id)))
}

fn update(app: &App, user: &User, id: &str, request: &Request) -> Result<Reply, Problem> {
    let asked: Update = body(request)?;
    let kind = asked.kind.as_deref().map(|k| parse_kind(k).ok_or_else(bad_kind)).transpose()?;
    let update = SubjectUpdate {
        kind,
        name: asked.name,
        description: asked.description,
        permission: asked.permission.map(|p| Permission { read: p.read, write: p.write }),
        expected_version: asked.version,
    };
    Ok(Reply::json(200, &subject_json(&users::change(app, user, id, &update)?)))
}

fn history(app: &App, user: &User, request: &Request) -> Result<Reply, Problem> {
    let query = Fields::parse(request.query.as_bytes());
    auth::require_admin(app, user, "read the history")?;
    let subject = Some(query.text("subject")).filter(|s| !s.is_empty());
    let page = app.register.history(subject, access::page(query.page(), 50))?;
    app.register.record(user.name(), Change::Viewed, subject, &format!("history by the API, page {}", query.page()))?;
    let items: Vec<Value> = page.items.iter().map(entry_json).collect();
    Ok(Reply::json(200, &json!({"items": items, "page": query.page(), "page_size": 50, "total": page.total})))
}

fn subject_json(s: &Subject) -> Value {
    json!({
        "id": s.id,
        "kind": kind_word(s.kind),
        "name": s.name,
        "description": s.description,
        "key_hash": s.key_hash,
        "key_issued_at": s.key_issued_at.map(time),
        "permission": {"read": s.permission.read, "write": s.permission.write},
        "created_at": time(s.created_at),
        "updated_at": time(s.updated_at),
        "version": s.version,
    })
}

fn entry_json(e: &HistoryEntry) -> Value {
    json!({
        "sequence": e.sequence,
        "at": time(e.at),
        "actor": e.actor,
        "change": change_word(e.change),
        "subject": e.subject,
        "detail": e.detail,
    })
}

fn time(ms: u64) -> Option<String> {
    Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok().map(|t| t.to_string())
}

fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Problem> {
    serde_json::from_slice(&request.body).map_err(|e| Problem::BadRequest(format!("The body: {e}.")))
}

fn bad_kind() -> Problem {
    Problem::Invalid("kind: use patient, doctor or staff".to_owned())
}

fn no_content() -> Reply {
    Reply::new(204, "application/json", Vec::new())
}
