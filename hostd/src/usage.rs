//! The usage ledger: what each app used on this host, hour by hour, on disk.
//!
//! Owns: the file, when it is written (each second, so a kill loses at most the last one), and how long an hour is kept.
//! Does not own what is counted: a worker's meter (`meter`) records it.
//! Flow: workers -> meters -> here -> HostApi (`GET /v1/usage`) -> control plane.
//!
//! Every change of an hour's total gets the next change number. A reader asks for what changed after the last number
//! that it saw and gets absolute totals: it may ask again, be away for weeks, or start anew, and nothing is lost or
//! counted twice. Only what is on the disk is ever shown.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{AppName, AppUsageHour, OrgName, UsageCursor, UsageDelta, UsagePage};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};
use tokio_util::sync::CancellationToken;

mod meter;

pub(crate) use self::meter::Meter;

/// How often what was recorded goes to the disk: the most that a kill loses.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// How long an hour is kept: the control plane may be away for a month.
const KEEP_S: i64 = 35 * 86_400;
const HOUR_S: i64 = 3_600;
/// Most hours in a page.
const PAGE: u32 = 2_000;
/// "mrcu", so that `file` and we tell our databases from others.
const APPLICATION_ID: i32 = 0x6d72_6375;
const SCHEMA: &str = "
    CREATE TABLE ledger (id INTEGER PRIMARY KEY CHECK (id = 1), ledger INTEGER NOT NULL, change INTEGER NOT NULL);
    CREATE TABLE hours (
        hour INTEGER NOT NULL, app TEXT NOT NULL, org TEXT NOT NULL, change INTEGER NOT NULL,
        requests INTEGER NOT NULL, cpu_us INTEGER NOT NULL, memory_byte_ms INTEGER NOT NULL,
        bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
        PRIMARY KEY (hour, app, org)) WITHOUT ROWID;
    CREATE UNIQUE INDEX hours_by_change ON hours (change);";

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The file cannot be made.
    #[error("the usage ledger {} cannot be made", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// SQLite failed.
    #[error("the usage ledger cannot be used")]
    Database(#[from] rusqlite::Error),
    /// The file is another program's or a newer release's.
    #[error("the usage ledger is not one of this release: {0}")]
    Foreign(String),
    /// The file holds what was never written.
    #[error("the usage ledger is damaged: {0}")]
    Damaged(&'static str),
}

type Key = (i64, AppName, OrgName);

struct Inner {
    /// What is not on the disk yet, by hour, app and org.
    pending: Mutex<HashMap<Key, UsageDelta>>,
    file: Mutex<Connection>,
    ledger: u64,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct UsageLedger(Arc<Inner>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The begin of the hour, in seconds since 1970.
fn hour_of(at: Timestamp) -> i64 {
    at.as_second().div_euclid(HOUR_S) * HOUR_S
}

/// SQLite's numbers end at 2⁶³.
fn stored(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn loaded(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

impl UsageLedger {
    /// Opens the ledger at `path`, making it when it is not there. Blocks on the disk.
    pub(crate) fn open(path: &Path) -> Result<Self, UsageError> {
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|source| UsageError::File { path: path.to_owned(), source })?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut file = Connection::open_with_flags(path, flags)?;
        file.busy_timeout(Duration::from_secs(5))?;
        file.pragma_update(None, "trusted_schema", false)?;
        let _: String = file.pragma_update_and_check(None, "journal_mode", "wal", |r| r.get(0))?;
        // FULL: a commit is on the disk before it returns, in WAL mode too.
        file.pragma_update(None, "synchronous", "full")?;
        let id: i32 = file.pragma_query_value(None, "application_id", |r| r.get(0))?;
        let version: i64 = file.pragma_query_value(None, "user_version", |r| r.get(0))?;
        match (id, version) {
            (0, 0) => make(&mut file)?,
            (APPLICATION_ID, 1) => {}
            (APPLICATION_ID, newer) => return Err(UsageError::Foreign(format!("its schema is version {newer}"))),
            _ => return Err(UsageError::Foreign("it belongs to another program".into())),
        }
        let ledger: i64 = file.query_row("SELECT ledger FROM ledger", [], |r| r.get(0))?;
        let inner = Inner { pending: Mutex::default(), file: Mutex::new(file), ledger: loaded(ledger) };
        Ok(Self(Arc::new(inner)))
    }

    /// Adds what an app used. Does not touch the disk: that happens within a second.
    pub(crate) fn record(&self, app: &AppName, org: &OrgName, delta: UsageDelta, now: Timestamp) {
        if !delta.is_zero() {
            let key = (hour_of(now), app.clone(), org.clone());
            lock(&self.0.pending).entry(key).or_default().add(&delta);
        }
    }

    /// Puts what was recorded on the disk. Blocks. What cannot be written is kept for the next time.
    pub(crate) fn flush(&self) -> Result<(), UsageError> {
        let taken = std::mem::take(&mut *lock(&self.0.pending));
        if taken.is_empty() {
            return Ok(());
        }
        let written = write(&mut lock(&self.0.file), &taken);
        if written.is_err() {
            let mut pending = lock(&self.0.pending);
            for (key, delta) in taken {
                pending.entry(key).or_default().add(&delta);
            }
        }
        written
    }

    /// Flushes each second, forgets old hours, and flushes once more at the end. `measure` is awaited before each
    /// flush: whoever has numbers records them then.
    pub(crate) async fn run<F: Future<Output = ()>>(self, measure: impl Fn() -> F, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(FLUSH_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut forgotten = 0;
        loop {
            let ended = stop.run_until_cancelled(ticks.tick()).await.is_none();
            measure().await;
            let (ledger, hour) = (self.clone(), hour_of(Timestamp::now()));
            let forget = hour != forgotten;
            let done = tokio::task::spawn_blocking(move || {
                ledger.flush()?;
                if forget { ledger.forget_before(hour - KEEP_S) } else { Ok(()) }
            });
            match done.await {
                Ok(Ok(())) => forgotten = hour,
                Ok(Err(error)) => {
                    tracing::error!(%error, "usage cannot be written; it is kept in memory and tried again");
                }
                Err(error) => tracing::error!(%error, "usage was not written"),
            }
            if ended {
                return;
            }
        }
    }

    fn forget_before(&self, hour: i64) -> Result<(), UsageError> {
        lock(&self.0.file).execute("DELETE FROM hours WHERE hour < ?1", [hour])?;
        Ok(())
    }

    /// Hours whose total changed after a cursor, in the order of their last change, at most `limit` (and 2,000). A
    /// cursor of another ledger is one before all. Blocks on the disk.
    pub(crate) fn page(&self, after: UsageCursor, limit: u32) -> Result<UsagePage, UsageError> {
        let after = if after.ledger == self.0.ledger { stored(after.change) } else { 0 };
        let limit = limit.clamp(1, PAGE) as usize;
        let file = lock(&self.0.file);
        let mut query = file.prepare_cached(
            "SELECT change, hour, app, org, requests, cpu_us, memory_byte_ms, bytes_in, bytes_out
             FROM hours WHERE change > ?1 ORDER BY change LIMIT ?2",
        )?;
        let rows = query.query_map(params![after, limit as i64 + 1], |r| {
            let number = |at| r.get::<_, i64>(at).map(loaded);
            let total = UsageDelta {
                requests: number(4)?,
                cpu_us: number(5)?,
                memory_byte_ms: number(6)?,
                bytes_in: number(7)?,
                bytes_out: number(8)?,
            };
            Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?, r.get::<_, String>(2)?, r.get::<_, String>(3)?, total))
        })?;
        let mut rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let change = rows.last().map_or(after, |(change, ..)| *change);
        let next = UsageCursor { ledger: self.0.ledger, change: loaded(change) };
        // A row that is no app's cannot have been written by us; it is not worth losing the others for.
        let items = rows.into_iter().filter_map(|(_, hour, app, org, total)| {
            let hour = Timestamp::from_second(hour).ok()?;
            Some(AppUsageHour { app: app.parse().ok()?, org: org.parse().ok()?, hour, total })
        });
        Ok(UsagePage { items: items.collect(), next, more })
    }
}

fn make(file: &mut Connection) -> Result<(), UsageError> {
    // Below 2⁶³, and never 0: that is the cursor before all.
    let ledger = (rand::random::<u64>() >> 1).max(1);
    let txn = file.transaction()?;
    txn.execute_batch(SCHEMA)?;
    txn.execute("INSERT INTO ledger (id, ledger, change) VALUES (1, ?1, 0)", [stored(ledger)])?;
    txn.pragma_update(None, "application_id", APPLICATION_ID)?;
    txn.pragma_update(None, "user_version", 1)?;
    Ok(txn.commit()?)
}

fn write(file: &mut Connection, taken: &HashMap<Key, UsageDelta>) -> Result<(), UsageError> {
    let txn = file.transaction()?;
    let mut change: i64 = txn.query_row("SELECT change FROM ledger", [], |r| r.get(0))?;
    for ((hour, app, org), delta) in taken {
        // Nobody lives to count so far: a number at the end of its range is one that was not counted.
        change = change.checked_add(1).ok_or(UsageError::Damaged("its change number is at the end of its range"))?;
        let mut total = total_of(&txn, *hour, app, org)?;
        total.add(delta);
        txn.prepare_cached(
            "INSERT OR REPLACE INTO hours
             (hour, app, org, change, requests, cpu_us, memory_byte_ms, bytes_in, bytes_out)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            hour,
            app.as_str(),
            org.as_str(),
            change,
            stored(total.requests),
            stored(total.cpu_us),
            stored(total.memory_byte_ms),
            stored(total.bytes_in),
            stored(total.bytes_out),
        ])?;
    }
    txn.execute("UPDATE ledger SET change = ?1", [change])?;
    Ok(txn.commit()?)
}

fn total_of(txn: &Transaction<'_>, hour: i64, app: &AppName, org: &OrgName) -> rusqlite::Result<UsageDelta> {
    let mut query = txn.prepare_cached(
        "SELECT requests, cpu_us, memory_byte_ms, bytes_in, bytes_out FROM hours
         WHERE hour = ?1 AND app = ?2 AND org = ?3",
    )?;
    let found = query.query_row(params![hour, app.as_str(), org.as_str()], |r| {
        let number = |at| r.get::<_, i64>(at).map(loaded);
        Ok(UsageDelta {
            requests: number(0)?,
            cpu_us: number(1)?,
            memory_byte_ms: number(2)?,
            bytes_in: number(3)?,
            bytes_out: number(4)?,
        })
    });
    Ok(found.optional()?.unwrap_or_default())
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> AppName {
        AppName::new(name).unwrap()
    }

    fn org() -> OrgName {
        OrgName::default_org()
    }

    fn used(requests: u64) -> UsageDelta {
        UsageDelta { requests, cpu_us: requests * 10, memory_byte_ms: 1 << 40, bytes_in: 3, bytes_out: 5 }
    }

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(hour * HOUR_S + 59).unwrap()
    }

    fn all(ledger: &UsageLedger) -> Vec<(String, i64, u64)> {
        let page = ledger.page(UsageCursor::START, 1_000).unwrap();
        let mut rows: Vec<_> =
            page.items.iter().map(|i| (i.app.to_string(), hour_of(i.hour) / HOUR_S, i.total.requests)).collect();
        rows.sort();
        rows
    }

    #[test]
    fn totals_survive_and_only_what_is_on_the_disk_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("usage.sqlite");
        let ledger = UsageLedger::open(&path).unwrap();
        ledger.record(&app("a"), &org(), used(2), at(7));
        ledger.record(&app("a"), &org(), used(3), at(7));
        ledger.record(&app("a"), &org(), used(1), at(8));
        ledger.record(&app("b"), &org(), UsageDelta::default(), at(7));
        assert_eq!(all(&ledger), []);
        ledger.flush().unwrap();
        let before = ledger.page(UsageCursor::START, 1_000).unwrap();
        ledger.record(&app("a"), &org(), used(9), at(8));
        // As a kill leaves it: no word to the ledger, and the last second is gone.
        let ledger = UsageLedger::open(&path).unwrap();
        assert_eq!(all(&ledger), [("a".into(), 7, 5), ("a".into(), 8, 1)]);
        assert_eq!(ledger.page(UsageCursor::START, 1_000).unwrap(), before, "it is the same ledger");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    /// Found by the fuzz target: it went on below zero, where no reader looks.
    #[test]
    fn a_change_number_at_its_end_is_damage_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("usage.sqlite");
        let ledger = UsageLedger::open(&path).unwrap();
        lock(&ledger.0.file).execute("UPDATE ledger SET change = ?1", [i64::MAX]).unwrap();
        ledger.record(&app("a"), &org(), used(2), at(7));
        assert!(matches!(ledger.flush(), Err(UsageError::Damaged(_))));
        lock(&ledger.0.file).execute("UPDATE ledger SET change = 0", []).unwrap();
        ledger.flush().unwrap();
        assert_eq!(all(&ledger), [("a".into(), 7, 2)]);
    }

    #[test]
    fn a_reader_gets_each_change_and_may_be_away() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = UsageLedger::open(&dir.path().join("usage.sqlite")).unwrap();
        for n in 0..5 {
            ledger.record(&app(&format!("a{n}")), &org(), used(1), at(1));
        }
        ledger.flush().unwrap();
        let (mut cursor, mut seen) = (UsageCursor::START, Vec::new());
        loop {
            let page = ledger.page(cursor, 2).unwrap();
            assert!(page.items.len() <= 2);
            seen.extend(page.items.iter().map(|i| i.app.to_string()));
            cursor = page.next;
            if !page.more {
                break;
            }
        }
        seen.sort();
        assert_eq!(seen, ["a0", "a1", "a2", "a3", "a4"]);
        assert_eq!(ledger.page(cursor, 10).unwrap().items, []);
        ledger.record(&app("a3"), &org(), used(1), at(1));
        ledger.flush().unwrap();
        let page = ledger.page(cursor, 10).unwrap();
        assert_eq!(
            page.items.iter().map(|i| (i.app.as_str(), i.total)).collect::<Vec<_>>(),
            [("a3", {
                let mut twice = used(1);
                twice.add(&used(1));
                twice
            })]
        );
        let other = UsageCursor { ledger: cursor.ledger ^ 1, ..cursor };
        assert_eq!(ledger.page(other, 10).unwrap().items.len(), 5, "another ledger's cursor is one before all");
    }

    #[test]
    fn numbers_stay_at_their_most_and_old_hours_go() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = UsageLedger::open(&dir.path().join("usage.sqlite")).unwrap();
        for _ in 0..2 {
            ledger.record(&app("a"), &org(), UsageDelta { cpu_us: u64::MAX, ..used(1) }, at(100));
            ledger.flush().unwrap();
        }
        let page = ledger.page(UsageCursor::START, 10).unwrap();
        assert_eq!((page.items[0].total.cpu_us, page.items[0].total.requests), (i64::MAX as u64, 2));
        ledger.record(&app("a"), &org(), used(1), at(99));
        ledger.flush().unwrap();
        ledger.forget_before(100 * HOUR_S).unwrap();
        assert_eq!(all(&ledger), [("a".into(), 100, 2)]);
    }

    #[test]
    fn a_foreign_or_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("usage.sqlite");
        std::fs::write(&path, "not a database, but long enough to have a head of its own").unwrap();
        assert!(UsageLedger::open(&path).is_err());
        let other = dir.path().join("other.sqlite");
        let connection = Connection::open(&other).unwrap();
        connection.pragma_update(None, "application_id", 7).unwrap();
        assert!(matches!(UsageLedger::open(&other), Err(UsageError::Foreign(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_writes_what_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = UsageLedger::open(&dir.path().join("usage.sqlite")).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(ledger.clone().run(|| std::future::ready(()), stop.clone()));
        ledger.record(&app("a"), &org(), used(4), Timestamp::now());
        stop.cancel();
        task.await.unwrap();
        assert_eq!(ledger.page(UsageCursor::START, 1).unwrap().items[0].total.requests, 4);
    }
}
