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

/// Why the edge cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// A listener could not be handed to the runtime.
    #[error("a listening socket cannot be used")]
    Listener(#[source] io::Error),
}

/// What every request needs.
pub(crate) struct Shared {
    pub(crate) cfg: EdgeConfig,
    pub(crate) clock: Clock,
    pub(crate) table: Arc<TableCell>,
    pub(crate) changed: watch::Receiver<u64>,
    pub(crate) upstream: Upstream,
    pub(crate) budget: Budget,
    pub(crate) metrics: Metrics,
    /// Requests that wait for an instance.
    pub(crate) waiting: AtomicUsize,
}

/// The request path, ready to serve.
pub struct Edge {
    shared: Arc<Shared>,
    server_tls: Arc<rustls::ServerConfig>,
    /// Owns the tasks of connections to hosts.
    upstream_tasks: TaskTracker,
}

impl Edge {
    /// Builds it; nothing runs yet.
    ///
    /// `table` is read once per request, `changed` tells of a new one. `upstream_tls` must verify
    /// hosts against the cluster CA and carry the router's certificate. `server_tls` picks the
    /// certificate for clients at each handshake, so that files can be replaced while it runs.
    #[must_use]
    pub fn new(
        cfg: EdgeConfig,
        table: Arc<TableCell>,
        changed: watch::Receiver<u64>,
        upstream_tls: Arc<rustls::ClientConfig>,
        server_tls: Arc<dyn ResolvesServerCert>,
        registry: &mut Registry,
    ) -> Self {
        let clock = Clock::new();
        let metrics = Metrics::register(registry, Arc::clone(&table));
        let upstream_tasks = TaskTracker::new();
        let connector = Connector::new(upstream_tls, cfg.connect_ms.into(), upstream_tasks.clone(), metrics.clone());
        let upstream = Upstream::new(connector, clock, cfg.pool_idle_per_host, cfg.pool_idle_ms.0);
        let budget = Budget::new(cfg.retry_percent, cfg.retry_min_per_s, clock.now_ms());
        let waiting = AtomicUsize::new(0);
        let shared = Shared { cfg, clock, table, changed, upstream, budget, metrics, waiting };
        Self { shared: Arc::new(shared), server_tls: server_config(server_tls), upstream_tasks }
    }

    /// Serves until `shutdown`, then takes no more connections, lets requests in flight finish
    /// within `drain_ms`, and cuts what is left. Errors: [`EdgeError::Listener`] before it serves.
    pub async fn serve(
        self,
        http: Vec<StdListener>,
        https: Vec<StdListener>,
        shutdown: CancellationToken,
    ) -> Result<(), EdgeError> {
        let connections = Arc::new(Connections::new(self.shared.clock, self.shared.metrics.clone()));
        let plain = Acceptor {
            shared: Arc::clone(&self.shared),
            connections: Arc::clone(&connections),
            places: Arc::new(Semaphore::new(self.shared.cfg.max_connections.min(Semaphore::MAX_PERMITS))),
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
        let bound = Duration::from(self.shared.cfg.drain_ms);
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
        self.shared.upstream.close();
        self.upstream_tasks.close();
        let _ = timeout(Duration::from_secs(1), self.upstream_tasks.wait()).await;
    }

    /// Never ends: what nobody's request would do in time.
    async fn housekeeping(&self, connections: &Connections) {
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            connections.watchdog(&self.shared.cfg);
            self.shared.upstream.tidy(&self.shared.table.load_full());
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
