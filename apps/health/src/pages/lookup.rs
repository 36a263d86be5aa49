//! Retrieval: an id in, the access right and the secure hash key out.

use maud::html;

use super::layout::{self, Bar};
use super::users;
use crate::App;
use crate::auth::User;
use crate::forms::Fields;
use crate::http::Reply;
use crate::problem::Problem;

pub(crate) fn show(app: &App, user: &User, query: &Fields) -> Result<Reply, Problem> {
    let id = query.text("id");
    let (found, status, problem) = if id.is_empty() {
        (None, 200, None)
    } else {
        match users::view(app, user, id, "look-up by id") {
            Ok(subject) => (Some(subject), 200, None),
            Err(problem @ Problem::NotFound(_)) => (None, 404, Some(problem.message())),
            Err(problem) => return Err(problem),
        }
    };
    let content = html! {
        section.card.narrow {
            h1 { "Look up" }
            p { "Enter a user id to see its access right and its secure hash key." }
            form.stack method="get" action="/lookup" {
                label for="id" { "User id" }
                div.row {
                    input #id name="id" value=(id) required maxlength="64" autocapitalize="none" autofocus;
                    button.primary type="submit" { "Look up" }
                }
            }
            (layout::alert(problem.as_deref()))
            @if let Some(s) = found {
                dl.result role="status" {
                    dt { "User id" } dd { a href={ "/users/" (s.id) } { (s.id) } }
                    dt { "Name" } dd { (s.name) }
                    dt { "Access right" } dd { (layout::right_badge(s.permission)) }
                    dt { "Secure hash key" } dd { (users::hash(s.key_hash.as_deref())) }
                }
            }
        }
    };
    Ok(Reply::page(status, layout::page(Some(&Bar::of(user)), "/lookup", "Look up", &content)))
}
