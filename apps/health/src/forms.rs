//! Forms, queries and paths: outside bytes into fields. Anything odd gives an absent field, never a panic.

use std::collections::BTreeMap;

use marcato_guest::access::{Permission, SubjectKind};

/// Fields of an `application/x-www-form-urlencoded` text. The first of equal names counts.
pub(crate) struct Fields(BTreeMap<String, String>);

impl Fields {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut fields = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(bytes).take(64) {
            fields.entry(name.into_owned()).or_insert_with(|| value.into_owned());
        }
        Self(fields)
    }

    /// A field as it was sent; empty when it was not.
    pub(crate) fn raw(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// A field without blanks around it.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.raw(name).trim()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The page number, from 1.
    pub(crate) fn page(&self) -> u64 {
        self.text("page").parse().unwrap_or(1).clamp(1, 1_000_000)
    }

    /// The rights that the choice `right` names.
    pub(crate) fn permission(&self) -> Option<Permission> {
        match self.text("right") {
            "none" => Some(Permission { read: false, write: false }),
            "read" => Some(Permission { read: true, write: false }),
            "write" => Some(Permission { read: false, write: true }),
            "read-write" => Some(Permission { read: true, write: true }),
            _ => None,
        }
    }

    pub(crate) fn kind(&self) -> Option<SubjectKind> {
        parse_kind(self.text("kind"))
    }
}

pub(crate) fn parse_kind(word: &str) -> Option<SubjectKind> {
    match word {
        "patient" => Some(SubjectKind::Patient),
        "doctor" => Some(SubjectKind::Doctor),
        "staff" => Some(SubjectKind::Staff),
        _ => None,
    }
}

pub(crate) fn kind_word(kind: SubjectKind) -> &'static str {
    match kind {
        SubjectKind::Patient => "patient",
        SubjectKind::Doctor => "doctor",
        SubjectKind::Staff => "staff",
    }
}

pub(crate) fn right_word(permission: Permission) -> &'static str {
    match (permission.read, permission.write) {
        (false, false) => "none",
        (true, false) => "read",
        (false, true) => "write",
        (true, true) => "read-write",
    }
}

/// Whether a text may be a user id: what goes into a path needs no escape then.
pub(crate) fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Whether a text may be an account's name.
pub(crate) fn is_account_name(text: &str) -> bool {
    is_id(text) && text.bytes().all(|b| !b.is_ascii_uppercase())
}

/// A value inside a query.
pub(crate) fn query_value(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// Where a page of ten stands: `1..10 of 12`, `0 of 0`.
pub(crate) fn range_text(page: u64, size: u64, total: u64) -> String {
    let first = page.saturating_sub(1).saturating_mul(size).saturating_add(1);
    if total == 0 {
        return "0 of 0".to_owned();
    }
    if first > total {
        return format!("none of {total}");
    }
    format!("{first}..{} of {total}", total.min(first.saturating_add(size - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_a_page_stands() {
        assert_eq!(range_text(1, 10, 12), "1..10 of 12");
        assert_eq!(range_text(2, 10, 12), "11..12 of 12");
        assert_eq!(range_text(1, 10, 0), "0 of 0");
        assert_eq!(range_text(1, 10, 10), "1..10 of 10");
        assert_eq!(range_text(9, 10, 12), "none of 12");
        assert_eq!(range_text(u64::MAX, 10, 12), "none of 12");
    }

    #[test]
    fn reads_forms_and_survives_garbage() {
        let fields = Fields::parse(b"name=Ada+L%C3%B6v&right=read-write&name=second&page=3&kind=doctor");
        assert_eq!(fields.text("name"), "Ada L\u{f6}v");
        assert_eq!((fields.page(), fields.has("x")), (3, false));
        assert!(fields.permission().is_some_and(|p| p.read && p.write));
        assert!(matches!(fields.kind(), Some(SubjectKind::Doctor)));
        for garbage in [&b"%"[..], b"%zz=%", b"&&&=&=", b"\xff\xfe=\xff", b"page=-1&right=all", &[b'a'; 5000]] {
            let fields = Fields::parse(garbage);
            assert_eq!(fields.page(), 1);
            assert!(fields.permission().is_none());
        }
    }

    #[test]
    fn ids_need_no_escape() {
        assert!(is_id("1001") && is_id("a.b-c_D"));
        for bad in ["", "a/b", "a b", "<x>", "..%2f", &"x".repeat(65)] {
            assert!(!is_id(bad), "{bad}");
        }
        assert!(is_account_name("ada") && !is_account_name("Ada"));
        assert_eq!(query_value("a&b=<c>"), "a%26b%3D%3Cc%3E");
    }
}
