//! Online backup, and restore by swapping files. The swap is one rename: whatever happens, the old
//! data or the new is there, never a mix.

use std::io::Write;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use tempfile::NamedTempFile;

use super::database::{self, Layout, io_fault, remove_if_there, side_files, sync_parent};
use super::error::{Fault, ServiceError};
use super::worker::{Engine, Worker};

/// A copy of the database while it serves. Reads one snapshot: writers neither wait nor show in part.
pub(super) fn backup<E: Engine>(worker: &Worker<E>) -> Result<Vec<u8>, ServiceError> {
    if let Some(reason) = worker.trouble() {
        return Err(ServiceError::Unavailable(reason));
    }
    let copy = temporary(worker)?;
    copy_into(worker, &copy).map_err(|f| f.into_service_error(E::LAYOUT.kind))?;
    std::fs::read(copy.path()).map_err(ServiceError::io("read the copy"))
}

fn copy_into<E: Engine>(worker: &Worker<E>, copy: &NamedTempFile) -> Result<(), Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(worker.path(), flags)?;
    source.busy_timeout(std::time::Duration::from_secs(5))?;
    let mut target = Connection::open_with_flags(copy.path(), flags)?;
    {
        let backup = Backup::new(&source, &mut target)?;
        match backup.step(-1)? {
            StepResult::Done => {}
            other => return Err(Fault::Unavailable(format!("the copy stopped: {other:?}"))),
        }
    }
    // One file without a log beside it: what travels is complete.
    let _: String = target.pragma_update_and_check(None, "journal_mode", "delete", |row| row.get(0))?;
    database::integrity_check(&target)?;
    target.close().map_err(|(_, e)| Fault::from(e))
}

/// Replaces the database by `bytes` once these passed every check.
pub(super) fn restore<E: Engine>(worker: &Worker<E>, bytes: &[u8]) -> Result<(), ServiceError> {
    let mut incoming = temporary(worker)?;
    incoming
        .write_all(bytes)
        .and_then(|()| incoming.as_file().sync_all())
        .map_err(ServiceError::io("write the backup to disk"))?;
    let checked = check(&incoming, &E::LAYOUT, worker.max_pages());
    for side in side_files(incoming.path()) {
        remove_if_there(&side).map_err(ServiceError::io("remove a temporary file"))?;
    }
    checked.map_err(|fault| match fault {
        Fault::DiskFull => ServiceError::DiskFull,
        Fault::WrongKind => ServiceError::WrongKind { expected: E::LAYOUT.kind },
        Fault::Corrupt(reason) | Fault::Unavailable(reason) => ServiceError::BadBackup(reason),
    })?;

    let was_whole = worker.trouble().is_none();
    worker.stop(Fault::Unavailable("a restore is under way".to_owned()));
    let swapped = swap(worker, incoming, was_whole);
    // Whichever file is in place now serves again.
    let opened = worker.ensure_open().map_err(|f| f.into_service_error(E::LAYOUT.kind));
    swapped.and(opened)
}

fn check(incoming: &NamedTempFile, layout: &Layout, max_pages: u32) -> Result<(), Fault> {
    if incoming.as_file().metadata().map_err(|e| io_fault("look at the backup", &e))?.len() == 0 {
        return Err(Fault::Corrupt("it is empty".to_owned()));
    }
    let connection = database::open(incoming.path(), layout, max_pages)?;
    database::integrity_check(&connection)?;
    connection.close().map_err(|(_, e)| Fault::from(e))?;
    incoming.as_file().sync_all().map_err(|e| io_fault("sync the backup", &e))
}

fn swap<E: Engine>(worker: &Worker<E>, incoming: NamedTempFile, was_whole: bool) -> Result<(), ServiceError> {
    let [wal, shm] = side_files(worker.path());
    // A closed database has no log. A log that is left would be played into the new file, and in a whole
    // database it would hold the newest writes: then keep all as it is.
    let log_left = std::fs::metadata(&wal).is_ok_and(|m| m.len() > 0);
    if was_whole && log_left {
        return Err(ServiceError::Unavailable("the old database did not close; nothing was changed".to_owned()));
    }
    remove_if_there(&wal).and_then(|()| remove_if_there(&shm)).map_err(ServiceError::io("remove the old log"))?;
    let failed = ServiceError::io("put the backup in place");
    match incoming.persist(worker.path()) {
        Ok(_) => sync_parent(worker.path()).map_err(failed),
        Err(error) => Err(failed(error.error)),
    }
}

/// A file beside the database (0600), removed when dropped.
fn temporary<E: Engine>(worker: &Worker<E>) -> Result<NamedTempFile, ServiceError> {
    let dir = worker.path().parent().unwrap_or(std::path::Path::new("."));
    tempfile::Builder::new()
        .prefix(".incoming-")
        .suffix(".sqlite")
        .tempfile_in(dir)
        .map_err(ServiceError::io("make a temporary file"))
}
