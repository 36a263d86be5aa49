//! The sandbox runtime: compiles WebAssembly components, and runs HTTP requests in them under limits.
//!
//! The only user of wasmtime. It sits at the end of the request flow (`hostd::ingress` ->
//! [`Instance::handle`] -> guest -> services) and of the intent flow (`hostd::reconcile` ->
//! [`CodeCache::compile`]; a worker's [`Runtime::start`]). It owns no storage, no listener and
//! no configuration file. The host daemon has the cache of code and the network, workers have the sandboxes.

mod accounting;
mod artifact;
mod body;
mod budget;
mod cache;
mod cgi;
mod code;
mod code_memory;
mod compile;
mod config;
mod crowd;
mod egress;
mod engine;
mod error;
mod files;
mod instance;
mod invoke;
mod limits;
mod link;
mod logs;
mod metered;
mod module;
mod running;
mod runtime;
mod sandbox;
mod services;
mod share;
mod totals;
mod usage;

pub use body::{BodyError, BoxError, RequestBody, ResponseBody};
pub use cache::{CodeCache, CodeSource};
pub use code::CodeUsage;
pub use compile::{CONFINEMENT_PREFIX, compile_child, compile_to, limit_compiler};
pub use config::{CompilerCommand, InstanceSetup, PoolConfig, RuntimeConfig};
pub use egress::{DialError, Dialer, NetworkDialer, check_outbound_ca, outbound_allows};
pub use error::{CompileError, FiredLimit, InvokeError, LoadError, RuntimeError, StartError};
pub use instance::Instance;
pub use runtime::Runtime;
pub use services::{AccessService, KeyValueService, LogSink, Services};
pub use totals::{Lease, LeaseUsed};

#[cfg(test)]
mod tests;
