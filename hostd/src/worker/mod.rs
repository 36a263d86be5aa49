//! A worker: the process that has sandboxes. It serves the ingress and runs instances, and nothing else: no key of
//! the host, no database, no network of its own, no file but the code of its own instances.
//!
//! Request flow: edge::upstream -> `ingress` -> runtime -> guest. What a guest needs from outside (`host`) is asked of
//! the daemon over the channel. A worker ends with its channel.

mod host;
mod ingress;
mod instances;
mod lease;
mod trailers;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram as StdDatagram, UnixStream as StdStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use marcato_api::ConfinementReport;
use marcato_confine::{ConfineError, Plan, worker_user};
use marcato_runtime::{PoolConfig, Runtime, RuntimeConfig, RuntimeError};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::host::{HostCode, HostDialer, HostLogs};
use self::ingress::Ingress;
use self::instances::Instances;
use self::lease::WorkerLease;
use crate::channel::{
    Ask, Asks, IngressTls, Order, OrderAnswer, Orders, Peer, Readiness, Setup, SocketReceiver, read_first,
};
use crate::listen::Listener;
use crate::serve::{Bounds, Security, serve};
use crate::threads::Threads;
use crate::tls::{self, Certificate, Shown, TlsError};

/// For requests in flight at the end.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
/// How long a worker that ends tells how things stood.
const LAST_WORD: Duration = Duration::from_secs(1);
const INGRESS: Bounds = Bounds { name: "ingress", connections: 16_384, drain: DRAIN };

/// Descriptors that a worker gets, by number.
pub(crate) const CHANNEL_FD: i32 = 3;
pub(crate) const SOCKETS_FD: i32 = 4;
pub(crate) const INGRESS_FD: i32 = 5;
/// The folder with the code of its instances.
pub(crate) const DIR_VAR: &str = "MARCATO_WORKER_DIR";
/// A number that no other worker of the host has: the user that it becomes.
pub(crate) const NUMBER_VAR: &str = "MARCATO_WORKER_NUMBER";
/// Its control group, where the daemon made one for it.
pub(crate) const CGROUP_VAR: &str = "MARCATO_WORKER_CGROUP";

/// Why a worker could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It was not started by a host daemon.
    #[error("a worker is started by the host daemon, not by hand")]
    NotStartedByHost,
    /// The channel to the daemon cannot be used.
    #[error("the channel to the host daemon cannot be used")]
    Channel(#[source] io::Error),
    /// The ingress cannot be used.
    #[error("the listening socket cannot be used")]
    Ingress(#[source] io::Error),
    /// It stopped half way into its confinement.
    #[error("the process cannot be confined")]
    Confine(#[from] ConfineError),
    /// The sandbox engine cannot start.
    #[error("the sandbox engine cannot start")]
    Runtime(#[from] RuntimeError),
}

/// What a worker has before it has any thread.
pub struct Prepared {
    channel: StdStream,
    sockets: StdDatagram,
    ingress: OwnedFd,
    code_dir: PathBuf,
    setup: Setup,
    plan: Plan,
    confinement: ConfinementReport,
}

/// Takes what the daemon passed on and confines the process. Call it before any thread is started.
pub fn prepare() -> Result<Prepared, WorkerError> {
    let code_dir = PathBuf::from(std::env::var_os(DIR_VAR).ok_or(WorkerError::NotStartedByHost)?);
    let number = std::env::var(NUMBER_VAR).ok().and_then(|n| n.parse().ok()).unwrap_or_default();
    let plan = plan(code_dir.clone(), number);
    let confinement = marcato_confine::enter(&plan)?;
    Prepared::take(code_dir, plan, confinement)
}

/// What a worker keeps when it confines itself.
fn plan(code_dir: PathBuf, number: u16) -> Plan {
    Plan {
        unprivileged_user: Some(worker_user(number)),
        cgroup: std::env::var_os(CGROUP_VAR).map(PathBuf::from),
        ..Plan::worker(vec![code_dir], vec![CHANNEL_FD, SOCKETS_FD, INGRESS_FD])
    }
}

impl Prepared {
    fn take(code_dir: PathBuf, plan: Plan, confinement: ConfinementReport) -> Result<Self, WorkerError> {
        let mut channel = StdStream::from(take(CHANNEL_FD)?);
        let setup = read_first(&mut channel).map_err(WorkerError::Channel)?;
        let (sockets, ingress) = (take(SOCKETS_FD)?.into(), take(INGRESS_FD)?);
        Ok(Self { channel, sockets, ingress, code_dir, setup, plan, confinement })
    }

    /// Without confinement, for tests: their program has threads already.
    #[cfg(test)]
    pub(crate) fn unconfined() -> Result<Self, WorkerError> {
        let code_dir = PathBuf::from(std::env::var_os(DIR_VAR).ok_or(WorkerError::NotStartedByHost)?);
        let plan = plan(code_dir.clone(), 0);
        Self::take(code_dir, plan, ConfinementReport::default())
    }

    /// Whether nothing was taken from it.
    fn is_unconfined(&self) -> bool {
        self.confinement.measures.is_empty()
    }
}

fn take(number: i32) -> Result<OwnedFd, WorkerError> {
    // SAFETY: it only asks about a number; nothing is taken over.
    #[allow(unsafe_code, reason = "a descriptor that was passed on is known by its number alone; see SAFETY")]
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    nix::fcntl::fcntl(borrowed, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
        .map_err(|_| WorkerError::NotStartedByHost)?;
    // SAFETY: the daemon passed it on under this number, and nobody else in this process knows of it.
    #[allow(unsafe_code, reason = "the one way to take over an inherited descriptor; see SAFETY")]
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Runs a worker until the daemon stops it or is gone. `threads` carry requests; `cpu_shares`: apps share the CPU by
/// their weights.
pub async fn run(prepared: Prepared, threads: Vec<Handle>, cpu_shares: bool) -> Result<(), WorkerError> {
    let unconfined = prepared.is_unconfined();
    let Prepared { channel, sockets, ingress, code_dir, setup, plan, mut confinement } = prepared;
    channel.set_nonblocking(true).map_err(WorkerError::Channel)?;
    let channel = UnixStream::from_std(channel).map_err(WorkerError::Channel)?;
    // The daemon's user as this process sees it: in a user namespace it may have another number.
    let uid = channel.peer_cred().map_err(WorkerError::Channel)?.uid();
    let gone = CancellationToken::new();
    let sockets = SocketReceiver::start(sockets, gone.clone()).map_err(WorkerError::Channel)?;
    let tasks = TaskTracker::new();
    let worker = Arc::new_cyclic(|weak: &std::sync::Weak<Worker>| {
        let weak = weak.clone();
        let peer = Peer::start(channel, &tasks, gone.clone(), move |order| {
            let worker = weak.upgrade();
            async move {
                match worker {
                    Some(worker) => worker.obey(order).await,
                    None => OrderAnswer::Done,
                }
            }
            .boxed()
        });
        Worker {
            peer,
            instances: tokio::sync::OnceCell::new(),
            tls: watch::Sender::new(None),
            open: Notify::new(),
            stop: CancellationToken::new(),
        }
    });
    let logs = HostLogs::start(worker.peer.clone(), &tasks);
    let runtime = Runtime::new(RuntimeConfig {
        pool: PoolConfig::for_host(setup.sandboxes, setup.memory),
        code: Arc::new(HostCode { peer: worker.peer.clone(), dir: code_dir }),
        dialer: Arc::new(HostDialer::new(worker.peer.clone(), sockets)),
        outbound_ca_pem: setup.outbound_ca_pem.map(String::into_bytes),
        threads: threads.clone(),
        cpu_shares,
    })?;
    let lease = Arc::new(WorkerLease::new(runtime.clone(), setup.lease));
    let instances = Arc::new(Instances::new(runtime, worker.peer.clone(), logs, Arc::clone(&lease)));
    let listener = Listener::inherited(ingress).map_err(WorkerError::Ingress)?;
    if let Some(tls) = setup.tls {
        worker.tls.send_replace(Some(tls));
    }
    let handler = Ingress::new(instances.map(), instances.numbers());
    // Nobody else sets it.
    let _ = worker.instances.set(Arc::clone(&instances));
    tasks.spawn({
        let (peer, gone) = (worker.peer.clone(), gone.clone());
        async move {
            gone.run_until_cancelled(lease.tell(&peer)).await;
        }
    });
    if !unconfined {
        // Its threads and its engine exist; the first guest does not.
        marcato_confine::seal(&plan, &mut confinement)?;
    }
    let ready = Ask::Ready(Box::new(Readiness { confinement }));
    let serving = async {
        if worker.peer.call(&ready).await.is_err() {
            return;
        }
        let security = tokio::select! {
            security = async {
                worker.open.notified().await;
                security(&listener, uid, worker.tls.subscribe()).await
            } => security,
            () = worker.stop.cancelled() => return,
        };
        tracing::info!(worker = %setup.worker, "ingress opens");
        serve(listener, security, INGRESS, handler, Threads::new(threads), worker.stop.clone()).await;
        // What its last requests used counts too.
        let last = Ask::Last(Box::new(instances.report()));
        drop(tokio::time::timeout(LAST_WORD, worker.peer.call(&last)).await);
    };
    // Without its daemon it has neither services nor anybody who tells it what to run.
    let served = gone.run_until_cancelled(serving).await;
    if served.is_none() {
        tracing::info!(worker = %setup.worker, "the host daemon is gone");
    }
    Ok(())
}

/// What orders are carried out on.
struct Worker {
    peer: Peer<Asks, Orders>,
    instances: tokio::sync::OnceCell<Arc<Instances>>,
    tls: watch::Sender<Option<IngressTls>>,
    open: Notify,
    stop: CancellationToken,
}

impl Worker {
    async fn obey(&self, order: Order) -> OrderAnswer {
        // The daemon sends nothing before it was told that the worker is ready.
        let Some(instances) = self.instances.get() else { return OrderAnswer::Done };
        match order {
            Order::Start(orders) => return OrderAnswer::Started(instances.start(orders)),
            Order::Drain(id) => instances.drain(&id),
            Order::Remove(id) => instances.remove(&id),
            Order::Open => self.open.notify_one(),
            Order::Tls(tls) => drop(self.tls.send_replace(Some(*tls))),
            Order::Lease(lease) => instances.keep_to(lease),
            Order::Report => return OrderAnswer::Report(Box::new(instances.report())),
            Order::Stop => self.stop.cancel(),
        }
        OrderAnswer::Done
    }
}

/// How callers prove who they are: on TCP with the first certificate that can be used, and each later one.
async fn security(listener: &Listener, uid: u32, mut given: watch::Receiver<Option<IngressTls>>) -> Security {
    if matches!(listener, Listener::Unix { .. }) {
        return Security::SameUser(uid);
    }
    loop {
        let tls = given.borrow_and_update().clone();
        match tls.map(|tls| server(&tls)) {
            Some(Ok((shown, config))) => {
                tokio::spawn(follow(shown, given));
                return Security::MutualTls(TlsAcceptor::from(Arc::new(config)));
            }
            Some(Err(error)) => tracing::error!(%error, "the certificate of the ingress cannot be used"),
            None => tracing::info!("the ingress waits for its certificate"),
        }
        if given.changed().await.is_err() {
            // The worker ends.
            std::future::pending::<()>().await;
        }
    }
}

fn server(tls: &IngressTls) -> Result<(Arc<Shown>, rustls::ServerConfig), TlsError> {
    let shown = Shown::new(certificate(tls)?);
    let config = tls::server_config(Arc::clone(&shown), tls.ca_pem.as_bytes())?;
    Ok((shown, config))
}

/// Shows what is given from now on.
async fn follow(shown: Arc<Shown>, mut given: watch::Receiver<Option<IngressTls>>) {
    while given.changed().await.is_ok() {
        let tls = given.borrow_and_update().clone();
        match tls.map(|tls| certificate(&tls)) {
            Some(Ok(certificate)) => shown.replace(certificate),
            Some(Err(error)) => tracing::error!(%error, "a new certificate of the ingress cannot be used"),
            None => {}
        }
    }
}

fn certificate(tls: &IngressTls) -> Result<Certificate, TlsError> {
    Certificate::from_pem(tls.key_pem.as_bytes(), tls.cert_pem.as_bytes())
}
