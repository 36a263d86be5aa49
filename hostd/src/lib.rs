//! The node daemon: it joins a cluster once, is told what to run, keeps that on disk, and serves it.
//!
//! Flows: intent arrives at `control` (HostApi over mutual TLS), becomes durable in `ledger`, and the
//! reconcilers in `reconcile` make it so. Requests arrive at `ingress` and go to `marcato-runtime`; that
//! path reads one swap cell and nothing else. Observation leaves through `inventory`, `logs`, `metrics`.
//!
//! Does not own: sandboxes (`marcato-runtime`), what should run where (the control plane).

mod client;
mod compiler;
mod components;
mod config;
mod control;
mod durable;
mod error;
mod identity;
mod ingress;
mod inventory;
mod ledger;
mod listen;
mod logs;
mod metrics;
mod node;
mod reconcile;
mod remote;
mod renewal;
mod run;
mod serve;
pub mod services;
mod tls;
mod usage;
mod workers;

#[cfg(test)]
mod testing;

pub use compiler::{CompilerError, compile_confined};
pub use config::{HostdConfig, JoinSettings, Listen};
pub use error::HostdError;
pub use identity::IdentityError;
pub use ledger::LedgerError;
pub use run::run;
pub use tls::TlsError;
pub use usage::UsageError;

// For the `marcato` command, which starts the daemon and is its compiler.
pub use marcato_runtime::{CompileError, CompilerCommand};
