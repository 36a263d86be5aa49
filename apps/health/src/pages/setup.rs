//! The first account, by a one-time link: `/setup?token=…` with the token that the operator got at
//! the first push (env `SETUP_TOKEN`). It works while no account exists, and once.

use maud::html;

use super::layout;
use crate::App;
use crate::forms::Fields;
use crate::http::{Reply, Request};
use crate::problem::Problem;
use crate::state::{self, Role};
use crate::{auth, demo, session};
use marcato_guest::access::Change;

pub(crate) fn form(app: &App, query: &Fields) -> Result<Reply, Problem> {
    let token = query.raw("token");
    check_link(app, token)?;
    Ok(page(200, token, "", None))
}

pub(crate) fn submit(app: &App, request: &Request, form: &Fields) -> Result<Reply, Problem> {
    if request.is_cross_site() {
        return Err(Problem::Forged);
    }
    let token = form.raw("token");
    check_link(app, token)?;
    match create(app, form) {
        Ok(()) => Ok(Reply::redirect("/login")),
        Err(problem @ Problem::Invalid(_)) => {
            Ok(page(problem.status(), token, form.text("name"), Some(&problem.message())))
        }
        Err(problem) => Err(problem),
    }
}

fn create(app: &App, form: &Fields) -> Result<(), Problem> {
    if form.raw("password") != form.raw("repeat") {
        return Err(Problem::Invalid("The two passwords differ.".to_owned()));
    }
    let account = auth::new_account(app, form.text("name"), form.raw("password"), Role::Admin, None)?;
    let key = auth::random::<32>()?;
    if !state::claim_setup(&app.state)? {
        return Err(gone());
    }
    // From here the link is dead. It lives again only when nothing was stored.
    if let Err(problem) = state::finish_setup(&app.state, &account, &key) {
        state::unclaim_setup(&app.state)?;
        return Err(problem);
    }
    app.register.record(&account.name, Change::Session, None, "set up the first administrator account")?;
    if std::env::var("DEMO").is_ok_and(|v| v == "1") {
        demo::load(app, &account.name)?;
    }
    Ok(())
}

/// The same answer for a wrong token and a used link: neither tells anything.
fn check_link(app: &App, token: &str) -> Result<(), Problem> {
    let expected = std::env::var("SETUP_TOKEN").unwrap_or_default();
    // A token that can be guessed is no token.
    let right = expected.len() >= 16 && session::same(token, &expected);
    if right && !state::is_set_up(&app.state)? { Ok(()) } else { Err(gone()) }
}

fn gone() -> Problem {
    Problem::NotFound("This set-up link is not valid, or it was used already.".to_owned())
}

fn page(status: u16, token: &str, name: &str, problem: Option<&str>) -> Reply {
    let content = html! {
        section.card.narrow {
            h1 { "Welcome" }
            p { "Make the first administrator account. This link works once." }
            (layout::alert(problem))
            form.stack method="post" action="/setup" {
                input type="hidden" name="token" value=(token);
                label for="name" { "Account name" }
                input #name name="name" value=(name) required autocomplete="username" autocapitalize="none" maxlength="64";
                label for="password" { "Password " span.hint { "at least 10 characters" } }
                input #password type="password" name="password" required autocomplete="new-password" minlength="10";
                label for="repeat" { "Password again" }
                input #repeat type="password" name="repeat" required autocomplete="new-password" minlength="10";
                button type="submit" { "Make the account" }
            }
        }
    };
    Reply::page(status, layout::page(None, "", "Set up", &content))
}
