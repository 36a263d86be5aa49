//! From a config to a running daemon and back down: makes every part, owns every task, ends them in order.
//!
//! Start: lock, identity, ledger, sockets, workers, reconcilers; the ingress opens once what the ledger says
//! and the cache holds was started. End: workers finish their requests within a bound, then the rest stops.

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{HostCapacity, JoinRequest};
use marcato_runtime::{CodeCache, NetworkDialer};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::client::PeerClient;
use crate::components::ComponentStore;
use crate::config::HostdConfig;
use crate::control::Control;
use crate::durable;
use crate::error::HostdError;
use crate::identity::{self, Identity, IdentityError};
use crate::ingress_identity::IngressIdentity;
use crate::ledger::{Ledger, SealKey};
use crate::listen::Listener;
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::pool::{Pool, Settings};
use crate::reconcile::components::{Components, Forget};
use crate::reconcile::drive;
use crate::reconcile::instances::{Instances, InstancesSetup, InstancesStatus};
use crate::reconcile::services::{Services, ServicesStatus};
use crate::remote::ServiceCalls;
use crate::renewal::Renewal;
use crate::serve::{Bounds, Security, serve};
use crate::services::ServiceHost;
use crate::threads::Threads;
use crate::usage::UsageLedger;
use crate::worker::DRAIN;

/// How long the ingress waits for the ledger's instances before it opens without them.
const SETTLE: Duration = Duration::from_secs(5);
const CONTROL: Bounds = Bounds { name: "control", connections: 256, drain: DRAIN };

/// The tasks of a daemon and how they are told to end.
struct Tasks {
    /// Servers end first, and drain.
    servers: JoinSet<()>,
    /// Reconcilers end after the servers.
    reconcilers: JoinSet<()>,
    pool: Pool,
    stop_reconcilers: CancellationToken,
}

/// Runs a host daemon until the shutdown. Errors: it could not start, or a part of it ended by a panic.
pub async fn run(cfg: HostdConfig, shutdown: CancellationToken) -> Result<(), HostdError> {
    let _lock = lock_data_dir(&cfg.data_dir).await?;
    let joining = Box::pin(join(&cfg));
    let identity = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        identity = joining => identity?,
    };
    let mut tasks = Box::pin(start(cfg, identity, &shutdown)).await?;
    let pool = tasks.pool.clone();
    let mut unfit = None;
    let ended = tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        why = pool.unfit() => {
            unfit = Some(why);
            None
        }
        ended = tasks.servers.join_next() => ended,
        ended = tasks.reconcilers.join_next() => ended,
    };
    // A part that ended without being told to takes the daemon with it: a supervisor starts it whole again.
    shutdown.cancel();
    while tasks.servers.join_next().await.is_some() {}
    tasks.stop_reconcilers.cancel();
    while tasks.reconcilers.join_next().await.is_some() {}
    if let Some(why) = unfit {
        return Err(HostdError::Confinement(why));
    }
    match ended {
        Some(Err(error)) => Err(HostdError::Task(error.to_string())),
        Some(Ok(())) => Err(HostdError::Task("it was not told to".into())),
        None => {
            tracing::info!("host daemon ended");
            Ok(())
        }
    }
}

/// How long lock and addresses are waited for: a child process that a killed predecessor was just about to start
/// holds them until it runs its own program.
const LOCK_WITHIN: Duration = Duration::from_secs(10);

async fn lock_data_dir(dir: &Path) -> Result<std::fs::File, HostdError> {
    let fail = |source| HostdError::DataDir { path: dir.to_owned(), source };
    durable::ensure_private_dir(dir).map_err(fail)?;
    let file = std::fs::File::create(dir.join("lock")).map_err(fail)?;
    let begun = Instant::now();
    while !fs4::fs_std::FileExt::try_lock_exclusive(&file).map_err(fail)? {
        if begun.elapsed() >= LOCK_WITHIN {
            return Err(HostdError::InUse(dir.to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    durable::sweep_partials(dir).map_err(fail)?;
    Ok(file)
}

async fn join(cfg: &HostdConfig) -> Result<Identity, HostdError> {
    let dir = cfg.data_dir.join("identity");
    durable::ensure_private_dir(&dir)
        .and_then(|()| durable::sweep_partials(&dir))
        .map_err(|source| HostdError::DataDir { path: dir.clone(), source })?;
    let wish = JoinRequest {
        id: cfg.id.clone(),
        csr_pem: String::new(),
        control: cfg.control.address.clone(),
        ingress: cfg.ingress.address.clone(),
        zone: cfg.zone.clone(),
        labels: cfg.labels.clone(),
    };
    Ok(identity::ensure(&dir, wish, cfg.join.as_ref()).await?)
}

async fn start(cfg: HostdConfig, identity: Identity, shutdown: &CancellationToken) -> Result<Tasks, HostdError> {
    let dir = cfg.data_dir;
    let data = |part: &str| {
        let path = dir.join(part);
        move |source| HostdError::DataDir { path, source }
    };
    let ledger = Ledger::open(&dir, SealKey::ensure(&dir.join("identity").join("seal.key"))?)?;
    let renewal = Arc::new(Renewal::new(&dir.join("identity"), cfg.id.clone(), identity).map_err(IdentityError::from)?);
    let acceptor = TlsAcceptor::from(Arc::new(renewal.server_config().map_err(IdentityError::from)?));
    let control = Listener::open(cfg.control, LOCK_WITHIN).await?;
    let ingress_address = cfg.ingress.address.clone();
    let ingress = Listener::open(cfg.ingress, LOCK_WITHIN).await?.into_fd();
    let (ingress, ingress_file) =
        ingress.map_err(|source| HostdError::Listen { address: ingress_address.to_string(), source })?;
    let cache = CodeCache::open(&dir.join("cache"), cfg.compiler).map_err(HostdError::Cache)?;
    let store = ComponentStore::open(dir.join("components")).map_err(data("components"))?;
    let services = Arc::new(ServiceHost::new(dir.join("services")).map_err(data("services"))?);
    let peers = PeerClient::new(renewal.peer_config().map_err(IdentityError::from)?);
    let calls = ServiceCalls::new(cfg.id.clone(), services.clone(), peers);
    let metrics = Arc::new(Metrics::new(cfg.id.as_str()));
    let started_at = Timestamp::now();
    let boot = u64::try_from(started_at.as_millisecond()).unwrap_or_default();
    let logs = Logs::new(boot, shutdown.clone());
    let usage = UsageLedger::open(&dir.join("usage.sqlite"))?;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let capacity = HostCapacity { memory_bytes: cfg.memory, cpu_millis: cores as u64 * 1000, sandboxes: cfg.sandboxes };

    let (wake_services, wake_components, wake_instances) =
        (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let settings = Settings {
        command: cfg.worker,
        dir: dir.join("workers"),
        sandboxes: cfg.sandboxes,
        memory: cfg.memory,
        outbound_ca_pem: cfg.outbound_ca_file.as_deref().map(outbound_ca).transpose()?,
        require_confinement: cfg.require_confinement,
        unfit: watch::Sender::new(None),
        cache: cache.clone(),
        dialer: NetworkDialer { allow_private: cfg.allow_private_egress },
        wake_components: wake_components.clone(),
        wake_instances: wake_instances.clone(),
        usage: usage.clone(),
    };
    let pool = Pool::start(settings, ingress, ingress_address, ingress_file).map_err(HostdError::Workers)?;
    let ingress_identity = Arc::new(IngressIdentity::new(cfg.id.clone(), renewal.ca_pem().to_owned(), pool.clone()));

    let (component_sender, component_status) = watch::channel(Vec::new());
    let (service_sender, service_status) = watch::channel(ServicesStatus::default());
    let (instance_sender, instance_status) = watch::channel(InstancesStatus::default());
    let node = Arc::new(Node {
        id: cfg.id.clone(),
        started_at,
        capacity,
        ledger: ledger.clone(),
        renewal,
        store: store.clone(),
        pool: pool.clone(),
        ingress_identity,
        services: services.clone(),
        logs: logs.clone(),
        usage: usage.clone(),
        metrics: metrics.clone(),
        component_status: component_status.clone(),
        instance_status: instance_status.clone(),
        service_status: service_status.clone(),
        wake_components: wake_components.clone(),
        wake_services: wake_services.clone(),
    });

    let stop = CancellationToken::new();
    let mut reconcilers = JoinSet::new();
    let metered = pool.clone();
    let measure = move || {
        let pool = metered.clone();
        async move { pool.refresh().await }
    };
    reconcilers.spawn(usage.run(measure, stop.clone()));
    let service_reconciler = Services { own: cfg.id.clone(), host: services, calls: calls.clone() };
    reconcilers.spawn(drive(
        service_reconciler,
        ledger.subscribe(),
        wake_services,
        vec![wake_instances.clone()],
        service_sender,
        stop.clone(),
    ));
    let forget: Forget = {
        let pool = pool.clone();
        Box::new(move |digest| pool.forget(digest))
    };
    let component_reconciler = Components::new(store, cache.clone(), forget, metrics, wake_components.clone());
    reconcilers.spawn(drive(
        component_reconciler,
        ledger.subscribe(),
        wake_components.clone(),
        vec![wake_instances.clone()],
        component_sender,
        stop.clone(),
    ));
    let instance_reconciler = Instances::new(InstancesSetup {
        own: cfg.id,
        pool: pool.clone(),
        cache,
        calls,
        logs,
        components: component_status,
        services: service_status,
        wake_components,
    });
    reconcilers.spawn(drive(
        instance_reconciler,
        ledger.subscribe(),
        wake_instances,
        Vec::new(),
        instance_sender,
        stop.clone(),
    ));

    let mut servers = JoinSet::new();
    let threads = Threads::new(Vec::new());
    servers.spawn(serve(
        control,
        Security::MutualTls(acceptor),
        CONTROL,
        Control::new(node),
        threads,
        shutdown.clone(),
    ));
    servers.spawn({
        let (pool, shutdown) = (pool.clone(), shutdown.clone());
        async move {
            tokio::select! {
                () = settled(instance_status) => pool.open(),
                () = shutdown.cancelled() => {}
            }
            shutdown.cancelled().await;
            pool.end().await;
        }
    });
    Ok(Tasks { servers, reconcilers, pool, stop_reconcilers: stop })
}

/// The authorities for outbound HTTPS, checked as a worker will.
fn outbound_ca(path: &Path) -> Result<String, HostdError> {
    let pem = std::fs::read_to_string(path).map_err(|source| HostdError::DataDir { path: path.to_owned(), source })?;
    marcato_runtime::check_outbound_ca(pem.as_bytes())
        .map_err(|source| HostdError::OutboundCa { path: path.to_owned(), source })?;
    Ok(pem)
}

/// Waits until what the ledger says and the cache holds was started; connections wait in the listen queue.
async fn settled(mut status: watch::Receiver<InstancesStatus>) {
    if tokio::time::timeout(SETTLE, status.wait_for(|s| s.settled)).await.is_err() {
        tracing::warn!("the ledger's instances are not all ready; the ingress opens without the rest");
    }
}

#[cfg(test)]
mod tests;
