//! The audit page: who saw or changed what. For administrators; looking at it is recorded too.

use marcato_guest::access::{self, Change};
use maud::html;

use super::layout::{self, Bar};
use crate::App;
use crate::auth::{self, User};
use crate::forms::{Fields, is_id, query_value};
use crate::http::Reply;
use crate::problem::Problem;

const PAGE: u32 = 25;

pub(crate) fn show(app: &App, user: &User, query: &Fields) -> Result<Reply, Problem> {
    auth::require_admin(app, user, "see the audit page")?;
    let wanted = query.text("subject");
    let subject = Some(wanted).filter(|s| is_id(s));
    let page = app.register.history(subject, access::page(query.page(), PAGE))?;
    app.register.record(user.name(), Change::Viewed, subject, &format!("audit page {}", query.page()))?;
    let base = subject.map_or_else(|| "/audit?".to_owned(), |s| format!("/audit?subject={}&", query_value(s)));
    let content = html! {
        h1 { "Audit" }
        form.search method="get" action="/audit" {
            label for="subject" { "Only of this user id" }
            div.row {
                input #subject name="subject" value=(wanted) maxlength="64" autocapitalize="none";
                button type="submit" { "Show" }
                @if !wanted.is_empty() { a.button href="/audit" { "Show all" } }
            }
        }
        @if page.items.is_empty() { p.none { "Nothing was recorded." } }
        @else {
            table.audit {
                caption.visually-hidden { "Who saw or changed what, newest first" }
                thead { tr {
                    th scope="col" { "When" } th scope="col" { "Who" } th scope="col" { "What" }
                    th scope="col" { "User" } th scope="col" { "Details" }
                } }
                tbody {
                    @for entry in &page.items {
                        tr {
                            td data-label="When" { (layout::time(entry.at)) }
                            td data-label="Who" { (entry.actor) }
                            td data-label="What" { span class={ "badge change-" (change_word(entry.change)) } { (change_text(entry.change)) } }
                            td data-label="User" { @if let Some(id) = &entry.subject { a href={ "/audit?subject=" (query_value(id)) } { (id) } } }
                            td data-label="Details" { (entry.detail) }
                        }
                    }
                }
            }
        }
        (layout::pager(&base, query.page(), u64::from(PAGE), page.total))
    };
    Ok(Reply::page(200, layout::page(Some(&Bar::of(user)), "/audit", "Audit", &content)))
}

/// For programs and style classes.
pub(crate) fn change_word(change: Change) -> &'static str {
    match change {
        Change::SubjectAdded => "subject_added",
        Change::SubjectChanged => "subject_changed",
        Change::SubjectRemoved => "subject_removed",
        Change::KeyIssued => "key_issued",
        Change::KeyRevoked => "key_revoked",
        Change::KeyVerified => "key_verified",
        Change::RightGranted => "right_granted",
        Change::RightWithdrawn => "right_withdrawn",
        Change::Viewed => "viewed",
        Change::Refused => "refused",
        Change::Session => "session",
    }
}

fn change_text(change: Change) -> &'static str {
    match change {
        Change::SubjectAdded => "User added",
        Change::SubjectChanged => "User changed",
        Change::SubjectRemoved => "User removed",
        Change::KeyIssued => "Key issued",
        Change::KeyRevoked => "Key revoked",
        Change::KeyVerified => "Key checked",
        Change::RightGranted => "Right granted",
        Change::RightWithdrawn => "Right withdrawn",
        Change::Viewed => "Viewed",
        Change::Refused => "Refused",
        Change::Session => "Session",
    }
}
