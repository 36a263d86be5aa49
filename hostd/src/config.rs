//! What a host daemon is started with. No defaults: whoever starts it decides every value.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use marcato_api::{Bytes, HostAddress, HostId};
use marcato_runtime::CompilerCommand;

use crate::pool::WorkerCommand;

/// Everything a host daemon needs to start.
#[derive(Debug)]
pub struct HostdConfig {
    /// Where identity, ledger, components, machine code and databases live. Made with mode 0700.
    pub data_dir: PathBuf,
    /// The name it has, or wishes for when it joins.
    pub id: HostId,
    /// Where HostApi listens (mutual TLS on TCP and Unix sockets alike).
    pub control: Listen,
    /// Where requests arrive (mutual TLS on TCP; on a Unix socket the peer's user id counts).
    pub ingress: Listen,
    /// How to join; only looked at while the host has no certificate.
    pub join: Option<JoinSettings>,
    /// Its failure domain; may be empty.
    pub zone: String,
    /// Labels that placement may ask for.
    pub labels: BTreeMap<String, String>,
    /// Most live sandboxes at once. Address space for all of them is reserved at start.
    pub sandboxes: u32,
    /// Linear memory for all live sandboxes together: reported to the planner, and never exceeded.
    pub memory: Bytes,
    /// The program that compiles components in a process of its own.
    pub compiler: CompilerCommand,
    /// Whether guests may reach private and loopback addresses with outbound HTTP.
    pub allow_private_egress: bool,
    /// Authorities (PEM) that guests' outbound HTTPS trusts beside the public ones.
    pub outbound_ca_file: Option<PathBuf>,
    /// The program that runs as a worker.
    pub worker: WorkerCommand,
    /// Run no worker that is confined less than can be.
    pub require_confinement: bool,
}

/// Where to listen.
#[derive(Debug)]
pub struct Listen {
    /// The address, as it is reported to the control plane.
    pub address: HostAddress,
    /// A socket that already listens there (socket activation); else the daemon binds the address.
    pub inherited: Option<OwnedFd>,
}

/// How to join a cluster.
#[derive(Debug, Clone)]
pub struct JoinSettings {
    /// The admin API, `https://HOST:PORT`.
    pub admin_url: String,
    /// The authority that its certificate must chain to.
    pub ca_pem_file: PathBuf,
    /// Holds the one-time token; a token is never an argument.
    pub token_file: PathBuf,
}
