//! One thread per database: the only one that touches its connection.
//!
//! Calls wait in a bounded queue; a full queue refuses at once. What waits is run in one transaction
//! (a savepoint each) and committed by one sync, and no call is answered before that commit: under
//! load many calls share the cost of the disk. Damage is latched: after it every call fails until a
//! restore, since SQLite would go on answering from the pages that still look whole.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::database::{self, Layout};
use super::error::Fault;

/// Calls that wait for a database; one more is refused.
const QUEUE: usize = 256;
/// Calls that share a commit.
const BATCH: usize = 64;

/// A kind of service: its tables and what its calls do.
pub(super) trait Engine: Send + Sync + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    type Error: Send + 'static;
    const LAYOUT: Layout;
    /// Runs one call within a transaction. May run twice when the first try was rolled back.
    fn run(connection: &Connection, request: &Self::Request) -> Result<Self::Response, Failure<Self::Error>>;
    /// The error of a fault.
    fn error(fault: Fault) -> Self::Error;
    /// The error of a service that was removed.
    fn gone() -> Self::Error;
}

/// Why a call failed: by its own rules, or because the database did.
pub(super) enum Failure<E> {
    Answer(E),
    Store(rusqlite::Error),
}

impl<E> From<rusqlite::Error> for Failure<E> {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error)
    }
}

type Answer<E> = Result<<E as Engine>::Response, <E as Engine>::Error>;

struct Job<E: Engine> {
    request: E::Request,
    answer: oneshot::Sender<Answer<E>>,
}

struct Open<E: Engine> {
    queue: SyncSender<Job<E>>,
    thread: JoinHandle<()>,
    damage: Arc<OnceLock<String>>,
}

enum State<E: Engine> {
    Open(Open<E>),
    Broken(Fault),
    Removed,
}

/// A database and its thread. Instances hold it, so it outlives a restore.
pub(super) struct Worker<E: Engine> {
    path: PathBuf,
    max_pages: u32,
    state: RwLock<State<E>>,
}

impl<E: Engine> Worker<E> {
    /// A worker that has not opened its file yet.
    pub(super) fn new(path: PathBuf, max_pages: u32) -> Self {
        Self { path, max_pages, state: RwLock::new(State::Broken(Fault::Unavailable("opening".to_owned()))) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn max_pages(&self) -> u32 {
        self.max_pages
    }

    /// Opens the file and starts the thread, unless it runs. Blocks on the disk.
    pub(super) fn ensure_open(&self) -> Result<(), Fault> {
        if let State::Open(open) = &*self.read()
            && !open.thread.is_finished()
        {
            return match open.damage.get() {
                Some(reason) => Err(Fault::Corrupt(reason.clone())),
                None => Ok(()),
            };
        }
        let opened = database::open(&self.path, &E::LAYOUT, self.max_pages).and_then(spawn::<E>);
        let (state, result) = match opened {
            Ok(open) => (State::Open(open), Ok(())),
            Err(fault) => (State::Broken(fault.clone()), Err(fault)),
        };
        *self.write() = state;
        result
    }

    /// Stops the thread after what is queued was answered; later calls get `fault`. Blocks.
    pub(super) fn stop(&self, fault: Fault) {
        self.leave(State::Broken(fault));
    }

    /// Like `stop`, for good.
    pub(super) fn retire(&self) {
        self.leave(State::Removed);
    }

    /// Why it does not serve, when it does not.
    pub(super) fn trouble(&self) -> Option<String> {
        match &*self.read() {
            State::Open(open) => match open.damage.get() {
                Some(reason) => Some(Fault::Corrupt(reason.clone()).to_string()),
                None => open.thread.is_finished().then(|| "its thread ended".to_owned()),
            },
            State::Broken(fault) => Some(fault.to_string()),
            State::Removed => Some("removed".to_owned()),
        }
    }

    /// Runs a call: answered after its commit, or refused at once when the queue is full.
    pub(super) async fn call(&self, request: E::Request) -> Answer<E> {
        let (answer, answered) = oneshot::channel();
        self.enqueue(Job { request, answer })?;
        let lost = |_| E::error(Fault::Unavailable("the database thread ended; the outcome is unknown".to_owned()));
        answered.await.map_err(lost)?
    }

    fn enqueue(&self, job: Job<E>) -> Result<(), E::Error> {
        match &*self.read() {
            State::Open(open) => open.queue.try_send(job).map_err(|e| {
                E::error(Fault::Unavailable(match e {
                    TrySendError::Full(_) => format!("{QUEUE} calls wait already"),
                    TrySendError::Disconnected(_) => "the database thread ended".to_owned(),
                }))
            }),
            State::Broken(fault) => Err(E::error(fault.clone())),
            State::Removed => Err(E::gone()),
        }
    }

    fn leave(&self, next: State<E>) {
        let before = std::mem::replace(&mut *self.write(), next);
        if let State::Open(open) = before {
            drop(open.queue);
            if open.thread.join().is_err() {
                tracing::error!(path = %self.path.display(), "a database thread had panicked");
            }
        }
    }

    // A poisoned lock holds a whole state: each writer replaces it in one assignment.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, State<E>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State<E>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Engine> Drop for Worker<E> {
    fn drop(&mut self) {
        self.leave(State::Removed);
    }
}

fn spawn<E: Engine>(connection: Connection) -> Result<Open<E>, Fault> {
    let (queue, jobs) = sync_channel(QUEUE);
    let damage = Arc::new(OnceLock::new());
    let latch = Arc::clone(&damage);
    let thread = std::thread::Builder::new()
        .name(format!("db-{}", E::LAYOUT.kind))
        .spawn(move || serve::<E>(connection, &jobs, &latch))
        .map_err(|e| database::io_fault("start the database thread", &e))?;
    Ok(Open { queue, thread, damage })
}

fn serve<E: Engine>(mut connection: Connection, jobs: &Receiver<Job<E>>, damage: &OnceLock<String>) {
    while let Ok(first) = jobs.recv() {
        let mut batch = vec![first];
        batch.extend(jobs.try_iter().take(BATCH - 1));
        let answers = run_batch::<E>(&mut connection, &batch, damage);
        for (job, answer) in batch.into_iter().zip(answers) {
            // A caller that went away does not undo what is committed.
            let _ = job.answer.send(answer);
        }
    }
    // The last connection to close writes the log back into the database.
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "a database did not close cleanly");
    }
}

fn run_batch<E: Engine>(connection: &mut Connection, batch: &[Job<E>], damage: &OnceLock<String>) -> Vec<Answer<E>> {
    if batch.len() > 1
        && damage.get().is_none()
        && let Ok(answers) = together::<E>(connection, batch)
    {
        return answers;
    }
    // One at a time, so that a failing one (a full disk, say) fails alone.
    batch
        .iter()
        .map(|job| {
            if let Some(reason) = damage.get() {
                return Err(E::error(Fault::Corrupt(reason.clone())));
            }
            alone::<E>(connection, &job.request).map_err(|failure| match failure {
                Failure::Answer(error) => error,
                Failure::Store(error) => {
                    let fault = Fault::from(error);
                    if let Fault::Corrupt(reason) = &fault {
                        tracing::error!(%reason, "a database is damaged; it answers no more until a restore");
                        let _ = damage.set(reason.clone());
                    }
                    E::error(fault)
                }
            })
        })
        .collect()
}

/// All in one transaction. Any fault of the database undoes the whole of it.
fn together<E: Engine>(connection: &mut Connection, batch: &[Job<E>]) -> Result<Vec<Answer<E>>, rusqlite::Error> {
    let mut transaction = connection.transaction()?;
    let mut answers = Vec::with_capacity(batch.len());
    for job in batch {
        let savepoint = transaction.savepoint()?;
        match E::run(&savepoint, &job.request) {
            Ok(response) => {
                savepoint.commit()?;
                answers.push(Ok(response));
            }
            Err(Failure::Answer(error)) => {
                savepoint.finish()?;
                answers.push(Err(error));
            }
            Err(Failure::Store(error)) => return Err(error),
        }
    }
    transaction.commit()?;
    Ok(answers)
}

fn alone<E: Engine>(connection: &mut Connection, request: &E::Request) -> Result<E::Response, Failure<E::Error>> {
    let transaction = connection.transaction()?;
    let response = E::run(&transaction, request)?;
    transaction.commit()?;
    Ok(response)
}
