//! The runtime: one engine, any number of instances. Intent flow: a worker calls `load` and `start`; neither is on
//! the request path.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use marcato_api::{Bytes, Digest, HostUsage};
use wasmtime::component::{Component, Linker};

use crate::artifact;
use crate::budget::Apps;
use crate::cache::CodeSource;
use crate::config::{InstanceSetup, RuntimeConfig};
use crate::egress::Network;
use crate::engine::Machine;
use crate::error::{LoadError, RuntimeError, StartError};
use crate::instance::Instance;
use crate::sandbox::{Host, Pre, link};

/// The sandbox runtime of a process. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Shared>);

struct Shared {
    machine: Arc<Machine>,
    linker: Linker<Host>,
    code: Arc<dyn CodeSource>,
    network: Network,
    apps: Apps,
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
    /// The largest memory that it begins with.
    memory_minimum: Bytes,
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
    /// Makes a runtime; needs a tokio runtime around it. Errors: the pool cannot be had, or the authorities cannot be
    /// used.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let network = Network::new(config.dialer, config.outbound_ca_pem.as_deref())?;
        let machine = Machine::new(&config.pool)?;
        let mut linker = Linker::new(&machine.engine);
        link(&mut linker).map_err(|e| RuntimeError::Link(format!("{e:#}")))?;
        Ok(Self(Arc::new(Shared {
            machine: Arc::new(machine),
            linker,
            code: config.code,
            network,
            apps: Apps::default(),
        })))
    }

    /// Maps verified code and links it.
    pub async fn load(&self, digest: &Digest) -> Result<Code, LoadError> {
        let path = self.0.code.open(digest).await?;
        let (shared, wanted) = (Arc::clone(&self.0), digest.clone());
        blocking(move || {
            let component = artifact::map(&shared.machine.engine, &wanted, &path)?;
            let pre = link_component(&shared.linker, &component)?;
            Ok(Code { digest: wanted, pre: Arc::new(pre), memory_minimum: memory_minimum(&component) })
        })
        .await
        .map_err(LoadError::Read)?
    }

    /// Starts an instance; needs a tokio runtime around it.
    pub fn start(&self, setup: InstanceSetup, code: &Code) -> Result<Instance, StartError> {
        setup.config.validate()?;
        check_needs(code, &setup)?;
        Instance::new(setup, code, Arc::clone(&self.0.machine), &self.0.network, &self.0.apps)
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
}

/// What can be known before any request: an instance that could never make a sandbox does not start.
fn check_needs(code: &Code, setup: &InstanceSetup) -> Result<(), StartError> {
    let (limits, needed) = (&setup.config.limits, code.memory_minimum);
    let checks = [
        ("limits.memory_bytes", Some(limits.memory_bytes)),
        ("limits.instance_memory_bytes", Some(limits.instance_memory_bytes)),
        ("app_memory_bytes", setup.budget.app_memory_bytes),
    ];
    match checks.into_iter().find_map(|(field, limit)| Some((field, limit.filter(|limit| needed.0 > limit.0)?))) {
        Some((field, limit)) => Err(StartError::TooSmall { field, limit, needed }),
        None => Ok(()),
    }
}

/// The largest memory that a component begins with; 0 when its modules are imports.
fn memory_minimum(component: &Component) -> Bytes {
    let pages = component.resources_required().and_then(|needs| needs.max_initial_memory_size).unwrap_or(0);
    Bytes(pages.saturating_mul(64 << 10))
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
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
