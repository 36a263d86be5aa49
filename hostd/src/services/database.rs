//! Opening a service's SQLite file: settings, identity, migrations and the checks that make sure
//! that a damaged or foreign file gives an error and never an answer.
//!
//! Each kind of service has its own `application_id`, so a file says what it is; `user_version`
//! counts migrations. The schema must be exactly ours: a file from outside (restore) could bring
//! triggers along.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use marcato_api::ServiceKind;
use rusqlite::{Connection, OpenFlags};

use super::error::Fault;

/// What tells one kind of database from another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) kind: ServiceKind,
    /// SQLite's `application_id`.
    pub(super) application_id: i32,
    /// One script per version, in order; never changed after a release.
    pub(super) migrations: &'static [&'static str],
}

/// How long a statement waits for a lock: only a backup's reader is ever beside the worker.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens (or makes) the database at `path` and checks it whole.
pub(super) fn open(path: &Path, layout: &Layout, max_pages: u32) -> Result<Connection, Fault> {
    create_private(path).map_err(|e| io_fault("create the database", &e))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        return Err(Fault::Unavailable(format!("journal mode is {mode}, not wal")));
    }
    // FULL: a commit is on the disk before it returns, in WAL mode too.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let _: i64 = connection.pragma_update_and_check(None, "max_page_count", max_pages, |row| row.get(0))?;
    migrate(&mut connection, layout)?;
    quick_check(&connection)?;
    check_schema(&connection, layout)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// The whole check, with indexes: for a file that comes from outside.
pub(super) fn integrity_check(connection: &Connection) -> Result<(), Fault> {
    report(connection, "PRAGMA integrity_check(1)")?;
    let violations: i64 =
        connection.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0))?;
    if violations == 0 { Ok(()) } else { Err(Fault::Corrupt(format!("{violations} broken references"))) }
}

fn quick_check(connection: &Connection) -> Result<(), Fault> {
    report(connection, "PRAGMA quick_check(1)")
}

fn report(connection: &Connection, pragma: &str) -> Result<(), Fault> {
    let said: String = connection.query_row(pragma, [], |row| row.get(0))?;
    if said == "ok" { Ok(()) } else { Err(Fault::Corrupt(said)) }
}

fn migrate(connection: &mut Connection, layout: &Layout) -> Result<(), Fault> {
    let application_id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let objects: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let fresh = application_id == 0 && version == 0 && objects == 0;
    if !fresh && application_id != layout.application_id {
        return Err(Fault::WrongKind);
    }
    let known = layout.migrations.len();
    let done = usize::try_from(version).ok().filter(|v| *v <= known);
    let Some(done) = done else {
        return Err(Fault::Unavailable(format!("the database has version {version}, this release knows {known}")));
    };
    if done == known {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for script in &layout.migrations[done..] {
        transaction.execute_batch(script)?;
    }
    transaction.pragma_update(None, "application_id", layout.application_id)?;
    transaction.pragma_update(None, "user_version", i64::try_from(known).unwrap_or(i64::MAX))?;
    transaction.commit()?;
    Ok(())
}

fn check_schema(connection: &Connection, layout: &Layout) -> Result<(), Fault> {
    let mut ours = Connection::open_in_memory()?;
    migrate(&mut ours, layout)?;
    if objects(connection)? == objects(&ours)? {
        Ok(())
    } else {
        Err(Fault::Corrupt("its tables are not those of this service".to_owned()))
    }
}

fn objects(connection: &Connection) -> Result<Vec<(String, String, Option<String>)>, rusqlite::Error> {
    connection
        .prepare("SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%' ORDER BY type, name")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect()
}

/// SQLite gives its side files the mode of the database, so making it first with 0600 covers all.
fn create_private(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            file.sync_all()?;
            sync_parent(path)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// Makes a new, renamed or removed name in the folder of `path` durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// The files that SQLite keeps beside a database: write-ahead log and its index.
pub(super) fn side_files(path: &Path) -> [PathBuf; 2] {
    ["-wal", "-shm"].map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

/// Removes a file; fine when it is not there.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

pub(super) fn io_fault(action: &str, error: &io::Error) -> Fault {
    if error.kind() == io::ErrorKind::StorageFull {
        Fault::DiskFull
    } else {
        Fault::Unavailable(format!("{action}: {error}"))
    }
}
