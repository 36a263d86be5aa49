//! What apps used, over all hosts: a database of its own beside the state, as it is large, grows, and is no intent.
//!
//! Owns: the file, what is added to it and for how long it is kept, and reports. Does not own metering (the hosts) nor who
//! may see what (`api`). Flow: hosts' ledgers -> tasks (gather) -> here -> `GET /v1/usage`.
//!
//! A host's totals replace what is here of the same ledger and hour, and the place up to which the ledger was read is
//! written in the same transaction: a page that is gathered twice, or a kill in between, changes nothing. Sums are made when
//! they are read.

mod report;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{AppName, AppUsageHour, HostId, OrgName, ServiceId, UsageCursor};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

pub(crate) use report::Wish;

/// How long an hour is kept: 13 months.
pub(crate) const KEEP: Duration = Duration::from_secs(397 * 86_400);
pub(crate) const HOUR_S: i64 = 3_600;
/// "mrcv", so that `file` and we tell our databases from others.
const APPLICATION_ID: i32 = 0x6d72_6376;
/// Memory is kept in kB·s: sums of byte·ms would not fit.
const SCHEMA: &str = "
    CREATE TABLE hosts (host TEXT PRIMARY KEY, ledger INTEGER NOT NULL, change INTEGER NOT NULL, heard_at INTEGER NOT NULL)
        WITHOUT ROWID;
    CREATE TABLE used (
        hour INTEGER NOT NULL, app TEXT NOT NULL, org TEXT NOT NULL, host TEXT NOT NULL, ledger INTEGER NOT NULL,
        requests INTEGER NOT NULL, cpu_us INTEGER NOT NULL, memory_kb_s INTEGER NOT NULL,
        bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
        PRIMARY KEY (hour, app, org, host, ledger)) WITHOUT ROWID;
    CREATE TABLE stored (
        hour INTEGER NOT NULL, service TEXT NOT NULL, org TEXT NOT NULL, app TEXT NOT NULL, bytes INTEGER NOT NULL,
        PRIMARY KEY (hour, service)) WITHOUT ROWID;";

/// Why usage cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The file cannot be made.
    #[error("the usage database {} cannot be made", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// SQLite failed.
    #[error("the usage database cannot be used")]
    Database(#[from] rusqlite::Error),
    /// The file is another program's or a newer release's.
    #[error("the usage database is not one of this release: {0}")]
    Foreign(String),
    /// A thread ended early.
    #[error("the usage database was left")]
    Interrupted,
}

/// The size of a service's data at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredBytes {
    pub(crate) service: ServiceId,
    pub(crate) org: OrgName,
    /// The app that has it; `None`: no app is bound to it.
    pub(crate) app: Option<AppName>,
    pub(crate) bytes: u64,
}

struct Inner {
    writer: Mutex<Connection>,
    /// Reports read beside what is written.
    reader: Mutex<Connection>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct UsageStore(Arc<Inner>);

impl std::fmt::Debug for UsageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UsageStore")
    }
}

fn lock(mutex: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// SQLite's numbers end at 2⁶³.
fn kept(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn loaded(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// The begin of the hour, in seconds since 1970.
pub(crate) fn hour_of(at: Timestamp) -> i64 {
    at.as_second().div_euclid(HOUR_S) * HOUR_S
}

impl UsageStore {
    /// Opens the database at `path`, making it when it is not there. Blocks on the disk.
    pub fn open(path: &Path) -> Result<Self, UsageError> {
        use std::os::unix::fs::OpenOptionsExt;
        let made = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|source| UsageError::File { path: path.to_owned(), source })?;
        let mut writer = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        writer.busy_timeout(Duration::from_secs(5))?;
        writer.pragma_update(None, "trusted_schema", false)?;
        let _: String = writer.pragma_update_and_check(None, "journal_mode", "wal", |r| r.get(0))?;
        // FULL: a commit is on the disk before it returns, in WAL mode too.
        writer.pragma_update(None, "synchronous", "full")?;
        let id: i32 = writer.pragma_query_value(None, "application_id", |r| r.get(0))?;
        let version: i64 = writer.pragma_query_value(None, "user_version", |r| r.get(0))?;
        match (id, version) {
            (0, 0) => {
                let txn = writer.transaction()?;
                txn.execute_batch(SCHEMA)?;
                txn.pragma_update(None, "application_id", APPLICATION_ID)?;
                txn.pragma_update(None, "user_version", 1)?;
                txn.commit()?;
            }
            (APPLICATION_ID, 1) => {}
            (APPLICATION_ID, newer) => return Err(UsageError::Foreign(format!("its schema is version {newer}"))),
            _ => return Err(UsageError::Foreign("it belongs to another program".into())),
        }
        let reader = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        reader.busy_timeout(Duration::from_secs(5))?;
        Ok(Self(Arc::new(Inner { writer: Mutex::new(writer), reader: Mutex::new(reader) })))
    }

    async fn writing<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, UsageError> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&mut lock(&inner.writer))).await;
        Ok(done.map_err(|_| UsageError::Interrupted)??)
    }

    async fn reading<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, UsageError> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&lock(&inner.reader))).await;
        Ok(done.map_err(|_| UsageError::Interrupted)??)
    }

    /// Up to where a host's ledger was read.
    pub(crate) async fn cursor(&self, host: &HostId) -> Result<UsageCursor, UsageError> {
        let host = host.clone();
        self.writing(move |c| {
            let mut query = c.prepare_cached("SELECT ledger, change FROM hosts WHERE host = ?1")?;
            let found = query.query_row([host.as_str()], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?)));
            let (ledger, change) = found.optional()?.unwrap_or((0, 0));
            Ok(UsageCursor { ledger: loaded(ledger), change: loaded(change) })
        })
        .await
    }

    /// Adds a page of a host's ledger, and that it was read up to `next`. Durably.
    pub(crate) async fn fold(
        &self,
        host: &HostId,
        items: Vec<AppUsageHour>,
        next: UsageCursor,
        now: Timestamp,
    ) -> Result<(), UsageError> {
        let host = host.clone();
        self.writing(move |c| {
            let txn = c.transaction()?;
            for item in &items {
                let total = &item.total;
                txn.prepare_cached(
                    "INSERT OR REPLACE INTO used
                     (hour, app, org, host, ledger, requests, cpu_us, memory_kb_s, bytes_in, bytes_out)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                )?
                .execute(params![
                    hour_of(item.hour),
                    item.app.as_str(),
                    item.org.as_str(),
                    host.as_str(),
                    kept(next.ledger),
                    kept(total.requests),
                    kept(total.cpu_us),
                    kept(total.memory_byte_ms / 1_000_000),
                    kept(total.bytes_in),
                    kept(total.bytes_out),
                ])?;
            }
            txn.prepare_cached(
                "INSERT OR REPLACE INTO hosts (host, ledger, change, heard_at) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![host.as_str(), kept(next.ledger), kept(next.change), now.as_second()])?;
            txn.commit()
        })
        .await
    }

    /// Notes that a host had nothing new.
    pub(crate) async fn heard(&self, host: &HostId, now: Timestamp) -> Result<(), UsageError> {
        let host = host.clone();
        self.writing(move |c| {
            let mut update = c.prepare_cached("UPDATE hosts SET heard_at = ?2 WHERE host = ?1")?;
            update.execute(params![host.as_str(), now.as_second()]).map(drop)
        })
        .await
    }

    /// Keeps the most that each service stored in this hour.
    pub(crate) async fn stored(&self, sizes: Vec<StoredBytes>, now: Timestamp) -> Result<(), UsageError> {
        self.writing(move |c| {
            let txn = c.transaction()?;
            for size in &sizes {
                txn.prepare_cached(
                    "INSERT INTO stored (hour, service, org, app, bytes) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (hour, service) DO UPDATE
                     SET bytes = max(bytes, excluded.bytes), org = excluded.org, app = excluded.app",
                )?
                .execute(params![
                    hour_of(now),
                    size.service.as_str(),
                    size.org.as_str(),
                    size.app.as_ref().map_or("", AppName::as_str),
                    kept(size.bytes),
                ])?;
            }
            txn.commit()
        })
        .await
    }

    /// Removes what is older than it is kept.
    pub(crate) async fn trim(&self, now: Timestamp) -> Result<(), UsageError> {
        let oldest = hour_of(now) - i64::try_from(KEEP.as_secs()).unwrap_or(i64::MAX);
        self.writing(move |c| {
            c.execute("DELETE FROM used WHERE hour < ?1", [oldest])?;
            c.execute("DELETE FROM stored WHERE hour < ?1", [oldest]).map(drop)
        })
        .await
    }
}
