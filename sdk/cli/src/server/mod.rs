//! The server commands: what `marcato router`, `marcato hostd` and the hidden `worker` and `compile-component` share.
//!
//! Each command is one file that turns arguments into a config and calls the crate that does the work.
//! The signals, the runtime, the log and inherited sockets are set up here, the same for both.

pub(crate) mod compile;
pub(crate) mod hostd;
mod inherit;
pub(crate) mod logging;
pub(crate) mod parent;
pub(crate) mod router;
pub(crate) mod runtime;
pub(crate) mod signals;
pub(crate) mod worker;

/// Names of inherited sockets (`LISTEN_FDNAMES`).
pub(crate) mod socket {
    /// The router's plain listener.
    pub(crate) const HTTP: &str = "http";
    /// The router's TLS listener.
    pub(crate) const HTTPS: &str = "https";
    /// The router's admin listener.
    pub(crate) const ADMIN: &str = "admin";
    /// A host's HostApi.
    pub(crate) const CONTROL: &str = "control";
    /// A host's request listener.
    pub(crate) const INGRESS: &str = "ingress";
}
