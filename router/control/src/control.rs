//! The control plane as one value: opened from a directory, then served.
//!
//! Owns: the order of the start (authority, store, first token, certificates) and what others of the
//! router need from it. Does not own the tasks that act on hosts (`tasks`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{Role, Token};
use marcato_balance::TableCell;
use prometheus_client::registry::Registry;
use rustls::server::ResolvesServerCert;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Api, Metrics, Shared};
use crate::auth::{self, Throttle};
use crate::blobs::{BlobError, Blobs};
use crate::ca::{Authority, CaError, Leaf};
use crate::files::{self, FileError};
use crate::hosts::HostClients;
use crate::names::NamedCerts;
use crate::observed::ObservedCell;
use crate::state::{DebugSecret, Deed, SealError, SealKey, State, StateError, TokenRecord};
use crate::store::{SqliteStore, Store, StoreError};
use crate::tls::{self, ReloadingCert};
use crate::usage::{UsageError, UsageStore};

/// The name of the token that the first start makes.
const FIRST_TOKEN: &str = "admin";
/// How often this router's own certificates are looked at; they have months left when they are due.
const RENEW_EVERY: Duration = Duration::from_secs(3_600);

/// What the control plane needs to know.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Where everything is kept: `state.sqlite`, `usage.sqlite`, `components/`, `ca.*`, `tls/`, `admin-tls/`, `identity/`, `seal.key`, `admin.token`.
    pub data_dir: PathBuf,
    /// Apps answer at `{app}.{cluster_domain}` unless they have their own routes.
    pub cluster_domain: String,
    /// More names and addresses under which clients reach the listeners; they go into our certificate.
    pub names: Vec<String>,
    /// Port under which clients reach the edge over HTTP; `None` when they cannot.
    pub http_port: Option<u16>,
    /// Port under which clients reach the edge over HTTPS; `None` when they cannot.
    pub https_port: Option<u16>,
    /// The release, for `/version`.
    pub version: String,
}

/// Why the control plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The data directory cannot be used.
    #[error("the data directory cannot be used")]
    Files(#[from] FileError),
    /// The store cannot be opened.
    #[error("the store cannot be opened")]
    Store(#[from] StoreError),
    /// The state cannot be read or written.
    #[error("the state cannot be prepared")]
    State(#[from] StateError),
    /// The sealing key cannot be had.
    #[error("secrets cannot be sealed")]
    Seal(#[from] SealError),
    /// Usage cannot be kept.
    #[error("usage cannot be kept")]
    Usage(#[from] UsageError),
    /// Components cannot be kept.
    #[error("components cannot be kept")]
    Blobs(#[from] BlobError),
    /// Certificates cannot be had.
    #[error("certificates cannot be had")]
    Certificates(#[from] CaError),
    /// The cluster domain is no host name.
    #[error("cluster domain {0:?}: expected a lower-case host name such as localhost or cloud.example.org")]
    Domain(String),
    /// A thread of the start ended early.
    #[error("the start was cut short")]
    Interrupted,
}

/// The control plane.
pub struct Control {
    config: ControlConfig,
    state: State,
    debug: DebugSecret,
    blobs: Blobs,
    usage: UsageStore,
    observed: Arc<ObservedCell>,
    authority: Arc<Authority>,
    upstream: Arc<rustls::ClientConfig>,
    public: Arc<ReloadingCert>,
    admin: Arc<ReloadingCert>,
    router: Arc<ReloadingCert>,
    hosts: HostClients,
    metrics: Metrics,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("config", &self.config).finish_non_exhaustive()
    }
}

struct Opened {
    store: SqliteStore,
    seal: SealKey,
    blobs: Blobs,
    usage: UsageStore,
    authority: Authority,
    upstream: Arc<rustls::ClientConfig>,
    public: ReloadingCert,
    admin: ReloadingCert,
    router: Arc<ReloadingCert>,
}

struct Leafs {
    router: Leaf,
    public: Leaf,
    admin: Leaf,
}

/// This router's own certificates, made anew where they are due at `now`.
fn ensure_leafs(authority: &Authority, config: &ControlConfig, now: Timestamp) -> Result<Leafs, CaError> {
    let dir = &config.data_dir;
    Ok(Leafs {
        router: authority.ensure_router(&dir.join("identity"), now)?,
        public: authority.ensure_public(&dir.join("tls"), &config.cluster_domain, &config.names, now)?,
        // Of its own: who replaces the edge's must not lock out the hosts, logins and supervisors that trust us.
        admin: authority.ensure_public(&dir.join("admin-tls"), &config.cluster_domain, &config.names, now)?,
    })
}

/// Makes this router's own certificates anew while it runs; whoever shows them sees the changed files.
async fn renew_leafs(authority: Arc<Authority>, config: ControlConfig, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(RENEW_EVERY);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let (authority, config) = (Arc::clone(&authority), config.clone());
        let renewing = move || ensure_leafs(&authority, &config, Timestamp::now());
        match tokio::task::spawn_blocking(renewing).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "the router's certificates cannot be looked after; trying again");
            }
            Err(error) => tracing::error!(%error, "the router's certificates were not looked after"),
        }
    }
}

/// Everything that waits for the disk.
fn open_files(config: &ControlConfig) -> Result<Opened, ControlError> {
    let dir = &config.data_dir;
    files::private_dir(dir)?;
    let authority = Authority::ensure(dir)?;
    let leafs = ensure_leafs(&authority, config, Timestamp::now())?;
    let router = Arc::new(ReloadingCert::load(leafs.router)?);
    Ok(Opened {
        store: SqliteStore::open(&dir.join("state.sqlite"))?,
        seal: SealKey::ensure(&dir.join("seal.key"))?,
        blobs: Blobs::local(&dir.join("components"))?,
        usage: UsageStore::open(&dir.join("usage.sqlite"))?,
        upstream: tls::upstream(&authority, Arc::clone(&router))?,
        public: ReloadingCert::load(leafs.public)?,
        admin: ReloadingCert::load(leafs.admin)?,
        router,
        authority,
    })
}

impl Control {
    /// Opens everything, and makes what a first start makes: the authority, the certificates, and
    /// `admin.token` (mode 0600) with a token of role admin.
    pub async fn open(config: ControlConfig) -> Result<Self, ControlError> {
        let probe = marcato_api::Route { host: config.cluster_domain.clone(), path: "/".into() };
        probe.validate().map_err(|_| ControlError::Domain(config.cluster_domain.clone()))?;
        let for_files = config.clone();
        let opened = tokio::task::spawn_blocking(move || open_files(&for_files)).await;
        let opened = opened.map_err(|_| ControlError::Interrupted)??;
        let store: Arc<dyn Store> = Arc::new(opened.store);
        let state = State::new(store, opened.seal);
        ensure_first_token(&state, &config.data_dir).await?;
        let debug = state.ensure_debug_secret().await?;
        Ok(Self {
            state,
            debug,
            blobs: opened.blobs,
            usage: opened.usage,
            observed: Arc::new(ObservedCell::new()),
            authority: Arc::new(opened.authority),
            hosts: HostClients::new(Arc::clone(&opened.upstream)),
            upstream: opened.upstream,
            public: Arc::new(opened.public),
            admin: Arc::new(opened.admin),
            router: opened.router,
            metrics: Metrics::default(),
            config,
        })
    }

    /// The desired state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What debug tokens hang on.
    #[must_use]
    pub fn debug_secret(&self) -> &DebugSecret {
        &self.debug
    }

    /// The cluster's authority.
    #[must_use]
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Component bytes.
    #[must_use]
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// What apps used; the tasks write it.
    #[must_use]
    pub fn usage(&self) -> &UsageStore {
        &self.usage
    }

    /// What hosts last said; the tasks write it.
    #[must_use]
    pub fn observed(&self) -> &Arc<ObservedCell> {
        &self.observed
    }

    /// Clients of the hosts.
    #[must_use]
    pub fn hosts(&self) -> &HostClients {
        &self.hosts
    }

    /// How this router calls hosts, and the edge their ingress.
    #[must_use]
    pub fn upstream_tls(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.upstream)
    }

    /// The certificates of the edge: the files' one, swapped when they change; while that is ours, one for
    /// each name in the route table.
    #[must_use]
    pub fn server_tls(&self, table: Arc<TableCell>) -> Arc<dyn ResolvesServerCert> {
        let (files, authority) = (Arc::clone(&self.public), Arc::clone(&self.authority));
        Arc::new(NamedCerts::new(files, authority, table, &self.config.cluster_domain))
    }

    /// Loads the certificate files of edge and admin API now (SIGHUP); they are also looked at every two
    /// seconds. Answers whether they could be used; the old certificate goes on when not.
    pub async fn reload_certificates(&self) -> bool {
        let (public, admin) = (Arc::clone(&self.public), Arc::clone(&self.admin));
        tokio::task::spawn_blocking(move || public.reload() & admin.reload()).await.unwrap_or(false)
    }

    /// The authority's certificate file, for clients.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.config.data_dir.join("ca.pem")
    }

    /// The first token's file.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        token_file(&self.config.data_dir)
    }

    /// Puts the control plane's metrics into a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Serves the admin API until shutdown, then drains. `registry` is what `/metrics` shows.
    pub async fn serve_admin(
        &self,
        admin: TcpListener,
        registry: Arc<Registry>,
        shutdown: CancellationToken,
    ) -> Result<(), ControlError> {
        let api = Api::new(Shared {
            state: self.state.clone(),
            debug: self.debug.clone(),
            blobs: self.blobs.clone(),
            observed: Arc::clone(&self.observed),
            usage: self.usage.clone(),
            authority: Arc::clone(&self.authority),
            hosts: self.hosts.clone(),
            domain: self.config.cluster_domain.clone(),
            http_port: self.config.http_port,
            https_port: self.config.https_port,
            version: self.config.version.clone(),
            throttle: Throttle::default(),
            metrics: self.metrics.clone(),
            registry,
            big_bodies: Shared::big_bodies(),
            shutdown: shutdown.clone(),
        });
        let tls = tls::listener(Arc::clone(&self.admin))?;
        let tracker = TaskTracker::new();
        tracker.spawn(Arc::clone(&self.public).watch(shutdown.clone()));
        tracker.spawn(Arc::clone(&self.admin).watch(shutdown.clone()));
        tracker.spawn(Arc::clone(&self.router).watch(shutdown.clone()));
        tracker.spawn(renew_leafs(Arc::clone(&self.authority), self.config.clone(), shutdown.clone()));
        api::serve(admin, tls, api::router(api), shutdown).await;
        tracker.close();
        tracker.wait().await;
        Ok(())
    }
}

fn token_file(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.token")
}

/// Makes the first token when there is none at all. The file is written before the record, so that a
/// crash in between leaves a file that the next start replaces, never a token that nobody knows.
async fn ensure_first_token(state: &State, data_dir: &Path) -> Result<(), ControlError> {
    if !state.tokens().await?.is_empty() {
        return Ok(());
    }
    let (secret, sha256) = auth::new_secret(auth::TOKEN_PREFIX);
    files::write_secret(&token_file(data_dir), format!("{secret}\n").as_bytes())?;
    let token = Token {
        name: FIRST_TOKEN.into(),
        role: Role::Admin,
        org: None,
        created_at: Timestamp::now(),
        expires_at: None,
    };
    let deed = Deed::system("token.create", format!("token/{FIRST_TOKEN}"), "made by the first start");
    state.create_token(&TokenRecord { token, sha256 }, &deed).await?;
    Ok(())
}
