//! The limits of every field that comes in. An error names the field.

use marcato_api::{AccessError, PageRequest};

use super::Outcome;
use crate::services::worker::Failure;

pub(super) const PAGE_MAX: u32 = 200;

fn invalid<T>(field: &str, message: impl Into<String>) -> Outcome<T> {
    Err(Failure::Answer(AccessError::Invalid { field: field.to_owned(), message: message.into() }))
}

/// 1 to 64 letters, digits, `.`, `_` or `-` (ASCII).
pub(super) fn id(text: &str) -> Outcome<()> {
    let fits = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if fits { Ok(()) } else { invalid("id", "use 1 to 64 letters, digits, '.', '_' or '-'") }
}

/// 1 to 200 printable characters.
pub(super) fn actor(text: &str) -> Outcome<()> {
    line("actor", text, 200)
}

/// 1 to 200 printable characters, not only blanks.
pub(super) fn name(text: &str) -> Outcome<()> {
    line("name", text, 200)
}

/// 1 to 256 printable characters.
pub(super) fn resource(text: &str) -> Outcome<()> {
    line("resource", text, 256)
}

fn line(field: &str, text: &str, max: usize) -> Outcome<()> {
    if text.trim().is_empty() || text.chars().count() > max {
        return invalid(field, format!("use 1 to {max} characters"));
    }
    if text.chars().any(char::is_control) {
        return invalid(field, "it has a control character");
    }
    Ok(())
}

/// Up to 2,000 characters; line breaks and tabs are fine.
pub(super) fn description(text: &str) -> Outcome<()> {
    paragraph("description", text)
}

/// Up to 2,000 characters; line breaks and tabs are fine.
pub(super) fn detail(text: &str) -> Outcome<()> {
    paragraph("detail", text)
}

fn paragraph(field: &str, text: &str) -> Outcome<()> {
    if text.chars().count() > 2000 {
        return invalid(field, "use up to 2,000 characters");
    }
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return invalid(field, "it has a control character");
    }
    Ok(())
}

/// Up to 200 characters.
pub(super) fn search(text: &str) -> Outcome<()> {
    if text.chars().count() > 200 {
        return invalid("search", "use up to 200 characters");
    }
    if text.chars().any(char::is_control) {
        return invalid("search", "it has a control character");
    }
    Ok(())
}

/// A page's limit and offset as SQLite takes them.
pub(super) fn page(page: PageRequest) -> Outcome<(i64, i64)> {
    if !(1..=PAGE_MAX).contains(&page.limit) {
        return invalid("limit", format!("use 1 to {PAGE_MAX}"));
    }
    match i64::try_from(page.offset) {
        Ok(offset) => Ok((i64::from(page.limit), offset)),
        Err(_) => invalid("offset", "it is out of range"),
    }
}
