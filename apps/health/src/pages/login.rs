//! Logging in.

use maud::html;

use super::layout;
use crate::App;
use crate::auth;
use crate::forms::Fields;
use crate::http::{Reply, Request};
use crate::problem::Problem;
use crate::state;

pub(crate) fn form(app: &App, request: &Request) -> Result<Reply, Problem> {
    match state::session_key(&app.state)? {
        Some(key) => page(request, &key, 200, "", None),
        None => Ok(not_set_up()),
    }
}

pub(crate) fn submit(app: &App, request: &Request, form: &Fields) -> Result<Reply, Problem> {
    let Some(key) = state::session_key(&app.state)? else { return Ok(not_set_up()) };
    auth::check_visitor(request, &key, form)?;
    match auth::log_in(app, request, form.text("name"), form.raw("password")) {
        Ok((_, token)) => Ok(Reply::redirect("/users").with("set-cookie", auth::session_cookie(request, &token))),
        Err(problem @ (Problem::Invalid(_) | Problem::Throttled(_))) => {
            let reply = page(request, &key, problem.status(), form.text("name"), Some(&problem.message()))?;
            Ok(match problem {
                Problem::Throttled(seconds) => reply.with("retry-after", seconds.to_string()),
                _ => reply,
            })
        }
        Err(problem) => Err(problem),
    }
}

fn page(request: &Request, key: &[u8], status: u16, name: &str, problem: Option<&str>) -> Result<Reply, Problem> {
    let (token, cookie) = auth::visitor_token(request, key)?;
    let content = html! {
        section.card.narrow {
            h1 { "Log in" }
            (layout::alert(problem))
            form.stack method="post" action="/login" {
                (layout::csrf(&token))
                label for="name" { "Account name" }
                input #name name="name" value=(name) required autocomplete="username" autocapitalize="none" autofocus;
                label for="password" { "Password" }
                input #password type="password" name="password" required autocomplete="current-password";
                button type="submit" { "Log in" }
            }
            p.hint { "Accounts are made by administrators. A session ends after 30 minutes without use." }
        }
    };
    Ok(Reply::page(status, layout::page(None, "", "Log in", &content)).with("set-cookie", cookie))
}

fn not_set_up() -> Reply {
    let detail = "No account exists yet. Open the set-up link that was shown when the application was pushed.";
    Reply::page(503, layout::message_page(None, 503, "This register is not set up", detail))
}
