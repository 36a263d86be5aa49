//! What a runtime and an instance are made from. Owns plain configuration only; no `Default`, so no
//! number hides: [`PoolConfig::for_host`] names the ones that were decided.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use marcato_api::{AppBudget, AppName, Bytes, InstanceId, Millis, RevisionConfig, RevisionNumber};
use tokio::runtime::Handle;

use crate::cache::CodeSource;
use crate::egress::Dialer;
use crate::services::{LogSink, Services};

/// What a runtime is made from.
#[derive(Clone)]
pub struct RuntimeConfig {
    /// How much the sandboxes of this process may use in all.
    pub pool: PoolConfig,
    /// Where compiled code comes from.
    pub code: Arc<dyn CodeSource>,
    /// Who makes the connections of outbound HTTP.
    pub dialer: Arc<dyn Dialer>,
    /// Authorities (PEM) that guests' outbound HTTPS trusts beside the public ones: those of a private cloud.
    pub outbound_ca_pem: Option<Vec<u8>>,
    /// The threads that carry connections, a runtime each; as many more run guests that compute for long.
    pub threads: Vec<Handle>,
    /// Apps share the CPU by their weights; else guests run as they come.
    pub cpu_shares: bool,
}

impl std::fmt::Debug for RuntimeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuntimeConfig").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// The program that compiles a component: it gets the component on stdin and the path of the output
/// as its last argument, and calls [`crate::compile_child`].
#[derive(Debug, Clone)]
pub struct CompilerCommand {
    /// The program.
    pub program: PathBuf,
    /// Arguments before the output path.
    pub args: Vec<OsString>,
    /// Memory that one compilation may use on top of what the process maps at its start.
    pub memory: Bytes,
    /// How long one compilation may take.
    pub timeout_ms: Millis,
}

impl CompilerCommand {
    /// `program` with `args`, 1 GiB and 60 s: a 20 MB Python component takes 350 MB and 9 s.
    pub fn new(program: impl Into<PathBuf>, args: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().collect(),
            memory: Bytes::mib(1024),
            timeout_ms: Millis::secs(60),
        }
    }
}

/// Size of the pool that all sandboxes of a host come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Most live sandboxes at once (1 to 100,000).
    pub sandboxes: u32,
    /// Linear memory that all live sandboxes may have together (64 KiB to 256 TiB); growth beyond it fails.
    pub memory: Bytes,
    /// Address space of one linear memory; a memory never grows beyond it (64 KiB to 4 GiB).
    pub memory_per_sandbox: Bytes,
    /// How much of a slot is zeroed by hand instead of given back to the kernel.
    pub keep_resident: Bytes,
    /// How much compiled code stays mapped, by the size of its files; what was not used for longest makes room. Code that
    /// a sandbox runs lives as long as that, and code that is larger is mapped alone.
    pub code_memory: Bytes,
    /// Code that no request needed for so long is dropped.
    pub code_idle_ms: Millis,
}

impl PoolConfig {
    /// The most that one memory of a sandbox can have.
    pub const MEMORY_PER_SANDBOX: Bytes = Bytes::mib(1024);

    /// The pool of a host: memories of up to 1 GiB, `memory` in all, 2 MiB of each kept resident; code of a quarter of
    /// `memory`, dropped after ten minutes.
    #[must_use]
    pub const fn for_host(sandboxes: u32, memory: Bytes) -> Self {
        Self {
            sandboxes,
            memory,
            memory_per_sandbox: Self::MEMORY_PER_SANDBOX,
            keep_resident: Bytes::mib(2),
            code_memory: Bytes(memory.0 / 4),
            code_idle_ms: Millis::secs(600),
        }
    }
}

/// What an instance is made from.
#[derive(Clone)]
pub struct InstanceSetup {
    /// Its id.
    pub id: InstanceId,
    /// Its app.
    pub app: AppName,
    /// Its revision.
    pub revision: RevisionNumber,
    /// What it runs with.
    pub config: RevisionConfig,
    /// What the operator lets its app have on this host; of several instances of an app the one that starts last decides.
    pub budget: AppBudget,
    /// Bound services, by binding name.
    pub services: Services,
    /// Where its log lines go.
    pub logs: Arc<dyn LogSink>,
}

impl std::fmt::Debug for InstanceSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The config holds secrets (env).
        f.debug_struct("InstanceSetup").field("id", &self.id).field("revision", &self.revision).finish_non_exhaustive()
    }
}
