//! `marcato router`: the edge and the control plane.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use marcato_router::RouterConfig;

use super::inherit::Inherited;
use super::{logging, parent, runtime, signals, socket};

/// Run the router: the edge and the control plane
#[derive(Debug, Args)]
pub(crate) struct RouterArgs {
    /// Where it keeps its authority, store and components
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where plain HTTP arrives
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Where HTTPS arrives
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
    https: SocketAddr,
    /// Where the admin API listens (HTTPS)
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8444")]
    admin: SocketAddr,
    /// The cluster's domain: an app's default host name is APP.DOMAIN
    #[arg(long, default_value = "localhost")]
    domain: String,
}

pub(crate) fn run(args: RouterArgs) -> Result<()> {
    parent::follow_supervisor()?;
    let _log = logging::init("info");
    let mut inherited = Inherited::from_env();
    let mut listen = |address: SocketAddr, name: &str| -> Result<TcpListener> {
        let taken = inherited.tcp(name).with_context(|| format!("the inherited socket {name:?}"))?;
        match taken {
            Some(listener) => Ok(listener),
            None => crate::up::listen::tcp(address, &format!("--{name}")),
        }
    };
    let workers = runtime::Workers::start("router")?;
    let config = RouterConfig {
        data_dir: args.data,
        domain: args.domain,
        http: vec![listen(args.http, socket::HTTP)?],
        https: vec![listen(args.https, socket::HTTPS)?],
        admin: listen(args.admin, socket::ADMIN)?,
        workers: workers.handles(),
    };
    runtime::server("router")?.block_on(signals::until_stopped(|token| marcato_router::run(config, token)))
}
