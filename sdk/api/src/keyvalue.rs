//! The key-value service as a message: one request enum, so that a call to the owner on the same
//! host and to one elsewhere is the same call. Source: WIT `wasi:keyvalue@0.2.0-draft`.

use serde::{Deserialize, Serialize};

/// A call on a key-value service. Keys: 1 to 1,024 bytes; values: up to 1 MiB; buckets are separate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyValueRequest {
    /// The value of a key.
    Get {
        /// The key.
        key: String,
    },
    /// Values of several keys, in their order.
    GetMany {
        /// The keys (at most 1,000).
        keys: Vec<String>,
    },
    /// Set a value.
    Set {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
    },
    /// Set several, all or none.
    SetMany {
        /// Keys and values (at most 1,000).
        entries: Vec<(String, Vec<u8>)>,
    },
    /// Remove a key; fine when it is not there.
    Delete {
        /// The key.
        key: String,
    },
    /// Remove several, all or none.
    DeleteMany {
        /// The keys (at most 1,000).
        keys: Vec<String>,
    },
    /// Whether a key is there.
    Exists {
        /// The key.
        key: String,
    },
    /// Keys in the order of their first writing, after a cursor, at most 1,000.
    ListKeys {
        /// `next` of the page before.
        after: Option<u64>,
    },
    /// Add to a number (absent counts as 0), atomically. Numbers are kept as decimal text.
    Increment {
        /// The key.
        key: String,
        /// What to add.
        delta: u64,
    },
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyValueResponse {
    /// For `Get`.
    Value(Option<Vec<u8>>),
    /// For `GetMany`: each key with its value, absent ones as `None`.
    Values(Vec<(String, Option<Vec<u8>>)>),
    /// For writes; durable by then.
    Done,
    /// For `Exists`.
    Exists(bool),
    /// For `ListKeys`.
    Keys {
        /// The keys.
        keys: Vec<String>,
        /// Set when more follow.
        next: Option<u64>,
    },
    /// For `Increment`: the new number.
    Number(u64),
}

/// Why a call failed. Nothing was written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyValueError {
    /// No such store, or not bound.
    #[error("no such store")]
    NoSuchStore,
    /// A key, value or batch over its limit.
    #[error("over the limit: {0}")]
    TooLarge(String),
    /// The value is not what the call needs (`Increment` on other bytes than a number).
    #[error("not a number")]
    NotANumber,
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
