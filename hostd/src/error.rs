//! Why the daemon could not start or go on.

use std::io;
use std::path::PathBuf;

use crate::identity::IdentityError;
use crate::ledger::LedgerError;
use crate::usage::UsageError;

/// Why the daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum HostdError {
    /// A directory or file of the data directory cannot be used.
    #[error("the data directory {} cannot be used", path.display())]
    DataDir {
        /// Which path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another daemon runs with this data directory.
    #[error("another host daemon uses {}", .0.display())]
    InUse(PathBuf),
    /// The host's identity cannot be had.
    #[error("the host has no usable identity")]
    Identity(#[from] IdentityError),
    /// The ledger cannot be opened.
    #[error("the ledger cannot be opened")]
    Ledger(#[from] LedgerError),
    /// The usage ledger cannot be opened.
    #[error("the usage ledger cannot be opened")]
    Usage(#[from] UsageError),
    /// The cache of compiled code cannot be opened.
    #[error("the cache of compiled code cannot be opened")]
    Cache(#[source] marcato_runtime::RuntimeError),
    /// The authorities for outbound HTTPS cannot be used.
    #[error("the authorities in {} cannot be used", path.display())]
    OutboundCa {
        /// Their file.
        path: PathBuf,
        /// Why.
        #[source]
        source: marcato_runtime::RuntimeError,
    },
    /// The kernel does not have all that confines a worker, and that is required.
    #[error("confinement is required and cannot be had in full: {0}")]
    Confinement(String),
    /// Workers cannot be started.
    #[error("workers cannot be started")]
    Workers(#[source] io::Error),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which address.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A task of the daemon ended by a panic, or too early.
    #[error("a task of the daemon ended: {0}")]
    Task(String),
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
