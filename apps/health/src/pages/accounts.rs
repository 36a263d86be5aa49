//! Who can log in: administrators make accounts; everybody changes their own password.

use marcato_guest::access::Change;
use maud::html;

use super::layout::{self, Bar};
use crate::App;
use crate::auth::{self, User};
use crate::forms::{Fields, is_account_name};
use crate::http::{Reply, Request};
use crate::problem::Problem;
use crate::state::{self, Account, Role};

pub(crate) fn show(app: &App, user: &User, problem: Option<&Problem>) -> Result<Reply, Problem> {
    auth::require_admin(app, user, "see the accounts")?;
    let accounts = state::accounts(&app.state)?;
    let message = problem.map(Problem::message);
    let content = html! {
        h1 { "Accounts" }
        p.hint { "An administrator may do everything. A doctor may do what the register allows the user that the account is linked to." }
        table.accounts {
            thead { tr {
                th scope="col" { "Account" } th scope="col" { "Role" } th scope="col" { "Linked user" }
                th scope="col" { "Made" } th scope="col" { "State" }
                th scope="col" { span.visually-hidden { "Actions" } }
            } }
            tbody { @for account in &accounts { (row(user, account)) } }
        }
        section.card.narrow {
            h2 { "Add account" }
            (layout::alert(message.as_deref()))
            form.stack method="post" action="/accounts" {
                (layout::csrf(&user.csrf))
                label for="name" { "Account name" }
                input #name name="name" required maxlength="64" autocomplete="off" autocapitalize="none";
                label for="role" { "Role" }
                select #role name="role" { option value="doctor" { "Doctor" } option value="admin" { "Administrator" } }
                label for="subject" { "Linked user id " span.hint { "for doctors" } }
                input #subject name="subject" maxlength="64" autocapitalize="none";
                label for="password" { "First password " span.hint { "at least 10 characters" } }
                input #password type="password" name="password" required minlength="10" autocomplete="new-password";
                button.primary type="submit" { "Add account" }
            }
        }
    };
    let status = problem.map_or(200, Problem::status);
    Ok(Reply::page(status, layout::page(Some(&Bar::of(user)), "/accounts", "Accounts", &content)))
}

fn row(user: &User, account: &Account) -> maud::Markup {
    let verb = if account.disabled { "enable" } else { "disable" };
    html! {
        tr {
            th scope="row" data-label="Account" { (account.name) }
            td data-label="Role" { (account.role.text()) }
            td data-label="Linked user" { @if let Some(id) = &account.subject { a href={ "/users/" (id) } { (id) } } }
            td data-label="Made" { (layout::time(account.created_ms)) }
            td data-label="State" { @if account.disabled { span.badge.right-none { "Disabled" } } @else { span.badge.right-read { "Active" } } }
            td.actions {
                @if account.name != user.name() {
                    form method="post" action={ "/accounts/" (account.name) "/" (verb) } {
                        (layout::csrf(&user.csrf))
                        button.quiet type="submit" { @if account.disabled { "Enable" } @else { "Disable" } span.visually-hidden { " " (account.name) } }
                    }
                }
            }
        }
    }
}

pub(crate) fn add(app: &App, user: &User, form: &Fields) -> Result<Reply, Problem> {
    auth::require_admin(app, user, "add an account")?;
    match make(app, user, form) {
        Ok(()) => Ok(Reply::redirect("/accounts")),
        Err(problem @ (Problem::Invalid(_) | Problem::Conflict(_) | Problem::NotFound(_))) => {
            show(app, user, Some(&problem))
        }
        Err(problem) => Err(problem),
    }
}

fn make(app: &App, user: &User, form: &Fields) -> Result<(), Problem> {
    let name = form.text("name");
    let role = match form.text("role") {
        "admin" => Role::Admin,
        "doctor" => Role::Doctor,
        _ => return Err(Problem::Invalid("Role: choose one.".to_owned())),
    };
    let subject = Some(form.text("subject").to_owned()).filter(|s| !s.is_empty());
    match (&subject, role) {
        (Some(id), _) => {
            app.register.get_subject(id)?;
        }
        (None, Role::Doctor) => {
            return Err(Problem::Invalid(
                "Linked user id: a doctor's rights come from a user of the register.".to_owned(),
            ));
        }
        (None, Role::Admin) => {}
    }
    let account = auth::new_account(app, name, form.raw("password"), role, subject.clone())?;
    if state::account(&app.state, name)?.is_some() {
        return Err(Problem::Conflict(format!("The account {name} exists already.")));
    }
    // Recorded first: a line too many is better than an account that nobody made.
    let detail = format!("added the account {name} ({})", role.text());
    app.register.record(user.name(), Change::Session, subject.as_deref(), &detail)?;
    state::save_account(&app.state, &account)
}

pub(crate) fn set_disabled(app: &App, user: &User, name: &str, disabled: bool) -> Result<Reply, Problem> {
    auth::require_admin(app, user, "disable or enable an account")?;
    if name == user.name() {
        return Err(Problem::Conflict(
            "Your own account stays as it is: another administrator must do this.".to_owned(),
        ));
    }
    let found = if is_account_name(name) { state::account(&app.state, name)? } else { None };
    let account = found.ok_or_else(|| Problem::NotFound("There is no such account.".to_owned()))?;
    let verb = if disabled { "disabled" } else { "enabled" };
    app.register.record(user.name(), Change::Session, None, &format!("{verb} the account {name}"))?;
    state::save_account(&app.state, &Account { disabled, epoch: account.epoch + 1, ..account })?;
    Ok(Reply::redirect("/accounts"))
}

pub(crate) fn password_form(user: &User, problem: Option<&Problem>) -> Reply {
    let message = problem.map(Problem::message);
    let content = html! {
        section.card.narrow {
            h1 { "Change password" }
            (layout::alert(message.as_deref()))
            form.stack method="post" action="/password" {
                (layout::csrf(&user.csrf))
                label for="old" { "Password now" }
                input #old type="password" name="old" required autocomplete="current-password";
                label for="password" { "New password " span.hint { "at least 10 characters" } }
                input #password type="password" name="password" required minlength="10" autocomplete="new-password";
                label for="repeat" { "New password again" }
                input #repeat type="password" name="repeat" required minlength="10" autocomplete="new-password";
                button.primary type="submit" { "Change" }
            }
            p.hint { "Every session of this account ends; log in again with the new password." }
        }
    };
    Reply::page(
        problem.map_or(200, Problem::status),
        layout::page(Some(&Bar::of(user)), "", "Change password", &content),
    )
}

pub(crate) fn change_password(app: &App, request: &Request, user: &User, form: &Fields) -> Result<Reply, Problem> {
    match try_change(app, request, user, form) {
        Ok(()) => Ok(Reply::redirect("/login").with("set-cookie", auth::no_cookie(request))),
        Err(problem @ (Problem::Invalid(_) | Problem::Throttled(_))) => Ok(password_form(user, Some(&problem))),
        Err(problem) => Err(problem),
    }
}

fn try_change(app: &App, request: &Request, user: &User, form: &Fields) -> Result<(), Problem> {
    if form.raw("password") != form.raw("repeat") {
        return Err(Problem::Invalid("The two new passwords differ.".to_owned()));
    }
    // The same check and the same throttling as a log-in.
    auth::log_in(app, request, user.name(), form.raw("old"))?;
    let password_hash = auth::hash_password(user.name(), form.raw("password"))?;
    app.register.record(user.name(), Change::Session, None, "changed the password")?;
    state::save_account(&app.state, &Account { password_hash, epoch: user.account.epoch + 1, ..user.account.clone() })
}
