//! The runtime: one engine, one cache of code, any number of instances. Intent flow: `hostd::reconcile`
//! calls `compile`, `load` and `start`; none of them is on the request path.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use marcato_api::{Bytes, Digest, HostUsage};
use tokio::sync::Semaphore;
use wasmtime::component::{Component, Linker};

use crate::artifact::ArtifactCache;
use crate::config::{CompilerCommand, InstanceSetup, RuntimeConfig};
use crate::egress::Network;
use crate::engine::Machine;
use crate::error::{CompileError, LoadError, RuntimeError, StartError};
use crate::instance::Instance;
use crate::sandbox::{Host, Pre, link};

/// Compilations at once: each may take hundreds of MiB.
const COMPILERS: usize = 2;

/// The sandbox runtime of a host. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Shared>);

struct Shared {
    machine: Arc<Machine>,
    linker: Linker<Host>,
    cache: ArtifactCache,
    compiler: CompilerCommand,
    compilers: Semaphore,
    network: Network,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

/// Compiled, linked code of one component. Cheap to clone.
#[derive(Clone)]
pub struct Code {
    digest: Digest,
    pub(crate) pre: Arc<Pre>,
}

impl Code {
    /// The component's digest.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Code").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Runtime {
    /// Makes a runtime; needs a tokio runtime around it. Errors: the pool or the cache cannot be had, or the file of
    /// authorities cannot be used.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let network = Network::new(config.allow_private_egress, config.outbound_ca_file.as_deref())?;
        let machine = Machine::new(&config.pool)?;
        let mut linker = Linker::new(&machine.engine);
        link(&mut linker).map_err(|e| RuntimeError::Link(format!("{e:#}")))?;
        let cache = ArtifactCache::open(&config.cache_dir, &machine.code_key)?;
        Ok(Self(Arc::new(Shared {
            machine: Arc::new(machine),
            linker,
            cache,
            compiler: config.compiler,
            compilers: Semaphore::new(COMPILERS),
            network,
        })))
    }

    /// Compiles the component at `component` into the cache; fine when it is there already.
    pub async fn compile(&self, digest: &Digest, component: &Path) -> Result<(), CompileError> {
        let shared = &self.0;
        let _turn = shared.compilers.acquire().await.map_err(|e| CompileError::Process(io::Error::other(e)))?;
        if shared.cache.contains(digest) {
            return Ok(());
        }
        let (wanted, path) = (digest.clone(), component.to_owned());
        let bytes =
            blocking(move || crate::compile::read_verified(&wanted, &path)).await.map_err(CompileError::Process)??;
        let scratch = shared.cache.scratch().map_err(CompileError::Store)?;
        crate::compile::run(&shared.compiler, &bytes, scratch.path()).await?;
        let (owner, digest) = (Arc::clone(shared), digest.clone());
        blocking(move || owner.cache.commit(&digest, scratch))
            .await
            .map_err(CompileError::Process)?
            .map_err(CompileError::Store)
    }

    /// Whether the cache has its code, for this version of the runtime.
    #[must_use]
    pub fn is_compiled(&self, digest: &Digest) -> bool {
        self.0.cache.contains(digest)
    }

    /// Loads code from the cache, maps it and links it.
    pub async fn load(&self, digest: &Digest) -> Result<Code, LoadError> {
        let (shared, wanted) = (Arc::clone(&self.0), digest.clone());
        blocking(move || {
            let component = shared.cache.load(&wanted, &shared.machine.engine)?;
            let pre = link_component(&shared.linker, &component)?;
            Ok(Code { digest: wanted, pre: Arc::new(pre) })
        })
        .await
        .map_err(LoadError::Read)?
    }

    /// Starts an instance; needs a tokio runtime around it.
    pub fn start(&self, setup: InstanceSetup, code: &Code) -> Result<Instance, StartError> {
        setup.config.validate()?;
        Instance::new(setup, code, Arc::clone(&self.0.machine), &self.0.network)
    }

    /// What the host's sandboxes use now.
    #[must_use]
    pub fn usage(&self) -> HostUsage {
        let totals = &self.0.machine.totals;
        HostUsage {
            resident_bytes: resident().unwrap_or_default(),
            sandbox_bytes: Bytes(totals.memory.used()),
            sandboxes: totals.sandboxes.load(Ordering::Relaxed),
        }
    }

    /// Removes a component's code from the cache; fine when it is not there. Code that runs goes on.
    pub fn forget(&self, digest: &Digest) -> io::Result<()> {
        self.0.cache.remove(digest)
    }

    #[cfg(test)]
    pub(crate) fn compile_here(&self, bytes: &[u8]) -> Result<Digest, CompileError> {
        let code = crate::compile::compile_bytes(&self.0.machine.engine, bytes)?;
        let scratch = self.0.cache.scratch().map_err(CompileError::Store)?;
        std::fs::write(scratch.path(), code).map_err(CompileError::Store)?;
        let digest = Digest::of(bytes);
        self.0.cache.commit(&digest, scratch).map_err(CompileError::Store)?;
        Ok(digest)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Resident memory of this process: pages of 4 KiB, the second number of statm (proc(5)).
fn resident() -> Option<Bytes> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    statm.split(' ').nth(1)?.parse::<u64>().ok().map(|pages| Bytes(pages * 4096))
}

fn link_component(linker: &Linker<Host>, component: &Component) -> Result<Pre, LoadError> {
    let pre = linker.instantiate_pre(component).map_err(|e| missing_import(&format!("{e:#}")))?;
    let exports_handler =
        |prefix: &str| component.component_type().exports(linker.engine()).any(|(name, _)| name.starts_with(prefix));
    let mismatch = |e: wasmtime::Error| LoadError::Link(format!("{e:#}"));
    if exports_handler("wasi:http/handler@0.3.") {
        return wasmtime_wasi_http::p3::bindings::ServicePre::new(pre).map(Pre::P3).map_err(mismatch);
    }
    if exports_handler("wasi:http/incoming-handler@0.2.") {
        return wasmtime_wasi_http::p2::bindings::ProxyPre::new(pre).map(Pre::P2).map_err(mismatch);
    }
    Err(LoadError::NoHandler)
}

/// wasmtime names the import in backticks; nothing else tells an import that is missing.
fn missing_import(text: &str) -> LoadError {
    let named = text.split_once("imports ").and_then(|(_, rest)| rest.split('`').nth(1));
    match named {
        Some(import) => {
            let detail: String = text.chars().filter(|c| !c.is_control()).take(400).collect();
            LoadError::MissingImport { import: import.to_owned(), detail }
        }
        None => LoadError::Link(text.to_owned()),
    }
}
