//! The workers of this host: which there are, what each should run, and how each stands.
//!
//! Owns: worker processes (`process`), what they may ask for (`broker`), and the table of instances that a worker is
//! given again when it was started anew. Does not own: which instances there should be (`reconcile::instances`).

mod broker;
mod process;
mod worker;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use marcato_api::{Bytes, Digest, HostAddress, HostUsage, InstanceId, IsolationClass, OrgName, WorkerStatus};
use marcato_runtime::{CodeCache, LogSink, NetworkDialer, Services};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::worker::Seat;
pub(crate) use self::worker::{InstanceState, Worker};
use crate::channel::{IngressNumbers, IngressTls, NotStarted, StartOrder};
use crate::durable;
use crate::listen;
use crate::usage::{Meter, UsageLedger};

/// How long the end of a worker is waited for beyond its drain time.
const END: Duration = Duration::from_secs(2);

/// How a worker is started: the program, which calls [`crate::prepare_worker`] and [`crate::run_worker`].
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Added to its otherwise empty environment.
    pub env: Vec<(OsString, OsString)>,
}

/// What every worker of this host has in common.
pub(crate) struct Settings {
    pub(crate) command: WorkerCommand,
    /// A folder for each worker's code is made in it.
    pub(crate) dir: PathBuf,
    pub(crate) sandboxes: u32,
    pub(crate) memory: Bytes,
    pub(crate) outbound_ca_pem: Option<String>,
    pub(crate) require_confinement: bool,
    pub(crate) cache: CodeCache,
    /// Makes connections as the host's options say; an app's policy may say otherwise of private addresses.
    pub(crate) dialer: NetworkDialer,
    /// Told why a worker that must be confined is not.
    pub(crate) unfit: watch::Sender<Option<String>>,
    /// Woken when code turned out unusable.
    pub(crate) wake_components: Arc<Notify>,
    /// Woken when a worker was started anew.
    pub(crate) wake_instances: Arc<Notify>,
    /// What instances used goes there.
    pub(crate) usage: UsageLedger,
}

/// An instance to run, with what the daemon keeps of it.
pub(crate) struct Placement {
    pub(crate) order: StartOrder,
    pub(crate) org: OrgName,
    pub(crate) services: Services,
    pub(crate) logs: Arc<dyn LogSink>,
}

/// All workers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    settings: Arc<Settings>,
    workers: Mutex<BTreeMap<String, Arc<Worker>>>,
    /// The ingress of the host itself, which the shared worker has.
    shared: HostAddress,
    tls: Mutex<Option<IngressTls>>,
    /// What workers that are gone had answered.
    past: Mutex<IngressNumbers>,
    /// Workers that there ever were, around once all numbers were used.
    numbers: AtomicU16,
    tasks: TaskTracker,
    stop: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps of whole entries: usable whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The worker of apps that nobody set apart. It is there from the start.
const SHARED: &str = "shared";

/// A short name for files: worker names may be too long for a socket's path.
fn short(worker: &str) -> String {
    hex::encode(&Sha256::digest(worker)[..6])
}

impl Pool {
    /// Starts the shared worker on the host's own ingress.
    pub(crate) fn start(
        settings: Settings,
        ingress: OwnedFd,
        address: HostAddress,
        file: Option<listen::SocketFile>,
    ) -> io::Result<Self> {
        // Of workers that are gone with the daemon that had them.
        match std::fs::remove_dir_all(&settings.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => durable::ensure_private_dir(&settings.dir)?,
        }
        let pool = Self(Arc::new(Inner {
            settings: Arc::new(settings),
            workers: Mutex::default(),
            shared: address.clone(),
            tls: Mutex::default(),
            past: Mutex::default(),
            numbers: AtomicU16::new(0),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }));
        let shared = pool.make(SHARED, IsolationClass::Shared, ingress, address, file)?;
        lock(&pool.0.workers).insert(SHARED.into(), shared);
        Ok(pool)
    }

    fn make(
        &self,
        name: &str,
        class: IsolationClass,
        ingress: OwnedFd,
        address: HostAddress,
        file: Option<listen::SocketFile>,
    ) -> io::Result<Arc<Worker>> {
        let inner = &self.0;
        let dir = inner.settings.dir.join(short(name));
        // Read by the worker's own user; the folder above keeps everybody else out.
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        let number = inner.numbers.fetch_add(1, Ordering::Relaxed);
        let seat = Seat { number, address, ingress, file, dir };
        let tls = lock(&inner.tls).clone();
        let worker = Worker::new(name, class, seat, tls, Meter::new(inner.settings.usage.clone()));
        inner.tasks.spawn(process::conduct(Arc::clone(&worker), Arc::clone(&inner.settings), inner.stop.clone()));
        Ok(worker)
    }

    /// The worker of this name; started when there is none.
    fn ensure(&self, name: &str, class: IsolationClass) -> io::Result<Arc<Worker>> {
        let mut workers = lock(&self.0.workers);
        if let Some(worker) = workers.get(name) {
            return Ok(Arc::clone(worker));
        }
        let wanted = match &self.0.shared {
            HostAddress::Tcp(address) => HostAddress::Tcp(SocketAddr::new(address.ip(), 0)),
            HostAddress::Unix(path) => {
                let dir = path.parent().unwrap_or_else(|| Path::new("/"));
                HostAddress::Unix(dir.join(format!("w-{}.sock", short(name))))
            }
        };
        let (ingress, address, file) = listen::bind_for_worker(&wanted)?;
        let worker = self.make(name, class, ingress, address, file)?;
        worker.open();
        workers.insert(name.to_owned(), Arc::clone(&worker));
        Ok(worker)
    }

    /// Starts instances in the worker of this name, and says of each where it runs.
    pub(crate) async fn place(
        &self,
        name: &str,
        class: IsolationClass,
        placements: Vec<Placement>,
    ) -> Vec<Result<Arc<Worker>, NotStarted>> {
        match self.ensure(name, class) {
            Ok(worker) => {
                let results = worker.place(placements).await;
                results.into_iter().map(|result| result.map(|()| Arc::clone(&worker))).collect()
            }
            Err(error) => {
                tracing::error!(worker = name, %error, "a worker cannot be started");
                let why = NotStarted::Reason(format!("its worker cannot be started: {error}"));
                vec![Err(why); placements.len()]
            }
        }
    }

    /// Ends workers that nothing runs in any more, but for the shared one.
    pub(crate) fn sweep(&self) {
        let idle: Vec<Arc<Worker>> = {
            let mut workers = lock(&self.0.workers);
            let (idle, kept) =
                std::mem::take(&mut *workers).into_iter().partition(|(n, w)| n != SHARED && w.is_empty());
            *workers = kept;
            idle.into_values().collect()
        };
        for worker in idle {
            tracing::info!(worker = worker.name(), "a worker that nothing runs in ends");
            worker.end();
            let numbers = worker.ingress();
            add(&mut lock(&self.0.past), numbers);
        }
    }

    /// Resolves with the reason once a worker that must be confined could not be.
    pub(crate) async fn unfit(&self) -> String {
        let mut unfit = self.0.settings.unfit.subscribe();
        // The pool has its sender as long as it lives.
        while unfit.borrow_and_update().is_none() && unfit.changed().await.is_ok() {}
        unfit.borrow().clone().unwrap_or_default()
    }

    /// Lets the shared worker take connections.
    pub(crate) fn open(&self) {
        for worker in self.all() {
            worker.open();
        }
    }

    /// Shows this on TCP from now on.
    pub(crate) fn set_tls(&self, tls: &IngressTls) {
        *lock(&self.0.tls) = Some(tls.clone());
        for worker in self.all() {
            worker.set_tls(tls.clone());
        }
    }

    /// Whether the ingress is on TCP, and shows a certificate.
    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self.0.shared, HostAddress::Tcp(_))
    }

    fn all(&self) -> Vec<Arc<Worker>> {
        lock(&self.0.workers).values().cloned().collect()
    }

    /// Asks every worker how it stands; bounded in time.
    pub(crate) async fn refresh(&self) {
        futures::future::join_all(self.all().iter().map(|w| w.refresh())).await;
    }

    /// Code that is compiled anew or forgotten must not be found in any worker's folder.
    pub(crate) fn forget(&self, digest: &Digest) {
        for worker in self.all() {
            worker.forget(digest);
        }
    }

    /// Resident memory of all processes, sandboxes and their memory, as last reported.
    pub(crate) fn usage(&self) -> HostUsage {
        let own = HostUsage { resident_bytes: process::resident("self"), ..HostUsage::default() };
        self.all().iter().map(|w| w.usage()).fold(own, |sum, one| HostUsage {
            resident_bytes: Bytes(sum.resident_bytes.0 + one.resident_bytes.0),
            sandbox_bytes: Bytes(sum.sandbox_bytes.0 + one.sandbox_bytes.0),
            sandboxes: sum.sandboxes.saturating_add(one.sandboxes),
        })
    }

    /// What all ingresses answered, as last reported.
    pub(crate) fn ingress(&self) -> IngressNumbers {
        let mut sum = *lock(&self.0.past);
        for worker in self.all() {
            add(&mut sum, worker.ingress());
        }
        sum
    }

    /// Each worker.
    pub(crate) fn statuses(&self) -> Vec<WorkerStatus> {
        self.all().iter().map(|w| w.status()).collect()
    }

    /// Takes no more connections, lets requests finish, ends every worker.
    pub(crate) async fn end(&self) {
        for worker in self.all() {
            worker.end();
        }
        self.0.tasks.close();
        if tokio::time::timeout(crate::worker::DRAIN + END, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("workers did not end in time and are killed");
        }
        self.0.stop.cancel();
        self.0.tasks.wait().await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn add(sum: &mut IngressNumbers, more: IngressNumbers) {
    for (sum, more) in sum.responses.iter_mut().zip(more.responses) {
        *sum += more;
    }
    sum.platform_errors += more.platform_errors;
}

/// An instance's place among the workers.
#[derive(Clone)]
pub(crate) struct Placed {
    pub(crate) worker: Arc<Worker>,
    pub(crate) id: InstanceId,
}

impl Placed {
    pub(crate) async fn drain(&self) {
        self.worker.drain(&self.id).await;
    }

    pub(crate) async fn remove(&self) {
        self.worker.remove(&self.id).await;
    }

    /// How it stands, as last reported.
    pub(crate) fn state(&self) -> InstanceState {
        self.worker.instance(&self.id)
    }
}

#[cfg(test)]
mod tests;
