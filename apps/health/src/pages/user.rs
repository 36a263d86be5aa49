//! One user: everything about it, its key, its rights.

use marcato_guest::access::{self, AccessRight, IssuedKey, Permission, Subject};
use maud::{Markup, html};

use super::layout::{self, Bar};
use super::users;
use crate::App;
use crate::auth::{self, User};
use crate::forms::{Fields, kind_word, query_value};
use crate::http::Reply;
use crate::problem::Problem;

/// Rights on a page.
const RIGHTS: u32 = 50;

/// What just happened, shown on top.
enum Note<'a> {
    None,
    Added,
    Key(&'a IssuedKey),
    Verified(bool),
}

pub(crate) fn detail(app: &App, user: &User, id: &str, query: &Fields) -> Result<Reply, Problem> {
    let subject = users::view(app, user, id, "detail page")?;
    let note = if query.has("added") { Note::Added } else { Note::None };
    show(app, user, &subject, &note, query.page())
}

/// Issues or rotates, and shows the key: in this answer and never again.
pub(crate) fn issue_key(app: &App, user: &User, id: &str) -> Result<Reply, Problem> {
    users::writable(app, user, id, "issue a key")?;
    let key = app.register.issue_key(user.name(), id)?;
    let subject = app.register.get_subject(id)?;
    show(app, user, &subject, &Note::Key(&key), 1)
}

pub(crate) fn revoke_key(app: &App, user: &User, id: &str) -> Result<Reply, Problem> {
    users::writable(app, user, id, "revoke a key")?;
    app.register.revoke_key(user.name(), id)?;
    Ok(to_detail(id))
}

pub(crate) fn verify_key(app: &App, user: &User, id: &str, form: &Fields) -> Result<Reply, Problem> {
    let right = users::verify(app, user, id, form.raw("key"))?;
    let subject = app.register.get_subject(id)?;
    show(app, user, &subject, &Note::Verified(right), 1)
}

pub(crate) fn grant(app: &App, user: &User, id: &str, form: &Fields) -> Result<Reply, Problem> {
    auth::require_admin(app, user, "grant a right")?;
    let permission = form.permission().ok_or_else(|| Problem::Invalid("right: choose one".to_owned()))?;
    app.register.grant(user.name(), id, form.text("resource"), permission)?;
    Ok(to_detail(id))
}

pub(crate) fn withdraw(app: &App, user: &User, id: &str, form: &Fields) -> Result<Reply, Problem> {
    auth::require_admin(app, user, "withdraw a right")?;
    app.register.withdraw(user.name(), id, form.text("resource"))?;
    Ok(to_detail(id))
}

fn to_detail(id: &str) -> Reply {
    Reply::redirect(&format!("/users/{}", query_value(id)))
}

fn show(app: &App, user: &User, s: &Subject, note: &Note<'_>, page: u64) -> Result<Reply, Problem> {
    let rights = app.register.list_rights(&s.id, access::page(page, RIGHTS))?;
    let may_write = user.is_admin() || (!auth::needs_admin(s) && auth::may(app, user, true, &auth::resource_of(s))?);
    let content = html! {
        p.crumb { a href="/users" { "Users" } " / " (s.id) }
        div.head {
            h1 { (s.name) }
            span.kind { (kind_word(s.kind)) }
            @if may_write { a.button.danger href={ "/users/" (s.id) "/delete" } { "Delete" } }
        }
        (note_box(note))
        div.columns {
            (facts(s))
            (key_card(user, s, may_write))
            @if may_write { (edit_card(user, s)) }
            (rights_card(user, s, &rights.items, rights.total, page))
        }
    };
    Ok(Reply::page(200, layout::page(Some(&Bar::of(user)), "/users", &s.name, &content)))
}

fn note_box(note: &Note<'_>) -> Markup {
    html! {
        @match note {
            Note::None => {},
            Note::Added => p.good role="status" { "The user was added." },
            Note::Key(issued) => div.key-shown role="status" {
                h2 { "The new key" }
                code.secret { (issued.key) }
                p { strong { "It is shown only now." } " Hand it over safely; only its hash is kept. A key from before is void." }
            },
            Note::Verified(true) => p.good role="status" { "The key is right." },
            Note::Verified(false) => p.alert role="alert" { "The key is wrong, or there is no live key." },
        }
    }
}

fn facts(s: &Subject) -> Markup {
    html! {
        section.card {
            h2 { "Record" }
            dl {
                dt { "User id" } dd { (s.id) }
                dt { "Kind" } dd { (kind_word(s.kind)) }
                dt { "Access right" } dd { (layout::right_badge(s.permission)) }
                dt { "Description" } dd.text { @if s.description.is_empty() { span.none { "none" } } @else { (s.description) } }
                dt { "Added" } dd { (layout::time(s.created_at)) }
                dt { "Changed" } dd { (layout::time(s.updated_at)) " · version " (s.version) }
            }
        }
    }
}

fn key_card(user: &User, s: &Subject, may_write: bool) -> Markup {
    let has_key = s.key_hash.is_some();
    html! {
        section.card {
            h2 { "Secure key" }
            dl {
                dt { "Secure hash key" } dd { (users::hash(s.key_hash.as_deref())) }
                dt { "Issued" } dd { @if let Some(at) = s.key_issued_at { (layout::time(at)) } @else { span.none { "never" } } }
            }
            @if may_write {
                div.row {
                    form method="post" action={ "/users/" (s.id) "/key" } {
                        (layout::csrf(&user.csrf))
                        button type="submit" { @if has_key { "Rotate key" } @else { "Issue key" } }
                    }
                    @if has_key {
                        form method="post" action={ "/users/" (s.id) "/key/revoke" } {
                            (layout::csrf(&user.csrf))
                            button.danger type="submit" { "Revoke key" }
                        }
                    }
                }
            }
            form.stack method="post" action={ "/users/" (s.id) "/verify" } {
                (layout::csrf(&user.csrf))
                label for="key" { "Verify a key" }
                div.row {
                    input #key name="key" required autocomplete="off" spellcheck="false" placeholder="mk_…" maxlength="200";
                    button type="submit" { "Verify" }
                }
            }
        }
    }
}

fn edit_card(user: &User, s: &Subject) -> Markup {
    html! {
        section.card {
            h2 { "Change" }
            form.stack method="post" action={ "/users/" (s.id) } {
                (layout::csrf(&user.csrf))
                input type="hidden" name="version" value=(s.version);
                label for="name" { "Name" }
                input #name name="name" value=(s.name) required maxlength="200";
                @if user.is_admin() {
                    label for="kind" { "Kind" }
                    (layout::kind_choice("kind", kind_word(s.kind)))
                    label for="right" { "Access right" }
                    (layout::right_choice("right", None, s.permission))
                }
                label for="description" { "Description" }
                textarea #description name="description" rows="3" maxlength="2000" { (s.description) }
                div.row { button.primary type="submit" { "Save" } }
            }
        }
    }
}

fn rights_card(user: &User, s: &Subject, rights: &[AccessRight], total: u64, page: u64) -> Markup {
    html! {
        section.card.wide {
            h2 { "Rights on single resources" }
            p.hint { "A right here counts before the one on " code { "*" } ", and that before the access right of the record." }
            @if rights.is_empty() { p.none { "None." } }
            @else {
                table {
                    thead { tr {
                        th scope="col" { "Resource" } th scope="col" { "Right" } th scope="col" { "Granted" }
                        th scope="col" { span.visually-hidden { "Actions" } }
                    } }
                    tbody { @for right in rights { (right_row(user, s, right)) } }
                }
                @if total > u64::from(RIGHTS) {
                    (layout::pager(&format!("/users/{}?", s.id), page, u64::from(RIGHTS), total))
                }
            }
            @if user.is_admin() {
                form.row.grant method="post" action={ "/users/" (s.id) "/rights" } {
                    (layout::csrf(&user.csrf))
                    div {
                        label for="resource" { "Resource" }
                        input #resource name="resource" required maxlength="256" placeholder="patient/1001, register or *";
                    }
                    div {
                        label for="grant-right" { "Right" }
                        (layout::right_choice("grant-right", None, Permission { read: true, write: false }))
                    }
                    button type="submit" { "Grant" }
                }
            }
        }
    }
}

fn right_row(user: &User, s: &Subject, right: &AccessRight) -> Markup {
    html! {
        tr {
            th scope="row" data-label="Resource" { code { (right.resource) } }
            td data-label="Right" { (layout::right_badge(right.permission)) }
            td data-label="Granted" { (layout::time(right.granted_at)) " by " (right.granted_by) }
            td.actions {
                @if user.is_admin() {
                    form method="post" action={ "/users/" (s.id) "/rights/withdraw" } {
                        (layout::csrf(&user.csrf))
                        input type="hidden" name="resource" value=(right.resource);
                        button.quiet type="submit" { "Withdraw" span.visually-hidden { " " (right.resource) } }
                    }
                }
            }
        }
    }
}
