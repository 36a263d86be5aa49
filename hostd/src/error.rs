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
    /// The sandbox engine cannot start.
    #[error("the sandbox engine cannot start")]
    Runtime(#[from] marcato_runtime::RuntimeError),
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
