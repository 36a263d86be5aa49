//! Which request goes where. Every form that changes something is checked here for its token, so no
//! page can forget it.

use crate::App;
use crate::auth::{self, User};
use crate::forms::Fields;
use crate::http::{Reply, Request};
use crate::pages::{self, layout};
use crate::problem::Problem;
use crate::{api, demo, state};

const STYLE: &str = include_str!("style.css");

/// Answers a request, whatever it is.
pub(crate) fn answer(app: &App, request: &Request) -> Reply {
    if let Some(reply) = asset(request) {
        return reply;
    }
    let user = match auth::user(app, request) {
        Ok(user) => user,
        Err(problem) => return problem.reply(request, None),
    };
    let bar = user.as_ref().map(layout::Bar::of);
    let reply = route(app, request, user.as_ref()).unwrap_or_else(|problem| problem.reply(request, bar.as_ref()));
    match user {
        Some(user) => auth::refresh(app, request, &user, reply).unwrap_or_else(|p| p.reply(request, None)),
        None => reply,
    }
}

fn asset(request: &Request) -> Option<Reply> {
    if request.path != "/assets/style.css" || !matches!(request.method.as_str(), "GET" | "HEAD") {
        return None;
    }
    let reply = Reply::new(200, "text/css; charset=utf-8", STYLE.as_bytes().to_vec());
    Some(reply.with("cache-control", "public, max-age=3600"))
}

fn route(app: &App, request: &Request, user: Option<&User>) -> Result<Reply, Problem> {
    let segments: Vec<&str> = request.path.split('/').filter(|s| !s.is_empty()).collect();
    let method = if request.method == "HEAD" { "GET" } else { request.method.as_str() };
    let query = Fields::parse(request.query.as_bytes());
    if segments.first() == Some(&"api") {
        return api::route(app, request, method, &segments[1..], user);
    }
    let form = if method == "POST" { Fields::parse(&request.body) } else { Fields::parse(b"") };
    match (method, segments.as_slice()) {
        ("GET", ["setup"]) => return pages::setup::form(app, &query),
        ("POST", ["setup"]) => return pages::setup::submit(app, request, &form),
        ("GET", ["login"]) if user.is_some() => return Ok(Reply::redirect("/users")),
        ("GET", ["login"]) => return pages::login::form(app, request),
        ("POST", ["login"]) => return pages::login::submit(app, request, &form),
        _ => {}
    }
    let Some(user) = user else {
        return if method == "GET" || state::is_set_up(&app.state)? {
            Err(Problem::LogIn)
        } else {
            Err(Problem::Forged)
        };
    };
    match method {
        "GET" => get(app, user, &segments, &query),
        "POST" => {
            auth::check_form(request, user, &form)?;
            post(app, request, user, &segments, &form)
        }
        _ => Err(Problem::MethodNotAllowed),
    }
}

fn get(app: &App, user: &User, segments: &[&str], query: &Fields) -> Result<Reply, Problem> {
    match segments {
        [] => Ok(Reply::redirect("/users")),
        ["users"] => pages::users::list(app, user, query),
        ["users", "new"] => pages::users::new_form(app, user),
        ["users", id] => pages::user::detail(app, user, id, query),
        ["users", id, "delete"] => pages::users::confirm_delete(app, user, id),
        ["lookup"] => pages::lookup::show(app, user, query),
        ["audit"] => pages::audit::show(app, user, query),
        ["accounts"] => pages::accounts::show(app, user, None),
        ["password"] => Ok(pages::accounts::password_form(user, None)),
        _ => Err(Problem::NotFound("There is no such page.".to_owned())),
    }
}

fn post(app: &App, request: &Request, user: &User, segments: &[&str], form: &Fields) -> Result<Reply, Problem> {
    match segments {
        ["logout"] => {
            auth::log_out(app, user)?;
            Ok(Reply::redirect("/login").with("set-cookie", auth::no_cookie(request)))
        }
        ["users"] => pages::users::add(app, user, form),
        ["users", id] => pages::users::save(app, user, id, form),
        ["users", id, "delete"] => pages::users::delete(app, user, id),
        ["users", id, "key"] => pages::user::issue_key(app, user, id),
        ["users", id, "key", "revoke"] => pages::user::revoke_key(app, user, id),
        ["users", id, "verify"] => pages::user::verify_key(app, user, id, form),
        ["users", id, "rights"] => pages::user::grant(app, user, id, form),
        ["users", id, "rights", "withdraw"] => pages::user::withdraw(app, user, id, form),
        ["accounts"] => pages::accounts::add(app, user, form),
        ["accounts", name, "disable"] => pages::accounts::set_disabled(app, user, name, true),
        ["accounts", name, "enable"] => pages::accounts::set_disabled(app, user, name, false),
        ["password"] => pages::accounts::change_password(app, request, user, form),
        ["demo"] => {
            auth::require_admin(app, user, "load the demo records")?;
            demo::load(app, user.name())?;
            Ok(Reply::redirect("/users"))
        }
        _ => Err(Problem::NotFound("There is no such page.".to_owned())),
    }
}
