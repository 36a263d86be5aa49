//! The access service as a message: subjects, secure keys, access rights, history. Mirrors WIT
//! `marcato:access` (sdk/wit/access.wit); one request enum serves local and remote owners alike.
//!
//! A secure key is 256 random bits that the service makes, shows once and keeps only as a salted
//! SHA-256. A high-entropy key needs no slow hash; people's passwords do and do not belong here.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    /// A patient.
    Patient,
    /// A doctor.
    Doctor,
    /// Other staff, administrators among them.
    Staff,
}

/// A person in the register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The user id: 1 to 64 letters, digits, `.`, `_` or `-`, e.g. `1001`.
    pub id: String,
    /// What it is.
    pub kind: SubjectKind,
    /// Its name (1 to 200 characters).
    pub name: String,
    /// Free text (up to 2,000 characters).
    pub description: String,
    /// Hexadecimal salted SHA-256 of its live key; `None` when it has none.
    pub key_hash: Option<String>,
    /// Hexadecimal salt of `key_hash`.
    pub key_salt: Option<String>,
    /// When the live key was issued.
    pub key_issued_at: Option<Timestamp>,
    /// What it may do by itself, on every resource.
    pub permission: Permission,
    /// When it was added.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Counts changes; `UpdateSubject` may demand it.
    pub version: u64,
}

/// Read and write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Permission {
    /// May read.
    pub read: bool,
    /// May write.
    pub write: bool,
}

/// A subject's right on one resource (`patient/1001`, `ward/7`), or its default on `*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRight {
    /// Who.
    pub subject: String,
    /// On what: 1 to 256 printable characters, or `*`.
    pub resource: String,
    /// What is allowed.
    pub permission: Permission,
    /// Who granted it.
    pub granted_by: String,
    /// When.
    pub granted_at: Timestamp,
}

/// A key that was just issued: the only time that it is seen.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedKey {
    /// `mk_` and 43 characters of base64url: 256 random bits.
    pub key: String,
    /// Hexadecimal salted SHA-256, as it is stored.
    pub hash: String,
    /// When.
    pub issued_at: Timestamp,
}

impl std::fmt::Debug for IssuedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedKey").field("key", &"***").field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// A page wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRequest {
    /// How many entries to skip.
    pub offset: u64,
    /// How many to answer (1 to 200).
    pub limit: u32,
}

/// A page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// Its entries.
    pub items: Vec<T>,
    /// How many entries there are in all.
    pub total: u64,
}

/// A kind of change or look-up in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A subject was added.
    SubjectAdded,
    /// A subject was changed.
    SubjectChanged,
    /// A subject was removed, with its keys and rights.
    SubjectRemoved,
    /// A key was issued or rotated.
    KeyIssued,
    /// A key was revoked.
    KeyRevoked,
    /// A key was verified, successfully or not.
    KeyVerified,
    /// A right was granted.
    RightGranted,
    /// A right was withdrawn.
    RightWithdrawn,
    /// A record was looked at (the app reports it).
    Viewed,
    /// Something was refused (the app reports it).
    Refused,
    /// Somebody logged in or out, or failed to (the app reports it).
    Session,
}

/// A line of the history; never changed or removed by a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Its place.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// Who did it, as the app says.
    pub actor: String,
    /// What.
    pub change: Change,
    /// On whom.
    pub subject: Option<String>,
    /// Details in words; never a key.
    pub detail: String,
}

/// A call on an access service. `actor` is who does it, for the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessRequest {
    /// Adds a subject. Conflict when the id is taken.
    AddSubject {
        /// Who does it.
        actor: String,
        /// Its id.
        id: String,
        /// What it is.
        kind: SubjectKind,
        /// Its name.
        name: String,
        /// Free text.
        description: String,
        /// What it may do.
        permission: Permission,
    },
    /// Changes a subject; `None` leaves a field.
    UpdateSubject {
        /// Who does it.
        actor: String,
        /// Which.
        id: String,
        /// New kind.
        kind: Option<SubjectKind>,
        /// New name.
        name: Option<String>,
        /// New free text.
        description: Option<String>,
        /// New permission.
        permission: Option<Permission>,
        /// Conflict when the subject's version is another.
        expected_version: Option<u64>,
    },
    /// Removes a subject with its keys and rights.
    RemoveSubject {
        /// Who does it.
        actor: String,
        /// Which.
        id: String,
    },
    /// One subject.
    GetSubject {
        /// Which.
        id: String,
    },
    /// Subjects in the order of their ids (numbers as numbers), with an optional search.
    ListSubjects {
        /// Only this kind.
        kind: Option<SubjectKind>,
        /// Only those whose id, name or description has this text, case-insensitively.
        search: Option<String>,
        /// Which page.
        page: PageRequest,
    },
    /// Issues a key, or replaces the live one (rotation).
    IssueKey {
        /// Who does it.
        actor: String,
        /// Whose.
        id: String,
    },
    /// Revokes the live key; fine when there is none.
    RevokeKey {
        /// Who does it.
        actor: String,
        /// Whose.
        id: String,
    },
    /// Whether this is the subject's live key, compared in constant time.
    VerifyKey {
        /// Who asks.
        actor: String,
        /// Whose.
        id: String,
        /// The key as it was shown.
        key: String,
    },
    /// Grants a right on a resource, or changes it.
    Grant {
        /// Who does it.
        actor: String,
        /// To whom.
        id: String,
        /// On what.
        resource: String,
        /// What is allowed.
        permission: Permission,
    },
    /// Withdraws a right; fine when there is none.
    Withdraw {
        /// Who does it.
        actor: String,
        /// From whom.
        id: String,
        /// On what.
        resource: String,
    },
    /// Rights of a subject.
    ListRights {
        /// Whose.
        id: String,
        /// Which page.
        page: PageRequest,
    },
    /// What a subject may do with a resource: its right there, else its right on `*`, else its own permission.
    Check {
        /// Who.
        id: String,
        /// On what.
        resource: String,
    },
    /// Adds a line to the history.
    Record {
        /// Who did it.
        actor: String,
        /// What.
        change: Change,
        /// On whom.
        subject: Option<String>,
        /// Details in words.
        detail: String,
    },
    /// The history, newest first.
    History {
        /// Only of this subject.
        subject: Option<String>,
        /// Which page.
        page: PageRequest,
    },
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessResponse {
    /// A subject, as it is after the call.
    Subject(Subject),
    /// A page of subjects.
    Subjects(Page<Subject>),
    /// A key, shown once.
    Issued(IssuedKey),
    /// Whether a key is right.
    Verified(bool),
    /// A page of rights.
    Rights(Page<AccessRight>),
    /// What is allowed.
    Allowed(Permission),
    /// A page of the history.
    History(Page<HistoryEntry>),
    /// Done, durably.
    Done,
}

/// Why a call failed. Nothing was written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessError {
    /// No such subject.
    #[error("no subject {0:?}")]
    NotFound(String),
    /// The id is taken, or the version is another.
    #[error("conflict: {0}")]
    Conflict(String),
    /// A field is not valid; names it.
    #[error("{field}: {message}")]
    Invalid {
        /// Which field.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// The binding does not exist.
    #[error("no such binding")]
    NoSuchBinding,
    /// The disk is full.
    #[error("the disk is full")]
    DiskFull,
    /// The database is damaged: restore a backup.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// The owner cannot be reached or is busy; try again.
    #[error("unavailable: {0}")]
    Unavailable(String),
}
