//! The router process: its config, as the `marcato` command fills it in. The wiring of edge and control
//! plane (`app.rs`) is not merged yet; until then `run` says so.

use std::net::TcpListener;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

/// What the router is started with. All listeners listen already, bound here or inherited.
#[derive(Debug)]
pub struct RouterConfig {
    /// Where authority, store and components are kept; `admin.token` and `ca.pem` are written there.
    pub data_dir: PathBuf,
    /// The cluster's domain: an app's default host name is `APP.DOMAIN`.
    pub domain: String,
    /// Plain listeners of the edge.
    pub http: Vec<TcpListener>,
    /// TLS listeners of the edge.
    pub https: Vec<TcpListener>,
    /// The admin API's listener (TLS).
    pub admin: TcpListener,
}

/// Why the router ended.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// This build has no edge and no control plane.
    #[error("this build has no router: edge and control plane are not wired yet")]
    NotWired,
}

/// Serves until `shutdown` is cancelled, then drains.
pub async fn run(config: RouterConfig, shutdown: CancellationToken) -> Result<(), RouterError> {
    drop((config, shutdown));
    Err(RouterError::NotWired)
}
