//! A sandbox: one store with one component instance in it, and all that belongs to it. It dies with
//! this value; what it used goes back to the pool and to the totals.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use marcato_api::{Limits, LogStream};
use wasmtime::component::{Linker, ResourceTable};
use wasmtime::{Engine, PoolConcurrencyLimitError, Store, UpdateDeadline};
use wasmtime_wasi::clocks::{HostMonotonicClock, HostWallClock};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView, p2, p3};

use crate::accounting::Held;
use crate::budget::{OverBudget, SandboxAccount};
use crate::cgi::{Command, CommandPre, Stdio};
use crate::egress::Hooks;
use crate::engine::{Dialect, Machine};
use crate::error::LoadError;
use crate::files::Files;
use crate::instance::Inner;
use crate::limits::{CpuMeter, Limit, SandboxLimiter, Turn};
use crate::logs::{GuestStream, SandboxLog};
use crate::metered::Ledger;
use crate::services::Services;

/// Handles that a guest may hold: resources of the host and of component instances.
pub(crate) const HANDLES: usize = 10_000;

/// The same where some may be files: each open one is a descriptor of this process.
const HANDLES_WITH_FILES: usize = 512;

/// Bytes that one call may carry from guest to host: what the host allocates before it looks at a call.
pub(crate) const HOSTCALL_BYTES: usize = 8 << 20;

/// Longest run of random bytes in one call.
pub(crate) const RANDOM_BYTES: u64 = 1 << 20;

/// Header fields of one `fields`, with what they cost in memory.
pub(crate) const HEADER_BYTES: usize = 128 << 10;

/// What waits in a component of WASI 0.3: tasks (three entries each), streams (three) and host calls (one).
pub(crate) const PENDING_CALLS: usize = 10_000;

/// A sandbox counts as live as long as this lives.
struct Live(Arc<Machine>);

impl Live {
    /// Nothing when there are as many as there may be.
    fn new(machine: &Arc<Machine>) -> Option<Self> {
        machine.enter().then(|| Self(Arc::clone(machine)))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The data of a sandbox's store.
pub(crate) struct Host {
    pub(crate) table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Hooks,
    pub(crate) limiter: SandboxLimiter,
    /// Its linear memory over time.
    pub(crate) held: Held,
    pub(crate) meter: Arc<CpuMeter>,
    pub(crate) log: Arc<SandboxLog>,
    pub(crate) services: Arc<Services>,
    pub(crate) env: Arc<[(String, String)]>,
    /// What the resources of the table cost the host.
    pub(crate) ledger: Ledger,
    _live: Live,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.ledger.call(&mut self.table);
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.ledger.call(&mut self.table);
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

/// Links every interface that the platform has in this dialect.
pub(crate) fn link(linker: &mut Linker<Host>, dialect: Dialect) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    crate::metered::link_p2(linker)?;
    if dialect == Dialect::Concurrent {
        wasmtime_wasi::p3::add_to_linker(linker)?;
        wasmtime_wasi_http::p3::add_to_linker(linker)?;
        crate::metered::link_p3(linker)?;
    }
    crate::services::link(linker)
}

/// The CPU budget is used up.
#[derive(Debug, thiserror::Error)]
#[error("limit cpu_ms reached")]
pub(crate) struct CpuExhausted;

/// A live sandbox.
pub(crate) struct Sandbox {
    pub(crate) store: Store<Host>,
    pub(crate) proxy: Proxy,
    /// Requests that it has taken.
    pub(crate) requests: u32,
}

/// Why there is no sandbox.
pub(crate) enum NoSandbox {
    /// A limit on memory fired before any guest code ran.
    Limit(Limit),
    /// The guest's start-up code failed.
    Guest(wasmtime::Error),
    /// There is no code to run.
    Code(Arc<LoadError>),
}

impl Sandbox {
    /// Makes a store and instantiates the component in it.
    /// A command has its own environment, input and output.
    pub(crate) async fn new(
        inner: &Inner,
        meter: Arc<CpuMeter>,
        log: Arc<SandboxLog>,
        stdio: Option<Stdio>,
    ) -> Result<Self, NoSandbox> {
        let code = inner.code.get().await.map_err(NoSandbox::Code)?;
        inner.machine.totals.room(expected_memory(inner)).await;
        let live = Live::new(&inner.machine).ok_or(NoSandbox::Limit(Limit::HostSandboxes))?;
        let host = host(inner, live, meter, log, stdio, code.files.as_ref())?;
        let mut store = Store::new(code.pre.engine(), host);
        store.limiter(|host| host);
        store.set_hostcall_fuel(HOSTCALL_BYTES);
        store.set_max_component_handles(HANDLES);
        if let Some(pending) = store.concurrent_resource_table() {
            pending.set_max_capacity(PENDING_CALLS);
        }
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|store| match store.data().meter.turn() {
            Turn::Short => Ok(UpdateDeadline::Continue(1)),
            // tokio's own way to yield looks at sockets before the guest goes on; a mere wake-up would not.
            Turn::Long => Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now()))),
            Turn::Exhausted => Err(wasmtime::Error::new(CpuExhausted)),
        });
        inner.counters.sandboxes.fetch_add(1, Ordering::Relaxed);
        match code.pre.instantiate(&mut store).await {
            Ok(proxy) => Ok(Self { store, proxy, requests: 0 }),
            Err(e) if e.is::<PoolConcurrencyLimitError>() => Err(NoSandbox::Limit(Limit::HostSandboxes)),
            Err(e) => match store.data_mut().limiter.fired.take() {
                Some(limit) => Err(NoSandbox::Limit(limit)),
                None => Err(NoSandbox::Guest(e)),
            },
        }
    }

    /// A request begins in it, and none beside it.
    pub(crate) fn begin(&mut self, limits: &Limits) {
        let host = self.store.data_mut();
        host.ledger.begin(&mut host.table);
        self.grant(limits);
    }

    /// What the request that is in it, and none beside it, may ask of others.
    pub(crate) fn grant(&self, limits: &Limits) {
        self.store.data().ledger.account().grant(limits.outbound_requests, limits.outbound_bytes.0, 1);
    }
}

/// Memory that another sandbox of this instance will need, about: as much as the largest so far.
fn expected_memory(inner: &Inner) -> u64 {
    const FIRST: u64 = 16 << 20;
    inner.limits.peak_of(Limit::MemoryBytes).max(FIRST).min(inner.config.limits.memory_bytes.0)
}

fn host(
    inner: &Inner,
    live: Live,
    meter: Arc<CpuMeter>,
    log: Arc<SandboxLog>,
    stdio: Option<Stdio>,
    files: Option<&Files>,
) -> Result<Host, NoSandbox> {
    let limits = &inner.config.limits;
    // As many as all requests that are in it at once may have.
    let outbound = u64::from(limits.outbound_concurrent) * u64::from(inner.config.reuse.concurrent.max(1));
    let account = SandboxAccount::new(
        limits.buffer_bytes.0,
        Arc::clone(&inner.account),
        Arc::clone(&inner.limits),
        Arc::clone(&log),
        outbound,
    );
    let handles = if files.is_some() { HANDLES_WITH_FILES } else { HANDLES };
    let over = |OverBudget(limit)| NoSandbox::Limit(limit);
    let mut ledger = Ledger::open(Arc::clone(&account), handles).map_err(over)?;
    if let Some(stdio) = &stdio {
        ledger.hold(stdio.held).map_err(over)?;
    }
    let mut wasi = WasiCtxBuilder::new();
    wasi.stdout(GuestStream { log: Arc::clone(&log), stream: LogStream::Stdout })
        .stderr(GuestStream { log: Arc::clone(&log), stream: LogStream::Stderr })
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .max_random_size(RANDOM_BYTES);
    if inner.account.coarse_clocks() {
        wasi.wall_clock(CoarseWall).monotonic_clock(CoarseMonotonic(Instant::now()));
    }
    let mut http = WasiHttpCtx::new();
    http.set_field_size_limit(HEADER_BYTES);
    match stdio {
        Some(stdio) => stdio.apply(&mut wasi),
        None => drop(wasi.envs(&inner.env)),
    }
    if let Some(files) = files {
        files.mount(&mut wasi).map_err(NoSandbox::Guest)?;
    }
    let mut table = ResourceTable::new();
    table.set_max_capacity(handles);
    Ok(Host {
        table,
        wasi: wasi.build(),
        http,
        hooks: Hooks { egress: Arc::clone(&inner.egress), log: Arc::clone(&log), account },
        limiter: SandboxLimiter::new(
            limits.memory_bytes.0,
            Arc::clone(&inner.memory),
            Arc::clone(&inner.account),
            Arc::clone(&inner.machine.totals),
            Arc::clone(&inner.limits),
        ),
        held: Held::new(&inner.counters.memory),
        meter,
        log,
        services: Arc::clone(&inner.services),
        env: Arc::clone(&inner.env),
        ledger,
        _live: live,
    })
}

/// A tick of the clocks of apps that may not measure finely what runs beside them.
const COARSE_TICK: Duration = Duration::from_millis(1);

/// The part of `time` that is whole ticks.
fn coarse(time: Duration) -> Duration {
    time - Duration::from_nanos(u64::from(time.subsec_nanos()) % COARSE_TICK.as_nanos() as u64)
}

/// The time of day, in whole ticks.
struct CoarseWall;

impl HostWallClock for CoarseWall {
    fn resolution(&self) -> Duration {
        COARSE_TICK
    }

    fn now(&self) -> Duration {
        // A clock before 1970 is nothing that a guest has to know.
        coarse(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }
}

/// The time since a sandbox began, in whole ticks.
struct CoarseMonotonic(Instant);

impl HostMonotonicClock for CoarseMonotonic {
    fn resolution(&self) -> u64 {
        COARSE_TICK.as_nanos() as u64
    }

    fn now(&self) -> u64 {
        u64::try_from(coarse(self.0.elapsed()).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A component, linked: WASI 0.3's handler when it has one, else 0.2's, else a command.
pub(crate) enum Pre {
    Command(CommandPre),
    P2(p2::bindings::ProxyPre<Host>),
    P3(p3::bindings::ServicePre<Host>),
}

/// A component, instantiated.
pub(crate) enum Proxy {
    Command(Command),
    P2(p2::bindings::Proxy),
    P3(p3::bindings::Service),
}

impl Pre {
    fn engine(&self) -> &Engine {
        match self {
            Self::Command(pre) => pre.engine(),
            Self::P2(pre) => pre.engine(),
            Self::P3(pre) => pre.engine(),
        }
    }

    async fn instantiate(&self, store: &mut Store<Host>) -> wasmtime::Result<Proxy> {
        Ok(match self {
            Self::Command(pre) => Proxy::Command(pre.instantiate(store).await?),
            Self::P2(pre) => Proxy::P2(pre.instantiate_async(store).await?),
            Self::P3(pre) => Proxy::P3(pre.instantiate_async(store).await?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_clocks_go_in_whole_ticks() {
        assert_eq!(coarse(Duration::from_nanos(5_000_999_999)), Duration::from_secs(5));
        assert_eq!(coarse(Duration::from_micros(1_500)), Duration::from_millis(1));
        let clock = CoarseMonotonic(Instant::now());
        let mut before = 0;
        for _ in 0..1000 {
            let now = clock.now();
            assert!(now >= before && now.is_multiple_of(1_000_000), "{now}");
            before = now;
        }
        assert_eq!(CoarseWall.now().subsec_nanos() % 1_000_000, 0);
        assert_eq!((clock.resolution(), CoarseWall.resolution()), (1_000_000, Duration::from_millis(1)));
    }
}
