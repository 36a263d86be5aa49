//! `marcato:access`: subjects, secure keys, access rights, history. Limits and semantics:
//! `sdk/wit/deps/access/access.wit`.

pub use crate::bindings::marcato::access::registry::{
    AccessRight, Change, Error, HistoryEntry, HistoryPage, IssuedKey, NewSubject, PageRequest, Permission, Register,
    RightPage, Subject, SubjectKind, SubjectPage, SubjectUpdate,
};

/// Opens a binding of kind `access` by the name that the manifest gives it.
pub fn open(binding: &str) -> Result<Register, Error> {
    Register::open(binding)
}

/// The `number`-th page (from 1) of `size` entries.
#[must_use]
pub fn page(number: u64, size: u32) -> PageRequest {
    PageRequest { offset: number.saturating_sub(1).saturating_mul(u64::from(size)), limit: size }
}
