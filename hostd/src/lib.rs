//! The node daemon: it joins a cluster once, is told what to run, keeps that on disk, and serves it.
//!
//! Flows: intent arrives at `control` (HostApi over mutual TLS), becomes durable in `ledger`, and the
//! reconcilers in `reconcile` make it so, with the processes of `pool`. Requests arrive at such a process, a `worker`, and
//! never at the daemon; that path reads one swap cell and nothing else. Observation leaves through `inventory`, `logs`,
//! `metrics`.
//!
//! Does not own: sandboxes (`marcato-runtime`), what should run where (the control plane).

mod channel;
mod client;
mod compiler;
mod components;
mod config;
mod control;
mod durable;
mod error;
mod identity;
mod ingress_identity;
mod inventory;
mod ledger;
mod listen;
mod logs;
mod metrics;
mod node;
mod pool;
mod reconcile;
mod remote;
mod renewal;
mod run;
mod serve;
pub mod services;
mod threads;
mod tls;
mod usage;
mod worker;

#[cfg(test)]
mod testing;

pub use compiler::{CompilerError, compile_confined};
pub use config::{HostdConfig, JoinSettings, Listen};
pub use error::HostdError;
pub use identity::IdentityError;
pub use ledger::LedgerError;
pub use pool::WorkerCommand;
pub use run::run;
pub use tls::TlsError;
pub use usage::UsageError;
pub use worker::{Prepared as PreparedWorker, WorkerError, prepare as prepare_worker, run as run_worker};

// For the `marcato` command, which starts the daemon and is its compiler.
pub use marcato_runtime::{CompileError, CompilerCommand};
