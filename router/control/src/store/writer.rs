//! The one thread that writes the SQLite store.
//!
//! Owns: the writing connection and group commit: whatever waits is written in one SQLite transaction,
//! each of ours in its own savepoint, and answered only after that one fsync. Does not own reads.

use std::time::Duration;

use jiff::Timestamp;
use marcato_api::StoreRevision;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Expected, StoreError, StoreResult, Txn, Write};

/// Commits that share one fsync at most.
const GROUP: usize = 64;
/// Changes that are kept for watchers; whoever is further behind reads everything anew.
pub(super) const HISTORY: u64 = 10_000;

/// A wish of the writer, with where to answer.
pub(super) enum Job {
    Commit(Txn, oneshot::Sender<StoreResult<StoreRevision>>),
    Lease { name: String, holder: String, ttl: Duration, answer: oneshot::Sender<StoreResult<bool>> },
    Release { name: String, holder: String, answer: oneshot::Sender<StoreResult<()>> },
}

/// An answer that waits for the fsync.
enum Done {
    Commit(StoreResult<StoreRevision>, oneshot::Sender<StoreResult<StoreRevision>>),
    Lease(StoreResult<bool>, oneshot::Sender<StoreResult<bool>>),
    Release(StoreResult<()>, oneshot::Sender<StoreResult<()>>),
}

pub(super) fn engine(operation: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |e| StoreError::Engine { operation, reason: e.to_string() }
}

/// Runs until every sender is gone.
pub(super) fn run(
    mut connection: Connection,
    mut jobs: mpsc::Receiver<Job>,
    latest: &watch::Sender<StoreRevision>,
    history: u64,
) {
    let mut group = Vec::with_capacity(GROUP);
    while let Some(first) = jobs.blocking_recv() {
        group.push(first);
        while group.len() < GROUP {
            let Ok(job) = jobs.try_recv() else { break };
            group.push(job);
        }
        write_group(&mut connection, &mut group, latest, history);
    }
    // A clean end leaves one file: the log goes into the database.
    if let Err(e) = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
        tracing::warn!(error = %e, "the store's log could not be folded in; the next start does it");
    }
}

fn write_group(connection: &mut Connection, group: &mut Vec<Job>, latest: &watch::Sender<StoreRevision>, history: u64) {
    let mut done = Vec::with_capacity(group.len());
    let mut newest = *latest.borrow();
    let outcome = (|| {
        let mut outer =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(engine("begin a write"))?;
        for job in group.drain(..) {
            done.push(apply(&mut outer, job, &mut newest, history));
        }
        outer.commit().map_err(engine("commit"))
    })();
    let failure = outcome.err();
    if failure.is_none() {
        latest.send_if_modified(|l| std::mem::replace(l, newest) != newest);
    }
    // When the group could not even begin, its jobs are still here.
    for job in group.drain(..) {
        let e = failure.clone().unwrap_or(StoreError::Closed);
        match job {
            Job::Commit(_, answer) => drop(answer.send(Err(e))),
            Job::Lease { answer, .. } => drop(answer.send(Err(e))),
            Job::Release { answer, .. } => drop(answer.send(Err(e))),
        }
    }
    for d in done {
        match d {
            Done::Commit(r, answer) => drop(answer.send(settled(r, failure.as_ref()))),
            Done::Lease(r, answer) => drop(answer.send(settled(r, failure.as_ref()))),
            Done::Release(r, answer) => drop(answer.send(settled(r, failure.as_ref()))),
        }
    }
}

fn settled<T>(result: StoreResult<T>, failure: Option<&StoreError>) -> StoreResult<T> {
    match failure {
        Some(e) => Err(e.clone()),
        None => result,
    }
}

fn apply(outer: &mut rusqlite::Transaction<'_>, job: Job, newest: &mut StoreRevision, history: u64) -> Done {
    match job {
        Job::Commit(txn, answer) => Done::Commit(commit(outer, &txn, newest, history), answer),
        Job::Lease { name, holder, ttl, answer } => Done::Lease(lease(outer, &name, &holder, ttl), answer),
        Job::Release { name, holder, answer } => Done::Release(
            outer
                .execute("DELETE FROM leases WHERE name = ?1 AND holder = ?2", params![name, holder])
                .map(drop)
                .map_err(engine("release a lease")),
            answer,
        ),
    }
}

fn commit(
    outer: &mut rusqlite::Transaction<'_>,
    txn: &Txn,
    newest: &mut StoreRevision,
    history: u64,
) -> StoreResult<StoreRevision> {
    let inner = outer.savepoint().map_err(engine("begin a write"))?;
    for check in &txn.checks {
        let found: Option<u64> = inner
            .prepare_cached("SELECT revision FROM objects WHERE key = ?1")
            .and_then(|mut s| s.query_row([&check.key], |r| r.get(0)).optional())
            .map_err(engine("check a key"))?;
        let holds = match check.expected {
            Expected::Any => true,
            Expected::Absent => found.is_none(),
            Expected::Present => found.is_some(),
            Expected::Revision(r) => found == Some(r.0),
        };
        if !holds {
            return Err(StoreError::Conflict { key: check.key.clone() });
        }
    }
    if txn.writes.is_empty() {
        return Ok(*newest);
    }
    let revision = newest.0 + 1;
    write(&inner, txn, revision, history).map_err(engine("write"))?;
    inner.commit().map_err(engine("write"))?;
    *newest = StoreRevision(revision);
    Ok(*newest)
}

fn write(inner: &rusqlite::Savepoint<'_>, txn: &Txn, revision: u64, history: u64) -> rusqlite::Result<()> {
    for w in &txn.writes {
        let (key, deleted) = match w {
            Write::Put(key, value) => {
                inner
                    .prepare_cached(
                        "INSERT INTO objects (key, value, revision) VALUES (?1, ?2, ?3)
                         ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision",
                    )?
                    .execute(params![key, value.to_string(), revision])?;
                (key, false)
            }
            Write::Delete(key) => {
                let gone = inner.prepare_cached("DELETE FROM objects WHERE key = ?1")?.execute([key])?;
                if gone == 0 {
                    continue;
                }
                (key, true)
            }
        };
        inner
            .prepare_cached("INSERT OR REPLACE INTO changes (revision, key, deleted) VALUES (?1, ?2, ?3)")?
            .execute(params![revision, key, deleted])?;
    }
    inner.prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'revision'")?.execute([revision])?;
    // Forgetting in steps keeps the cost of a commit even.
    if revision > history && revision.is_multiple_of(256) {
        let oldest = revision - history;
        inner.execute("DELETE FROM changes WHERE revision <= ?1", [oldest])?;
        inner.execute("UPDATE meta SET value = ?1 WHERE name = 'compacted'", [oldest])?;
    }
    Ok(())
}

fn lease(outer: &rusqlite::Transaction<'_>, name: &str, holder: &str, ttl: Duration) -> StoreResult<bool> {
    let now_ms = Timestamp::now().as_millisecond();
    let until_ms = now_ms.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
    let taken = outer
        .execute(
            "INSERT INTO leases (name, holder, until_ms) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until_ms = excluded.until_ms
             WHERE leases.holder = excluded.holder OR leases.until_ms <= ?4",
            params![name, holder, until_ms, now_ms],
        )
        .map_err(engine("take a lease"))?;
    Ok(taken == 1)
}
