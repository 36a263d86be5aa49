//! The embedded store: SQLite with a write-ahead log and full sync.
//!
//! Owns: the file, its schema, reading connections and the writer thread's life. Does not own the
//! order of writes (`writer.rs`). One router has the file; several routers need etcd.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use marcato_api::StoreRevision;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params};
use tokio::sync::{mpsc, oneshot, watch};

use super::writer::{self, Job, engine};
use super::{Change, Listing, Order, Store, StoreError, StoreResult, Txn, Versioned, Wish};

/// Commits that may wait for the writer; more wait for a place.
const QUEUE: usize = 256;
/// Reading connections that are kept open.
const READERS: usize = 4;
/// Changes that a watcher gets at once.
const BATCH: usize = 1_000;
/// "mrct", so that `file` and we tell our databases from others.
const APPLICATION_ID: i64 = 0x6d72_6374;
/// The schema's version.
const SCHEMA: i64 = 1;

/// The embedded store. Cheap to clone; the writer ends when the last clone is gone.
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    readers: Mutex<Vec<Connection>>,
    jobs: Option<mpsc::Sender<Job>>,
    latest: watch::Receiver<StoreRevision>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.readers.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // Closing the queue ends the writer after what it still holds.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the database at `path`, making it when it is not there. Blocks on the disk.
    /// Errors: [`StoreError::Corrupt`] when the file is not a database of ours or is damaged.
    pub fn open(path: &Path) -> StoreResult<Self> {
        Self::open_keeping(path, writer::HISTORY)
    }

    /// Opens it with so many changes kept for watchers.
    pub(super) fn open_keeping(path: &Path, history: u64) -> StoreResult<Self> {
        let corrupt = |reason: String| StoreError::Corrupt { path: path.display().to_string(), reason };
        let failed = |e: rusqlite::Error| match e.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => corrupt(e.to_string()),
            _ => StoreError::Engine { operation: "open its database", reason: format!("{}: {e}", path.display()) },
        };
        let connection = Connection::open(path).map_err(failed)?;
        configure(&connection).map_err(failed)?;
        let id: i64 = connection.query_row("PRAGMA application_id", [], |r| r.get(0)).map_err(failed)?;
        let tables: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_master", [], |r| r.get(0)).map_err(failed)?;
        if tables == 0 {
            create(&connection).map_err(failed)?;
        } else if id != APPLICATION_ID {
            return Err(corrupt("it belongs to another program".into()));
        }
        let schema: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(failed)?;
        if schema != SCHEMA {
            return Err(corrupt(format!("its schema is version {schema}, this release knows {SCHEMA}")));
        }
        let sound: String = connection.query_row("PRAGMA quick_check(1)", [], |r| r.get(0)).map_err(failed)?;
        if sound != "ok" {
            return Err(corrupt(sound));
        }
        let revision = meta(&connection, "revision").map_err(failed)?;
        let (latest_tx, latest) = watch::channel(StoreRevision(revision));
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer::run(connection, queue, &latest_tx, history))
            .map_err(|e| StoreError::Engine { operation: "start its writer", reason: e.to_string() })?;
        let inner = Inner {
            path: path.to_owned(),
            readers: Mutex::new(Vec::new()),
            jobs: Some(jobs),
            latest,
            thread: Some(thread),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    async fn reading<T: Send + 'static>(
        &self,
        operation: &'static str,
        read: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> StoreResult<T> {
        // The task holds no `Inner`: dropping the last one joins the writer, which must not happen on a pool thread
        // that others wait for.
        let kept = self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let path = self.inner.path.clone();
        let work = move || {
            let mut connection = match kept {
                Some(c) => c,
                None => {
                    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                    let c = Connection::open_with_flags(path, flags)?;
                    c.busy_timeout(Duration::from_secs(5))?;
                    c
                }
            };
            let txn = connection.transaction()?;
            let value = read(&txn)?;
            txn.finish()?;
            Ok((connection, value))
        };
        let joined = tokio::task::spawn_blocking(work).await;
        let (connection, value) =
            joined.map_err(|e| StoreError::Engine { operation, reason: e.to_string() })?.map_err(engine(operation))?;
        let mut readers = self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < READERS {
            readers.push(connection);
        }
        Ok(value)
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<StoreResult<T>>) -> Job) -> StoreResult<T> {
        let (answer, result) = oneshot::channel();
        let jobs = self.inner.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(job(answer)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    async fn changes(&self, prefix: String, after: StoreRevision) -> StoreResult<Vec<Change>> {
        let (oldest, changes) = self
            .reading("read its changes", move |txn| {
                let oldest = meta(txn, "compacted")?;
                let mut query = txn.prepare_cached(
                    "SELECT revision, key, deleted FROM changes
                     WHERE revision > ?1 AND key >= ?2 AND key < ?3 ORDER BY revision, key LIMIT ?4",
                )?;
                let rows = query.query_map(params![after.0, prefix, end_of(&prefix), BATCH], |r| {
                    Ok(Change { revision: StoreRevision(r.get(0)?), key: r.get(1)?, deleted: r.get(2)? })
                })?;
                Ok((oldest, rows.collect::<rusqlite::Result<Vec<_>>>()?))
            })
            .await?;
        if after.0 < oldest {
            return Err(StoreError::Compacted { oldest: StoreRevision(oldest) });
        }
        Ok(whole_commits(changes))
    }
}

/// Cuts a full batch before its last commit, which may go on in the next one.
fn whole_commits(mut changes: Vec<Change>) -> Vec<Change> {
    if changes.len() == BATCH
        && let Some(last) = changes.last().map(|c| c.revision)
        && changes.first().is_some_and(|c| c.revision != last)
    {
        changes.retain(|c| c.revision != last);
    }
    changes
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |r| r.get::<_, String>(0))?;
    connection.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF; PRAGMA secure_delete = ON;",
    )
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         CREATE TABLE objects (key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
         CREATE TABLE changes (revision INTEGER NOT NULL, key TEXT NOT NULL, deleted INTEGER NOT NULL,
                               PRIMARY KEY (revision, key)) WITHOUT ROWID;
         CREATE TABLE leases (name TEXT PRIMARY KEY, holder TEXT NOT NULL, until_ms INTEGER NOT NULL) WITHOUT ROWID;
         CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
         INSERT INTO meta VALUES ('revision', 0), ('compacted', 0);
         PRAGMA application_id = {APPLICATION_ID};
         PRAGMA user_version = {SCHEMA};
         COMMIT;"
    ))
}

fn meta(connection: &Connection, name: &str) -> rusqlite::Result<u64> {
    connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |r| r.get(0))
}

/// The first text after all that begin with `prefix`.
fn end_of(prefix: &str) -> String {
    format!("{prefix}\u{10FFFF}")
}

fn versioned(row: &Row<'_>) -> rusqlite::Result<Versioned> {
    let text: String = row.get(1)?;
    let value = serde_json::from_str(&text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(e)))?;
    Ok(Versioned { key: row.get(0)?, value, revision: StoreRevision(row.get(2)?) })
}

fn get(connection: &Connection, key: &str) -> rusqlite::Result<Option<Versioned>> {
    connection
        .prepare_cached("SELECT key, value, revision FROM objects WHERE key = ?1")?
        .query_row([key], versioned)
        .optional()
}

fn list(connection: &Connection, listing: &Listing) -> rusqlite::Result<Vec<Versioned>> {
    let limit = i64::try_from(listing.limit).unwrap_or(i64::MAX);
    let end = end_of(&listing.prefix);
    let (sql, low, high) = match listing.order {
        Order::Ascending => (
            "SELECT key, value, revision FROM objects WHERE key >= ?1 AND key < ?2 AND key > ?3 ORDER BY key LIMIT ?4",
            listing.after.clone().unwrap_or_default(),
            end,
        ),
        Order::Descending => (
            "SELECT key, value, revision FROM objects WHERE key >= ?1 AND key < ?2 AND key > ?3 ORDER BY key DESC LIMIT ?4",
            String::new(),
            listing.after.clone().filter(|a| *a < end).unwrap_or(end),
        ),
    };
    connection.prepare_cached(sql)?.query_map(params![listing.prefix, high, low, limit], versioned)?.collect()
}

impl Store for SqliteStore {
    fn get(&self, key: &str) -> BoxFuture<'_, StoreResult<Option<Versioned>>> {
        let key = key.to_owned();
        Box::pin(self.reading("read a key", move |txn| get(txn, &key)))
    }

    fn list(&self, listing: Listing) -> BoxFuture<'_, StoreResult<Vec<Versioned>>> {
        Box::pin(self.reading("list keys", move |txn| list(txn, &listing)))
    }

    fn read(&self, wishes: Vec<Wish>) -> BoxFuture<'_, StoreResult<(StoreRevision, Vec<Vec<Versioned>>)>> {
        Box::pin(self.reading("read", move |txn| {
            let answers = wishes.iter().map(|wish| match wish {
                Wish::Key(key) => Ok(get(txn, key)?.into_iter().collect()),
                Wish::Prefix(prefix) => list(txn, &Listing::of(prefix, usize::MAX)),
            });
            let answers = answers.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok((StoreRevision(meta(txn, "revision")?), answers))
        }))
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, StoreResult<StoreRevision>> {
        Box::pin(self.ask(move |answer| Job::Commit(txn, answer)))
    }

    fn latest(&self) -> watch::Receiver<StoreRevision> {
        self.inner.latest.clone()
    }

    fn watch(&self, prefix: &str, after: StoreRevision) -> BoxStream<'static, StoreResult<Vec<Change>>> {
        struct Watching {
            // Weak: a forgotten watcher must not keep the store open.
            store: std::sync::Weak<Inner>,
            latest: watch::Receiver<StoreRevision>,
            prefix: String,
            after: StoreRevision,
        }
        let watching =
            Watching { store: Arc::downgrade(&self.inner), latest: self.latest(), prefix: prefix.to_owned(), after };
        stream::unfold(Some(watching), |watching| async move {
            let mut w = watching?;
            loop {
                w.latest.borrow_and_update();
                let inner = w.store.upgrade()?;
                let found = SqliteStore { inner }.changes(w.prefix.clone(), w.after).await;
                match found {
                    Err(e) => return Some((Err(e), None)),
                    Ok(changes) if !changes.is_empty() => {
                        w.after = changes[changes.len() - 1].revision;
                        return Some((Ok(changes), Some(w)));
                    }
                    Ok(_) => {}
                }
                if w.latest.changed().await.is_err() {
                    return None;
                }
            }
        })
        .boxed()
    }

    fn lease(&self, name: &str, holder: &str, ttl: Duration) -> BoxFuture<'_, StoreResult<bool>> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        Box::pin(self.ask(move |answer| Job::Lease { name, holder, ttl, answer }))
    }

    fn release(&self, name: &str, holder: &str) -> BoxFuture<'_, StoreResult<()>> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        Box::pin(self.ask(move |answer| Job::Release { name, holder, answer }))
    }
}
