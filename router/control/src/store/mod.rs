//! The store: keys, JSON values and one revision counter, small enough that SQLite and etcd both fit.
//!
//! Owns: the trait, its types and the engines. Does not own what the values mean (`state`). Every
//! write goes through one compare-and-commit transaction, as etcd has it; a commit that was answered
//! is on disk. Flow: admin API and tasks -> state -> store.

#[cfg(test)]
pub(crate) mod contract;
mod sqlite;
#[cfg(test)]
mod tests;
mod writer;

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use marcato_api::StoreRevision;
use tokio::sync::watch;

pub use sqlite::SqliteStore;

/// What every store call gives.
pub type StoreResult<T> = Result<T, StoreError>;

/// Why the store could not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A check of the transaction did not hold; nothing was written.
    #[error("{key} is not as expected")]
    Conflict {
        /// The first key whose check failed.
        key: String,
    },
    /// The wish for changes reaches further back than the store remembers: read everything anew.
    #[error("changes before revision {oldest} are forgotten")]
    Compacted {
        /// The oldest revision from which changes can be had.
        oldest: StoreRevision,
    },
    /// The engine failed: disk full, file locked, …
    #[error("the store cannot {operation}: {reason}")]
    Engine {
        /// What was tried.
        operation: &'static str,
        /// What the engine said.
        reason: String,
    },
    /// The file is not one of ours, or is damaged.
    #[error("{path} is not a Marcato database or is damaged: {reason}. Move it away or put a backup in its place")]
    Corrupt {
        /// Which file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// A value with its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: serde_json::Value,
    /// The revision of the commit that wrote it last.
    pub revision: StoreRevision,
}

/// What a key must be for a transaction to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Not there.
    Absent,
    /// There, whatever its version.
    Present,
    /// There, last written by this commit.
    Revision(StoreRevision),
    /// Whatever.
    Any,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Which key.
    pub key: String,
    /// What it must be.
    pub expected: Expected,
}

/// A write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(String, serde_json::Value),
    /// Removes a key; removing what is not there is fine.
    Delete(String),
}

/// All checks hold and all writes are made, or nothing is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// Conditions.
    pub checks: Vec<Check>,
    /// Writes, in order.
    pub writes: Vec<Write>,
}

impl Txn {
    /// An empty transaction.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn check(mut self, key: impl Into<String>, expected: Expected) -> Self {
        self.checks.push(Check { key: key.into(), expected });
        self
    }

    /// Adds a write.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: serde_json::Value) -> Self {
        self.writes.push(Write::Put(key.into(), value));
        self
    }

    /// Adds a removal.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete(key.into()));
        self
    }
}

/// One wish of a consistent read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// One key.
    Key(String),
    /// All keys with this prefix.
    Prefix(String),
}

/// In which order a listing comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Lowest key first.
    Ascending,
    /// Highest key first.
    Descending,
}

/// A listing of keys with one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Their prefix, for example `apps/`.
    pub prefix: String,
    /// Only keys after this one, in the listing's order.
    pub after: Option<String>,
    /// At most this many.
    pub limit: usize,
    /// In this order.
    pub order: Order,
}

impl Listing {
    /// The first `limit` keys with this prefix, lowest first.
    #[must_use]
    pub fn of(prefix: impl Into<String>, limit: usize) -> Self {
        Self { prefix: prefix.into(), after: None, limit, order: Order::Ascending }
    }
}

/// A key that a commit changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The commit.
    pub revision: StoreRevision,
    /// Which key.
    pub key: String,
    /// It was removed.
    pub deleted: bool,
}

/// What a store engine can do. Object-safe, so that the engine is chosen at start.
pub trait Store: Send + Sync + 'static {
    /// One key.
    fn get(&self, key: &str) -> BoxFuture<'_, StoreResult<Option<Versioned>>>;

    /// Keys with one prefix.
    fn list(&self, listing: Listing) -> BoxFuture<'_, StoreResult<Vec<Versioned>>>;

    /// Several wishes answered from one moment: the revision of that moment, and one answer per wish.
    fn read(&self, wishes: Vec<Wish>) -> BoxFuture<'_, StoreResult<(StoreRevision, Vec<Vec<Versioned>>)>>;

    /// Commits when every check holds. Answers the commit's revision, durably.
    /// Errors: [`StoreError::Conflict`] names the first key whose check failed.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, StoreResult<StoreRevision>>;

    /// The latest committed revision, as it grows.
    fn latest(&self) -> watch::Receiver<StoreRevision>;

    /// Every change to keys with this prefix after a revision, in order, without end. Batches are
    /// never empty. Errors: [`StoreError::Compacted`] ends the stream.
    fn watch(&self, prefix: &str, after: StoreRevision) -> BoxStream<'static, StoreResult<Vec<Change>>>;

    /// Takes or renews a lease: true when `holder` has it now, for `ttl` from now.
    fn lease(&self, name: &str, holder: &str, ttl: Duration) -> BoxFuture<'_, StoreResult<bool>>;

    /// Gives a lease up; nothing happens when someone else has it.
    fn release(&self, name: &str, holder: &str) -> BoxFuture<'_, StoreResult<()>>;
}
