//! The runtime: its engines, its shelf of code, any number of instances. Intent flow: a worker calls `start`, which
//! touches no code; the first request does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use marcato_api::{Bytes, Digest, HostUsage};

use crate::budget::Apps;
use crate::code::{CodeShelf, CodeUsage, Policy};
use crate::config::{InstanceSetup, RuntimeConfig};
use crate::egress::Network;
use crate::engine::Machine;
use crate::error::{LoadError, RuntimeError, StartError};
use crate::instance::Instance;
use crate::link::Linkers;
use crate::share::Shares;
use crate::totals::{Lease, LeaseUsed};

/// The sandbox runtime of a process. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Shared>);

struct Shared {
    machine: Arc<Machine>,
    shelf: CodeShelf,
    network: Network,
    apps: Apps,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

impl Runtime {
    /// Makes a runtime; needs a tokio runtime around it. Errors: the pool cannot be had, or the authorities cannot be
    /// used.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let network = Network::new(config.dialer, config.outbound_ca_pem.as_deref())?;
        let machine = Machine::new(&config.pool, Shares::new(config.threads, config.cpu_shares)?)?;
        let linkers = Arc::new(Linkers::new(&machine.engines)?);
        let policy = Policy { memory: config.pool.code_memory, idle: Duration::from(config.pool.code_idle_ms) };
        let shelf = CodeShelf::new(linkers, config.code, policy);
        Ok(Self(Arc::new(Shared { machine: Arc::new(machine), shelf, network, apps: Apps::default() })))
    }

    /// Maps and links code and drops it again: whether the first request will find it. A component is checked once, when
    /// it is compiled; this is for whoever doubts.
    pub async fn check(&self, digest: &Digest) -> Result<(), LoadError> {
        self.0.shelf.check(digest).await
    }

    /// Starts an instance; needs a tokio runtime around it. Its code is mapped at its first request.
    pub fn start(&self, setup: InstanceSetup, digest: &Digest) -> Result<Instance, StartError> {
        setup.config.validate()?;
        let (code, machine) = (self.0.shelf.handle(digest), Arc::clone(&self.0.machine));
        Instance::new(setup, code, machine, &self.0.network, &self.0.apps)
    }

    /// How much code is mapped.
    #[must_use]
    pub fn code_usage(&self) -> CodeUsage {
        self.0.shelf.usage()
    }

    /// What of the host this runtime may use from now on: at most what its pool was made for. What is used already stays
    /// used, and is the most that there will be.
    pub fn set_lease(&self, lease: Lease) {
        self.0.machine.totals.set_lease(lease);
    }

    /// Waits until the lease is nearly used up, or was; gives the memory that would be used in all, were there room. One
    /// waits at a time.
    pub async fn lease_wanted(&self) -> Bytes {
        Bytes(self.0.machine.totals.wanted().await)
    }

    /// What is used of the lease.
    #[must_use]
    pub fn lease_used(&self) -> LeaseUsed {
        self.0.machine.totals.used()
    }

    /// What the sandboxes of this process use now.
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

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Resident memory of this process: pages of 4 KiB, the second number of statm (proc(5)).
fn resident() -> Option<Bytes> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    statm.split(' ').nth(1)?.parse::<u64>().ok().map(|pages| Bytes(pages * 4096))
}
