//! Wires the edge to the control plane: one cell for the route table, one signal that it changed, one registry,
//! one shutdown token. Nothing else is shared, so the edge goes on when the control plane does not.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use marcato_balance::TableCell;
use marcato_control::{Control, ControlConfig, ControlError, PlanSettings, Tasks, spawn_tasks};
use marcato_edge::{Edge, EdgeConfig, EdgeError};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What the router is started with. All listeners listen already, bound here or inherited.
#[derive(Debug)]
pub struct RouterConfig {
    /// Where authority, store and components are kept; `admin.token` and `ca.pem` are written there.
    pub data_dir: PathBuf,
    /// The cluster's domain: an app's default host name is `APP.DOMAIN`.
    pub domain: String,
    /// More names and addresses for the listeners' certificate; those that they are bound to are in it anyway.
    pub names: Vec<String>,
    /// Plain listeners of the edge.
    pub http: Vec<TcpListener>,
    /// TLS listeners of the edge.
    pub https: Vec<TcpListener>,
    /// The admin API's listener (TLS).
    pub admin: TcpListener,
    /// After what time a silent host's instances are placed elsewhere; `None`: they wait for it.
    pub dead_after: Option<Duration>,
    /// At most so many of a hundred hosts are given up at once.
    pub dead_percent_max: u32,
    /// Runtimes of one thread each that carry requests, one per core (at least one). The control plane runs on
    /// the present one.
    pub workers: Vec<tokio::runtime::Handle>,
}

/// Why the router ended.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// A listening socket cannot be used.
    #[error("the admin listener cannot be used")]
    Listener(#[source] io::Error),
    /// SIGHUP cannot be listened for.
    #[error("SIGHUP cannot be listened for")]
    Signal(#[source] io::Error),
    /// The control plane cannot start.
    #[error("the control plane cannot start")]
    Control(#[from] ControlError),
    /// The edge cannot start.
    #[error("the edge cannot start")]
    Edge(#[from] EdgeError),
}

/// How long requests wait in the listeners' backlog for the first route table.
const FIRST_TABLE: Duration = Duration::from_secs(3);

/// Serves until `shutdown` is cancelled, then drains: the edge first, then the control plane. SIGHUP makes
/// it load the public listeners' certificate files again.
pub async fn run(config: RouterConfig, shutdown: CancellationToken) -> Result<(), RouterError> {
    let names = names(config.names, config.https.iter().chain([&config.admin]));
    let admin = listener(config.admin).map_err(RouterError::Listener)?;
    let hangup = signal(SignalKind::hangup()).map_err(RouterError::Signal)?;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let settings = PlanSettings {
        dead_after_ms: config.dead_after.map(millis),
        dead_percent_max: config.dead_percent_max,
        ..PlanSettings::standard()
    };
    let control = Control::open(ControlConfig {
        data_dir: config.data_dir,
        cluster_domain: config.domain,
        names,
        http_port: port(&config.http),
        https_port: port(&config.https),
        version: env!("CARGO_PKG_VERSION").into(),
    })
    .await?;
    let table = Arc::new(TableCell::new());
    let (changed, changes) = watch::channel(0);
    // Each part says `marcato_…` itself.
    let mut registry = Registry::default();
    let (upstream, server) = (control.upstream_tls(), control.server_tls(Arc::clone(&table)));
    let (standard, cell, workers) = (EdgeConfig::standard(), Arc::clone(&table), config.workers);
    let edge = Edge::new(standard, cell, &changes, &upstream, server, workers, &mut registry);
    control.register_metrics(&mut registry);

    // The control plane outlives the edge's drain: hosts that come and go meanwhile still change the table.
    let control_end = CancellationToken::new();
    let tracker = TaskTracker::new();
    let tasks = Tasks {
        state: control.state().clone(),
        debug: control.debug_secret().clone(),
        observed: Arc::clone(control.observed()),
        components: control.blobs().clone(),
        host_tls: control.upstream_tls(),
        authority: Arc::clone(control.authority()),
        usage: control.usage().clone(),
        table,
        changed,
        settings,
    };
    let mut ready = spawn_tasks(tasks, &tracker, &control_end);
    let end = control_end.clone();
    let admin = tracker.spawn(async move {
        let outcome = tokio::select! {
            outcome = control.serve_admin(admin, Arc::new(registry), end) => outcome,
            never = reload_on(hangup, &control) => match never {},
        };
        if let Err(error) = &outcome {
            tracing::error!(%error, "the admin API ended; requests are served with the last route table");
        }
    });
    // A router that was restarted knows no instance yet; requests wait in the backlog until it does.
    let first = tokio::time::timeout(FIRST_TABLE, ready.wait_for(|r| *r));
    tokio::select! {
        outcome = first => if !matches!(outcome, Ok(Ok(_))) {
            tracing::warn!("no route table yet; serving without one");
        },
        () = shutdown.cancelled() => {}
    }
    tracing::info!("serving");
    let served = edge.serve(config.http, config.https, shutdown).await;
    control_end.cancel();
    tracker.close();
    tracker.wait().await;
    drop(admin.await);
    Ok(served?)
}

/// Never ends.
async fn reload_on(mut hangup: Signal, control: &Control) -> Infallible {
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: the certificate files are loaded again");
        control.reload_certificates().await;
    }
    std::future::pending().await
}

fn listener(socket: TcpListener) -> io::Result<tokio::net::TcpListener> {
    socket.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(socket)
}

/// What was asked for, and the addresses that the listeners are bound to, unless they are bound to all.
fn names<'a>(mut names: Vec<String>, listeners: impl Iterator<Item = &'a TcpListener>) -> Vec<String> {
    let addresses = listeners.filter_map(|l| l.local_addr().ok()).map(|a| a.ip());
    names.extend(addresses.filter(|ip| !ip.is_unspecified() && !ip.is_loopback()).map(|ip| ip.to_string()));
    names
}

fn port(listeners: &[TcpListener]) -> Option<u16> {
    listeners.first()?.local_addr().ok().map(|a| a.port())
}
