//! The edge as a whole: made once, then served until shutdown, then drained.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use marcato_balance::TableCell;
use prometheus_client::registry::Registry;
use rustls::server::ResolvesServerCert;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::EdgeConfig;
use crate::connect::Connector;
use crate::conns::{Clock, Connections};
use crate::listen::Acceptor;
use crate::metrics::Metrics;
use crate::retry::Budget;
use crate::upstream::Upstream;
use crate::workers::Workers;

/// Why the edge cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// A listener could not be handed to the runtime.
    #[error("a listening socket cannot be used")]
    Listener(#[source] io::Error),
}

/// What every request of one worker thread needs.
pub(crate) struct Shared {
    pub(crate) cfg: EdgeConfig,
    pub(crate) clock: Clock,
    pub(crate) table: Arc<TableCell>,
    pub(crate) changed: watch::Receiver<u64>,
    /// The thread's own connections to hosts: a request never waits for another thread's reactor.
    pub(crate) upstream: Upstream,
    pub(crate) budget: Arc<Budget>,
    pub(crate) metrics: Metrics,
    /// Requests that wait for an instance, over all threads.
    pub(crate) waiting: Arc<AtomicUsize>,
    /// Places for clients that hear of a full queue later, over all threads.
    pub(crate) held: Arc<Semaphore>,
}

/// The request path, ready to serve.
pub struct Edge {
    workers: Workers,
    clock: Clock,
    cfg: EdgeConfig,
    table: Arc<TableCell>,
    metrics: Metrics,
    server_tls: Arc<rustls::ServerConfig>,
    /// Owns the tasks of connections to hosts.
    upstream_tasks: TaskTracker,
}

impl Edge {
    /// Builds it; nothing runs yet.
    ///
    /// `workers` are runtimes of one thread each (at least one); a client's connection stays on the one that
    /// it was given to, and so does every request on it. `table` is read once per request, `changed` tells of a new one. `upstream_tls` must verify
    /// hosts against the cluster CA and carry the router's certificate. `server_tls` picks the
    /// certificate for clients at each handshake, so that files can be replaced while it runs.
    #[must_use]
    pub fn new(
        cfg: EdgeConfig,
        table: Arc<TableCell>,
        changed: &watch::Receiver<u64>,
        upstream_tls: &Arc<rustls::ClientConfig>,
        server_tls: Arc<dyn ResolvesServerCert>,
        workers: Vec<Handle>,
        registry: &mut Registry,
    ) -> Self {
        let clock = Clock::new();
        let metrics = Metrics::register(registry, Arc::clone(&table));
        let upstream_tasks = TaskTracker::new();
        let budget = Arc::new(Budget::new(cfg.retry_percent, cfg.retry_min_per_s, clock.now_ms()));
        let waiting = Arc::new(AtomicUsize::new(0));
        let held = Arc::new(Semaphore::new(cfg.max_held));
        let shared = || {
            let (tls, tasks) = (Arc::clone(upstream_tls), upstream_tasks.clone());
            let connector = Connector::new(tls, cfg.connect_ms.into(), tasks, metrics.clone());
            Shared {
                cfg: cfg.clone(),
                clock,
                table: Arc::clone(&table),
                changed: changed.clone(),
                upstream: Upstream::new(connector, clock, cfg.pool_idle_per_host, cfg.pool_idle_ms.0),
                budget: Arc::clone(&budget),
                metrics: metrics.clone(),
                waiting: Arc::clone(&waiting),
                held: Arc::clone(&held),
            }
        };
        let workers = Workers::new(workers, shared);
        Self { workers, clock, cfg, table, metrics, server_tls: server_config(server_tls), upstream_tasks }
    }

    /// Serves until `shutdown`, then takes no more connections, lets requests in flight finish
    /// within `drain_ms`, and cuts what is left. Errors: [`EdgeError::Listener`] before it serves.
    pub async fn serve(
        self,
        http: Vec<StdListener>,
        https: Vec<StdListener>,
        shutdown: CancellationToken,
    ) -> Result<(), EdgeError> {
        let connections = Arc::new(Connections::new(self.clock, self.metrics.clone()));
        let plain = Acceptor {
            workers: self.workers.clone(),
            metrics: self.metrics.clone(),
            connections: Arc::clone(&connections),
            places: Arc::new(Semaphore::new(self.cfg.max_connections.min(Semaphore::MAX_PERMITS))),
            tasks: TaskTracker::new(),
            tls: None,
        };
        let tls = Acceptor { tls: Some(TlsAcceptor::from(Arc::clone(&self.server_tls))), ..plain.clone() };
        let mut listeners = Vec::new();
        for (sockets, acceptor) in [(http, &plain), (https, &tls)] {
            for socket in sockets {
                socket.set_nonblocking(true).map_err(EdgeError::Listener)?;
                let listener = TcpListener::from_std(socket).map_err(EdgeError::Listener)?;
                listeners.push(acceptor.clone().run(listener, shutdown.clone()));
            }
        }
        let listening = futures::future::join_all(listeners);
        let tasks = plain.tasks.clone();
        tokio::select! {
            // Each listener closes its socket as it ends.
            () = async { listening.await; shutdown.cancelled().await; } => {}
            () = self.housekeeping(&connections) => {}
        }
        self.drain(&connections, &tasks).await;
        Ok(())
    }

    async fn drain(&self, connections: &Connections, tasks: &TaskTracker) {
        let bound = Duration::from(self.cfg.drain_ms);
        connections.drain();
        tasks.close();
        let watchdog = self.housekeeping(connections);
        let finished = tokio::select! {
            finished = timeout(bound, tasks.wait()) => finished.is_ok(),
            () = watchdog => false,
        };
        if !finished {
            let cut = connections.end();
            tracing::warn!(cut, "connections were cut at the end of the drain");
            let _ = timeout(Duration::from_secs(1), tasks.wait()).await;
        }
        self.workers.shared().for_each(|s| s.upstream.close());
        self.upstream_tasks.close();
        let _ = timeout(Duration::from_secs(1), self.upstream_tasks.wait()).await;
    }

    /// Never ends: what nobody's request would do in time.
    async fn housekeeping(&self, connections: &Connections) {
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            connections.watchdog(&self.cfg);
            let table = self.table.load_full();
            self.workers.shared().for_each(|s| s.upstream.tidy(&table));
        }
    }
}

/// TLS 1.2 and 1.3 with ALPN for both HTTP versions, and no client certificates.
fn server_config(certificates: Arc<dyn ResolvesServerCert>) -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("ring serves TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    match rustls::crypto::ring::Ticketer::new() {
        Ok(ticketer) => config.ticketer = ticketer,
        Err(error) => tracing::warn!(%error, "TLS sessions are not resumed by ticket"),
    }
    Arc::new(config)
}
