//! The frame around every page, and the pieces that pages share.

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, html};

use marcato_guest::access::Permission;

use crate::auth::User;
use crate::forms::right_word;

/// What the top of a page shows of who is logged in.
pub(crate) struct Bar {
    name: String,
    role: &'static str,
    admin: bool,
    csrf: String,
}

impl Bar {
    pub(crate) fn of(user: &User) -> Self {
        Self {
            name: user.account.name.clone(),
            role: user.account.role.text(),
            admin: user.is_admin(),
            csrf: user.csrf.clone(),
        }
    }
}

/// A whole page. `here` is the navigation entry that it belongs to.
pub(crate) fn page(bar: Option<&Bar>, here: &str, title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Health register" }
                link rel="stylesheet" href="/assets/style.css";
            }
            body {
                a.skip href="#main" { "Skip to content" }
                header.top {
                    a.brand href="/" { span.mark aria-hidden="true" { "+" } "Health register" }
                    @if let Some(bar) = bar { (navigation(bar, here)) }
                }
                main #main { (content) }
                footer { "Every look-up and change in this register is recorded." }
            }
        }
    }
}

fn navigation(bar: &Bar, here: &str) -> Markup {
    let mut entries = vec![("/users", "Users"), ("/lookup", "Look up")];
    if bar.admin {
        entries.extend([("/audit", "Audit"), ("/accounts", "Accounts")]);
    }
    html! {
        nav aria-label="Main" {
            @for (path, text) in entries {
                a href=(path) aria-current=[(path == here).then_some("page")] { (text) }
            }
        }
        div.who {
            a href="/password" title="Change your password" { (bar.name) }
            span.role { (bar.role) }
            form method="post" action="/logout" {
                (csrf(&bar.csrf))
                button.quiet type="submit" { "Log out" }
            }
        }
    }
}

/// The form's token.
pub(crate) fn csrf(token: &str) -> Markup {
    html! { input type="hidden" name="csrf" value=(token); }
}

/// A page that only says something.
pub(crate) fn message_page(bar: Option<&Bar>, status: u16, title: &str, detail: &str) -> Markup {
    let content = html! {
        section.message.refused[status == 403] {
            p.code { (status) }
            h1 { (title) }
            p { (detail) }
            p { a.button href="/" { "Back to the start" } }
        }
    };
    page(bar, "", title, &content)
}

/// What went wrong with a form.
pub(crate) fn alert(text: Option<&str>) -> Markup {
    html! { @if let Some(text) = text { p.alert role="alert" { (text) } } }
}

/// A right as a coloured word.
pub(crate) fn right_badge(permission: Permission) -> Markup {
    let word = right_word(permission);
    html! { span class={ "badge right-" (word) } { (right_text(permission)) } }
}

pub(crate) fn right_text(permission: Permission) -> &'static str {
    match (permission.read, permission.write) {
        (false, false) => "No access",
        (true, false) => "Read",
        (false, true) => "Write",
        (true, true) => "Read and write",
    }
}

/// The choice of a right.
pub(crate) fn right_choice(id: &str, form: Option<&str>, chosen: Permission) -> Markup {
    let rights = [(false, false), (true, false), (false, true), (true, true)];
    html! {
        select id=(id) name="right" form=[form] {
            @for (read, write) in rights {
                @let right = Permission { read, write };
                option value=(right_word(right)) selected[right_word(right) == right_word(chosen)] { (right_text(right)) }
            }
        }
    }
}

/// The choice of a kind.
pub(crate) fn kind_choice(id: &str, chosen: &str) -> Markup {
    html! {
        select id=(id) name="kind" {
            @for (word, text) in [("patient", "Patient"), ("doctor", "Doctor"), ("staff", "Staff")] {
                option value=(word) selected[word == chosen] { (text) }
            }
        }
    }
}

/// A time for people, in UTC.
pub(crate) fn time(ms: u64) -> Markup {
    let stamp = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    html! {
        @match stamp {
            Some(t) => time datetime=(t.to_string()) { (t.strftime("%Y-%m-%d %H:%M:%S").to_string()) " UTC" },
            None => "unknown",
        }
    }
}

/// Previous and next, with where the page stands. `base` ends in `?` or `&`.
pub(crate) fn pager(base: &str, page: u64, size: u64, total: u64) -> Markup {
    let more = page.saturating_mul(size) < total;
    html! {
        nav.pager aria-label="Pages" {
            @if page > 1 { a.button rel="prev" href={ (base) "page=" (page - 1) } { "Previous" } }
            @else { span.button.off aria-disabled="true" { "Previous" } }
            span.range { (crate::forms::range_text(page, size, total)) }
            @if more { a.button rel="next" href={ (base) "page=" (page + 1) } { "Next" } }
            @else { span.button.off aria-disabled="true" { "Next" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_everywhere() {
        let nasty = "<script>alert('x')</script>\" onload=\"y";
        let page = message_page(None, 404, nasty, nasty).into_string() + &alert(Some(nasty)).into_string();
        assert!(!page.contains("<script") && !page.contains("\" onload"), "{page}");
        assert!(csrf("\"><b>").into_string().contains("&quot;&gt;&lt;b&gt;"));
    }

    #[test]
    fn a_pager_leads_only_where_there_is_something() {
        let first = pager("/users?", 1, 10, 12).into_string();
        assert!(first.contains("1..10 of 12") && first.contains("page=2") && !first.contains("page=0"));
        let last = pager("/users?", 2, 10, 12).into_string();
        assert!(last.contains("11..12 of 12") && last.contains("page=1") && !last.contains("page=3"));
    }

    #[test]
    fn times_are_utc() {
        assert!(time(0).into_string().contains("1970-01-01 00:00:00 UTC"));
        assert_eq!(time(u64::MAX).into_string(), "unknown");
    }
}
