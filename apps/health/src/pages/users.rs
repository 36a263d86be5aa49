//! The list of users: pages of ten, search, add, edit in the list, delete; and the rules behind
//! them, which the API shares.

use marcato_guest::access::{self, Change, NewSubject, Permission, Subject, SubjectUpdate};
use maud::{Markup, html};

use super::layout::{self, Bar};
use crate::App;
use crate::auth::{self, REGISTER, User, Wish};
use crate::forms::{Fields, is_id, kind_word, query_value, range_text};
use crate::http::Reply;
use crate::problem::Problem;

/// Users on a page.
pub(crate) const PAGE: u32 = 10;
/// A doctor's search looks through so many times 200 hits.
const SEARCH_CHUNKS: u64 = 10;

/// A line of the list. A doctor may have the list but not this record.
pub(crate) struct ListRow {
    pub(crate) subject: Subject,
    pub(crate) visible: bool,
}

pub(crate) struct Found {
    pub(crate) rows: Vec<ListRow>,
    pub(crate) total: u64,
}

/// A page of the list, recorded as seen. Records that the user may not read keep their place, by id only.
pub(crate) fn find(app: &App, user: &User, query: &Fields) -> Result<Found, Problem> {
    let search = query.text("q");
    auth::require(app, user, &Wish { write: false, resource: REGISTER, subject: None, what: "list users" })?;
    let wanted = Some(search).filter(|s| !s.is_empty());
    let found = match wanted {
        Some(text) if !user.is_admin() => search_readable(app, user, text, query.page())?,
        _ => {
            let page = app.register.list_subjects(None, wanted, access::page(query.page(), PAGE))?;
            Found { rows: rows(app, user, page.items)?, total: page.total }
        }
    };
    let range = range_text(query.page(), u64::from(PAGE), found.total);
    let detail = match wanted {
        Some(text) => format!("list of users, {range}, search {text:?}"),
        None => format!("list of users, {range}"),
    };
    app.register.record(user.name(), Change::Viewed, None, &detail)?;
    Ok(found)
}

fn rows(app: &App, user: &User, subjects: Vec<Subject>) -> Result<Vec<ListRow>, Problem> {
    let row = |subject: Subject| {
        let visible = auth::may(app, user, false, &auth::resource_of(&subject))?;
        Ok(ListRow { subject, visible })
    };
    subjects.into_iter().map(row).collect()
}

/// A search finds only what the user may read: a hit would tell what a hidden record holds.
fn search_readable(app: &App, user: &User, text: &str, page: u64) -> Result<Found, Problem> {
    let mut readable = Vec::new();
    for chunk in 1..=SEARCH_CHUNKS + 1 {
        if chunk > SEARCH_CHUNKS {
            return Err(Problem::Invalid(
                "This search finds too many users. Please search for more than that.".to_owned(),
            ));
        }
        let hits = app.register.list_subjects(None, Some(text), access::page(chunk, 200))?;
        readable.extend(rows(app, user, hits.items)?.into_iter().filter(|row| row.visible));
        if chunk * 200 >= hits.total {
            break;
        }
    }
    let total = readable.len() as u64;
    let skip = usize::try_from((page - 1).saturating_mul(u64::from(PAGE))).unwrap_or(usize::MAX);
    let rows = readable.into_iter().skip(skip).take(PAGE as usize).collect();
    Ok(Found { rows, total })
}

/// One record, recorded as seen.
pub(crate) fn view(app: &App, user: &User, id: &str, how: &str) -> Result<Subject, Problem> {
    let subject = readable(app, user, id, how)?;
    app.register.record(user.name(), Change::Viewed, Some(id), how)?;
    Ok(subject)
}

/// A record that the user may read.
pub(crate) fn readable(app: &App, user: &User, id: &str, what: &str) -> Result<Subject, Problem> {
    let subject = known(app, user, id, what)?;
    let resource = auth::resource_of(&subject);
    auth::require(app, user, &Wish { write: false, resource: &resource, subject: Some(id), what })?;
    Ok(subject)
}

/// A record that the user may change.
pub(crate) fn writable(app: &App, user: &User, id: &str, what: &str) -> Result<Subject, Problem> {
    let subject = known(app, user, id, what)?;
    if auth::needs_admin(&subject) {
        auth::require_admin(app, user, what)?;
    }
    let resource = auth::resource_of(&subject);
    auth::require(app, user, &Wish { write: true, resource: &resource, subject: Some(id), what })?;
    Ok(subject)
}

/// Whether an id is known is told only to those who may have the list.
fn known(app: &App, user: &User, id: &str, what: &str) -> Result<Subject, Problem> {
    if !is_id(id) {
        return Err(Problem::NotFound("That is not a user id.".to_owned()));
    }
    match app.register.get_subject(id) {
        Ok(subject) => Ok(subject),
        Err(error @ access::Error::NotFound(_)) => {
            auth::require(app, user, &Wish { write: false, resource: REGISTER, subject: Some(id), what })?;
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn create(app: &App, user: &User, new: &NewSubject) -> Result<Subject, Problem> {
    let what = "add a user";
    auth::require(app, user, &Wish { write: true, resource: REGISTER, subject: None, what })?;
    let patient = matches!(new.kind, access::SubjectKind::Patient);
    if !patient || new.permission.read || new.permission.write {
        auth::require_admin(app, user, "add a doctor, staff or somebody with rights")?;
    }
    Ok(app.register.add_subject(user.name(), new)?)
}

/// Changes a record. What a person may do is changed by administrators only, or doctors could raise each other.
pub(crate) fn change(app: &App, user: &User, id: &str, update: &SubjectUpdate) -> Result<Subject, Problem> {
    let before = writable(app, user, id, "change a user")?;
    let same_right =
        update.permission.is_none_or(|p| (p.read, p.write) == (before.permission.read, before.permission.write));
    let same_kind = update.kind.is_none_or(|k| kind_word(k) == kind_word(before.kind));
    if !same_right || !same_kind {
        auth::require_admin(app, user, "change an access right or a kind")?;
    }
    Ok(app.register.update_subject(user.name(), id, update)?)
}

pub(crate) fn remove(app: &App, user: &User, id: &str) -> Result<(), Problem> {
    writable(app, user, id, "delete a user")?;
    Ok(app.register.remove_subject(user.name(), id)?)
}

pub(crate) fn verify(app: &App, user: &User, id: &str, key: &str) -> Result<bool, Problem> {
    readable(app, user, id, "verify a key")?;
    Ok(app.register.verify_key(user.name(), id, key.trim())?)
}

pub(crate) fn list(app: &App, user: &User, query: &Fields) -> Result<Reply, Problem> {
    let found = find(app, user, query)?;
    let search = query.text("q");
    let edit = query.text("edit");
    let may_add = auth::may(app, user, true, REGISTER)?;
    let base = if search.is_empty() { "/users?".to_owned() } else { format!("/users?q={}&", query_value(search)) };
    let here = format!("{base}page={}", query.page());
    let content = html! {
        div.head {
            h1 { "Users" }
            @if may_add { a.button.primary href="/users/new" { "Add user" } }
        }
        form.search method="get" action="/users" role="search" {
            label for="q" { "Search by id, name or description" }
            div.row {
                input #q type="search" name="q" value=(search) maxlength="200";
                button type="submit" { "Search" }
                @if !search.is_empty() { a.button href="/users" { "Show all" } }
            }
        }
        @if found.rows.is_empty() {
            (nobody(user, search))
        } @else {
            (table(user, &found.rows, &here, edit))
        }
        (layout::pager(&base, query.page(), u64::from(PAGE), found.total))
    };
    Ok(Reply::page(200, layout::page(Some(&Bar::of(user)), "/users", "Users", &content)))
}

fn nobody(user: &User, search: &str) -> Markup {
    html! {
        section.empty {
            @if search.is_empty() {
                p { "The register is empty." }
                @if user.is_admin() {
                    form method="post" action="/demo" {
                        (layout::csrf(&user.csrf))
                        button type="submit" { "Load demo records" }
                        p.hint { "Twelve made-up people, 1001 to 1012. No real person is meant." }
                    }
                }
            } @else { p { "Nobody matches " strong { (search) } "." } }
        }
    }
}

fn table(user: &User, rows: &[ListRow], here: &str, edit: &str) -> Markup {
    html! {
        table.users {
            caption.visually-hidden { "Users with id, secure hash key, name and access right" }
            thead { tr {
                th scope="col" { "User id" }
                th scope="col" { "Name" }
                th scope="col" { "Secure hash key" }
                th scope="col" { "Access right" }
                th scope="col" { span.visually-hidden { "Actions" } }
            } }
            tbody {
                @for row in rows {
                    @if !row.visible { (hidden_row(&row.subject)) }
                    @else if row.subject.id == edit { (edit_row(user, &row.subject, here)) }
                    @else { (plain_row(&row.subject, here)) }
                }
            }
        }
    }
}

fn hidden_row(subject: &Subject) -> Markup {
    html! {
        tr.hidden-row {
            th scope="row" data-label="User id" { (subject.id) }
            td colspan="4" { "Your account has no read right on this record." }
        }
    }
}

fn plain_row(s: &Subject, here: &str) -> Markup {
    html! {
        tr {
            th scope="row" data-label="User id" { a href={ "/users/" (s.id) } { (s.id) } }
            td data-label="Name" { (s.name) " " span.kind { (kind_word(s.kind)) } }
            td data-label="Secure hash key" { (hash(s.key_hash.as_deref())) }
            td data-label="Access right" { (layout::right_badge(s.permission)) }
            td.actions {
                a href={ (here) "&edit=" (s.id) "#edit" } { "Edit" span.visually-hidden { " " (s.id) } }
                a.danger href={ "/users/" (s.id) "/delete" } { "Delete" span.visually-hidden { " " (s.id) } }
            }
        }
    }
}

/// The row as a form. Its fields name the form by `form=`, since a form cannot span cells.
fn edit_row(user: &User, s: &Subject, here: &str) -> Markup {
    html! {
        tr.editing #edit {
            th scope="row" data-label="User id" { (s.id) }
            td data-label="Name" {
                input form="edit-form" name="name" value=(s.name) required maxlength="200" aria-label="Name" autofocus;
            }
            td data-label="Secure hash key" { (hash(s.key_hash.as_deref())) }
            td data-label="Access right" {
                @if user.is_admin() {
                    label.visually-hidden for="edit-right" { "Access right" }
                    (layout::right_choice("edit-right", Some("edit-form"), s.permission))
                } @else { (layout::right_badge(s.permission)) }
            }
            td.actions {
                form #edit-form method="post" action={ "/users/" (s.id) } {
                    (layout::csrf(&user.csrf))
                    input type="hidden" name="version" value=(s.version);
                    input type="hidden" name="back" value=(here);
                    button.primary type="submit" { "Save" }
                }
                a href=(here) { "Cancel" }
            }
        }
    }
}

pub(crate) fn hash(hash: Option<&str>) -> Markup {
    html! {
        @match hash {
            Some(hash) => code.hash { (hash) },
            None => span.none { "no key" },
        }
    }
}

pub(crate) fn new_form(app: &App, user: &User) -> Result<Reply, Problem> {
    auth::require(app, user, &Wish { write: true, resource: REGISTER, subject: None, what: "add a user" })?;
    Ok(form_page(user, 200, &Fields::parse(b"kind=patient&right=none"), None))
}

pub(crate) fn add(app: &App, user: &User, form: &Fields) -> Result<Reply, Problem> {
    let subject = NewSubject {
        id: form.text("id").to_owned(),
        kind: form.kind().ok_or_else(|| Problem::Invalid("kind: choose one".to_owned()))?,
        name: form.text("name").to_owned(),
        description: form.text("description").to_owned(),
        permission: form.permission().unwrap_or(Permission { read: false, write: false }),
    };
    match create(app, user, &subject) {
        Ok(added) => Ok(Reply::redirect(&format!("/users/{}?added=1", added.id))),
        Err(problem @ (Problem::Invalid(_) | Problem::Conflict(_))) => {
            Ok(form_page(user, problem.status(), form, Some(&problem.message())))
        }
        Err(problem) => Err(problem),
    }
}

fn form_page(user: &User, status: u16, form: &Fields, problem: Option<&str>) -> Reply {
    let right = form.permission().unwrap_or(Permission { read: false, write: false });
    let content = html! {
        section.card {
            h1 { "Add user" }
            (layout::alert(problem))
            form.stack method="post" action="/users" {
                (layout::csrf(&user.csrf))
                label for="id" { "User id " span.hint { "letters, digits, '.', '_' or '-'" } }
                input #id name="id" value=(form.text("id")) required maxlength="64" pattern="[A-Za-z0-9._\\-]+" autocapitalize="none";
                label for="kind" { "Kind" }
                (layout::kind_choice("kind", form.text("kind")))
                label for="name" { "Name" }
                input #name name="name" value=(form.text("name")) required maxlength="200";
                label for="description" { "Description" }
                textarea #description name="description" rows="3" maxlength="2000" { (form.text("description")) }
                @if user.is_admin() {
                    label for="right" { "Access right" }
                    (layout::right_choice("right", None, right))
                }
                div.row {
                    button.primary type="submit" { "Add user" }
                    a.button href="/users" { "Cancel" }
                }
            }
        }
    };
    Reply::page(status, layout::page(Some(&Bar::of(user)), "/users", "Add user", &content))
}

/// Saves a row of the list or the form of the detail page.
pub(crate) fn save(app: &App, user: &User, id: &str, form: &Fields) -> Result<Reply, Problem> {
    let text = |name: &str| form.has(name).then(|| form.text(name).to_owned());
    let update = SubjectUpdate {
        kind: form.kind(),
        name: text("name"),
        description: text("description"),
        permission: form.permission(),
        expected_version: form.text("version").parse().ok(),
    };
    match change(app, user, id, &update) {
        Ok(_) => Ok(Reply::redirect(&back(form.text("back"), id))),
        Err(Problem::Conflict(_)) => Err(Problem::Conflict(
            "Somebody else changed this user in the meantime. Go back, reload and look at what is there now."
                .to_owned(),
        )),
        Err(problem) => Err(problem),
    }
}

/// Where to go after a change: only to the list, whatever the form says.
fn back(wanted: &str, id: &str) -> String {
    let to_list = wanted.starts_with("/users?") && wanted.bytes().all(|b| (0x21..0x7f).contains(&b));
    if to_list { wanted.to_owned() } else { format!("/users/{id}") }
}

pub(crate) fn confirm_delete(app: &App, user: &User, id: &str) -> Result<Reply, Problem> {
    let subject = writable(app, user, id, "delete a user")?;
    let content = html! {
        section.card.narrow {
            h1 { "Delete " (subject.name) "?" }
            p { "User " strong { (subject.id) } " is removed with its key and its rights. The history stays." }
            form.row method="post" action={ "/users/" (id) "/delete" } {
                (layout::csrf(&user.csrf))
                button.danger type="submit" { "Delete" }
                a.button href={ "/users/" (id) } { "Keep" }
            }
        }
    };
    Ok(Reply::page(200, layout::page(Some(&Bar::of(user)), "/users", "Delete user", &content)))
}

pub(crate) fn delete(app: &App, user: &User, id: &str) -> Result<Reply, Problem> {
    remove(app, user, id)?;
    Ok(Reply::redirect("/users"))
}

#[cfg(test)]
mod tests {
    use super::back;

    #[test]
    fn a_form_leads_back_to_the_list_only() {
        assert_eq!(back("/users?page=2", "1"), "/users?page=2");
        for elsewhere in ["https://evil", "//evil", "/users", "", "/users?a\r\nset-cookie: x=y"] {
            assert_eq!(back(elsewhere, "1"), "/users/1");
        }
    }
}
